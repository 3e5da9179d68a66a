"""A `ChunkStore` in memory: what a node's disk holds, and a store on it that is slow and may be let go of."""

from __future__ import annotations

import asyncio
import random
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from heapq import nsmallest

from cluster.chunks.store import ChunkEntry, ChunkStatistics, Reference
from cluster.errors import Invalid, NoSpace, NotFound
from cluster.layout.ring import chunk_partition
from cluster.merkle.digest_tree import DigestTree
from cluster.merkle.identity import CHUNK_LEAF_BITS, chunk_leaf, reference_digest
from cluster.rpc.message import Buffer


class ChunkDisk(dict[bytes, tuple[bytes, dict[bytes, int]]]):
    """Chunk id -> (bytes, referrer -> replicas). Knows the order of its ids, and what was touched, also by a test that takes chunks
    away."""

    def __init__(self) -> None:
        super().__init__()
        self.touched: set[bytes] = set()
        self._order: list[bytes] | None = None

    def __setitem__(self, chunk: bytes, content: tuple[bytes, dict[bytes, int]]) -> None:
        super().__setitem__(chunk, content)
        self._changed(chunk)

    def __delitem__(self, chunk: bytes) -> None:
        super().__delitem__(chunk)
        self._changed(chunk)

    def clear(self) -> None:
        for chunk in list(self):
            del self[chunk]

    def _changed(self, chunk: bytes) -> None:
        self.touched.add(chunk)
        self._order = None

    def refer(self, chunk: bytes, data: bytes, referrer: bytes, replicas: int) -> None:
        """Add a reference, and the chunk if it isn't there."""
        if chunk not in self:
            self[chunk] = (data, {})
        self[chunk][1][referrer] = replicas
        self.touched.add(chunk)

    def in_order(self) -> list[bytes]:
        if self._order is None:
            self._order = sorted(self)
        return self._order


class MemoryChunkStore:
    def __init__(self, disk: ChunkDisk, rng: random.Random, sync_s: float = 0.002) -> None:
        self.disk = disk
        self._rng = rng
        self.sync_s = sync_s
        self.puts = 0
        self._trees: dict[int, DigestTree] = {}
        self._counted: dict[bytes, dict[bytes, int]] = {}
        """Chunk -> its references as they are in the trees."""
        self._counts_all = False
        """Whether what was on the disk when this store began is counted."""
        self.capacity: int | None = None
        """Payload bytes beyond which a put finds no space; None: no end."""
        self.has_grace = False
        """Whether a chunk stays, and is listed, when its last reference has gone, as on a disk."""
        self.reserve = 0
        """Part of the capacity that users' puts leave free; repairs may use half of it."""

    async def _sync(self) -> None:
        await asyncio.sleep(self.sync_s * (0.2 + self._rng.expovariate(1)))

    async def put(self, chunk: bytes, payload: Buffer, reference: Reference, *, repair: bool = False) -> None:
        data = bytes(payload)
        await self._sync()
        if self.capacity is not None and chunk not in self.disk:
            used = sum(len(held) for held, _ in self.disk.values())
            if used + len(data) > self.capacity - (self.reserve // 2 if repair else self.reserve):
                raise NoSpace("the disk is full: nothing was stored")
        self.disk.refer(chunk, data, reference.referrer, reference.replicas)
        self.puts += 1

    async def add_reference(self, chunk: bytes, reference: Reference) -> bool:
        await self._sync()
        if chunk not in self.disk:
            return False
        self.disk.refer(chunk, b"", reference.referrer, reference.replicas)
        return True

    async def drop_reference(self, chunk: bytes, referrer: bytes) -> bool:
        await self._sync()
        references = self.disk.get(chunk, (b"", {}))[1]
        found = references.pop(referrer, None) is not None
        self.disk.touched.add(chunk)
        if chunk in self.disk and not references and not self.has_grace:
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
        names = self.disk.in_order()
        first = bisect_left(names, (partition << (32 - bits)).to_bytes(4))
        if after is not None:
            first = max(first, bisect_right(names, after))
        found: list[ChunkEntry] = []
        for chunk in names[first : first + limit]:
            if int.from_bytes(chunk[:4]) >> (32 - bits) != partition:
                break
            found.append(self._entry(chunk))
        return found

    def _entry(self, chunk: bytes) -> ChunkEntry:
        data, references = self.disk[chunk]
        return ChunkEntry(chunk, len(data), tuple(Reference(r, n) for r, n in sorted(references.items())))

    async def list_referrer(self, referrer: bytes, after: bytes | None, limit: int) -> list[bytes]:
        names = sorted(c for c, (_, refs) in self.disk.items() if referrer in refs and (after is None or c > after))
        return names[:limit]

    async def list_references(self, after: tuple[bytes, bytes] | None, limit: int) -> list[tuple[bytes, bytes]]:
        await asyncio.sleep(0.0002)
        pairs = ((referrer, chunk) for chunk, (_, references) in self.disk.items() for referrer in references)
        return nsmallest(limit, (pair for pair in pairs if after is None or pair > after))

    async def describe(self, chunks: Sequence[bytes]) -> list[ChunkEntry | None]:
        await asyncio.sleep(0.0002)
        return [self._entry(chunk) if chunk in self.disk else None for chunk in chunks]

    def trees(self) -> Mapping[int, DigestTree]:
        """The trees of what `disk` holds now, whoever changed it: what was touched since the last time is counted anew."""
        counted = self._counted
        touched, self.disk.touched = self.disk.touched, set()
        for chunk in touched if self._counts_all else counted.keys() | self.disk.keys():
            before, now = counted.pop(chunk, None), self.disk.get(chunk)
            if before is not None:
                self._count(chunk, before, -1)
            if now is not None:
                self._count(chunk, now[1], 1)
                counted[chunk] = dict(now[1])
        self._counts_all = True
        return self._trees

    def _count(self, chunk: bytes, references: dict[bytes, int], sign: int) -> None:
        if references:
            copies = max(references.values())
            if copies not in self._trees:
                self._trees = {**self._trees, copies: DigestTree(CHUNK_LEAF_BITS)}
            digest = sum(reference_digest(chunk, *reference) for reference in references.items())
            self._trees[copies].change(chunk_leaf(chunk), sign * digest, sign)

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
