"""What happened in a run, in order: one line an event, with its virtual time. Also what the cores log goes here, for a run's length."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import structlog

WINDOW_S = 6.0
"""Of a trace, what is shown before the moment at which something broke."""

LINES_LIMIT = 60


class Line(NamedTuple):
    at: float
    text: str


class Trace:
    """``now``: virtual time."""

    def __init__(self, now: Callable[[], float]) -> None:
        self.lines: list[Line] = []
        self._now = now

    def note(self, text: str) -> None:
        self.lines.append(Line(self._now(), text))

    @contextmanager
    def logs(self) -> Iterator[None]:
        """What is logged in the block becomes lines, and is not printed."""
        before = structlog.get_config()

        def take(logger: Any, method: str, event: MutableMapping[str, Any]) -> Any:
            name = event.pop("event")
            self.note(f"log {name} " + " ".join(f"{key}={event[key]}" for key in sorted(event)))
            raise structlog.DropEvent

        stores = logging.getLogger("node")
        handler = _Handler(self)
        structlog.configure(processors=[take])
        stores.addHandler(handler)
        stores.propagate = False
        try:
            yield
        finally:
            structlog.configure(**before)
            stores.removeHandler(handler)
            stores.propagate = True


class _Handler(logging.Handler):
    """For what the stores log, who know no events."""

    def __init__(self, trace: Trace) -> None:
        super().__init__()
        self._trace = trace

    def emit(self, record: logging.LogRecord) -> None:
        self._trace.note(f"log {record.getMessage()}")


def around(lines: list[Line], mark: str = "") -> list[Line]:
    """The last lines, and those that speak of ``mark``, at most `LINES_LIMIT`: what somebody who looks for the cause reads first."""
    if not lines:
        return []
    end = lines[-1].at
    chosen = [line for line in lines if line.at >= end - WINDOW_S or (mark and mark in line.text)]
    trouble = [line for line in lines if line.text.startswith("!")]
    shown = sorted({*chosen[-LINES_LIMIT:], *trouble[-LINES_LIMIT:]})
    return shown[-2 * LINES_LIMIT :]
