"""Acknowledged means: on a quorum of the replicas' disks, or of those that stand in for them. Checked when an answer comes:
what a power cut at that moment would leave there, of machines that are down too.

A chunk store is watched from outside: what a request has put is remembered in the request's context, and looked for on the disks when the
request is answered. Map pages are left out: those of an attempt that somebody overtook are given back before.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any, cast

from cluster.peer.core import PeerCore
from cluster.register.quorum import majority
from cluster.rpc.message import Buffer
from cluster.volumes.reference import WRITE_BYTES
from tests.simulation.result import BrokenError
from tests.support.simulated.whole_cluster import WholeCluster

STORED: ContextVar[list[tuple[bytes, bytes]] | None] = ContextVar("STORED", default=None)
"""(chunk, referrer) of what the present request has put."""

MAP_CELL = b"\xff" * 6


def watch(core: PeerCore) -> None:
    """Remember what this gateway's requests put."""
    put = core.chunks.put

    async def watched(payload: Buffer, *, referrer: bytes, replicas: int) -> bytes:
        chunk = await put(payload, referrer=referrer, replicas=replicas)
        stored = STORED.get()
        if stored is not None and referrer[WRITE_BYTES:] != MAP_CELL:
            stored.append((chunk, referrer))
        return chunk

    cast("Any", core.chunks).put = watched


def check(cluster: WholeCluster, stored: list[tuple[bytes, bytes]], replicas: int, what: str) -> None:
    machines = cluster.machines.values()
    for chunk, referrer in stored:
        holders = [m.name for m in machines if referrer in m.stores.references_on_disk(chunk)]
        if len(holders) < majority(replicas):
            raise BrokenError(
                "acknowledged means on a quorum of disks",
                f"{what}: chunk {chunk.hex()[:8]} is on {', '.join(holders) or 'no disk'}",
            )
