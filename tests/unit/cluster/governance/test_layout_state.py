"""The agreed layout state: its transitions, its wire form, and the quorum argument that lets it govern itself."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.errors import Conflict, Invalid
from cluster.governance.state import LayoutState, StagedChange
from cluster.layout.layout import Layout, LayoutNode
from cluster.layout.planner import plan_layout
from cluster.register.quorum import QuorumRule

W = b"w" * 8


def node(name: str) -> LayoutNode:
    return LayoutNode(name, name, 1, "127.0.0.1", 7482)


def layout_of(names: list[str], previous: Layout | None = None) -> Layout:
    return plan_layout(previous, [node(name) for name in sorted(names)], replication_factor=3, partition_bits=4)


def first(names: list[str]) -> LayoutState:
    founders = tuple((name, name.encode().ljust(8, b"\0")) for name in names)
    return LayoutState(b"c" * 16, 1, W, layout_of(names), founders=founders)


def test_a_change_goes_through_a_joint_epoch() -> None:
    quiet = first(["a", "b", "c"])
    joint = quiet.begin(layout_of(["a", "b", "c", "d"], quiet.current), W)
    assert (joint.epoch, joint.current, joint.members) == (2, quiet.current, ("a", "b", "c", "d"))
    assert len(joint.meta_rule().groups) == 2
    done = joint.finish(W)
    assert (done.epoch, done.current.version, done.next) == (3, 2, None)
    given_up = joint.abort(W)
    assert (given_up.epoch, given_up.current, given_up.next) == (3, quiet.current, None)


def test_changes_do_not_overlap() -> None:
    joint = first(["a", "b", "c"]).begin(layout_of(["a", "b", "d"], first(["a", "b", "c"]).current), W)
    with pytest.raises(Conflict, match="still being filled"):
        joint.begin(layout_of(["a", "b", "c"], joint.current), W)
    with pytest.raises(Conflict, match="no layout change"):
        first(["a"]).abort(W)


def test_removed_nodes_stay_out_until_they_are_wanted_again() -> None:
    state = first(["a", "b", "c", "d"]).stage([StagedChange("d", remove=True)], W)
    assert state.staged == (StagedChange("d", remove=True),)
    joint = state.begin(layout_of(["a", "b", "c"], state.current), W)
    assert (joint.excluded, joint.staged) == (("d",), ())
    back = joint.finish(W).begin(layout_of(["a", "b", "c", "d"], joint.finish(W).current), W)
    assert back.excluded == ()


def test_a_later_wish_about_a_node_replaces_an_earlier_one() -> None:
    state = first(["a", "b"]).stage([StagedChange("a", capacity=5)], W).stage([StagedChange("a", zone="z")], W)
    assert state.staged == (StagedChange("a", zone="z"),)
    assert state.unstage(W).staged == ()


def test_the_wire_form_is_exact() -> None:
    state = first(["a", "b", "c"]).stage([StagedChange("a", "zone-1", 7, False)], W)
    state = state.begin(layout_of(["a", "b", "c", "d"], state.current), W)
    assert LayoutState.unpack(state.pack()) == state
    assert LayoutState.unpack(state.pack()).pack() == state.pack()


@given(st.binary(max_size=200))
def test_garbage_is_refused(data: bytes) -> None:
    with pytest.raises(Invalid):
        LayoutState.unpack(data)


def quorums(rule: QuorumRule) -> list[set[str]]:
    members = rule.members
    return [
        set(chosen)
        for size in range(1, len(members) + 1)
        for chosen in itertools.combinations(members, size)
        if rule.satisfied(chosen)
    ]


@given(
    st.sets(st.sampled_from("abcdef"), min_size=1, max_size=4),
    st.sets(st.sampled_from("abcdef"), min_size=1, max_size=4),
)
@settings(max_examples=60, deadline=None)
def test_consecutive_epochs_never_decide_apart(old: set[str], new: set[str]) -> None:
    """Whoever proposes from one epoch meets, in every quorum it can gather, a member that took part in deciding the next."""
    quiet = first(sorted(old))
    joint = quiet.begin(layout_of(sorted(new), quiet.current), W)
    done = joint.finish(W)
    # An epoch's value is decided by the rule of the one before it; the next proposer uses the rule of the value it knows.
    for deciding, proposing in ((quiet, quiet), (joint, quiet), (joint, joint), (done, joint), (done, done)):
        for one in quorums(deciding.meta_rule()):
            for other in quorums(proposing.meta_rule()):
                assert one & other
