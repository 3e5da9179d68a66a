"""Ballots and versions: who may write a partition's registers now, and which of two values of a register is the newer.

Both are plain tuples, so that comparing them is what Python does fastest and what the wire carries as it is.

* `Ballot` = (round, proposer). A proposer's name is ``node/boot/run``: no two lives of a process, nor a process before and after its
  disk was replaced, ever share one, so a ballot is never used twice (the "ballot reused after a restart" trap). The run is random, since a
  store and an old copy of it count the same boots.
* `Version` = (round, proposer, seq): the ballot under which a value was accepted, and its number under that ballot.
"""

from __future__ import annotations

from typing import NamedTuple


class Ballot(NamedTuple):
    round: int
    proposer: str


class Version(NamedTuple):
    round: int
    proposer: str
    seq: int

    @property
    def ballot(self) -> Ballot:
        return Ballot(self.round, self.proposer)


NO_BALLOT = Ballot(0, "")
"""Below every ballot that is ever used."""

NO_VERSION = Version(0, "", 0)
"""The version of a register that was never written."""

BOOTSTRAP_VERSION = Version(0, "bootstrap", 1)
"""The version of the first layout: above nothing-written, below everything that a ballot writes."""


def proposer_name(node: str, boot: int, run: bytes) -> str:
    """A proposer's name, unique to one life of one process. ``run``: 8 random bytes of that life."""
    assert run
    return f"{node}/{boot}/{run.hex()}"
