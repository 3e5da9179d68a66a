"""Reading a log file from some offset to its end: its whole records in order, and the gaps between them.

A gap is a run of bytes that is no whole record of this file; it always ends where a whole record begins, or at the end of the file. What
a gap means (a torn tail, damage) is for recovery to judge. Headers are always checked; payloads only from `verify_from` on,
since what is older was synced before something later was written, and damage to it is found by reads.
Sectors that the disk has lost count as zeroes; any other failure to read is raised (OSError), since records that are only passed over
would be taken for damaged. Memory: one window. Nothing is changed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from node.storage.chunk_record import (
    ALIGNMENT,
    HEADER_BYTES,
    RECORD_LIMIT,
    RECORD_MAGIC,
    WITH_PAYLOAD,
    Record,
    blocks_match,
    has_salt,
    header_span,
    parse_header,
    payload_start,
    record_size,
)
from node.storage.disk import Disk
from node.storage.disk_errors import is_of_medium

WINDOW = 256 * 1024
"""Bytes read at once while records are small, or while searching."""

PEEK = 2048
"""Bytes read at once while records are large: a header with the table of a chunk of 4 MiB."""

SECTOR = 4096


@dataclass(frozen=True, slots=True)
class Gap:
    """Bytes that are no record."""

    offset: int
    length: int


class LogScan:
    """One pass over a file of `size` bytes."""

    def __init__(
        self, disk: Disk, descriptor: int, size: int, salt: int | None, *, start: int, verify_from: int
    ) -> None:
        self._disk = disk
        self._descriptor = descriptor
        self._size = size
        self._start = start
        self._verify_from = verify_from
        self.salt = salt
        """The file's salt; if its header is damaged, that of the first record found."""
        self.unreadable = 0
        """Bytes that the disk could not read."""
        self._window = b""
        self._window_start = 0

    def entries(self) -> Iterator[tuple[int, Record] | Gap]:
        """(offset, record) and gaps, in order, from the start to the end without a hole."""
        offset = self._start
        reach = WINDOW
        while offset < self._size:
            record = self._record(offset, reach)
            if record is None:
                following = self._search(offset + ALIGNMENT)
                yield Gap(offset, following - offset)
                offset = following
                continue
            self.salt = record.salt
            yield offset, record
            size = record_size(record)
            reach = PEEK if size > WINDOW else WINDOW
            offset += size

    def _record(self, offset: int, reach: int) -> Record | None:
        """The whole record at `offset`."""
        window, start = self._bytes(offset, HEADER_BYTES, reach)
        span = header_span(window, start)
        if not span or offset + span > self._size:
            return None
        if span > len(window) - start and not has_salt(window, start, self.salt):
            return None  # bytes that only look like a record may claim megabytes of references, one after the other
        window, start = self._bytes(offset, span, reach)
        record = parse_header(window, start, offset, self.salt)
        if record is None or offset + record_size(record) > self._size:
            return None
        if record.kind in WITH_PAYLOAD and offset + record_size(record) > self._verify_from:
            payload = self._read(offset + payload_start(record.length, record.references), record.length)
            if not blocks_match(payload, record.table, 0):
                return None
        return record

    def _search(self, offset: int) -> int:
        """Where the next whole record begins, or the file's size."""
        while offset < self._size:
            window, start = self._bytes(offset, len(RECORD_MAGIC), WINDOW)
            found = window.find(RECORD_MAGIC, start)
            if found < 0:
                offset = max(self._window_start + len(window) - len(RECORD_MAGIC) + 1, offset + 1)
                continue
            candidate = self._window_start + found
            if candidate % ALIGNMENT == 0 and self._record(candidate, WINDOW) is not None:
                return candidate
            offset = candidate + 1
        return self._size

    def _bytes(self, offset: int, length: int, reach: int) -> tuple[bytes, int]:
        """A buffer and where in it the bytes from `offset` are: at least `length` of them, or all up to the end."""
        end = min(offset + length, self._size)
        if not self._window_start <= offset or end > self._window_start + len(self._window):
            self._window = self._read(offset, max(length, reach))
            self._window_start = offset
        return self._window, offset - self._window_start

    def _read(self, offset: int, length: int) -> bytes:
        length = min(length, self._size - offset)
        try:
            data = self._disk.pread(self._descriptor, length, offset)
        except OSError as error:
            if not is_of_medium(error):
                raise
            data = b"".join(
                self._sector(position, offset + length) for position in range(offset, offset + length, SECTOR)
            )
        return data + bytes(length - len(data))

    def _sector(self, offset: int, end: int) -> bytes:
        length = min(SECTOR, end - offset)
        try:
            return self._disk.pread(self._descriptor, length, offset)
        except OSError as error:
            if not is_of_medium(error):
                raise
            self.unreadable += length
            return bytes(length)


assert RECORD_LIMIT < 2**32  # offsets and lengths in a record are 32 bits
