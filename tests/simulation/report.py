"""What people read of runs: a failure with its trace and the line that replays it, and the counts of a campaign."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from tests.simulation.reduce import Reduced
from tests.simulation.result import Result
from tests.simulation.run import WHOLE, Cut
from tests.simulation.trace import around

LINE_LIMIT = 220


def replay(result: Result, cut: Cut = WHOLE) -> str:
    """The one line that does it again."""
    words = ["scripts/simulate", "--scenario", result.scenario, "--seed", str(result.seed)]
    if cut.nodes is not None:
        words += ["--nodes", str(cut.nodes)]
    if cut.operations is not None:
        words += ["--operations", str(cut.operations)]
    if cut.clients is not None:
        words += ["--clients", str(cut.clients)]
    if cut.events is not None:
        words += ["--events", ",".join(map(str, cut.events)) or "none"]
    return " ".join([*words, "--trace"])


def failure(result: Result, cut: Cut = WHOLE) -> str:
    """The seed, what broke, the events around it, and how to replay it."""
    assert result.broken is not None
    broken = result.broken
    lines = [
        f"BROKEN: {broken.name}",
        f"  scenario {result.scenario}, seed {result.seed}, after {result.virtual_s:.1f} s of virtual time",
        f"  {broken.detail}",
    ]
    lines += [f"    {line.at:10.4f}  {line.text[:LINE_LIMIT]}" for line in around(result.trace, broken.mark)]
    lines += [f"  replay: {replay(result, cut)}"]
    return "\n".join(lines)


def smaller(result: Result, reduced: Reduced) -> str:
    """What became of a failure that was made smaller, and the line that replays it as it was found."""
    ran_out = ", as far as the time went" if reduced.out_of_time else ""
    if reduced.result is result:
        return f"  nothing smaller was found{ran_out}"
    return "\n".join(
        [f"  made smaller{ran_out}:", failure(reduced.result, reduced.cut), f"  as it was found: {replay(result)}"]
    )


def full_trace(result: Result) -> str:
    return "\n".join(f"{line.at:10.4f}  {line.text}" for line in result.trace)


@dataclass
class Tally:
    """What a campaign has done so far."""

    seeds: Counter[str] = field(default_factory=Counter)
    virtual_s: float = 0.0
    operations: Counter[str] = field(default_factory=Counter)
    troubles: Counter[str] = field(default_factory=Counter)
    failures: list[Result] = field(default_factory=list)

    def add(self, result: Result) -> None:
        self.seeds[result.scenario] += 1
        self.virtual_s += result.virtual_s
        self.operations += result.operations
        self.troubles += result.troubles
        if not result.ok:
            self.failures.append(result)

    def as_json(self) -> dict[str, Any]:
        return {
            "seeds": sum(self.seeds.values()),
            "seeds_by_scenario": dict(sorted(self.seeds.items())),
            "virtual_hours": round(self.virtual_s / 3600, 3),
            "operations": dict(sorted(self.operations.items())),
            "troubles": dict(sorted(self.troubles.items())),
            "failures": [
                {"scenario": r.scenario, "seed": r.seed, "invariant": r.broken.invariant, "detail": r.broken.detail}
                for r in self.failures
                if r.broken is not None
            ],
        }

    def text(self) -> str:
        def listed(counts: Counter[str]) -> str:
            return ", ".join(f"{what} {count}" for what, count in sorted(counts.items())) or "none"

        return "\n".join(
            [
                f"seeds: {sum(self.seeds.values())} ({listed(self.seeds)})",
                f"virtual hours: {self.virtual_s / 3600:.2f}",
                f"operations: {sum(self.operations.values())} ({listed(self.operations)})",
                f"faults: {sum(c for what, c in self.troubles.items() if not what.endswith('left out'))} ({listed(self.troubles)})",
                f"failures: {len(self.failures)}",
            ]
        )
