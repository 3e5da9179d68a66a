"""Reading chunks from the log, every byte checked before it is handed out. Blocks: for the readers' lane; `cached` for the loop.

A place is read twice before it is called damaged, so that a fault on the way from the disk does not cost a good copy. An error that says
nothing about what the disk holds (too many open files, no memory, no permission) is no damage but `Busy`: try again, or elsewhere.
"""

from __future__ import annotations

from collections import OrderedDict
from contextlib import suppress
from typing import NamedTuple

from cluster.errors import Busy
from node.storage.chunk_log import LogFiles
from node.storage.chunk_record import (
    BLOCK,
    HEADER_BYTES,
    WITH_PAYLOAD,
    blocks_match,
    header_span,
    parse_header,
    payload_start,
    put_size,
)
from node.storage.chunk_state import ChunkState
from node.storage.disk_errors import is_of_medium

POSITION_CACHE_BYTES = 16 * 1024 * 1024
"""Memory for known positions: some 60 000 small chunks, or 13 000 of 4 MiB."""

POSITION_BYTES = 272
"""What a position costs beside its table, roughly."""

CACHED_READ_LIMIT = 256 * 1024
"""Longest read that is done on the event loop: some 50 us of copying and checking."""


class Damaged(Exception):
    """What stands in the log is not the chunk. `reason` says how that was seen."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Position(NamedTuple):
    """Where a chunk's payload is, and the checksums of its blocks."""

    file: int
    start: int
    length: int
    table: bytes


class PositionCache:
    """The positions used last, bounded in bytes. One thread."""

    def __init__(self, limit: int = POSITION_CACHE_BYTES) -> None:
        self._limit = limit
        self._held: OrderedDict[bytes, Position] = OrderedDict()
        self._bytes = 0

    def get(self, chunk: bytes) -> Position | None:
        position = self._held.get(chunk)
        if position is not None:
            self._held.move_to_end(chunk)
        return position

    def add(self, chunk: bytes, position: Position) -> None:
        self.discard(chunk)
        self._held[chunk] = position
        self._bytes += POSITION_BYTES + len(position.table)
        while self._bytes > self._limit:
            _, oldest = self._held.popitem(last=False)
            self._bytes -= POSITION_BYTES + len(oldest.table)

    def discard(self, chunk: bytes) -> None:
        position = self._held.pop(chunk, None)
        if position is not None:
            self._bytes -= POSITION_BYTES + len(position.table)

    def __len__(self) -> int:
        return len(self._held)


class ChunkReading:
    """Reads through the shared descriptors. What raises Damaged may raise Busy too: then nothing is known of the copy."""

    def __init__(self, files: LogFiles) -> None:
        self._files = files
        self._disk = files.disk

    def locate(self, chunk: bytes, state: ChunkState) -> Position:
        """The position of a chunk, from its record's header. Raises Damaged."""
        checksums_end = payload_start(state.length)
        for attempt in (1, 2):
            try:
                header = self._pread(state.file, checksums_end, state.offset)
                span = header_span(header, 0)
                if span > checksums_end:  # a MOVE has its references between checksums and payload
                    header = self._pread(state.file, span, state.offset)
            except OSError as error:
                if attempt == 2:
                    raise Damaged(f"the disk can't read it: {error}") from error
                continue
            record = parse_header(header, 0, state.offset, None)
            if (
                record is not None
                and record.kind in WITH_PAYLOAD
                and record.chunk == chunk
                and record.length == state.length
            ):
                table = record.table[: checksums_end - HEADER_BYTES]
                return Position(state.file, state.offset + span, record.length, table)
        raise Damaged("the record's header does not match its checksum")

    def read(self, position: Position, offset: int, length: int) -> bytes:
        """Checked bytes of a payload; the range lies inside it. Raises Damaged."""
        if not length:
            return b""
        first = offset // BLOCK
        start = first * BLOCK
        end = min(-(-(offset + length) // BLOCK) * BLOCK, position.length)
        for attempt in (1, 2):
            try:
                data = self._pread(position.file, end - start, position.start + start)
            except OSError as error:
                if attempt == 2:
                    raise Damaged(f"the disk can't read it: {error}") from error
                continue
            if len(data) == end - start and blocks_match(data, position.table, first):
                return data if len(data) == length else data[offset - start : offset - start + length]
        raise Damaged("the payload does not match its checksums")

    def cached(self, position: Position, offset: int, length: int) -> bytes | None:
        """As `read`, from memory alone; None when that can't be had, or when anything is wrong with it."""
        if length > CACHED_READ_LIMIT:
            return None
        if not length:
            return b""
        descriptor = self._files.pin_open(position.file)
        if descriptor is None:
            return None
        first = offset // BLOCK
        start = first * BLOCK
        size = min(-(-(offset + length) // BLOCK) * BLOCK, position.length) - start
        buffer = bytearray(size)
        try:
            got = self._disk.preadv_nowait(descriptor, buffer, position.start + start)
        finally:
            self._files.unpin(position.file)
        if got != size or not blocks_match(buffer, position.table, first):
            return None
        if size == length:
            return bytes(buffer)
        return bytes(memoryview(buffer)[offset - start : offset - start + length])

    def verify(self, chunk: bytes, state: ChunkState) -> Position:
        """Check all of a chunk's bytes. Raises Damaged."""
        position = self.locate(chunk, state)
        self.read(position, 0, position.length)
        return position

    def verify_on_disk(self, chunk: bytes, state: ChunkState) -> None:
        """As `verify`, but of what the disk holds, not of what memory remembers of it; and leaves none of it in memory. Raises Damaged."""
        try:
            self._drop_cached(state)
            self.verify(chunk, state)
        except Damaged:  # its second look was at the same bytes in memory
            self._drop_cached(state)
            self.verify(chunk, state)
        self._drop_cached(state)

    def _drop_cached(self, state: ChunkState) -> None:
        with suppress(OSError):  # the read that follows finds out
            descriptor = self._pin(state.file)
            try:
                self._disk.drop_cached(descriptor, put_size(state.length), state.offset)
            finally:
                self._files.unpin(state.file)

    def _pread(self, file: int, length: int, offset: int) -> bytes:
        """Raises OSError when the disk has lost the bytes, Busy for any other failure."""
        descriptor = self._pin(file)
        try:
            return self._disk.pread(descriptor, length, offset)
        except OSError as error:
            if is_of_medium(error):
                raise
            raise _cannot_look(error) from error
        finally:
            self._files.unpin(file)

    def _pin(self, file: int) -> int:
        """Raises as `_pread`. A file that is gone is lost, or was emptied meanwhile, which whoever is told of damage finds out."""
        try:
            return self._files.pin(file)
        except FileNotFoundError as error:
            try:
                missing = self._files.is_missing(file)
            except OSError as trouble:
                raise _cannot_look(trouble) from error
            if missing:
                raise
            raise _cannot_look(error) from error
        except OSError as error:
            if is_of_medium(error):
                raise
            raise _cannot_look(error) from error


def _cannot_look(error: OSError) -> Busy:
    return Busy(f"a stored chunk can't be read now: {error}", retry_after_s=1)
