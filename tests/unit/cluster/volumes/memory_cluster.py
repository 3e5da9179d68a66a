"""Registers, chunks and a clock in memory, with hooks to delay, fail and count: what volumes stand on in these tests."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass, field

from blake3 import blake3

from cluster.errors import NotFound
from cluster.register.ballot import Version
from cluster.register.change import Absence
from cluster.register.key import RegisterKey
from cluster.rpc.message import Buffer
from cluster.volumes.service import VolumeService, VolumeSettings

Hook = Callable[[int], Awaitable[None]]
"""Called with the number of the call, from 1, before (or after) it takes effect; may wait or raise."""


async def nothing(_: int) -> None:
    pass


@dataclass(frozen=True, slots=True)
class MemoryCasResult:
    applied: bool
    current: bytes | None


@dataclass(frozen=True, slots=True)
class MemoryScanPage:
    entries: list[tuple[bytes, bytes]]
    resume: bytes | None


class MemoryRegisters:
    """Linearizable: each call takes effect in one step between its hooks."""

    def __init__(self) -> None:
        self.values: dict[RegisterKey, bytes] = {}
        self.removals: Counter[RegisterKey] = Counter()
        """How often each has gone: one absence is not another."""
        self.reads = 0
        self.swings = 0
        self.scans = 0
        self.before_read: Hook = nothing
        self.before_swing: Hook = nothing
        self.after_swing: Hook = nothing
        self.before_scan: Hook = nothing

    async def read(self, key: RegisterKey) -> bytes | None:
        self.reads += 1
        await self.before_read(self.reads)
        return self.values.get(key)

    async def compare_and_set(
        self, key: RegisterKey, expected: bytes | None, value: bytes | None, *, absence: Absence | None = None
    ) -> MemoryCasResult:
        self.swings += 1
        number = self.swings
        await self.before_swing(number)
        current = self.values.get(key)
        applied = current == expected
        if absence is not None and current is None:
            now = Version(self.removals[key], "", 0)
            if absence.version is None:
                absence.version = now
            applied = absence.version == now
        if applied:
            if value is None:
                self.remove(key)
            else:
                self.values[key] = value
            current = value
        await self.after_swing(number)
        return MemoryCasResult(applied, current)

    def remove(self, key: RegisterKey) -> None:
        """Whatever it holds."""
        self.removals[key] += self.values.pop(key, None) is not None

    async def scan(self, table: str, partition_key: bytes, after: bytes, prefix: bytes, limit: int) -> MemoryScanPage:
        self.scans += 1
        await self.before_scan(self.scans)
        entries = sorted(
            (key.sort, value)
            for key, value in self.values.items()
            if key.table == table
            and key.partition == partition_key
            and key.sort.startswith(prefix)
            and key.sort > after
        )
        page = entries[:limit]
        return MemoryScanPage(page, page[-1][0] if len(entries) > limit else None)


class MemoryChunks:
    """Content-addressed, with references; a chunk is gone at once when its last reference is dropped."""

    def __init__(self) -> None:
        self.payloads: dict[bytes, bytes] = {}
        self.references: dict[bytes, set[bytes]] = {}
        self.puts = 0
        self.reads = 0
        self.drops = 0
        self.in_flight = 0
        self.most_in_flight = 0
        self.before_put: Hook = nothing
        self.before_read: Hook = nothing
        self.before_drop: Hook = nothing

    async def put(self, payload: Buffer, *, referrer: bytes, replicas: int) -> bytes:
        assert len(referrer) == 16
        self.puts += 1
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            await self.before_put(self.puts)
            data = bytes(payload)
            chunk = blake3(data).digest()
            self.payloads[chunk] = data
            self.references.setdefault(chunk, set()).add(referrer)
            return chunk
        finally:
            self.in_flight -= 1

    async def read(self, chunk: bytes, offset: int, length: int, *, replicas: int) -> Buffer:
        self.reads += 1
        await self.before_read(self.reads)
        payload = self.payloads.get(chunk)
        if payload is None:
            raise NotFound("There is no such chunk.")
        assert offset >= 0
        assert length > 0
        assert offset + length <= len(payload)
        return payload[offset : offset + length]

    async def drop_reference(self, chunk: bytes, referrer: bytes, replicas: int) -> None:
        self.drops += 1
        await self.before_drop(self.drops)
        held = self.references.get(chunk)
        if held is not None:
            held.discard(referrer)
            if not held:
                del self.references[chunk]
                del self.payloads[chunk]

    def all_references(self) -> set[tuple[bytes, bytes]]:
        return {(chunk, referrer) for chunk, held in self.references.items() for referrer in held}


class MemoryReferences:
    """The references of one node; here there is one store for all."""

    def __init__(self, chunks: MemoryChunks) -> None:
        self.chunks = chunks
        self.lists = 0
        self.drops = 0
        self.before_list: Hook = nothing
        self.before_drop: Hook = nothing

    async def list_references(self, after: tuple[bytes, bytes] | None, limit: int) -> list[tuple[bytes, bytes]]:
        self.lists += 1
        await self.before_list(self.lists)
        every = sorted((referrer, chunk) for chunk, referrer in self.chunks.all_references())
        return [reference for reference in every if after is None or reference > after][:limit]

    async def drop_reference(self, chunk: bytes, referrer: bytes) -> bool:
        self.drops += 1
        await self.before_drop(self.drops)
        held = referrer in self.chunks.references.get(chunk, ())
        await self.chunks.drop_reference(chunk, referrer, 1)
        return held


class ManualClock:
    """Stands still until it is told to go on."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def wall(self) -> float:
        return self.now + 1e9

    async def sleep(self, seconds: float) -> None:
        until = self.now + seconds
        while self.now < until:  # noqa: ASYNC110 - the test moves the time by hand
            await asyncio.sleep(0.001)


@dataclass(slots=True)
class MemoryCluster:
    """One store, and as many gateways on it as a test wants."""

    seed: int = 1
    settings: VolumeSettings = field(default_factory=VolumeSettings)
    nodes: int = 5
    registers: MemoryRegisters = field(default_factory=MemoryRegisters)
    chunks: MemoryChunks = field(default_factory=MemoryChunks)
    clock: ManualClock = field(default_factory=ManualClock)

    def gateway(self, number: int = 0, references: MemoryReferences | None = None) -> VolumeService:
        return VolumeService(
            self.registers,
            self.chunks,
            self.clock,
            random.Random(self.seed * 1000 + number),
            node_count=lambda: self.nodes,
            settings=self.settings,
            references=references,
        )

    def scatter(self, seed: int, most: int = 6) -> None:
        """Let every call wait a random few turns of the loop, so that tasks interleave differently for each seed."""
        rng = random.Random(seed)

        async def wait(_: int) -> None:
            for _turn in range(rng.randrange(most)):
                await asyncio.sleep(0)

        self.registers.before_read = self.registers.before_scan = wait
        self.registers.before_swing = self.registers.after_swing = wait
        self.chunks.before_put = self.chunks.before_read = self.chunks.before_drop = wait


async def body_of(*blocks: bytes) -> AsyncIterator[bytes]:
    for block in blocks:
        yield block


async def blocks_of(blocks: Iterable[bytes]) -> AsyncIterator[bytes]:
    for block in blocks:
        yield block


async def content(service: VolumeService, name: str) -> bytes:
    opened = await service.open(name)
    return b"".join([bytes(part) async for part in opened.read(0, opened.volume.size)])


async def put(service: VolumeService, name: str, data: bytes, **shape: int) -> None:
    await service.replace(name, body_of(data), len(data), chunk_size=shape.get("chunk_size", 4096), replicas=3)


async def until(condition: Callable[[], bool]) -> None:
    """Let the other tasks run until it holds."""
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - what is waited for is any state of the cluster, not one event
            await asyncio.sleep(0)
