"""One measured figure: its runs, its floors, what is aimed at, and how it is shown. Pure values."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Aim:
    """``bound`` is for the ratio to the floor when ``of_floor``, else for the figure; the least, or the most with ``at_most``."""

    bound: float
    of_floor: bool = False
    at_most: bool = False

    def met(self, value: float) -> bool:
        return value <= self.bound if self.at_most else value >= self.bound

    def __str__(self) -> str:
        return f"{'<=' if self.at_most else '>='} {self.bound:g}{' of floor' if self.of_floor else ''}"


@dataclass(slots=True)
class Figure:
    """``values`` and ``floors`` hold one number a run, in ``unit``; ``floors`` stays empty where there is none."""

    name: str
    unit: str
    aim: Aim | None = None
    values: list[float] = field(default_factory=list)
    floors: list[float] = field(default_factory=list)

    def add(self, value: float, floor: float | None = None) -> None:
        self.values.append(value)
        if floor is not None:
            self.floors.append(floor)

    @property
    def ratios(self) -> list[float]:
        return [value / floor for value, floor in zip(self.values, self.floors, strict=True)] if self.floors else []

    @property
    def met(self) -> bool | None:
        """Whether the median meets the aim; None where there is no aim."""
        if self.aim is None:
            return None
        return self.aim.met(statistics.median(self.ratios if self.aim.of_floor else self.values))

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "unit": self.unit,
            "median": statistics.median(self.values),
            "values": self.values,
            "floors": self.floors,
            "ratios": self.ratios,
            "aim": None if self.aim is None else str(self.aim),
            "met": self.met,
        }


def table(figures: Sequence[Figure]) -> str:
    """Medians with ``(min..max)`` of the runs, a line a figure."""
    rows = [("", "unit", "median (min..max)", "floor", "ratio", "aim", "")]
    rows += [
        (
            figure.name,
            figure.unit,
            _spread(figure.values),
            _spread(figure.floors),
            _spread(figure.ratios),
            "" if figure.aim is None else str(figure.aim),
            "" if figure.met is None else "met" if figure.met else "MISSED",
        )
        for figure in figures
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines.insert(1, "-" * max(map(len, lines)))
    return "\n".join(lines)


def _spread(values: Sequence[float]) -> str:
    if not values:
        return ""
    middle = _number(statistics.median(values))
    return middle if len(values) == 1 else f"{middle} ({_number(min(values))}..{_number(max(values))})"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
