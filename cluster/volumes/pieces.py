"""Where a version's bytes lie: its extents as users may see them. Pure values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from cluster.volumes.volume import Volume

PIECES_LIMIT = 1000
"""Pieces in one page at most."""


@dataclass(frozen=True, slots=True)
class Piece:
    """``length`` bytes of the volume from address ``offset`` are those of ``chunk`` (32 bytes, its id) from ``chunk_offset``."""

    offset: int
    length: int
    chunk: bytes
    chunk_offset: int


class PiecePage(NamedTuple):
    """Pieces ascending by address; what none covers is a hole. ``next_start`` goes into the next call's ``start``, None at the end."""

    volume: Volume
    pieces: list[Piece]
    next_start: int | None
