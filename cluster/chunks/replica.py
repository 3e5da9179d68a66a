"""A node's answers in the chunk protocol: what it does with its chunk store for its peers.

A write is taken only under the installed epoch. A listing (for a new replica that copies) first waits for the writes of earlier
epochs that are still on their way to the disk, so that it shows everything that was, or will be, acknowledged under them. Owns only
that count.
"""

from __future__ import annotations

import asyncio
from collections import Counter

import crc32c

from cluster.chunks.listing import REFERENCES_LIMIT, fitted
from cluster.chunks.messages import (
    ChunkBytes,
    ChunkPage,
    Dropped,
    DropReference,
    FilledPartitions,
    GetReferences,
    Held,
    HoldChunks,
    ListChunks,
    ListedChunk,
    ListedReference,
    ListedReferences,
    ListFilled,
    PutChunk,
    ReadChunk,
    ReadSmall,
)
from cluster.chunks.store import ChunkStore, Reference
from cluster.chunks.view import ChunkView
from cluster.errors import Corrupt, StaleLayout
from cluster.merkle.bits import bit_set
from cluster.rpc.message import Buffer, Done
from cluster.rpc.service import Answer, Handlers, IncomingCall

LIST_LIMIT = 2000
"""Chunks in one page of a listing: some 200 KiB."""


class ChunkReplica:
    def __init__(self, me: str, store: ChunkStore, view: ChunkView) -> None:
        self._me = me
        self._store = store
        self._view = view
        self.served = 0
        """Users' reads and writes answered here."""
        self._writing: Counter[int] = Counter()
        self._written = asyncio.Event()

    def register(self, handlers: Handlers) -> None:
        handlers.register(PutChunk, self.put)
        handlers.register(ReadChunk, self.read)
        handlers.register(ReadSmall, self.read_small)
        handlers.register(DropReference, self.drop_reference)
        handlers.register(ListChunks, self.list_chunks)
        handlers.register(ListFilled, self.list_filled)
        handlers.register(GetReferences, self.references)
        handlers.register(HoldChunks, self.hold_chunks)

    async def put(self, request: PutChunk, call: IncomingCall) -> Done:
        if call.peer != self._me and crc32c.crc32c(call.payload) != request.crc:
            raise Corrupt("the chunk was changed on its way to this node; send it again")
        epoch = call.layout_version
        if not self._view.check(epoch):
            await self._view.agree(epoch, call.peer)
        self.served += not request.repair
        self._writing[epoch] += 1
        try:
            reference = Reference(request.referrer, request.replicas)
            await self._store.put(request.chunk, call.payload, reference, repair=request.repair)
        finally:
            self._writing[epoch] -= 1
            if not self._writing[epoch]:
                del self._writing[epoch]
                self._written.set()
        return Done()

    async def read(self, request: ReadChunk, call: IncomingCall) -> tuple[ChunkBytes, Buffer]:
        self.served += not request.repair
        data = await self._store.read(request.chunk, request.offset, request.length)
        return ChunkBytes(0 if call.peer == self._me else crc32c.crc32c(data)), data

    def read_small(self, request: ReadSmall, call: IncomingCall) -> Answer[ChunkBytes]:
        data = self._store.read_cached(request.chunk, request.offset, request.length)
        if data is None:
            return self.read(ReadChunk(request.chunk, request.offset, request.length), call)
        self.served += 1
        return ChunkBytes(0 if call.peer == self._me else crc32c.crc32c(data)), data

    async def drop_reference(self, request: DropReference, call: IncomingCall) -> Dropped:
        return Dropped(await self._store.drop_reference(request.chunk, request.referrer))

    async def list_chunks(self, request: ListChunks, call: IncomingCall) -> ChunkPage:
        epoch = await self._all_written(call)
        limit = min(max(1, request.limit), LIST_LIMIT)
        entries = await self._store.list_partition(
            request.partition, self._view.partition_bits, request.after or None, limit
        )
        if not self._view.check(epoch):
            raise StaleLayout("the layout changed while a partition was listed", version=self._view.epoch)
        return ChunkPage(fitted(map(ListedChunk.of, entries)), len(entries) == limit)

    async def list_filled(self, request: ListFilled, call: IncomingCall) -> FilledPartitions:
        epoch = await self._all_written(call)
        if not self._view.check(epoch):
            raise StaleLayout("the layout changed while partitions were listed", version=self._view.epoch)
        bits = self._view.partition_bits
        trees = self._store.trees().values()
        filled = [p for p in range(1 << bits) if any(tree.count(bits, p) for tree in trees)]
        return FilledPartitions(bit_set(filled, 1 << bits))

    async def _all_written(self, call: IncomingCall) -> int:
        """The epoch of a listing, once both sides are in it and the writes of earlier ones are on the disk or will never be."""
        epoch = call.layout_version
        if not self._view.check(epoch):
            await self._view.agree(epoch, call.peer)
        while any(earlier < epoch for earlier in self._writing):
            self._written.clear()
            await self._written.wait()
        return epoch

    async def references(self, request: GetReferences, call: IncomingCall) -> ListedReferences:
        (entry,) = await self._store.describe([request.chunk])
        held = () if entry is None else entry.references
        following = [reference for reference in held if reference.referrer > request.after]
        part = following[:REFERENCES_LIMIT]
        return ListedReferences(
            tuple(ListedReference(r.referrer, r.replicas) for r in part), len(part) < len(following)
        )

    async def hold_chunks(self, request: HoldChunks, call: IncomingCall) -> Held:
        held = await self._store.holds([listed.chunk for listed in request.chunks])
        for index, listed in enumerate(request.chunks):
            for reference in listed.references if held[index] else ():
                held[index] &= await self._store.add_reference(
                    listed.chunk, Reference(reference.referrer, reference.replicas)
                )
        return Held(tuple(held))
