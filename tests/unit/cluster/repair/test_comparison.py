"""A comparison of two stores finds exactly what differs, and costs what differs, not what is held."""

from __future__ import annotations

import random
from collections.abc import Coroutine, Iterable
from typing import Any

import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.governance.state import LayoutState
from cluster.layout.ring import chunk_partition, partition_of
from cluster.register.ballot import NO_VERSION, Version
from cluster.register.key import RegisterKey
from cluster.register.record import ABSENT, Record
from cluster.register.store import RegisterWrite, Write
from cluster.repair import comparison as comparison_module
from cluster.repair.comparison import Differences, KeyDifference, ReferenceDifference
from tests.support.compared_pair import CountedWire, Side, state_of
from tests.support.simulated.loop import run_virtual
from tests.support.simulated.memory_chunks import ChunkDisk, MemoryChunkStore
from tests.support.simulated.memory_store import TREE_BITS, DiskContent, MemoryRegisterStore

BITS = 4
HEAD_SHARDS = 32
"""Partition keys, as volumes' heads have them."""


class Pair:
    """What two nodes, ``n0`` and ``n1``, of a cluster have on their disks, for comparing."""

    def __init__(self, nodes: int = 2, partition_bits: int = BITS, tree_bits: tuple[int, int] = (TREE_BITS, 5)) -> None:
        self.state: LayoutState = state_of(nodes, partition_bits)
        self.bits = partition_bits
        self.chunks = (ChunkDisk(), ChunkDisk())
        self.registers = (DiskContent(tree_bits[0]), DiskContent(tree_bits[1]))
        self.wire = CountedWire()
        self.sides: list[Side] = []

    async def open(self) -> None:
        for n in range(2):
            registers = MemoryRegisterStore(self.registers[n], random.Random(n))
            chunks = MemoryChunkStore(self.chunks[n], random.Random(n))
            self.sides.append(await Side.open(f"n{n}", self.wire, registers, chunks, self.state))

    async def compare(self, asking: int, start: float = 0.0) -> Differences:
        return await self.sides[asking].compare(f"n{1 - asking}", start)

    def refer(self, side: int, chunk: bytes, referrer: bytes, copies: int) -> None:
        self.chunks[side].refer(chunk, b"", referrer, copies)

    def put(self, side: int, key: RegisterKey, record: Record) -> None:
        write: Write = RegisterWrite(partition_of(key.partition, self.bits), key, record)
        self.registers[side].apply([write])

    def references(self, side: int) -> set[tuple[bytes, bytes, int, int]]:
        """Chunk, referrer, the reference's copies, the chunk's: of what both nodes should hold."""
        layout = self.state.current
        found = set()
        for chunk, (_, held) in self.chunks[side].items():
            most = max(held.values())
            if {"n0", "n1"} <= set(layout.placement(chunk_partition(chunk, self.bits), most)):
                found |= {(chunk, referrer, copies, most) for referrer, copies in held.items()}
        return found

    def expected_references(self, asking: int) -> list[ReferenceDifference]:
        mine, theirs = self.references(asking), self.references(1 - asking)
        return sorted(
            ReferenceDifference(chunk, referrer, most, found is mine)
            for found, other in ((mine, theirs), (theirs, mine))
            for chunk, referrer, _, most in found - other
        )

    def expected_keys(self, asking: int, skipped: Iterable[int] = ()) -> set[KeyDifference]:
        layout = self.state.current
        shared = {p for p in range(layout.partitions) if {"n0", "n1"} <= set(layout.replicas(p))} - set(skipped)
        mine, theirs = self.registers[asking].registers, self.registers[1 - asking].registers
        found = set()
        for partition in shared:
            here, there = mine.get(partition, {}), theirs.get(partition, {})
            for key in here.keys() | there.keys():
                own, other = here.get(key, ABSENT).version, there.get(key, ABSENT).version
                if own != other:
                    found.add(KeyDifference(partition, key, own > other))
        return found


def run(main: Coroutine[Any, Any, None]) -> None:
    run_virtual(main)


def chunk_named(number: int) -> bytes:
    return blake3(number.to_bytes(4)).digest()


def referrer_named(number: int) -> bytes:
    return bytes((number,)) * 16


def head(number: int) -> RegisterKey:
    name = f"volume-{number}".encode()
    return RegisterKey("volumes", b"shard-%d" % (number % HEAD_SHARDS), name)


def record(number: int, value: bytes | None = b"v") -> Record:
    return Record(Version(1, "x", number), value)


# What is found

presence = st.sampled_from([(True, True), (True, False), (False, True)])
uses = st.tuples(st.integers(0, 40), st.integers(0, 3), st.tuples(st.integers(1, 4), st.integers(1, 4)), presence)
versions = st.tuples(st.integers(1, 3), st.booleans())
places = st.tuples(st.integers(0, 60), st.none() | versions, st.none() | versions)


@settings(deadline=None)
@given(
    nodes=st.sampled_from([2, 3, 5]),
    tree_bits=st.tuples(st.sampled_from([0, 3, 6, 8, 12]), st.sampled_from([0, 3, 6, 8, 12])),
    references=st.lists(uses, max_size=40),
    registers=st.lists(places, max_size=40),
    skipped=st.tuples(st.sets(st.integers(0, 15), max_size=3), st.sets(st.integers(0, 15), max_size=3)),
)
def test_it_finds_exactly_what_differs(
    nodes: int,
    tree_bits: tuple[int, int],
    references: list[tuple[int, int, tuple[int, int], tuple[bool, bool]]],
    registers: list[tuple[int, tuple[int, bool] | None, tuple[int, bool] | None]],
    skipped: tuple[set[int], set[int]],
) -> None:
    pair = Pair(nodes, tree_bits=tree_bits)
    for number, referrer, copies, present in references:
        for side in range(2):
            if present[side]:
                pair.refer(side, chunk_named(number), referrer_named(referrer), copies[side])
    for number, *held in registers:
        for side in range(2):
            version = held[side]
            if version is not None:
                pair.put(side, head(number), record(version[0], b"v" if version[1] else None))

    async def main() -> None:
        await pair.open()
        for side in range(2):
            pair.sides[side].skipped = skipped[side]
        for asking in range(2):
            found = await pair.compare(asking)
            assert found.complete
            assert sorted(found.references) == pair.expected_references(asking)
            assert len(found.keys) == len(set(found.keys))
            assert set(found.keys) == pair.expected_keys(asking, skipped[0] | skipped[1])

    run(main())


@pytest.mark.parametrize("empty", [0, 1])
def test_a_side_without_anything_lacks_everything(empty: int) -> None:
    pair = Pair(3)
    for number in range(300):
        pair.refer(1 - empty, chunk_named(number), referrer_named(number % 5), 1 + number % 3)
        pair.put(1 - empty, head(number), record(number + 1))

    async def main() -> None:
        await pair.open()
        for asking in range(2):
            found = await pair.compare(asking)
            assert found.references
            assert sorted(found.references) == pair.expected_references(asking)
            assert found.keys
            assert set(found.keys) == pair.expected_keys(asking)
            assert {d.mine for d in found.references} == {d.mine for d in found.keys} == {asking != empty}

    run(main())


def test_a_register_that_is_behind_is_told_from_one_that_is_ahead() -> None:
    pair = Pair()
    pair.put(0, head(1), Record(Version(2, "a", 1), None))
    pair.put(1, head(1), Record(Version(1, "b", 9), b"v"))
    pair.put(1, head(2), Record(Version(1, "b", 9), b"v"))
    assert NO_VERSION < Version(1, "b", 9) < Version(2, "a", 1)

    async def main() -> None:
        await pair.open()
        assert {(d.key, d.mine) for d in (await pair.compare(0)).keys} == {(head(1), True), (head(2), False)}
        assert {(d.key, d.mine) for d in (await pair.compare(1)).keys} == {(head(1), False), (head(2), True)}

    run(main())


# Windows


def windows(
    pair: Pair, limit: int, monkeypatch: pytest.MonkeyPatch, rounds: int, leaves_at_once: int = 4
) -> list[Differences]:
    """Comparisons that go on where the one before has stopped, though nothing is mended between them."""
    monkeypatch.setattr(comparison_module, "DIFFERENCES_LIMIT", limit)
    monkeypatch.setattr(comparison_module, "LEAVES_AT_ONCE", leaves_at_once)
    found: list[Differences] = []

    async def main() -> None:
        await pair.open()
        start = 0.0
        for _ in range(rounds):
            found.append(await pair.compare(0, start))
            start = found[-1].stopped

    run(main())
    return found


def test_what_does_not_fit_one_comparison_is_listed_by_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = Pair()
    for number in range(100):
        pair.refer(number % 2, chunk_named(number), referrer_named(1), 3)
    found = windows(pair, 25, monkeypatch, 4)
    for window in found:
        assert not window.complete
        assert 25 <= len(window.references) < 30
    assert sorted({d for window in found for d in window.references}) == pair.expected_references(0)
    assert 0 < found[0].stopped < found[1].stopped < found[2].stopped < 1


def test_a_window_that_everything_fits_is_complete_wherever_it_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = Pair()
    for number in range(20):
        pair.refer(0, chunk_named(number), referrer_named(1), 3)
        pair.put(1, head(number), record(1))
    monkeypatch.setattr(comparison_module, "DIFFERENCES_LIMIT", 21)

    async def main() -> None:
        await pair.open()
        for start in (0.0, 0.3, 0.999):
            found = await pair.compare(0, start)
            assert found.complete
            assert sorted(found.references) == pair.expected_references(0)
            assert set(found.keys) == pair.expected_keys(0)

    run(main())


def test_many_differences_of_one_class_hide_none_of_another(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = Pair()
    for number in range(200):
        pair.refer(0, chunk_named(number), referrer_named(1), 2 if number % 20 else 3)
    found = windows(pair, 20, monkeypatch, 12)
    assert sorted({d for window in found for d in window.references}) == pair.expected_references(0)


def test_a_full_leaf_of_one_class_does_not_hide_the_same_leaf_of_another(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = Pair()
    for number in range(4):
        pair.refer(0, bytes(31) + bytes((number,)), referrer_named(1), 2 + number % 2)
    pair.refer(0, b"\xff" * 32, referrer_named(1), 3)
    found = windows(pair, 1, monkeypatch, 2, leaves_at_once=1)
    assert sorted(found[0].references + found[1].references) == pair.expected_references(0)


def test_many_references_hide_no_registers_and_these_no_references(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = Pair(partition_bits=6)
    for number in range(400):
        pair.refer(0, chunk_named(number), referrer_named(1), 3)
        pair.put(0, head(number), record(1))
    found = windows(pair, 20, monkeypatch, 40)
    assert sorted({d for window in found for d in window.references}) == pair.expected_references(0)
    assert {d for window in found for d in window.keys} == pair.expected_keys(0)


@pytest.mark.parametrize("partition_bits", [4, 7, 9])
def test_going_on_at_a_partition_begins_with_it(partition_bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = Pair(partition_bits=partition_bits)
    layout = pair.state.current
    for number in range(layout.partitions):
        key = RegisterKey("t", b"", b"%d" % number)
        pair.registers[0].apply([RegisterWrite(number, key, record(1))])
    found = windows(pair, 1, monkeypatch, layout.partitions)
    assert [difference.partition for window in found for difference in window.keys] == list(range(layout.partitions))


# What it costs

KEYS = 10_000
DIFFERENT = 10


def full_pair() -> Pair:
    pair = Pair(partition_bits=10, tree_bits=(12, 12))
    for number in range(KEYS):
        for side in range(2):
            pair.refer(side, chunk_named(number), referrer_named(1), 3)
            pair.put(side, head(number), record(1))
    return pair


def test_stores_in_step_cost_one_message() -> None:
    pair = full_pair()

    async def main() -> None:
        await pair.open()
        found = await pair.compare(0)
        assert (found.references, found.keys, found.compared) == ([], [], KEYS)
        assert pair.wire.calls == 1
        assert pair.wire.listed == 0
        assert pair.wire.bytes < 20 * 1024, "a sum for each of 2049 things shared, and little beside"

    run(main())


@pytest.mark.parametrize("what", ["references", "keys"])
def test_a_few_differences_cost_little_however_much_is_held(what: str) -> None:
    pair = full_pair()
    for number in range(0, KEYS, KEYS // DIFFERENT):
        if what == "references":
            pair.refer(number % 3 % 2, chunk_named(number), referrer_named(2), 3)
        else:
            pair.put(number % 3 % 2, head(number), record(2))

    async def main() -> None:
        await pair.open()
        found = await pair.compare(0)
        assert (len(found.references), len(found.keys)) == ((DIFFERENT, 0) if what == "references" else (0, DIFFERENT))
        assert pair.wire.listed < KEYS / 100
        assert pair.wire.calls < 6 * DIFFERENT
        assert pair.wire.bytes < 20 * 1024 + 2048 * DIFFERENT

    run(main())
