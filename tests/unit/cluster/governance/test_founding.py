"""Who may found a cluster, and when nobody may."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from cluster.governance.founding import Founding, Past, choose_founders, objection
from cluster.membership.member import Member, MemberInfo, State

NEW = Past()
CLUSTER = b"c" * 16


def member(name: str, *, state: State = State.ALIVE, layout_version: int = 0) -> Member:
    info = MemberInfo(name, name, 7482, b"s" * 8, 1, layout_version=layout_version)
    return replace(info.record(), state=state)


def members(*present: Member) -> dict[str, Member]:
    return {one.name: one for one in present}


def test_the_least_names_found_together_and_the_least_of_all_proposes() -> None:
    present = members(member("n2"), member("n1"), member("n3"), member("n4"))
    assert choose_founders("n1", 3, NEW, present, ()) == Founding(("n1", "n2", "n3"), "")
    assert choose_founders("n2", 3, NEW, present, ()) == Founding((), "n1 to propose the first layout")
    assert choose_founders("n1", 5, NEW, present, ()).waiting_for == "1 more of 5 nodes to appear"
    assert "no bootstrap_expect" in choose_founders("n1", 0, NEW, present, ()).waiting_for


def test_one_that_does_not_answer_is_not_counted() -> None:
    present = members(member("n1"), member("n2", state=State.DEAD))
    assert choose_founders("n1", 2, NEW, present, ()).founders == ()
    assert choose_founders("n1", 1, NEW, present, ()).founders == ("n1",)


@pytest.mark.parametrize("state", list(State))
def test_where_anybody_has_a_layout_there_is_a_cluster(state: State) -> None:
    """Even if that member is gone now: it was there."""
    present = members(member("n1"), member("n2"), member("n3", state=state, layout_version=7))
    for me, expect in itertools.product(("n1", "n2"), (0, 1, 2)):
        assert choose_founders(me, expect, NEW, present, ()) == Founding(
            (), "the layout of the cluster that is already there"
        )


def test_nobody_founds_while_someone_to_join_has_not_been_heard() -> None:
    """An emptied founder can't know that it has a past: whoever it is told to join may."""
    found = choose_founders("n1", 1, NEW, members(member("n1")), [("b", 2), ("a", 1)])
    assert found.founders == ()
    assert "a:1, b:2" in found.waiting_for
    assert objection(NEW, members(member("n1")), [("b", 2), ("a", 1)]) == found.waiting_for
    assert objection(NEW, members(member("n1")), []) == ""


@pytest.mark.parametrize(
    "past",
    [
        Past(cluster_id=CLUSTER),
        Past(lost_registers=True),
        Past(chunks=1),
        Past(cluster_id=CLUSTER, lost_registers=True, chunks=12),
    ],
)
def test_a_node_with_a_past_never_founds(past: Past) -> None:
    for expect in (0, 1, 2):
        found = choose_founders("n1", expect, past, members(member("n1"), member("n2")), ())
        assert found == Founding((), past.loss)
        assert "put registers.db back" in found.waiting_for
    assert (CLUSTER.hex()[:8] in past.loss) == bool(past.cluster_id)
    assert ("registers.db.damaged-N" in past.loss) == past.lost_registers
    assert ("chunks held" in past.loss) == bool(past.chunks)


def test_a_new_node_has_lost_nothing() -> None:
    assert NEW.loss == ""
