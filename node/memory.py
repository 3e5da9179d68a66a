"""How the process uses memory: settings of the C library's allocator and of Python's collector, made once, before anything runs.

Payloads are buffers of 256 KiB to 4 MiB that come and go hundreds of times a second. Left to itself the GNU C library maps
each of them from the kernel and gives it back: every use then pays for page faults and for pages being cleared, which was a
fifth of the processor time of a GET. Other C libraries are left as they are.
"""

from __future__ import annotations

import ctypes
import gc

KEPT_BYTES = 64 * 1024 * 1024
"""Freed memory that is kept for the next payloads rather than given back."""

MAPPED_FROM_BYTES = 32 * 1024 * 1024
"""Only larger blocks are mapped each for itself; the most that the C library allows."""

ARENAS = 2
"""Heaps that threads share. Python allocates under its lock, so more would not be faster, and each keeps `KEPT_BYTES`."""

COLLECT_AFTER = 20_000
"""Objects made, less those gone, before the collector looks for cycles; Python's 700 are made by a few dozen calls in flight, which
hold no cycles."""

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8


def set_up() -> None:
    gc.set_threshold(COLLECT_AFTER, 10, 10)
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for parameter, value in (
            (_M_ARENA_MAX, ARENAS),
            (_M_TRIM_THRESHOLD, KEPT_BYTES),
            (_M_MMAP_THRESHOLD, MAPPED_FROM_BYTES),
        ):
            mallopt(parameter, value)
