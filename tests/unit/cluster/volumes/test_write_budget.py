"""Uploads that come slowly hold up each other at most: the memory they hold makes way for those that come fast."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from cluster.errors import Busy
from cluster.volumes.service import VolumeService, VolumeSettings
from cluster.volumes.write_budget import WriteBudget
from tests.unit.cluster.volumes.memory_cluster import MemoryCluster, body_of, content

MIB = 1 << 20
SLOW_S, REFUSE_S = 0.05, 0.15


def budget() -> WriteBudget:
    return WriteBudget(100, 100, SLOW_S, REFUSE_S)


async def test_a_slow_piece_keeps_its_memory_while_nobody_waits() -> None:
    lanes = budget()
    piece = await lanes.reserve(100)
    async with piece.filling():
        await asyncio.sleep(3 * SLOW_S)
        assert lanes.quick.held == 100
        assert lanes.slow.held == 0
    piece.give()
    assert lanes.held == 0


async def test_a_slow_piece_makes_way_for_who_waits_and_goes_on() -> None:
    lanes = budget()
    slow = await lanes.reserve(80)
    async with slow.filling(), asyncio.timeout(5):
        quick = await lanes.reserve(60)
        assert (lanes.quick.held, lanes.slow.held) == (60, 80)
        quick.give()
    slow.give()
    assert lanes.held == 0


async def test_a_slow_piece_is_refused_when_the_slow_lane_is_full() -> None:
    lanes = budget()
    first = await lanes.reserve(80)
    async with first.filling(), asyncio.timeout(5):
        second = await lanes.reserve(80)
        assert lanes.slow.held == 80
        waiting = asyncio.create_task(lanes.reserve(50))
        with pytest.raises(Busy, match="slow"):
            async with second.filling():
                await asyncio.Event().wait()
        second.give()
        third = await waiting
        assert (lanes.quick.held, lanes.slow.held) == (50, 80)
        third.give()
    first.give()
    assert lanes.held == 0


async def test_a_piece_that_is_whole_is_left_alone() -> None:
    lanes = budget()
    stored = await lanes.reserve(80)
    async with stored.filling():
        pass
    waiting = asyncio.create_task(lanes.reserve(50))
    await asyncio.sleep(3 * SLOW_S)
    assert (lanes.quick.held, lanes.slow.held) == (80, 0)
    stored.give()
    (await waiting).give()
    assert lanes.held == 0


async def test_no_more_are_refused_than_must_make_way() -> None:
    """Also where all of them are due in the same moment."""
    lanes = WriteBudget(160, 10, SLOW_S, REFUSE_S)
    in_the_way = await lanes.reserve(10)
    in_the_way.give()
    lanes.slow.take_now(10)
    refused: list[int] = []

    async def slow(number: int) -> None:
        piece = await lanes.reserve(10)
        try:
            async with piece.filling():
                await asyncio.Event().wait()
        except Busy:
            refused.append(number)
            for _ in range(5):  # the way out of a body takes some turns
                await asyncio.sleep(0)
        finally:
            piece.give()

    tasks = [asyncio.create_task(slow(number)) for number in range(16)]
    await asyncio.sleep(0)
    async with asyncio.timeout(5):
        waiting = [await lanes.reserve(size) for size in (10, 10)]
    await asyncio.sleep(3 * SLOW_S)
    assert len(refused) == 2
    assert lanes.leaving == 0
    for piece in waiting:
        piece.give()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert (lanes.quick.held, lanes.leaving) == (0, 0)


async def test_a_time_out_of_the_body_itself_stays_one() -> None:
    piece = await budget().reserve(10)
    with pytest.raises(TimeoutError):
        async with piece.filling():
            raise TimeoutError
    piece.give()


async def slow_body(first: bytes, rest: bytes, go_on: asyncio.Event) -> AsyncIterator[bytes]:
    yield first
    await go_on.wait()
    yield rest


async def test_slow_uploads_up_to_the_budget_do_not_hold_up_a_write_and_are_stored() -> None:
    service, tasks, go_on = await with_slow_uploads(4)
    async with asyncio.timeout(5):
        await service.replace("quick", body_of(b"q" * MIB), MIB, chunk_size=MIB)
    assert await content(service, "quick") == b"q" * MIB
    go_on.set()
    await asyncio.gather(*tasks)
    for number in range(4):
        assert await content(service, f"slow{number}") == b"a" + bytes([number]) * (MIB - 1)
    assert service.write_budget.held == 0


async def test_slow_uploads_beyond_what_is_held_for_them_are_told_so_and_change_nothing() -> None:
    service, tasks, go_on = await with_slow_uploads(12)
    async with asyncio.timeout(10):
        await service.replace("quick", body_of(b"q" * MIB), MIB, chunk_size=MIB)
    go_on.set()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    refused = [number for number, outcome in enumerate(outcomes) if isinstance(outcome, Busy)]
    assert refused
    assert not [outcome for outcome in outcomes if isinstance(outcome, BaseException) and not isinstance(outcome, Busy)]
    assert {volume.name for volume in (await service.list()).volumes} == {"quick"} | {
        f"slow{number}" for number in range(12) if number not in refused
    }
    assert service.write_budget.held == 0


async def with_slow_uploads(count: int) -> tuple[VolumeService, list[asyncio.Task[object]], asyncio.Event]:
    """A gateway with 4 MiB for each lane, and that many uploads of a MiB under way of which one byte has come."""
    service = MemoryCluster(
        settings=VolumeSettings(
            write_budget=4 * MIB, slow_write_budget=4 * MIB, slow_body_s=SLOW_S, refuse_body_s=REFUSE_S
        )
    ).gateway()
    go_on = asyncio.Event()

    async def upload(number: int) -> object:
        body = slow_body(b"a", bytes([number]) * (MIB - 1), go_on)
        return await service.replace(f"slow{number}", body, MIB, chunk_size=MIB)

    tasks = [asyncio.create_task(upload(number)) for number in range(count)]
    for _ in range(1000):
        if service.write_budget.quick.held == 4 * MIB:
            return service, tasks, go_on
        await asyncio.sleep(0)
    raise AssertionError("the uploads did not begin")
