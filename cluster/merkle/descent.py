"""Walking down to where two trees differ: a level of the tree per round trip. A pure machine: sums of the peer in, questions out.

    walk = Descent(mine, bits=10, differing=[3, 77], deepest=18)
    while (question := walk.question()) is not None:
        walk.answer(<the peer's sums of the nodes question.prefixes, at question.bits>)
    walk.differing                              # the leaves (at walk.bits) that differ

For d differing items it asks for at most d * 2^STEP_BITS sums a level; a question has at most `QUESTION_LIMIT` nodes, so a level with
more takes several.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from cluster.merkle.digest_tree import DigestTree, children

STEP_BITS: Final = 4
"""A node has 16 children: 128 bytes of sums tell in which of them a difference is."""

QUESTION_LIMIT: Final = 8192
"""Nodes in one question: 64 KiB of sums in the answer."""


class Question(NamedTuple):
    """The nodes whose sums are wanted: the prefixes of ``bits`` bits."""

    bits: int
    prefixes: list[int]


class Descent:
    """See the module. ``differing``: prefixes of ``bits`` bits in which the trees are known to differ; ``deepest``: where to stop."""

    def __init__(self, mine: DigestTree, *, bits: int, differing: Sequence[int], deepest: int) -> None:
        assert bits <= deepest <= mine.bits
        self.bits = bits
        self.differing = list(differing)
        self._mine = mine
        self._deepest = deepest
        self._step = 0
        self._waiting: list[int] = []
        self._found: list[int] = []
        self.asked = 0
        """Nodes asked for so far."""

    @property
    def reached(self) -> tuple[int, list[int]]:
        """``(bits, prefixes)``: the deepest level whose differing nodes are all known."""
        return (self.bits - self._step, self.differing) if self._waiting else (self.bits, self.differing)

    def question(self) -> Question | None:
        """What to ask next; None when `differing` is the answer."""
        if not self._waiting:
            if self.bits == self._deepest or not self.differing:
                return None
            self._step = min(STEP_BITS, self._deepest - self.bits)
            self._waiting = children(self.differing, self._step)
            self.bits += self._step
            self._found = []
        return Question(self.bits, self._waiting[:QUESTION_LIMIT])

    def answer(self, sums: Sequence[int]) -> None:
        """The peer's sums of the nodes in the last question, in their order."""
        asked, self._waiting = self._waiting[:QUESTION_LIMIT], self._waiting[QUESTION_LIMIT:]
        assert len(sums) == len(asked)
        self.asked += len(asked)
        self._found += [
            prefix for prefix, theirs in zip(asked, sums, strict=True) if self._mine.sum(self.bits, prefix) != theirs
        ]
        if not self._waiting:
            self.differing = self._found
