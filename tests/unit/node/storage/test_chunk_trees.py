"""The store's trees: what they cost, what they survive, what is noticed; and the simulator's store, which must mean the same."""

from __future__ import annotations

import asyncio
import random
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from blake3 import blake3

from cluster.chunks.store import ChunkStore, Reference
from cluster.doors.clock import SystemClock
from cluster.merkle.digest_tree import MAX_BITS
from cluster.merkle.identity import CHUNK_LEAF_BITS, chunk_leaf, reference_digest
from node.storage import chunk_state, chunk_trees, chunk_writer
from node.storage.chunk_catalog import ChunkCatalog
from node.storage.chunk_index import ChunkIndex
from node.storage.chunk_recovery import Recovered
from node.storage.chunk_state import Change, ChunkState, ReferenceState
from node.storage.chunk_store import ChunkStoreSettings, LogChunkStore
from node.storage.chunk_trees import ChunkTrees, TreeChanges, TreeRun
from tests.support.simulated.disk import SimulatedDisk
from tests.support.simulated.memory_chunks import ChunkDisk, MemoryChunkStore
from tests.unit.node.storage.naive_trees import SMALL_BITS, check_trees, use_small_trees

CHUNK = bytes(range(32))
ALICE, BOB = Reference(b"alice-0123456789", 3), Reference(b"bob-0123456789ab", 2)


def digests_made(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    made = 0

    def counted(chunk: bytes, referrer: bytes, replicas: int) -> int:
        nonlocal made
        made += 1
        return reference_digest(chunk, referrer, replicas)

    monkeypatch.setattr(chunk_state, "reference_digest", counted)
    return lambda: made


def test_a_chunk_with_many_references_is_not_counted_anew_for_one_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    references = tuple(ReferenceState(number.to_bytes(16), 3, 1) for number in range(10_000))
    change = Change({CHUNK: ChunkState(1, 64, 10, references)})
    made = digests_made(monkeypatch)
    change.reference(CHUNK, 1, b"x" * 16, 2)
    change.reference(CHUNK, 1, b"x" * 16, 3)
    change.reference(CHUNK, 1, b"x" * 16, 3)
    change.unreference(CHUNK, 1, (7).to_bytes(16), 0)
    change.unreference(CHUNK, 1, b"y" * 16, 0)
    assert made() == 1 + 2 + 0 + 1 + 0
    assert {place: count for place, (_, count) in change.leaves.items()} == {3 << MAX_BITS | chunk_leaf(CHUNK): 0}


def test_a_chunk_moves_to_another_tree_with_everything() -> None:
    change = Change({CHUNK: None})
    trees = ChunkTrees()
    held: dict[bytes, int] = {}

    def now_is() -> None:
        trees.change(change.leaves)
        change.leaves.clear()
        check_trees(trees.by_copies, {CHUNK: held})
        trees.check()

    change.put(CHUNK, 1, 64, 10, ALICE.referrer, 3, 0)
    held[ALICE.referrer] = 3
    now_is()
    for replicas in (2, 5, 4, 1):
        change.reference(CHUNK, 1, BOB.referrer, replicas)
        held[BOB.referrer] = replicas
        now_is()
    change.unreference(CHUNK, 1, ALICE.referrer, 0)
    del held[ALICE.referrer]
    now_is()
    change.unreference(CHUNK, 1, BOB.referrer, 0)
    held.clear()
    now_is()
    assert trees.count == trees.sum == 0
    trees.freeze()
    assert not trees.by_copies


@pytest.mark.parametrize("limit", [0, 5000, chunk_trees.NEWS_LIMIT])
def test_trees_are_the_same_after_they_were_stored(monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    use_small_trees(monkeypatch)
    monkeypatch.setattr(chunk_trees, "NEWS_LIMIT", limit)
    chance = random.Random(1)
    trees = ChunkTrees()
    runs: dict[tuple[int, int], TreeRun] = {}
    news: list[bytes] = []
    items: list[tuple[int, int]] = []
    folds = 0
    for turn in range(60):
        for _ in range(50):
            place = chance.choice([1, 3, 7]) << MAX_BITS | chance.randrange(1 << SMALL_BITS)
            items.append((place, chance.getrandbits(64)))
            trees.change({items[-1][0]: (items[-1][1], 1)})
        for _ in range(turn):
            place, digest = items.pop(chance.randrange(len(items)))
            trees.change({place: (-digest, -1)})
        if turn == 40:
            for place, digest in [item for item in items if item[0] >> MAX_BITS == 7]:
                trees.change({place: (-digest, -1)})
            items = [item for item in items if item[0] >> MAX_BITS != 7]
        changes = trees.freeze()
        assert trees.freeze() == TreeChanges()
        folds += changes.folded
        news = [] if changes.folded else [*news, changes.news]
        assert sum(map(len, news)) <= limit
        runs.update({(run.copies, run.run): run for run in changes.runs})
        loaded = ChunkTrees.loaded([run for run in runs.values() if run.leaves], news)
        loaded.check()
        for copies, tree in trees.by_copies.items():
            assert loaded.by_copies[copies] == tree
        assert (loaded.sum, loaded.count) == (trees.sum, trees.count)
        if turn % 10 == 9:
            trees = loaded
    assert folds == 60 if limit == 0 else 0 < folds < 60 if limit == 5000 else folds == 0


class Bench:
    def __init__(self, directory: Path) -> None:
        directory.mkdir()
        self.directory = directory
        self.disk = SimulatedDisk()
        self.held: dict[bytes, dict[bytes, int]] = {}

    async def open(self) -> tuple[LogChunkStore, Recovered]:
        store = LogChunkStore(
            ChunkStoreSettings(str(self.directory), file_bytes=1 << 20, reserve_bytes=0),
            disk=self.disk,
            clock=SystemClock(),
            random=random.Random(3),
        )
        return store, await store.open()

    async def fill(self, store: ChunkStore, count: int, seed: int = 0) -> None:
        chance = random.Random(seed)
        await asyncio.gather(*[self.one(store, chance.randbytes(40), chance) for _ in range(count)])

    async def one(self, store: ChunkStore, payload: bytes, chance: random.Random) -> None:
        chunk = blake3(payload).digest()
        references = {
            bytes([chance.randrange(40)]) * 16: chance.choice([1, 2, 3]) for _ in range(chance.randrange(1, 4))
        }
        for referrer, replicas in references.items():
            await store.put(chunk, payload, Reference(referrer, replicas))
        if chance.random() < 0.3:
            gone = references.popitem()[0]
            assert await store.drop_reference(chunk, gone)
        self.held[chunk] = references

    def index(self, statement: str) -> None:
        """Change the index behind the store's back."""
        (self.directory / "chunks.sqlite.seal").unlink(missing_ok=True)
        connection = sqlite3.connect(self.directory / "chunks.sqlite")
        assert connection.execute(statement).rowcount != 0
        connection.commit()
        connection.close()


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path / "chunks")


@pytest.mark.parametrize(
    ("statement", "reason"),
    [
        ("UPDATE tree SET leaves = zeroblob(4096) WHERE run = (SELECT max(run) FROM tree)", "checksum"),
        ("UPDATE tree SET run = 0 WHERE run = (SELECT max(run) FROM tree)", "checksum"),
        ("DELETE FROM tree WHERE run = (SELECT min(run) FROM tree)", "totals"),
        ("DELETE FROM tree", "totals"),
        ("UPDATE tree_news SET leaves = zeroblob(21)", "checksum"),
        ("DELETE FROM tree_news", "totals"),
        ("UPDATE state SET tree_count = tree_count + 1", "totals"),
        ("PRAGMA user_version = 1", "another format"),
    ],
)
async def test_a_damaged_tree_is_built_anew_from_the_log(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, statement: str, reason: str
) -> None:
    if "tree_news" not in statement:
        monkeypatch.setattr(chunk_trees, "NEWS_LIMIT", 0)
    store, _ = await bench.open()
    await bench.fill(store, 50)
    await store.close()
    bench.index(statement)
    store, found = await bench.open()
    assert found.rebuilt is not None
    assert reason in found.rebuilt
    check_trees(store.trees(), bench.held)
    await store.close()
    store, found = await bench.open()
    assert found.rebuilt is None
    assert found.replayed == 0
    check_trees(store.trees(), bench.held)
    await store.close()


@pytest.mark.parametrize("limit", [0, 1000, chunk_trees.NEWS_LIMIT])
async def test_leaves_that_became_empty_leave_nothing_in_the_index(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    monkeypatch.setattr(chunk_trees, "NEWS_LIMIT", limit)
    for session in range(3):
        store, found = await bench.open()
        assert found.rebuilt is None or session == 0
        check_trees(store.trees(), bench.held)
        await bench.fill(store, 30, session)
        for chunk, references in list(bench.held.items())[session % 2 :: 2]:
            for referrer in list(references):
                await store.drop_reference(chunk, referrer)
                del references[referrer]
        await store.close()
    store, found = await bench.open()
    assert found.rebuilt is None
    check_trees(store.trees(), bench.held)
    await store.close()


def test_states_on_their_way_to_the_index_are_found_by_prefix(tmp_path: Path) -> None:
    catalog = ChunkCatalog(ChunkIndex(str(tmp_path / "never-opened")))
    catalog.ledger.add(1, 5, 64)
    chunks = [bytes((7, 7, number)) + bytes(29) for number in range(3)] + [bytes((7, 8)) + bytes(30)]

    def put(some: list[bytes]) -> None:
        change = Change({chunk: catalog.tables[1].get(chunk) for chunk in some})
        for chunk in some:
            change.put(chunk, 1, 64, 10, ALICE.referrer, 1, 0)
        catalog.merge(change, 1, 128)

    put(chunks[:2])
    catalog.freeze(0)
    put(chunks[1:])
    assert sorted(catalog.overlay_of(bytes((7, 7)))) == chunks[:3]
    assert catalog.overlay_of(bytes((7, 7))) == catalog.overlay(lambda chunk, _: chunk[1] == 7)
    assert catalog.overlay_of(bytes((9, 9))) == {}


async def test_trees_go_on_while_the_index_is_rebuilt_under_them(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunk_writer, "FLUSH_STATES", 20)
    store, _ = await bench.open()
    await bench.fill(store, 100)
    shown: list[int] = []
    real = ChunkCatalog.complete

    def complete(catalog: ChunkCatalog) -> None:
        shown.append(sum(tree.total for tree in store.trees().values()))
        real(catalog)

    monkeypatch.setattr(ChunkCatalog, "complete", complete)
    # the store goes on with an index that has lost its tables, and finds out when it next needs them
    bench.index("DROP TABLE chunks")
    before = sum(tree.total for tree in store.trees().values())
    await bench.fill(store, 100, seed=1)
    assert set(shown) <= set(range(before, 200))
    assert len(shown) == 1
    check_trees(store.trees(), bench.held)
    assert await store.describe([bytes(32)]) == [None]
    await store.close()


async def pages(store: ChunkStore, limit: int) -> list[tuple[bytes, bytes]]:
    found: list[tuple[bytes, bytes]] = []
    while True:
        page = await store.list_references(found[-1] if found else None, limit)
        found += page
        if len(page) < limit:
            return found


async def test_references_and_leaves_are_listed_from_memory_and_index_together(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunk_writer, "FLUSH_STATES", 150)
    store, _ = await bench.open()
    await bench.fill(store, 200)
    for chunk in list(bench.held)[::7]:  # known to the index, gone in memory
        for referrer in list(bench.held[chunk]):
            await store.drop_reference(chunk, referrer)
            del bench.held[chunk][referrer]
    assert store.statistics().pending > 0
    expected = sorted((referrer, chunk) for chunk, references in bench.held.items() for referrer in references)
    for limit in (1, 10, len(expected), 10_000):
        assert await pages(store, limit) == expected
    check_trees(store.trees(), bench.held)

    def overlay(*_: object) -> None:
        raise AssertionError("one leaf is no reason to look at everything in memory")

    monkeypatch.setattr(ChunkCatalog, "overlay", overlay)
    for bits in (16, 17, CHUNK_LEAF_BITS):
        for chunk, references in bench.held.items():
            leaf = int.from_bytes(chunk) >> (256 - bits)
            entries = await store.list_partition(leaf, bits, None, 10)
            assert entries == await store.describe([one for one in sorted(bench.held) if one[:2] == chunk[:2]])
            assert {one.referrer: one.replicas for one in entries[0].references} == references
    assert await store.list_partition((1 << 18) - 1, 18, None, 10) == []
    await store.close()


async def test_the_simulators_store_means_the_same(bench: Bench) -> None:
    disk = ChunkDisk()
    memory = MemoryChunkStore(disk, random.Random(1), sync_s=0)
    await bench.fill(memory, 60)
    held = {chunk: references for chunk, references in bench.held.items() if references}  # it has no grace period
    check_trees(memory.trees(), held)
    assert await pages(memory, 7) == sorted((one, chunk) for chunk in held for one in held[chunk])
    entries = await memory.describe([*held, bytes(32)])
    assert entries.pop() is None
    assert {entry.chunk: {one.referrer: one.replicas for one in entry.references} for entry in entries if entry} == held
    # whoever changes the disk itself
    chunks = list(held)
    del disk[chunks[0]]
    disk.refer(chunks[1], b"", b"z" * 16, 6)
    disk[CHUNK] = (b"", {b"z" * 16: 2})
    check_trees(memory.trees(), {chunk: references for chunk, (_, references) in disk.items()})
    memory.disk.clear()
    check_trees(memory.trees(), {})
