"""Room for payloads on their way to the disk: puts wait until there is some for them.

Whoever fits goes first: small puts overtake a large one that waits, and none waits while there is room for it. It holds also while the disk
hangs and every put is given up at its deadline: a payload that the writer still holds takes its room until the writer gets to it.
"""

from __future__ import annotations

import asyncio

from cluster.chunks.store import StoreFailed


class PutRoom:
    """``limit``: payload bytes at once; one that is larger by itself is let in alone. For one event loop."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._taken = 0
        self._waiting: dict[asyncio.Future[None], None] = {}
        self._closed = ""

    @property
    def taken(self) -> int:
        return self._taken

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    async def take(self, size: int) -> None:
        """Wait until ``size`` more bytes may be held. Raises StoreFailed after `close`."""
        while self._taken and self._taken + size > self._limit:
            if self._closed:
                raise StoreFailed(self._closed)
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting[waiter] = None
            try:
                await waiter
            finally:
                self._waiting.pop(waiter, None)  # given up: a disk that hangs may see any number of those
        self._taken += size

    def give(self, size: int) -> None:
        """Payload bytes that nobody holds any more: let those who wait look again."""
        self._taken -= size
        waiting, self._waiting = self._waiting, {}
        for waiter in waiting:
            if not waiter.done():
                waiter.set_result(None)

    def close(self, reason: str) -> None:
        """Whoever waits, or would have to, is told."""
        self._closed = reason
        for waiter in self._waiting:
            if not waiter.done():
                waiter.set_exception(StoreFailed(reason))
        self._waiting.clear()
