"""What it costs replicas to find out that they are in step, and what they differ in when they are not.

Both replicas are in one process of their own, with real stores on the disk, and a wire between them that packs every message and counts
its bytes. All times are of both sides together.
"""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import TypeVar

import uvloop
from blake3 import blake3

from benchmark.figure import Aim, Figure
from benchmark.plan import Plan
from benchmark.process import in_process
from benchmark.testbed import Testbed
from cluster.chunks.store import Reference
from cluster.doors.clock import SystemClock
from cluster.errors import HoldfastError
from cluster.layout.ring import partition_of
from cluster.register.ballot import Version
from cluster.register.record import Record
from cluster.register.store import RegisterWrite
from cluster.volumes.head import head_key
from node.storage.chunk_store import ChunkStoreSettings, LogChunkStore
from node.storage.disk import RealDisk
from node.storage.register_store import DATABASE_NAME, SqliteRegisterStore
from tests.support.compared_pair import COPIES, CountedWire, Side, state_of

T = TypeVar("T")

BITS = 10
"""Of the layout: 1024 partitions, as by default."""

CHUNKS = 100_000
CHUNK_BYTES = 100
HEADS = 10_000
"""Registers beside them."""

PASSES = 20
DIFFERENT_SHARE = 1000
"""One in so many items differs."""

BUILDING_AT_ONCE = 2000
"""Puts while a store is built."""

COMMITTED_AT_ONCE = 20_000
"""Registers in one commit then."""

HEAD_BYTES = 64


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one comparison."""

    cpu_s: float
    seconds: float
    bytes: int
    listed: int


async def in_step(testbed: Testbed, plan: Plan) -> list[Figure]:
    """Two nodes with equal content; the same with some chunks, or some of many registers, that differ."""
    cpu = Figure(f"in step, {CHUNKS} chunks: CPU of a pass", "ms", Aim(100, at_most=True))
    wire = Figure(f"in step, {CHUNKS} chunks: bytes of a pass", "KiB", Aim(64, at_most=True))
    chunks = _difference_figures(CHUNKS, "chunks")
    registers = _difference_figures(plan.registers, "registers")
    for run in range(plan.runs):
        directory = plan.directory / f"in-step-{run}"
        directory.mkdir()
        plan.note(f"replicas in step, run {run + 1}")
        equal, differing = await in_process(chunk_comparisons, str(directory))
        cpu.add(1000 * equal.cpu_s)
        wire.add(equal.bytes / 1024)
        _add(chunks, differing, CHUNKS)
        if not run:  # a minute or two to build, and the same every time
            plan.note(f"{plan.registers} registers of which some differ")
            _add(registers, await in_process(register_comparison, str(directory), plan.registers), plan.registers)
        shutil.rmtree(directory)
    return [cpu, wire, *chunks, *registers]


def _difference_figures(count: int, what: str) -> list[Figure]:
    name = f"{count // DIFFERENT_SHARE} of {count} {what} differ"
    return [
        Figure(f"{name}: listed", "%", Aim(1, at_most=True)),
        Figure(f"{name}: bytes", "KiB"),
        Figure(f"{name}: time", "s"),
    ]


def _add(figures: Sequence[Figure], cost: Cost, count: int) -> None:
    for figure, value in zip(figures, (100 * cost.listed / count, cost.bytes / 1024, cost.seconds), strict=True):
        figure.add(value)


# In processes of their own


def chunk_comparisons(directory: str) -> tuple[Cost, Cost]:
    """A pass over equal stores, on average, and one over stores in which some chunks differ."""
    return uvloop.run(_chunk_comparisons(Path(directory)))


async def _chunk_comparisons(directory: Path) -> tuple[Cost, Cost]:
    names = [blake3(number.to_bytes(8)).digest() for number in range(CHUNKS)]
    for name in ("n0", "n1"):
        (directory / name).mkdir()
    async with chunk_store(directory / "n0" / "chunks") as store:
        for some in _batches(names, BUILDING_AT_ONCE):
            await asyncio.gather(*(store.put(chunk, chunk[:1] * CHUNK_BYTES, reference_to(chunk)) for chunk in some))
    await asyncio.to_thread(shutil.copytree, directory / "n0" / "chunks", directory / "n1" / "chunks")
    await _build_registers(directory, HEADS)
    async with _pair(directory) as (wire, sides):
        await _compare(wire, sides, 0)  # what is worked out once, as which partitions are shared
        cpu, start = time.process_time(), time.perf_counter()
        equal = [await _compare(wire, sides, 0) for _ in range(PASSES)]
        cpu, seconds = (time.process_time() - cpu) / PASSES, (time.perf_counter() - start) / PASSES
        different = names[::DIFFERENT_SHARE]
        for number, chunk in enumerate(different):
            await sides[number % 2].chunks.addreference_to(chunk, Reference(b"another-referrer", COPIES))
        return Cost(cpu, seconds, equal[-1].bytes, equal[-1].listed), await _compare(wire, sides, len(different))


def register_comparison(directory: str, count: int) -> Cost:
    """A pass over registers of which some differ."""
    place = Path(directory) / "registers"
    for name in ("n0", "n1"):
        (place / name).mkdir(parents=True)
    return uvloop.run(_register_comparison(place, count))


async def _register_comparison(directory: Path, count: int) -> Cost:
    await _build_registers(directory, count)
    async with _pair(directory) as (wire, sides):
        await _compare(wire, sides, 0)
        changed = Random(2).sample(range(count), count // DIFFERENT_SHARE)  # noqa: S311 - any will do
        await sides[1].registers.commit([_head(number, 2) for number in changed])
        return await _compare(wire, sides, len(changed))


async def _compare(wire: CountedWire, sides: Sequence[Side], different: int) -> Cost:
    wire.reset()
    cpu, start = time.process_time(), time.perf_counter()
    found = await sides[0].compare("n1")
    cost = Cost(time.process_time() - cpu, time.perf_counter() - start, wire.bytes, wire.listed)
    if len(found.references) + len(found.keys) != different:
        raise RuntimeError(f"{len(found.references)} references and {len(found.keys)} keys differ, not {different}")
    return cost


# Stores


async def _build_registers(directory: Path, count: int) -> None:
    """The same heads in the stores of both nodes."""
    store = SqliteRegisterStore.open(directory / "n0", _broken)
    for numbers in _batches(range(count), COMMITTED_AT_ONCE):
        await store.commit([_head(number, 1) for number in numbers])
    await store.close()  # which leaves nothing beside the file
    with sqlite3.connect(directory / "n0" / DATABASE_NAME) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    await asyncio.to_thread(shutil.copy, directory / "n0" / DATABASE_NAME, directory / "n1" / DATABASE_NAME)


@asynccontextmanager
async def _pair(directory: Path) -> AsyncIterator[tuple[CountedWire, list[Side]]]:
    """Both nodes on what is in their directories."""
    wire, state = CountedWire(), state_of(2, BITS)
    async with chunk_store(directory / "n0" / "chunks") as first, chunk_store(directory / "n1" / "chunks") as second:
        sides: list[Side] = []
        registers = []
        try:
            for name, chunks in (("n0", first), ("n1", second)):
                registers.append(SqliteRegisterStore.open(directory / name, _broken))
                sides.append(await Side.open(name, wire, registers[-1], chunks, state))
            yield wire, sides
        finally:
            for store in registers:
                await store.close()


@asynccontextmanager
async def chunk_store(place: Path) -> AsyncIterator[LogChunkStore]:
    store = make_store(place)
    await store.open()
    try:
        yield store
    finally:
        await store.close()


def make_store(place: Path) -> LogChunkStore:
    settings = ChunkStoreSettings(str(place), ballast_bytes=0)
    return LogChunkStore(settings, disk=RealDisk(), clock=SystemClock(), random=Random(3))  # noqa: S311 - names files


def reference_to(chunk: bytes) -> Reference:
    return Reference(chunk[:16], COPIES)


def _head(number: int, seq: int) -> RegisterWrite:
    key = head_key(f"volume-{number}")
    record = Record(Version(1, "n0/0001/1", seq), number.to_bytes(8) * (HEAD_BYTES // 8))
    return RegisterWrite(partition_of(key.partition, BITS), key, record)


def _batches(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _broken(error: HoldfastError) -> None:
    raise RuntimeError(f"the register store has failed: {error}")
