"""Time, as a door. Nothing in `cluster` reads the time in any other way; no correctness depends on wall time."""

from __future__ import annotations

import asyncio
import time
from typing import Protocol


class Clock(Protocol):
    """A node's view of time."""

    def monotonic(self) -> float:
        """Seconds since some fixed moment; never goes back."""

    def wall(self) -> float:
        """Seconds since the Unix epoch; for showing to people only."""

    async def sleep(self, seconds: float) -> None:
        """Return after at least so many seconds of `monotonic`."""


class SystemClock:
    """The machine's clocks."""

    def monotonic(self) -> float:
        return time.monotonic()

    def wall(self) -> float:
        return time.time()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
