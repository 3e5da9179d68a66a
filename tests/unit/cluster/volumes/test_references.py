"""Reclaiming drops exactly what nobody needs: compared with brute force after random histories, and raced against writes that store
the very same bytes again (docs/decisions/references.md)."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.errors import Busy, Conflict, HoldfastError, NoSpace, QuorumUnavailable
from cluster.volumes.head import Head, RetiredRoot
from cluster.volumes.names import MIN_CHUNK_BYTES
from cluster.volumes.service import Condition, VolumeService, VolumeSettings
from tests.unit.cluster.volumes.memory_cluster import MemoryCluster, MemoryReferences, body_of, content, nothing, put
from tests.unit.cluster.volumes.naive_references import heads_of, needed_references, references_of

CELL = MIN_CHUNK_BYTES
DEEP = VolumeSettings(leaf_extents=2, retired_grace_s=60)


async def settle(cluster: MemoryCluster, *services: VolumeService) -> None:
    """Let the grace pass and do all that is then due."""
    for _ in range(4):
        cluster.clock.now += 100
        for service in services:
            while await service.reclaimer.run_due():
                pass


def pattern(letter: int, length: int) -> bytes:
    """Few different letters, so that equal chunks come up all the time; 0 is a hole."""
    return bytes([letter]) * length


steps = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.integers(0, 2), st.integers(0, 6 * CELL)),
        st.tuples(st.just("range"), st.integers(0, 2), st.integers(0, 6 * CELL), st.integers(1, 3 * CELL)),
        st.tuples(st.just("tiny"), st.integers(0, 2), st.integers(0, 6 * CELL), st.integers(1, 9)),
        st.tuples(st.just("grow"), st.integers(0, 400 * CELL)),
        st.tuples(st.just("delete")),
        st.tuples(st.just("wait"), st.floats(0, 130)),
        st.tuples(st.just("unit")),
    ),
    max_size=25,
)


@settings(max_examples=120, deadline=None)
@given(steps, st.sampled_from([1, 2, 5]))
def test_what_is_held_is_what_the_roots_need(history: list[tuple[str, int, int, int]], leaf_extents: int) -> None:
    async def run() -> None:
        cluster = MemoryCluster(settings=VolumeSettings(leaf_extents=leaf_extents, retired_grace_s=60))
        service = cluster.gateway()
        expected: bytearray | None = bytearray(pattern(1, 5 * CELL))
        await put(service, "v", pattern(1, 5 * CELL))
        for step in history:
            kind, numbers = step[0], step[1:]
            if kind == "put":
                data = pattern(*numbers[:2])
                await put(service, "v", data)
                expected = bytearray(data)
            elif kind in {"range", "tiny"} and expected is not None:
                letter, offset, length = numbers
                offset = min(offset, len(expected))
                data = pattern(letter, min(length, len(expected) - offset))
                await service.write_range("v", offset, body_of(data), len(data))
                expected[offset : offset + len(data)] = data
            elif kind == "grow" and expected is not None and numbers[0] >= len(expected):
                await service.resize("v", numbers[0])
                expected.extend(bytes(numbers[0] - len(expected)))
            elif kind == "delete" and expected is not None:
                await service.delete("v")
                expected = None
            elif kind == "wait":
                cluster.clock.now += numbers[0]
            elif kind == "unit":
                await service.reclaimer.run_due()
            assert needed_references(cluster) <= cluster.chunks.all_references()
            if expected is not None:
                assert await content(service, "v") == expected
        await settle(cluster, service)
        assert not any(head.retired for head in heads_of(cluster))
        assert cluster.chunks.all_references() == needed_references(cluster)
        if expected is None:
            assert cluster.registers.values == {}
            assert cluster.chunks.payloads == {}

    asyncio.run(run())


async def test_the_race_a_put_of_the_same_bytes_against_the_reclaim_of_the_old_ones() -> None:
    """The old version's chunk X is only in a retired root; a PUT has stored X again and not yet swung; reclaim drops the old reference;
    then the PUT swings. X must live on."""
    cluster = MemoryCluster(settings=VolumeSettings(retired_grace_s=60))
    first, second = cluster.gateway(1), cluster.gateway(2)
    same = pattern(7, CELL)
    await put(first, "v", same)
    await put(first, "v", pattern(8, CELL))
    cluster.clock.now += 100

    about_to_swing, go = asyncio.Event(), asyncio.Event()
    swings = cluster.registers.swings

    async def hold(number: int) -> None:
        if number == swings + 1:
            about_to_swing.set()
            await go.wait()

    cluster.registers.before_swing = hold
    async with asyncio.TaskGroup() as group:
        writing = group.create_task(second.replace("v", body_of(same), CELL))
        await about_to_swing.wait()
        assert await first.reclaimer.run_due()
        assert cluster.chunks.drops == 1
        go.set()
        await writing
    assert await content(first, "v") == same
    await settle(cluster, first, second)
    assert await content(second, "v") == same
    assert cluster.chunks.all_references() == needed_references(cluster)


async def test_one_write_that_uses_a_chunk_twice_keeps_it_while_either_use_is_left() -> None:
    cluster = MemoryCluster(settings=DEEP)
    service = cluster.gateway()
    await put(service, "v", pattern(5, 2 * CELL))
    assert len(cluster.chunks.payloads) == 1
    await service.write_range("v", 0, body_of(pattern(6, CELL)), CELL)
    await settle(cluster, service)
    assert await content(service, "v") == pattern(6, CELL) + pattern(5, CELL)
    await service.write_range("v", CELL, body_of(pattern(6, CELL)), CELL)
    await settle(cluster, service)
    assert await content(service, "v") == pattern(6, 2 * CELL)
    assert len(cluster.chunks.payloads) == 1


@pytest.mark.parametrize("seed", range(40))
async def test_storm_of_writes_and_reclaimers(seed: int) -> None:
    """Three gateways write equal bytes over each other, some writes fail or are cancelled, and all reclaim with no grace."""
    cluster = MemoryCluster(seed=seed, settings=VolumeSettings(leaf_extents=2, retired_grace_s=0))
    services = [cluster.gateway(number) for number in range(3)]
    rng = random.Random(seed)
    await put(services[0], "v", pattern(1, 6 * CELL))
    cluster.scatter(seed)
    scattered = cluster.chunks.before_put

    async def failing(number: int) -> None:
        await scattered(number)
        if rng.random() < 0.03:
            raise NoSpace("full")

    cluster.chunks.before_put = failing
    working = True

    async def write(service: VolumeService) -> None:
        for _ in range(12):
            letter, offset = rng.randrange(3), rng.randrange(5) * CELL + rng.choice([0, 0, 100])
            whole = rng.random() < 0.4
            task = asyncio.create_task(write_once(service, letter, None if whole else offset))
            if rng.random() < 0.1:
                for _turn in range(rng.randrange(20)):
                    await asyncio.sleep(0)
                task.cancel()
            with contextlib.suppress(HoldfastError, asyncio.CancelledError):
                await task

    async def reclaim(service: VolumeService) -> None:
        while working:
            cluster.clock.now += 1
            await service.reclaimer.run_due()
            await asyncio.sleep(0)

    async with asyncio.TaskGroup() as group:
        reclaiming = [group.create_task(reclaim(service)) for service in services]
        writing = [group.create_task(write(service)) for service in services]
        for task in writing:
            while not task.done():
                live = needed_references(cluster, retired=False)
                assert live <= cluster.chunks.all_references()
                await asyncio.sleep(0)
        working = False
        await asyncio.gather(*reclaiming)
    data = await content(services[0], "v")
    assert len(data) == 6 * CELL
    await settle(cluster, *services)
    assert needed_references(cluster) <= cluster.chunks.all_references()
    assert await content(services[1], "v") == data


async def write_once(service: VolumeService, letter: int, offset: int | None) -> None:
    if offset is None:
        await put(service, "v", pattern(letter, 6 * CELL))
    else:
        await service.write_range("v", offset, body_of(pattern(letter, CELL)), CELL)


async def test_a_failed_put_gives_back_what_it_stored() -> None:
    cluster = MemoryCluster(settings=VolumeSettings(leaf_extents=2))
    service = cluster.gateway()
    await put(service, "v", pattern(1, CELL))

    async def full(number: int) -> None:
        if number == 12:
            raise NoSpace("full")

    cluster.chunks.before_put = full
    data = b"".join(bytes([letter]) * CELL for letter in range(1, 20))
    with pytest.raises(NoSpace):
        await put(service, "v", data)
    cluster.chunks.before_put = lambda _: asyncio.sleep(0)
    assert await content(service, "v") == pattern(1, CELL)
    await settle(cluster, service)
    # At most the pieces that were in flight when it failed are left to the sweep.
    extra = cluster.chunks.all_references() - needed_references(cluster)
    assert len(extra) <= service.settings.write_window


async def test_pages_of_an_attempt_that_lost_are_given_back() -> None:
    cluster = MemoryCluster(settings=VolumeSettings(leaf_extents=2))
    service, other = cluster.gateway(1), cluster.gateway(2)
    await put(service, "v", b"".join(bytes([letter]) * CELL for letter in range(1, 100)))
    swings = cluster.registers.swings

    async def overtake(number: int) -> None:
        if number == swings + 1:
            await other.write_range("v", 40 * CELL, body_of(pattern(200, CELL)), CELL)

    cluster.registers.before_swing = overtake
    await service.write_range("v", 3 * CELL, body_of(pattern(201, CELL)), CELL)
    data = await content(service, "v")
    assert data[3 * CELL] == 201
    assert data[40 * CELL] == 200
    await settle(cluster, service, other)
    assert cluster.chunks.all_references() == needed_references(cluster)


async def test_a_conditional_put_that_loses_leaves_nothing() -> None:
    cluster = MemoryCluster()
    service, other = cluster.gateway(1), cluster.gateway(2)
    await put(service, "v", pattern(1, CELL))
    etag = (await service.show("v")).etag
    swings = cluster.registers.swings

    async def overtake(number: int) -> None:
        if number == swings + 1:
            await put(other, "v", pattern(2, CELL))

    cluster.registers.before_swing = overtake
    with pytest.raises(Conflict):
        await service.replace("v", body_of(pattern(3, CELL)), CELL, Condition(if_match=frozenset({etag})))
    await settle(cluster, service, other)
    assert await content(service, "v") == pattern(2, CELL)
    assert cluster.chunks.all_references() == needed_references(cluster)


async def test_reclaiming_waits_for_a_quorum_and_goes_on() -> None:
    cluster = MemoryCluster()
    service = cluster.gateway()
    await put(service, "v", pattern(1, 3 * CELL))
    await put(service, "v", pattern(2, CELL))
    failing = True

    async def refuse(_: int) -> None:
        if failing:
            raise QuorumUnavailable("too few")

    cluster.chunks.before_drop = refuse
    cluster.clock.now += 100
    assert await service.reclaimer.run_due()
    assert service.jobs()[0].last_error == "quorum-unavailable: too few"
    assert len(heads_of(cluster)[0].retired) == 1
    failing = False
    await settle(cluster, service)
    assert cluster.chunks.all_references() == needed_references(cluster)


async def test_another_gateway_finds_what_a_dead_one_left() -> None:
    cluster = MemoryCluster(settings=DEEP)
    dead, other = cluster.gateway(1), cluster.gateway(2)
    await put(dead, "gone", pattern(1, 9 * CELL))
    await dead.delete("gone")
    await put(dead, "kept", pattern(2, CELL))
    await put(dead, "kept", pattern(3, CELL))
    task = asyncio.create_task(other.run())
    try:
        async with asyncio.timeout(20):
            while (
                cluster.chunks.all_references() != needed_references(cluster, retired=False)
                or len(heads_of(cluster)) > 1
            ):
                cluster.clock.now += 20
                await asyncio.sleep(0.001)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert await content(other, "kept") == pattern(3, CELL)


def letters(first: int, count: int) -> bytes:
    """Cells that all differ, so that no two have one chunk."""
    return b"".join(bytes([first + index]) * CELL for index in range(count))


async def several_versions(service: VolumeService, name: str) -> None:
    """A map of several levels. Each version shares pages with the one before, and has others: of a cell, of a part of one, and of 64 cells.
    What is a leaf at first, the root's in the head or one of 64 cells, becomes an interior page with leaves below."""
    await put(service, name, letters(1, 2))
    await service.resize(name, 5 * CELL)
    await service.write_range(name, 2 * CELL, body_of(letters(3, 3)), 3 * CELL)
    await service.resize(name, 200 * CELL)
    await service.write_range(name, 64 * CELL, body_of(letters(11, 2)), 2 * CELL)
    await service.write_range(name, 2 * CELL, body_of(letters(21, 2)), 2 * CELL)
    for number in range(2):
        await service.write_range(name, 700 * number, body_of(pattern(31 + number, 300)), 300)
    await service.write_range(name, 65 * CELL, body_of(letters(41, 3)), 3 * CELL)
    await service.write_range(name, 3 * CELL, body_of(letters(51, 1)), CELL)
    await service.write_range(name, 66 * CELL, body_of(letters(61, 1)), CELL)
    await service.write_range(name, 0, body_of(letters(71, 3)), 3 * CELL)


def stop_after(cluster: MemoryCluster, drops: int) -> None:
    """So many references can be dropped, and no more."""
    last = cluster.chunks.drops + drops

    async def refuse(number: int) -> None:
        if number > last:
            raise QuorumUnavailable("a node is away")

    cluster.chunks.before_drop = refuse


async def interrupted_reclaims(drops: int, cluster: MemoryCluster) -> bool:
    """Old versions, and a gateway that died after so many drops of theirs; whether it got that far."""
    service, dying = cluster.gateway(1), cluster.gateway(2)
    await several_versions(service, "v")
    stop_after(cluster, drops)
    dying.reclaimer.notice(heads_of(cluster)[0])
    cluster.clock.now += 100
    assert await dying.reclaimer.run_due()
    cluster.chunks.before_drop = nothing
    return bool(heads_of(cluster)[0].retired)


async def test_a_walk_of_several_roots_interrupted_at_any_drop_is_taken_up_by_another_gateway() -> None:
    drops = 0
    interrupted = True
    while interrupted:
        cluster = MemoryCluster(settings=DEEP)
        interrupted = await interrupted_reclaims(drops, cluster)
        service = cluster.gateway(3)
        data = await content(service, "v")
        await settle(cluster, service)
        assert service.jobs()[0].last_error == ""
        assert not heads_of(cluster)[0].retired
        assert cluster.chunks.all_references() == needed_references(cluster)
        assert await content(cluster.gateway(4), "v") == data
        drops += 1
    assert drops > 40


async def test_a_walk_interrupted_at_any_drop_stops_no_writes() -> None:
    for drops in range(0, 30, 7):
        cluster = MemoryCluster(settings=DEEP)
        assert await interrupted_reclaims(drops, cluster)
        service = cluster.gateway(3)
        for number in range(150):
            await service.write_range("v", number % 40 * CELL, body_of(pattern(1 + number, CELL)), CELL)
        assert len(heads_of(cluster)[0].retired) <= 73
        await settle(cluster, service)
        assert cluster.chunks.all_references() == needed_references(cluster)


async def test_a_lost_page_of_a_retired_root_leaves_what_lay_there_to_the_sweep() -> None:
    cluster = MemoryCluster(settings=DEEP)
    service = cluster.gateway(1, MemoryReferences(cluster.chunks))
    await several_versions(service, "v")
    live = needed_references(cluster, retired=False)
    retired = heads_of(cluster)[0].retired
    lost = set().union(*(new_pages(cluster, older, newer) for older, newer in itertools.pairwise(retired))) - live
    assert len(lost) > 3
    for chunk, referrer in lost:
        await cluster.chunks.drop_reference(chunk, referrer, 3)
    await settle(cluster, service)
    assert not heads_of(cluster)[0].retired
    assert live < cluster.chunks.all_references()
    assert service.sweeper is not None
    for _ in range(4):
        cluster.clock.now += 6 * 3600
        while await service.sweeper.run_due():
            pass
    assert cluster.chunks.all_references() == live == needed_references(cluster)


def new_pages(cluster: MemoryCluster, root: Head | RetiredRoot, newer: Head | RetiredRoot) -> set[tuple[bytes, bytes]]:
    """References of the pages that ``newer`` has and ``root`` does not."""
    more = references_of(cluster, newer) - references_of(cluster, root)
    return {(chunk, referrer) for chunk, referrer in more if referrer.endswith(b"\xff" * 6)}


async def test_a_lost_page_of_the_live_root_is_seen_and_holds_up_only_its_own_volume() -> None:
    cluster = MemoryCluster(settings=DEEP)
    service = cluster.gateway()
    await several_versions(service, "damaged")
    await several_versions(service, "whole")
    (head,) = (head for head in heads_of(cluster) if head.name == "damaged")
    kept = references_of(cluster, head.retired[-1])
    for chunk, referrer in new_pages(cluster, head.retired[-1], head):
        await cluster.chunks.drop_reference(chunk, referrer, 3)
    reclaiming = cluster.gateway(2)  # whose cache has none of these pages
    for head in heads_of(cluster):
        reclaiming.reclaimer.notice(head)
    await settle(cluster, reclaiming)
    assert reclaiming.jobs()[0].queue_length == 1
    assert reclaiming.jobs()[0].last_error == "not-found: There is no such chunk."
    left = {head.name: len(head.retired) for head in heads_of(cluster)}
    assert left["whole"] == 0
    assert left["damaged"] > 0
    assert kept <= cluster.chunks.all_references()
    await put(reclaiming, "damaged", pattern(1, CELL))
    cluster.clock.now += 600
    await settle(cluster, reclaiming)
    assert not any(head.retired for head in heads_of(cluster))
    assert needed_references(cluster) <= cluster.chunks.all_references()


async def test_a_head_full_of_retired_roots_makes_room() -> None:
    cluster = MemoryCluster()
    service = cluster.gateway()
    for number in range(200):
        await put(service, "v", pattern(1 + number % 250, CELL))
        assert len(heads_of(cluster)[0].retired) <= 73
    assert cluster.chunks.drops >= 120
    await settle(cluster, service)
    assert len(cluster.chunks.payloads) == 1


async def test_a_node_that_is_away_stops_no_writes_and_heads_stay_bounded() -> None:
    cluster = MemoryCluster()
    service = cluster.gateway()

    async def refuse(_: int) -> None:
        raise QuorumUnavailable("one replica is away")

    cluster.chunks.before_drop = refuse
    for written in range(400):
        await put(service, "v", pattern(1 + written % 250, CELL))
        assert len(heads_of(cluster)[0].retired) <= 130
    assert cluster.chunks.drops < 1000
    assert await content(service, "v") == pattern(1 + 399 % 250, CELL)


async def test_room_that_cannot_be_made_in_time_is_a_clear_refusal() -> None:
    cluster = MemoryCluster()
    service = cluster.gateway()

    async def broken(_: int) -> None:
        raise Busy("no drops today")

    cluster.chunks.before_drop = broken
    written = 0

    async def overwrite_without_end() -> None:
        nonlocal written
        while True:
            await put(service, "v", pattern(1 + written % 250, CELL))
            written += 1

    with pytest.raises(Busy, match="overwritten faster"):
        await overwrite_without_end()
    assert 100 <= written <= 140
    assert await content(service, "v") == pattern(written, CELL)


async def test_each_retired_root_has_its_own_grace() -> None:
    cluster = MemoryCluster(settings=VolumeSettings(retired_grace_s=60))
    service = cluster.gateway()
    await put(service, "v", pattern(1, CELL))
    await put(service, "v", pattern(2, CELL))
    cluster.clock.now += 50
    await put(service, "v", pattern(3, CELL))
    cluster.clock.now += 20
    while await service.reclaimer.run_due():
        pass
    assert {payload[0] for payload in cluster.chunks.payloads.values()} == {2, 3}
    cluster.clock.now += 50
    while await service.reclaimer.run_due():
        pass
    assert {payload[0] for payload in cluster.chunks.payloads.values()} == {3}


async def test_a_page_goes_after_all_that_is_below_it() -> None:
    cluster = MemoryCluster(settings=VolumeSettings(leaf_extents=2, retired_grace_s=0))
    service = cluster.gateway()
    await put(service, "v", b"".join(bytes([letter]) * CELL for letter in range(1, 200)))
    await service.resize("v", 5000 * CELL)
    for group in range(5, 9):  # leaves of more than a cell
        await service.write_range("v", group * 64 * CELL, body_of(pattern(1, CELL) + pattern(2, CELL)), 2 * CELL)
    await service.delete("v")
    real_drop = cluster.chunks.drop_reference
    dropping = pages = 0

    async def spy(chunk: bytes, referrer: bytes, replicas: int) -> None:
        nonlocal dropping, pages
        if referrer.endswith(b"\xff" * 6):
            pages += 1
            assert dropping == 0
        dropping += 1
        await asyncio.sleep(0)
        await real_drop(chunk, referrer, replicas)
        dropping -= 1

    cluster.chunks.drop_reference = spy  # type: ignore[method-assign]  # a spy in place of the real one
    while await service.reclaimer.run_due():
        pass
    assert pages > 3
    assert cluster.chunks.payloads == {}


async def test_what_failed_is_tried_again_at_once_when_a_node_has_come_back() -> None:
    cluster = MemoryCluster(settings=VolumeSettings(leaf_extents=2, retired_grace_s=60))
    service = cluster.gateway()
    await put(service, "v", pattern(1, 3 * CELL))
    await put(service, "v", pattern(2, CELL))
    await put(service, "young", pattern(3, CELL))

    async def refuse(_: int) -> None:
        raise QuorumUnavailable("a node is away")

    cluster.chunks.before_drop = refuse
    cluster.clock.now += 61
    with pytest.raises(NoSpace):
        await fail_in_the_middle(cluster, service)
    for _ in range(8):
        cluster.clock.now += 300
        while await service.reclaimer.run_due():
            pass
    await put(service, "young", pattern(4, CELL))
    assert service.jobs()[0].queue_length == 3
    cluster.chunks.before_drop = lambda _: asyncio.sleep(0)
    assert not await service.reclaimer.run_due()
    service.reclaimer.retry_now()
    while await service.reclaimer.run_due():
        pass
    (young,) = [head for head in heads_of(cluster) if head.retired]
    assert young.name == "young"  # waits for its grace, not for a retry
    assert service.jobs()[0].queue_length == 1
    assert cluster.chunks.all_references() == needed_references(cluster)


async def fail_in_the_middle(cluster: MemoryCluster, service: VolumeService) -> None:
    puts = cluster.chunks.puts

    async def full(number: int) -> None:
        if number == puts + 2:
            raise NoSpace("full")

    cluster.chunks.before_put = full
    try:
        await service.replace("v", body_of(pattern(8, CELL), pattern(9, CELL)), None)
    finally:
        cluster.chunks.before_put = lambda _: asyncio.sleep(0)
