"""Campaigns over several processes: a run that fails, raises or takes its process along is a failure of that run, and the others go on."""

from __future__ import annotations

import os
import pickle
import signal
import time
from collections.abc import Iterator
from functools import partial
from itertools import count

import pytest

from tests.simulation import campaign
from tests.simulation.result import BrokenError, Result
from tests.simulation.trace import Line


@pytest.fixture
def in_time() -> Iterator[None]:
    """What hangs fails after a minute."""

    def over(*_: object) -> None:
        raise TimeoutError("the campaign hangs")

    before = signal.signal(signal.SIGALRM, over)
    signal.alarm(60)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def run(name: str, seed: int) -> Result:
    """Some of them end badly."""
    if (name, seed) == ("crashes", 1):
        return Result(name, seed, BrokenError("something", "detail", "mark", "kind"), trace=[Line(1.0, "#1 read")])
    if (name, seed) == ("steady", 2):
        os.kill(os.getpid(), signal.SIGKILL)
    if (name, seed) == ("crashes", 3):
        raise KeyError("nobody expected that")
    return Result(name, seed, trace=[Line(1.0, "#1 read")])


def one_after_another(place: str, name: str, seed: int) -> Result:
    with open(f"{place}/{name}-{seed}", "x"):
        time.sleep(0.02)
    return Result(name, seed)


@pytest.mark.usefixtures("in_time")
def test_every_run_of_two_processes_is_answered_however_it_ends() -> None:
    found = {
        (result.scenario, result.seed): result
        for result in campaign.results(campaign.jobs(["steady", "crashes"], 1, 4), 2, None, run)
    }
    assert set(found) == set(campaign.jobs(["steady", "crashes"], 1, 4))
    failed = {job: result.broken for job, result in found.items() if result.broken is not None}
    assert set(failed) == {("crashes", 1), ("steady", 2), ("crashes", 3)}
    assert failed["crashes", 1].name == "something (kind)"
    assert failed["crashes", 1].mark == "mark"
    assert found["crashes", 1].trace == [Line(1.0, "#1 read")]
    assert found["crashes", 2].trace == []
    assert failed["steady", 2].invariant == campaign.ENDED
    assert "SIGKILL" in failed["steady", 2].detail
    assert failed["crashes", 3].name == f"{campaign.RAISED} (KeyError)"
    assert "nobody expected that" in failed["crashes", 3].detail


def test_a_run_that_raises_in_this_process_does_not_end_the_campaign() -> None:
    work = [("crashes", 3), ("crashes", 4)]
    assert [result.ok for result in campaign.results(work, 1, None, run)] == [False, True]


@pytest.mark.usefixtures("in_time")
def test_runs_are_drawn_as_they_are_done_and_none_after_the_time(tmp_path: os.PathLike[str]) -> None:
    drawn = count(1)
    work = (("steady", seed) for seed in drawn)
    until = time.monotonic() + 4.0
    done = sum(1 for _ in campaign.results(work, 2, until, partial(one_after_another, os.fspath(tmp_path))))
    assert done == len(os.listdir(tmp_path)) > 0
    assert next(drawn) <= done + 2
    assert time.monotonic() < until + 10.0


@pytest.mark.usefixtures("in_time")
def test_who_stops_listening_ends_the_processes() -> None:
    results = campaign.results(campaign.jobs(["steady"], 1, None), 2, None, run)
    next(results)
    results.close()


def test_a_failure_survives_the_way_between_processes() -> None:
    error = BrokenError("something", "detail", "mark")
    error.__cause__ = KeyError("x")
    again = pickle.loads(pickle.dumps(error))
    assert (again.invariant, again.detail, again.mark, again.kind) == ("something", "detail", "mark", "KeyError")
    assert str(again) == "something: detail"
