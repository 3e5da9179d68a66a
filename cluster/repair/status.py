"""How the whole cluster's repair goes, put together from what the nodes say of themselves. Pure.

Copies are counted: of a partition's chunks in ``c`` copies, the node of the placement that holds most of them shows how many there
are, and whoever of the placement holds fewer, or does not answer, lacks the rest. So a dead node's copies are missing as long as it
has its place, and an emptied one's until it is refilled. Equal counts of different chunks show in what the nodes find by comparing
(``lacking``).
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass

from cluster.layout.layout import Layout
from cluster.repair.messages import NodeRepair

RUN = "run"
SCRUB = "scrub"
PAUSE = "pause"
RESUME = "resume"
ACTIONS = (RUN, SCRUB, PAUSE, RESUME)


@dataclass(frozen=True, slots=True)
class NodeSummary:
    """One node of the layout, or outside with handoffs. ``repair`` None: it does not answer. ``missing`` of ``due`` copies are not
    there."""

    name: str
    due: int
    missing: int
    repair: NodeRepair | None


@dataclass(frozen=True, slots=True)
class RepairSummary:
    """The cluster. ``oldest_s`` None: nothing has diverged. ``eta_s`` None: nothing is missing, or nothing moves."""

    copies_due: int
    copies_missing: int
    keys_diverged: int
    chunks_diverged: int
    oldest_s: float | None
    handoffs: int
    chunk_rate: float
    byte_rate: float
    eta_s: float | None
    passes: int
    paused: tuple[str, ...]
    oldest_verification_s: float
    nodes: tuple[NodeSummary, ...]

    @property
    def whole(self) -> bool:
        """Every copy is where it belongs and no difference is known."""
        return not (self.copies_missing or self.keys_diverged or self.chunks_diverged or self.handoffs)


def summarise(
    layout: Layout, answers: Mapping[str, NodeRepair | None], confirmed: Mapping[str, NodeRepair | None] | None = None
) -> RepairSummary:
    """``answers``: of every node of the layout, None for one that did not answer; also of nodes outside. ``confirmed``: the same a
    moment later; then only what is missing both times counts, place by place, and everything else is as of then."""
    names = [node.name for node in layout.nodes]
    due = dict.fromkeys(names, 0)
    missing = dict.fromkeys(names, 0)
    deficits = _deficits(layout, answers, due)
    if confirmed is not None:
        answers = confirmed
        due = dict.fromkeys(names, 0)
        later = _deficits(layout, answers, due)
        deficits = {place: min(count, later.get(place, 0)) for place, count in deficits.items()}
    for (name, _, _), count in deficits.items():
        missing[name] += count
    living = {name: repair for name, repair in answers.items() if repair is not None}
    for name, repair in living.items():
        if name in missing:
            missing[name] = max(missing[name], repair.lacking)
    oldest = max((repair.oldest_s for repair in living.values()), default=-1.0)
    chunk_rate = sum(repair.chunk_rate for repair in living.values())
    copies_missing = sum(missing.values())
    return RepairSummary(
        copies_due=sum(due.values()),
        copies_missing=copies_missing,
        keys_diverged=sum(repair.keys_diverged for repair in living.values()),
        chunks_diverged=sum(repair.chunks_diverged for repair in living.values()),
        oldest_s=oldest if oldest >= 0 else None,
        handoffs=sum(repair.handoffs for repair in living.values()),
        chunk_rate=chunk_rate,
        byte_rate=sum(repair.byte_rate for repair in living.values()),
        eta_s=copies_missing / chunk_rate if copies_missing and chunk_rate else None,
        passes=min((repair.passes for name, repair in living.items() if name in missing), default=0),
        paused=tuple(sorted(name for name, repair in living.items() if repair.paused)),
        oldest_verification_s=max((repair.oldest_verification_s for repair in living.values()), default=0.0),
        nodes=(
            *(NodeSummary(name, due[name], missing[name], answers.get(name)) for name in names),
            *(
                NodeSummary(name, 0, 0, repair)
                for name, repair in living.items()
                if name not in missing and repair.handoffs
            ),
        ),
    )


def _deficits(
    layout: Layout, answers: Mapping[str, NodeRepair | None], due: dict[str, int]
) -> dict[tuple[str, int, int], int]:
    """Copies that are not there, by node, class and partition; adds up in ``due`` what should be."""
    held = {name: _counts(repair, layout.partitions) for name, repair in answers.items() if repair is not None}
    deficits: dict[tuple[str, int, int], int] = {}
    for copies in sorted({copies for counts in held.values() for copies in counts}):
        for partition in range(layout.partitions):
            holders = layout.placement(partition, copies)
            counts = {name: held[name].get(copies, {}).get(partition, 0) for name in holders if name in held}
            expected = max(counts.values(), default=0)
            for name in holders if expected else ():
                due[name] += expected
                if counts.get(name, 0) < expected:
                    deficits[name, copies, partition] = expected - counts.get(name, 0)
    return deficits


def pack_counts(counts: Mapping[int, Mapping[int, int]], partitions: int) -> tuple[tuple[int, ...], bytes]:
    """``classes`` and ``counts`` of `NodeRepair`, from copies -> partition -> chunks."""
    classes = tuple(sorted(counts))
    flat = [counts[copies].get(partition, 0) for copies in classes for partition in range(partitions)]
    return classes, struct.pack(f">{len(flat)}I", *flat)


def _counts(repair: NodeRepair, partitions: int) -> dict[int, dict[int, int]]:
    size = 4 * partitions
    found: dict[int, dict[int, int]] = {}
    for index, copies in enumerate(repair.classes):
        part = repair.counts[index * size : (index + 1) * size]
        if len(part) == size:
            found[copies] = {p: count for p, count in enumerate(struct.unpack(f">{partitions}I", part)) if count}
    return found
