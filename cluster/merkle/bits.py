"""Sets of small numbers as they travel: a bit for each thing of a list that both sides know. Pure."""

from __future__ import annotations

from collections.abc import Sequence


def bit_set(positions: Sequence[int], count: int) -> bytes:
    """A bit for each of ``count`` things, lowest first, set at the positions."""
    bits = bytearray((count + 7) // 8)
    for position in positions:
        bits[position >> 3] |= 1 << (position & 7)
    return bytes(bits)


def set_bits(bits: bytes, count: int) -> list[int]:
    """The positions below ``count`` that are set, ascending."""
    return [
        position
        for at, byte in enumerate(bits)
        if byte
        for position in range(8 * at, 8 * at + 8)
        if byte >> (position & 7) & 1 and position < count
    ]
