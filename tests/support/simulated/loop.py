"""An asyncio event loop on virtual time: where a real loop would wait, this one moves its clock.

One seed fixes the order in which tasks run, and runs are exactly repeatable as long as everything else random comes from seeded
generators (`streams`). What may change places, and what may not:

* asyncio promises that callbacks run in the order of their `call_soon`, and timers in the order of their times. That holds here too:
  plain callbacks (done callbacks, protocol calls, timers) keep their order among each other, and equal times keep the order of creation.
* asyncio promises nothing about two tasks that are both ready. So the *steps of tasks* that are ready at the beginning of a turn run in an
  order drawn from the scheduling stream. A step may also fall behind callbacks of its turn that came after it, but never gets ahead of one
  that came before it: whoever schedules a callback and then yields finds it done, as ever. A task has at most one step waiting, so
  its own steps never change places, and whatever a step makes ready comes in a later turn: no effect before its cause.
* Now and then a process is slow (`Scheduling`): before a step of it runs, everything that is ready or due in that process waits
  for a while of virtual time, and then happens at once, in order. Processes are told apart by `PROCESS`, a context variable that tasks
  and callbacks inherit; what belongs to no process (a scenario) is never held.

Without a seed everything is first come, first served. `hold` and `release` do the same as a slow process for as long as they are told:
that is what SIGSTOP does, whose victim finds all its timers overdue afterwards.

The loop is its own, on the public parts of asyncio (Task, Future, AbstractEventLoop), and takes a callback for a step where
asyncio itself does when it prints one: its ``__self__`` is a Task. Tasks and futures hash by the order of their making instead
of by address, so sets of them (asyncio's own in TaskGroup and wait) iterate alike in every run; the garbage collector runs
at fixed turns. Threads and real I/O are errors at once: `RealWorld`.
"""

from __future__ import annotations

import asyncio
import contextvars
import gc
import heapq
import random
import sys
import threading
import weakref
from asyncio import events
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator
from contextlib import contextmanager
from contextvars import Context, ContextVar
from dataclasses import dataclass
from itertools import count
from typing import Any, TypeVar, cast

from tests.support.simulated.real_world import LoopWithoutIO, RealWorld, no_threads
from tests.support.simulated.streams import Streams
from tests.support.simulated.trace import Trace

T = TypeVar("T")

STEPS_WITHOUT_TIME = 200_000
"""So many turns of the loop without any time passing are a livelock."""
TURNS_PER_COLLECTION = 20_000
"""Garbage in cycles is collected each time so many turns are over: at the same moments in every run."""
CANCELLED_TIMERS = 200
"""With more cancelled timers than this, and than half of all, they are thrown out."""
TRACE_SHOWN = 60
"""So many of the last events are shown with a failure."""

PROCESS: ContextVar[str] = ContextVar("PROCESS", default="")
"""The simulated process that a task or callback belongs to; empty: to none."""


def process_context(name: str) -> Context:
    """In which something runs that belongs to that process."""
    context = contextvars.copy_context()
    context.run(PROCESS.set, name)
    return context


class Stuck(AssertionError):
    """Nothing will ever happen again, or the same things happen for ever."""


@dataclass(frozen=True, slots=True)
class Scheduling:
    """How unfair the loop is when it has a seed."""

    shuffle: bool = True
    """Ready steps run in a drawn order."""
    slow_chance: float = 0.0002
    """That a process is held up before one of its steps."""
    slow_mean_s: float = 0.005
    """For how long on the average."""


class _Handle(asyncio.TimerHandle):
    """A callback to run. `asyncio.Timeout` and the like only ever cancel it, and ask for its time."""

    __slots__ = ("arguments", "callback", "gone", "home", "run", "step", "time")

    def __init__(
        self,
        time: float,
        callback: Callable[..., object],
        arguments: tuple[Any, ...],
        context: Context,
        home: VirtualTimeLoop,
    ) -> None:
        self.time = time
        self.callback = callback
        self.arguments = arguments
        self.run = context
        self.home = home
        self.gone = False
        self.step = isinstance(getattr(callback, "__self__", None), asyncio.Task)

    def cancel(self) -> None:
        if not self.gone:
            self.gone = True
            self.callback, self.arguments = _nothing, ()
            if self.time >= 0:
                self.home.cancelled_timers += 1

    def cancelled(self) -> bool:
        return self.gone

    def when(self) -> float:
        return self.time

    def __repr__(self) -> str:
        return f"<{'cancelled ' if self.gone else ''}handle of {self.callback!r} at {self.time}>"

    __hash__ = object.__hash__

    def __eq__(self, other: object) -> bool:
        return self is other


def _nothing() -> None:
    """What a cancelled handle holds."""


class _Task(asyncio.Task[T]):
    serial = 0

    def __hash__(self) -> int:
        return self.serial


class _Future(asyncio.Future[T]):
    serial = 0

    def __hash__(self) -> int:
        return self.serial


class VirtualTimeLoop(LoopWithoutIO):
    def __init__(
        self, rng: random.Random | None = None, scheduling: Scheduling = Scheduling(), trace: Trace | None = None
    ) -> None:
        self.trace = trace if trace is not None else Trace()
        self.faults: list[str] = []
        """What reached the loop's exception handler: errors that nobody looked at."""
        self.fault_types: list[str] = []
        """Of each the error's type, or nothing."""
        self.turns = 0
        self.steps = 0
        self.cancelled_timers = 0
        self._rng = rng
        self._scheduling = scheduling
        self._slow_chance = scheduling.slow_chance if rng is not None else 0.0
        self._now = 0.0
        self._ready: list[_Handle] = []
        self._timers: list[tuple[float, int, _Handle]] = []
        self._serial = count(1)
        self._held: dict[str, list[_Handle]] = {}
        self._slow: dict[str, float] = {}
        self._released: list[str] = []
        self._generators: dict[int, weakref.ref[AsyncGenerator[Any, Any]]] = {}
        self._running = False
        self._stopping = False
        self._closed = False
        self._still = 0
        self._thread = threading.get_ident()

    # time

    def time(self) -> float:
        return self._now

    # asking for something to be run

    def call_soon(self, callback: Callable[..., object], *args: Any, context: Context | None = None) -> asyncio.Handle:  # type: ignore[override]
        if self._closed:
            raise RuntimeError("Event loop is closed")
        handle = _Handle(-1.0, callback, args, contextvars.copy_context() if context is None else context, self)
        self._ready.append(handle)
        return handle

    def call_soon_threadsafe(  # type: ignore[override]
        self, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        if threading.get_ident() != self._thread:
            raise RealWorld("call_soon_threadsafe from another thread: there is only one in a simulation")
        return self.call_soon(callback, *args, context=context)

    def call_later(  # type: ignore[override]
        self, delay: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        return self.call_at(self._now + delay, callback, *args, context=context)

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        if self._closed:
            raise RuntimeError("Event loop is closed")
        when = max(when, 0.0)
        handle = _Handle(when, callback, args, contextvars.copy_context() if context is None else context, self)
        heapq.heappush(self._timers, (when, next(self._serial), handle))
        return handle

    def create_future(self) -> asyncio.Future[Any]:
        future: _Future[Any] = _Future(loop=self)
        future.serial = next(self._serial)
        return future

    def create_task(
        self,
        coro: Generator[Any, None, T] | Coroutine[Any, Any, T],
        *,
        name: object = None,
        context: Context | None = None,
        **other: Any,
    ) -> asyncio.Task[T]:
        task: _Task[T] = _Task.__new__(_Task)
        task.serial = serial = next(self._serial)  # first of all: making a task puts it into asyncio's set of all tasks
        task.__init__(  # type: ignore[misc]
            cast("Coroutine[Any, Any, T]", coro),
            loop=self,
            name=f"task {serial}" if name is None else str(name),
            context=context,
            **other,
        )
        return task

    # processes that stand still

    def hold(self, process: str) -> None:
        """Nothing of that process runs until `release`."""
        self._slow.pop(process, None)
        if process in self._released:
            self._released.remove(process)
        self._held.setdefault(process, [])

    def release(self, process: str) -> None:
        """Everything of it that is overdue runs now, in order."""
        self._slow.pop(process, None)
        if process in self._held and process not in self._released:
            self._released.append(process)

    def release_all(self) -> None:
        for process in self._held:
            self.release(process)

    def is_held(self, process: str) -> bool:
        return process in self._held and process not in self._slow and process not in self._released

    def _slow_down(self, process: str, seconds: float) -> None:
        if not process or process in self._held:
            return
        until = self._now + seconds
        self._held[process] = []
        self._slow[process] = until
        self.call_later(seconds, self._quick_again, process, until, context=Context())

    def _quick_again(self, process: str, until: float) -> None:
        if self._slow.get(process) == until:
            self.release(process)

    # turning

    def run_forever(self) -> None:
        if self._running or events._get_running_loop() is not None:
            raise RuntimeError("a loop is running already")
        hooks = sys.get_asyncgen_hooks()
        collecting = gc.isenabled()
        self._running = True
        self._still = 0
        self._thread = threading.get_ident()
        try:
            gc.disable()
            sys.set_asyncgen_hooks(firstiter=self._generator_begins, finalizer=self._generator_ends)
            events._set_running_loop(self)
            with no_threads():
                while True:
                    self._turn()
                    if self._stopping:
                        break
        finally:
            self._stopping = self._running = False
            events._set_running_loop(None)
            sys.set_asyncgen_hooks(*hooks)
            if collecting:
                gc.enable()

    def _turn(self) -> None:
        timers = self._timers
        if self.cancelled_timers > CANCELLED_TIMERS and self.cancelled_timers * 2 > len(timers):
            timers = self._timers = [timer for timer in timers if not timer[2].gone]
            heapq.heapify(timers)
            self.cancelled_timers = 0
        while timers and timers[0][2].gone:
            heapq.heappop(timers)
            self.cancelled_timers -= 1
        self.turns += 1
        if self._released:
            # what was held is older than whatever is ready now
            overdue = [handle for process in self._released for handle in self._held.pop(process)]
            self._released.clear()
            self._ready = overdue + self._ready
        if self._ready or self._stopping:
            self._still += 1
            if self._still > STEPS_WITHOUT_TIME:
                raise Stuck("the loop turns and no time passes")
        elif not timers:
            raise Stuck("every task waits for something that nobody will do")
        elif timers[0][0] > self._now:
            self._still = 0
            self._now = timers[0][0]
        if self.turns % TURNS_PER_COLLECTION == 0:
            gc.collect()
        ready, self._ready = self._ready, []
        now = self._now
        while timers and timers[0][0] <= now:
            handle = heapq.heappop(timers)[2]
            if handle.gone:
                self.cancelled_timers -= 1
            else:
                handle.time = -1.0
                ready.append(handle)
        rng, slow_chance = self._rng, self._slow_chance
        if rng is not None and len(ready) > 1 and self._scheduling.shuffle:
            ready = self._shuffled(ready, rng)
        held = self._held
        self.steps += len(ready)
        for handle in ready:
            if handle.gone:
                continue
            if slow_chance and handle.step and rng is not None and rng.random() < slow_chance:
                self._slow_down(handle.run.get(PROCESS, ""), rng.expovariate(1 / self._scheduling.slow_mean_s))
            if held:
                waiting = held.get(handle.run.get(PROCESS, ""))
                if waiting is not None:
                    waiting.append(handle)
                    continue
            try:
                handle.run.run(handle.callback, *handle.arguments)
            except (SystemExit, KeyboardInterrupt):
                raise
            except BaseException as error:
                self._failed(handle, error)

    def _shuffled(self, ready: list[_Handle], rng: random.Random) -> list[_Handle]:
        """Steps in a drawn order. Each may fall behind callbacks that came after it, never get ahead of one that came before."""
        order: list[_Handle] = []
        waiting: list[_Handle] = []
        for handle in ready:
            if handle.step:
                waiting.append(handle)
                continue
            if waiting:
                later: list[_Handle] = []
                for step in _in_drawn_order(waiting, rng):
                    (order if rng.random() < 0.5 else later).append(step)
                waiting = later
            order.append(handle)
        return order + _in_drawn_order(waiting, rng)

    def _failed(self, handle: _Handle, error: BaseException) -> None:
        self.call_exception_handler({"message": f"exception in {handle!r}", "exception": error, "handle": handle})

    def run_until_complete(self, future: Any) -> Any:
        task = future if asyncio.isfuture(future) else self.create_task(future)
        task.add_done_callback(self._completed)
        try:
            self.run_forever()
        finally:
            task.remove_done_callback(self._completed)
        if not task.done():
            raise RuntimeError("the loop was stopped before the future was done")
        return task.result()

    def run_to_the_end(self, main: Coroutine[Any, Any, T]) -> T:
        """Run it, then end whatever it left behind, and collect it: the errors of tasks that nobody looked at are told then."""
        try:
            return cast("T", self.run_until_complete(main))
        finally:
            self.release_all()
            left = sorted(asyncio.all_tasks(self), key=hash)
            for task in left:
                task.cancel()
            if left:
                self.run_until_complete(asyncio.wait(left, timeout=1.0))
            self.run_until_complete(self.shutdown_asyncgens())
            gc.collect()

    def _completed(self, future: asyncio.Future[Any]) -> None:
        self._stopping = True

    def stop(self) -> None:
        self._stopping = True

    def is_running(self) -> bool:
        return self._running

    def is_closed(self) -> bool:
        return self._closed

    def close(self) -> None:
        assert not self._running
        self._closed = True
        self._ready.clear()
        self._timers.clear()
        self._held.clear()

    # asynchronous generators

    def _generator_begins(self, generator: AsyncGenerator[Any, Any]) -> None:
        key = next(self._serial)
        self._generators[key] = weakref.ref(generator, lambda _: self._generators.pop(key, None))

    def _generator_ends(self, generator: AsyncGenerator[Any, Any]) -> None:
        if not self._closed:
            self.call_soon(self.create_task, generator.aclose())

    async def shutdown_asyncgens(self) -> None:
        for reference in list(self._generators.values()):
            generator = reference()
            if generator is not None:
                await generator.aclose()

    async def shutdown_default_executor(self, timeout: float | None = None) -> None:
        """There is none."""

    # errors

    def get_debug(self) -> bool:
        return False

    def set_debug(self, enabled: bool) -> None:
        """Asked for with -X dev; there is nothing to add."""

    def default_exception_handler(self, context: dict[str, Any]) -> None:
        error = context.get("exception")
        self.faults.append(f"{context.get('message')}: {error!r}")
        self.fault_types.append("" if error is None else type(error).__name__)

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        self.default_exception_handler(context)

    def get_exception_handler(self) -> None:
        return None

    def set_exception_handler(self, handler: object) -> None:
        raise NotImplementedError("whatever nobody looked at fails the run")

    def get_task_factory(self) -> None:
        return None

    def set_task_factory(self, factory: object) -> None:
        raise NotImplementedError("tasks are made here, so that they hash alike in every run")


def _in_drawn_order(steps: list[_Handle], rng: random.Random) -> list[_Handle]:
    """A shuffle of our own, for `random.shuffle` may draw otherwise in another Python."""
    for left in range(len(steps) - 1, 0, -1):
        other = int(rng.random() * (left + 1))
        steps[left], steps[other] = steps[other], steps[left]
    return steps


def note(node: str, *words: object) -> None:
    """Add an event to the running loop's trace, if it keeps one."""
    loop = asyncio.get_running_loop()
    if isinstance(loop, VirtualTimeLoop):
        loop.trace.note(loop.time(), node, *words)


@contextmanager
def own_garbage() -> Generator[None]:
    """Around a run and all it is made of: collections look only at what came into being within, since what there was before is most of
    all there is."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def run_virtual(
    main: Coroutine[Any, Any, T],
    *,
    seed: int | None = None,
    streams: Streams | None = None,
    scheduling: Scheduling = Scheduling(),
    trace: Trace | None = None,
) -> T:
    """Run to the end, then end whatever it left behind. With a seed (or streams), tasks run in an order drawn from it.

    Raises `Stuck`; AssertionError for errors that nobody looked at. A failure carries the last events of the trace as a note.
    """
    if streams is None and seed is not None:
        streams = Streams(seed)
    loop = VirtualTimeLoop(streams.stream("scheduling") if streams is not None else None, scheduling, trace)
    try:
        result = loop.run_to_the_end(main)
        assert not loop.faults, loop.faults
    except BaseException as error:
        if loop.trace.on:
            error.add_note("the last events:\n" + "\n".join(loop.trace.lines(TRACE_SHOWN)))
        raise
    else:
        return result
    finally:
        loop.close()
