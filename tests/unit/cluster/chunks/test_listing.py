"""Chunks with very many references are listed in messages that can travel, and completely."""

from __future__ import annotations

import asyncio
import random
from typing import Any

from cluster.chunks.listing import REFERENCES_LIMIT, fitted, whole
from cluster.chunks.messages import GetReferences, ListChunks, ListedChunk, ListedReference, ListFilled
from cluster.chunks.replica import ChunkReplica
from cluster.merkle.bits import set_bits
from cluster.rpc.caller import Reply
from cluster.rpc.codec import codec_of
from cluster.rpc.frame import pack_header
from cluster.rpc.limits import HEADER_LIMIT
from cluster.rpc.service import IncomingCall
from tests.support.simulated.memory_chunks import ChunkDisk, MemoryChunkStore


class View:
    epoch = 1
    partition_bits = 4

    def check(self, epoch: int) -> bool:
        return epoch == self.epoch


class Peer:
    """A caller of one replica, which checks that each answer fits a frame."""

    def __init__(self, disk: ChunkDisk) -> None:
        self.replica = ChunkReplica("n1", MemoryChunkStore(disk, random.Random(1)), View())  # type: ignore[arg-type]
        self.calls = 0

    async def call(self, peer: str, request: Any, payload: bytes = b"", *, deadline_s: float) -> Reply[Any]:
        call = IncomingCall("n2", 1, b"", 0.0)
        self.calls += 1
        reply: Any
        if isinstance(request, GetReferences):
            reply = await self.replica.references(request, call)
        elif isinstance(request, ListFilled):
            reply = await self.replica.list_filled(request, call)
        else:
            reply = await self.replica.list_chunks(request, call)
        assert len(pack_header(codec_of(type(reply)).pack(reply))) < HEADER_LIMIT
        return Reply(reply, b"")


def test_a_page_of_chunks_with_many_references_is_complete() -> None:
    """One used 60 000 times, as by a volume full of one pattern, among many used 200 times, as in copies of one image."""
    disk = ChunkDisk()
    for index in range(500):
        count = 60_000 if index == 250 else 200
        chunk = index.to_bytes(4) + bytes(28)
        for use in range(count):
            disk.refer(chunk, b"x", use.to_bytes(16), 3)

    async def main() -> None:
        peer = Peer(disk)
        page = (await peer.call("n1", ListChunks(0, b"", 500), deadline_s=1)).message
        assert len(page.chunks) == 500
        for listed in page.chunks:
            complete = await whole(peer, "n1", listed)  # type: ignore[arg-type]
            assert not complete.more
            assert [r.referrer for r in complete.references] == sorted(disk[listed.chunk][1])
        assert peer.calls > 1 + 60_000 // REFERENCES_LIMIT

    asyncio.run(main())


def test_just_the_partitions_with_references_are_filled() -> None:
    """Whatever the number of copies; a chunk that nothing refers to any more is nobody's to copy."""
    disk = ChunkDisk()
    store = MemoryChunkStore(disk, random.Random(1))
    store.has_grace = True

    async def filled() -> list[int]:
        peer = Peer(disk)
        return set_bits((await peer.call("n1", ListFilled(), deadline_s=1)).message.filled, 1 << View.partition_bits)

    async def main() -> None:
        assert await filled() == []
        for partition, copies in ((0, 3), (7, 1), (7, 5), (15, 2)):
            disk.refer(bytes([partition << 4, copies]) + bytes(30), b"x", bytes(16), copies)
        assert await filled() == [0, 7, 15]
        await store.drop_reference(bytes([15 << 4, 2]) + bytes(30), bytes(16))
        await store.drop_reference(bytes([7 << 4, 1]) + bytes(30), bytes(16))
        assert await filled() == [0, 7]

    asyncio.run(main())


def test_what_fits_is_left_alone() -> None:
    few = [ListedChunk(bytes(32), 1, (ListedReference(bytes(16), 3),)), ListedChunk(bytes(32), 1, ())]
    assert fitted(few) == tuple(few)
