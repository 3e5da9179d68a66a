"""The bytes of the chunk log: file headers and records. Pure: bytes in, values out. `docs/formats/chunk-log.md` is the page.

A record is a fixed header, a table of CRC32C (one per 16 KiB block of payload), the payload, and zeroes up to a multiple of 8. The
header's own CRC32C covers header and table and starts from the record's offset, and the header repeats its file's random salt. A
MOVE has the chunk's references behind the checksums in its table, so that payload and references stand or fall together.
Bytes that look like a record but were written elsewhere (a stored copy of some log, blocks of a deleted file) are never taken for
one of this file. Integers are little-endian.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from enum import IntEnum
from typing import NamedTuple

from crc32c import crc32c

from cluster.chunks.store import CHUNK_ID_BYTES, PAYLOAD_LIMIT, REFERRER_BYTES
from cluster.rpc.message import Buffer

FORMAT_VERSION = 1
BLOCK = 16 * 1024
"""Bytes of payload under one CRC: a 4 KiB read checks one or two blocks, and a 4 MiB chunk has a 1 KiB table."""

ALIGNMENT = 8
"""Records begin at multiples of this, which a search for the next record after damage makes use of."""

FILE_MAGIC = b"HFCHUNKS"
_FILE_HEADER = struct.Struct("<8sIIQQ28x")
_FILE_CRC = struct.Struct("<I")
FILE_HEADER_BYTES = 64

RECORD_MAGIC = b"\xf5HfR"
"""Not valid UTF-8 and not a likely machine word."""
_HEADER = struct.Struct(f"<BBBBIQQII{CHUNK_ID_BYTES}s{REFERRER_BYTES}s")
_PREFIX = struct.Struct("<4sI")
HEADER_BYTES = _PREFIX.size + _HEADER.size
_NO_REFERRER = bytes(REFERRER_BYTES)
_NO_CHUNK = bytes(CHUNK_ID_BYTES)
_REFERENCE = struct.Struct(f"<{REFERRER_BYTES}sB")

DAMAGED = 1
"""Flag of a DELETE: the chunk was found damaged and set aside (nobody asked for its deletion)."""

MOVE_REFERENCES_LIMIT = 1 << 18
"""References in one MOVE, some 4 MiB of them: a TiB of equal pieces of 4 MiB. A chunk with more is never moved by compaction."""


class Kind(IntEnum):
    """What a record says."""

    PUT = 1
    """The chunk's bytes, and a reference."""
    REFERENCE = 2
    UNREFERENCE = 3
    DELETE = 4
    """The chunk and all its references are gone."""
    FILLER = 5
    """Nothing: stands where a batch was torn. Its payload is whatever lay there, its table is empty."""
    MOVE = 6
    """The chunk's bytes and all its references: whatever was said of it before is void."""


WITH_PAYLOAD = frozenset({Kind.PUT, Kind.MOVE})


class Record(NamedTuple):
    """A record's header. `length` is of the payload, `table` the packed CRC32C of its blocks, `batch` the offset up to which
    the file was synced before the write that this record is part of, `stamp` the store's age in ms when it was written (of a record
    that compaction wrote about a chunk without references: when the last one went). `references`: how many a MOVE has in its table."""

    kind: int
    flags: int
    replicas: int
    length: int
    stamp: int
    salt: int
    batch: int
    chunk: bytes
    referrer: bytes
    table: bytes
    references: int = 0


def align(size: int) -> int:
    """`size` rounded up to the record alignment."""
    return (size + 7) & ~7


def payload_start(length: int, references: int = 0) -> int:
    """Distance of the payload from the start of its PUT record, or of its MOVE with so many references."""
    return HEADER_BYTES + 4 * ((length + BLOCK - 1) // BLOCK) + _REFERENCE.size * references


def put_size(length: int, references: int = 0) -> int:
    """Bytes in the log of a PUT with `length` bytes of payload, or of a MOVE with so many references."""
    return align(payload_start(length, references) + length)


RECORD_LIMIT = put_size(PAYLOAD_LIMIT, MOVE_REFERENCES_LIMIT)
"""Largest record, in bytes."""


def pack_references(references: Sequence[tuple[bytes, int]]) -> bytes:
    """(referrer, replicas) pairs as they stand in a MOVE's table, behind the checksums."""
    return b"".join([_REFERENCE.pack(referrer, replicas) for referrer, replicas in references])


def moved_references(record: Record) -> list[tuple[bytes, int]]:
    """The (referrer, replicas) pairs of a MOVE."""
    packed = memoryview(record.table)[len(record.table) - _REFERENCE.size * record.references :]
    return [(referrer, replicas) for referrer, replicas in _REFERENCE.iter_unpack(packed)]


def record_size(record: Record) -> int:
    """Bytes in the log of a record, padding included."""
    return align(HEADER_BYTES + len(record.table) + record.length)


def checksum_table(payload: Buffer) -> bytes:
    """The packed CRC32C of each block of `payload`."""
    size = len(payload)
    if size <= BLOCK:
        return _FILE_CRC.pack(crc32c(payload)) if size else b""
    view = memoryview(payload)
    sums = [crc32c(view[start : start + BLOCK]) for start in range(0, size, BLOCK)]
    return struct.pack(f"<{len(sums)}I", *sums)


def blocks_match(data: Buffer, table: bytes, first: int) -> bool:
    """Whether `data`, which begins with block number `first` of a payload, is what the table says. Ends with a block or the payload."""
    size = len(data)
    if size <= BLOCK:
        return not size or crc32c(data) == _FILE_CRC.unpack_from(table, 4 * first)[0]
    view = memoryview(data)
    sums = struct.unpack_from(f"<{(size + BLOCK - 1) // BLOCK}I", table, 4 * first)
    start = 0
    for expected in sums:
        if crc32c(view[start : start + BLOCK]) != expected:
            return False
        start += BLOCK
    return True


def pack_header(
    kind: int,
    offset: int,
    batch: int,
    salt: int,
    stamp: int,
    chunk: bytes = _NO_CHUNK,
    referrer: bytes = _NO_REFERRER,
    replicas: int = 0,
    flags: int = 0,
    length: int = 0,
    table: bytes = b"",
    references: int = 0,
) -> bytes:
    """Header and table of a record that will stand at `offset` of the file with this salt."""
    header = (FORMAT_VERSION, kind, flags, replicas, length, stamp, salt, batch, references, chunk, referrer)
    body = _HEADER.pack(*header) + table
    return _PREFIX.pack(RECORD_MAGIC, crc32c(body, offset)) + body


def parse_header(data: Buffer, start: int, offset: int, salt: int | None) -> Record | None:
    """The record whose header begins at `data[start]`, which is `offset` of its file; None unless it is whole and right.

    `salt` None accepts any (for a file whose own header is damaged).
    """
    if len(data) - start < HEADER_BYTES:
        return None
    magic, expected = _PREFIX.unpack_from(data, start)
    if magic != RECORD_MAGIC:
        return None
    version, kind, flags, replicas, length, stamp, own_salt, batch, references, chunk, referrer = _HEADER.unpack_from(
        data, start + _PREFIX.size
    )
    if version != FORMAT_VERSION or (salt is not None and own_salt != salt):
        return None
    span = header_span(data, start)
    end = start + span
    if not span or end > len(data):
        return None
    if crc32c(memoryview(data)[start + _PREFIX.size : end], offset) != expected:
        return None
    table = bytes(memoryview(data)[start + HEADER_BYTES : end])
    return Record(kind, flags, replicas, length, stamp, own_salt, batch, chunk, referrer, table, references)


def has_salt(data: Buffer, start: int, salt: int | None) -> bool:
    """Whether the record that seems to begin at `data[start]` says that it is of the file with this salt (None: of any)."""
    return salt is None or _HEADER.unpack_from(data, start + _PREFIX.size)[6] == salt


def header_span(data: Buffer, start: int) -> int:
    """How many bytes from `start` `parse_header` needs to judge what seems to begin there; 0 when it is no record at all."""
    if len(data) - start < HEADER_BYTES:
        return HEADER_BYTES
    if bytes(memoryview(data)[start : start + 4]) != RECORD_MAGIC:
        return 0
    _, kind, _, _, length, _, _, _, references, _, _ = _HEADER.unpack_from(data, start + _PREFIX.size)
    if kind not in WITH_PAYLOAD:
        return HEADER_BYTES
    if kind == Kind.PUT:
        references = 0
    if length > PAYLOAD_LIMIT or references > MOVE_REFERENCES_LIMIT:
        return 0
    return payload_start(length, references)


def pack_file_header(number: int, salt: int) -> bytes:
    """The 64 bytes at the start of log file `number`."""
    body = _FILE_HEADER.pack(FILE_MAGIC, FORMAT_VERSION, 0, number, salt)
    return body + _FILE_CRC.pack(crc32c(body))


def parse_file_header(data: bytes) -> tuple[int, int] | None:
    """``(number, salt)`` of a log file; None when its header is torn or damaged."""
    if len(data) < FILE_HEADER_BYTES:
        return None
    body = data[: FILE_HEADER_BYTES - 4]
    if _FILE_CRC.unpack_from(data, FILE_HEADER_BYTES - 4)[0] != crc32c(body):
        return None
    magic, version, _, number, salt = _FILE_HEADER.unpack(body)
    if magic != FILE_MAGIC or version != FORMAT_VERSION:
        return None
    return number, salt
