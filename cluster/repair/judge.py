"""Whether a reference is still needed: the question that repair asks, answered by those who know the roots.

Repair mends what replicas lack, but must not bring back what is being given back; it knows references only as bytes. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import Protocol

from cluster.errors import HoldfastError


class Verdict(Enum):
    """What the roots say about a reference, as of some moment after the question was asked."""

    LIVE = "live"
    """The live root of a volume names it."""
    RETIRED = "retired"
    """Only roots that wait to be reclaimed name it: somebody may still be reading, nobody will write with it again."""
    UNNAMED = "unnamed"
    """No root names it: waste, or a part of a write in progress."""


async def no_longer_live(judge: Judge, live: Sequence[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Which of these references, all of which were LIVE a moment ago, are so no more. Whoever gives them back may have told this node
    before it had taken its copy, and won't tell it again; so a copy that was taken over meanwhile has to go at once. Safe: what was
    live once and is not now is never needed for writing again, and its readers have those copies that were there before."""
    verdicts = await judge.judge_each(live) if live else []
    gone = (Verdict.RETIRED, Verdict.UNNAMED)
    return [pair for pair, verdict in zip(live, verdicts, strict=True) if verdict in gone]


class Judge(Protocol):
    async def judge(self, references: Sequence[tuple[bytes, bytes]]) -> list[Verdict]:
        """Verdicts on ``(chunk, referrer)``, in order. Raises QuorumUnavailable or Corrupt when one can't be known now."""

    async def judge_each(self, references: Sequence[tuple[bytes, bytes]]) -> Sequence[Verdict | HoldfastError]:
        """As `judge`, but what can't be known about one of them does not hide what is known about the others."""
