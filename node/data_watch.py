"""The job that sees to it that a running node's data directory is still the one it was started on.

A disk that is unmounted under a daemon, mounted over, or made read-only by its kernel leaves files open that look well for a while.
Every few seconds this looks at the directory by its path, as the next start would, in a thread of its own: a disk that hangs hangs
that thread and nothing else. What is found wrong ends the node loudly; a hanging disk, or a look that fails for want of descriptors or
memory and so tells nothing, is shown among the jobs and in the log.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

import structlog

from cluster.chunks.store import StoreFailed
from cluster.doors.clock import Clock
from cluster.errors import Busy, HoldfastError
from node.data_directory import DataDirectory

log = structlog.get_logger(__name__)

WATCH_INTERVAL_S = 5.0
"""Between two looks: soon enough that little is written to nowhere, rare enough that an idle disk hardly notices its fsync."""

SLOW_S = 10.0
"""A look that takes longer is reported: the disk hangs, or is far too busy."""


class DataWatch:
    """``on_failure`` is called, once, with what is wrong. Runs until cancelled or that has happened."""

    name = "data-directory"

    def __init__(self, directory: DataDirectory, clock: Clock, on_failure: Callable[[HoldfastError], None]) -> None:
        self._directory = directory
        self._clock = clock
        self._on_failure = on_failure
        self.queue_length = 0
        self.last_error: str | None = None
        self.waiting_for: str | None = "its next look"

    async def run(self) -> None:
        while True:
            await self._clock.sleep(WATCH_INTERVAL_S)
            found = await self._look()
            if isinstance(found, Busy):
                if self.last_error != found.message:
                    log.warning("data_directory_unseen", path=str(self._directory.path), error=found.message)
                self.last_error = found.message
                continue
            self.last_error = found
            if found is not None:
                self._on_failure(StoreFailed(found))
                return

    async def _look(self) -> str | Busy | None:
        """One look; what is wrong, None for nothing, Busy when that can't be told."""
        done: asyncio.Future[str | Busy | None] = asyncio.get_running_loop().create_future()
        # A daemon thread, since one that hangs in the kernel must not keep the process from ending.
        threading.Thread(target=_check, args=(self._directory, done), name=self.name, daemon=True).start()
        try:
            async with asyncio.timeout(SLOW_S):
                return await asyncio.shield(done)
        except TimeoutError:
            self.last_error = f"the disk of {self._directory.path} has not answered for {SLOW_S:.0f} s"
            log.error("data_directory_hangs", path=str(self._directory.path), seconds=SLOW_S)
        found = await done
        if found is None:
            log.warning("data_directory_answers_again", path=str(self._directory.path))
        return found


def _check(directory: DataDirectory, done: asyncio.Future[str | Busy | None]) -> None:
    """In the thread: the answer goes back to the loop, unless that has ended meanwhile."""
    found: str | Busy | None
    try:
        found = directory.fault()
    except Busy as error:
        found = error

    def answer() -> None:
        if not done.done():
            done.set_result(found)

    loop = done.get_loop()
    if not loop.is_closed():
        try:
            loop.call_soon_threadsafe(answer)
        except RuntimeError:
            assert loop.is_closed()  # in the moment since we looked: nobody waits any more
