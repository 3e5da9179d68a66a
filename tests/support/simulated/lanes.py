"""Lanes on virtual time: jobs run where the loop stands, one at a time, each when its time has come. In place of threads.

A lane takes up a job as soon as it has a place for it, and the job is done in one go a drawn time later: it may be thought of as having
run at any moment in between. So jobs of several lanes interleave by chance, and what waits in a lane has not begun. A job that waits for
another lane's job hurries that one: it and what is before it are done at once.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, Final, TypeVar

from tests.support.simulated.disk import PowerCut, SimulatedDisk

R = TypeVar("R")

SYNC_S: Final = 0.002
READ_S: Final = 0.0002

JOB_S: Final[Mapping[str, float]] = {
    "chunk-writer": SYNC_S,
    "registers-write": SYNC_S,
    "chunk-indexer": SYNC_S,
    "scrub": SYNC_S,
}
"""How long a job takes on an average, for lanes whose jobs wait for a sync; on others `READ_S`."""

CALLS_LEFT: Final = (0, 1, 1, 1, 1, 2, 3, 5, 8, 12)
"""How many calls to the disk are left to a job that a crash cuts off, if it has as many: drawn. A batch of chunks is one write, then a
sync."""


class _Job(Future[R]):
    """A future that can be waited for in a single thread."""

    def __init__(self, lane: SimulatedLane, function: Callable[..., R], arguments: tuple[Any, ...]) -> None:
        super().__init__()
        self.lane = lane
        self.function = function
        self.arguments = arguments
        self.timer: asyncio.TimerHandle | None = None
        """Set when it is taken up."""

    def result(self, timeout: float | None = None) -> R:
        self.lane.hurry(self)
        return super().result(0)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        self.lane.hurry(self)
        return super().exception(0)

    def perform(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
        try:
            outcome = self.function(*self.arguments)
        except PowerCut:
            raise  # nobody is left who could be told
        except BaseException as error:
            self.set_exception(error)
        else:
            self.set_result(outcome)


class SimulatedLane:
    def __init__(self, lanes: SimulatedLanes, name: str, width: int) -> None:
        self._lanes = lanes
        self.name = name
        self._mean_s = JOB_S.get(name, READ_S)
        self._of_registers = name.startswith("registers")
        self._width = width
        self._waiting: deque[_Job[Any]] = deque()
        self._begun: list[_Job[Any]] = []
        self._idle: list[asyncio.Future[None]] = []
        self._closed = False

    def post(self, function: Callable[[], None]) -> None:
        def failed(job: Future[None]) -> None:
            if (error := job.exception()) is not None:
                loop.call_exception_handler({"message": "a posted job raised", "exception": error})

        loop = asyncio.get_running_loop()
        self.submit(function).add_done_callback(failed)

    def submit(self, function: Callable[..., R], *arguments: Any) -> Future[R]:
        if self._closed:
            raise RuntimeError("the lane is closed")
        job = _Job(self, function, arguments)
        if not self._lanes.crashed:
            self._waiting.append(job)
            self._take_up()
        return job

    def run(self, function: Callable[..., R], *arguments: Any) -> asyncio.Future[R]:
        future: asyncio.Future[R] = asyncio.get_running_loop().create_future()

        def done(job: Future[R]) -> None:
            if not future.done():
                error = job.exception()
                if error is None:
                    future.set_result(job.result())
                else:
                    future.set_exception(error)

        self.submit(function, *arguments).add_done_callback(done)
        return future

    async def close(self) -> None:
        self._closed = True
        if self._begun and not self._lanes.crashed:
            idle: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._idle.append(idle)
            await idle

    def hurry(self, job: _Job[Any]) -> None:
        """Do a job now, and what is before it."""
        while not job.done():
            if self._lanes.crashed:
                raise PowerCut
            first = job if self._width > 1 else [*self._begun, *self._waiting][0]
            if first in self._begun:
                self._begun.remove(first)
            else:
                self._waiting.remove(first)
            self._do(first)

    def abandon(self) -> list[_Job[Any]]:
        """The process is gone: nothing more is done. Returns what had begun."""
        begun, self._begun = self._begun, []
        self._waiting.clear()
        for job in begun:
            assert job.timer is not None
            job.timer.cancel()
        return begun

    def _take_up(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting and len(self._begun) < self._width:
            job = self._waiting.popleft()
            self._begun.append(job)
            job.timer = loop.call_later(
                self._lanes.pause(self._mean_s, of_registers=self._of_registers), self._end, job
            )

    def _end(self, job: _Job[Any]) -> None:
        self._begun.remove(job)
        self._do(job)

    def _do(self, job: _Job[Any]) -> None:
        job.perform()
        self._take_up()
        if not self._begun:
            idle, self._idle = self._idle, []
            for waiter in idle:
                if not waiter.done():
                    waiter.set_result(None)


class SimulatedLanes:
    """The lanes of one process. ``slowness`` may be changed at any time: 1 is a good disk, 1000 one that is dying. ``register_slowness``:
    of the lanes of registers, which may have a disk of their own."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self.slowness = self.register_slowness = 1.0
        self.crashed = False
        self._all: list[SimulatedLane] = []

    def open(self, name: str, width: int = 1) -> SimulatedLane:
        lane = SimulatedLane(self, name, width)
        self._all.append(lane)
        return lane

    def pause(self, mean_s: float, *, of_registers: bool) -> float:
        slowness = self.register_slowness if of_registers else self.slowness
        return mean_s * slowness * (0.2 + self._rng.expovariate(1))

    def is_working(self, name: str) -> bool:
        """Whether a job of that lane is under way."""
        return any(lane._begun for lane in self._all if lane.name == name)

    def crash(self, disk: SimulatedDisk) -> None:
        """The process dies now: what had begun is done, is not, or is cut off in the middle of its calls to the disk."""
        self.crashed = True
        begun = [job for lane in self._all for job in lane.abandon()]
        self._rng.shuffle(begun)
        for job in begun:
            fate = self._rng.choice(["done", "not begun", "cut off", "cut off"])
            if fate != "not begun" and not job.done():
                disk.calls_left = self._rng.choice(CALLS_LEFT) if fate == "cut off" else None
                with suppress(PowerCut):
                    job.perform()
