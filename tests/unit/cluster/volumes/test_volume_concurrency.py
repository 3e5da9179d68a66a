"""Requests that meet: writers against writers, readers against writers, the end of a request in the middle, answers that never came."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest

from cluster.errors import Conflict, HoldfastError, NotFound, OutcomeUnknown, QuorumUnavailable
from cluster.volumes.head import head_key
from cluster.volumes.service import Condition, VolumeSettings
from tests.unit.cluster.volumes.memory_cluster import MemoryCluster, body_of, content, put
from tests.unit.cluster.volumes.naive_references import needed_references

CELL = 4096


@pytest.mark.parametrize("seed", range(30))
async def test_whole_puts_and_range_puts_are_linearizable(seed: int) -> None:
    """Each whole PUT fills the volume with its letter, each range PUT its own cell; a reader sees a state that some order explains, never a
    mixture, and in the end each cell is the newest range write of it or the newest whole PUT."""
    cluster = MemoryCluster(seed=seed, settings=VolumeSettings(leaf_extents=2))
    gateways = [cluster.gateway(number) for number in range(3)]
    await put(gateways[0], "v", b"\x01" * (4 * CELL))
    cluster.scatter(seed)
    rng = random.Random(seed)
    swung: list[tuple[int, int, int]] = []  # generation, letter, cell (-1: all)

    async def write(letter: int) -> None:
        service = rng.choice(gateways)
        if rng.random() < 0.5:
            volume, _ = await service.replace("v", body_of(bytes([letter]) * (4 * CELL)), 4 * CELL)
            swung.append((volume.generation, letter, -1))
        else:
            cell = rng.randrange(4)
            volume = await service.write_range("v", cell * CELL, body_of(bytes([letter]) * CELL), CELL)
            swung.append((volume.generation, letter, cell))

    seen: list[tuple[int, bytes]] = []

    async def read() -> None:
        service = rng.choice(gateways)
        for _ in range(4):
            opened = await service.open("v")
            data = b"".join([bytes(part) async for part in opened.read(0, opened.volume.size)])
            assert len(data) == 4 * CELL
            seen.append((opened.volume.generation, data))

    async with asyncio.TaskGroup() as group:
        for letter in range(2, 12):
            group.create_task(write(letter))
        for _ in range(4):
            group.create_task(read())

    states = {1: [1] * 4}
    assert sorted(generation for generation, _, _ in swung) == list(range(2, 12))
    for generation, letter, cell in sorted(swung):
        state = list(states[generation - 1])
        state[:] = [letter] * 4 if cell < 0 else [letter if index == cell else old for index, old in enumerate(state)]
        states[generation] = state
    for generation, data in seen:
        assert data == b"".join(bytes([letter]) * CELL for letter in states[generation])
    assert await content(gateways[0], "v") == b"".join(bytes([letter]) * CELL for letter in states[11])


async def test_of_two_creating_puts_with_if_none_match_one_wins() -> None:
    cluster = MemoryCluster()
    gateways = [cluster.gateway(number) for number in range(4)]
    cluster.scatter(3)
    absent = Condition(if_none_match=frozenset("*"))
    results = await asyncio.gather(
        *(gateway.replace("v", body_of(bytes([65 + i])), 1, absent) for i, gateway in enumerate(gateways)),
        return_exceptions=True,
    )
    won = [result for result in results if not isinstance(result, BaseException)]
    assert len(won) == 1
    assert all(isinstance(result, Conflict) for result in results if isinstance(result, BaseException))


@pytest.mark.parametrize("seed", range(10))
async def test_of_puts_with_one_if_match_one_wins(seed: int) -> None:
    """Whole and range PUTs through several gateways, all of which saw the same version."""
    cluster = MemoryCluster(seed=seed)
    gateways = [cluster.gateway(number) for number in range(4)]
    before = bytes(2 * CELL)
    await put(gateways[0], "v", before)
    cluster.scatter(seed)
    for turn in range(5):
        condition = Condition(if_match=frozenset({(await gateways[0].show("v")).etag}))
        bodies = [bytes([1 + 4 * turn + number]) * CELL for number in range(4)]
        results = await asyncio.gather(
            gateways[0].replace("v", body_of(bodies[0], bodies[0]), 2 * CELL, condition),
            gateways[1].replace("v", body_of(bodies[1], bodies[1]), 2 * CELL, condition),
            gateways[2].write_range("v", 0, body_of(bodies[2]), CELL, condition),
            gateways[3].write_range("v", CELL, body_of(bodies[3]), CELL, condition),
            return_exceptions=True,
        )
        won = [number for number, result in enumerate(results) if not isinstance(result, BaseException)]
        assert len(won) == 1
        assert sum(isinstance(result, Conflict) for result in results) == 3
        (winner,) = won
        body = bodies[winner]
        before = (body * 2, body * 2, body + before[CELL:], before[:CELL] + body)[winner]
        assert await content(gateways[turn % 4], "v") == before


async def test_of_two_plain_creating_puts_one_creates_and_one_replaces() -> None:
    cluster = MemoryCluster()
    first, second = cluster.gateway(1), cluster.gateway(2)
    cluster.scatter(5)
    results = await asyncio.gather(first.replace("v", body_of(b"one"), 3), second.replace("v", body_of(b"two"), 3))
    assert sorted(created for _, created in results) == [False, True]
    assert len({volume.id for volume, _ in results}) == 1


async def test_creating_puts_of_different_shapes_do_not_mix() -> None:
    cluster = MemoryCluster()
    service, other = cluster.gateway(1), cluster.gateway(2)

    async def overtake(number: int) -> None:
        if number == 2:  # the first is the claim of the name
            await other.create("v", 7, chunk_size=8192)

    cluster.registers.before_swing = overtake
    with pytest.raises(Conflict, match="another shape"):
        await service.replace("v", body_of(b"x"), 1, chunk_size=4096)
    assert await content(service, "v") == bytes(7)


async def test_a_reader_keeps_its_version_during_puts_and_a_delete() -> None:
    cluster = MemoryCluster(settings=VolumeSettings(retired_grace_s=60))
    service = cluster.gateway()
    old = random.Random(1).randbytes(40 * CELL)
    await put(service, "v", old)
    opened = await service.open("v")
    async with aclosing(opened.read(0, len(old))) as stream:
        got = bytes(await anext(stream))
        await put(service, "v", random.Random(2).randbytes(40 * CELL))
        await service.delete("v")
        while await service.reclaimer.run_due():
            pass
        got += b"".join([bytes(part) async for part in stream])
    assert got == old
    cluster.clock.now += 61
    while await service.reclaimer.run_due():
        pass
    assert cluster.chunks.payloads == {}
    with pytest.raises(NotFound):
        _ = [part async for part in opened.read(0, len(old))]


@pytest.mark.parametrize("turns", range(0, 60, 3))
async def test_a_put_that_is_cancelled_leaves_the_old_version_or_made_the_new_one(turns: int) -> None:
    cluster = MemoryCluster(settings=VolumeSettings(leaf_extents=2, retired_grace_s=0))
    service = cluster.gateway()
    old, new = b"\x05" * (9 * CELL), b"".join(bytes([letter]) * CELL for letter in range(10, 19))
    await put(service, "v", old)
    cluster.scatter(turns)
    task = asyncio.create_task(put(service, "v", new))
    for _ in range(turns):
        await asyncio.sleep(0)
    finished = task.done()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    cluster.scatter(0, most=1)
    now = await content(service, "v")
    assert now == new if finished else now in {old, new}
    assert service.write_budget.held == 0
    while await service.reclaimer.run_due():
        pass
    assert await content(service, "v") == now
    extra = cluster.chunks.all_references() - needed_references(cluster)
    # What was in flight, or everything when the answer to the swing was not waited for.
    assert len(extra) <= service.settings.write_window + 1 or cluster.registers.swings > 1


async def test_a_body_that_breaks_off_leaves_the_old_version() -> None:
    cluster = MemoryCluster()
    service = cluster.gateway()
    await put(service, "v", b"old")

    async def breaking() -> AsyncIterator[bytes]:
        for letter in range(1, 7):
            yield bytes([letter]) * CELL
        raise ConnectionResetError("the client went away")

    with pytest.raises(ConnectionResetError):
        await service.replace("v", breaking(), 10 * CELL)
    assert await content(service, "v") == b"old"
    assert service.write_budget.held == 0
    while await service.reclaimer.run_due():
        pass
    assert len(cluster.chunks.all_references() - needed_references(cluster)) <= service.settings.write_window


class Lossy:
    """Lets the answer to a swing get lost, before or after it took effect."""

    def __init__(self, cluster: MemoryCluster, *, before: int = 0, after: int = 0) -> None:
        self.before, self.after = before, after
        cluster.registers.before_swing = self._before
        cluster.registers.after_swing = self._after

    async def _before(self, _: int) -> None:
        if self.before:
            self.before -= 1
            raise OutcomeUnknown("lost on the way")

    async def _after(self, _: int) -> None:
        if self.after:
            self.after -= 1
            raise OutcomeUnknown("the answer got lost")


@pytest.mark.parametrize(("before", "after"), [(1, 0), (2, 0), (0, 1)])
async def test_an_unknown_outcome_is_looked_up(before: int, after: int) -> None:
    cluster = MemoryCluster()
    service = cluster.gateway()
    await put(service, "v", b"old")
    Lossy(cluster, before=before, after=after)
    volume, created = await service.replace("v", body_of(b"new"), 3)
    assert not created
    assert volume.generation == 2
    assert await content(service, "v") == b"new"
    Lossy(cluster, before=before, after=after)
    assert (await service.resize("v", 10)).size == 10
    Lossy(cluster, before=before, after=after)
    assert (await service.create("w", 10)).generation == 1
    Lossy(cluster, before=before, after=after)
    await service.delete("w")
    Lossy(cluster, before=before, after=after)
    await service.delete("v")
    with pytest.raises(NotFound):
        await service.show("v")


async def test_a_volume_that_was_created_and_deleted_while_its_creation_is_in_doubt_does_not_come_back() -> None:
    """The absence that the creation is repeated over must be the one that it saw at first."""
    cluster = MemoryCluster()
    service, other = cluster.gateway(1), cluster.gateway(2)
    first = True

    async def after(_: int) -> None:
        nonlocal first
        if first:
            first = False
            await other.delete("v")
            cluster.registers.remove(head_key("v"))  # as a patrol does with what is left of a deleted volume
            raise OutcomeUnknown("the answer got lost")

    cluster.registers.after_swing = after
    with pytest.raises(OutcomeUnknown):
        await service.create("v", 10)
    assert not cluster.registers.values
    assert (await service.create("v", 10)).generation == 1, "a new creation sees the new absence"


async def test_a_swing_that_was_done_and_overwritten_while_in_doubt_counts_as_done() -> None:
    cluster = MemoryCluster()
    service, other = cluster.gateway(1), cluster.gateway(2)
    await put(service, "v", b"old")
    first = True

    async def after(_: int) -> None:
        nonlocal first
        if first:
            first = False
            await put(other, "v", b"newer")
            raise OutcomeUnknown("the answer got lost")

    cluster.registers.after_swing = after
    volume, _ = await service.replace("v", body_of(b"new"), 3)
    assert volume.generation == 2
    assert await content(service, "v") == b"newer"


@pytest.mark.parametrize("data", [b"", b"content"])
async def test_of_two_who_delete_one_version_only_one_is_told_that_it_did(data: bytes) -> None:
    """The first one's request gets lost, and when it is repeated the other has deleted the volume."""
    cluster = MemoryCluster()
    service, other = cluster.gateway(1), cluster.gateway(2)
    await put(service, "v", data)
    condition = Condition(if_match=frozenset({(await service.show("v")).etag}))
    first = True

    async def before(_: int) -> None:
        nonlocal first
        if first:
            first = False
            await other.delete("v", condition)
            raise OutcomeUnknown("lost on the way")

    cluster.registers.before_swing = before
    with pytest.raises(OutcomeUnknown):
        await service.delete("v", condition)
    assert (await service.list()).volumes == ()


async def test_an_outcome_that_stays_unknown_is_said_to_be_and_nothing_is_given_back() -> None:
    cluster = MemoryCluster()
    service = cluster.gateway()
    await put(service, "v", b"old")
    Lossy(cluster, before=99)
    with pytest.raises(OutcomeUnknown):
        await service.replace("v", body_of(b"new"), 3)
    while await service.reclaimer.run_due():
        pass
    assert len(cluster.chunks.payloads) == 2


async def test_no_quorum_after_an_unknown_outcome_is_still_unknown() -> None:
    cluster = MemoryCluster()
    service = cluster.gateway()
    await put(service, "v", b"old")
    tries = 0

    async def before(_: int) -> None:
        nonlocal tries
        tries += 1
        raise OutcomeUnknown("lost") if tries == 1 else QuorumUnavailable("too few")

    cluster.registers.before_swing = before
    with pytest.raises(OutcomeUnknown):
        await service.replace("v", body_of(b"new"), 3)


async def test_a_range_put_meets_a_shrinking_put() -> None:
    cluster = MemoryCluster()
    service, other = cluster.gateway(1), cluster.gateway(2)
    await put(service, "v", b"x" * 100)
    swings = cluster.registers.swings

    async def overtake(number: int) -> None:
        if number == swings + 1:
            await other.replace("v", body_of(b"short"), 5)

    cluster.registers.before_swing = overtake
    with pytest.raises(HoldfastError, match="resize it first"):
        await service.write_range("v", 50, body_of(b"y" * 50), 50)
    assert await content(service, "v") == b"short"


async def test_a_range_put_meets_a_growing_volume() -> None:
    cluster = MemoryCluster(settings=VolumeSettings(leaf_extents=1))
    service, other = cluster.gateway(1), cluster.gateway(2)
    await put(service, "v", b"\x01" * (3 * CELL))
    swings = cluster.registers.swings

    async def overtake(number: int) -> None:
        if number == swings + 1:
            await other.resize("v", 10_000 * CELL)

    cluster.registers.before_swing = overtake
    volume = await service.write_range("v", CELL, body_of(b"\x02" * CELL), CELL)
    assert volume.size == 10_000 * CELL
    opened = await service.open("v")
    assert bytes(await opened.read_small(0, 4 * CELL)) == b"\x01" * CELL + b"\x02" * CELL + b"\x01" * CELL + bytes(CELL)


async def test_a_range_put_into_a_volume_that_was_deleted_meanwhile() -> None:
    cluster = MemoryCluster()
    service, other = cluster.gateway(1), cluster.gateway(2)
    await put(service, "v", b"x" * 100)
    swings = cluster.registers.swings

    async def overtake(number: int) -> None:
        if number == swings + 1:
            await other.delete("v")

    cluster.registers.before_swing = overtake
    with pytest.raises(NotFound):
        await service.write_range("v", 0, body_of(b"y"), 1)


async def test_a_slow_range_put_goes_on_when_the_version_it_began_on_has_been_given_back() -> None:
    """Its body takes longer than replaced versions are kept, and somebody has replaced the volume meanwhile."""
    cluster = MemoryCluster(settings=VolumeSettings(leaf_extents=2))
    slow, other = cluster.gateway(0), cluster.gateway(1)
    size = 40 * CELL
    await put(other, "v", bytes(number % 251 for number in range(size)))
    new = bytes(number % 241 for number in range(size))

    async def overtaken() -> AsyncIterator[bytes]:
        await put(other, "v", new)
        cluster.clock.now += 2 * other.settings.retired_grace_s
        while await other.reclaimer.run_due():
            pass
        yield b"range"

    await slow.write_range("v", CELL + 7, overtaken(), 5)
    assert await content(other, "v") == new[: CELL + 7] + b"range" + new[CELL + 12 :]
