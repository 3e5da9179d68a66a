"""The sweep gives back what writes left behind that never came to an end, and nothing else, whoever writes meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from cluster.errors import Busy, HoldfastError, NoSpace, OutcomeUnknown, QuorumUnavailable
from cluster.volumes.names import MIN_CHUNK_BYTES
from cluster.volumes.reference import data_referrer, new_write_id
from cluster.volumes.service import VolumeService, VolumeSettings
from cluster.volumes.sweep import UNIT_REFERENCES, UNIT_WRITES
from tests.unit.cluster.volumes.memory_cluster import (
    MemoryCluster,
    MemoryReferences,
    body_of,
    content,
    nothing,
    put,
    until,
)
from tests.unit.cluster.volumes.naive_references import heads_of, needed_references

CELL = MIN_CHUNK_BYTES
HOUR = 3600.0
SETTINGS = VolumeSettings(leaf_extents=2, retired_grace_s=60)


def letters(first: int, count: int) -> bytes:
    return b"".join(bytes([1 + (first + index) % 250]) * CELL for index in range(count))


async def due(cluster: MemoryCluster, service: VolumeService, seconds: float) -> None:
    """Let so much time pass, then do all of the sweep that is due."""
    assert service.sweeper is not None
    cluster.clock.now += seconds
    while await service.sweeper.run_due():
        pass


async def walk_and_age(cluster: MemoryCluster, service: VolumeService) -> None:
    await due(cluster, service, 6 * HOUR)
    await due(cluster, service, HOUR + 1)


async def reclaim_all(cluster: MemoryCluster, *services: VolumeService) -> None:
    for _ in range(4):
        cluster.clock.now += 100
        for service in services:
            while await service.reclaimer.run_due():
                pass


async def stuck_put(service: VolumeService, name: str, blocks: bytes) -> None:
    """Stores all of it and never comes to its end."""

    async def body() -> AsyncIterator[bytes]:
        yield blocks
        await asyncio.Event().wait()

    await service.replace(name, body(), None, chunk_size=CELL, replicas=3)


async def die_in_mid_put(cluster: MemoryCluster, name: str, count: int, number: int = 77) -> None:
    """A gateway that is gone with everything it knew."""
    dead = cluster.gateway(number)
    before = cluster.chunks.puts
    task = asyncio.create_task(stuck_put(dead, name, letters(number, count)))
    await until(lambda: cluster.chunks.puts >= before + count and not cluster.chunks.in_flight)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


@pytest.mark.parametrize("existing", [True, False])
@pytest.mark.parametrize("count", [1, 30, 2 * UNIT_REFERENCES + 5])
async def test_what_a_dead_gateway_left_is_swept(existing: bool, count: int) -> None:
    cluster = MemoryCluster(settings=SETTINGS)
    service = cluster.gateway(1, MemoryReferences(cluster.chunks))
    if existing:
        await put(service, "v", letters(0, 9))
    await put(service, "w", letters(3, 300))
    kept = cluster.chunks.all_references()
    await die_in_mid_put(cluster, "v", count)
    assert len(cluster.chunks.all_references()) > len(kept)
    assert service.sweeper is not None
    await due(cluster, service, 6 * HOUR)
    assert cluster.chunks.all_references() > kept
    assert service.sweeper.status().queue_length == 1
    assert service.sweeper.status().waiting_for == "unfinished writes to grow old, or a retry"
    await due(cluster, service, HOUR - 1)
    assert cluster.chunks.all_references() > kept
    await due(cluster, service, 2)
    assert cluster.chunks.all_references() == kept
    status = service.sweeper.status()
    assert (status.name, status.queue_length, status.last_error) == ("sweep", 0, "")
    assert status.waiting_for == "the next walk"
    assert status.done >= count
    assert [job.name for job in service.jobs()] == ["reclaim", "sweep"]


async def test_many_small_leftovers_of_one_volume_are_fenced_together() -> None:
    cluster = MemoryCluster(settings=SETTINGS)
    service = cluster.gateway(1, MemoryReferences(cluster.chunks))
    await put(service, "v", letters(0, 9))
    rng = random.Random(1)
    for cell in range(2 * UNIT_WRITES):
        await cluster.chunks.put(b"left", referrer=data_referrer(new_write_id("v", rng), cell), replicas=3)
    await due(cluster, service, 6 * HOUR)
    cluster.registers.swings = 0
    await due(cluster, service, HOUR + 1)
    assert cluster.chunks.all_references() == needed_references(cluster)
    assert cluster.registers.swings == 2


async def test_a_failed_write_leaves_nothing_after_a_sweep() -> None:
    cluster = MemoryCluster(settings=SETTINGS)
    service = cluster.gateway(1, MemoryReferences(cluster.chunks))
    await put(service, "v", letters(0, 9))

    async def full(number: int) -> None:
        for _ in range(number % 5):
            await asyncio.sleep(0)
        if number == 25:
            raise NoSpace("full")

    cluster.chunks.before_put = full
    with pytest.raises(NoSpace):
        await put(service, "v", letters(50, 40))
    cluster.chunks.before_put = nothing
    await walk_and_age(cluster, service)
    assert cluster.chunks.all_references() == needed_references(cluster)


async def test_a_write_of_unknown_outcome_leaves_nothing_after_a_sweep() -> None:
    cluster = MemoryCluster(settings=SETTINGS)
    service = cluster.gateway(1, MemoryReferences(cluster.chunks))
    await put(service, "v", letters(0, 9))

    async def lost(_: int) -> None:
        raise OutcomeUnknown("lost on the way")

    cluster.registers.before_swing = lost
    with pytest.raises(OutcomeUnknown):
        await put(service, "v", letters(50, 40))
    cluster.registers.before_swing = nothing
    await walk_and_age(cluster, service)
    assert cluster.chunks.all_references() == needed_references(cluster)
    assert await content(service, "v") == letters(0, 9)


async def test_a_put_in_progress_is_kept_while_it_is_young() -> None:
    cluster = MemoryCluster(settings=SETTINGS)
    writer, service = cluster.gateway(2), cluster.gateway(1, MemoryReferences(cluster.chunks))
    go = asyncio.Event()

    async def body() -> AsyncIterator[bytes]:
        yield letters(0, 20)
        await go.wait()

    task = asyncio.create_task(writer.replace("v", body(), None, chunk_size=CELL, replicas=3))
    await until(lambda: cluster.chunks.puts >= 20)
    await due(cluster, service, 6 * HOUR)
    await due(cluster, service, HOUR - 10)
    go.set()
    await task
    await due(cluster, service, HOUR)
    assert await content(service, "v") == letters(0, 20)
    assert heads_of(cluster)[0].fences == 0  # it had nothing UNNAMED any more when its time came
    assert service.sweeper is not None
    assert service.sweeper.status().queue_length == 0


async def test_what_others_suspect_is_looked_at_without_waiting_for_a_walk() -> None:
    cluster = MemoryCluster(settings=replace(SETTINGS, sweep_period_s=1e9))
    service = cluster.gateway(1, MemoryReferences(cluster.chunks))
    await put(service, "v", letters(0, 9))
    await due(cluster, service, 700)  # the first walk
    await die_in_mid_put(cluster, "v", 5)
    waste = cluster.chunks.all_references() - needed_references(cluster)
    assert service.sweeper is not None
    service.sweeper.suspect(cluster.chunks.all_references())  # even what is needed
    await due(cluster, service, HOUR - 1)
    assert waste <= cluster.chunks.all_references()
    await due(cluster, service, 2)
    assert cluster.chunks.all_references() == needed_references(cluster)


async def test_what_retired_roots_name_is_left_to_reclaim() -> None:
    cluster = MemoryCluster(settings=replace(SETTINGS, sweep_age_s=0))
    service = cluster.gateway(1, MemoryReferences(cluster.chunks))
    await put(service, "v", letters(0, 9))
    await put(service, "v", letters(90, 9))
    held = cluster.chunks.all_references()
    await walk_and_age(cluster, service)
    assert cluster.chunks.all_references() == held
    await reclaim_all(cluster, service)
    assert cluster.chunks.all_references() == needed_references(cluster, retired=False)


async def test_errors_are_shown_and_the_work_is_done_later() -> None:
    cluster = MemoryCluster(settings=SETTINGS)
    references = MemoryReferences(cluster.chunks)
    service = cluster.gateway(1, references)
    await put(service, "v", letters(0, 9))
    await die_in_mid_put(cluster, "v", 5)
    assert service.sweeper is not None

    async def refuse(_: int) -> None:
        raise QuorumUnavailable("too few")

    async def full(_: int) -> None:
        raise NoSpace("not a byte")

    cluster.registers.before_read = refuse
    await due(cluster, service, 6 * HOUR)
    assert service.sweeper.status().last_error == "quorum-unavailable: too few"
    assert service.sweeper.status().queue_length == 0
    cluster.registers.before_read = nothing
    await due(cluster, service, 400)  # the walk is repeated
    assert service.sweeper.status().queue_length == 1
    references.before_drop = full
    await due(cluster, service, HOUR)
    assert service.sweeper.status().last_error == "no-space: not a byte"
    references.before_drop = nothing
    references.before_list = full
    await due(cluster, service, 400)
    references.before_list = nothing
    cluster.registers.before_swing = refuse
    await due(cluster, service, 400)
    cluster.registers.before_swing = nothing
    await due(cluster, service, 400)
    assert cluster.chunks.all_references() == needed_references(cluster)


async def test_one_volume_that_cannot_be_judged_does_not_hold_up_the_others() -> None:
    cluster = MemoryCluster(settings=SETTINGS)
    service = cluster.gateway(1, MemoryReferences(cluster.chunks))
    await put(service, "bad", letters(0, 1))
    await die_in_mid_put(cluster, "other", 5)
    key = next(key for key in cluster.registers.values if key.sort == b"bad")
    good = cluster.registers.values[key]
    cluster.registers.values[key] = b"\xc1"
    await walk_and_age(cluster, service)
    cluster.registers.values[key] = good
    assert service.sweeper is not None
    assert service.sweeper.status().last_error.startswith("corrupt: ")
    assert cluster.chunks.all_references() == needed_references(cluster)


@pytest.mark.parametrize("seed", range(40))
async def test_under_writers_nothing_needed_goes_and_in_the_end_only_that_is_left(seed: int) -> None:
    """Writers on several gateways, of which some die, fail, lose answers or are cancelled; reclaimers without grace; two nodes that sweep
    everything at once without regard to age. A write that succeeds is there with everything it needs."""
    rng = random.Random(seed)
    cluster = MemoryCluster(
        seed=seed, settings=VolumeSettings(leaf_extents=2, retired_grace_s=0, sweep_age_s=0, sweep_period_s=0)
    )
    writers = [cluster.gateway(number) for number in range(3)]
    sweepers = [cluster.gateway(10 + number, MemoryReferences(cluster.chunks)) for number in range(2)]
    cluster.scatter(seed)
    scattered = cluster.registers.after_swing

    async def failing(number: int) -> None:
        await scattered(number)
        if rng.random() < 0.03:
            raise NoSpace("full")

    async def losing(number: int) -> None:
        await scattered(number)
        if rng.random() < 0.05:
            raise OutcomeUnknown("lost")

    cluster.chunks.before_put = failing
    cluster.registers.before_swing = cluster.registers.after_swing = losing
    working = True
    outcomes = {"done": 0, "given back": 0}

    async def write_once(service: VolumeService) -> None:
        name, letter = rng.choice("ab"), rng.randrange(4)
        kind = rng.random()
        if kind < 0.4:
            await put(service, name, b"".join(bytes([letter + index % 3]) * CELL for index in range(6)))
        elif kind < 0.8:
            await service.write_range(name, rng.randrange(5) * CELL, body_of(bytes([letter]) * CELL), CELL)
        elif kind < 0.9:
            await service.resize(name, rng.choice([6, 100, 5000]) * CELL)
        else:
            await service.delete(name)

    async def write(service: VolumeService) -> None:
        for _ in range(15):
            task = asyncio.create_task(write_once(service))
            if rng.random() < 0.15:
                for _turn in range(rng.randrange(20)):
                    await asyncio.sleep(0)
                task.cancel()
            try:
                await task
                outcomes["done"] += 1
            except Busy:
                outcomes["given back"] += 1
            except (HoldfastError, asyncio.CancelledError):
                pass

    async def reclaim(service: VolumeService) -> None:
        while working:
            cluster.clock.now += 1
            await service.reclaimer.run_due()
            await asyncio.sleep(0)

    async def sweep(service: VolumeService) -> None:
        assert service.sweeper is not None
        while working:
            for _turn in range(rng.randrange(150)):
                await asyncio.sleep(0)
            cluster.clock.now += 1
            await service.sweeper.run_due()

    async with asyncio.TaskGroup() as group:
        background = [group.create_task(reclaim(service)) for service in writers]
        background += [group.create_task(sweep(service)) for service in sweepers]
        writing = [group.create_task(write(service)) for service in writers]
        while not all(task.done() for task in writing):
            assert needed_references(cluster, retired=False) <= cluster.chunks.all_references()
            await asyncio.sleep(0)
        working = False
        await asyncio.gather(*background)
    assert outcomes["done"] > 0
    cluster.scatter(seed, most=1)
    for _ in range(3):
        await reclaim_all(cluster, *writers, *sweepers)
        for service in sweepers:
            assert service.sweeper is not None
            for _unit in range(30):
                cluster.clock.now += 400
                await service.sweeper.run_due()
    assert not any(head.retired for head in heads_of(cluster))
    assert cluster.chunks.all_references() == needed_references(cluster)
    for head in heads_of(cluster):
        if head.live:
            opened = await writers[0].open(head.name)
            assert len(await opened.read_small(0, min(6 * CELL, head.size))) == min(6 * CELL, head.size)


async def test_it_runs_by_itself() -> None:
    cluster = MemoryCluster(settings=SETTINGS)
    service = cluster.gateway(1, MemoryReferences(cluster.chunks))
    await put(service, "v", letters(0, 9))
    await die_in_mid_put(cluster, "v", 5)
    task = asyncio.create_task(service.run())
    try:
        async with asyncio.timeout(20):
            while cluster.chunks.all_references() != needed_references(cluster):
                cluster.clock.now += 20
                await asyncio.sleep(0.001)
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def test_without_local_references_there_is_no_sweep() -> None:
    service = MemoryCluster().gateway()
    assert service.sweeper is None
    assert [job.name for job in service.jobs()] == ["reclaim"]
