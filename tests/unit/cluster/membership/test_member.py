"""Records and their order."""

from __future__ import annotations

from dataclasses import replace
from functools import reduce
from itertools import pairwise
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.errors import Invalid
from cluster.membership.member import (
    ASKING,
    INCARNATION_LIMIT,
    INCARNATIONS_PER_BOOT,
    Member,
    MemberInfo,
    State,
    beats,
    check_member,
    first_incarnation,
    newest,
)

members = st.builds(
    Member,
    name=st.just("n1"),
    host=st.sampled_from(["a", "b"]),
    port=st.integers(1, 3),
    incarnation=st.integers(0, 3),
    state=st.sampled_from(State),
    zone=st.sampled_from(["z1", "z2"]),
    capacity=st.integers(1, 2),
    store=st.sampled_from([b"store--1", b"store--2"]),
    boot=st.integers(0, 2),
    api=st.sampled_from(["", "a:1"]),
    layout_version=st.integers(0, 2),
    release=st.just("1"),
)

GOOD = MemberInfo("n1", "10.0.0.1", 7482, b"store--1", 1).record()


@given(members, members)
def test_newest_is_commutative(one: Member, other: Member) -> None:
    assert newest(one, other) == newest(other, one)


@given(members, members, members)
def test_newest_is_associative(one: Member, two: Member, three: Member) -> None:
    assert newest(newest(one, two), three) == newest(one, newest(two, three))


@given(members)
def test_newest_is_idempotent(one: Member) -> None:
    assert newest(one, one) == one
    assert not beats(one, one)


@given(st.lists(members, min_size=1, max_size=8), st.randoms())
def test_the_order_of_arrival_does_not_matter(heard: list[Member], random: Random) -> None:
    shuffled = list(heard)
    random.shuffle(shuffled)
    assert reduce(newest, heard) == reduce(newest, shuffled)


@given(members, members)
def test_different_records_have_a_newer_one(one: Member, other: Member) -> None:
    assert (one == other) == (not beats(one, other) and not beats(other, one))


@given(members, members)
def test_a_higher_incarnation_always_wins(one: Member, other: Member) -> None:
    refutation = replace(one, state=State.ALIVE, incarnation=other.incarnation + 1)
    assert newest(refutation, other) == refutation


def test_at_equal_incarnations_the_worse_news_is_the_newer() -> None:
    states = [State.ALIVE, State.SUSPECT, State.DEAD, State.LEFT]
    for better, worse in pairwise(states):
        assert beats(GOOD.at(worse), GOOD.at(better))


def test_a_later_life_begins_above_an_earlier_one_and_within_bounds() -> None:
    assert first_incarnation(2) - first_incarnation(1) == INCARNATIONS_PER_BOOT
    assert first_incarnation(1) > ASKING
    assert first_incarnation(1 << 31) < INCARNATION_LIMIT


def test_the_zone_defaults_to_the_name() -> None:
    assert GOOD.zone == "n1"
    assert MemberInfo("n1", "h", 1, b"store--1", 1, zone="rack").record().zone == "rack"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", ""),
        ("name", "Upper"),
        ("name", "-n"),
        ("name", "n" * 64),
        ("name", "n\n"),
        ("host", ""),
        ("host", "h" * 256),
        ("port", 0),
        ("port", 65536),
        ("incarnation", -1),
        ("incarnation", INCARNATION_LIMIT + 1),
        ("boot", -1),
        ("store", b"short"),
        ("capacity", -1),
        ("layout_version", -1),
        ("zone", "z" * 256),
        ("api", "a" * 256),
        ("release", "r" * 256),
    ],
)
def test_fields_out_of_bounds_are_refused(field: str, value: object) -> None:
    assert check_member(GOOD) is GOOD
    with pytest.raises(Invalid):
        check_member(replace(GOOD, **{field: value}))  # type: ignore[arg-type]  # the field's name is a parameter
