"""A repair and volumes to show, in memory."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from cluster.errors import NotFound
from cluster.repair.messages import NodeRepair
from cluster.repair.status import NodeSummary, RepairSummary
from cluster.volumes.volume import Volume

IDLE = NodeRepair(
    classes=(),
    counts=b"",
    lacking=0,
    keys_diverged=0,
    chunks_diverged=0,
    oldest_s=-1.0,
    handoffs=0,
    refilling=0,
    queue=0,
    copied_chunks=0,
    copied_bytes=0,
    chunk_rate=0.0,
    byte_rate=0.0,
    passes=3,
    paused=False,
    last_error="",
    oldest_verification_s=60.0,
    verified_chunks=10,
    damaged_chunks=0,
    compared_chunks=90,
)

WHOLE = RepairSummary(
    copies_due=300,
    copies_missing=0,
    keys_diverged=0,
    chunks_diverged=0,
    oldest_s=None,
    handoffs=0,
    chunk_rate=0.0,
    byte_rate=0.0,
    eta_s=None,
    passes=3,
    paused=(),
    oldest_verification_s=60.0,
    nodes=tuple(NodeSummary(name, 100, 0, IDLE) for name in ("n1", "n2", "n3")),
)


def without(summary: RepairSummary, name: str, missing: int) -> RepairSummary:
    """The same cluster with one node that does not answer, and whose copies are missing."""
    nodes = tuple(NodeSummary(name, 100, missing, None) if node.name == name else node for node in summary.nodes)
    return replace(summary, copies_missing=summary.copies_missing + missing, nodes=nodes)


class Cut(NamedTuple):
    offset: int
    length: int
    chunk: bytes
    chunk_offset: int


@dataclass
class FakePort:
    summary: RepairSummary = WHOLE
    own: NodeRepair = IDLE
    hangs: bool = False
    error: Exception | None = None
    orders: list[str] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)
    held: dict[bytes, dict[str, bool | None]] = field(default_factory=dict)
    asked: list[bytes] = field(default_factory=list)

    async def overview(self) -> RepairSummary:
        if self.hangs:
            await asyncio.Event().wait()
        return self.summary

    async def control(self, action: str) -> dict[str, str]:
        self.orders.append(action)
        return {node.name: self.failures.get(node.name, "") for node in self.summary.nodes}

    async def holders(self, chunks: Sequence[bytes]) -> dict[bytes, dict[str, bool | None]]:
        self.asked += chunks
        return {chunk: self.held[chunk] for chunk in chunks}

    def local(self) -> NodeRepair:
        if self.error is not None:
            raise self.error
        return self.own

    @property
    def passes(self) -> int:
        return self.own.passes

    def due_at(self, chunk: bytes, copies: int) -> tuple[str, ...]:
        return ("n1", "n2", "n3")[:copies]


@dataclass
class FakePieces:
    volume: Volume
    cuts: list[Cut]

    async def pieces(self, name: str, start: int, limit: int) -> tuple[Volume, Sequence[Cut], int | None]:
        if name != self.volume.name:
            raise NotFound(f"there is no volume {name!r}")
        found = [cut for cut in self.cuts if cut.offset + cut.length > start]
        return self.volume, found[:limit], found[limit].offset if len(found) > limit else None
