"""Quorum rules, tallies, conditions, copying and the record cache, each against a naive version."""

from __future__ import annotations

import time
from itertools import combinations

from hypothesis import given
from hypothesis import strategies as st

from cluster.register.ballot import NO_BALLOT, NO_VERSION, Ballot, Version
from cluster.register.change import ANY, SETTLE, Change, creation, replacement
from cluster.register.copying import merge_pages
from cluster.register.key import RegisterKey
from cluster.register.quorum import QuorumRule, majority
from cluster.register.record import ABSENT, Record
from cluster.register.record_cache import ENTRY_OVERHEAD_BYTES, CachedRecord, RecordCache
from cluster.register.store import Page
from cluster.register.tally import Tally

NAMES = tuple("abcdefg")
groups = st.lists(st.sampled_from(NAMES), min_size=1, max_size=5, unique=True).map(tuple)
rules = st.lists(groups, min_size=1, max_size=2).map(lambda found: QuorumRule(tuple(dict.fromkeys(found))))
some_names = st.sets(st.sampled_from(NAMES))


def enough(rule: QuorumRule, names: set[str]) -> bool:
    return all(2 * len(names & set(group)) > len(group) for group in rule.groups)


@given(rules, some_names)
def test_a_rule_is_a_majority_of_every_group(rule: QuorumRule, names: set[str]) -> None:
    assert rule.satisfied(names) == enough(rule, names)
    assert rule.possible(names) == enough(rule, set(NAMES) - names)
    assert set(rule.members) == {name for group in rule.groups for name in group}
    assert len(set(rule.members)) == len(rule.members)


@given(rules, rules, some_names)
def test_a_joint_rule_needs_both(one: QuorumRule, other: QuorumRule, names: set[str]) -> None:
    assert one.joint_with(other).satisfied(names) == (one.satisfied(names) and other.satisfied(names))


@given(rules)
def test_any_two_quorums_meet(rule: QuorumRule) -> None:
    quorums = [set(c) for n in range(8) for c in combinations(rule.members, n) if rule.satisfied(c)]
    assert all(one & other for one in quorums for other in quorums)


@given(rules, st.permutations(NAMES), st.integers(0, 7))
def test_the_smallest_choice_is_enough_and_has_nobody_needless(rule: QuorumRule, order: list[str], length: int) -> None:
    offered = order[:length]
    chosen = rule.smallest(offered)
    assert enough(rule, set(chosen))
    if enough(rule, set(offered)):
        assert set(chosen) <= set(offered)
        needed = max(majority(len(group)) for group in rule.groups)
        assert len(chosen) <= needed if len(rule.groups) == 1 else len(chosen) <= sum(map(len, rule.groups))
        assert not enough(rule, set(chosen[:-1]))


@given(rules, st.permutations(NAMES), st.integers(0, 7))
def test_the_smallest_choice_is_that_of_the_definition(rule: QuorumRule, order: list[str], length: int) -> None:
    chosen: list[str] = []
    for name in order[:length]:
        if any(name in group and len({*group} & {*chosen}) < majority(len(group)) for group in rule.groups):
            chosen.append(name)
        if enough(rule, set(chosen)):
            break
    assert rule.smallest(order[:length]) == (tuple(chosen) if enough(rule, set(chosen)) else rule.members)


def test_a_choice_among_thousands_takes_no_time() -> None:
    names = tuple(f"n{number}" for number in range(4000))
    began = time.process_time()
    assert QuorumRule((names, names[:3000])).smallest(names) == names[:2001]
    assert time.process_time() - began < 0.5, "it took seconds when it was cubic"


@given(rules, st.data())
def test_a_tally_agrees_with_counting_again(rule: QuorumRule, data: st.DataObject) -> None:
    tally = Tally(rule)
    yes: dict[str, bytes] = {}
    answered: set[str] = set()
    agreed_at: set[str] | None = None
    for name in data.draw(st.permutations(rule.members)):
        answer = data.draw(st.sampled_from([b"old", b"new", None]))
        answered.add(name)
        if answer is None:
            tally.no(name)
        else:
            tally.yes(name, answer)
            yes[name] = answer
        camps = {stores: {n for n, s in yes.items() if s == stores} for stores in yes.values()}
        won = [stores for stores, names in camps.items() if enough(rule, names)]
        if agreed_at is None and won:
            agreed_at = camps[won[0]]
            assert tally.stores == won[0]
            assert tally.agreed == agreed_at
        assert (tally.agreed is not None) == (agreed_at is not None)
        left = set(rule.members) - answered
        reachable = any(enough(rule, names | left) for names in [*camps.values(), set()])
        assert tally.hopeless == (agreed_at is None and not reachable)


values = st.none() | st.binary(max_size=3)
versions = st.builds(Version, st.integers(0, 2), st.sampled_from(["", "x"]), st.integers(0, 2))
records = st.builds(Record, versions, values)


@given(records, st.binary(max_size=3), values)
def test_a_replacement_wants_exactly_the_value(now: Record, expected: bytes, value: bytes | None) -> None:
    assert replacement(expected, value).allows(now, NO_BALLOT) == (now.value == expected)


fences = st.sampled_from([NO_BALLOT, Ballot(1, "x"), Ballot(1, "y")])


@given(records, fences, versions, fences, values)
def test_a_creation_wants_the_very_absence_that_was_seen(
    now: Record, fence_now: Ballot, seen: Version, fence: Ballot, value: bytes | None
) -> None:
    same = now.value is None and now.version == seen and (seen != NO_VERSION or fence == fence_now)
    assert creation(seen, fence, value).allows(now, fence_now) == same


@given(records)
def test_the_other_changes(now: Record) -> None:
    assert Change(ANY, b"new").allows(now, NO_BALLOT)
    assert not Change(SETTLE).allows(now, NO_BALLOT)


keys = st.builds(RegisterKey, st.sampled_from(["t", "u"]), st.sampled_from([b"p", b"q"]), st.binary(max_size=1))


@given(
    st.dictionaries(st.sampled_from("abc"), st.dictionaries(keys, records, max_size=8), min_size=1), st.integers(1, 4)
)
def test_merged_pages_are_what_all_sources_hold_together(
    held: dict[str, dict[RegisterKey, Record]], limit: int
) -> None:
    group = ("a", "b", "c")
    seen = []
    after: RegisterKey | None = None
    while True:
        pages = {}
        for name, registers in held.items():
            rest = [(key, registers[key]) for key in sorted(registers) if after is None or key > after]
            pages[name] = Page(rest[:limit], len(rest) > limit)
        merged = merge_pages(pages, group)
        seen += merged.records
        if merged.resume is None:
            break
        assert after is None or merged.resume > after
        after = merged.resume
    assert [copied.key for copied in seen] == sorted({key for registers in held.values() for key in registers})
    for key, record, decided in seen:
        there = [registers.get(key, ABSENT) for registers in held.values()]
        assert record.version == max(one.version for one in there)
        assert record in there
        assert decided == (sum(one.version == record.version for one in there) >= 2)


@given(st.lists(st.tuples(st.sampled_from(["write", "read", "sync", "clear"]), st.integers(0, 3)), max_size=60))
def test_the_cache_never_loses_what_is_not_durable(steps: list[tuple[str, int]]) -> None:
    """Against a store that is a dict and a queue; the cache holds two entries at best."""
    cache = RecordCache(2 * ENTRY_OVERHEAD_BYTES + 10)
    store: dict[int, Record] = {}
    newest: dict[int, Record] = {}
    queue: list[tuple[int, CachedRecord, Record]] = []
    seq = 0
    for step, number in steps:
        key = RegisterKey("t", b"", bytes([number]))
        if step == "sync" and queue:
            which, entry, record = queue.pop(0)
            if not entry.forgotten:
                store[which] = record
            cache.finish(entry, record)
        elif step == "clear":
            cache.forget_partitions({0})
            newest.clear()
            store.clear()
        elif step in {"read", "write"}:
            found = cache.get(0, key) or cache.add(0, key, store.get(number, ABSENT))
            assert found.newest == newest.get(number, ABSENT)
            assert found.durable == store.get(number, ABSENT)
            if step == "write":
                seq += 1
                record = Record(Version(1, "x", seq), b"." * number)
                cache.begin(found, record)
                newest[number] = record
                queue.append((number, found, record))
        pinned = sum(entry.pending > 0 for entry in cache._entries.values())
        assert cache._bytes == sum(
            ENTRY_OVERHEAD_BYTES + len(entry.newest.value or b"") for entry in cache._entries.values()
        )
        assert len(cache) <= pinned + 3


def test_the_bottom_version_is_below_all() -> None:
    assert Version(0, "bootstrap", 1) > NO_VERSION
