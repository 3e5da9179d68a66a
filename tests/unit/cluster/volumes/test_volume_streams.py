"""Streaming both ways: how much is held, how much is copied, and that nothing of it is left when a stream ends early."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest

from cluster.errors import Corrupt, NoSpace
from cluster.rpc.message import Buffer
from cluster.volumes.content import READ_AHEAD, READ_PIECE_BYTES
from cluster.volumes.service import VolumeSettings
from cluster.volumes.writer import WRITE_WINDOW, is_zero
from tests.unit.cluster.volumes.memory_cluster import MemoryCluster, blocks_of, body_of, content, put

CELL = 4096
MIB = 1 << 20


def cut(data: bytes) -> list[bytes]:
    return [data[at : at + 100_000] for at in range(0, len(data), 100_000)]


async def test_a_body_holds_no_more_than_its_window() -> None:
    cluster = MemoryCluster()
    service = cluster.gateway()
    given = stored = most = 0

    async def body() -> AsyncIterator[bytes]:
        nonlocal given, most
        for letter in range(1, 200):
            given += 1
            most = max(most, given - stored)
            yield bytes([letter]) * CELL

    async def slow(_: int) -> None:
        nonlocal stored
        for _turn in range(5):
            await asyncio.sleep(0)
        stored += 1

    cluster.chunks.before_put = slow
    await service.replace("v", body(), None, chunk_size=CELL)
    assert cluster.chunks.most_in_flight <= WRITE_WINDOW
    assert WRITE_WINDOW - 1 <= most <= WRITE_WINDOW + 1


async def test_requests_share_the_daemons_budget() -> None:
    cluster = MemoryCluster(settings=VolumeSettings(write_budget=4 * MIB))
    service = cluster.gateway()
    most = 0

    async def watch(_: int) -> None:
        nonlocal most
        most = max(most, service.write_budget.held)
        for _turn in range(3):
            await asyncio.sleep(0)

    cluster.chunks.before_put = watch
    rng = random.Random(1)
    bodies = {f"v{number}": rng.randbytes(5 * MIB) for number in range(4)}
    async with asyncio.timeout(20):
        await asyncio.gather(
            *(
                service.replace(
                    name,
                    blocks_of(cut(data)),
                    None,
                    chunk_size=MIB,
                )
                for name, data in bodies.items()
            )
        )
    assert most == 4 * MIB
    assert service.write_budget.held == 0
    for name, data in bodies.items():
        assert await content(service, name) == data


async def test_a_block_that_is_a_whole_piece_is_not_copied() -> None:
    cluster = MemoryCluster()
    service = cluster.gateway()
    seen: list[Buffer] = []
    real_put = cluster.chunks.put

    async def spy(payload: Buffer, *, referrer: bytes, replicas: int) -> bytes:
        seen.append(payload)
        return await real_put(payload, referrer=referrer, replicas=replicas)

    cluster.chunks.put = spy  # type: ignore[method-assign]  # a spy in place of the real one
    block = random.Random(1).randbytes(3 * CELL)
    await service.replace("v", body_of(block), len(block), chunk_size=CELL)
    assert all(isinstance(payload, memoryview) and payload.obj is block for payload in seen)
    assert await content(service, "v") == block


async def test_the_first_failure_ends_the_request_and_frees_everything() -> None:
    cluster = MemoryCluster()
    service = cluster.gateway()
    taken = 0

    async def body() -> AsyncIterator[bytes]:
        nonlocal taken
        while True:
            taken += 1
            yield b"x" * CELL

    async def full(number: int) -> None:
        await asyncio.sleep(0)
        if number == 5:
            raise NoSpace("full")
        if number > 5:
            await asyncio.Event().wait()  # would hang unless it is cancelled

    cluster.chunks.before_put = full
    async with asyncio.timeout(5):
        with pytest.raises(NoSpace):
            await service.replace("v", body(), None, chunk_size=CELL)
    assert taken <= 5 + 2 * WRITE_WINDOW
    assert service.write_budget.held == 0
    assert cluster.chunks.in_flight == 0


async def test_a_reader_reads_ahead_a_little_and_no_page_too_many() -> None:
    cluster = MemoryCluster(settings=VolumeSettings(leaf_extents=8))
    service = cluster.gateway()
    data = random.Random(1).randbytes(2000 * CELL)
    await put(service, "v", data)
    opened = await cluster.gateway(2).open("v")  # its page cache is empty
    cluster.chunks.reads = 0
    async with aclosing(opened.read(0, len(data))) as stream:
        first = await anext(stream)
        assert bytes(first) == data[: len(first)]
        assert cluster.chunks.reads <= 2 * READ_AHEAD + 4
        await asyncio.sleep(0)
        assert service.read_budget.held <= READ_AHEAD * READ_PIECE_BYTES
    assert cluster.chunks.in_flight == 0


async def test_reads_ahead_share_a_budget_but_everyone_goes_on() -> None:
    cluster = MemoryCluster(settings=VolumeSettings(read_budget=4 * MIB))
    service = cluster.gateway()
    data = random.Random(1).randbytes(9 * MIB)
    await service.replace("v", body_of(data), len(data))
    opened = await service.open("v")
    streams = [opened.read(0, len(data)) for _ in range(5)]
    parts = [[bytes(await anext(stream))] for stream in streams]
    assert service.read_budget.held <= 4 * MIB
    for index, stream in enumerate(streams):
        parts[index] += [bytes(part) async for part in stream]
        assert b"".join(parts[index]) == data
    assert service.read_budget.held == 0


async def test_a_stream_that_fails_or_is_left_frees_everything() -> None:
    cluster = MemoryCluster()
    service = cluster.gateway()
    data = random.Random(1).randbytes(12 * CELL)
    await put(service, "v", data)
    opened = await service.open("v")
    before = cluster.chunks.reads

    async def damaged(number: int) -> None:
        await asyncio.sleep(0)
        if number == before + 6:
            raise Corrupt("no good copy")

    cluster.chunks.before_read = damaged
    got = bytearray()

    async def read_all() -> None:
        async for part in opened.read(0, len(data)):
            got.extend(part)

    with pytest.raises(Corrupt):
        await read_all()
    assert got == data[: 5 * CELL]
    assert service.read_budget.held == 0
    async with aclosing(opened.read(0, len(data))) as stream:
        await anext(stream)
    assert service.read_budget.held == 0


async def test_holes_cost_neither_reads_nor_memory() -> None:
    cluster = MemoryCluster()
    service = cluster.gateway()
    await service.create("v", 300 * MIB)
    opened = await service.open("v")
    parts = [part async for part in opened.read(0, 300 * MIB)]
    assert len(parts) == 300
    assert all(
        isinstance(part, memoryview) and part.obj is parts[0].obj for part in parts if isinstance(parts[0], memoryview)
    )
    assert cluster.chunks.reads == 0


@pytest.mark.parametrize("size", [1, 2, 3, 4096, 4097])
def test_zeroes_are_told_from_the_rest(size: int) -> None:
    for kind in (bytes, bytearray, memoryview, lambda data: memoryview(bytearray(data))):
        assert is_zero(kind(bytes(size)))
        for position in {0, size // 3, size // 2, size - 1}:
            data = bytearray(size)
            data[position] = 1
            assert not is_zero(kind(bytes(data)))
