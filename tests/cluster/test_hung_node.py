"""A node that hangs or dies: noticed by all within seconds, delays others by no more than the hedge and probe times, and is welcomed back.

The bounds are for a busy machine with two cores; an idle one stays far below them.
"""

from __future__ import annotations

import asyncio
import time

import pytest

from client import RetryPolicy
from tests.cluster.conftest import MakeCluster
from tests.cluster.content import KIB, MIB, content
from tests.cluster.gateway import Gateway
from tests.cluster.harness import ClusterProcess, eventually
from tests.cluster.load import Load

NOTICED_S = 5.0
"""In which every other node must call a hung or killed one dead."""

UNNOTICED_REQUEST_S = 3.0
"""The longest request while a hung node still counts as alive: one leader's time (1.5 s) and some hedges."""

UNNOTICED_READ_S = 1.2
"""The longest read of what nobody writes in that time: hedges alone, 0.1 s for the head and at most 0.5 s for each chunk."""

NOTICED_REQUEST_S = 1.0
"""The longest request once it is known to be dead."""

NO_FAIL_OVER = RetryPolicy(attempts=1)


async def noticed(cluster: ClusterProcess, name: str, state: str, deadline_s: float) -> float:
    """Wait until all other nodes give that state to a node; seconds until the last one did."""
    began = time.monotonic()
    others = [other for other in cluster.names if other != name]

    async def by(other: str) -> None:
        async with Gateway(cluster[other].url) as gateway:

            async def agrees() -> bool:
                nodes = (await gateway.document("/v1/nodes"))["nodes"]
                return any(node["name"] == name and node["state"] == state for node in nodes)

            await eventually(agrees, f"{other} calls {name} {state}", deadline_s)

    await asyncio.gather(*(by(other) for other in others))
    return time.monotonic() - began


@pytest.mark.parametrize("how", ["hung", "killed"])
async def test_a_lost_node_delays_nobody_for_long(make_cluster: MakeCluster, how: str) -> None:
    """Through every other gateway, without fail-over: no request fails, and none takes longer than the bounds."""
    cluster = await make_cluster(5)
    victim = "n1"  # the steward, and first on many preference lists
    others = [name for name in cluster.names if name != victim]
    clients = [cluster.client(name, policy=NO_FAIL_OVER) for name in others]
    async with clients[0], clients[1], clients[2], clients[3]:
        quiet = Load(clients, writers=32, readers=8, size=200 * KIB, pause_s=0.05, prefix="quiet-", rewrite=False)
        load = Load(clients, writers=8, readers=4, size=200 * KIB, pause_s=0.05)
        async with load.running(), quiet.running():
            await load.goes_on(16, 16)
            await quiet.goes_on(0, 32)
            print(f"slowest before: {load.slowest_s:.3f} s, of reads {quiet.slowest_s:.3f} s")
            load.watch()
            quiet.watch()
            if how == "hung":
                cluster[victim].freeze()
            else:
                cluster.kill(victim)
            took = await noticed(cluster, victim, "dead", NOTICED_S)
            print(f"{how} node noticed by all after {took:.2f} s")
            print(f"slowest until then: {load.slowest_s:.3f} s, of reads {quiet.slowest_s:.3f} s")
            assert load.slowest_s < UNNOTICED_REQUEST_S
            assert quiet.slowest_s < UNNOTICED_READ_S
            load.watch()
            quiet.watch()
            await load.goes_on(64, 64)
            print(f"slowest afterwards: {load.slowest_s:.3f} s, of reads {quiet.slowest_s:.3f} s")
            assert load.slowest_s < NOTICED_REQUEST_S
            assert quiet.slowest_s < NOTICED_REQUEST_S
            load.watch()
            if how == "hung":
                cluster[victim].thaw()
            else:
                await cluster.start(victim)
            took = await noticed(cluster, victim, "alive", NOTICED_S)
            print(f"welcomed back by all after {took:.2f} s")
            await load.goes_on(32, 32)
            print(f"slowest request while it returns: {load.slowest_s:.3f} s")
            assert load.slowest_s < UNNOTICED_REQUEST_S
        async with cluster.client(victim, policy=NO_FAIL_OVER) as returned:
            await load.check(returned)


async def test_a_thawed_node_serves_nothing_stale(cluster: ClusterProcess) -> None:
    """Everything is overwritten while it hangs; its first answers, in the very moment it wakes, are the new bytes."""
    names = [f"v{index}" for index in range(8)]
    victim = cluster["n2"]
    async with Gateway(victim.url) as there, Gateway(cluster["n3"].url) as other:
        for name in names:
            assert (await other.put(name, content(name, 0, MIB))).status == 201
            assert (await there.get(name)).body == content(name, 0, MIB)  # it has the old heads at hand now
        victim.freeze()
        for name in names:
            assert (await other.put(name, content(name, 1, MIB))).status == 200
        # sent while it hangs: they are answered when it wakes
        waiting = [asyncio.create_task(there.get(name)) for name in names]
        await noticed(cluster, victim.name, "dead", NOTICED_S)
        victim.thaw()
        for name, answer in zip(names, await asyncio.gather(*waiting), strict=True):
            assert answer.status == 200, answer
            assert answer.body == content(name, 1, MIB)
            assert (await there.put(name, content(name, 2, MIB))).status == 200
            assert (await other.get(name)).body == content(name, 2, MIB)
