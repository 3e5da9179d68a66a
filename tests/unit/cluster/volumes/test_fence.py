"""A write in progress is fenced at each of its steps: it succeeds with everything it needs, or it fails; never both, never half."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from cluster.errors import Busy, HoldfastError, OutcomeUnknown
from cluster.volumes.fence import FENCED_LIMIT, fence
from cluster.volumes.head import Head
from cluster.volumes.head_store import HeadStore
from cluster.volumes.names import MIN_CHUNK_BYTES
from cluster.volumes.reclaim import CLAIM_AGE_S
from cluster.volumes.reference import new_write_id
from cluster.volumes.service import VolumeService, VolumeSettings
from tests.unit.cluster.volumes.memory_cluster import MemoryCluster, MemoryReferences, body_of, content, put, until
from tests.unit.cluster.volumes.naive_references import heads_of, needed_references

CELL = MIN_CHUNK_BYTES
EAGER = VolumeSettings(leaf_extents=2, retired_grace_s=0, sweep_age_s=0, sweep_period_s=0)

LONG = b"".join(bytes([letter]) * CELL for letter in range(1, 12))
OVER = b"".join(bytes([letter]) * CELL for letter in range(101, 107))


async def sweep_all(cluster: MemoryCluster, service: VolumeService) -> None:
    """A whole walk, and everything that is due after it."""
    assert service.sweeper is not None
    for _ in range(3):
        cluster.clock.now += 1
        while await service.sweeper.run_due():
            if service.sweeper.status().queue_length == 0:
                break
            cluster.clock.now += 0.001


async def reclaim_all(cluster: MemoryCluster, *services: VolumeService) -> None:
    for _ in range(3):
        cluster.clock.now += 1000
        for service in services:
            while await service.reclaimer.run_due():
                pass


Change = Callable[[VolumeService], Awaitable[object]]


async def whole(service: VolumeService) -> object:
    return await service.replace("v", body_of(LONG), len(LONG), chunk_size=CELL, replicas=3)


async def ranged(service: VolumeService) -> object:
    return await service.write_range("v", 2 * CELL, body_of(OVER), len(OVER))


async def grown(service: VolumeService) -> object:
    return await service.resize("v", 10_000 * CELL)


@pytest.mark.parametrize(("existing", "change"), [(True, whole), (True, ranged), (True, grown), (False, whole)])
@pytest.mark.parametrize("moment", range(26))
async def test_swept_at_any_step_a_change_is_made_whole_or_not_at_all(
    moment: int, existing: bool, change: Change
) -> None:
    """The sweep runs, with no regard to age, before the ``moment``-th call of the writer to what it stands on."""
    cluster = MemoryCluster(settings=EAGER)
    writer = cluster.gateway(1)
    other = cluster.gateway(2, MemoryReferences(cluster.chunks))
    if existing:
        await put(writer, "v", LONG[::-1])
    calls = 0
    sweeping = False

    async def step(_: int) -> None:
        nonlocal calls, sweeping
        if sweeping:
            return
        calls += 1
        if calls == moment + 1:
            sweeping = True
            await sweep_all(cluster, other)
            sweeping = False

    cluster.chunks.before_put = cluster.registers.before_read = cluster.registers.before_swing = step
    cluster.registers.after_swing = step
    try:
        await change(writer)
        done = True
    except Busy:
        done = False
    cluster.scatter(0, most=1)
    assert needed_references(cluster) <= cluster.chunks.all_references()
    if done:
        expected = LONG if change is whole else LONG[::-1]
        if change is ranged:
            expected = expected[: 2 * CELL] + OVER + expected[8 * CELL :]
        opened = await other.open("v")
        assert b"".join([bytes(part) async for part in opened.read(0, len(LONG))]) == expected
    elif existing:
        assert await content(other, "v") == LONG[::-1]
    else:
        assert (await other.list()).volumes == ()
    await reclaim_all(cluster, writer, other)
    await sweep_all(cluster, other)
    assert cluster.chunks.all_references() == needed_references(cluster)
    if not done:
        await change(writer)  # repeating it is all it takes
        assert needed_references(cluster) <= cluster.chunks.all_references()


async def test_both_outcomes_are_reached() -> None:
    """So that the test above can fail: swept before its swing a PUT fails, after it it is done."""
    outcomes = []
    for number, after in ((2, False), (2, True)):
        cluster = MemoryCluster(settings=EAGER)
        writer, other = cluster.gateway(1), cluster.gateway(2, MemoryReferences(cluster.chunks))
        swept = False

        async def step(
            now: int,
            number: int = number,
            cluster: MemoryCluster = cluster,
            other: VolumeService = other,
        ) -> None:
            nonlocal swept
            if now == number and not swept:
                swept = True
                await sweep_all(cluster, other)

        if after:
            cluster.registers.after_swing = step
        else:
            cluster.registers.before_swing = step
        try:
            await whole(writer)
            outcomes.append("done")
        except Busy:
            outcomes.append("fenced")
    assert outcomes == ["fenced", "done"]


def heads_in(cluster: MemoryCluster) -> HeadStore:
    return HeadStore(cluster.registers, random.Random(5))


def only_head(cluster: MemoryCluster) -> Head:
    (head,) = heads_of(cluster)
    return head


async def paused_put(service: VolumeService, go: asyncio.Event) -> object:
    async def body() -> AsyncIterator[bytes]:
        yield LONG[:CELL]
        yield LONG[CELL : 2 * CELL]
        await go.wait()
        yield LONG[2 * CELL :]

    return await service.replace("v", body(), len(LONG), chunk_size=CELL, replicas=3)


@pytest.mark.parametrize(("fences", "survives"), [(FENCED_LIMIT, True), (FENCED_LIMIT + 1, False)])
@pytest.mark.parametrize("existing", [True, False])
async def test_a_write_that_may_have_been_fenced_and_forgotten_is_refused(
    fences: int, survives: bool, existing: bool
) -> None:
    """Fences of others: as long as all since its beginning are known, a write knows that none was for it."""
    cluster = MemoryCluster()
    service = cluster.gateway()
    rng = random.Random(1)
    if existing:
        await put(service, "v", b"old")
        for _ in range(3):  # those before its beginning don't count
            await fence(heads_in(cluster), "v", [new_write_id("v", rng)])
    go = asyncio.Event()
    writing = asyncio.create_task(paused_put(service, go))
    await until(lambda: len(cluster.chunks.payloads) >= 2 + existing)
    for _ in range(fences):
        await fence(heads_in(cluster), "v", [new_write_id("v", rng)])
    assert len(only_head(cluster).fenced) == FENCED_LIMIT
    assert only_head(cluster).fences == fences + 3 * existing
    go.set()
    if survives:
        await writing
        assert await content(service, "v") == LONG
    else:
        with pytest.raises(Busy, match="took too long"):
            await writing
    # Whatever became of it, the next one is not refused.
    await put(service, "v", b"next")
    assert await content(service, "v") == b"next"
    assert only_head(cluster).fences == fences + 3 * existing


async def test_every_change_of_a_head_keeps_its_fences() -> None:
    cluster = MemoryCluster(settings=VolumeSettings(leaf_extents=2, retired_grace_s=0))
    service = cluster.gateway()
    rng = random.Random(1)
    writes = [new_write_id("v", rng) for _ in range(3)]
    await put(service, "v", LONG)
    await fence(heads_in(cluster), "v", writes)

    def check() -> None:
        assert only_head(cluster).fenced == tuple(writes)
        assert only_head(cluster).fences == 3

    for change in (whole, ranged, grown):
        await change(service)
        check()
    await reclaim_all(cluster, service)
    assert not only_head(cluster).retired
    check()
    await service.delete("v")
    check()
    await service.create("v", 5)
    check()
    await service.delete("v")
    check()
    await whole(service)  # over a hidden head: a claim, then the volume
    check()
    await fence(heads_in(cluster), "v", writes)  # nothing new
    check()
    await reclaim_all(cluster, service)
    check()


async def test_a_deleted_volume_takes_its_fences_along_and_its_writes_can_not_follow() -> None:
    """The register goes when nothing is left of the volume; a write that began before can't swing to what is created anew."""
    cluster = MemoryCluster(settings=VolumeSettings(leaf_extents=2, retired_grace_s=0))
    service, other = cluster.gateway(1), cluster.gateway(2)
    await put(service, "v", b"old")
    go = asyncio.Event()
    writing = asyncio.create_task(paused_put(service, go))
    await until(lambda: len(cluster.chunks.payloads) >= 3)
    await other.delete("v")
    await reclaim_all(cluster, other)
    assert heads_of(cluster) == []
    await put(other, "v", b"new", chunk_size=CELL)
    go.set()
    with pytest.raises(Busy, match="was deleted"):
        await writing
    assert await content(other, "v") == b"new"
    await reclaim_all(cluster, service, other)
    assert cluster.chunks.all_references() == needed_references(cluster)


async def test_a_put_that_is_overtaken_by_a_delete_creates_the_volume_while_its_head_is_there() -> None:
    cluster = MemoryCluster()
    service, other = cluster.gateway(1), cluster.gateway(2)
    await put(service, "v", b"old")
    before = await service.show("v")
    go = asyncio.Event()
    writing = asyncio.create_task(paused_put(service, go))
    await until(lambda: len(cluster.chunks.payloads) >= 3)
    await other.delete("v")
    go.set()
    await writing
    after = await service.show("v")
    assert await content(other, "v") == LONG
    assert after.id != before.id


async def test_a_put_after_a_delete_outlives_the_reclaim_of_what_was_deleted() -> None:
    cluster = MemoryCluster(settings=VolumeSettings(leaf_extents=2, retired_grace_s=60))
    service, other = cluster.gateway(1), cluster.gateway(2)
    await put(service, "v", b"old")
    await service.delete("v")
    other.reclaimer.notice(only_head(cluster))
    go = asyncio.Event()
    writing = asyncio.create_task(paused_put(service, go))
    await until(lambda: len(cluster.chunks.payloads) >= 3)
    await reclaim_all(cluster, service)
    await reclaim_all(cluster, other)  # finds that its work was done, and a head that is neither live nor dead
    assert only_head(cluster).is_claim
    assert not only_head(cluster).retired
    go.set()
    await writing
    assert await content(other, "v") == LONG


async def test_a_claim_is_seen_by_nobody_and_removed_when_it_is_old() -> None:
    cluster = MemoryCluster()
    dead, other = cluster.gateway(1), cluster.gateway(2)
    writing = asyncio.create_task(paused_put(dead, asyncio.Event()))
    await until(lambda: len(cluster.chunks.payloads) >= 2)
    writing.cancel()
    await asyncio.gather(writing, return_exceptions=True)
    assert only_head(cluster).is_claim
    assert (await other.list()).volumes == ()
    for attempt in (other.show("v"), other.open("v"), other.delete("v"), other.resize("v", 5)):
        with pytest.raises(HoldfastError, match="There is no volume"):
            await attempt
    began = cluster.clock.now
    task = asyncio.create_task(other.run())
    try:
        async with asyncio.timeout(30):
            while heads_of(cluster):
                cluster.clock.now += 60
                await asyncio.sleep(0.001)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert cluster.clock.now - began >= CLAIM_AGE_S
    assert (await other.create("v", 3)).generation == 1


async def test_a_creation_takes_over_the_claim_of_a_put_in_progress() -> None:
    cluster = MemoryCluster()
    service, other = cluster.gateway(1), cluster.gateway(2)
    go = asyncio.Event()
    writing = asyncio.create_task(paused_put(service, go))
    await until(lambda: len(cluster.chunks.payloads) >= 2)
    created = await other.create("v", 7, chunk_size=CELL)
    go.set()
    await writing
    after = await service.show("v")
    assert (after.id, after.generation) == (created.id, 2)
    assert await content(service, "v") == LONG


@pytest.mark.parametrize("before", [True, False])
async def test_a_fence_whose_outcome_is_unknown_is_repeated(before: bool) -> None:
    cluster = MemoryCluster()
    service = cluster.gateway()
    await put(service, "v", b"x")
    write = new_write_id("v", random.Random(1))
    lost = 1

    async def lose(_: int) -> None:
        nonlocal lost
        if lost:
            lost -= 1
            raise OutcomeUnknown("lost")

    if before:
        cluster.registers.before_swing = lose
    else:
        cluster.registers.after_swing = lose
    await fence(heads_in(cluster), "v", [write])
    assert only_head(cluster).fenced == (write,)
    assert only_head(cluster).fences == 1


async def test_a_fence_and_a_swing_of_unknown_outcome() -> None:
    """The answer to the swing got lost, and before it is repeated the write is fenced: done is done, and not done stays so."""
    for done in (True, False):
        cluster = MemoryCluster(settings=EAGER)
        writer, other = cluster.gateway(1), cluster.gateway(2, MemoryReferences(cluster.chunks))
        await put(writer, "v", LONG[::-1])
        tries = 0

        async def lose(_: int, cluster: MemoryCluster = cluster, other: VolumeService = other) -> None:
            nonlocal tries
            tries += 1
            if tries == 1:
                await sweep_all(cluster, other)
                raise OutcomeUnknown("lost")

        if done:
            cluster.registers.after_swing = lose
            await whole(writer)
            assert await content(other, "v") == LONG
        else:
            cluster.registers.before_swing = lose
            with pytest.raises(OutcomeUnknown):
                await whole(writer)
            assert await content(other, "v") == LONG[::-1]
        assert needed_references(cluster) <= cluster.chunks.all_references()


async def test_a_write_that_swings_between_the_judgement_and_the_fence_keeps_everything() -> None:
    """The sweep found it UNNAMED, then it was done, then it was fenced: what counts is what the roots say after the fence."""
    cluster = MemoryCluster(settings=EAGER)
    writer, other = cluster.gateway(1), cluster.gateway(2, MemoryReferences(cluster.chunks))
    go = asyncio.Event()
    writing = asyncio.create_task(paused_put(writer, go))
    await until(lambda: len(cluster.chunks.payloads) >= 2)
    fencing = False

    async def swing_first(_: int) -> None:
        nonlocal fencing
        if not fencing:
            fencing = True
            go.set()
            await writing

    cluster.registers.before_swing = swing_first
    await sweep_all(cluster, other)
    assert fencing
    assert only_head(cluster).fences == 1
    assert await content(other, "v") == LONG
    assert cluster.chunks.all_references() == needed_references(cluster)
