"""What came of a run."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from tests.simulation.trace import Line


class BrokenError(AssertionError):
    """An invariant does not hold. ``mark``: a word by which the lines of the trace that matter are found. ``kind``: what tells failures of
    one invariant apart, as the type of an error that nobody promised; without one, that of the cause, if there is one."""

    def __init__(self, invariant: str, detail: str, mark: str = "", kind: str = "") -> None:
        super().__init__(f"{invariant}: {detail}")
        self.invariant = invariant
        self.detail = detail
        self.mark = mark
        self._kind = kind

    @property
    def kind(self) -> str:
        return self._kind or ("" if self.__cause__ is None else type(self.__cause__).__name__)

    @property
    def name(self) -> str:
        """Equal for two failures that look like the same bug."""
        return f"{self.invariant} ({self.kind})" if self.kind else self.invariant

    def bare(self) -> BrokenError:
        """Without the frames that it came through, which hold a whole cluster."""
        return BrokenError(self.invariant, self.detail, self.mark, self.kind)

    def __reduce__(self) -> tuple[Any, ...]:
        return BrokenError, (self.invariant, self.detail, self.mark, self.kind)


@dataclass
class Result:
    """``operations`` counts by "kind outcome", those from before the end of all trouble also in ``in_trouble``; ``troubles`` by kind.
    ``broken`` is None when all was well."""

    scenario: str
    seed: int
    broken: BrokenError | None = None
    operations: Counter[str] = field(default_factory=Counter)
    in_trouble: Counter[str] = field(default_factory=Counter)
    troubles: Counter[str] = field(default_factory=Counter)
    virtual_s: float = 0.0
    trace: list[Line] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return self.broken is None

    @property
    def answered_in_trouble(self) -> int:
        """Operations that were done, before all trouble was over."""
        return sum(count for what, count in self.in_trouble.items() if what.endswith(" ok"))
