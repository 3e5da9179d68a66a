"""Runs of the simulation in continuous integration: fixed seeds of every scenario, today's, and those that failed once.

scripts/simulate --help           more of them, or one again
HOLDFAST_DAY=2030-01-31 pytest tests/simulation -k today       the seeds of another day
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.simulation import catalogue, report
from tests.simulation.reduce import reduce
from tests.simulation.regressions import REGRESSIONS
from tests.simulation.result import Result
from tests.simulation.run import fingerprint
from tests.simulation.scenario import SCENARIOS
from tests.simulation.today import FIRST_OF_TODAY

WHOLE_SEEDS, REGISTER_SEEDS = range(1, 5), range(1, 9)
WHOLE_TODAY, REGISTER_TODAY = 2, 3
"""Of each scenario: more than 300 runs. A run of whole nodes takes about three seconds, one of registers alone one."""

FEWER_SEEDS, FEWER_TODAY = range(1, 3), 1
"""Of those that take long, or aim at one moment."""


def runs(*, today: bool) -> list[tuple[str, int]]:
    """Scenario by scenario within a seed, so that the processes of a test run share the slow ones."""
    if today:
        whole, registers, few = (
            range(FIRST_OF_TODAY, FIRST_OF_TODAY + count) for count in (WHOLE_TODAY, REGISTER_TODAY, FEWER_TODAY)
        )
    else:
        whole, registers, few = WHOLE_SEEDS, REGISTER_SEEDS, FEWER_SEEDS
    scenarios, plans = SCENARIOS.items(), catalogue.REGISTER_PLANS.items()
    return [(name, seed) for seed in whole for name, scenario in scenarios if not scenario.fewer or seed in few] + [
        (name, seed) for seed in registers for name, plan in plans if not plan.fewer or seed in few
    ]


def test_there_are_enough() -> None:
    assert len(runs(today=False)) + len(runs(today=True)) >= 300


def must_be_well(result: Result) -> None:
    if not result.ok:
        reduced = reduce(result, catalogue.run, tries=12)
        pytest.fail(f"{report.failure(result)}\n{report.smaller(result, reduced)}", pytrace=False)
    if result.scenario not in SCENARIOS:  # of whole nodes the run itself looks
        answered = sum(count for what, count in result.operations.items() if what.endswith(" ok"))
        assert answered > 50, result.operations


@pytest.mark.parametrize(("name", "seed"), runs(today=False))
def test_fixed(name: str, seed: int) -> None:
    must_be_well(catalogue.run(name, seed))


@pytest.mark.parametrize(("name", "seed"), runs(today=True))
def test_today(name: str, seed: int) -> None:
    must_be_well(catalogue.run(name, seed))


@pytest.mark.parametrize("regression", REGRESSIONS, ids=lambda regression: f"{regression.scenario}-{regression.seed}")
def test_what_failed_once(regression: tuple[str, int, str]) -> None:
    name, seed, _ = regression
    must_be_well(catalogue.run(name, seed))


def test_a_seed_is_a_reproduction_under_any_hash_seed() -> None:
    code = (
        "from tests.simulation.run import fingerprint, simulate\n"
        "runs = [('everything', 4), ('everything', 5), ('rot', 1), ('disks', 1)]\n"
        "print(*(fingerprint(simulate(*run)) for run in runs))"
    )
    printed = set()
    for hash_seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": os.getcwd()}
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True, timeout=300
        )
        printed.add(done.stdout)
    assert len(printed) == 1
    one, other, *on_disks = printed.pop().split()
    assert one != other
    assert one == fingerprint(catalogue.run("everything", 4))
    assert on_disks == [fingerprint(catalogue.run(name, 1)) for name in ("rot", "disks")]
