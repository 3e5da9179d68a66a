"""A test of the test: nodes that are wrong on purpose must be noticed. The table is also in docs/testing.md.

Each row begins at a seed that shows the fault today, so that the run is short. A change of the code changes what seeds mean: up to
`LOOK_ON` seeds are tried.
"""

from __future__ import annotations

from typing import NamedTuple

import pytest

from tests.simulation.catalogue import REGISTER_PLANS, run_registers
from tests.simulation.faults import WHOLE_FAULTS
from tests.simulation.run import simulate

LOOK_ON = 30


class Row(NamedTuple):
    fault: str
    scenario: str
    first: int
    breaks: str
    """The invariant: a fault that merely makes the code fail shows nothing."""


ON_DISKS = "acknowledged means on a quorum of disks"
LOST = "nothing acknowledged is lost"
COPIES = "a planned change never lowers the number of copies"
NO_ORDER = "registers are linearizable"

CAUGHT = [
    Row("chunk acknowledged before fdatasync", "crashes", 1, COPIES),
    Row("head swung before the chunks are durable", "crashes", 1, ON_DISKS),
    Row("handoff counted as two copies", "stand-ins", 1, ON_DISKS),
    Row("garbage collected without grace", "volumes", 1, LOST),
    Row("swept without a fence", "volumes", 5, LOST),
    Row("wiped acceptor votes", "wipes", 7, NO_ORDER),
    Row("acceptor from an old copy votes", "lone-copies", 3, NO_ORDER),
    Row("anti-entropy takes over undecided records", "lone-leaders", 5, NO_ORDER),
    Row("which disk a name stands for is ignored", "replaced", 3, NO_ORDER),
    Row("leader answers reads alone", "registers/three", 1, NO_ORDER),
]


@pytest.mark.parametrize("row", CAUGHT, ids=lambda row: row.fault)
def test_a_deliberate_fault_is_noticed(row: Row) -> None:
    for seed in range(row.first, row.first + LOOK_ON):
        if row.scenario in REGISTER_PLANS:
            result = run_registers(row.scenario, seed, row.fault)
        else:
            result = simulate(row.scenario, seed, fault=WHOLE_FAULTS[row.fault])
        if result.broken is not None and result.broken.invariant == row.breaks:
            return
    pytest.fail(f"{LOOK_ON} seeds of {row.scenario} have not shown: {row.fault}")
