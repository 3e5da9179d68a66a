"""What is summed in the trees: places and digests of the two kinds of things that replicas share. Pure.

* A chunk reference ``(chunk, referrer, replicas)``: its place is the chunk's, whose id is a hash already. Content is never looked at: a
  chunk is named by it.
* A register ``(key, version)``: its place is a hash of the key, so that a register keeps its place when it changes. The value is left
  out: a version has one value.
"""

from __future__ import annotations

import struct
from typing import Final

from blake3 import blake3

CHUNK_LEAF_BITS: Final = 18
"""Leaves of a node's tree over chunk references: the top bits of the chunk id, over all partitions. 4 MiB of sums and counts; 4 chunks a
leaf at a million."""

PLACE_BITS: Final = 32
"""Of a register's place; a tree uses the top ones."""


_TOP = struct.Struct(">I").unpack_from
_BYTES: Final = [bytes((number,)) for number in range(256)]
"""Every put comes by here: a look at this list is cheaper than making a byte anew."""


def chunk_leaf(chunk: bytes) -> int:
    """The leaf of a chunk's references: the top `CHUNK_LEAF_BITS` bits of its id."""
    top: int = _TOP(chunk)[0]
    return top >> (32 - CHUNK_LEAF_BITS)


def reference_digest(chunk: bytes, referrer: bytes, replicas: int) -> int:
    """64 bits that stand for one reference."""
    return int.from_bytes(blake3(chunk + referrer + _BYTES[replicas]).digest(length=8))


def register_place(table: str, partition_key: bytes, sort_key: bytes) -> int:
    """`PLACE_BITS` bits: where a register stands in the tree of its partition."""
    return int.from_bytes(blake3(_key(table, partition_key, sort_key)).digest(length=4))


def register_digest(
    table: str, partition_key: bytes, sort_key: bytes, round_number: int, proposer: str, seq: int
) -> int:
    """64 bits that stand for one register at one version."""
    version = f"/{round_number}/{seq}/{proposer}".encode()
    return int.from_bytes(blake3(_key(table, partition_key, sort_key) + version).digest(length=8))


def _key(table: str, partition_key: bytes, sort_key: bytes) -> bytes:
    """The parts with their lengths, so that no two keys make the same bytes."""
    return b"%d %d %d " % (len(table), len(partition_key), len(sort_key)) + table.encode() + partition_key + sort_key
