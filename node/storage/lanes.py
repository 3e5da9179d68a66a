"""Where a store's blocking work runs, as a door: lanes beside the event loop.

A lane runs what it is given one after the other, in the order of the calls; one of a larger width runs so many at once. `ThreadLanes` are
threads. The simulator has lanes on virtual time and without threads, so what runs on a lane waits for nothing but the disk, SQLite, a lock
that is held for a moment, and the future of a job on another lane.
"""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any, Final, Protocol, TypeVar

R = TypeVar("R")


class Lane(Protocol):
    """A queue of jobs and what runs them."""

    def post(self, function: Callable[[], None]) -> None:
        """As `submit`, from anywhere, for what nobody waits for: it must not raise. On a lane of width 1 it costs next to nothing."""

    def submit(self, function: Callable[..., R], *arguments: Any) -> Future[R]:
        """From anywhere, a job too. Whoever waits for the future must not be on the event loop."""

    def run(self, function: Callable[..., R], *arguments: Any) -> asyncio.Future[R]:
        """From the event loop, which gets the outcome."""

    async def close(self) -> None:
        """Return when everything given has been done. Nothing more is taken."""


class Lanes(Protocol):
    def open(self, name: str, width: int = 1) -> Lane:
        """A new lane. From anywhere."""


class _ThreadLane:
    """One thread, begun with the first job. It is a daemon: a disk that never answers does not keep the process."""

    def __init__(self, name: str) -> None:
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._lock = threading.Lock()
        self._begun = False
        self._closed = False

    def post(self, function: Callable[[], None]) -> None:
        if self._closed:
            raise RuntimeError("the lane is closed")
        self._jobs.put(function)
        if not self._begun:
            self._begin()

    def submit(self, function: Callable[..., R], *arguments: Any) -> Future[R]:
        future: Future[R] = Future()
        self.post(functools.partial(_settle, future, function, arguments))
        return future

    def run(self, function: Callable[..., R], *arguments: Any) -> asyncio.Future[R]:
        return asyncio.wrap_future(self.submit(function, *arguments))

    async def close(self) -> None:
        self._closed = True
        self._jobs.put(None)
        if self._begun:
            await asyncio.to_thread(self._thread.join)

    def _begin(self) -> None:
        with self._lock:
            if not self._begun:
                self._thread.start()
                self._begun = True

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()
            del job  # or what it holds would live until the next one


def _settle(future: Future[R], function: Callable[..., R], arguments: tuple[Any, ...]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        outcome = function(*arguments)
    except BaseException as error:  # whoever waits decides
        future.set_exception(error)
    else:
        future.set_result(outcome)


class _PoolLane:
    """`width` threads."""

    def __init__(self, name: str, width: int) -> None:
        self._executor = ThreadPoolExecutor(width, name)

    def post(self, function: Callable[[], None]) -> None:
        self._executor.submit(function)

    def submit(self, function: Callable[..., R], *arguments: Any) -> Future[R]:
        return self._executor.submit(function, *arguments)

    def run(self, function: Callable[..., R], *arguments: Any) -> asyncio.Future[R]:
        return asyncio.get_running_loop().run_in_executor(self._executor, function, *arguments)

    async def close(self) -> None:
        await asyncio.to_thread(self._executor.shutdown)


class ThreadLanes:
    """The real ones. Holds nothing itself."""

    def open(self, name: str, width: int = 1) -> Lane:
        return _ThreadLane(name) if width == 1 else _PoolLane(name, width)


THREADS: Final = ThreadLanes()
