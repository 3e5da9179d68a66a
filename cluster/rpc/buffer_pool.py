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


def _references(buffers: list[bytearray], at: int) -> int:
    """How many there are to ``buffers[at]``, those of the list and of the question itself included."""
    return sys.getrefcount(buffers[at])


_HELD_BY_POOL_ALONE = _references([bytearray(1)], 0)
"""What that is when nobody else looks at it. Asked rather than known: interpreters differ in what they count for the question."""


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
        for at in range(len(self._buffers)):
            if len(self._buffers[at]) == size and _references(self._buffers, at) == _HELD_BY_POOL_ALONE:
                buffer = self._buffers[at]
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
        """Let go of free buffers, the oldest first, until one of `size` fits."""
        at = 0
        while at < len(self._buffers) and self.size + size > BUFFER_POOL_LIMIT:
            if _references(self._buffers, at) == _HELD_BY_POOL_ALONE:
                self.size -= len(self._buffers.pop(at))
            else:
                at += 1
