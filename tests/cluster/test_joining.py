"""Nodes come and go by changes of the layout: under load, without a failed request, and without anything lost."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack

from client import RetryPolicy
from tests.cluster.conftest import MakeCluster
from tests.cluster.content import KIB, content
from tests.cluster.gateway import Gateway
from tests.cluster.harness import ClusterProcess, eventually
from tests.cluster.healing import QUICK_REPAIR
from tests.cluster.inspector import Inspector
from tests.cluster.load import Load

NO_FAIL_OVER = RetryPolicy(attempts=1)

PARTITIONS = 1024
COPIES = 3

CHANGE_DEADLINE_S = 40.0
"""For a small cluster to agree on a layout, fill it and put it in force, under load on a busy machine."""

TIDY_DEADLINE_S = 40.0
"""The tidier begins 10 s after a layout is in force."""

PLACED_DEADLINE_S = 90.0
"""And the tidier tries again 10 s later what it could not give up at once."""

QUIET = 24
"""Volumes that nobody writes while the layout changes."""


async def in_force(gateway: Gateway, version: int) -> None:
    """Wait until a layout is in force as this node sees it."""

    async def reached() -> bool:
        layout = await gateway.document("/v1/layout")
        return bool(layout["current"]["version"] == version and layout["next"] is None)

    began = time.monotonic()
    await eventually(reached, f"layout {version} is in force", CHANGE_DEADLINE_S)
    print(f"layout {version} in force after {time.monotonic() - began:.1f} s")


async def tidied(cluster: ClusterProcess, version: int) -> None:
    """Wait until every node has looked at all that it holds under this layout."""

    async def done(name: str) -> None:
        async with Gateway(cluster[name].url) as gateway:

            async def settled() -> bool:
                layout = await gateway.document("/v1/layout")
                tidier = next(j for j in (await gateway.document("/v1/jobs"))["jobs"] if j["name"] == "tidier")
                in_force = layout["current"]["version"] == version and layout["next"] is None
                return bool(in_force and not tidier["queue_length"] and not tidier["waiting_for"])

            await eventually(settled, f"{name} has tidied under layout {version}", TIDY_DEADLINE_S)

    began = time.monotonic()
    await asyncio.gather(*(done(name) for name in cluster.names))
    print(f"tidied under layout {version} after {time.monotonic() - began:.1f} s")


async def test_a_sixth_node_joins_and_leaves_under_load(make_cluster: MakeCluster) -> None:
    """No request fails through any gateway, its own included; it takes its share, and gives everything back."""
    cluster = await make_cluster(5, environment=QUICK_REPAIR)
    founders = list(cluster.names)
    quiet = {f"quiet-{index}": content(f"quiet-{index}", 0, 100 * KIB) for index in range(QUIET)}
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(cluster.client(name, policy=NO_FAIL_OVER)) for name in founders]
        inspector = await stack.enter_async_context(Inspector(cluster))
        n1 = await stack.enter_async_context(Gateway(cluster["n1"].url))
        for name, data in quiet.items():
            await clients[0].put(name, data)

        load = Load(clients, writers=6, readers=6, size=100 * KIB, pause_s=0.2)
        async with load.running():
            await load.goes_on(12, 12)
            sixth = await cluster.add()
            joined = await stack.enter_async_context(cluster.client(sixth.name, policy=NO_FAIL_OVER))
            through_it = Load([joined], writers=2, readers=2, size=100 * KIB, pause_s=0.2, prefix="sixth-")
            async with through_it.running():
                await in_force(n1, 2)
                print(f"{load.puts} puts, {load.gets} gets until layout 2 was in force; slowest {load.slowest_s:.2f} s")
                await load.goes_on(12, 12)
                await through_it.goes_on(4, 4)
        nodes = {node["name"]: node for node in (await n1.document("/v1/layout"))["current"]["nodes"]}
        shares = {name: node["partitions"] for name, node in nodes.items()}
        assert sum(shares.values()) == PARTITIONS * COPIES
        assert all(abs(share - PARTITIONS * COPIES / 6) <= 1 for share in shares.values()), shares

        everybody = [*founders, sixth.name]
        await tidied(cluster, 2)
        holdings = await inspector.all_in_place(*everybody, deadline_s=PLACED_DEADLINE_S)
        share = holdings.bytes_share(sixth.name)
        print(f"{len(holdings.holders)} chunks in place, {100 * share:.1f} % of the copies on the sixth")
        assert 0.08 < share < 0.25
        for client in (clients[0], joined):
            for name, data in quiet.items():
                assert await client.get(name) == data
            await load.check(client)
            await through_it.check(client)

        # and away again
        plan = await clients[1].plan_layout({"stage": [{"name": sixth.name, "remove": True}]})
        assert plan["version"] == 3, plan
        async with load.running():
            await load.goes_on(12, 12)
            await clients[2].apply_layout(3)
            await in_force(n1, 3)
            await load.goes_on(12, 12)
        layout = await n1.document("/v1/layout")
        assert [node["name"] for node in layout["current"]["nodes"]] == founders
        assert layout["excluded"] == [sixth.name], "it would be taken in again by itself"
        await tidied(cluster, 3)
        await inspector.all_in_place(*everybody, deadline_s=PLACED_DEADLINE_S)
        cluster.kill(sixth.name)
        for name, data in quiet.items():
            assert await clients[3].get(name) == data
        await load.check(clients[4])
        await through_it.check(clients[0])


async def test_changes_are_applied_by_hand(make_cluster: MakeCluster) -> None:
    """Without auto layout a joiner waits for an operator; one change at a time; the plan that is applied is the one that was read."""
    cluster = await make_cluster(3, auto_layout=False)
    async with Gateway(cluster["n2"].url) as gateway:
        assert (await gateway.put("v", content("v", 0, 300 * KIB))).status == 201
        refused = await gateway.ask("POST", "/v1/layout/apply", json={"version": 2})
        refused.problem(409, "conflict")
        fourth = await cluster.add()

        async def joining() -> bool:
            return bool((await gateway.document("/v1/layout"))["joining"] == ["n4"])

        await eventually(joining, "the fourth node is staged")
        async with Gateway(fourth.url) as there:
            assert (await there.get("v")).body == content("v", 0, 300 * KIB)
        plan = (await gateway.ask("POST", "/v1/layout/plan")).json()
        assert plan["version"] == 2
        assert plan["lines"]
        for wrong in (1, 3):
            answer = await gateway.ask("POST", "/v1/layout/apply", json={"version": wrong})
            assert "version 2" in answer.problem(409, "conflict")["detail"]
        other = {"version": 2, "plan": "0" * 8}
        assert (
            plan["plan"]
            in (await gateway.ask("POST", "/v1/layout/apply", json=other)).problem(409, "conflict")["detail"]
        )
        status = await gateway.document("/v1/cluster")
        assert any("n4 waits" in line for line in status["attention"]), status
        assert (await gateway.document("/v1/layout"))["current"]["version"] == 1

        # while a node hangs the change can't finish, and another one is refused
        cluster["n3"].freeze()
        answers = await asyncio.gather(
            *(gateway.ask("POST", "/v1/layout/apply", json={"version": 2}) for _ in range(2)), return_exceptions=False
        )
        assert sorted(answer.status for answer in answers) == [200, 409], answers
        again = await gateway.ask("POST", "/v1/layout/apply", json={"version": 2})
        assert "layout 2 is still being filled" in again.problem(409, "conflict")["detail"]
        assert (await gateway.put("v", content("v", 1, 300 * KIB))).status == 200
        cluster["n3"].thaw()
        await in_force(gateway, 2)
        for name in cluster.names:
            async with Gateway(cluster[name].url) as each:
                assert (await each.get("v")).body == content("v", 1, 300 * KIB)

        # a change that is given up leaves everything as it was
        cluster["n1"].freeze()
        plan = (await gateway.ask("POST", "/v1/layout/plan", json={"stage": [{"name": "n2", "capacity": 1}]})).json()
        assert (await gateway.ask("POST", "/v1/layout/apply", json={"version": plan["version"]})).status == 200
        aborted = await gateway.ask("POST", "/v1/layout/abort")
        assert aborted.status == 200, aborted
        assert aborted.json()["next"] is None
        cluster["n1"].thaw()
        (await gateway.ask("POST", "/v1/layout/abort")).problem(409, "conflict")
        assert (await gateway.put("v", content("v", 2, 300 * KIB))).status == 200
        for name in cluster.names:
            async with Gateway(cluster[name].url) as each:
                assert (await each.get("v")).body == content("v", 2, 300 * KIB)
