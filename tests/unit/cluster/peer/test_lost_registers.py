"""Nodes that lose their registers, or everything, on virtual time: none of them founds a cluster where there was one."""

from __future__ import annotations

import asyncio

import pytest

from cluster.errors import NotReady, WrongCluster
from cluster.governance.messages import Pledge
from cluster.governance.state import LayoutState
from tests.support.simulated.belonging import MemoryBelonging
from tests.support.simulated.loop import run_virtual
from tests.support.simulated.memory_store import DiskContent
from tests.support.simulated.whole_cluster import Machine, WholeCluster, get, put

LONG_S = 600.0
"""Five sweeps of a simulated cluster, and ten times as long as a write may stay unnamed in it."""


async def lose_registers(cluster: WholeCluster, machine: Machine) -> None:
    await cluster.kill(machine)
    machine.memory.registers = DiskContent()


async def joined(cluster: WholeCluster, *names: str) -> None:
    for name in names:
        cluster.add(name).start()
    await cluster.until(lambda: len(cluster["n1"].installed.require().current.nodes) == 1 + len(names), "all are in it")
    await cluster.until(cluster.settled, "it is settled", 600)


@pytest.mark.parametrize("remembers", [True, False])
def test_a_lone_node_waits_and_keeps_everything(remembers: bool) -> None:
    """``remembers``: whether it knows its cluster, or only holds chunks of an unknown one."""

    async def scenario() -> None:
        cluster = WholeCluster(1, 1)
        await cluster.start()
        one = cluster.machines["n1"]
        await put(cluster["n1"], "v", bytes(range(256)) * 64)
        kept = dict(one.chunks)
        await lose_registers(cluster, one)
        if not remembers:
            one.belonging = MemoryBelonging()
        one.start()
        await asyncio.sleep(LONG_S)
        core = cluster["n1"]
        assert core.installed.state is None
        assert "register database is lost" in core.bootstrap.loss
        assert core.bootstrap.waiting_for == core.bootstrap.loss
        with pytest.raises(NotReady):
            await core.volumes.list()
        assert kept
        assert dict(one.chunks) == kept
        await cluster.close()

    run_virtual(scenario())


def test_it_pledges_to_nobody() -> None:
    async def scenario() -> None:
        cluster = WholeCluster(2, 1)
        await cluster.start()
        state = cluster["n1"].installed.require()
        await lose_registers(cluster, cluster.machines["n1"])
        cluster.machines["n1"].start()
        await asyncio.sleep(5)
        core = cluster["n1"]
        other = LayoutState(b"o" * 16, 1, b"w" * 8, state.current, founders=state.founders)
        with pytest.raises(NotReady, match="register database is lost"):
            await core.rpc.call("n1", Pledge(other.pack()), deadline_s=1)
        with pytest.raises(WrongCluster, match="belongs to cluster"):
            await core.installed.install(other)
        assert core.installed.state is None
        await cluster.close()

    run_virtual(scenario())


@pytest.mark.parametrize("everything", [False, True])
def test_a_founder_of_a_cluster_that_grew_finds_back_to_it(everything: bool) -> None:
    """``everything``: its whole disk is emptied. The others come back long after it."""

    async def scenario() -> None:
        cluster = WholeCluster(3, 1)
        await cluster.start()
        first = cluster["n1"].installed.require().cluster_id
        await joined(cluster, "n2", "n3")
        data = bytes(range(256)) * 64
        await put(cluster["n1"], "v", data)
        await cluster.until(cluster.converged, "all have it", 600, step_s=1)
        one, others = cluster.machines["n1"], [cluster.machines["n2"], cluster.machines["n3"]]
        for machine in others:
            await cluster.kill(machine)
        if everything:
            await cluster.kill(one)
            one.wipe()
        else:
            await lose_registers(cluster, one)
        one.start()
        await asyncio.sleep(LONG_S)
        assert not one.has_layout()
        for machine in others:
            machine.start()
        await cluster.until(lambda: all(m.has_layout() for m in cluster.machines.values()), "a layout", 600)
        await cluster.until(cluster.converged, "all have everything", 600, step_s=1)
        for core in (cluster[name] for name in cluster.machines):
            assert core.installed.require().cluster_id == first
            assert await get(core, "v") == data
        await cluster.close()

    run_virtual(scenario())
