"""Many runs over several processes: results as they come, in any order; each run is its seed's alone, whichever process does it."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterable, Iterator
from itertools import islice
from multiprocessing.pool import AsyncResult

from tests.simulation import catalogue
from tests.simulation.result import Result

BATCH = 4
"""Runs handed to a process at a time: a few seconds of work."""

RECYCLED_AFTER = 50
"""Batches that one process does before another takes its place, so that nothing it leaves behind adds up."""

Job = tuple[str, int]


def jobs(names: list[str], first: int, last: int | None) -> Iterator[Job]:
    """Every scenario in turn, seed by seed; without a ``last`` for ever."""
    seed = first
    while last is None or seed <= last:
        for name in names:
            yield name, seed
        seed += 1


def results(work: Iterable[Job], processes: int, until: float | None) -> Iterator[Result]:
    """``until``: of `time.monotonic`, after which nothing new is begun."""
    timed = _timed(iter(work), until)
    if processes == 1:
        for name, seed in timed:
            yield _light(catalogue.run(name, seed))
        return
    context = multiprocessing.get_context("forkserver")
    with context.Pool(processes, maxtasksperchild=RECYCLED_AFTER) as pool:
        # A few batches ahead: a pool that is fed a generator would draw all of it at once.
        waiting: list[AsyncResult[list[Result]]] = []
        batches = iter(lambda: list(islice(timed, BATCH)), [])
        while True:
            while len(waiting) < 2 * processes and (batch := next(batches, None)) is not None:
                waiting.append(pool.apply_async(_run_batch, (batch,)))
            if not waiting:
                return
            yield from waiting.pop(0).get()


def _timed(work: Iterator[Job], until: float | None) -> Iterator[Job]:
    for job in work:
        if until is not None and time.monotonic() >= until:
            return
        yield job


def _run_batch(batch: list[Job]) -> list[Result]:
    return [_light(catalogue.run(name, seed)) for name, seed in batch]


def _light(result: Result) -> Result:
    """Without the trace of a run that went well."""
    if result.ok:
        result.trace = []
    return result
