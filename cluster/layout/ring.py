"""From a key to its partition: the fixed slices of the hash space.

A partition number is the top bits of a 256-bit hash, so the same 32 bytes always fall into the same partition and neither
nodes nor layouts have a say in it. The number of bits is chosen when a cluster is made and never changes.
"""

from __future__ import annotations

from typing import Final

from blake3 import blake3

DEFAULT_PARTITION_BITS: Final = 10
"""1024 partitions: fine enough for weights within 1 % at 100 nodes, coarse enough to keep per-partition state in memory."""

MAX_PARTITION_BITS: Final = 16
"""A partition number fits two bytes, which keeps both functions below at one shift of a two-byte number."""


def partition_of(key: bytes, bits: int) -> int:
    """The partition of a register's partition key: the top ``bits`` (1 to `MAX_PARTITION_BITS`) of BLAKE3(``key``)."""
    digest = blake3(key).digest(length=2)
    return ((digest[0] << 8) | digest[1]) >> (MAX_PARTITION_BITS - bits)


def chunk_partition(chunk_id: bytes, bits: int) -> int:
    """The partition of a chunk: the top ``bits`` (1 to `MAX_PARTITION_BITS`) of its id, which is a BLAKE3 hash already."""
    return ((chunk_id[0] << 8) | chunk_id[1]) >> (MAX_PARTITION_BITS - bits)
