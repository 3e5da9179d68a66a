"""Buffers for large payloads, used again once nobody else holds them.

A fresh buffer of some megabytes costs more than receiving into it: its pages are mapped, cleared and cleared again.
So the pool keeps a reference to the buffers it gave out, and gives one out again when that reference is the only one
left: CPython counts every object, memoryview and pending write that still looks at a buffer. Nobody has to hand
anything back, and forgetting a buffer is all that frees it.

Whatever is given out may hold old bytes; whoever takes it fills all of it. The pool is bounded, and what was not used
between two sweeps is let go.
"""

from __future__ import annotations

import sys

from cluster.rpc.limits import BUFFER_POOL_LIMIT, INLINE_PAYLOAD

_HELD_BY_POOL_ALONE = 3
"""What `sys.getrefcount` says then: the list, the variable in `take`, the argument of the question."""


class BufferPool:
    """One node's pool. Only for the event loop's thread."""

    def __init__(self) -> None:
        self._buffers: list[bytearray] = []
        self._used: set[int] = set()
        self.size = 0
        """Bytes of the buffers that the pool knows, in use or not."""

    def take(self, size: int) -> bytearray:
        """A buffer of `size` bytes with arbitrary content."""
        if size <= INLINE_PAYLOAD:
            return bytearray(size)
        for buffer in self._buffers:
            if len(buffer) == size and sys.getrefcount(buffer) == _HELD_BY_POOL_ALONE:
                self._used.add(id(buffer))
                return buffer
        buffer = bytearray(size)
        if size <= BUFFER_POOL_LIMIT:
            self._make_room(size)
            if self.size + size <= BUFFER_POOL_LIMIT:
                self._buffers.append(buffer)
                self._used.add(id(buffer))
                self.size += size
        return buffer

    def sweep(self) -> None:
        """Let go of what was not taken since the last sweep."""
        self._buffers = [buffer for buffer in self._buffers if id(buffer) in self._used]
        self._used.clear()
        self.size = sum(map(len, self._buffers))

    def _make_room(self, size: int) -> None:
        """Let go of free buffers of other sizes, the oldest first, until one of `size` fits."""
        kept: list[bytearray] = []
        while self._buffers:
            buffer = self._buffers.pop(0)
            # here the list's reference is gone: the variable and the question are left
            if self.size + size > BUFFER_POOL_LIMIT and sys.getrefcount(buffer) == _HELD_BY_POOL_ALONE - 1:
                self.size -= len(buffer)
            else:
                kept.append(buffer)
        self._buffers = kept
