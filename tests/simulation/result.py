"""What came of a run."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from tests.simulation.trace import Line


class BrokenError(AssertionError):
    """An invariant does not hold. ``mark``: a word by which the lines of the trace that matter are found."""

    def __init__(self, invariant: str, detail: str, mark: str = "") -> None:
        super().__init__(f"{invariant}: {detail}")
        self.invariant = invariant
        self.detail = detail
        self.mark = mark


@dataclass
class Result:
    """``operations`` counts by "kind outcome", ``troubles`` by kind. ``broken`` is None when all was well."""

    scenario: str
    seed: int
    broken: BrokenError | None = None
    operations: Counter[str] = field(default_factory=Counter)
    troubles: Counter[str] = field(default_factory=Counter)
    virtual_s: float = 0.0
    trace: list[Line] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return self.broken is None
