"""The simulation's own parts: the checker of volumes' histories, the reducer, the reports, the command line."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from tests.simulation import __main__ as command
from tests.simulation import catalogue, report
from tests.simulation.reduce import reduce
from tests.simulation.result import BrokenError, Result
from tests.simulation.run import WHOLE, Cut
from tests.simulation.scenario import SCENARIOS
from tests.simulation.trace import Line, around
from tests.simulation.trouble import draw
from tests.simulation.volume_history import (
    CONFLICT,
    CREATE,
    DELETE,
    LISTED,
    MISFIT,
    MISSING,
    RANGE,
    READ,
    REPLACE,
    RESIZE,
    VolumeOperation,
    is_explained,
)
from tests.support.history.operation import NEVER


def replaced(call: float, ret: float, value: bytes, **more: object) -> VolumeOperation:
    return VolumeOperation(REPLACE, call, ret, value=value, tag=value, **more)  # type: ignore[arg-type]


def read(call: float, ret: float, value: bytes | None) -> VolumeOperation:
    return VolumeOperation(READ, call, ret, value=value)


def ranged(call: float, ret: float, offset: int, value: bytes, **more: object) -> VolumeOperation:
    return VolumeOperation(RANGE, call, ret, value=value, offset=offset, **more)  # type: ignore[arg-type]


GOOD = {
    "a range write makes the next content": [replaced(0, 1, b"aaaa"), ranged(2, 3, 1, b"b"), read(4, 5, b"abaa")],
    "two range writes in either order": [
        replaced(0, 1, b"aaaa"),
        ranged(2, 9, 0, b"b"),
        ranged(2, 9, 3, b"c"),
        read(3, 4, b"aaac"),
        read(10, 11, b"baac"),
    ],
    "an unknown range write never happened": [replaced(0, 1, b"aaaa"), ranged(2, NEVER, 0, b"b"), read(3, 4, b"aaaa")],
    "it grows": [
        VolumeOperation(CREATE, 0, 1, size=2),
        VolumeOperation(RESIZE, 2, 3, size=3),
        read(4, 5, b"\0\0\0"),
        VolumeOperation(LISTED, 6, 7, size=3),
    ],
    "a condition fails": [replaced(0, 1, b"a"), replaced(2, 3, b"b", expected=b"c", ended=CONFLICT), read(4, 5, b"a")],
    "gone and made anew": [
        replaced(0, 1, b"a"),
        VolumeOperation(DELETE, 2, 3),
        VolumeOperation(DELETE, 4, 5, ended=MISSING),
        VolumeOperation(LISTED, 6, 7),
        replaced(8, 9, b"b", expected=None),
        read(10, 11, b"b"),
    ],
    "it does not fit": [replaced(0, 1, b"aa"), ranged(2, 3, 1, b"bb", ended=MISFIT), read(4, 5, b"aa")],
}

BAD = {
    "a mixture": [replaced(0, 1, b"aaaa"), replaced(2, 3, b"bbbb"), read(4, 5, b"aabb")],
    "a mixture while both are written": [replaced(0, 9, b"aaaa"), replaced(0, 9, b"bbbb"), read(1, 2, b"aabb")],
    "a lost range write": [replaced(0, 1, b"aaaa"), ranged(2, 3, 1, b"b"), read(4, 5, b"aaaa")],
    "deleted and back": [replaced(0, 1, b"a"), VolumeOperation(DELETE, 2, 3), read(4, 5, b"a")],
    "listed although it is gone": [
        replaced(0, 1, b"a"),
        VolumeOperation(DELETE, 2, 3),
        VolumeOperation(LISTED, 4, 5, size=1),
    ],
    "a condition held and was refused": [replaced(0, 1, b"a"), replaced(2, 3, b"b", expected=b"a", ended=CONFLICT)],
    "two created it": [
        replaced(0, 5, b"a", expected=None),
        replaced(0, 5, b"b", expected=None),
    ],
    "it fits and was refused": [replaced(0, 1, b"aaa"), ranged(2, 3, 1, b"bb", ended=MISFIT)],
}


@pytest.mark.parametrize("name", GOOD)
def test_good(name: str) -> None:
    assert is_explained(GOOD[name])


@pytest.mark.parametrize("name", BAD)
def test_bad(name: str) -> None:
    assert not is_explained(BAD[name])


def failing_when(condition: Callable[[Cut], bool]) -> Callable[[str, int, Cut], Result]:
    def run(name: str, seed: int, cut: Cut) -> Result:
        return Result(name, seed, BrokenError("something", str(cut)) if condition(cut) else None)

    return run


def test_a_failure_is_made_small() -> None:
    """Only event 2 matters, and eleven operations."""

    def breaks(cut: Cut) -> bool:
        return (cut.events is None or 2 in cut.events) and (cut.operations is None or cut.operations >= 11)

    run = failing_when(breaks)
    first = run("everything", 1, WHOLE)
    cut, smaller, out_of_time = reduce(first, run)
    assert not out_of_time
    assert cut.events == (2,)
    assert cut.operations is not None
    assert 11 <= cut.operations < 30
    assert cut.nodes == 3
    assert smaller.broken is not None
    assert report.replay(smaller, cut).startswith("scripts/simulate --scenario everything --seed 1 --nodes 3")


def test_another_failure_is_not_taken_for_this_one() -> None:
    def run(name: str, seed: int, cut: Cut) -> Result:
        return Result(name, seed, BrokenError("something" if cut == WHOLE else "something else", ""))

    first = run("crashes", 1, WHOLE)
    assert reduce(first, run) == (WHOLE, first, False)


def test_another_error_that_nobody_promised_is_another_failure() -> None:
    def run(name: str, seed: int, cut: Cut) -> Result:
        kind = "KeyError" if cut == WHOLE else "ValueError"
        return Result(name, seed, BrokenError("nothing fails otherwise than it may", "", kind=kind))

    first = run("crashes", 1, WHOLE)
    assert reduce(first, run).result is first


def test_making_it_small_ends_in_time_and_says_so() -> None:
    """Each try takes 100 s."""
    run = failing_when(lambda cut: cut.operations is None or cut.operations >= 11)
    first = run("everything", 1, WHOLE)
    now = [0.0]
    tries: list[Cut] = []

    def slow(name: str, seed: int, cut: Cut) -> Result:
        now[0] += 100.0
        tries.append(cut)
        return run(name, seed, cut)

    reduced = reduce(first, slow, seconds=250.0, clock=lambda: now[0])
    assert len(tries) == 3
    assert reduced.out_of_time
    assert "as far as the time went" in report.smaller(first, reduced)
    assert report.replay(first) in report.smaller(first, reduced)
    none = reduce(first, slow, seconds=-1.0, clock=lambda: now[0])
    assert none == (WHOLE, first, True)
    assert "as far as the time went" in report.smaller(first, none)


def test_events_are_drawn_from_the_seed_alone() -> None:
    scenario = SCENARIOS["everything"]
    assert draw(5, scenario) == draw(5, scenario) != draw(6, scenario)
    assert len(draw(5, scenario)) == scenario.events


def test_a_report_shows_the_trouble_and_the_end() -> None:
    lines = [Line(float(second), f"#{second} read p/k0") for second in range(100)]
    lines.insert(3, Line(2.5, "! wipe of n1"))
    shown = around(lines)
    assert shown[0].text == "! wipe of n1"
    assert shown[-1].text == "#99 read p/k0"
    assert len(shown) < 12
    assert len(around(lines, "p/k0")) > 50


def test_the_command_replays_cuts_and_fails_on_failure(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Cut] = []

    def run(name: str, seed: int, cut: Cut = WHOLE) -> Result:
        seen.append(cut)
        broken = BrokenError("registers are linearizable", "no order") if seed == 3 else None
        return Result(name, seed, broken, trace=[Line(1.0, "#1 read")])

    monkeypatch.setattr(catalogue, "run", run)
    arguments = [
        "--scenario",
        "wipes",
        "--seed",
        "3",
        "--nodes",
        "3",
        "--events",
        "0,4",
        "--operations",
        "20",
        "--trace",
    ]
    assert command.main(arguments) == 1
    assert seen == [Cut(3, 20, None, (0, 4))]
    printed = capsys.readouterr()
    assert "#1 read" in printed.out
    assert (
        "replay: scripts/simulate --scenario wipes --seed 3 --nodes 3 --operations 20 --events 0,4 --trace"
        in printed.err
    )

    assert command.main(["--scenario", "wipes", "--seeds", "1..2", "--json"]) == 0
    counts = json.loads(capsys.readouterr().out)
    assert counts["seeds"] == 2
    assert counts["failures"] == []
    assert command.main(["--scenario", "wipes", "--seeds", "1..3", "--json", "--no-reduce"]) == 1
    assert json.loads(capsys.readouterr().out)["failures"][0]["seed"] == 3


def test_the_command_refuses_what_it_does_not_know(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--scenario", "nonsense"]) == 2
    assert "--list" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        command.main(["--seeds", "9..3"])
    assert command.main(["--list"]) == 0
    assert "everything" in capsys.readouterr().out
