"""A log that a stranger cannot flood: one line a minute for each kind of event, with how many were left out."""

from __future__ import annotations

from typing import Any

import structlog

from cluster.doors.clock import Clock
from cluster.rpc.limits import LOG_INTERVAL_S


class QuietLog:
    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._log = structlog.get_logger("cluster.rpc")
        self._next: dict[str, float] = {}
        self._left_out: dict[str, int] = {}

    def warning(self, event: str, **fields: Any) -> None:
        """Events are a few fixed words each, so what is remembered about them is bounded."""
        now = self._clock.monotonic()
        if now < self._next.get(event, now):
            self._left_out[event] = self._left_out.get(event, 0) + 1
            return
        self._next[event] = now + LOG_INTERVAL_S
        left_out = self._left_out.pop(event, 0)
        self._log.warning(event, **fields, **({"left_out": left_out} if left_out else {}))

    def failure(self, event: str, error: BaseException, **fields: Any) -> None:
        """An exception that should not have happened, with its trace; never left out."""
        self._log.error(event, exc_info=error, **fields)
