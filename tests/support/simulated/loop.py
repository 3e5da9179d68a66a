"""An asyncio event loop on virtual time: where a real loop would wait, this one moves its clock.

Runs are exactly repeatable as long as everything random comes from seeded generators. There are no files, sockets or threads in it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

STEPS_WITHOUT_TIME = 200_000
"""So many turns of the loop without any time passing are a livelock."""


class Stuck(AssertionError):
    """Nothing will ever happen again, or the same things happen for ever."""


class _Jump:
    """In the place of a selector."""

    def __init__(self, loop: VirtualTimeLoop) -> None:
        self._loop = loop
        self._still = 0

    def select(self, timeout: float | None) -> list[Any]:
        if timeout is None:
            raise Stuck("every task waits for something that nobody will do")
        if timeout > 0:
            self._still = 0
            self._loop.advance(timeout)
        else:
            self._still += 1
            if self._still > STEPS_WITHOUT_TIME:
                raise Stuck("the loop turns and no time passes")
        return []


class VirtualTimeLoop(asyncio.BaseEventLoop):
    def __init__(self) -> None:
        super().__init__()
        self._now = 0.0
        self._selector = _Jump(self)
        self._clock_resolution = 1e-9
        self.faults: list[str] = []
        """What reached the loop's exception handler: errors that nobody looked at."""
        self.set_exception_handler(self._note_fault)

    def time(self) -> float:
        return self._now

    def advance(self, seconds: float) -> None:
        self._now += seconds

    def _note_fault(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self.faults.append(f"{context.get('message')}: {context.get('exception')!r}")

    def _process_events(self, event_list: list[Any]) -> None:
        """There are none."""

    def _write_to_self(self) -> None:
        """There is one thread."""


def run_virtual(main: Coroutine[Any, Any, T]) -> T:
    """Run to the end, then end whatever it left behind. Raises `Stuck`; AssertionError for errors that nobody looked at."""
    loop = VirtualTimeLoop()
    try:
        try:
            result = loop.run_until_complete(main)
        finally:
            left = asyncio.all_tasks(loop)
            for task in left:
                task.cancel()
            if left:
                loop.run_until_complete(asyncio.wait(left, timeout=1.0))
        assert not loop.faults, loop.faults
        return result
    finally:
        loop.close()
