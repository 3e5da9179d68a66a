"""The register protocol on virtual time, under trouble: every history must be linearizable, nothing may hang or leak.

One seed again:   HOLDFAST_SEED=17 pytest tests/unit/cluster/register/test_register_simulation.py -k "linearizable and three"
Many seeds:       HOLDFAST_SEEDS=500 pytest -n 2 tests/unit/cluster/register/test_register_simulation.py -k linearizable
"""

from __future__ import annotations

import os

import pytest

from tests.support.simulated.faults import FAULTS
from tests.support.simulated.plans import PLANS
from tests.support.simulated.scenario import simulate

SEEDS = int(os.environ.get("HOLDFAST_SEEDS", "1"))
ONE = os.environ.get("HOLDFAST_SEED")


@pytest.mark.parametrize("seed", [int(ONE)] if ONE else range(SEEDS))
@pytest.mark.parametrize("name", PLANS)
def test_every_history_is_linearizable(name: str, seed: int) -> None:
    run = simulate(seed, PLANS[name])
    assert not run.bad, f"seed {seed}: {[sorted(run.histories[key], key=lambda op: op.call) for key in run.bad]}"
    assert run.answered_in_trouble > 50, run.counts


def test_a_seed_is_a_reproduction() -> None:
    one, other = simulate(7, PLANS["everything"]), simulate(7, PLANS["everything"])
    assert one.histories == other.histories
    assert one.histories != simulate(8, PLANS["everything"]).histories


# What is wrong, under which plan it shows, and the first seed tried: one that catches it today, so that the run is short. A change of
# the code changes what seeds mean; up to `LOOK_ON` more are tried. "3 of 16": in how many of the first seeds it showed when written.
CAUGHT = [
    ("acceptor accepts below its promise", "three", 1),  # 6 of 6, by an invariant as often as by a history
    ("acceptor answers before its accept is durable", "three", 0),  # 3 of 16
    ("acceptor takes its memory for its disk", "pivots", 0),  # 3 of 4
    ("acceptor forgets its promises in a crash", "pivots", 1),  # 3 of 9
    ("acceptor answers before its promise is durable", "pivots", 1),  # 3 of 31
    ("ballot reused after a restart", "restarts", 1),  # 3 of 5
    ("anti-entropy takes over undecided records", "lone leaders", 4),  # 3 of 19
    ("copier takes over undecided records", "shrinking groups", 2),  # 3 of 9
    ("acceptor evicts what is not durable yet", "slow disks", 1),  # 3 of 4
    ("read quorum of one", "three", 0),  # 3 of 3
    ("leader skips rule (a)", "three", 0),  # 3 of 3
    ("leader skips rule (b)", "three", 19),  # 3 of 49
    ("leader calls unknown a no", "three", 1),  # 3 of 4
    ("leader repeats what is in doubt", "three", 13),  # 3 of 24
    ("late creations are not fenced", "late creations", 0),  # 4 of 8
    ("leader uses half of a joint rule", "layouts", 0),  # 3 of 3
    ("learner votes", "amnesia", 6),  # 3 of 36
    ("copier copies nothing", "layouts", 0),  # 3 of 7
    ("purge with a quorum", "purges and amnesia", 4),  # 3 of 14
    ("purge without a promise", "late creations", 2),  # 3 of 40; more often by an invariant
    ("absences are all the same", "late creations", 32),  # 2 of 40
    ("import across a purge", "late creations", 0),  # 4 of 6
]
LOOK_ON = 60


@pytest.mark.parametrize(("fault", "plan", "first"), CAUGHT, ids=[row[0] for row in CAUGHT])
def test_a_deliberate_fault_is_noticed(fault: str, plan: str, first: int) -> None:
    for seed in range(first, first + LOOK_ON):
        try:
            if simulate(seed, PLANS[plan], FAULTS[fault]).bad:
                return
        except AssertionError:
            pass  # an invariant of the code itself was broken: well, but no user has seen anything yet
    pytest.fail(f"{LOOK_ON} seeds have not shown: {fault}")
