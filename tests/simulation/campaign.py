"""Many runs over several processes: results as they come, in any order; each run is its seed's alone, whichever process does it.

A process is given one run at a time, so when it dies it is known which one it had: that becomes a failure of the run, and another
process goes on with the next.
"""

from __future__ import annotations

import multiprocessing
import signal
import time
import traceback
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import suppress
from multiprocessing import connection
from multiprocessing.context import ForkServerContext

from tests.simulation import catalogue
from tests.simulation.result import BrokenError, Result

RECYCLED_AFTER = 200
"""Runs that one process does before another takes its place, so that nothing it leaves behind adds up."""

ENDS_WITHIN_S = 5.0
"""A process that has nothing more to do."""

ENDED = "the process of a run lives to its end"
"""What is broken when it does not, as when the machine has no memory left. Not to be tried again in the process that asks."""

RAISED = "a run never raises"

Job = tuple[str, int]
Run = Callable[[str, int], Result]


def jobs(names: list[str], first: int, last: int | None) -> Iterator[Job]:
    """Every scenario in turn, seed by seed; without a ``last`` for ever."""
    seed = first
    while last is None or seed <= last:
        for name in names:
            yield name, seed
        seed += 1


def results(
    work: Iterable[Job], processes: int, until: float | None, run: Run | None = None
) -> Generator[Result, None, None]:
    """``until``: of `time.monotonic`, after which nothing new is begun. ``run``: instead of the catalogue's; known by its name to
    other processes."""
    run = catalogue.run if run is None else run
    timed = _timed(iter(work), until)
    if processes == 1:
        for name, seed in timed:
            yield _light(guarded(run, name, seed))
        return
    context = multiprocessing.get_context("forkserver")
    idle = [_Worker(context, run) for _ in range(processes)]
    busy: dict[connection.Connection, _Worker] = {}
    try:
        while True:
            while idle and (job := next(timed, None)) is not None:
                worker = idle.pop()
                worker.begin(job)
                busy[worker.pipe] = worker
            if not busy:
                return
            for pipe in connection.wait(list(busy)):
                assert isinstance(pipe, connection.Connection)
                worker = busy.pop(pipe)
                result = worker.result()
                if worker.done >= RECYCLED_AFTER or not worker.lives:
                    worker.end()
                    worker = _Worker(context, run)
                idle.append(worker)
                yield result
    finally:
        for worker in [*idle, *busy.values()]:
            worker.end()


def guarded(run: Run, name: str, seed: int) -> Result:
    """Whatever a run raises is a failure with its name and seed."""
    try:
        return run(name, seed)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        return Result(name, seed, BrokenError(RAISED, traceback.format_exc(), kind=type(error).__name__))


class _Worker:
    """A process that does one run after another."""

    def __init__(self, context: ForkServerContext, run: Run) -> None:
        self.pipe, far = context.Pipe()
        self._process = context.Process(target=_serve, args=(far, run), daemon=True)
        self._process.start()
        far.close()
        self._job: Job | None = None
        self.done = 0
        self.lives = True

    def begin(self, job: Job) -> None:
        self._job = job
        with suppress(OSError):  # it is gone, as its silence will tell
            self.pipe.send(job)

    def result(self) -> Result:
        """What it has to say, once it has."""
        assert self._job is not None
        try:
            result = self.pipe.recv()
        except (EOFError, OSError):
            self.lives = False
            self._process.join(ENDS_WITHIN_S)
            name, seed = self._job
            return Result(name, seed, BrokenError(ENDED, f"it ended with {_ending(self._process.exitcode)}"))
        assert isinstance(result, Result)
        self.done += 1
        return result

    def end(self) -> None:
        """Whatever it is doing."""
        self.pipe.close()
        self._process.terminate()
        self._process.join(ENDS_WITHIN_S)
        if self._process.is_alive():
            self._process.kill()


def _ending(code: int | None) -> str:
    if code is None or code >= 0:
        return f"code {code}"
    return signal.Signals(-code).name


def _serve(pipe: connection.Connection, run: Run) -> None:
    """Until nobody wants anything more. An interrupt from the keyboard is for the process that asks."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with suppress(EOFError, OSError):
        while True:
            name, seed = pipe.recv()
            pipe.send(_light(guarded(run, name, seed)))


def _timed(work: Iterator[Job], until: float | None) -> Iterator[Job]:
    for job in work:
        if until is not None and time.monotonic() >= until:
            return
        yield job


def _light(result: Result) -> Result:
    """Without the trace of a run that went well."""
    if result.ok:
        result.trace = []
    return result
