"""Byte ranges of RFC 9110 (section 14), as pure parsing: `Range` on reads, `Content-Range` on writes.

Positions are bytes from 0; a parsed range is ``(start, stop)`` with ``stop`` exclusive, so its length is ``stop - start``.

On a read, a header that cannot be understood is ignored and the whole is sent (RFC 9110 section 14.2 lets a server ignore any
Range): another unit, a reversed range (``9-0``), a negative number, several ranges. On a write nothing is guessed: a
`Content-Range` that is not exactly one range of bytes is an error, since ignoring it would replace the whole volume.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from cluster.errors import Invalid

LARGEST_POSITION = (1 << 63) - 1
"""Numbers above this are taken as this: no volume is that large, and digits without end cost nothing."""

_DIGITS_ALWAYS_SMALLER = 18  # 10**18 < 2**63: so many digits need no further check

_RANGE = re.compile(r"bytes[ \t]*=[ \t,]*(?:([0-9]+)-([0-9]*)|-([0-9]+))[ \t,]*", re.ASCII | re.IGNORECASE)
_CONTENT_RANGE = re.compile(r"bytes[ \t]+([0-9]+)-([0-9]+)/([0-9]+|\*)", re.ASCII | re.IGNORECASE)


class UnsatisfiableRangeError(Exception):
    """The range is well formed and lies outside the content: 416 with ``Content-Range: bytes */size``."""


@dataclass(frozen=True, slots=True)
class ContentRange:
    """Where the body of a ranged write goes. ``total`` is the size the client believes the whole has, None for ``*``."""

    start: int
    stop: int
    total: int | None

    @property
    def length(self) -> int:
        return self.stop - self.start


def parse_range(header: str, size: int) -> tuple[int, int] | None:
    """The one satisfiable range that a Range header asks of `size` bytes, cut at the end; None when the header is to be ignored.

    Raises UnsatisfiableRangeError. ``bytes=-n`` of empty content is ignored rather than refused: it is satisfiable by RFC 9110
    section 14.1.2 and no Content-Range can express it.
    """
    match = _RANGE.fullmatch(header)
    if match is None:
        return None
    first, last, suffix = match.groups()
    if suffix is not None:
        length = _position(suffix)
        if length == 0:
            raise UnsatisfiableRangeError
        if size == 0:
            return None
        return max(0, size - length), size
    start = _position(first)
    if last:
        stop = _position(last) + 1
        if stop <= start:
            return None
    else:
        stop = size
    if start >= size:
        raise UnsatisfiableRangeError
    return start, min(stop, size)


def parse_content_range(header: str) -> ContentRange:
    """The place of a ranged write. Raises Invalid (field ``Content-Range``) for anything but ``bytes first-last/(total|*)``."""
    match = _CONTENT_RANGE.fullmatch(header.strip(" \t"))
    if match is None:
        raise Invalid(
            "Content-Range of a PUT must be `bytes FIRST-LAST/TOTAL` or `bytes FIRST-LAST/*`, positions counted from 0",
            field="Content-Range",
        )
    start, last = _position(match[1]), _position(match[2])
    if last < start:
        raise Invalid(f"Content-Range ends ({last}) before it begins ({start})", field="Content-Range")
    total = None if match[3] == "*" else _position(match[3])
    if total is not None and last >= total:
        raise Invalid(f"Content-Range ends at {last}, beyond the total of {total} it names", field="Content-Range")
    return ContentRange(start, last + 1, total)


def _position(digits: str) -> int:
    if len(digits) <= _DIGITS_ALWAYS_SMALLER:
        return int(digits)
    digits = digits.lstrip("0")
    if len(digits) > _DIGITS_ALWAYS_SMALLER + 1:
        return LARGEST_POSITION
    return min(int(digits or "0"), LARGEST_POSITION)
