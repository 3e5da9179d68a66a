"""What repair may take: how many copies at once, how many bytes a second, and less of both while users are at work.

Everything that moves chunks in the background (copier, mender, tidier) takes its turns here, so there is one place to pause it, to
limit it and to see how fast it goes. A turn during which users' requests came in is followed by a rest, `BUSY_REST` times as long
as it took: repair then has a fixed share of the disks and the processor, however slow or fast they are. Owns the pause, the tokens
and the rates; nothing durable.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import NamedTuple

from cluster.doors.clock import Clock

AT_ONCE = 8
"""Turns at a time: enough to share fdatasyncs and to keep two disks and the wire between them busy; 32 MiB of payloads at most."""

BUSY_REST = 3.0
"""Rest after a turn while users are active, in lengths of the turn: repair gets about a quarter of what it would take."""

REST_LIMIT_S = 0.5
"""A turn that waited for a slow peer is not a reason for a long rest."""

ACTIVITY_WINDOW_S = 0.1
"""Users count as active when they asked for anything within the last so many seconds, or in the window before."""

RATE_WINDOW_S = 10
"""Rates are means over so many whole seconds."""

BURST_S = 0.25
"""Tokens that may be saved up, in seconds of the rate."""


class _Second(NamedTuple):
    at: int
    chunks: int
    size: int


class RepairBudget:
    """``rate_bytes``: the most per second, 0 for no limit. ``activity``: counts users' requests on this node, in any unit."""

    def __init__(self, clock: Clock, rate_bytes: int, activity: Callable[[], int]) -> None:
        self._clock = clock
        self._rate = rate_bytes
        self._activity = activity
        self._slots = asyncio.Semaphore(AT_ONCE)
        self._running = asyncio.Event()
        self._running.set()
        self._ready_at = 0.0
        self._seen = 0
        self._looked_at = 0.0
        self._busy = False
        self._seconds: deque[_Second] = deque()
        self.chunks = 0
        """Chunks copied here since the start."""
        self.size = 0
        """Their bytes."""

    @property
    def paused(self) -> bool:
        return not self._running.is_set()

    def pause(self) -> None:
        self._running.clear()

    def resume(self) -> None:
        self._running.set()

    async def wait_running(self) -> None:
        """Return when repair is not paused."""
        await self._running.wait()

    @asynccontextmanager
    async def turn(self, size: int) -> AsyncIterator[None]:
        """Move ``size`` bytes inside of the block."""
        await self._running.wait()
        async with self._slots:
            await self._take(size)
            began = self._clock.monotonic()
            yield
            await self._rest(began)

    @asynccontextmanager
    async def yielding(self) -> AsyncIterator[None]:
        """Do something small for repair inside of the block, such as looking at what is held: no bytes to speak of, and no slot, but the
        same rest when users are active. A pause does not hold it up: who may vote, or what is held, is found out all the same."""
        began = self._clock.monotonic()
        yield
        await self._rest(began)

    async def _rest(self, began: float) -> None:
        if self._users_active():
            took = self._clock.monotonic() - began
            await self._clock.sleep(min(REST_LIMIT_S, BUSY_REST * took))

    def note(self, size: int) -> None:
        """A copy of so many bytes has arrived here."""
        self.chunks += 1
        self.size += size
        second = int(self._clock.monotonic())
        if self._seconds and self._seconds[-1].at == second:
            last = self._seconds.pop()
            self._seconds.append(_Second(second, last.chunks + 1, last.size + size))
        else:
            self._seconds.append(_Second(second, 1, size))
        self._forget(second)

    @property
    def rates(self) -> tuple[float, float]:
        """``(chunks, bytes)`` per second of late."""
        self._forget(int(self._clock.monotonic()))
        if not self._seconds:
            return 0.0, 0.0
        span = max(1, int(self._clock.monotonic()) - self._seconds[0].at)
        return sum(s.chunks for s in self._seconds) / span, sum(s.size for s in self._seconds) / span

    def _forget(self, second: int) -> None:
        while self._seconds and self._seconds[0].at < second - RATE_WINDOW_S:
            self._seconds.popleft()

    async def _take(self, size: int) -> None:
        """Wait for the tokens: each turn begins when those before it have been paid for."""
        if not self._rate:
            return
        now = self._clock.monotonic()
        begin = max(self._ready_at, now - BURST_S)
        self._ready_at = begin + size / self._rate
        if begin > now:
            await self._clock.sleep(begin - now)

    def _users_active(self) -> bool:
        now = self._clock.monotonic()
        if now - self._looked_at >= ACTIVITY_WINDOW_S:
            count = self._activity()
            self._busy = count != self._seen
            self._seen, self._looked_at = count, now
        return self._busy
