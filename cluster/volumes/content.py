"""Reading a pinned version of a volume: a lazy, bounded stream for large ranges and a short path for small ones.

An `OpenVolume` holds one root. Roots and chunks never change, so what it reads is that version, whatever is written meanwhile; it needs no
closing. A version that was replaced stays readable for the retention of retired roots (`reclaim`), and fails with NotFound after that,
never with other bytes.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections import deque
from collections.abc import AsyncGenerator

from cluster.errors import Invalid
from cluster.volumes.byte_budget import ByteBudget
from cluster.volumes.extent import Extent, offset_of
from cluster.volumes.names import MAX_CHUNK_BYTES
from cluster.volumes.page import Interior, Leaf, Node
from cluster.volumes.page_store import PageStore
from cluster.volumes.ports import Buffer, Chunks
from cluster.volumes.volume import Volume
from cluster.volumes.volume_map import child_span_of, extents_between

READ_PIECE_BYTES = 1 << 20
"""The most that is read and yielded at once: large enough that a piece's fixed cost is small beside its transfer (about 1 ms), small enough
that a slow client holds little."""

READ_AHEAD = 4
"""Pieces of one stream in memory, the one being consumed included: covers a round trip and a disk read at full speed."""

SMALL_READ_BYTES = READ_PIECE_BYTES
"""`read_small` answers up to so much in one buffer."""

ZEROES = bytes(MAX_CHUNK_BYTES)
"""What holes read as; shared by all readers."""


class OpenVolume:
    """One version of a volume. Cheap to keep, shared by all who read that version."""

    __slots__ = ("_budget", "_chunks", "_pages", "_root", "_span", "volume")

    def __init__(
        self, volume: Volume, root: Node | None, span: int, chunks: Chunks, pages: PageStore, budget: ByteBudget
    ) -> None:
        self.volume = volume
        self._root = root
        self._span = span
        self._chunks = chunks
        self._pages = pages
        self._budget = budget

    async def read_small(self, start: int, stop: int) -> Buffer:
        """The bytes [start, stop), at most SMALL_READ_BYTES, at once.

        Raises Invalid (outside of the volume, too many), NotFound, Corrupt, QuorumUnavailable."""
        length = stop - start
        if not 0 <= start <= stop <= self.volume.size or length > SMALL_READ_BYTES:
            raise self._wrong_range(start, stop)
        if not length:
            return b""
        node, at, span = self._root, 0, self._span
        while node is not None and not isinstance(node, Leaf):
            if isinstance(node, Interior):
                span = child_span_of(span)
                index = (start - at) // span
                at += index * span
                node = node.children.get(index)
            else:
                node = await self._pages.load(node, at, span)
        if isinstance(node, Leaf):
            extents = node.extents
            index = bisect_right(extents, start, key=offset_of) - 1
            if index >= 0:
                offset, size, chunk, chunk_offset, _ = extents[index]
                if stop <= offset + size:
                    skip = start - offset
                    return await self._chunks.read(chunk, chunk_offset + skip, length, replicas=self.volume.replicas)
        parts = [part async for part in self.read(start, stop)]
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def read(self, start: int, stop: int) -> AsyncGenerator[Buffer, None]:
        """The bytes [start, stop) in buffers of at most READ_PIECE_BYTES. Leave it early only by closing it (`contextlib.aclosing`).

        Raises Invalid (outside of the volume), NotFound, Corrupt, QuorumUnavailable; then what was yielded is the beginning of it."""
        if not 0 <= start <= stop <= self.volume.size:
            raise self._wrong_range(start, stop)
        pieces = self._pieces(start, stop)
        ahead: deque[Ahead] = deque()
        following = await anext(pieces, None)
        try:
            while following is not None or ahead:
                while following is not None and len(ahead) < READ_AHEAD:
                    # The first piece is everybody's due; what is read ahead must fit what all requests may hold.
                    reserved = following.length if ahead else 0
                    if reserved and not self._budget.take_now(reserved):
                        break
                    ahead.append(Ahead(following, reserved, self._begin(following)))
                    following = await anext(pieces, None)
                first = ahead[0]
                data = first.piece.zeroes() if first.task is None else await first.task
                yield data
                del data
                ahead.popleft()
                self._budget.give(first.reserved)
        finally:
            await self._abandon(ahead)
            await pieces.aclose()

    def _begin(self, piece: Piece) -> asyncio.Task[Buffer] | None:
        """Read it, in a task that `read` awaits; None for a hole."""
        return None if piece.chunk is None else asyncio.create_task(self._fetch(piece, piece.chunk))

    async def _fetch(self, piece: Piece, chunk: bytes) -> Buffer:
        return await self._chunks.read(chunk, piece.chunk_offset, piece.length, replicas=self.volume.replicas)

    async def _abandon(self, ahead: deque[Ahead]) -> None:
        for entry in ahead:
            self._budget.give(entry.reserved)
        tasks = [entry.task for entry in ahead if entry.task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.gather(*tasks, return_exceptions=True)

    def extents(self, start: int, stop: int) -> AsyncGenerator[Extent, None]:
        """What of [start, stop) lies in chunks, ascending. Raises NotFound, Corrupt, QuorumUnavailable."""
        return extents_between(self._root, 0, self._span, start, stop, self._pages)

    async def _pieces(self, start: int, stop: int) -> AsyncGenerator[Piece, None]:
        """What [start, stop) is made of, holes included, each part at most READ_PIECE_BYTES."""
        at = start
        async for extent in self.extents(start, stop):
            for hole in range(at, extent.offset, READ_PIECE_BYTES):
                yield Piece(min(READ_PIECE_BYTES, extent.offset - hole), None, 0)
            for skip in range(0, extent.length, READ_PIECE_BYTES):
                yield Piece(min(READ_PIECE_BYTES, extent.length - skip), extent.chunk, extent.chunk_offset + skip)
            at = extent.stop
        for hole in range(at, stop, READ_PIECE_BYTES):
            yield Piece(min(READ_PIECE_BYTES, stop - hole), None, 0)

    def _wrong_range(self, start: int, stop: int) -> Invalid:
        return Invalid(
            f"The range {start}-{stop} is outside the volume's {self.volume.size} bytes, or more than can be read at once.",
            field="range",
            size=self.volume.size,
        )


class Piece:
    """``length`` bytes of the stream: of ``chunk`` from ``chunk_offset``, or a hole."""

    __slots__ = ("chunk", "chunk_offset", "length")

    def __init__(self, length: int, chunk: bytes | None, chunk_offset: int) -> None:
        self.length = length
        self.chunk = chunk
        self.chunk_offset = chunk_offset

    def zeroes(self) -> Buffer:
        return memoryview(ZEROES)[: self.length]


class Ahead:
    """A piece that is being read, and what it holds of the budget."""

    __slots__ = ("piece", "reserved", "task")

    def __init__(self, piece: Piece, reserved: int, task: asyncio.Task[Buffer] | None) -> None:
        self.piece = piece
        self.reserved = reserved
        self.task = task
