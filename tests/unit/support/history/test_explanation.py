"""Accounts of bad histories: few operations, the right ones, and readable."""

from __future__ import annotations

import random

import pytest

from tests.support.history.explanation import explain, prefix
from tests.support.history.linearizability import is_linearizable
from tests.support.history.operation import CAS, DELETE, NEVER, PUT, READ, Operation
from tests.unit.support.history.honest_register import Mix, honest_history, spoiled


def test_a_stale_read_among_much_else() -> None:
    good = [
        Operation(PUT, 0, 1, b"old", who="c1"),
        Operation(READ, 1, 2, b"old", who="c2"),
        Operation(CAS, 2, 3, b"new", b"old", who="c1"),
        *(Operation(READ, 4 + number, 5 + number, b"new", who="c3") for number in range(50)),
        Operation(PUT, 20, NEVER, b"lost", who="c4"),
    ]
    assert is_linearizable(good)
    bad = [*good, Operation(READ, 30.25, 30.5, b"old", who="c2"), Operation(READ, 70, 71, b"new", who="c5")]
    assert explain(bad) == "\n".join(
        [
            "no order explains 2 of the 56 operations:",
            "     0.0000 to    1.0000  c1: writes old",
            "     2.0000 to    3.0000  c1: replaces old by new",
            "    29.0000 to   30.0000  c3: reads new",
            "    30.2500 to   30.5000  c2: reads old",
            "  nor does it help that other writes may have taken effect: 1",
            "  the sight of new had ended before the write of new can have begun",
        ]
    )


def test_what_explains_nothing_is_told() -> None:
    bad = [Operation(DELETE, 0, 1, who="c1"), Operation(READ, 2, 3, b"x", who="c2"), Operation(PUT, 9, 10, b"x")]
    assert explain(bad[1:]).splitlines()[1:] == [
        "     0.0000 to    1.0000  c2: reads x",
        "  x was seen and nobody had begun to write it",
    ]
    assert "c1: deletes" in explain(bad)


def test_a_prefix_knows_no_later_answer() -> None:
    early, late = Operation(PUT, 0, 5, b"a", existed=True), Operation(READ, 1, 6, b"a")
    assert prefix([early, late], 4) == [Operation(PUT, 0, NEVER, b"a")]
    assert prefix([early, late], 5) == [early]
    assert prefix([early, late], 6) == [early, late]


@pytest.mark.parametrize("seed", range(8))
def test_accounts_of_spoiled_histories_are_short(seed: int) -> None:
    rng = random.Random(seed)
    history = honest_history(seed, Mix(clients=8, operations=400))
    while is_linearizable(wrong := spoiled(history, rng)):
        pass
    account = explain(wrong)
    assert "of the 400 operations" in account
    assert len(account.splitlines()) < 14, account
