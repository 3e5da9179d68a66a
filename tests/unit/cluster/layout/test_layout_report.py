from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.layout.layout import LayoutNode
from cluster.layout.planner import plan_layout
from cluster.layout.report import LayoutChange
from tests.unit.cluster.layout.naive_placement import least_moves, moves_between


def node(number: int, zone: str | None = None, capacity: int = 100) -> LayoutNode:
    return LayoutNode(f"n{number}", zone or f"n{number}", capacity, "10.0.0.1", 7482)


def test_a_node_that_joins() -> None:
    before = plan_layout(None, [node(i) for i in range(5)], replication_factor=3)
    after = plan_layout(before, [node(i) for i in range(6)], replication_factor=3)
    change = LayoutChange(before, after, dict.fromkeys(range(1024), 10))
    assert change.replicas_to_move == change.least_possible == 512
    assert change.bytes_to_move == 5120
    joined = change.nodes[5]
    assert (joined.name, joined.change, joined.receives, joined.drops) == ("n5", "joins", 512, 0)
    assert (joined.partitions_before, joined.partitions_after, joined.bytes_after) == (0, 512, 5120)
    assert joined.share_after == joined.ideal_share == pytest.approx(1 / 6)
    assert sum(each.drops for each in change.nodes) == 512
    assert sum(each.leads_after for each in change.nodes) == 1024
    assert change.balance.usable == pytest.approx(1.0)
    assert change.warnings == ()


def test_a_node_that_leaves_is_still_reported() -> None:
    before = plan_layout(None, [node(i) for i in range(5)], replication_factor=3)
    after = plan_layout(before, [node(i) for i in range(4)], replication_factor=3)
    left = LayoutChange(before, after, 10**6).nodes[4]
    assert (left.change, left.partitions_after, left.drops, left.ideal_share) == (
        "leaves",
        0,
        left.partitions_before,
        0.0,
    )
    assert left.bytes_after == 0
    assert left.bytes_before == pytest.approx(0.6 * 10**6, rel=0.01)


def test_a_first_layout_moves_nothing() -> None:
    change = LayoutChange(None, plan_layout(None, [node(i) for i in range(3)], replication_factor=3), 0)
    assert (change.replicas_to_move, change.least_possible, change.bytes_to_move, change.leaders_changed) == (
        0,
        0,
        0,
        0,
    )
    assert "the first" in change.lines()[0]
    assert change.to_json()["from_version"] is None


def test_bytes_are_unknown_unless_given() -> None:
    layout = plan_layout(None, [node(1)], replication_factor=1)
    change = LayoutChange(layout, layout)
    assert change.bytes_to_move is None
    assert change.nodes[0].bytes_after is None
    assert "B)" not in "".join(change.lines())


def test_bytes_follow_the_partitions_that_move() -> None:
    before = plan_layout(None, [node(i) for i in range(4)], replication_factor=2, partition_bits=4)
    after = plan_layout(before, [node(i) for i in range(1, 5)], replication_factor=2, partition_bits=4)
    sizes = {partition: 2**partition for partition in range(1, 16)}
    expected = sum(
        sizes.get(partition, 0) * len(set(after.replicas(partition)) - set(before.replicas(partition)))
        for partition in range(16)
    )
    change = LayoutChange(before, after, sizes)
    assert change.bytes_to_move == expected == sum(each.bytes_received or 0 for each in change.nodes)
    total = LayoutChange(before, after, 16 * 1000 + 3)
    assert sum(each.bytes_after or 0 for each in total.nodes) == 2 * (16 * 1000 + 3)


@pytest.mark.parametrize(
    ("nodes", "factor", "warning"),
    [
        ([node(1), node(2)], 3, "too few nodes: 3 replicas are wanted, 2 are kept; add 1"),
        ([node(i, f"z{i % 2}") for i in range(4)], 3, "too few zones: 3 replicas in 2"),
        (
            [node(0, None, 900), *[node(i) for i in range(1, 5)]],
            3,
            "zone n0 has 69.2% of the capacity but can hold no more than 33.3%",
        ),
        (
            [node(0, "z0", 1), node(9, "z0", 1), *[node(i, "z1") for i in range(1, 5)]],
            3,
            "zones are too uneven: zone z1",
        ),
        ([node(0, "z0", 900), *[node(i, "z0") for i in range(1, 5)]], 3, "nodes are too uneven: n0 has 69.2%"),
        ([node(0, None, 1), *[node(i, None, 10**9) for i in range(1, 5)]], 3, "too small to hold a partition: n0"),
        ([node(i) for i in range(1000)], 3, "partitions are coarse"),
    ],
)
def test_warnings(nodes: list[LayoutNode], factor: int, warning: str) -> None:
    change = LayoutChange(None, plan_layout(None, nodes, replication_factor=factor))
    assert any(warning in line for line in change.warnings), change.warnings
    assert any(line.startswith("Warning: ") for line in change.lines())


def test_partitions_without_a_lasting_copy_are_pointed_out() -> None:
    before = plan_layout(None, [node(i) for i in range(3)], replication_factor=3)
    after = plan_layout(before, [node(i) for i in range(3, 6)], replication_factor=3)
    assert "1024 partitions move to other nodes altogether" in LayoutChange(before, after).warnings[0]


def test_balanced_layouts_have_no_warnings() -> None:
    for count in (3, 5, 30):
        assert (
            LayoutChange(None, plan_layout(None, [node(i) for i in range(count)], replication_factor=3)).warnings == ()
        )


def test_json_is_json_and_lines_are_lines() -> None:
    before = plan_layout(None, [node(i) for i in range(5)], replication_factor=3)
    after = plan_layout(before, [node(i) for i in range(2, 7)], replication_factor=3)
    change = LayoutChange(before, after, 5 * 2**40)
    assert json.loads(json.dumps(change.to_json())) == change.to_json()
    lines = change.lines()
    assert f"Layout 1 -> 2: {moves_between(before, after)} of 3072 replicas move" in lines[0]
    assert "TiB" in lines[0]
    assert [line.split()[0] for line in lines[2:10]] == ["node", *[f"n{i}" for i in range(7)]]
    assert not any("\n" in line for line in lines)


@given(
    first=st.lists(st.tuples(st.integers(0, 3), st.integers(1, 5)), min_size=1, max_size=5),
    second=st.lists(st.tuples(st.integers(0, 3), st.integers(1, 5)), min_size=1, max_size=5),
    shift=st.integers(0, 3),
    factor=st.integers(1, 4),
)
@settings(deadline=None)
def test_the_bound_is_never_above_the_least(
    first: list[tuple[int, int]], second: list[tuple[int, int]], shift: int, factor: int
) -> None:
    old = [node(number, f"z{zone}", capacity) for number, (zone, capacity) in enumerate(first)]
    new = [node(number + shift, f"z{zone}", capacity) for number, (zone, capacity) in enumerate(second)]
    before = plan_layout(None, old, replication_factor=factor, partition_bits=2)
    after = plan_layout(before, new, replication_factor=factor, partition_bits=2)
    change = LayoutChange(before, after)
    assert change.replicas_to_move == moves_between(before, after)
    assert change.least_possible <= least_moves(before, after.nodes, after.replicas_per_partition)
