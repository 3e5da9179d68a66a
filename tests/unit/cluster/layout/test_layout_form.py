"""`Layout` itself: what it answers, its form on the wire, what it refuses."""

from __future__ import annotations

import struct
from collections import Counter
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.errors import Invalid
from cluster.layout.layout import Layout, LayoutNode, pack_assignment, unpack_assignment
from cluster.layout.planner import plan_layout


def node(name: str, zone: str | None = None, capacity: int = 10) -> LayoutNode:
    return LayoutNode(name, zone or name, capacity, "127.0.0.1", 7482)


FIVE = tuple(node(name) for name in "abcde")


def layout_of(*partitions: str, nodes: tuple[LayoutNode, ...] = FIVE, replication_factor: int = 3) -> Layout:
    index = {each.name: place for place, each in enumerate(nodes)}
    assignment = pack_assignment([[index[name] for name in members] for members in partitions])
    return Layout(7, replication_factor, len(partitions).bit_length() - 1, nodes, assignment)


def test_it_answers_who_holds_what() -> None:
    layout = layout_of("abc", "cde", "eab", "bcd")
    assert layout.partitions == 4
    assert layout.replicas_per_partition == 3
    assert layout.replicas(1) == ("c", "d", "e")
    assert layout.partitions_of("a") == (0, 2)
    assert layout.partitions_of("nobody") == ()
    assert layout.node("b") == node("b")
    assert layout.node("nobody") is None
    assert unpack_assignment(layout) == [(0, 1, 2), (2, 3, 4), (4, 0, 1), (1, 2, 3)]


def test_placement_is_the_start_of_the_preference_list() -> None:
    layout = layout_of("abc", "cde", "eab", "bcd")
    for partition in range(4):
        preference = layout.preference(partition)
        assert sorted(preference) == list("abcde")
        assert preference[:3] == layout.replicas(partition)
        for copies in range(1, 8):
            assert layout.placement(partition, copies) == preference[:copies]


def test_stand_ins_come_from_new_zones_first_and_large_nodes_more_often() -> None:
    nodes = (node("a", "x"), node("b", "x"), node("c", "y"), node("d", "z"), node("e", "z"), node("f", "y", 90))
    layout = layout_of(*["ab"] * 1024, nodes=nodes, replication_factor=2)
    third: Counter[str] = Counter()
    for partition in range(1024):
        zones = [next(each.zone for each in nodes if each.name == name) for name in layout.preference(partition)]
        assert set(zones[2:4]) == {"y", "z"}
        third[layout.preference(partition)[2]] += 1
    # capacities 10, 10, 10 and 90: f is expected to be first of the four in 3/4 of the partitions
    assert 700 < third["f"] < 840
    assert min(third.values()) > 50


def test_the_order_of_stand_ins_survives_other_nodes_coming_and_going() -> None:
    few = layout_of(*["abc"] * 64)
    many = layout_of(*["abc"] * 64, nodes=(*FIVE, node("f"), node("g")))
    for partition in range(64):
        assert [name for name in many.preference(partition) if name in "abcde"] == list(few.preference(partition))


def test_a_full_preference_cache_starts_over(monkeypatch: pytest.MonkeyPatch) -> None:
    layout = layout_of("abc", "cde", "eab", "bcd")
    expected = [layout.preference(partition) for partition in range(4)]
    monkeypatch.setattr("cluster.layout.layout.PREFERENCE_CACHE_ENTRIES", 10)
    small = layout_of("abc", "cde", "eab", "bcd")
    assert [small.preference(partition) for partition in range(4)] == expected
    assert len(small._preferences) <= 2


@given(count=st.integers(1, 9), factor=st.integers(1, 5), bits=st.integers(1, 6), zones=st.integers(1, 9))
def test_the_wire_form_brings_back_an_equal_layout(count: int, factor: int, bits: int, zones: int) -> None:
    nodes = [LayoutNode(f"n{i}", f"n{i % zones}", i + 1, f"host-{i}", 7482 + i) for i in range(count)]
    layout = plan_layout(None, nodes, replication_factor=factor, partition_bits=bits)
    wire = msgpack.unpackb(msgpack.packb(layout.to_wire()))
    again = Layout.from_wire(wire)
    assert again == layout
    assert [again.replicas(partition) for partition in range(layout.partitions)] == [
        layout.replicas(partition) for partition in range(layout.partitions)
    ]
    assert Layout.from_wire([*wire, "from a later release"]) == layout


def test_a_thousand_nodes_fit_64_kib_on_the_wire() -> None:
    nodes = [
        LayoutNode(f"storage-{i:04d}", f"rack-{i % 40}", 16 * 2**40, f"10.1.{i // 250}.{i % 250}", 7482)
        for i in range(1000)
    ]
    packed = msgpack.packb(plan_layout(None, nodes, replication_factor=3).to_wire())
    assert len(packed) < 64 * 1024


GOOD: list[Any] = layout_of("abc", "cde").to_wire()


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (0, 2),
        (1, 0),
        (1, "7"),
        (1, True),
        (2, 0),
        (2, 17),
        (3, 0),
        (3, 17),
        (3, 2),
        (4, []),
        (4, "abc"),
        (4, [["a", None, 1, "h", 1]] * 5),
        (4, [["b", None, 1, "h", 1], ["a", None, 1, "h", 1], *GOOD[4][2:]]),
        (4, [["a", None, 1, "h"], *GOOD[4][1:]]),
        (4, [["A", None, 1, "h", 1], *GOOD[4][1:]]),
        (4, [["a" * 64, None, 1, "h", 1], *GOOD[4][1:]]),
        (4, [[7, None, 1, "h", 1], *GOOD[4][1:]]),
        (4, [["a", "-zone", 1, "h", 1], *GOOD[4][1:]]),
        (4, [["a", None, 0, "h", 1], *GOOD[4][1:]]),
        (4, [["a", None, 1.5, "h", 1], *GOOD[4][1:]]),
        (4, [["a", None, 1 << 63, "h", 1], *GOOD[4][1:]]),
        (4, [["a", None, 1, "", 1], *GOOD[4][1:]]),
        (4, [["a", None, 1, "h", 0], *GOOD[4][1:]]),
        (4, [["a", None, 1, "h", 65536], *GOOD[4][1:]]),
        (5, b""),
        (5, "text"),
        (5, GOOD[5] + b"\0"),
        (5, struct.pack(">6H", 0, 1, 2, 2, 3, 5)),
        (5, struct.pack(">6H", 0, 1, 2, 2, 3, 3)),
    ],
)
def test_a_wrong_wire_form_is_refused(place: int, value: object) -> None:
    wrong = list(GOOD)
    wrong[place] = value
    Layout.from_wire(GOOD)
    with pytest.raises(Invalid):
        Layout.from_wire(wrong)


@pytest.mark.parametrize("wrong", [None, b"", {}, [], GOOD[:5]])
def test_what_is_no_layout_at_all_is_refused(wrong: object) -> None:
    with pytest.raises(Invalid):
        Layout.from_wire(wrong)


def test_the_error_names_the_field() -> None:
    with pytest.raises(Invalid) as caught:
        node("a", capacity=-1)
    assert caught.value.details["field"] == "capacity"
