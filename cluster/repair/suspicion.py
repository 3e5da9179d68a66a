"""Differences that two comparisons with a peer both found. Pure.

A write on its way is on one replica before it is on the other: a difference that the next comparison does not find again was no divergence.
What persists is acted on, and again after a growing pause for as long as it stays: acting may be in vain for good reasons (the reference
belongs to a write in progress, or waits to be reclaimed).
"""

from __future__ import annotations

from collections.abc import Collection, Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

ACT_AGAIN_S = 5.0
"""After acting on a difference, doubled each time up to `ACT_AGAIN_LIMIT_S`."""

ACT_AGAIN_LIMIT_S = 300.0

T = TypeVar("T", bound=Hashable)


@dataclass(slots=True)
class _Suspicion:
    since: float
    act_at: float
    acts: int = 0
    persists: bool = False


class Suspicions(Generic[T]):
    """What was found to differ from one peer. ``persist_s``: the least time between the first and the confirming comparison."""

    def __init__(self, persist_s: float) -> None:
        self._persist_s = persist_s
        self._items: dict[T, _Suspicion] = {}

    def compared(self, now: float, found: Collection[T]) -> list[T]:
        """A comparison has found just these. Returns those to act on now."""
        items: dict[T, _Suspicion] = {}
        due: list[T] = []
        for item in found:
            known = items[item] = self._items.get(item) or _Suspicion(now, now + self._persist_s)
            if now - known.since >= self._persist_s and known.since < now:
                known.persists = True
            if known.persists and now >= known.act_at:
                due.append(item)
                known.act_at = now + min(ACT_AGAIN_S * 2**known.acts, ACT_AGAIN_LIMIT_S)
                known.acts += 1
        self._items = items
        return due

    def forget(self) -> None:
        """The peer has gone: what it holds now is not known."""
        self._items.clear()

    @property
    def unconfirmed(self) -> bool:
        """Whether something was found that the next comparison has to confirm."""
        return any(not known.persists for known in self._items.values())

    def persists(self, item: T) -> bool:
        """Whether two comparisons have found it, the last among them."""
        known = self._items.get(item)
        return known is not None and known.persists

    def acts(self, item: T) -> int:
        """How often it was to be acted on so far, this time among them."""
        known = self._items.get(item)
        return 0 if known is None else known.acts

    def persisting(self) -> list[T]:
        return [item for item, known in self._items.items() if known.persists]

    @property
    def oldest(self) -> float | None:
        """When the oldest of those that persist was first found."""
        return min((known.since for known in self._items.values() if known.persists), default=None)
