"""Sizes as people write and read them.

K, M, G, T, P and KiB, MiB, ... are powers of 1024, as in every tool that makes disks; KB, MB, ... with a B alone are powers
of 1000, as on a disk's label. Case does not matter.
"""

from __future__ import annotations

import re
from decimal import Decimal

_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(?:([kmgtpe])(i?b?))?b?\s*", re.IGNORECASE)
_UNITS = "kmgtpe"


def parse_size(text: str) -> int:
    """Bytes. Raises `ValueError` with a sentence for people."""
    match = _SIZE.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not a size; write bytes, or a number with a unit such as 512M or 10GiB")
    number, unit, rest = match.groups()
    scale = 1
    if unit is not None:
        scale = (1000 if rest.lower() == "b" else 1024) ** (_UNITS.index(unit.lower()) + 1)
    size = Decimal(number) * scale
    if size != int(size):
        raise ValueError(f"{text!r} is not a whole number of bytes")
    return int(size)


def format_size(size: float) -> str:
    """``1536`` as ``1.5 KiB``."""
    if abs(size) < 1024:
        return f"{size:.0f} B"
    value = float(size)
    for unit in ("KiB", "MiB", "GiB", "TiB", "PiB"):
        value /= 1024
        if abs(value) < 1023.95 or unit == "PiB":
            break
    return f"{value:.1f} {unit}".replace(".0 ", " ")
