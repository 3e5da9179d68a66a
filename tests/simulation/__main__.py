"""`scripts/simulate`: runs of the simulation from the command line."""

from __future__ import annotations

import argparse
import json
import sys
import time
from contextlib import closing
from functools import partial

from tests.simulation import campaign, catalogue, report
from tests.simulation.reduce import REDUCING_S, reduce
from tests.simulation.result import Result
from tests.simulation.run import Cut

PROGRESS_S = 5.0

DESCRIPTION = """\
Whole clusters in one process, on virtual time: users read and write registers and volumes while nodes crash, freeze, lose their disks,
are cut off, join and leave. Every history must be explainable, nothing acknowledged may be lost, and in the end every copy must be where it
belongs. A seed and a scenario are a run, and give the same run every time."""

EXAMPLES = """\
examples:
  scripts/simulate --seeds 1..20                          every scenario, 20 seeds each
  scripts/simulate --minutes 30 --jobs 2                  from seed 1 on, for half an hour, on two cores
  scripts/simulate --scenario wipes --scenario layouts --seeds 100..199
  scripts/simulate --scenario wipes --seed 17 --trace     one run, with everything that happened in it
  scripts/simulate --list                                 the scenarios

A run that fails is made smaller by itself; the last line of its report replays it. The exit code is 1 when any run failed.
docs/testing.md says what is checked, and how to add scenarios and faults."""


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    if options.list:
        print("\n".join(catalogue.NAMES))
        return 0
    unknown = [name for name in options.scenario if name not in catalogue.NAMES]
    if unknown:
        print(f"scripts/simulate: no scenario {unknown[0]!r}; --list shows them", file=sys.stderr)
        return 2
    names = options.scenario or catalogue.NAMES
    if options.seed is not None:
        return _one(names, options)
    return _many(names, options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "scripts/simulate",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--scenario", action="append", default=[], metavar="NAME", help="only this one; may be repeated"
    )
    parser.add_argument("--seeds", type=_range, metavar="A..B", help="the seeds, both included (default 1..10)")
    parser.add_argument("--minutes", type=float, help="begin no run after so long; without --seeds, go on until then")
    parser.add_argument("--jobs", type=int, default=1, help="processes (default 1)")
    parser.add_argument("--seed", type=int, help="one seed")
    parser.add_argument("--trace", action="store_true", help="with --seed: everything that happened")
    parser.add_argument(
        "--json", action="store_true", help="the counts as JSON on stdout; progress and failures stay on stderr"
    )
    parser.add_argument("--list", action="store_true", help="the names of the scenarios")
    parser.add_argument("--no-reduce", action="store_true", help="leave failing runs as they are")
    cut = parser.add_argument_group("with --seed: leave parts of a run away, as a reduced run does")
    cut.add_argument("--nodes", type=int, help="so many nodes at first")
    cut.add_argument("--operations", type=int, help="so many operations")
    cut.add_argument("--clients", type=int, help="so many clients")
    cut.add_argument(
        "--events", type=_events, metavar="I,J,..", help="only these of the drawn events; none: no trouble"
    )
    return parser


def _range(text: str) -> tuple[int, int]:
    first, dots, last = text.partition("..")
    try:
        found = int(first), int(last if dots else first)
    except ValueError:
        raise argparse.ArgumentTypeError(f"seeds are A..B, like 1..20, not {text!r}") from None
    if found[0] > found[1]:
        raise argparse.ArgumentTypeError(f"there are no seeds from {found[0]} to {found[1]}")
    return found


def _events(text: str) -> tuple[int, ...]:
    return () if text == "none" else tuple(int(part) for part in text.split(","))


def _one(names: list[str], options: argparse.Namespace) -> int:
    cut = Cut(options.nodes, options.operations, options.clients, options.events)
    tally = report.Tally()
    for name in names:
        result = _run(name, options.seed, cut)
        tally.add(result)
        if options.trace:
            print(report.full_trace(result))
        if not result.ok:
            print(report.failure(result, cut), file=sys.stderr)
        elif not options.json:
            print(f"{name} {options.seed}: all was well for {result.virtual_s:.0f} s of virtual time")
    if options.json:
        print(json.dumps(tally.as_json()))
    return 1 if tally.failures else 0


def _many(names: list[str], options: argparse.Namespace) -> int:
    tally = report.Tally()
    if options.seeds is not None:
        first, last = options.seeds
    else:
        first, last = 1, (None if options.minutes else 10)
    began = time.monotonic()
    until = began + 60 * options.minutes if options.minutes else None
    shown = began
    work = campaign.jobs(names, first, last)
    with closing(campaign.results(work, options.jobs, until)) as results:
        for result in results:
            tally.add(result)
            if not result.ok:
                _tell(result, until, reducing=not options.no_reduce)
            now = time.monotonic()
            if now - shown >= PROGRESS_S:
                shown = now
                count = sum(tally.seeds.values())
                print(
                    f"{count} seeds, {count / (now - began):.2f} a second, {tally.virtual_s / 3600:.2f} virtual hours, "
                    f"{len(tally.failures)} failures; last: {result.scenario} {result.seed}",
                    file=sys.stderr,
                    flush=True,
                )
    elapsed = time.monotonic() - began
    count = sum(tally.seeds.values())
    if options.json:
        print(json.dumps({**tally.as_json(), "seconds": round(elapsed, 1)}))
    else:
        print(tally.text())
        print(f"seconds: {elapsed:.0f}, {count / max(elapsed, 0.001):.2f} seeds a second on {options.jobs} processes")
    return 1 if tally.failures else 0


def _run(name: str, seed: int, cut: Cut) -> Result:
    return campaign.guarded(partial(catalogue.run, cut=cut), name, seed)


def _tell(result: Result, until: float | None, *, reducing: bool) -> None:
    """``until``: of `time.monotonic`, after which nothing more is tried."""
    print(report.failure(result), file=sys.stderr, flush=True)
    assert result.broken is not None
    if not reducing or result.broken.invariant == campaign.ENDED:
        return
    seconds = REDUCING_S if until is None else min(REDUCING_S, until - time.monotonic())
    print(report.smaller(result, reduce(result, _run, seconds=seconds)), file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
