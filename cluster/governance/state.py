"""What a cluster has agreed about its layout. Pure values and transitions.

The agreed state is the value of one register (`META_KEY`) whose replicas are all members of the layout. Epochs number its values:

    epoch e: current=v                     a quiet cluster
    e+1:     current=v, next=v+1            a change was applied: writes need a majority of both, new replicas copy
    e+2:     current=v+1                    everybody has copied; or  current=v  again when the change was given up

Invariants: an epoch has one value; ``next`` is one version above ``current`` with the same partitions. Each epoch's quorum rule for the
register itself shares a group with the one before it, so that two proposers can't both succeed from different pasts
(docs/decisions/layout-change.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgpack

from cluster.errors import Conflict, Invalid
from cluster.layout.layout import Layout
from cluster.register.key import RegisterKey
from cluster.register.quorum import QuorumRule

META_KEY = RegisterKey("layout", b"", b"state")
"""The register of the agreed state; it lives in `META_PARTITION`."""

STATE_FORMAT = 1
CLUSTER_ID_BYTES = 16
WRITE_ID_BYTES = 8


@dataclass(frozen=True, slots=True)
class StagedChange:
    """A wish about one node for the next plan; None leaves that property as it is."""

    name: str
    zone: str | None = None
    capacity: int | None = None
    remove: bool = False

    def granted(self, layout: Layout) -> bool:
        """Whether the node is in the layout as it is wished to be."""
        node = layout.node(self.name)
        if node is None or self.remove:
            return False
        return self.zone in {None, node.zone} and self.capacity in {None, node.capacity}


@dataclass(frozen=True)
class LayoutState:
    """``founders``: the members of layout 1 and the stores they had then, which alone vote without having relearned.
    ``excluded``: names an operator has removed, which are not taken in again by themselves. ``staged``: what an operator wants the next
    plan to change. ``outed``: names that were moved out because they were dead for long, and are taken in again when they are back.
    ``write_id`` makes every value unique."""

    cluster_id: bytes
    epoch: int
    write_id: bytes
    current: Layout
    next: Layout | None = None
    founders: tuple[tuple[str, bytes], ...] = ()
    excluded: tuple[str, ...] = ()
    staged: tuple[StagedChange, ...] = ()
    outed: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if len(self.cluster_id) != CLUSTER_ID_BYTES or self.epoch < 1:
            raise Invalid("a layout state needs a cluster id and an epoch")
        if self.next is not None and (
            self.next.version != self.current.version + 1 or self.next.partition_bits != self.current.partition_bits
        ):
            raise Invalid("the next layout follows the current one")

    @property
    def members(self) -> tuple[str, ...]:
        """Everybody in either layout, sorted."""
        names = {node.name for node in self.current.nodes}
        if self.next is not None:
            names |= {node.name for node in self.next.nodes}
        return tuple(sorted(names))

    def layouts(self) -> tuple[Layout, ...]:
        return (self.current,) if self.next is None else (self.current, self.next)

    def rule(self, partition: int) -> QuorumRule:
        """The quorum rule of a partition's registers."""
        groups = tuple(layout.replicas(partition) for layout in self.layouts())
        return QuorumRule(tuple(dict.fromkeys(groups)))

    def meta_rule(self) -> QuorumRule:
        """The quorum rule of the agreed state itself: all members, jointly while a change is under way."""
        groups = tuple(tuple(node.name for node in layout.nodes) for layout in self.layouts())
        return QuorumRule(tuple(dict.fromkeys(groups)))

    # Transitions

    def stage(self, changes: Sequence[StagedChange], write_id: bytes) -> LayoutState:
        """Add wishes for the next plan; a later one about a node replaces an earlier one."""
        merged = {change.name: change for change in (*self.staged, *changes)}
        staged = tuple(merged[name] for name in sorted(merged))
        return replace(self, epoch=self.epoch + 1, write_id=write_id, staged=staged)

    def unstage(self, write_id: bytes) -> LayoutState:
        """Drop the wishes."""
        return replace(self, epoch=self.epoch + 1, write_id=write_id, staged=())

    def require_no_change(self) -> None:
        """Raises Conflict while a change is under way."""
        if self.next is not None:
            raise Conflict(
                f"layout {self.next.version} is still being filled: wait for it, or abort it", version=self.next.version
            )

    def begin(self, layout: Layout, write_id: bytes) -> LayoutState:
        """Start filling ``layout``. Raises Conflict while another change is under way."""
        self.require_no_change()
        gone = {change.name for change in self.staged if change.remove}
        kept = {node.name for node in layout.nodes}
        excluded = tuple(sorted((gone | set(self.excluded)) - kept))
        outed = tuple(name for name in self.outed if name not in kept and name not in gone)
        return replace(
            self, epoch=self.epoch + 1, write_id=write_id, next=layout, excluded=excluded, staged=(), outed=outed
        )

    def begin_unasked(self, layout: Layout, write_id: bytes) -> LayoutState:
        """Start filling a layout that no operator has asked for: without nodes that have been dead for long, or with them again.
        What is staged stays so, but for what this layout grants. Raises Conflict while another change is under way."""
        self.require_no_change()
        kept = {node.name for node in layout.nodes}
        gone = {node.name for node in self.current.nodes} - kept
        outed = tuple(sorted((gone | set(self.outed)) - kept))
        staged = tuple(change for change in self.staged if not change.granted(layout))
        return replace(self, epoch=self.epoch + 1, write_id=write_id, next=layout, outed=outed, staged=staged)

    def finish(self, write_id: bytes) -> LayoutState:
        """Everything is copied: the next layout is the current one."""
        assert self.next is not None
        return replace(self, epoch=self.epoch + 1, write_id=write_id, current=self.next, next=None)

    def abort(self, write_id: bytes) -> LayoutState:
        """Give the change up. Raises Conflict when there is none. The version is used up only when it finishes."""
        if self.next is None:
            raise Conflict("no layout change is under way")
        return replace(self, epoch=self.epoch + 1, write_id=write_id, next=None)

    # Wire and disk

    def pack(self) -> bytes:
        value: list[Any] = [
            STATE_FORMAT,
            self.cluster_id,
            self.epoch,
            self.write_id,
            self.current.to_wire(),
            None if self.next is None else self.next.to_wire(),
            [list(founder) for founder in self.founders],
            list(self.excluded),
            [[change.name, change.zone, change.capacity, change.remove] for change in self.staged],
            list(self.outed),
        ]
        return bytes(msgpack.packb(value))

    @staticmethod
    def unpack(data: bytes) -> LayoutState:
        """Raises Invalid for anything that `pack` did not make."""
        try:
            fields = msgpack.unpackb(data)
            if fields[0] != STATE_FORMAT:
                raise Invalid(f"a layout state of format {fields[0]!r}: it was written by a newer release")
            return LayoutState(
                cluster_id=bytes(fields[1]),
                epoch=int(fields[2]),
                write_id=bytes(fields[3]),
                current=Layout.from_wire(fields[4]),
                next=None if fields[5] is None else Layout.from_wire(fields[5]),
                founders=tuple((str(name), bytes(store)) for name, store in fields[6]),
                excluded=tuple(str(name) for name in fields[7]),
                staged=tuple(StagedChange(*change) for change in fields[8]),
                outed=tuple(str(name) for name in (fields[9] if len(fields) > 9 else ())),
            )
        except (ValueError, TypeError, IndexError, msgpack.UnpackException) as error:
            raise Invalid(f"not a layout state ({error})") from error
