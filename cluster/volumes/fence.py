"""Fences: a write in progress whose references are given back can never become visible (docs/decisions/references.md).

Two rules, and both are kept by compare-and-set on the head alone:

* A write stores nothing before its name has a head (a live one, or a *claim*), and swings only from a head with the id it began on. A
  register that went, or became another volume, in between never has that id again. So a name without a register has no writes that
  could still succeed, although only 4 bytes of it can be read from a reference.
* A write never swings from a head that says it is fenced, or that has forgotten fences which were put up since it began.

`Began.check` is called on exactly the value that the compare-and-set expects, so whoever fenced first has shut the write out for ever.
Fencing a write that was done already changes nothing for it: a write swings once, and what it swung to is in the chain of roots.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from cluster.errors import Busy
from cluster.volumes.head import Head
from cluster.volumes.head_store import HeadStore, Version

FENCED_LIMIT = 64
"""Fenced writes kept in a head, at 12 bytes each. Writes that began before a forgotten one was fenced have to be repeated."""

FENCE_TRIES = 64
"""Lost compare-and-sets before fencing gives up with Busy, and is tried again later."""


@dataclass(frozen=True, slots=True)
class Began:
    """What a write remembers of the head it began on."""

    id: bytes
    fences: int

    @classmethod
    def on(cls, head: Head) -> Began:
        assert head.live or head.is_claim
        return cls(head.id, head.fences)

    def check(self, version: Version, name: str, write: bytes) -> None:
        """Raises Busy when ``write`` must not swing from ``version`` any more."""
        head = version.head
        if head is None or head.id != self.id:
            raise Busy(
                f"The volume {name!r} was deleted while this write was under way; nothing was changed. Repeat it if it is still wanted.",
                retry_after_s=1,
            )
        if write in head.fenced or head.fences - len(head.fenced) > self.fences:
            raise Busy(
                f"This write of the volume {name!r} took too long, and its parts were given back; nothing was changed. Repeat it.",
                retry_after_s=1,
            )


def fenced_head(head: Head, writes: Sequence[bytes]) -> Head:
    """``head`` with further fences."""
    fenced = (*head.fenced, *writes)[-FENCED_LIMIT:]
    return replace(head, fenced=fenced, fences=head.fences + len(writes))


async def fence(heads: HeadStore, name: str, writes: Sequence[bytes]) -> None:
    """After this none of ``writes`` (at most FENCED_LIMIT) of the volume ``name`` can swing any more, if it has not yet.

    A name without a register needs no fence. Safe to repeat.
    Raises QuorumUnavailable, OutcomeUnknown (they may be fenced), Busy, Corrupt."""
    assert len(writes) <= FENCED_LIMIT
    version = await heads.read(name)
    for _ in range(FENCE_TRIES):
        if version.head is None:
            return
        missing = [write for write in writes if write not in version.head.fenced]
        if not missing:
            return
        swing = await heads.swing(name, version, fenced_head(version.head, missing))
        if swing.applied:
            return
        version = swing.current
    raise Busy(f"The volume {name!r} is written too often to fence old writes now.", retry_after_s=5)
