"""A body on its way into chunks: cut into pieces, stored a few at a time, entered into a map.

Pieces end at multiples of the chunk size, so that a piece lies in one cell. A piece of zeroes is a hole: nothing is stored. At most
`write_window` pieces of one request are in memory, the one being filled included, and all requests share a `WriteBudget`.
The bytes are copied once, into the piece, and not at all when a block of the body is a whole piece.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from cluster.errors import Invalid
from cluster.volumes.extent import Extent
from cluster.volumes.first_error import first_error
from cluster.volumes.map_builder import MapBuilder
from cluster.volumes.ports import Buffer, Chunks
from cluster.volumes.reference import data_referrer
from cluster.volumes.write_budget import Reservation, WriteBudget

WRITE_WINDOW = 4
"""Pieces of one request in memory: enough to keep disks and network busy while the next is received; 16 MiB at most."""


@dataclass(frozen=True, slots=True)
class Piece:
    offset: int
    payload: Buffer


class BodyWriter:
    """Stores one body in the name of the write ``write``; ``builder`` collects its extents."""

    def __init__(
        self,
        chunks: Chunks,
        budget: WriteBudget,
        builder: MapBuilder,
        *,
        write: bytes,
        chunk_size: int,
        replicas: int,
        window: int = WRITE_WINDOW,
    ) -> None:
        self._chunks = chunks
        self._budget = budget
        self._builder = builder
        self._write = write
        self._chunk_size = chunk_size
        self._replicas = replicas
        self._window = window

    async def store(self, body: AsyncIterator[bytes], start: int, length: int | None, limit: int) -> int:
        """Store the whole body at address ``start``; returns its length in bytes.

        Raises Invalid when the body is shorter or longer than ``length``, or longer than ``limit``, Busy when it comes too slowly for a
        busy gateway; what Chunks.put raises; and what the body raises. Everything it began has ended when it returns or raises."""
        pieces = Pieces(body, start, length, limit, self._chunk_size, self._budget)
        try:
            if length is not None and 0 < length <= self._chunk_size - start % self._chunk_size:
                piece = await pieces.next()
                assert piece is not None
                await self._enter(await self._put(piece))
            else:
                await self._store_many(pieces)
        except BaseExceptionGroup as group:
            raise first_error(group) from None
        finally:
            pieces.close()
        await pieces.expect_end()
        return pieces.received

    async def _store_many(self, pieces: Pieces) -> None:
        in_flight: deque[asyncio.Task[Extent | None]] = deque()
        async with asyncio.TaskGroup() as group:
            while True:
                while len(in_flight) >= self._window:
                    await self._enter(await in_flight.popleft())
                piece = await pieces.next()
                for task in in_flight:
                    if task.done():
                        task.result()  # raises what failed meanwhile: nothing more may be started in the group then
                if piece is None:
                    break
                task = group.create_task(self._put(piece))
                task.add_done_callback(pieces.handed_over())
                in_flight.append(task)
                del piece, task  # the piece's memory is its task's, which frees it when it is stored
            while in_flight:
                await self._enter(await in_flight.popleft())

    async def _put(self, piece: Piece) -> Extent | None:
        """The piece as an extent of its chunk; None when it is a hole."""
        payload = piece.payload
        if is_zero(payload):
            return None
        referrer = data_referrer(self._write, piece.offset // self._chunk_size)
        chunk = await self._chunks.put(payload, referrer=referrer, replicas=self._replicas)
        return Extent(piece.offset, len(payload), chunk, 0, self._write)

    async def _enter(self, extent: Extent | None) -> None:
        if extent is not None:
            await self._builder.add(extent)


class Pieces:
    """Cuts a body. ``next`` until it gives None. The bytes of the budget that a piece holds are given back by `close`, unless they were
    handed over to whoever keeps the piece for longer, before the next one is asked for."""

    def __init__(
        self,
        body: AsyncIterator[bytes],
        start: int,
        length: int | None,
        limit: int,
        chunk_size: int,
        budget: WriteBudget,
    ) -> None:
        self.received = 0
        self._body = body
        self._start = start
        self._length = length
        self._limit = limit
        self._chunk_size = chunk_size
        self._budget = budget
        self._block: memoryview = memoryview(b"")
        self._ended = False
        self._reserved: Reservation | None = None

    async def next(self) -> Piece | None:
        at = self._start + self.received
        target = self._chunk_size - at % self._chunk_size
        if self._length is not None:
            target = min(target, self._length - self.received)
        if target == 0 or not await self._fill_block():
            self._check_whole()
            return None
        assert self._reserved is None
        self._reserved = await self._budget.reserve(target)
        payload = await self._collect(target, self._reserved)
        self.received += len(payload)
        if self._length is None and self.received > self._limit:
            raise too_long(self._limit)
        return Piece(at, payload)

    def handed_over(self) -> Callable[[object], None]:
        """What gives back the budget of the newest piece; from now on the caller sees to it that it is called, once."""
        reserved, self._reserved = self._reserved, None
        assert reserved is not None
        return lambda _: reserved.give()

    async def expect_end(self) -> None:
        """Raises Invalid when the body is shorter than announced, or goes on."""
        self._check_whole()
        if await self._fill_block():
            raise too_long(self.received)

    def close(self) -> None:
        """Give back what was not handed over."""
        if self._reserved is not None:
            self._reserved.give()
            self._reserved = None

    def _check_whole(self) -> None:
        if self._length is not None and self.received < self._length:
            raise Invalid(
                f"The body ended after {self.received} of the {self._length} bytes that were announced; nothing was changed.",
                received=self.received,
                announced=self._length,
            )

    async def _collect(self, target: int, reserved: Reservation) -> Buffer:
        if len(self._block) >= target:
            payload, self._block = self._block[:target], self._block[target:]
            return payload
        piece = memoryview(bytearray(target))  # assigning to a bytearray's slice would copy twice
        filled = 0
        async with reserved.filling():
            while filled < target and await self._fill_block():
                part = self._block[: target - filled]
                piece[filled : filled + len(part)] = part
                filled += len(part)
                self._block = self._block[len(part) :]
        return piece[:filled]

    async def _fill_block(self) -> bool:
        """Whether there is a byte to take, received first if need be."""
        while not self._block and not self._ended:
            try:
                self._block = memoryview(await anext(self._body))
            except StopAsyncIteration:
                self._ended = True
        return bool(self._block)


def is_zero(payload: Buffer) -> bool:
    size = len(payload)
    if payload[0] or payload[-1] or payload[size // 2]:
        return False
    return bytearray(size) == payload  # compared as memory; a fresh bytearray is zeroes


def too_long(length: int) -> Invalid:
    return Invalid(
        f"The body goes on after {length} bytes, more than was announced or fits; nothing was changed.", limit=length
    )
