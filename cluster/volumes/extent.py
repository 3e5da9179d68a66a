"""Extents: runs of a volume's bytes that lie in one chunk, and pure functions on lists of them.

A list of extents is *normal* when it is ascending, free of overlaps and empty runs, and no two neighbours could be one (same chunk,
same write, continuing without a gap in the address space and in the chunk). What no extent covers is a hole and reads as zeroes. All
functions take and give normal lists; equal content made of the same pieces is therefore the same list.

An extent never moves: it lies at the address it was written to, or parts of it do after others were written over the rest. So
``offset - chunk_offset`` is the address where its piece began, for ever. Pure.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from operator import attrgetter
from typing import NamedTuple


class Extent(NamedTuple):
    """``length`` bytes at address ``offset`` are the bytes of ``chunk`` from ``chunk_offset``; ``write`` stored that chunk."""

    offset: int
    length: int
    chunk: bytes
    chunk_offset: int
    write: bytes

    @property
    def stop(self) -> int:
        return self.offset + self.length

    def continues(self, before: Extent) -> bool:
        """Whether the two are one extent cut in two."""
        return (
            self.offset == before.offset + before.length
            and self.chunk == before.chunk
            and self.chunk_offset == before.chunk_offset + before.length
            and self.write == before.write
        )


offset_of = attrgetter("offset")


def is_normal(extents: Sequence[Extent], start: int, stop: int) -> bool:
    """The invariant of this module, for a list that must lie in [start, stop)."""
    at = start
    before = None
    for extent in extents:
        if extent.offset < at or extent.length <= 0 or (before is not None and extent.continues(before)):
            return False
        at = extent.stop
        before = extent
    return at <= stop


def clip(extents: Sequence[Extent], start: int, stop: int) -> list[Extent]:
    """The parts that lie in [start, stop)."""
    if start >= stop:
        return []
    first = max(0, bisect_right(extents, start, key=offset_of) - 1)
    clipped: list[Extent] = []
    for index in range(first, len(extents)):
        extent = extents[index]
        if extent.offset >= stop:
            break
        end = extent.offset + extent.length
        if end <= start:
            continue
        if extent.offset < start or end > stop:
            begin = max(extent.offset, start)
            extent = Extent(
                begin,
                min(end, stop) - begin,
                extent.chunk,
                extent.chunk_offset + (begin - extent.offset),
                extent.write,
            )
        clipped.append(extent)
    return clipped


def joined(parts: Iterable[Iterable[Extent]]) -> list[Extent]:
    """Ascending lists one after the other, as one normal list: neighbours that continue each other become one."""
    result: list[Extent] = []
    for part in parts:
        for extent in part:
            if result and extent.continues(result[-1]):
                before = result[-1]
                result[-1] = before._replace(length=before.length + extent.length)
            else:
                result.append(extent)
    return result


def overlaid(base: Sequence[Extent], over: Sequence[Extent], start: int, stop: int) -> list[Extent]:
    """``base`` with everything in [start, stop) replaced by ``over`` (which lies inside it; its gaps become holes)."""
    if start >= stop:
        return list(base)
    end = base[-1].stop if base else 0
    return joined((clip(base, 0, start), over, clip(base, stop, max(stop, end))))
