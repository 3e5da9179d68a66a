"""What is still to be told: names whose records are news, each told a bounded number of times (SWIM, section 4.1).

Holds names, not records: what is told is what is known at the moment of telling. At most one entry a name, so it is bounded by
the number of members.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection


class Rumours:
    def __init__(self) -> None:
        self._told: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._told)

    def __contains__(self, name: str) -> bool:
        return name in self._told

    def add(self, name: str) -> None:
        """There is news of ``name``: begin to count afresh."""
        self._told.pop(name, None)
        self._told[name] = 0

    def drop(self, name: str) -> None:
        self._told.pop(name, None)

    def pick(self, count: int, times: int, without: Collection[str] = ()) -> list[str]:
        """At most ``count`` names, the least told first, to be told now; whatever has now been told ``times`` times is dropped."""
        if not self._told:
            return []
        candidates = [name for name in self._told if name not in without]
        chosen = heapq.nsmallest(count, candidates, key=self._told.__getitem__)
        for name in chosen:
            self._told[name] += 1
            if self._told[name] >= times:
                del self._told[name]
        return chosen
