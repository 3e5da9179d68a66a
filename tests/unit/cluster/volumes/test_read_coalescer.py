"""Shared reads: as good as one's own, at most one in flight and one to come, whoever is cancelled."""

from __future__ import annotations

import asyncio
import random

import pytest

from cluster.errors import QuorumUnavailable
from cluster.volumes.read_coalescer import ReadCoalescer


class Source:
    """A value that grows; a read gives what it was at some moment between its begin and its end."""

    def __init__(self, seed: int = 0) -> None:
        self.value = 0
        self.reads = 0
        self.in_flight = 0
        self.fail_every = 0
        self.rng = random.Random(seed)

    async def read(self, key: str) -> int:
        self.reads += 1
        number = self.reads
        self.in_flight += 1
        assert self.in_flight == 1, "two reads of one key at a time"
        try:
            await turns(self.rng.randrange(4))
            value = self.value
            await turns(self.rng.randrange(4))
            if self.fail_every and number % self.fail_every == 0:
                raise QuorumUnavailable("too few")
            return value
        finally:
            self.in_flight -= 1


async def turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


@pytest.mark.parametrize("seed", range(60))
async def test_reads_are_linearizable_under_cancellations_and_errors(seed: int) -> None:
    source = Source(seed)
    source.fail_every = seed % 5
    rng = random.Random(seed)
    coalescer: ReadCoalescer[str, int] = ReadCoalescer(source.read)
    failed = 0

    async def reader() -> None:
        nonlocal failed
        await turns(rng.randrange(30))
        arrived = source.value
        task = asyncio.create_task(coalescer.read("k"))
        if rng.random() < 0.3:
            await turns(rng.randrange(6))
            task.cancel()
        try:
            assert arrived <= await task <= source.value
        except asyncio.CancelledError:
            pass
        except QuorumUnavailable:
            failed += 1

    async def writer() -> None:
        for _ in range(60):
            source.value += 1
            await asyncio.sleep(0)

    async with asyncio.timeout(10), asyncio.TaskGroup() as group:
        group.create_task(writer())
        for _ in range(40):
            group.create_task(reader())
    assert source.reads < 40
    assert not coalescer._next
    assert failed == 0 or source.fail_every


async def test_a_crowd_shares_two_reads() -> None:
    source = Source()
    coalescer: ReadCoalescer[str, int] = ReadCoalescer(source.read)
    assert await asyncio.gather(*(coalescer.read("k") for _ in range(100))) == [0] * 100
    assert source.reads == 2


async def test_keys_do_not_wait_for_each_other() -> None:
    go = asyncio.Event()

    async def read(key: str) -> str:
        if key == "slow":
            await go.wait()
        return key

    coalescer: ReadCoalescer[str, str] = ReadCoalescer(read)
    slow = asyncio.create_task(coalescer.read("slow"))
    await turns(2)
    assert await coalescer.read("quick") == "quick"
    go.set()
    assert await slow == "slow"
