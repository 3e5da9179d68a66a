"""Whole cores on virtual time: whatever one node misses or loses comes back by itself, and nothing else does."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest
from blake3 import blake3

from cluster.errors import NotFound
from cluster.layout.ring import chunk_partition
from cluster.register.view import META_PARTITION
from cluster.volumes.reference import tag_of
from tests.support.simulated.loop import run_virtual
from tests.support.simulated.whole_cluster import WholeCluster, get, put

Scenario = Callable[[WholeCluster], Awaitable[None]]

CONVERGED_S = 400.0
"""Virtual seconds within which everything must be as it should, once nothing is broken any more: the longest grace plus some retries."""


def play(scenario: Scenario, size: int = 5, seed: int = 1, *, auto_layout: bool = True, **settings: Any) -> None:
    async def main() -> None:
        cluster = WholeCluster(seed, size, auto_layout=auto_layout, **settings)
        try:
            await cluster.start()
            await cluster.until(cluster.settled, "a settled cluster")
            await scenario(cluster)
        finally:
            await cluster.close()

    run_virtual(main())


def contents(seed: int, count: int = 12, size: int = 20_000) -> dict[str, bytes]:
    rng = random.Random(seed)
    return {f"v{index}": rng.randbytes(rng.randrange(1, size)) for index in range(count)}


async def store(cluster: WholeCluster, data: dict[str, bytes], *names: str) -> None:
    cores = [cluster[name] for name in names or cluster.machines]
    await asyncio.gather(*(put(cores[i % len(cores)], name, value) for i, (name, value) in enumerate(data.items())))


async def check(cluster: WholeCluster, data: dict[str, bytes]) -> None:
    for node in cluster.machines:
        for name, value in data.items():
            assert await get(cluster[node], name) == value, (node, name)


def test_a_node_that_was_away_comes_back_equal() -> None:
    """Writes, overwrites and deletions that it missed."""

    async def scenario(cluster: WholeCluster) -> None:
        data = contents(1, count=30)
        await store(cluster, data)
        await cluster.machines["n2"].kill()
        for index, name in enumerate(list(data)):
            if index % 3 == 0:
                await cluster["n1"].volumes.delete(name)
                del data[name]
            elif index % 3 == 1:
                data[name] = random.Random(index).randbytes(9000)
                await put(cluster["n3"], name, data[name])
        fresh = {f"new{index}": random.Random(-index).randbytes(5000) for index in range(10)}
        await store(cluster, fresh, "n1", "n3", "n4", "n5")
        data |= fresh
        cluster.machines["n2"].start()
        await cluster.until(cluster.converged, "n2 equal to the others", CONVERGED_S)
        await check(cluster, data)
        for name in contents(1, count=30).keys() - data.keys():
            with pytest.raises(NotFound):
                await get(cluster["n2"], name)
        tags = {tag_of(name) for name in data}

        def only_what_is_needed() -> bool:
            held = {r[:4] for m in cluster.machines.values() for _, references in m.chunks.values() for r in references}
            # both at one moment: while a tombstone is written again, or purged, it is on one replica before it is on the next
            return held == tags and cluster.converged()

        await cluster.until(only_what_is_needed, "what was deleted has gone everywhere, equally", CONVERGED_S)

    play(scenario)


def test_while_a_node_is_away_others_stand_in_and_then_hand_over() -> None:
    async def scenario(cluster: WholeCluster) -> None:
        await cluster.machines["n2"].kill()
        await cluster.until(lambda: not cluster["n1"].membership.is_alive("n2"), "n2 is missed")
        data = contents(2, count=20)
        await store(cluster, data, "n1", "n3", "n4", "n5")
        await asyncio.sleep(1)
        copies: dict[bytes, int] = {}
        for machine in cluster.machines.values():
            for chunk, (_, references) in machine.chunks.items():
                copies[chunk] = copies.get(chunk, 0) + bool(references)
        assert set(copies.values()) == {3}
        assert sum(machine.core.repair.local().handoffs for machine in cluster.machines.values() if machine.core) > 0
        cluster.machines["n2"].start()
        await cluster.until(cluster.converged, "everything has moved home", CONVERGED_S)
        await check(cluster, data)

    play(scenario)


def test_two_replicas_are_away_in_turn() -> None:
    """The second goes as soon as redundancy is back: what the first missed is on it by then."""

    async def scenario(cluster: WholeCluster) -> None:
        data = contents(3)
        await store(cluster, data)
        for away, writer in (("n1", "n2"), ("n2", "n3"), ("n3", "n1")):
            await cluster.machines[away].kill()
            for name in data:
                data[name] += away.encode()
            await asyncio.gather(*(put(cluster[writer], name, value) for name, value in data.items()))
            cluster.machines[away].start()
            await cluster.until(cluster.converged, f"{away} whole again", CONVERGED_S)
        await check(cluster, data)

    play(scenario, 3)


def test_copies_that_rot_are_mended_by_comparing_and_by_reading() -> None:
    async def scenario(cluster: WholeCluster) -> None:
        data = contents(4)
        await store(cluster, data)
        await cluster.until(cluster.converged, "everything in place", CONVERGED_S)
        victim = cluster.machines["n4"]
        lost = [chunk for chunk in victim.chunks if random.Random(chunk[0]).random() < 0.5]
        assert lost
        for chunk in lost:
            del victim.chunks[chunk]
        assert (await cluster["n1"].repair.overview()).copies_missing > 0
        await check(cluster, data)  # read repair tells n4 of those that it was asked for
        await cluster.until(cluster.converged, "n4 has them again", CONVERGED_S)
        assert set(lost) <= set(victim.chunks)
        assert (await cluster["n1"].repair.overview()).whole

    play(scenario)


def test_the_summary_counts_what_a_dead_and_an_emptied_node_lack() -> None:
    async def scenario(cluster: WholeCluster) -> None:
        data = contents(5, count=20)
        await store(cluster, data)
        await cluster.until(cluster.converged, "everything in place", CONVERGED_S)
        machine = cluster.machines["n3"]
        held = sum(bool(references) for _, references in machine.chunks.values())
        await machine.kill()
        machine.wipe()
        await cluster.until(lambda: not cluster["n1"].membership.is_alive("n3"), "n3 is missed")
        assert (await cluster["n1"].repair.overview()).copies_missing == held
        machine.start()
        await cluster.until(machine.has_layout, "n3 back")
        await cluster.until(cluster.converged, "n3 refilled", CONVERGED_S)
        await cluster.until(
            lambda: all(m.running.repair.anti_entropy.passes for m in cluster.machines.values()),
            "everybody has compared",
        )
        summary = await cluster["n2"].repair.overview()
        assert summary.whole
        assert summary.passes > 0
        await check(cluster, data)

    play(scenario)


def test_repair_can_be_paused_and_stays_so_over_a_restart() -> None:
    async def scenario(cluster: WholeCluster) -> None:
        data = contents(6)
        await store(cluster, data)
        await cluster.until(cluster.converged, "everything in place", CONVERGED_S)
        assert set((await cluster["n1"].repair.control("pause")).values()) == {""}
        victim = cluster.machines["n4"]
        await victim.kill()
        lost = list(victim.chunks)[::2]
        for chunk in lost:
            del victim.chunks[chunk]
        victim.start()
        await cluster.until(victim.has_layout, "n4 back")
        await asyncio.sleep(60)
        assert not set(lost) & set(victim.chunks)
        summary = await cluster["n1"].repair.overview()
        assert len(summary.paused) == 5
        assert summary.copies_missing > 0
        assert summary.chunks_diverged > 0
        await cluster["n2"].repair.control("resume")
        await cluster.until(cluster.converged, "n4 whole", CONVERGED_S)

    play(scenario)


def test_a_node_that_stays_away_is_moved_out_and_taken_in_again() -> None:
    async def scenario(cluster: WholeCluster) -> None:
        data = contents(7, count=20)
        await store(cluster, data)
        await cluster.machines["n5"].kill()
        await asyncio.sleep(20)
        assert cluster["n1"].installed.require().current.node("n5") is not None
        await cluster.until(lambda: cluster["n1"].installed.require().current.node("n5") is None, "n5 is moved out", 60)
        living = [machine for name, machine in cluster.machines.items() if name != "n5"]
        await cluster.until(cluster.converged, "the others hold all copies", CONVERGED_S)
        for machine in living:
            for name, value in data.items():
                assert await get(machine.running, name) == value
        assert (await cluster["n1"].repair.overview()).whole
        cluster.machines["n5"].start()
        await cluster.until(
            lambda: cluster["n1"].installed.require().current.node("n5") is not None, "n5 is taken in again", 60
        )
        await cluster.until(cluster.converged, "all five are whole", CONVERGED_S)
        assert cluster["n2"].installed.require().outed == ()
        await check(cluster, data)

    play(scenario, auto_layout=False, down_out_s=30.0)


def test_two_nodes_that_die_one_after_the_other_are_moved_out() -> None:
    """A change that keeps the second could not finish before it is back, which it never is."""

    async def scenario(cluster: WholeCluster) -> None:
        data = contents(8, count=20)
        await store(cluster, data)
        await cluster.until(cluster.converged, "everything in place", CONVERGED_S)
        await cluster.machines["n6"].kill()
        await asyncio.sleep(5)
        await cluster.machines["n7"].kill()
        await cluster.until(lambda: are_out(cluster, "n6", "n7"), "both are moved out", 100)
        await cluster.until(cluster.converged, "the others hold all copies", CONVERGED_S)
        for name, value in data.items():
            assert await get(cluster["n1"], name) == value

    play(scenario, 7, auto_layout=False, down_out_s=30.0)


def test_a_change_that_waits_for_a_dead_node_is_given_up_and_made_without_it() -> None:
    async def scenario(cluster: WholeCluster) -> None:
        data = contents(9, count=20)
        await store(cluster, data)
        await cluster.until(cluster.converged, "everything in place", CONVERGED_S)
        assert set((await cluster["n1"].repair.control("pause")).values()) == {""}
        await cluster.machines["n6"].kill()
        await cluster.until(lambda: cluster["n1"].installed.require().next is not None, "a change without n6", 60)
        await cluster.machines["n7"].kill()
        await cluster["n1"].repair.control("resume")
        await cluster.until(lambda: are_out(cluster, "n6", "n7"), "both are moved out", 200)
        await cluster.until(cluster.converged, "the others hold all copies", CONVERGED_S)
        for name, value in data.items():
            assert await get(cluster["n1"], name) == value

    play(scenario, 7, auto_layout=False, down_out_s=30.0)


def are_out(cluster: WholeCluster, *names: str) -> bool:
    state = cluster["n1"].installed.require()
    return state.next is None and all(state.current.node(name) is None for name in names)


def test_nobody_is_moved_out_when_too_few_would_be_left() -> None:
    async def scenario(cluster: WholeCluster) -> None:
        await cluster.machines["n3"].kill()
        await asyncio.sleep(120)
        assert cluster["n1"].installed.require().current.node("n3") is not None
        assert cluster["n1"].installed.require().epoch == 1

    play(scenario, 3, down_out_s=30.0)


def test_a_refill_keeps_what_a_stand_in_gives_up_meanwhile() -> None:
    """A node is emptied while another stands in for it, and takes long to fetch its copies, the only ones, from there: the stand-in
    drops its own as soon as they are home."""

    async def scenario(cluster: WholeCluster) -> None:
        await cluster.machines["n2"].kill()
        await cluster.until(lambda: not cluster["n1"].membership.is_alive("n2"), "n2 is missed")
        data = contents(10, count=60)
        for name, value in data.items():
            await put(cluster["n1"], name, value, replicas=1)
        await cluster.until(lambda: cluster["n1"].chunks.late_bytes == 0, "all copies in place")
        for machine in cluster.machines.values():
            if machine.core is not None:
                machine.chunk_store.has_grace = True
        cluster.machines["n2"].wipe()
        cluster.repair = replace(cluster.repair, rate_bytes=10_000)
        cluster.machines["n2"].start()
        await cluster.until(cluster.settled, "n2 is filled again", CONVERGED_S)
        assert await cluster.needed() <= cluster.held()
        await check(cluster, data)

    play(scenario)


def test_a_refill_takes_no_waste_from_stand_ins() -> None:
    """What no root names is copied from a node that holds it by right, where it may be a write in progress, and from no other."""

    async def scenario(cluster: WholeCluster) -> None:
        await store(cluster, contents(11))
        await cluster.until(cluster.converged, "everything in place", CONVERGED_S)
        layout = cluster["n1"].installed.require().current
        blocks = [f"block {index}".encode() for index in range(1000)]
        due = {
            block: layout.placement(chunk_partition(blake3(block).digest(), layout.partition_bits), 3)
            for block in blocks
        }
        mine = [block for block in blocks if "n2" in due[block]]
        ours, waste = mine[0], next(block for block in mine[1:] if "n5" not in due[block])
        holder = next(name for name in due[ours] if name != "n2")
        for name, block in ((holder, ours), ("n5", waste)):
            cluster.machines[name].chunks.refer(blake3(block).digest(), block, bytes(16), 3)
        await cluster.machines["n2"].kill()
        cluster.machines["n2"].wipe()
        cluster.machines["n2"].start()
        await cluster.until(cluster.settled, "n2 is filled again", 30)
        chunks = cluster.machines["n2"].chunks
        assert blake3(ours).digest() in chunks
        assert blake3(waste).digest() not in chunks

    play(scenario)


def test_registers_that_a_replica_missed_are_there_without_anybody_reading_them() -> None:
    async def scenario(cluster: WholeCluster) -> None:
        await cluster.machines["n1"].kill()
        for index in range(40):
            await cluster["n2"].volumes.create(f"empty{index}", 1000)
        cluster.machines["n1"].start()
        await cluster.until(cluster.converged, "n1 has the heads", CONVERGED_S)
        held = cluster.machines["n1"].registers.registers
        assert sum(len(registers) for partition, registers in held.items() if partition != META_PARTITION) == 40

    play(scenario, 3)


def test_who_holds_what_is_told() -> None:
    async def scenario(cluster: WholeCluster) -> None:
        await put(cluster["n1"], "v", b"some bytes" * 1000)
        await cluster.until(cluster.converged, "everything in place", CONVERGED_S)
        chunks = sorted({chunk for machine in cluster.machines.values() for chunk in machine.chunks})
        await cluster.machines["n5"].kill()
        holders = await cluster["n1"].repair.holders(chunks)
        bits = cluster["n1"].installed.require().current.partition_bits
        for chunk in chunks:
            due = cluster["n1"].repair.due_at(chunk, 3)
            assert due == cluster["n1"].installed.require().current.placement(chunk_partition(chunk, bits), 3)
            for name, holds in holders[chunk].items():
                assert holds is (None if name == "n5" else name in due)

    play(scenario)
