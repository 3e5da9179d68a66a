"""Acknowledged means: on a quorum of the replicas' disks, or of those that stand in for them. Checked when an answer comes:
what a power cut at that moment would leave there, of machines that are down too.

A chunk store is watched from outside: what a request has put is looked for on the disks as soon as the store says that it is there,
and once more when the request is answered, unless that took so long (a gateway that stood still) that the version may have been
replaced and given back in between. Nothing is judged before that: the parts of a write that came to nothing may be given back while it is
still under way. Map pages are left out: those of an attempt that somebody overtook are given back before.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any, NamedTuple, cast

from cluster.peer.core import PeerCore
from cluster.register.quorum import majority
from cluster.rpc.message import Buffer
from cluster.volumes.reference import WRITE_BYTES
from tests.simulation.result import BrokenError
from tests.support.simulated.whole_cluster import WholeCluster


class Stored(NamedTuple):
    """What a request has put, and on whose disks it was when the store said that it was there."""

    chunk: bytes
    referrer: bytes
    holders: tuple[str, ...]


STORED: ContextVar[list[Stored] | None] = ContextVar("STORED", default=None)
"""What the present request has put."""

MAP_CELL = b"\xff" * 6


def watch(cluster: WholeCluster, core: PeerCore) -> None:
    """Remember what this gateway's requests put."""
    put = core.chunks.put

    async def watched(payload: Buffer, *, referrer: bytes, replicas: int) -> bytes:
        chunk = await put(payload, referrer=referrer, replicas=replicas)
        stored = STORED.get()
        if stored is not None and referrer[WRITE_BYTES:] != MAP_CELL:
            stored.append(Stored(chunk, referrer, _holders(cluster, chunk, referrer)))
        return chunk

    cast("Any", core.chunks).put = watched


def check(cluster: WholeCluster, stored: list[Stored], replicas: int, what: str, *, retained: bool) -> None:
    """``retained``: whether the version must be there still."""
    for chunk, referrer, holders in stored:
        looks = {"then": holders}
        if retained:
            looks["now"] = _holders(cluster, chunk, referrer)
        for when, names in looks.items():
            if len(names) < majority(replicas):
                raise BrokenError(
                    "acknowledged means on a quorum of disks",
                    f"{what}: chunk {chunk.hex()[:8]} is {when} on {', '.join(names) or 'no disk'}",
                )


def _holders(cluster: WholeCluster, chunk: bytes, referrer: bytes) -> tuple[str, ...]:
    machines = (*cluster.everybody(), *cluster.given_up)
    return tuple(sorted({m.name for m in machines if referrer in m.stores.references_on_disk(chunk)}))
