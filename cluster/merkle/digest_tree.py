"""A tree of sums: the digests of the items whose places share a prefix, modulo 2^64.

An item has a *place* (the leaf it falls into, from a hash) and a *digest* (64 bits that stand for its identity and version). A node is the
sum of the leaves under it. The leaves are kept, and the nodes `UPPER_STEP` bits above them, so that an update is two additions, in any
order, and the roots of all partitions are read off without adding up leaves. Two trees over the same items are equal whatever their
histories were. Equal sums of different items are an accident of one in 2^64 (additive set hashing: Bellare and
Micciancio, "A New Paradigm for Collision-free Hashing", 1997); it would hide a difference from comparison, never change data.

Memory is 17 bytes a leaf. `DigestTree` may be read on one thread while another changes it: a sum read meanwhile may be of a moment that
never was, which comparing twice takes care of.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterable, Sequence
from typing import Final

DIGEST_MASK: Final = (1 << 64) - 1

MAX_BITS: Final = 24
"""16 million leaves, 256 MiB: more than any node needs."""


UPPER_STEP: Final = 8
"""A kept node stands for 256 leaves."""


class DigestTree:
    """``bits``: the tree has 2^bits leaves, numbered by the top bits of the items' hashes."""

    __slots__ = ("_counts", "_shift", "_sums", "_upper_counts", "_upper_sums", "bits", "upper_bits")

    def __init__(self, bits: int) -> None:
        assert 0 <= bits <= MAX_BITS
        self.bits = bits
        self._sums = array("Q", bytes(8 << bits))
        self._counts = array("q", bytes(8 << bits))
        self.upper_bits = max(0, bits - UPPER_STEP)
        self._shift = bits - self.upper_bits
        self._upper_sums = array("Q", bytes(8 << self.upper_bits))
        self._upper_counts = array("q", bytes(8 << self.upper_bits))

    def change(self, leaf: int, digest: int, count: int) -> None:
        """Add ``digest`` (to take one away: its negative) and ``count`` items to a leaf."""
        upper = leaf >> self._shift
        sums, upper_sums = self._sums, self._upper_sums
        sums[leaf] = (sums[leaf] + digest) & DIGEST_MASK
        upper_sums[upper] = (upper_sums[upper] + digest) & DIGEST_MASK
        if count:
            self._counts[leaf] += count
            self._upper_counts[upper] += count

    def leaf(self, leaf: int) -> tuple[int, int]:
        """``(sum, count)`` of one leaf."""
        return self._sums[leaf], self._counts[leaf]

    def set_leaf(self, leaf: int, digest: int, count: int) -> None:
        """Put a leaf as it was stored."""
        held, counted = self._sums[leaf], self._counts[leaf]
        self.change(leaf, digest - held, count - counted)

    def packed(self, first: int, count: int) -> bytes:
        """``count`` leaves from ``first`` on, for keeping: their sums, then their counts, 8 bytes each, little-endian."""
        sums, counts = self._sums[first : first + count], self._counts[first : first + count]
        if sys.byteorder == "big":
            sums.byteswap()
            counts.byteswap()
        return sums.tobytes() + counts.tobytes()

    def unpack(self, first: int, leaves: bytes) -> None:
        """Put leaves as `packed` gave them."""
        half = len(leaves) // 2
        sums, counts = array("Q", leaves[:half]), array("q", leaves[half:])
        if sys.byteorder == "big":
            sums.byteswap()
            counts.byteswap()
        end = first + len(sums)
        assert end <= len(self._sums)
        self._sums[first:end], self._counts[first:end] = sums, counts
        if first < end:
            shift = self._shift
            for upper in range(first >> shift, ((end - 1) >> shift) + 1):
                under = slice(upper << shift, (upper + 1) << shift)
                self._upper_sums[upper] = sum(self._sums[under]) & DIGEST_MASK
                self._upper_counts[upper] = sum(self._counts[under])

    def sum(self, bits: int, prefix: int) -> int:
        """The sum of everything whose place begins with the ``bits`` bits ``prefix``. ``bits`` is at most the tree's own."""
        if bits <= self.upper_bits:
            shift = self.upper_bits - bits
            if not shift:
                return self._upper_sums[prefix]
            return sum(self._upper_sums[prefix << shift : (prefix + 1) << shift]) & DIGEST_MASK
        shift = self.bits - bits
        if not shift:
            return self._sums[prefix]
        return sum(self._sums[prefix << shift : (prefix + 1) << shift]) & DIGEST_MASK

    def count(self, bits: int, prefix: int) -> int:
        """The number of items under a prefix."""
        counts, shift = self._counts, self.bits - bits
        if bits <= self.upper_bits:
            counts, shift = self._upper_counts, self.upper_bits - bits
        return counts[prefix] if not shift else sum(counts[prefix << shift : (prefix + 1) << shift])

    def sums(self, bits: int, prefixes: Iterable[int]) -> array[int]:
        """`sum` of each prefix."""
        return array("Q", [self.sum(bits, prefix) for prefix in prefixes])

    def filled(self) -> list[int]:
        """The leaves that have items, ascending."""
        return [leaf for leaf, count in enumerate(self._counts) if count]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, DigestTree):
            return NotImplemented
        return self.bits == other.bits and self._sums == other._sums and self._counts == other._counts

    __hash__ = None  # type: ignore[assignment]  # it changes

    @property
    def total(self) -> int:
        """The number of items."""
        return sum(self._upper_counts)


def children(prefixes: Sequence[int], step: int) -> list[int]:
    """The prefixes that are ``step`` bits longer than the given ones, in order."""
    return [(prefix << step) | low for prefix in prefixes for low in range(1 << step)]
