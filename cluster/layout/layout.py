"""A layout: a version, the nodes, and which of them hold each partition, in order of preference.

Invariants, checked when a `Layout` is made (so every `Layout` that exists keeps them):

* nodes are sorted by name, each name once;
* every partition has ``min(replication_factor, number of nodes)`` replicas, all on different nodes.

Zones and weights are the planner's business: a layout whose zones are badly spread is still a valid one, since a cluster must
be able to load what it once agreed on. A layout is immutable; a change is a new one with the next version.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import msgpack
from blake3 import blake3

from cluster.errors import Invalid
from cluster.layout.ring import DEFAULT_PARTITION_BITS, MAX_PARTITION_BITS

WIRE_FORMAT: Final = 1
"""First item of the wire form; a reader refuses what it does not know."""

MAX_NODES: Final = 4096
"""Preference lists and plans are computed over all nodes; well past the 1000 that the targets speak of."""

MAX_REPLICATION_FACTOR: Final = 16
"""More copies than anybody needs, few enough to scan a partition's replicas instead of indexing them."""

MAX_CAPACITY: Final = (1 << 63) - 1
"""A weight fits a signed 64-bit integer everywhere it is written."""

MAX_HOST_LENGTH: Final = 255
"""The longest DNS name (RFC 1035)."""

PREFERENCE_CACHE_ENTRIES: Final = 1 << 22
"""Node names held by cached preference lists, all together (32 MiB of pointers): 1024 partitions of the largest cluster."""

NAME_PATTERN: Final = re.compile(r"[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?")
"""Names of nodes and zones."""


@dataclass(frozen=True, slots=True)
class LayoutNode:
    """One node of a layout.

    ``name``, ``zone``: as `NAME_PATTERN` says; nodes of one zone are expected to fail together. ``capacity``: the weight, an
    integer > 0 in any unit as long as all nodes use the same. ``host``, ``port``: where its peers reach it.
    Raises `Invalid` (``field`` in the details) when one of them is wrong.
    """

    name: str
    zone: str
    capacity: int
    host: str
    port: int

    def __post_init__(self) -> None:
        for key, value in (("name", self.name), ("zone", self.zone)):
            if not _is_text(value) or NAME_PATTERN.fullmatch(value) is None:
                raise Invalid(
                    f"a node's {key} is 1 to 63 of a-z, 0-9, '-' and '.', first and last a letter or digit; not {value!r}",
                    field=key,
                )
        if not _is_integer(self.capacity) or not 0 < self.capacity <= MAX_CAPACITY:
            raise Invalid(
                f"node {self.name} needs a capacity, an integer from 1 to {MAX_CAPACITY}; not {self.capacity!r}",
                field="capacity",
            )
        if not _is_text(self.host) or not 0 < len(self.host) <= MAX_HOST_LENGTH:
            raise Invalid(
                f"node {self.name} needs a host of 1 to {MAX_HOST_LENGTH} characters; not {self.host!r}", field="host"
            )
        if not _is_integer(self.port) or not 0 < self.port < 1 << 16:
            raise Invalid(f"node {self.name} needs a port from 1 to 65535; not {self.port!r}", field="port")


@dataclass(frozen=True)
class Layout:
    """Who holds what, as agreed under one version.

    ``version``: >= 1. ``replication_factor``: wanted replicas of a partition. ``partition_bits``: log2 of the number of partitions.
    ``nodes``: sorted by name. ``assignment``: for partition 0, 1, ... the indexes into ``nodes`` of its replicas, most
    preferred first, each an unsigned 16-bit big-endian integer. Raises `Invalid` when these do not fit together.
    """

    version: int
    replication_factor: int
    partition_bits: int
    nodes: tuple[LayoutNode, ...]
    assignment: bytes = field(repr=False)
    _replicas: list[tuple[str, ...]] = field(init=False, repr=False, compare=False)
    _preferences: dict[int, tuple[str, ...]] = field(init=False, repr=False, compare=False)
    _by_name: dict[str, LayoutNode] = field(init=False, repr=False, compare=False)
    _partitions_by_node: dict[str, tuple[int, ...]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_layout_numbers(self.version, self.replication_factor, self.partition_bits)
        check_nodes(self.nodes)
        names = [node.name for node in self.nodes]
        if names != sorted(names):
            raise Invalid("a layout's nodes are sorted by name", field="nodes")
        width = min(self.replication_factor, len(names))
        count = width << self.partition_bits
        if not _is_bytes(self.assignment) or len(self.assignment) != 2 * count:
            raise Invalid(f"the assignment of this layout takes {2 * count} bytes", field="assignment")
        indexes = struct.unpack(f">{count}H", self.assignment)
        if max(indexes) >= len(names):
            raise Invalid("the assignment names a node that the layout does not have", field="assignment")
        replicas: list[tuple[str, ...]] = []
        held: dict[str, list[int]] = {name: [] for name in names}
        for start in range(0, count, width):
            members = tuple([names[index] for index in indexes[start : start + width]])
            if len(set(members)) != width:
                raise Invalid(f"partition {len(replicas)} has two replicas on one node", field="assignment")
            for member in members:
                held[member].append(len(replicas))
            replicas.append(members)
        # a frozen dataclass is filled through its base: these four are derived, and only read from here on
        object.__setattr__(self, "_replicas", replicas)
        object.__setattr__(self, "_preferences", {})
        object.__setattr__(self, "_by_name", {node.name: node for node in self.nodes})
        object.__setattr__(self, "_partitions_by_node", {name: tuple(held[name]) for name in names})

    @property
    def partitions(self) -> int:
        """How many partitions there are."""
        return 1 << self.partition_bits

    @property
    def fingerprint(self) -> str:
        """Eight hex digits that tell two layouts of one version apart: its nodes and who holds what."""
        return blake3(msgpack.packb(self.to_wire())).hexdigest(length=4)

    @property
    def replicas_per_partition(self) -> int:
        """``replication_factor``, or the number of nodes when there are fewer."""
        return min(self.replication_factor, len(self.nodes))

    def node(self, name: str) -> LayoutNode | None:
        """The node of that name, or None when it is not in this layout."""
        return self._by_name.get(name)

    def replicas(self, partition: int) -> tuple[str, ...]:
        """The names of the nodes that hold ``partition``, most preferred first."""
        return self._replicas[partition]

    def partitions_of(self, node: str) -> tuple[int, ...]:
        """The partitions that ``node`` holds, ascending; none for a name that is not in this layout."""
        return self._partitions_by_node.get(node, ())

    def placement(self, partition: int, copies: int) -> tuple[str, ...]:
        """The first ``copies`` nodes of the preference list (fewer when the layout has fewer)."""
        replicas = self._replicas[partition]
        if copies == len(replicas):
            return replicas
        return (replicas if copies < len(replicas) else self.preference(partition))[:copies]

    def preference(self, partition: int) -> tuple[str, ...]:
        """All nodes: the replicas, then the others in the order in which they stand in for an absent replica.

        The others follow weighted rendezvous hashing (score ``-ln(hash) / capacity``, the smallest first), so that every
        partition has its own order, larger nodes come earlier more often, and a change of the nodes leaves the others' order
        alone. Nodes that are the first of their zone in the list precede those that are the second, and so on.
        """
        known = self._preferences.get(partition)
        if known is None:
            if (len(self._preferences) + 1) * len(self.nodes) > PREFERENCE_CACHE_ENTRIES:
                self._preferences.clear()
            known = self._preferences[partition] = self._order_all(partition)
        return known

    def prepare(self, start: int, stop: int) -> None:
        """Work out the preference lists of some partitions: 2 to 4 us a partition and node. In a thread, before anybody on the event
        loop needs them."""
        for partition in range(start, stop):
            self.preference(partition)

    def _order_all(self, partition: int) -> tuple[str, ...]:
        replicas = self._replicas[partition]
        met: dict[str, int] = {}
        for name in replicas:
            zone = self._by_name[name].zone
            met[zone] = met.get(zone, 0) + 1
        salt = struct.pack(">H", partition)
        scored = sorted(
            (_rendezvous_score(salt, node), node.name, node.zone) for node in self.nodes if node.name not in replicas
        )
        ranked: list[tuple[int, int, str]] = []
        for place, (_, name, zone) in enumerate(scored):
            met[zone] = met.get(zone, 0) + 1
            ranked.append((met[zone], place, name))
        ranked.sort()
        return replicas + tuple([name for _, _, name in ranked])

    def to_wire(self) -> list[Any]:
        """A msgpack-able list; `from_wire` is its inverse. Some 40 bytes a node and 2 bytes a replica."""
        nodes = [
            [node.name, None if node.zone == node.name else node.zone, node.capacity, node.host, node.port]
            for node in self.nodes
        ]
        return [WIRE_FORMAT, self.version, self.replication_factor, self.partition_bits, nodes, self.assignment]

    @staticmethod
    def from_wire(value: object) -> Layout:
        """The layout of a wire form, completely checked. Raises `Invalid`. Extra trailing items are ignored."""
        fields = _sequence(value, 6, "a layout")
        if fields[0] != WIRE_FORMAT:
            raise Invalid(
                f"unknown layout format {fields[0]!r}: this release reads format {WIRE_FORMAT}", field="format"
            )
        version, replication_factor, partition_bits, node_list, assignment = fields[1:6]
        nodes: list[LayoutNode] = []
        for item in _sequence(node_list, 1, "a layout's node list"):
            name, zone, capacity, host, port = _sequence(item, 5, "a layout's node")[:5]
            nodes.append(LayoutNode(name, name if zone is None else zone, capacity, host, port))
        return Layout(version, replication_factor, partition_bits, tuple(nodes), assignment)


def pack_assignment(replicas: Sequence[Sequence[int]]) -> bytes:
    """`Layout.assignment` from the node indexes of each partition."""
    flat = [index for members in replicas for index in members]
    return struct.pack(f">{len(flat)}H", *flat)


def unpack_assignment(layout: Layout) -> list[tuple[int, ...]]:
    """The node indexes of each partition, most preferred first: the inverse of `pack_assignment`."""
    width = layout.replicas_per_partition
    flat = struct.unpack(f">{width << layout.partition_bits}H", layout.assignment)
    return [flat[start : start + width] for start in range(0, len(flat), width)]


def check_nodes(nodes: Sequence[LayoutNode]) -> None:
    """Raise `Invalid` unless there are 1 to `MAX_NODES` nodes, no two of one name."""
    if not 0 < len(nodes) <= MAX_NODES:
        raise Invalid(f"a layout has 1 to {MAX_NODES} nodes, not {len(nodes)}", field="nodes")
    seen: set[str] = set()
    for node in nodes:
        if node.name in seen:
            raise Invalid(f"two nodes are called {node.name}: give each its own name", field="name")
        seen.add(node.name)


def check_layout_numbers(version: int, replication_factor: int, partition_bits: int) -> None:
    """Raise `Invalid` unless each is in its range."""
    if not _is_integer(version) or version < 1:
        raise Invalid(f"a layout's version is an integer from 1, not {version!r}", field="version")
    if not _is_integer(replication_factor) or not 0 < replication_factor <= MAX_REPLICATION_FACTOR:
        raise Invalid(
            f"the replication factor is an integer from 1 to {MAX_REPLICATION_FACTOR}, not {replication_factor!r}",
            field="replication_factor",
        )
    if not _is_integer(partition_bits) or not 0 < partition_bits <= MAX_PARTITION_BITS:
        raise Invalid(
            f"partition_bits is an integer from 1 to {MAX_PARTITION_BITS} (default {DEFAULT_PARTITION_BITS}), "
            f"not {partition_bits!r}",
            field="partition_bits",
        )


def _rendezvous_score(salt: bytes, node: LayoutNode) -> float:
    digest = int.from_bytes(blake3(salt + node.name.encode()).digest(length=8))
    return -math.log((digest + 1) / (1 << 64)) / node.capacity


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_bytes(value: object) -> bool:
    return isinstance(value, bytes)


def _sequence(value: object, least: int, what: str) -> Sequence[Any]:
    if not isinstance(value, list | tuple) or len(value) < least:
        raise Invalid(f"{what} is a list of at least {least} items", field="layout")
    return value
