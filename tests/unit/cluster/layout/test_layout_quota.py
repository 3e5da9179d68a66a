from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.layout.layout import LayoutNode
from cluster.layout.quota import compute_quotas
from tests.unit.cluster.layout.naive_placement import meets_quotas, naive_quotas, zone_bounds


def nodes_of(*groups: tuple[int, ...]) -> list[LayoutNode]:
    """One zone per group, one node per capacity in it."""
    return [
        LayoutNode(f"n{zone}-{place}", f"z{zone}", capacity, "host", 1)
        for zone, group in enumerate(groups)
        for place, capacity in enumerate(group)
    ]


@pytest.mark.parametrize(
    ("groups", "width", "quota"),
    [
        pytest.param([(1,), (1,), (1,)], 3, [100, 100, 100], id="as many zones as replicas: all hold everything"),
        pytest.param([(1,), (1,), (2,)], 1, [25, 25, 50], id="weights alone"),
        pytest.param(
            [(1,), (1,), (1,), (9,)], 2, [Fraction(100, 3)] * 3 + [100], id="a node never holds a partition twice"
        ),
        pytest.param([(1, 1), (8, 8)], 1, [Fraction(100, 18)] * 2 + [Fraction(800, 18)] * 2, id="no bound in reach"),
        pytest.param([(1, 1), (9, 9)], 3, [50, 50, 100, 100], id="two zones, three replicas: one to two each"),
        pytest.param([(1,), (2, 1, 1)], 3, [100, 100, 50, 50], id="a zone of one node holds one replica of everything"),
        pytest.param([(5,), (1, 1, 1)], 4, [100, 100, 100, 100], id="as many nodes as replicas"),
        pytest.param([(9, 1), (1, 9), (5, 5)], 3, [90, 10, 10, 90, 50, 50], id="within a zone by weight"),
    ],
)
def test_quotas_by_hand(groups: list[tuple[int, ...]], width: int, quota: list[int | Fraction]) -> None:
    assert list(compute_quotas(nodes_of(*groups), width, 100).quota) == quota


groups = st.lists(
    st.lists(st.sampled_from([1, 1, 2, 3, 5, 40, 10**4]), min_size=1, max_size=4).map(tuple), min_size=1, max_size=5
)


@given(groups=groups, width=st.integers(1, 6), bits=st.integers(1, 10))
def test_quotas_equal_the_bisected_ones(groups: list[tuple[int, ...]], width: int, bits: int) -> None:
    nodes = nodes_of(*groups)
    width = min(width, len(nodes))
    quotas = compute_quotas(nodes, width, 1 << bits)
    assert sum(quotas.quota) == width << bits
    naive = naive_quotas(nodes, width, 1 << bits)
    for node, quota in zip(nodes, quotas.quota, strict=True):
        assert float(quota) == pytest.approx(naive[node.name], abs=1e-6)
    for zone, (low, high) in zone_bounds(nodes, width).items():
        index = quotas.zones.index(zone)
        assert (quotas.zone_base[index], quotas.zone_base[index] + quotas.zone_extra[index]) == (low, high)


@given(groups=groups, width=st.integers(1, 6), data=st.data())
def test_rounding_is_exact_and_asks_for_the_least_growth(
    groups: list[tuple[int, ...]], width: int, data: st.DataObject
) -> None:
    nodes = nodes_of(*groups)
    width = min(width, len(nodes))
    quotas = compute_quotas(nodes, width, 8)
    held = data.draw(st.lists(st.integers(0, 8), min_size=len(nodes), max_size=len(nodes)))
    rounded = quotas.rounded(held)
    naive = naive_quotas(nodes, width, 8)
    assert sum(rounded) == 8 * width
    assert meets_quotas(nodes, rounded, naive)

    least: dict[int, int] = {0: 0}  # by total, over all roundings of the nodes in the zones so far
    for zone in quotas.zones:
        inside: dict[int, int] = {0: 0}
        want = Fraction(0)
        for index, node in enumerate(nodes):
            if node.zone != zone:
                continue
            want += quotas.quota[index]
            following: dict[int, int] = {}
            for count in {quotas.node_floor[index], quotas.node_floor[index] + quotas.node_splits[index]}:
                for total, growth in inside.items():
                    grown = growth + max(0, count - held[index])
                    following[total + count] = min(grown, following.get(total + count, grown))
            inside = following
        merged: dict[int, int] = {}
        for total, growth in least.items():
            for part, more in inside.items():
                if abs(part - want) < 1:
                    merged[total + part] = min(growth + more, merged.get(total + part, growth + more))
        least = merged
    assert sum(max(0, want - have) for want, have in zip(rounded, held, strict=True)) == least[8 * width]
