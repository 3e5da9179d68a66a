"""The bytes of the log: pinned by the documented example, refused when anything is off."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.chunks.store import PAYLOAD_LIMIT
from node.storage.chunk_record import (
    BLOCK,
    FILE_HEADER_BYTES,
    HEADER_BYTES,
    MOVE_REFERENCES_LIMIT,
    RECORD_LIMIT,
    Kind,
    blocks_match,
    checksum_table,
    header_span,
    moved_references,
    pack_file_header,
    pack_header,
    pack_references,
    parse_file_header,
    parse_header,
    payload_start,
    put_size,
    record_size,
)

SALT = 0x0807060504030201

EXAMPLE = (
    "f5 48 66 52 9a 7b 0d 98 01 01 00 03 05 00 00 00 e8 03 00 00 00 00 00 00 01 02 03 04 05 06 07 08 40 00 00 00 00 00 00 00"
    + " aa" * 32
    + " bb" * 16
    + " 4c bb 71 9a"
)


def test_the_documented_example() -> None:
    header = pack_header(Kind.PUT, 64, 64, SALT, 1000, b"\xaa" * 32, b"\xbb" * 16, 3, 0, 5, checksum_table(b"hello"))
    assert header.hex(" ") == EXAMPLE
    assert 64 + put_size(5) == 0xA8
    assert payload_start(5) == len(header)


@given(
    kind=st.sampled_from(list(Kind)),
    offset=st.integers(0, 2**27).map(lambda value: value * 8),
    batch=st.integers(0, 2**32 - 1),
    salt=st.integers(0, 2**64 - 1),
    stamp=st.integers(0, 2**64 - 1),
    replicas=st.integers(0, 255),
    payload=st.integers(0, 70_000).map(lambda size: random.Random(size).randbytes(size)),
    flip=st.integers(0, 1 << 20),
)
def test_a_header_comes_back_and_one_flipped_bit_is_refused(
    kind: Kind, offset: int, batch: int, salt: int, stamp: int, replicas: int, payload: bytes, flip: int
) -> None:
    length = len(payload) if kind in {Kind.PUT, Kind.FILLER, Kind.MOVE} else 0
    table = checksum_table(payload) if kind in {Kind.PUT, Kind.MOVE} else b""
    pairs = [(bytes([number]) * 16, number) for number in range(1, 1 + flip % 4)] if kind == Kind.MOVE else []
    table += pack_references(pairs)
    header = pack_header(kind, offset, batch, salt, stamp, b"c" * 32, b"r" * 16, replicas, 1, length, table, len(pairs))
    record = parse_header(b"xx" + header + b"yy", 2, offset, salt)
    assert record is not None
    assert record_size(record) % 8 == 0
    assert tuple(record) == (kind, 1, replicas, length, stamp, salt, batch, b"c" * 32, b"r" * 16, table, len(pairs))
    if kind == Kind.MOVE:
        assert moved_references(record) == pairs
        assert record_size(record) == put_size(length, len(pairs))
    assert parse_header(header, 0, offset, None) == record
    assert header_span(header, 0) == len(header)
    assert parse_header(header, 0, offset + 8, salt) is None, "elsewhere it is no record"
    assert parse_header(header, 0, offset, salt ^ 1) is None, "nor in another file"
    assert parse_header(header[:-1], 0, offset, salt) is None
    damaged = bytearray(header)
    damaged[flip % len(header)] ^= 1 << flip // len(header) % 8
    assert parse_header(damaged, 0, offset, salt) is None


@pytest.mark.parametrize("size", [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK, 3 * BLOCK + 5])
def test_every_block_is_checked(size: int) -> None:
    payload = random.Random(size).randbytes(size)
    table = checksum_table(payload)
    assert len(table) == 4 * -(-size // BLOCK)
    assert blocks_match(payload, table, 0)
    for first in range(-(-size // BLOCK)):
        assert blocks_match(memoryview(payload)[first * BLOCK :], table, first)
    for position in {0, size // 2, size - 1} if size else set():
        damaged = bytearray(payload)
        damaged[position] ^= 4
        assert not blocks_match(damaged, table, 0)


def test_a_file_header_comes_back_and_any_flipped_bit_is_refused() -> None:
    header = pack_file_header(7, SALT)
    assert len(header) == FILE_HEADER_BYTES
    assert parse_file_header(header) == (7, SALT)
    assert parse_file_header(header[:-1]) is None
    for bit in range(8 * FILE_HEADER_BYTES):
        damaged = bytearray(header)
        damaged[bit // 8] ^= 1 << bit % 8
        assert parse_file_header(bytes(damaged)) is None


def test_sizes() -> None:
    assert HEADER_BYTES == 88
    assert put_size(PAYLOAD_LIMIT, MOVE_REFERENCES_LIMIT) == RECORD_LIMIT
    header = bytearray(pack_header(Kind.PUT, 0, 0, 1, 0, length=0))
    header[12:16] = (PAYLOAD_LIMIT + 1).to_bytes(4, "little")
    assert header_span(header, 0) == 0, "a length that can't be is not followed"
