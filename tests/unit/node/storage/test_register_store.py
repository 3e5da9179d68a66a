"""The SQLite register store against a plain model; its order, its failures, and its life over several starts."""

from __future__ import annotations

import asyncio
import sqlite3
import tempfile
import threading
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cluster.errors import Corrupt, HoldfastError, Invalid, NoSpace, NotReady
from cluster.merkle.digest_tree import DigestTree
from cluster.merkle.identity import PLACE_BITS, register_digest, register_place
from cluster.register.ballot import NO_BALLOT, Ballot, Version
from cluster.register.key import RegisterKey
from cluster.register.record import ABSENT, Record
from cluster.register.store import MetaWrite, PartitionRecord, PartitionWrite, PurgeWrite, RegisterWrite, Write
from node.storage import register_reading, register_trees
from node.storage.register_store import DATABASE_NAME, SqliteRegisterStore
from tests.support.simulated.memory_store import DiskContent, held_tombstones, held_versions

KEY = RegisterKey("t", b"p", b"k")


def unexpected(error: HoldfastError) -> None:
    raise AssertionError(error)


def write(number: int, value: bytes | None = b"v", key: RegisterKey = KEY) -> RegisterWrite:
    return RegisterWrite(0, key, Record(Version(1, "x", number), value))


sorts = st.binary(max_size=2) | st.sampled_from([b"\xff", b"\xff\xff", b"a\xff", b"a\xff\xff", b"b", b""])
keys = st.builds(RegisterKey, st.sampled_from(["", "t", "tt", "ü"]), st.sampled_from([b"", b"p", b"p\0"]), sorts)
versions = st.sampled_from([Version(1, "x", 1), Version(1, "x", 2)]) | st.builds(
    Version, st.integers(0, 2**62), st.text(max_size=3), st.integers(0, 2**40)
)
records = st.builds(Record, versions, st.none() | st.binary(max_size=4))
partitions = st.sampled_from([-1, 0, 1])
states = st.builds(
    PartitionRecord,
    st.builds(Ballot, st.integers(0, 2**62), st.text(max_size=3)),
    st.sampled_from(["voter", "away"]),
    st.integers(0, 9),
    st.builds(Ballot, st.integers(0, 2**62), st.text(max_size=3)),
)
writes: st.SearchStrategy[Write] = st.one_of(
    st.builds(RegisterWrite, partitions, keys, records),
    st.builds(PurgeWrite, partitions, keys, versions),
    st.builds(PartitionWrite, partitions, states, st.booleans()),
    st.builds(MetaWrite, st.sampled_from(["layout", "x"]), st.binary(max_size=3)),
)
batches = st.lists(st.lists(writes, max_size=4), max_size=8)


@pytest.fixture(params=[4, 0], ids=["shallow", "growing"])
def items_per_leaf(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With no items allowed in a leaf, a tree is made anew with the first register, and goes to its full depth."""
    monkeypatch.setattr(register_trees, "ITEMS_PER_LEAF", request.param)
    monkeypatch.setattr(register_trees, "MOST_BITS", 10)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(batches, max_size=3), sorts, sorts, st.integers(1, 4))
@pytest.mark.usefixtures("items_per_leaf")
def test_it_holds_what_a_dictionary_would(
    lives: list[list[list[Write]]], after: bytes, prefix: bytes, limit: int
) -> None:
    async def live(directory: Path, work: list[list[Write]], model: DiskContent) -> None:
        store = SqliteRegisterStore.open(directory, unexpected)
        check_trees(store, model)
        futures = [store.commit(batch) for batch in work]
        for batch in work:
            model.apply(batch)
        await asyncio.gather(*futures)
        check_trees(store, model)
        counts: dict[int, int] = {}
        for partition in (-1, 0, 1):
            for bits, prefixes in ((0, [0]), (4, range(0, 16, 2)), (32, [7])):
                found_versions = await store.versions(partition, bits, prefixes)
                assert sorted(found_versions) == sorted(held_versions(model, partition, bits, prefixes))
            tombstones = await store.tombstones(partition, None, limit)
            assert tombstones == held_tombstones(model, partition, None, limit)
            if tombstones:
                counts[partition] = len(held_tombstones(model, partition, None, 1000))
                last = tombstones[-1].key
                assert await store.tombstones(partition, last, limit) == held_tombstones(model, partition, last, limit)
        assert await store.tombstone_counts() == counts
        assert await store.partitions() == model.partitions
        for name in ("layout", "x", "none"):
            assert await store.meta(name) == model.meta.get(name)
        for partition in (-1, 0, 1):
            held = model.registers.get(partition, {})
            for key in [*held, KEY]:
                assert await store.get(partition, key) == held.get(key, ABSENT)
            found: list[tuple[RegisterKey, Record]] = []
            start: RegisterKey | None = None
            while True:
                page = await store.page(partition, start, limit)
                assert len(page.entries) <= limit
                found += page.entries
                if not page.more:
                    break
                start = page.entries[-1][0]
            assert found == sorted(held.items())
            for table, partition_key in {(key.table, key.partition) for key in held}:
                wanted = [
                    (key, held[key])
                    for key in sorted(held)
                    if (key.table, key.partition) == (table, partition_key)
                    and key.sort > after
                    and key.sort.startswith(prefix)
                ]
                page = await store.scan(partition, table, partition_key, after, prefix, limit)
                assert page.entries == wanted[:limit]
                assert page.more == (len(wanted) > limit)
        await store.close()

    with tempfile.TemporaryDirectory() as name:
        model = DiskContent()
        for work in [*lives, []]:
            asyncio.run(live(Path(name), work, model))


def check_trees(store: SqliteRegisterStore, model: DiskContent) -> None:
    """The trees agree with the registers, by sums that two replicas compare."""
    trees = store.trees()
    for partition in (-1, 0, 1):
        naive = DigestTree(6)
        for key, record in model.registers.get(partition, {}).items():
            name = (key.table, key.partition, key.sort)
            naive.change(register_place(*name) >> (PLACE_BITS - 6), register_digest(*name, *record.version), 1)
        tree = trees.get(partition, DigestTree(6))
        assert tree.total == naive.total
        assert tree.sums(6, range(64)) == naive.sums(6, range(64))


async def test_a_tree_gets_deeper_with_its_population(tmp_path: Path) -> None:
    store = SqliteRegisterStore.open(tmp_path, unexpected)
    bits = []
    for start in range(0, 300, 50):
        await store.commit([write(n, b"", RegisterKey("t", b"p", b"%d" % n)) for n in range(start, start + 50)])
        bits.append(store.trees()[0].bits)
    assert bits == [6, 6, 6, 6, 6, 10]
    assert store.trees()[0].total == 300
    await store.close()
    again = SqliteRegisterStore.open(tmp_path, unexpected)
    assert again.trees() == store.trees()
    await again.close()


def _note(ended: list[int], number: int, future: asyncio.Future[None]) -> None:
    ended.append(number)


async def test_batches_end_in_order_and_share_transactions(tmp_path: Path) -> None:
    store = SqliteRegisterStore.open(tmp_path, unexpected)
    ended: list[int] = []
    futures = [store.commit([write(number)] if number % 3 else []) for number in range(300)]
    for number, future in enumerate(futures):
        future.add_done_callback(partial(_note, ended, number))
    await asyncio.gather(*futures)
    assert ended == list(range(300))
    assert store.commits < 10
    assert (await store.get(0, KEY)).version.seq == 299
    await store.close()


async def test_a_barrier_waits_for_what_is_before_it(tmp_path: Path) -> None:
    store = SqliteRegisterStore.open(tmp_path, unexpected)
    assert store.commit([]).done(), "nothing to wait for"
    first = store.commit([write(1)])
    barrier = store.commit([])
    assert not barrier.done()
    await barrier
    assert first.done()
    await store.close()


async def test_durable_when_it_says_so(tmp_path: Path) -> None:
    """Another process sees it in the files, without this one having closed anything."""
    store = SqliteRegisterStore.open(tmp_path, unexpected)
    await store.commit([write(1), PartitionWrite(3, PartitionRecord(Ballot(7, "y"), "voter", 2))])
    other = SqliteRegisterStore.open(tmp_path, unexpected)
    assert (await other.get(0, KEY)).value == b"v"
    assert await other.partitions() == {3: PartitionRecord(Ballot(7, "y"), "voter", 2)}
    assert other._writer.execute("PRAGMA synchronous").fetchone()[0] == 2
    assert other._writer.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
    await other.close()
    await store.close()


def sqlite_error(code: int, text: str) -> sqlite3.OperationalError:
    error = sqlite3.OperationalError(text)
    error.sqlite_errorcode = code
    return error


class BrokenConnection:
    """Stands in for the writer's connection and fails a statement."""

    def __init__(self, connection: sqlite3.Connection, statement: str, error: Exception) -> None:
        self._connection = connection
        self._statement = statement
        self._error = error

    def execute(self, statement: str, values: Sequence[Any] = ()) -> sqlite3.Cursor:
        if statement.startswith(self._statement):
            raise self._error
        return self._connection.execute(statement, values)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)


@pytest.mark.parametrize("statement", ["BEGIN", "INSERT OR REPLACE INTO partitions", "COMMIT"])
async def test_on_a_full_disk_it_asks_for_room_and_tries_again(tmp_path: Path, statement: str) -> None:
    told: list[HoldfastError] = []
    asked: list[int] = []

    def make_room() -> bool:
        asked.append(1)
        if len(asked) == 2:
            store._writer = whole
        return True

    store = SqliteRegisterStore.open(tmp_path, told.append, make_room)
    whole = store._writer
    error = sqlite_error(sqlite3.SQLITE_FULL, "database or disk is full")
    store._writer = BrokenConnection(whole, statement, error)  # type: ignore[assignment] # as good as one
    await store.commit([write(1), PartitionWrite(0, PartitionRecord())])
    assert len(asked) == 2
    assert not told
    assert len((await store.page(write(1).partition, None, 10)).entries) == 1
    await store.close()


@pytest.mark.parametrize("statement", ["BEGIN", "INSERT OR REPLACE INTO partitions", "COMMIT"])
@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (sqlite_error(sqlite3.SQLITE_IOERR, "disk I/O error"), HoldfastError),
        (sqlite_error(sqlite3.SQLITE_FULL, "database or disk is full"), NoSpace),
        (sqlite_error(sqlite3.SQLITE_CORRUPT, "database disk image is malformed"), Corrupt),
    ],
)
async def test_after_a_failed_commit_it_refuses_everything(
    tmp_path: Path, statement: str, error: Exception, kind: type[HoldfastError]
) -> None:
    told: list[HoldfastError] = []
    store = SqliteRegisterStore.open(tmp_path, told.append)
    await store.commit([write(1)])
    store._writer = BrokenConnection(store._writer, statement, error)  # type: ignore[assignment] # as good as one
    state = PartitionWrite(0, PartitionRecord())
    futures = [store.commit([write(2)]), store.commit([write(3), state]), store.commit([]), store.commit([state])]
    for outcome in await asyncio.gather(*futures, return_exceptions=True):
        # BEGIN and COMMIT fail with the first transaction; the partition only with the second, after the first batch was taken.
        assert outcome is None or type(outcome) is kind
    assert type(futures[-1].exception()) is kind
    assert len(told) == 1
    for work in (store.get(0, KEY), store.partitions(), store.meta("x"), store.page(0, None, 1)):
        with pytest.raises(kind):
            await work
    for batch in ([], [write(4)]):
        with pytest.raises(kind):
            await store.commit(batch)
    store._writer = store._writer._connection  # type: ignore[attr-defined] # the BrokenConnection's
    await store.close()
    again = SqliteRegisterStore.open(tmp_path, unexpected)
    taken = 2 if futures[0].exception() is None else 1
    assert (await again.get(0, KEY)).version.seq == taken
    await again.close()


async def test_a_cancelled_waiter_costs_nobody_else_anything(tmp_path: Path) -> None:
    store = SqliteRegisterStore.open(tmp_path, unexpected)
    futures = [store.commit([write(number)]) for number in range(5)]
    futures[2].cancel()
    await asyncio.gather(*futures, return_exceptions=True)
    assert (await store.get(0, KEY)).version.seq == 4
    assert [future.cancelled() for future in futures] == [False, False, True, False, False]
    await store.close()


async def test_closing_finishes_what_is_queued(tmp_path: Path) -> None:
    store = SqliteRegisterStore.open(tmp_path, unexpected)
    futures = [store.commit([write(number)]) for number in range(5)]
    await store.close()
    assert all(future.done() and future.exception() is None for future in futures)
    with pytest.raises(NotReady):
        await store.commit([write(9)])
    with pytest.raises(NotReady):
        await store.get(0, KEY)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("registers-")]


async def test_starts_are_counted_and_the_store_keeps_its_name(tmp_path: Path) -> None:
    seen = []
    for life in range(3):
        store = SqliteRegisterStore.open(tmp_path, unexpected)
        seen.append(store.begin_boot(b"name-%d" % life))
        assert await store.meta("store_id") == b"name-0"
        assert await store.meta("boot") == str(life + 1).encode()
        await store.close()
    assert seen == [(b"name-0", 1, True), (b"name-0", 2, False), (b"name-0", 3, False)]


def test_a_damaged_file_is_reported(tmp_path: Path) -> None:
    (tmp_path / DATABASE_NAME).write_bytes(b"this is no database at all, however long it may be" * 100)
    with pytest.raises(Corrupt, match="can't be read"):
        SqliteRegisterStore.open(tmp_path, unexpected)


async def test_damage_inside_is_reported(tmp_path: Path) -> None:
    store = SqliteRegisterStore.open(tmp_path, unexpected)
    for number in range(200):
        await store.commit([write(number, b"v" * 100, RegisterKey("t", b"p", b"%d" % number))])
    await store.close()
    path = tmp_path / DATABASE_NAME
    content = bytearray(path.read_bytes())
    content[8192:12288] = b"\x55" * 4096
    path.write_bytes(content)
    with pytest.raises(Corrupt):
        SqliteRegisterStore.open(tmp_path, unexpected)


async def test_another_schema_is_not_touched(tmp_path: Path) -> None:
    store = SqliteRegisterStore.open(tmp_path, unexpected)
    await store.close()
    connection = sqlite3.connect(tmp_path / DATABASE_NAME)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(Invalid, match="schema version 99"):
        SqliteRegisterStore.open(tmp_path, unexpected)


async def test_pages_are_bounded_in_bytes_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(register_reading, "PAGE_LIMIT_BYTES", 250)
    store = SqliteRegisterStore.open(tmp_path, unexpected)
    await store.commit(
        [write(n, b"v" * size, RegisterKey("t", b"p", b"%d" % n)) for n, size in enumerate([100, 100, 999, 1])]
    )
    page = await store.page(0, None, 10)
    assert [len(entries.value or b"") for _, entries in page.entries] == [100, 100]
    assert page.more
    page = await store.page(0, page.entries[-1][0], 10)
    assert [len(entries.value or b"") for _, entries in page.entries] == [999]
    assert page.more
    page = await store.scan(0, "t", b"p", b"2", b"", 10)
    assert [key.sort for key, _ in page.entries] == [b"3"]
    assert not page.more
    await store.close()


async def test_a_range_looks_at_no_more_than_the_range(tmp_path: Path) -> None:
    """However many registers lie behind it."""
    store = SqliteRegisterStore.open(tmp_path, unexpected)
    await store.commit([write(n, b"", RegisterKey("t", b"p", b"%06d" % n)) for n in range(3000)])
    steps = 0

    def count() -> int:
        nonlocal steps
        steps += 1
        return 0

    store._reader.set_progress_handler(count, 10)
    page = await store.scan(0, "t", b"p", b"", b"000001", 100)
    assert [key.sort for key, _ in page.entries] == [b"000001"]
    assert steps < 20
    await store.close()


SCHEMA_1 = """
CREATE TABLE registers (
    partition INTEGER NOT NULL, tbl TEXT NOT NULL, partition_key BLOB NOT NULL, sort_key BLOB NOT NULL,
    round INTEGER NOT NULL, proposer TEXT NOT NULL, seq INTEGER NOT NULL, value BLOB,
    PRIMARY KEY (partition, tbl, partition_key, sort_key)
) WITHOUT ROWID;
CREATE TABLE partitions (
    partition INTEGER PRIMARY KEY, round INTEGER NOT NULL, proposer TEXT NOT NULL, standing TEXT NOT NULL, tenure INTEGER NOT NULL
);
CREATE TABLE meta (name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
PRAGMA user_version = 1;
"""


async def test_a_database_of_the_first_schema_is_taken_over(tmp_path: Path) -> None:
    old = sqlite3.connect(tmp_path / DATABASE_NAME)
    old.executescript(SCHEMA_1)
    model = DiskContent()
    for number in range(300):
        key = RegisterKey("t", b"p", b"%d" % number)
        entry = Record(Version(1, "x", number), None if number % 3 else b"v%d" % number)
        model.apply([RegisterWrite(number % 2, key, entry)])
        old.execute(
            "INSERT INTO registers VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (number % 2, "t", b"p", key.sort, *entry.version, entry.value),
        )
    old.execute("INSERT INTO partitions VALUES (1, 7, 'y', 'voter', 3)")
    old.execute("INSERT INTO meta VALUES ('store_id', x'0102')")
    old.commit()
    old.close()
    for _ in range(2):
        store = SqliteRegisterStore.open(tmp_path, unexpected)
        check_trees(store, model)
        for partition in (0, 1):
            assert dict((await store.page(partition, None, 1000)).entries) == model.registers[partition]
        assert await store.partitions() == {1: PartitionRecord(Ballot(7, "y"), "voter", 3, NO_BALLOT)}
        assert store.begin_boot(b"new")[0] == b"\x01\x02"
        await store.close()
