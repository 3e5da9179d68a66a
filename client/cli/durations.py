"""Seconds as people read them."""

from __future__ import annotations

_UNITS = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))


def format_duration(seconds: float) -> str:
    """``200`` as ``3 min 20 s``: the two largest units, whole; below ten seconds with a tenth."""
    if seconds < 9.95:
        return f"{max(0.0, seconds):.1f} s".replace(".0 ", " ")
    left = round(seconds)
    parts: list[str] = []
    for unit, size in _UNITS:
        if left >= size or parts:
            parts.append(f"{left // size} {unit}" if left >= size else "")
            left %= size
        if len(parts) == 2:
            break
    return " ".join(part for part in parts if part)
