"""A `ChunkStore` in memory: what a node's disk holds, and a store on it that is slow and may be let go of."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence

from cluster.chunks.store import ChunkEntry, ChunkStatistics, Reference
from cluster.errors import Invalid, NoSpace, NotFound
from cluster.layout.ring import chunk_partition
from cluster.rpc.message import Buffer

ChunkDisk = dict[bytes, tuple[bytes, dict[bytes, int]]]
"""Chunk id -> (bytes, referrer -> replicas)."""


class MemoryChunkStore:
    def __init__(self, disk: ChunkDisk, rng: random.Random, sync_s: float = 0.002) -> None:
        self.disk = disk
        self._rng = rng
        self._sync_s = sync_s
        self.puts = 0
        self.capacity: int | None = None
        """Payload bytes beyond which a put finds no space; None: no end."""
        self.reserve = 0
        """Part of the capacity that users' puts leave free; repairs may use half of it."""

    async def _sync(self) -> None:
        await asyncio.sleep(self._sync_s * (0.2 + self._rng.expovariate(1)))

    async def put(self, chunk: bytes, payload: Buffer, reference: Reference, *, repair: bool = False) -> None:
        data = bytes(payload)
        await self._sync()
        if self.capacity is not None and chunk not in self.disk:
            used = sum(len(held) for held, _ in self.disk.values())
            if used + len(data) > self.capacity - (self.reserve // 2 if repair else self.reserve):
                raise NoSpace("the disk is full: nothing was stored")
        self.disk.setdefault(chunk, (data, {}))[1][reference.referrer] = reference.replicas
        self.puts += 1

    async def add_reference(self, chunk: bytes, reference: Reference) -> bool:
        await self._sync()
        if chunk not in self.disk:
            return False
        self.disk[chunk][1][reference.referrer] = reference.replicas
        return True

    async def drop_reference(self, chunk: bytes, referrer: bytes) -> bool:
        await self._sync()
        references = self.disk.get(chunk, (b"", {}))[1]
        found = references.pop(referrer, None) is not None
        if chunk in self.disk and not references:
            del self.disk[chunk]
        return found

    def read_cached(self, chunk: bytes, offset: int, length: int) -> bytes | None:
        return None

    async def read(self, chunk: bytes, offset: int = 0, length: int | None = None) -> bytes:
        await asyncio.sleep(0.0002)
        if chunk not in self.disk:
            raise NotFound("no such chunk here")
        data = self.disk[chunk][0]
        stop = len(data) if length is None else offset + length
        if stop > len(data):
            raise Invalid("outside the chunk")
        return data[offset:stop]

    async def length(self, chunk: bytes) -> int:
        return len(await self.read(chunk))

    async def holds(self, chunks: Sequence[bytes]) -> list[bool]:
        return [chunk in self.disk for chunk in chunks]

    async def list_partition(self, partition: int, bits: int, after: bytes | None, limit: int) -> list[ChunkEntry]:
        await asyncio.sleep(0.0002)
        names = sorted(
            chunk
            for chunk in self.disk
            if chunk_partition(chunk, bits) == partition and (after is None or chunk > after)
        )
        return [self._entry(chunk) for chunk in names[:limit]]

    def _entry(self, chunk: bytes) -> ChunkEntry:
        data, references = self.disk[chunk]
        return ChunkEntry(chunk, len(data), tuple(Reference(r, n) for r, n in sorted(references.items())))

    async def list_referrer(self, referrer: bytes, after: bytes | None, limit: int) -> list[bytes]:
        names = sorted(c for c, (_, refs) in self.disk.items() if referrer in refs and (after is None or c > after))
        return names[:limit]

    async def drop_partition(self, partition: int, bits: int) -> int:
        gone = [chunk for chunk in self.disk if chunk_partition(chunk, bits) == partition]
        for chunk in gone:
            del self.disk[chunk]
        return len(gone)

    def statistics(self) -> ChunkStatistics:
        size = sum(len(data) for data, _ in self.disk.values())
        return ChunkStatistics(
            chunks=len(self.disk),
            live_bytes=size,
            log_bytes=size,
            log_files=1,
            free_bytes=1 << 40,
            reserve_bytes=0,
            quarantined=0,
            queued=0,
            pending=0,
            puts=self.puts,
            reads=0,
            cached_reads=0,
            syncs=0,
            bytes_written=size,
            bytes_read=0,
            failure=None,
        )
