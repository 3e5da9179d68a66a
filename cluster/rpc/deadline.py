"""Deadlines of very many short-lived things, with one timer for all.

Time is cut into steps; everything that is due in the same step shares a dict, in which it keeps the order of its adding. Adding and
removing cost a dict operation each, so a call that is answered in time never touches a timer of its own.
"""

from __future__ import annotations

import asyncio
import heapq
from typing import Protocol

from cluster.rpc.limits import DEADLINE_STEP_S


class Expiring(Protocol):
    """Something with a deadline."""

    due: dict[Expiring, None]
    """Set by `Deadlines.add`. The owner takes itself out of it when it is done earlier."""

    def expire(self) -> None:
        """The deadline has passed. Must not raise."""


class Deadlines:
    """Calls ``expire()`` of each thing added, at most one step late."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._due: dict[int, dict[Expiring, None]] = {}
        self._steps: list[int] = []
        self._timer: asyncio.TimerHandle | None = None

    def add(self, thing: Expiring, seconds: float) -> None:
        step = int((self._loop.time() + seconds) / DEADLINE_STEP_S) + 1
        due = self._due.get(step)
        if due is None:
            due = self._due[step] = {}
            heapq.heappush(self._steps, step)
            if self._steps[0] == step:
                self._arm()
        due[thing] = None
        thing.due = due

    def close(self) -> None:
        """Forget everything."""
        if self._timer is not None:
            self._timer.cancel()
        self._due.clear()
        self._steps.clear()

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._steps:
            self._timer = self._loop.call_at(self._steps[0] * DEADLINE_STEP_S, self._tick)

    def _tick(self) -> None:
        self._timer = None
        now = self._loop.time()
        while self._steps and self._steps[0] * DEADLINE_STEP_S <= now:
            for thing in list(self._due.pop(heapq.heappop(self._steps))):
                thing.expire()
        # an empty step far away is kept: its step costs one idle wake-up
        self._arm()
