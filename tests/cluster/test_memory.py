"""Memory stays bounded whatever the size: of volumes, of how many are written at once, of what waits for a replica that hangs."""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from collections.abc import AsyncIterator

import pytest
from blake3 import blake3

from client import Holdfast
from tests.cluster.conftest import MakeCluster
from tests.cluster.content import GIB, MIB
from tests.cluster.harness import ClusterProcess, eventually
from tests.cluster.process_usage import forget_peak, peak, resident

BIG = int(float(os.environ.get("HOLDFAST_TEST_BIG_GIB", "1")) * GIB)
MOST_GROWTH = 256 * MIB
BLOCK = 4 * MIB
TOGETHER = 8


def block(seed: str, index: int) -> bytes:
    return blake3(f"{seed} {index}".encode()).digest(length=BLOCK)


async def blocks(seed: str, size: int) -> AsyncIterator[bytes]:
    for index in range(size // BLOCK):
        yield block(seed, index)


class Watch:
    """How much each daemon's memory has grown at most since the watch was made."""

    def __init__(self, cluster: ClusterProcess) -> None:
        self._cluster = cluster
        self._before = {}
        for name in cluster.names:
            pid = cluster[name].pid
            forget_peak(pid)
            self._before[name] = resident(pid)

    def growth(self) -> dict[str, int]:
        return {name: peak(self._cluster[name].pid) - before for name, before in self._before.items()}

    def check(self, what: str, size: int, seconds: float) -> None:
        growth = self.growth()
        shown = ", ".join(f"{name} {grown / MIB:.0f}" for name, grown in growth.items())
        print(f"{what}: {size / MIB / seconds:.0f} MiB/s; MiB of growth: {shown}")
        assert max(growth.values()) < MOST_GROWTH, f"{what}: {shown}"


async def read_back(holdfast: Holdfast, name: str, size: int) -> None:
    async with holdfast.open(name) as content:
        assert content.length == size
        pending, index = bytearray(), 0
        async for piece in content:
            pending += piece
            while len(pending) >= BLOCK:
                assert pending[:BLOCK] == block(name, index), f"{name} differs in block {index}"
                del pending[:BLOCK]
                index += 1
        assert not pending
        assert index == size // BLOCK


@pytest.fixture
async def five(make_cluster: MakeCluster) -> AsyncIterator[ClusterProcess]:
    """Five nodes, whose data do not stay on the disk after the test."""
    cluster = await make_cluster(5)
    yield cluster
    cluster.kill()
    for daemon in cluster.daemons.values():
        shutil.rmtree(daemon.data)


async def test_large_volumes(five: ClusterProcess) -> None:
    async with five.client("n1") as holdfast:
        for what, sizes in (("one volume", [BIG]), (f"{TOGETHER} volumes at once", [128 * MIB] * TOGETHER)):
            names = [f"big-{len(sizes)}-{index}" for index in range(len(sizes))]
            watch, began = Watch(five), time.monotonic()
            async with asyncio.TaskGroup() as group:
                for name, size in zip(names, sizes, strict=True):
                    group.create_task(holdfast.put(name, blocks(name, size), length=size))
            watch.check(f"PUT of {what}", sum(sizes), time.monotonic() - began)
            watch, began = Watch(five), time.monotonic()
            async with asyncio.TaskGroup() as group:
                for name, size in zip(names, sizes, strict=True):
                    group.create_task(read_back(holdfast, name, size))
            watch.check(f"GET of {what}", sum(sizes), time.monotonic() - began)


async def test_a_replica_hangs_in_the_middle_of_a_large_put(five: ClusterProcess) -> None:
    """What waits for it is bounded, and the others finish without it."""
    size, name = 512 * MIB, "big-hung"
    sent = asyncio.Event()

    async def body() -> AsyncIterator[bytes]:
        given = 0
        async for data in blocks(name, size):
            yield data
            given += len(data)
            if given >= size // 4:
                sent.set()

    async with five.client("n1") as holdfast:
        watch, began = Watch(five), time.monotonic()
        put = asyncio.create_task(holdfast.put(name, body(), length=size))
        await eventually(lambda: sent.is_set() or put.done(), "a quarter is on its way", 60)
        five["n3"].freeze()
        await asyncio.wait_for(put, 60)
        watch.check("PUT while a replica hangs", size, time.monotonic() - began)
        five["n3"].thaw()
        await read_back(holdfast, name, size)
    async with five.client("n3") as returned:
        await read_back(returned, name, size)
        watch.check("and after it has woken", 2 * size, time.monotonic() - began)
