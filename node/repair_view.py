"""How repair goes and where a volume's bytes lie, as JSON for the API, as sentences for operators, and as metrics.

Reads the core's repair and volumes through two small protocols; owns nothing. What the whole cluster says is asked each time; metrics
are this node's own and cost no message. Meets `node.api.ports.RepairView` and `MetricSource`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Protocol

from cluster.errors import Invalid, NotReady
from cluster.repair.messages import NodeRepair
from cluster.repair.status import NodeSummary, RepairSummary
from cluster.volumes.volume import Volume
from node.api.ports import JsonObject, Sample

OVERVIEW_DEADLINE_S = 2.0
"""For all nodes to say how their repair goes, when that is only a part of the answer (status): a node that hangs must not hang it.
Whoever gathers the overview gives each node less time than this, so that one that does not answer is known as such."""

NAMED_NODES = 5
"""Nodes named in one sentence of status; `holdfast repair show` has them all."""


class RepairPort(Protocol):
    """What the core's repair offers; see `cluster.repair`."""

    async def overview(self) -> RepairSummary:
        """Asks all nodes of the layout; those that don't answer in time are in it without a `NodeRepair`."""

    async def control(self, action: str) -> dict[str, str]:
        """Tell all nodes of the layout one of `cluster.repair.status.ACTIONS`: name -> "" or why it failed."""

    async def holders(self, chunks: Sequence[bytes]) -> dict[bytes, dict[str, bool | None]]:
        """chunk -> node -> whether it holds the chunk (None: no answer), of every node of the layout."""

    def local(self) -> NodeRepair:
        """This node's own. Raises NotReady without a layout. Counts what is held: for reports, not for each request."""

    @property
    def passes(self) -> int:
        """Comparisons with all living peers that this node has made. Costs nothing."""

    def due_at(self, chunk: bytes, copies: int) -> tuple[str, ...]:
        """The nodes that should hold the chunk."""


class Piece(Protocol):
    """``length`` bytes of a volume from ``offset`` are the bytes of ``chunk`` from ``chunk_offset``."""

    @property
    def offset(self) -> int: ...
    @property
    def length(self) -> int: ...
    @property
    def chunk(self) -> bytes: ...
    @property
    def chunk_offset(self) -> int: ...


class PiecesPort(Protocol):
    """What the core's volumes tell about where content lies."""

    async def pieces(self, name: str, start: int, limit: int) -> tuple[Volume, Sequence[Piece], int | None]:
        """Up to ``limit`` pieces from the byte ``start`` on, ascending (holes are left out), and where the next one begins, None at
        the end. Raises NotFound."""


class CoreRepairView:
    """See the module. Both functions are called anew each time, and give None while no core runs."""

    def __init__(self, repair: Callable[[], RepairPort | None], volumes: Callable[[], PiecesPort | None]) -> None:
        self._repair = repair
        self._volumes = volumes

    def passes(self) -> int:
        """m of ``T = m * P``: full comparisons that this node has made with all its peers."""
        port = self._repair()
        return 0 if port is None else port.passes

    async def summary(self) -> RepairSummary | None:
        """What all nodes say, None while no core runs. Raises TimeoutError when that is not known within OVERVIEW_DEADLINE_S."""
        port = self._repair()
        if port is None:
            return None
        async with asyncio.timeout(OVERVIEW_DEADLINE_S):
            return await port.overview()

    # node.api.ports.RepairView

    async def repair(self) -> JsonObject:
        return repair_json(await self._require().overview())

    async def control_repair(self, action: str) -> JsonObject:
        answers = await self._require().control(action)
        return {
            "action": action,
            "nodes": [
                {"name": name, "done": not failure, "error": failure or None}
                for name, failure in sorted(answers.items())
            ],
        }

    async def where(self, name: str, offset: int, length: int | None, limit: int) -> JsonObject:
        port, volumes = self._require(), self._volumes()
        if volumes is None:
            raise _starting()
        volume, found, following = await volumes.pieces(name, offset, limit)
        if offset > volume.size:
            raise Invalid(f"The volume has {volume.size} bytes: offset {offset} is past its end", field="offset")
        end = volume.size if length is None else min(volume.size, offset + length)
        pieces = [piece for piece in found if piece.offset < end]
        held = await port.holders(list(dict.fromkeys(piece.chunk for piece in pieces))) if pieces else {}
        return {
            "volume": volume.name,
            "etag": volume.etag,
            "size": volume.size,
            "replicas": volume.replicas,
            "pieces": [
                _piece_json(piece, port.due_at(piece.chunk, volume.replicas), held.get(piece.chunk, {}))
                for piece in pieces
            ],
            "next": following if following is not None and following < end else None,
        }

    # MetricSource

    def samples(self) -> Iterator[Sample]:
        port = self._repair()
        if port is None:
            return
        try:
            own = port.local()
        except NotReady:
            return  # without a layout there is nothing that could be lacking
        for name, kind, doc, value in (
            ("repair_copies_lacking", "gauge", "Copies that this node should have and lacks.", own.lacking),
            ("repair_keys_diverged", "gauge", "Registers found to differ from a peer's.", own.keys_diverged),
            ("repair_chunks_diverged", "gauge", "Chunk references found to differ from a peer's.", own.chunks_diverged),
            ("repair_oldest_divergence_seconds", "gauge", "Age of the oldest difference.", max(0.0, own.oldest_s)),
            ("repair_handoffs", "gauge", "Copies kept for nodes that were absent.", own.handoffs),
            ("repair_refilling_partitions", "gauge", "Partitions that are being filled again.", own.refilling),
            ("repair_queue", "gauge", "Chunks that wait to be mended.", own.queue),
            ("repair_copied_chunks", "counter", "Chunks fetched to mend copies.", own.copied_chunks),
            ("repair_copied_bytes", "counter", "Bytes fetched to mend copies.", own.copied_bytes),
            ("repair_compared_chunks", "counter", "Chunks compared with peers.", own.compared_chunks),
            ("repair_passes", "gauge", "Comparisons made with the living peer compared least often.", own.passes),
            ("repair_paused", "gauge", "1 while repair is paused.", int(own.paused)),
            ("repair_failed", "gauge", "1 while repair's last piece of work failed.", int(bool(own.last_error))),
            ("scrub_verified_chunks", "counter", "Chunks read and verified.", own.verified_chunks),
            ("scrub_damaged_chunks", "counter", "Chunks found damaged.", own.damaged_chunks),
        ):
            yield Sample(name, kind, doc, value)  # type: ignore[arg-type]  # the literals above are its kinds
        if own.oldest_verification_s >= 0:
            doc = "Nothing held was last read and verified longer ago; absent while that is not known."
            yield Sample("scrub_oldest_verification_seconds", "gauge", doc, own.oldest_verification_s)

    def _require(self) -> RepairPort:
        port = self._repair()
        if port is None:
            raise _starting()
        return port


def repair_json(summary: RepairSummary) -> JsonObject:
    """The document of ``GET /v1/repair``. Sizes in bytes, times in seconds; null where nothing is known or there is nothing to say."""
    living = [node.repair for node in summary.nodes if node.repair is not None]
    return {
        **totals_json(summary),
        "passes": summary.passes,
        "paused": list(summary.paused),
        "scrub": {
            "oldest_verification_s": _known(
                min((repair.oldest_verification_s for repair in living), default=-1.0), summary.oldest_verification_s
            ),
            "verified_chunks": sum(repair.verified_chunks for repair in living),
            "damaged_chunks": sum(repair.damaged_chunks for repair in living),
        },
        "nodes": [_node_json(node) for node in summary.nodes],
    }


def totals_json(summary: RepairSummary) -> JsonObject:
    """The cluster's sums, as they stand in ``GET /v1/repair`` and, as ``repair``, in ``GET /v1/cluster``."""
    return {
        "health": "healthy" if is_healthy(summary) else "degraded",
        "copies_missing": summary.copies_missing,
        "copies_due": summary.copies_due,
        "keys_diverged": summary.keys_diverged,
        "chunks_diverged": summary.chunks_diverged,
        "oldest_divergence_s": summary.oldest_s,
        "handoffs": summary.handoffs,
        "rate_bytes_per_s": summary.byte_rate,
        "rate_chunks_per_s": summary.chunk_rate,
        "eta_s": summary.eta_s,
    }


def is_healthy(summary: RepairSummary) -> bool:
    """Every copy is known to be where it belongs: nothing is missing or differs, and every node says so."""
    return summary.whole and all(node.repair is not None for node in summary.nodes)


def attention(summary: RepairSummary, alive: Collection[str]) -> list[str]:
    """What about repair an operator should know: what is the case, and what to do. ``alive``: the nodes that membership believes in."""
    lines = []
    if summary.copies_missing:
        lines.append(f"{summary.copies_missing} of {summary.copies_due} copies are missing: {_missing(summary, alive)}")
    if summary.keys_diverged or summary.chunks_diverged:
        since = "" if summary.oldest_s is None else f", the oldest for {summary.oldest_s:.0f} s"
        lines.append(
            f"{summary.keys_diverged} keys and {summary.chunks_diverged} chunks differ between replicas{since}: "
            "repair compares and copies by itself; `holdfast repair run` makes it look now"
        )
    if summary.handoffs:
        lines.append(
            f"{summary.handoffs} copies wait on other nodes for those they belong to; they are handed over when these are back"
        )
    if summary.paused:
        lines.append(f"repair is paused on {_names(summary.paused)}: `holdfast repair resume` lets it go on")
    mute = [node.name for node in summary.nodes if node.repair is None and node.name in alive]
    if mute:
        lines.append(
            f"{_names(mute)} said nothing about repair in time: if that stays so, the node hangs; look at it, or restart it"
        )
    return lines


def _missing(summary: RepairSummary, alive: Collection[str]) -> str:
    """Where copies are missing, and what becomes of that."""
    lacking = sorted((node for node in summary.nodes if node.missing), key=lambda node: -node.missing)
    away = [node.name for node in lacking if node.repair is None]
    parts = [f"{node.name} lacks {node.missing}" for node in lacking[:NAMED_NODES]]
    parts += [f"and {len(lacking) - NAMED_NODES} more nodes"] if len(lacking) > NAMED_NODES else []
    words = ", ".join(parts)
    if len(away) < len(lacking):
        words += "; repair is copying them: `holdfast repair show`"
    gone = [name for name in away if name not in alive]
    if gone:
        words += f"; start {_names(gone)} again, or take it out with `holdfast layout plan --remove {gone[0]}`"
    return words


def _names(names: Sequence[str]) -> str:
    shown = ", ".join(names[:NAMED_NODES])
    return shown if len(names) <= NAMED_NODES else f"{shown} and {len(names) - NAMED_NODES} more"


def _node_json(node: NodeSummary) -> JsonObject:
    repair = node.repair
    document: JsonObject = {
        "name": node.name,
        "answered": repair is not None,
        "copies_due": node.due,
        "copies_missing": node.missing,
    }
    told: JsonObject = dict.fromkeys(NODE_MEMBERS)
    if repair is not None:
        told = {
            "handoffs": repair.handoffs,
            "keys_diverged": repair.keys_diverged,
            "chunks_diverged": repair.chunks_diverged,
            "oldest_divergence_s": _known(repair.oldest_s, repair.oldest_s),
            "refilling_partitions": repair.refilling,
            "queue": repair.queue,
            "copied_chunks": repair.copied_chunks,
            "copied_bytes": repair.copied_bytes,
            "rate_bytes_per_s": repair.byte_rate,
            "passes": repair.passes,
            "paused": repair.paused,
            "last_error": repair.last_error or None,
            "oldest_verification_s": _known(repair.oldest_verification_s, repair.oldest_verification_s),
            "verified_chunks": repair.verified_chunks,
            "damaged_chunks": repair.damaged_chunks,
        }
        assert tuple(told) == NODE_MEMBERS
    return {**document, **told}


NODE_MEMBERS = (
    *("handoffs", "keys_diverged", "chunks_diverged", "oldest_divergence_s", "refilling_partitions", "queue"),
    *("copied_chunks", "copied_bytes", "rate_bytes_per_s", "passes", "paused", "last_error"),
    *("oldest_verification_s", "verified_chunks", "damaged_chunks"),
)
"""What a node tells about itself: null of one that did not answer."""


def _known(least: float, age: float) -> float | None:
    """An age; a negative one stands for one that is not known."""
    return age if least >= 0 else None


def _piece_json(piece: Piece, due: Sequence[str], held: Mapping[str, bool | None]) -> JsonObject:
    holders = sorted(name for name, holds in held.items() if holds)
    return {
        "offset": piece.offset,
        "length": piece.length,
        "chunk": piece.chunk.hex(),
        "chunk_offset": piece.chunk_offset,
        "due": list(due),
        "held_by": holders,
        "unknown": sorted(name for name, holds in held.items() if holds is None),
        "elsewhere": [name for name in holders if name not in due],
    }


def _starting() -> NotReady:
    return NotReady("this node is starting; ask another, or again in a moment", retry_after_s=1)
