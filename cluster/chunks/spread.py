"""One payload on its way to the places where its copies belong: which are filled, which failed, who may stand in. A pure machine.

A *place* is a node that should hold a copy; it is filled by that node, or, while that one is dead, full or doesn't answer, by a
*stand-in*: the next living node of the chunk's preference list that is nobody's place. A stand-in fills one place and is used once,
so a quorum of filled places is as many copies on as many different disks. What a stand-in holds is a handoff: it needs no mark,
since the layout says that the chunk belongs elsewhere, and `cluster.rebalance.tidier` moves it home.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from cluster.errors import HoldfastError
from cluster.register.quorum import QuorumRule


class Spread:
    """``stand_ins``: in the order in which they are to be used. ``usable(name)``: whether one is worth asking now."""

    def __init__(self, rule: QuorumRule, size: int, stand_ins: Sequence[str], usable: Callable[[str], bool]) -> None:
        self.rule = rule
        self.size = size
        self.open = len(rule.members)
        """Places that are neither filled nor given up."""
        self.filled: set[str] = set()
        self.failed: dict[str, HoldfastError] = {}
        """Places given up, and why."""
        self.late = False
        self.verdict: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._stand_ins = list(stand_ins)
        self._usable = usable

    def next_stand_in(self) -> str | None:
        """A node to put a place's copy on instead; None when there is no other."""
        while self._stand_ins:
            name = self._stand_ins.pop(0)
            if self._usable(name):
                return name
        return None

    def fill(self, place: str) -> None:
        """The copy for ``place`` is durable, there or on a stand-in."""
        self.filled.add(place)
        self._judge()

    def give_up(self, place: str, error: HoldfastError) -> None:
        """Neither the node nor a stand-in has it."""
        self.failed[place] = error
        self._judge()

    def close(self) -> None:
        """The work on one place has ended."""
        self.open -= 1
        self._judge()

    def _judge(self) -> None:
        if self.verdict.done():
            return
        if self.rule.satisfied(self.filled):
            self.verdict.set_result(True)
        elif self.open == 0 or not self.rule.possible(self.failed):
            self.verdict.set_result(False)
