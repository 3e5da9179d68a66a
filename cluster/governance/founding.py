"""Whether a node may found a cluster now, and with whom. Pure: what it sees comes in, founders or a reason to wait go out.

Founding is the one act that makes voters of empty registers, and to a cluster without names every chunk is waste. So:

* a node that has been part of a cluster, and has lost the registers that say so, never founds, nor lets others found with it
  (`Past.loss`): only that cluster, if others still are in it, or a person can tell what was stored;
* a node whose whole disk was emptied can't know that it has a past, but its peers do: it takes part in founding only when everybody it
  was told to join has been heard of, and nobody has a layout.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from cluster.membership.member import Member


@dataclass(frozen=True, slots=True)
class Past:
    """What a node without a layout has on its disk of a former life: the cluster it belongs to (empty: none that is known), whether a
    damaged register database was set aside, and how many chunks it holds."""

    cluster_id: bytes = b""
    lost_registers: bool = False
    chunks: int = 0

    @property
    def loss(self) -> str:
        """What is wrong and what to do, in words for people; empty for a node that is really new."""
        if not self.cluster_id and not self.lost_registers and not self.chunks:
            return ""
        cluster = f"its cluster {self.cluster_id.hex()[:8]}" if self.cluster_id else "the cluster that it was in"
        kept = ["the damaged one is kept as registers.db.damaged-N"] if self.lost_registers else []
        if self.chunks:
            kept.append(f"chunks held: {self.chunks}")
        words = f" ({'; '.join(kept)})" if kept else ""
        return (
            f"{cluster}: this node's register database is lost{words}, and only another node of that cluster knows what is stored. "
            "Start the others; if there are none, stop this node and put registers.db back from a backup, or give its data up and start "
            "it with an empty directory. Until then it serves nothing and deletes nothing"
        )


class Founding(NamedTuple):
    """Who forms the first layout; nobody while there is something to wait for, in words for people."""

    founders: tuple[str, ...]
    waiting_for: str


def choose_founders(
    me: str, expect: int, past: Past, members: Mapping[str, Member], unmet: Collection[tuple[str, int]]
) -> Founding:
    """When it is ``me``'s turn to propose a first layout of ``expect`` nodes, those of least name among ``members``. ``unmet``: addresses
    to join of which it is not known who is there."""
    if reason := objection(past, members, ()):
        return _wait(reason)
    if expect < 1:
        return _wait("a cluster to join (no bootstrap_expect is set)")
    alive = sorted(name for name, member in members.items() if member.usable)
    if len(alive) < expect:
        return _wait(f"{expect - len(alive)} more of {expect} nodes to appear")
    if reason := objection(past, members, unmet):
        return _wait(reason)
    if alive[0] != me:
        return _wait(f"{alive[0]} to propose the first layout")
    return Founding(tuple(alive[:expect]), "")


def objection(past: Past, members: Mapping[str, Member], unmet: Collection[tuple[str, int]]) -> str:
    """What a node has against being in any first layout: what it waits for instead, in words for people; empty for nothing."""
    if loss := past.loss:
        return loss
    if any(member.layout_version > 0 for member in members.values()):
        return "the layout of the cluster that is already there"
    if unmet:
        addresses = ", ".join(f"{host}:{port}" for host, port in sorted(unmet))
        return (
            f"an answer from {addresses}: a cluster is founded only when every node to join has said that there is none yet "
            "(leave out of `join` what does not exist)"
        )
    return ""


def _wait(reason: str) -> Founding:
    return Founding((), reason)
