"""`plan_layout`: from the layout there is and the nodes there shall be to the next layout. Pure and deterministic.

What holds for every plan (the tests check each against a naive version):

* replicas of a partition are on different nodes, and as evenly over the zones as the zones' sizes allow: in different zones when
  there are enough of them;
* every node holds its water-filled quota, rounded down or up (`cluster.layout.quota`);
* no layout with these two properties moves fewer replicas from the previous one (`cluster.layout.assignment`);
* every node comes first for its part of what it holds (`cluster.layout.leaders`);
* planning again for the same nodes changes nothing but the version.
"""

from __future__ import annotations

from collections.abc import Sequence

from cluster.errors import Invalid
from cluster.layout.assignment import Assignment
from cluster.layout.layout import Layout, LayoutNode, check_layout_numbers, check_nodes, pack_assignment
from cluster.layout.leaders import balance_leaders
from cluster.layout.quota import compute_quotas
from cluster.layout.ring import DEFAULT_PARTITION_BITS


def plan_layout(
    previous: Layout | None,
    nodes: Sequence[LayoutNode],
    *,
    replication_factor: int,
    partition_bits: int = DEFAULT_PARTITION_BITS,
) -> Layout:
    """The layout for ``nodes`` (any order) that follows ``previous`` (None: the first one), its version one higher.

    Nodes are known by name: one whose zone, capacity or address changes keeps what it holds as far as possible. The replication factor
    may change from one layout to the next, the number of partitions may not. Raises `Invalid` for no nodes, two of one name, numbers out
    of range, or another ``partition_bits`` than before.
    """
    version = 1 if previous is None else previous.version + 1
    check_layout_numbers(version, replication_factor, partition_bits)
    check_nodes(nodes)
    if previous is not None and previous.partition_bits != partition_bits:
        raise Invalid(
            f"this cluster has 2^{previous.partition_bits} partitions for good; it cannot change to 2^{partition_bits}",
            field="partition_bits",
        )
    ordered = tuple(sorted(nodes, key=lambda node: node.name))
    index = {node.name: place for place, node in enumerate(ordered)}
    partitions = 1 << partition_bits
    before: list[list[int]] = [[] for _ in range(partitions)]
    if previous is not None:
        before = [
            [index[name] for name in previous.replicas(partition) if name in index] for partition in range(partitions)
        ]
    quotas = compute_quotas(ordered, min(replication_factor, len(ordered)), partitions)
    holdings = balance_leaders(Assignment(quotas, before).solve(), len(ordered))
    return Layout(version, replication_factor, partition_bits, ordered, pack_assignment(holdings))
