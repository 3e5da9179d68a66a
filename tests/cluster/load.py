"""Load that checks itself: writers that overwrite a volume each, readers of all of them, every byte looked at.

A read must give a version that was acknowledged when it began, or a later one that was at least begun when it ended: nothing lost,
nothing stale, nothing mixed. Errors end the test unless the load was made to expect them.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager

from client import Holdfast
from client.errors import ContentChanged, OutcomeUnknown, Unavailable
from tests.cluster.content import content
from tests.cluster.harness import eventually

UNDER_WAY_DEADLINE_S = 60.0

Work = Callable[[Holdfast, str], Awaitable[None]]


class Load:
    """``clients`` are used in turn, by different workers. ``outages``: the cluster may be unavailable for a while (it is killed), but
    must not lie. Without ``rewrite`` every volume is written once, and from then on only read."""

    def __init__(
        self,
        clients: Sequence[Holdfast],
        *,
        writers: int = 8,
        readers: int = 8,
        size: int,
        pause_s: float = 0.0,
        outages: bool = False,
        rewrite: bool = True,
        prefix: str = "v",
    ) -> None:
        self._clients = clients
        self._names = [f"{prefix}{index}" for index in range(writers)]
        self._to_read = itertools.cycle(self._names)
        self._readers = readers
        self._size = size
        self._pause_s = pause_s
        self._outages = outages
        self._rewrite = rewrite
        self.acknowledged = dict.fromkeys(self._names, -1)
        self.begun = dict.fromkeys(self._names, -1)
        self.puts = 0
        self.gets = 0
        self._watch_from = 0.0
        self._slowest_s = 0.0
        self._under_way: set[float] = set()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Load]:
        """Write every volume once, then write and read all of them until the block ends. Errors of a worker end the block."""
        stop = asyncio.Event()
        clients = itertools.cycle(self._clients)
        async with asyncio.TaskGroup() as group:
            for name in self._names:
                group.create_task(self._write_once(next(clients), name))
        async with asyncio.TaskGroup() as group:
            for name in self._names if self._rewrite else []:
                group.create_task(self._until(stop, self._write_once, next(clients), name))
            for _ in range(self._readers):
                group.create_task(self._until(stop, self._read_once, next(clients), None))
            yield self
            stop.set()

    async def goes_on(self, puts: int, gets: int = 0) -> None:
        """Wait until so many more requests have succeeded."""
        puts, gets = self.puts + puts, self.gets + gets
        await eventually(
            lambda: self.puts >= puts and self.gets >= gets,
            f"{puts} writes and {gets} reads have succeeded",
            UNDER_WAY_DEADLINE_S,
        )

    def watch(self) -> None:
        """From now on `slowest_s` is about requests that begin now or later."""
        self._watch_from, self._slowest_s = time.monotonic(), 0.0

    @property
    def slowest_s(self) -> float:
        """The longest request since `watch`, those included that have not ended yet."""
        now = time.monotonic()
        waits = [now - began for began in self._under_way if began >= self._watch_from]
        return max(self._slowest_s, *waits, 0.0)

    @contextmanager
    def _timed(self) -> Iterator[None]:
        began = time.monotonic()
        self._under_way.add(began)
        try:
            yield
        finally:
            self._under_way.discard(began)
            if began >= self._watch_from:
                self._slowest_s = max(self._slowest_s, time.monotonic() - began)

    async def check(self, holdfast: Holdfast) -> None:
        """Everything acknowledged is there. Nothing may be writing."""
        for name in self._names:
            data = await holdfast.get(name)
            assert self._version(name, data, self.acknowledged[name], self.begun[name]) is not None, name

    async def _until(self, stop: asyncio.Event, work: Work, client: Holdfast, name: str | None) -> None:
        while not stop.is_set():
            try:
                await work(client, name or next(self._to_read))
            except (Unavailable, OutcomeUnknown):
                if not self._outages:
                    raise
            await asyncio.sleep(self._pause_s)

    async def _write_once(self, client: Holdfast, name: str) -> None:
        version = self.begun[name] = self.begun[name] + 1
        data = content(name, version, self._size)
        with self._timed():
            await client.put(name, data)
        self.acknowledged[name] = version
        self.puts += 1

    async def _read_once(self, client: Holdfast, name: str) -> None:
        oldest = self.acknowledged[name]
        try:
            with self._timed():
                data = await client.get(name)
        except ContentChanged:
            return  # its gateway died under it and the volume was overwritten before it could go on: an honest answer
        assert self._version(name, data, oldest, self.begun[name]) is not None, (name, oldest, self.begun[name])
        self.gets += 1

    def _version(self, name: str, data: bytes, oldest: int, newest: int) -> int | None:
        """Which version these bytes are, among those that are right now."""
        for version in range(max(oldest, 0), newest + 1):
            if data == content(name, version, self._size):
                return version
        return None
