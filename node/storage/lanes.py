"""Where a store's blocking work runs, as a door: lanes beside the event loop.

A lane runs what it is given one after the other, in the order of the calls; one of a larger width runs so many at once. `ThreadLanes` are
threads. The simulator has lanes on virtual time and without threads, so what runs on a lane waits for nothing but the disk, SQLite, a lock
that is held for a moment, and the future of a job on another lane.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final, Protocol, TypeVar

R = TypeVar("R")


class Lane(Protocol):
    """A queue of jobs and what runs them."""

    def submit(self, function: Callable[..., R], *arguments: Any) -> Future[R]:
        """From anywhere, a job too. Whoever waits for the future must not be on the event loop."""

    def run(self, function: Callable[..., R], *arguments: Any) -> asyncio.Future[R]:
        """From the event loop, which gets the outcome."""

    async def close(self) -> None:
        """Return when everything given has been done. Nothing more is taken."""


class Lanes(Protocol):
    def open(self, name: str, width: int = 1) -> Lane:
        """A new lane. From anywhere."""


class ThreadLane:
    """`width` threads; none before the first job."""

    def __init__(self, name: str, width: int) -> None:
        self._executor = ThreadPoolExecutor(width, name)

    def submit(self, function: Callable[..., R], *arguments: Any) -> Future[R]:
        return self._executor.submit(function, *arguments)

    def run(self, function: Callable[..., R], *arguments: Any) -> asyncio.Future[R]:
        return asyncio.get_running_loop().run_in_executor(self._executor, function, *arguments)

    async def close(self) -> None:
        await asyncio.to_thread(self._executor.shutdown)


class ThreadLanes:
    """The real ones. Holds nothing itself."""

    def open(self, name: str, width: int = 1) -> Lane:
        return ThreadLane(name, width)


THREADS: Final = ThreadLanes()
