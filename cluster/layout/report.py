"""What a change of layout means: for each node and in total, as JSON and as lines for people, before anything is applied.

Pure arithmetic over two layouts and, when known, the bytes in the partitions. It judges any pair of layouts, not only those that
`plan_layout` made. Nothing is decided here, and warnings never stop a change.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from cluster.layout.layout import Layout
from cluster.layout.quota import Quotas, compute_quotas

UNEVEN_WARNING: Final = 0.05
"""A node or zone whose share the spread holds this far (5 %) from its share of the capacity is worth a warning."""

COARSE_WARNING: Final = 0.10
"""So is a node that rounding to whole partitions puts this far (10 %) above its quota."""


@dataclass(frozen=True, slots=True)
class NodeChange:
    """One node. Partitions are replicas held; shares are fractions of all replicas; bytes are None when not known.

    ``ideal_share``: its part of the capacity; ``quota``: partitions that weights and spread give it (0 for a node that leaves).
    ``receives``/``drops``: replicas that come to it and that it need not keep. ``change``: joins, leaves or stays.
    """

    name: str
    zone: str
    capacity: int
    change: str
    partitions_before: int
    partitions_after: int
    share_before: float
    share_after: float
    ideal_share: float
    quota: float
    leads_before: int
    leads_after: int
    receives: int
    drops: int
    bytes_before: int | None
    bytes_after: int | None
    bytes_received: int | None


@dataclass(frozen=True, slots=True)
class Balance:
    """How good the new layout is. ``usable``: the part of all capacity that is filled when the first node is full (1.0 is
    perfect); ``tightest``: that node; ``over_quota``: how far a node is above what the spread allows it, at worst (0.01 = 1 %)."""

    usable: float
    tightest: str
    over_quota: float


class LayoutChange:
    """From ``previous`` (None: there is no data yet) to ``following``.

    ``bytes_per_partition``: bytes of one copy of each partition (a mapping, missing ones are empty), or of all of them
    together (an int, taken as evenly spread), or None when not known.

    ``replicas_to_move`` and ``bytes_to_move`` count what nodes hold afterwards and did not hold before. ``least_possible`` is a bound: no
    layout that keeps the spread and the quotas moves fewer replicas, and at times even the best has to move some more.
    """

    def __init__(
        self, previous: Layout | None, following: Layout, bytes_per_partition: Mapping[int, int] | int | None = None
    ) -> None:
        self.previous = previous
        self.following = following
        self._bytes = _bytes_of_each(bytes_per_partition, following.partitions)
        self._quotas = compute_quotas(following.nodes, following.replicas_per_partition, following.partitions)
        self.nodes: tuple[NodeChange, ...] = self._describe_nodes()
        moving = previous is not None
        self.replicas_to_move = sum([node.receives for node in self.nodes]) if moving else 0
        self.bytes_to_move = sum([node.bytes_received or 0 for node in self.nodes]) if self._bytes is not None else None
        self.leaders_changed = sum(
            [
                previous is not None and previous.replicas(partition)[0] != following.replicas(partition)[0]
                for partition in range(following.partitions)
            ]
        )
        self.least_possible = _least_possible(previous, following, self._quotas) if previous is not None else 0
        self.balance = self._judge_balance()
        self.warnings: tuple[str, ...] = tuple(self._warn())

    def to_json(self) -> dict[str, Any]:
        """Everything, as JSON-able values; the names are those of the attributes."""
        return {
            "from_version": None if self.previous is None else self.previous.version,
            "to_version": self.following.version,
            "replication_factor": self.following.replication_factor,
            "partitions": self.following.partitions,
            "replicas_to_move": self.replicas_to_move,
            "least_possible": self.least_possible,
            "bytes_to_move": self.bytes_to_move,
            "leaders_changed": self.leaders_changed,
            "balance": asdict(self.balance),
            "nodes": [asdict(node) for node in self.nodes],
            "warnings": list(self.warnings),
        }

    def lines(self) -> list[str]:
        """A plain-text report: a headline, a table of the nodes, the balance, the warnings."""
        lines = [self._headline(), ""]
        header = ("node", "zone", "", "partitions", "share", "ideal", "receives", "drops")
        rows = [
            (
                node.name,
                node.zone,
                "" if node.change == "stays" else node.change,
                f"{node.partitions_before} -> {node.partitions_after}",
                f"{node.share_before:.1%} -> {node.share_after:.1%}",
                f"{node.ideal_share:.1%}",
                str(node.receives) + ("" if node.bytes_received is None else f" ({_size(node.bytes_received)})"),
                str(node.drops),
            )
            for node in self.nodes
        ]
        lines += _table([header, *rows])
        balance = self.balance
        lines.append("")
        lines.append(
            f"Balance: {balance.usable:.1%} of the capacity is usable before the first node ({balance.tightest}) is full; "
            f"no node is more than {balance.over_quota:.1%} above its quota."
        )
        lines += [f"Warning: {warning}" for warning in self.warnings]
        return lines

    def _headline(self) -> str:
        if self.previous is None:
            return f"Layout {self.following.version}, the first: {len(self.following.nodes)} nodes, nothing to move."
        size = "" if self.bytes_to_move is None else f" ({_size(self.bytes_to_move)})"
        total = self.following.partitions * self.following.replicas_per_partition
        return (
            f"Layout {self.previous.version} -> {self.following.version}: {self.replicas_to_move} of {total} replicas move{size}, "
            f"at least {self.least_possible} must; {self.leaders_changed} partitions get another first node."
        )

    def _describe_nodes(self) -> tuple[NodeChange, ...]:
        before, after = self.previous, self.following
        total_capacity = sum([node.capacity for node in after.nodes])
        quota = {node.name: float(value) for node, value in zip(after.nodes, self._quotas.quota, strict=True)}
        leads_before, leads_after = _leads(before), _leads(after)
        every = {node.name: node for layout in (before, after) if layout is not None for node in layout.nodes}
        described: list[NodeChange] = []
        for name in sorted(every):
            node = every[name]
            old = set(before.partitions_of(name)) if before is not None else set()
            new = set(after.partitions_of(name))
            stays = after.node(name) is not None
            was_there = before is not None and before.node(name) is not None
            described.append(
                NodeChange(
                    name=name,
                    zone=node.zone,
                    capacity=node.capacity,
                    change="leaves" if not stays else "stays" if was_there else "joins",
                    partitions_before=len(old),
                    partitions_after=len(new),
                    share_before=len(old) / _replicas(before),
                    share_after=len(new) / _replicas(after),
                    ideal_share=node.capacity / total_capacity if stays else 0.0,
                    quota=quota.get(name, 0.0),
                    leads_before=leads_before.get(name, 0),
                    leads_after=leads_after.get(name, 0),
                    receives=len(new - old),
                    drops=len(old - new),
                    bytes_before=self._sum(old),
                    bytes_after=self._sum(new),
                    bytes_received=self._sum(new - old) if before is not None or self._bytes is None else 0,
                )
            )
        return tuple(described)

    def _sum(self, partitions: set[int]) -> int | None:
        each = self._bytes
        return None if each is None else sum([each[partition] for partition in partitions])

    def _judge_balance(self) -> Balance:
        staying = [node for node in self.nodes if node.change != "leaves"]
        tightest = max(staying, key=lambda node: node.partitions_after / node.capacity)
        mean = _replicas(self.following) / sum([node.capacity for node in staying])
        return Balance(
            usable=mean / (tightest.partitions_after / tightest.capacity),
            tightest=tightest.name,
            over_quota=max([node.partitions_after / node.quota - 1 for node in staying] + [0.0]),
        )

    def _warn(self) -> list[str]:
        layout = self.following
        wanted, width = layout.replication_factor, layout.replicas_per_partition
        zones: dict[str, list[NodeChange]] = {}
        for node in self.nodes:
            if node.change != "leaves":
                zones.setdefault(node.zone, []).append(node)
        warnings: list[str] = []
        if width < wanted:
            warnings.append(
                f"too few nodes: {wanted} replicas are wanted, {width} are kept; add {wanted - width} or more nodes."
            )
        if len(zones) < width:
            warnings.append(
                f"too few zones: {width} replicas in {len(zones)}, so the loss of one zone can take a partition's quorum; "
                "spread the nodes over more zones."
            )
        warnings += self._warn_uneven(zones)
        empty = [node.name for node in self.nodes if node.change != "leaves" and node.partitions_after == 0]
        if empty:
            warnings.append(f"too small to hold a partition: {_names(empty)}; they only stand in for others.")
        coarse = [
            node.name for node in self.nodes if node.quota and node.partitions_after / node.quota - 1 > COARSE_WARNING
        ]
        if coarse:
            warnings.append(
                f"partitions are coarse for so many or so small nodes: {_names(coarse)} more than {COARSE_WARNING:.0%} above quota."
            )
        if self.previous is not None:
            fresh = [
                partition
                for partition in range(layout.partitions)
                if not set(layout.replicas(partition)) & set(self.previous.replicas(partition))
            ]
            if fresh:
                warnings.append(
                    f"{len(fresh)} partitions move to other nodes altogether: until they have, "
                    "all their copies are on nodes that give them up."
                )
        return warnings

    def _warn_uneven(self, zones: Mapping[str, Sequence[NodeChange]]) -> list[str]:
        """Zones that cannot use their capacity, or else those that have to hold more than theirs; then single nodes alike."""
        total = _replicas(self.following)
        limited: list[str] = []
        burdened: list[str] = []
        for zone, members in sorted(zones.items()):
            ideal = sum([node.ideal_share for node in members])
            allowed = sum([node.quota for node in members]) / total
            if allowed / ideal < 1 - UNEVEN_WARNING:
                limited.append(
                    f"zone {zone} has {ideal:.1%} of the capacity but can hold no more than {allowed:.1%} of the replicas"
                )
            elif allowed / ideal > 1 + UNEVEN_WARNING:
                burdened.append(
                    f"zone {zone} has {ideal:.1%} of the capacity but has to hold {allowed:.1%} of the replicas"
                )
        if limited or burdened:
            return [f"zones are too uneven: {_names(limited or burdened, '; ')}."]
        limited = [
            f"{node.name} has {node.ideal_share:.1%} of the capacity but can hold no more than {node.quota / total:.1%} of the replicas"
            for members in zones.values()
            for node in members
            if node.quota / total < node.ideal_share * (1 - UNEVEN_WARNING)
        ]
        return [f"nodes are too uneven: {_names(sorted(limited), '; ')}."] if limited else []


def _least_possible(previous: Layout, following: Layout, quotas: Quotas) -> int:
    """The larger of two bounds: what the nodes have to grow by, and what each partition alone has to replace for its spread."""
    index = {node.name: place for place, node in enumerate(following.nodes)}
    held = [len(previous.partitions_of(node.name)) for node in following.nodes]
    growth = sum([max(0, want - have) for want, have in zip(quotas.rounded(held), held, strict=True)])
    extras = quotas.width - sum(quotas.zone_base)
    replaced = 0
    for partition in range(following.partitions):
        counts: dict[int, int] = {}
        for name in previous.replicas(partition):
            if name in index:
                zone = quotas.zone_of[index[name]]
                counts[zone] = counts.get(zone, 0) + 1
        kept = sum([min(count, quotas.zone_base[zone]) for zone, count in counts.items()])
        above = sum([count > quotas.zone_base[zone] and quotas.zone_extra[zone] for zone, count in counts.items()])
        replaced += quotas.width - kept - min(above, extras)
    return max(growth, replaced)


def _bytes_of_each(given: Mapping[int, int] | int | None, partitions: int) -> list[int] | None:
    if given is None:
        return None
    if isinstance(given, int):
        return [given // partitions + (partition < given % partitions) for partition in range(partitions)]
    return [given.get(partition, 0) for partition in range(partitions)]


def _leads(layout: Layout | None) -> dict[str, int]:
    counts: dict[str, int] = {}
    if layout is not None:
        for partition in range(layout.partitions):
            first = layout.replicas(partition)[0]
            counts[first] = counts.get(first, 0) + 1
    return counts


def _replicas(layout: Layout | None) -> int:
    return 1 if layout is None else layout.partitions * layout.replicas_per_partition


def _names(names: Sequence[str], separator: str = ", ") -> str:
    shown = 5
    return separator.join(names[:shown]) + (f" and {len(names) - shown} more" if len(names) > shown else "")


def _size(count: int) -> str:
    size, unit = float(count), "B"
    for unit in ("B", "KiB", "MiB", "GiB", "TiB", "PiB"):
        if size < 1024 or unit == "PiB":
            break
        size /= 1024
    return f"{count} B" if unit == "B" else f"{size:.1f} {unit}"


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max([len(row[column]) for row in rows]) for column in range(len(rows[0]))]
    return ["  ".join([cell.ljust(width) for cell, width in zip(row, widths, strict=True)]).rstrip() for row in rows]
