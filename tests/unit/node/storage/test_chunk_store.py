"""The chunk store's contract, on the simulated and the real disk."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import sqlite3
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3

from cluster.chunks.store import PAYLOAD_LIMIT, ChunkEntry, ChunkStore, Reference
from cluster.doors.clock import SystemClock
from cluster.errors import Corrupt, Invalid, NoSpace, NotFound
from node.storage import chunk_log, chunk_writer
from node.storage import chunk_store as chunk_store_module
from node.storage.chunk_expiry import ChunkExpiry
from node.storage.chunk_index import ChunkIndex, Damage, IndexFull, Snapshot
from node.storage.chunk_operation import Put
from node.storage.chunk_reading import POSITION_BYTES, Position, PositionCache
from node.storage.chunk_store import ChunkStoreSettings, LogChunkStore, default_reserve
from node.storage.disk import Disk, RealDisk
from tests.support.simulated.disk import SimulatedDisk

ALICE = Reference(b"alice-0123456789", 3)
BOB = Reference(b"bob-0123456789ab", 2)


class ManualClock:
    """Time that stands until it is moved."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now

    def wall(self) -> float:
        return 0.0

    async def sleep(self, seconds: float) -> None:
        raise AssertionError("the store never sleeps")


def chunk_of(payload: bytes | bytearray | memoryview) -> bytes:
    return blake3(payload).digest()


def payload_of(number: int, size: int) -> bytes:
    return random.Random(number).randbytes(size)


class Harness:
    """A directory, a disk and a clock that outlive the stores opened on them."""

    def __init__(self, directory: Path, disk: Disk | None = None) -> None:
        directory.mkdir(exist_ok=True)
        self.directory = str(directory)
        self.simulated = SimulatedDisk()
        self.disk: Disk = disk if disk is not None else self.simulated
        self.clock = ManualClock()
        self.damages: list[Damage] = []
        self.settings: dict[str, float | int | None] = {"grace_s": 60.0, "file_bytes": 64 * 1024, "reserve_bytes": 0}

    def make(self) -> LogChunkStore:
        settings = ChunkStoreSettings(self.directory, **self.settings)  # type: ignore[arg-type]  # keyword by keyword they fit
        return LogChunkStore(
            settings, disk=self.disk, clock=self.clock, random=random.Random(7), on_damage=self.damages.append
        )

    @asynccontextmanager
    async def store(self, *, abandon: bool = False) -> AsyncIterator[LogChunkStore]:
        store = self.make()
        await store.open()
        try:
            yield store
        finally:
            await (store.abandon() if abandon else store.close())

    @property
    def index(self) -> Path:
        return Path(self.directory) / "chunks.sqlite"

    def log(self, number: int = 1) -> str:
        return os.path.join(self.directory, f"chunks-{number:08d}.log")


@pytest.fixture
def harness(tmp_path: Path) -> Harness:
    return Harness(tmp_path / "chunks")


async def put(store: LogChunkStore, payload: bytes, reference: Reference = ALICE) -> bytes:
    chunk = chunk_of(payload)
    await store.put(chunk, payload, reference)
    return chunk


async def everything(store: LogChunkStore) -> list[ChunkEntry]:
    return await store.list_partition(0, 0, None, 100_000)


SIZES = [0, 1, 7, 4095, 4096, 16383, 16384, 16385, 50_000, 1_000_000]


@pytest.mark.parametrize("real", [False, True])
async def test_every_size_comes_back_whole_in_ranges_and_after_a_restart(tmp_path: Path, real: bool) -> None:
    harness = Harness(tmp_path / "chunks", RealDisk() if real else None)
    chunks: dict[bytes, bytes] = {}
    async with harness.store() as store:
        typed: ChunkStore = store
        for size in SIZES:
            payload = payload_of(size, size)
            for kind in (bytes, bytearray, memoryview):
                await typed.put(chunk_of(payload), kind(payload), ALICE)
            chunks[chunk_of(payload)] = payload
    for abandon in (True, False):
        async with harness.store(abandon=abandon) as store:
            for chunk, payload in chunks.items():
                assert await store.read(chunk) == payload
                assert await store.length(chunk) == len(payload)
                chance = random.Random(len(payload))
                for _ in range(10):
                    start = chance.randint(0, len(payload))
                    end = chance.randint(start, len(payload))
                    assert await store.read(chunk, start, end - start) == payload[start:end]
                    cached = store.read_cached(chunk, start, end - start)
                    assert cached is None or cached == payload[start:end]
                    if not real and end - start <= 256 * 1024:
                        assert cached is not None
                for start, length in ((-1, 1), (0, len(payload) + 1), (len(payload) + 1, 0), (0, -1)):
                    with pytest.raises(Invalid):
                        await store.read(chunk, start, length)
                    with pytest.raises(Invalid):
                        store.read_cached(chunk, start, length)
            assert store.statistics().chunks == len(SIZES)
            assert store.statistics().live_bytes == sum(SIZES)


async def test_arguments_are_checked(harness: Harness) -> None:
    async with harness.store() as store:
        wrong: list[Callable[[], Awaitable[object]]] = [
            lambda: store.put(b"short", b"", ALICE),
            lambda: store.put(bytes(32), b"", Reference(b"short", 1)),
            lambda: store.put(bytes(32), b"", Reference(bytes(16), 0)),
            lambda: store.put(bytes(32), b"", Reference(bytes(16), 256)),
            lambda: store.put(bytes(32), bytes(PAYLOAD_LIMIT + 1), ALICE),
            lambda: store.add_reference(b"short", ALICE),
            lambda: store.drop_reference(bytes(32), b"short"),
            lambda: store.read(b"short"),
            lambda: store.holds([b"short"]),
            lambda: store.list_partition(4, 2, None, 1),
            lambda: store.list_partition(-1, 2, None, 1),
            lambda: store.list_partition(0, 2, None, 0),
            lambda: store.list_referrer(bytes(16), None, 0),
        ]
        for attempt in wrong:
            with pytest.raises(Invalid):
                await attempt()
        with pytest.raises(NotFound):
            await store.read(bytes(32))
        with pytest.raises(NotFound):
            await store.length(bytes(32))
        assert store.read_cached(bytes(32), 0, 1) is None
        words = memoryview(bytearray(64)).cast("I")
        await store.put(chunk_of(bytes(64)), words, ALICE)
        assert await store.read(chunk_of(bytes(64))) == bytes(64)


async def test_references_come_and_go(harness: Harness) -> None:
    async with harness.store(abandon=True) as store:
        chunk = await put(store, b"payload")
        assert not await store.add_reference(bytes(32), ALICE)
        assert await store.add_reference(chunk, BOB)
        assert await store.add_reference(chunk, Reference(ALICE.referrer, 5))
        await store.put(chunk, b"payload", Reference(b"carol-0123456789", 1))
        assert not await store.drop_reference(chunk, b"nobody-012345678")
        assert await store.drop_reference(chunk, b"carol-0123456789")
        assert not await store.drop_reference(chunk, b"carol-0123456789")
        expected = [ChunkEntry(chunk, 7, (Reference(ALICE.referrer, 5), BOB))]
        assert await everything(store) == expected
    async with harness.store() as store:
        assert await everything(store) == expected
        assert await store.list_referrer(BOB.referrer, None, 10) == [chunk]
        assert await store.list_referrer(b"carol-0123456789", None, 10) == []


async def test_what_changes_nothing_writes_nothing(harness: Harness) -> None:
    async with harness.store() as store:
        chunk = await put(store, b"payload")
        before = store.statistics().bytes_written
        await put(store, b"payload")
        assert await store.add_reference(chunk, ALICE)
        assert not await store.drop_reference(chunk, BOB.referrer)
        assert store.statistics().bytes_written == before


async def test_a_chunk_without_references_is_deleted_after_the_grace_period_counted_over_restarts(
    harness: Harness,
) -> None:
    async with harness.store() as store:
        kept = await put(store, b"kept")
        chunk = await put(store, b"payload")
        revived = await put(store, b"revived")
        await store.drop_reference(chunk, ALICE.referrer)
        await store.drop_reference(revived, ALICE.referrer)
        harness.clock.now += 40
        job = ChunkExpiry(store)
        assert not await job.run_once()
        assert job.queue_length == 2
        assert job.waiting_for is not None
        assert "grace" in job.waiting_for
        assert await store.read(chunk) == b"payload"
        assert await store.add_reference(revived, BOB)
    harness.clock.now = 5000.0  # the time while it was closed does not count
    for abandon in (True, False):
        async with harness.store(abandon=abandon) as store:
            harness.clock.now += 9
            job = ChunkExpiry(store)
            await job.run_once()
            assert await store.holds([kept, chunk, revived]) == [True, True, True]
            await put(store, f"so that the age {abandon} is on record".encode())
    async with harness.store() as store:
        harness.clock.now += 3
        await ChunkExpiry(store).run_once()
        assert await store.holds([kept, chunk, revived]) == [True, False, True]
        assert store.read_cached(chunk, 0, 1) is None
        with pytest.raises(NotFound):
            await store.read(chunk)


@pytest.mark.parametrize("flush_states", [5, 1000])
async def test_listings_page_through_index_and_memory_alike(
    harness: Harness, monkeypatch: pytest.MonkeyPatch, flush_states: int
) -> None:
    monkeypatch.setattr(chunk_writer, "FLUSH_STATES", flush_states)
    chance = random.Random(3)
    async with harness.store() as store:
        held: set[bytes] = set()
        bobs: set[bytes] = set()
        for number in range(150):
            chunk = await put(store, payload_of(number, 20))
            held.add(chunk)
            if number % 3 == 0:
                await store.add_reference(chunk, BOB)
                bobs.add(chunk)
            if number % 7 == 0:
                await store.drop_reference(chunk, BOB.referrer)
                bobs.discard(chunk)
        for limit in (1, 7, 150, 151):
            for bits in (0, 1, 3, 32):
                partition = chance.randrange(1 << bits) if bits < 32 else int.from_bytes(min(held)[:4], "big")
                wanted = sorted(c for c in held if int.from_bytes(c, "big") >> (256 - bits) == partition)
                found: list[bytes] = []
                after = None
                while True:
                    page = await store.list_partition(partition, bits, after, limit)
                    found += [entry.chunk for entry in page]
                    if len(page) < limit:
                        break
                    after = page[-1].chunk
                assert found == wanted
            listed: list[bytes] = []
            after = None
            while True:
                names = await store.list_referrer(BOB.referrer, after, limit)
                listed += names
                if len(names) < limit:
                    break
                after = names[-1]
            assert listed == sorted(bobs)


async def test_a_partition_that_moved_away_is_dropped_whole(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunk_store_module, "PARTITION_PAGE", 10)
    async with harness.store(abandon=True) as store:
        chunks = [await put(store, payload_of(number, 30)) for number in range(100)]
        inside = [chunk for chunk in chunks if chunk[0] >> 6 == 2]
        assert await store.drop_partition(2, 2) == len(inside) > 10
        assert await store.drop_partition(2, 2) == 0
        assert [store.read_cached(chunk, 0, 1) is None for chunk in chunks] == [chunk in inside for chunk in chunks]
    async with harness.store() as store:
        assert await store.holds(chunks) == [chunk not in inside for chunk in chunks]
        assert store.statistics().chunks == 100 - len(inside)


async def test_the_sync_comes_before_the_answer_and_is_shared(harness: Harness) -> None:
    payloads = [payload_of(number, 100) for number in range(200)]
    async with harness.store() as store:

        async def one(payload: bytes) -> None:
            await put(store, payload)
            harness.simulated.note(payload)

        before = store.statistics().syncs
        await asyncio.gather(*map(one, payloads))
        syncs = store.statistics().syncs - before
        assert 1 <= syncs < 50
        chunk = await put(store, b"x")
        await store.add_reference(chunk, BOB)
        harness.simulated.note("nothing else was asked for")
        await store.drop_reference(chunk, BOB.referrer)
        harness.simulated.note("nothing else was asked for")
    # By the time an answer arrives, the next group may be on its way to the disk: what counts is what was answered.
    pending, synced = b"", b""
    answers = 0
    for event in harness.simulated.history:
        if event.kind == "write":
            pending += event.data
        elif event.kind == "sync":
            synced, pending = synced + pending, b""
        elif event.kind == "note":
            answers += 1
            assert event.note in synced if isinstance(event.note, bytes) else not pending, "answered before the sync"
    assert answers == 202


async def test_dead_files_are_unlinked_and_nothing_comes_back(harness: Harness) -> None:
    harness.settings["grace_s"] = 0.0
    harness.settings["file_bytes"] = 10_000
    model: dict[bytes, bytes] = {}
    chance = random.Random(5)
    most = 0
    for _ in range(12):
        async with harness.store(abandon=chance.random() < 0.5) as store:
            for _ in range(30):
                payload = chance.randbytes(500)
                model[await put(store, payload)] = payload
            for chunk in chance.sample(sorted(model), 26):
                await store.drop_reference(chunk, ALICE.referrer)
                del model[chunk]
            await ChunkExpiry(store).run_once()
            most = max(most, store.statistics().log_files)
            assert {entry.chunk for entry in await everything(store)} == set(model)
        if chance.random() < 0.5:
            harness.index.unlink()
            async with harness.store() as store:
                assert {entry.chunk: await store.read(entry.chunk) for entry in await everything(store)} == model
    async with harness.store() as store:
        for chunk in model:
            await store.drop_reference(chunk, ALICE.referrer)
        for _ in range(3):
            await ChunkExpiry(store).run_once()
        await put(store, bytes(20_000))
        await ChunkExpiry(store).run_once()
        assert store.statistics().log_files <= 2
    assert most < 20


@pytest.mark.parametrize("before", ["a flush", "a full index", "another unlinking", "nothing"])
async def test_no_put_waits_for_unlinking(harness: Harness, monkeypatch: pytest.MonkeyPatch, before: str) -> None:
    """On a slow disk a file of a gigabyte takes its time to go. What was under way when it was asked for makes no difference."""
    harness.settings["grace_s"] = 0.0
    written = threading.Event()
    if before != "a flush":
        written.set()
    full = before == "a full index"
    write = ChunkIndex.write

    def slow(index: ChunkIndex, snapshot: Snapshot) -> None:
        assert written.wait(30)
        if full:
            raise IndexFull("the disk is full")
        write(index, snapshot)

    monkeypatch.setattr(ChunkIndex, "write", slow)
    unlinking = Gate(monkeypatch, harness.simulated, "unlink")
    async with harness.store() as store:
        for number in range(30):
            chunk = await put(store, payload_of(number, 5000))
            await store.drop_reference(chunk, ALICE.referrer)
        await store.expire(100)
        await store.seal()
        writer = store._writer
        assert writer is not None
        with unlinking.shut():
            if before in ("a flush", "a full index"):
                writer._flush_states = 1
                await put(store, payload_of(100, 10))
                if before == "a flush":
                    await until(lambda: writer._flush is not None)
                else:
                    await until(lambda: writer.index_error is not None)
                writer._flush_states = 1 << 20
                full = False
            tasks = [asyncio.ensure_future(store.unlink_dead_files())]
            if before == "another unlinking":
                tasks.append(asyncio.ensure_future(store.unlink_dead_files()))
            await asyncio.sleep(0)
            written.set()
            await unlinking.reached()
            for number in range(101, 105):
                async with asyncio.timeout(5):
                    await put(store, payload_of(number, 10))
            assert not any(task.done() for task in tasks)
        assert (await asyncio.gather(*tasks))[0] >= 2
        assert store.statistics().log_files == 1


async def test_unlinking_that_is_asked_for_twice_is_answered_when_the_store_closes(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    harness.settings["grace_s"] = 0.0
    unlinking = Gate(monkeypatch, harness.simulated, "unlink")
    async with harness.store() as store:
        chunk = await put(store, payload_of(1, 5000))
        await store.drop_reference(chunk, ALICE.referrer)
        await store.expire(100)
        await store.seal()
        with unlinking.shut():
            tasks = [asyncio.ensure_future(store.unlink_dead_files()) for _ in range(3)]
            await unlinking.reached()
            closing = asyncio.ensure_future(store.close())
            await asyncio.sleep(0)
        await closing
        assert await asyncio.gather(*tasks) == [1, 0, 0]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110  # the writer is waited for, which sets no event
            await asyncio.sleep(0.001)


async def test_puts_leave_the_reserve_free_and_deletes_go_on(harness: Harness) -> None:
    harness.simulated.capacity = 100_000
    harness.settings["reserve_bytes"] = 20_000
    harness.settings["grace_s"] = 0.0
    harness.settings["file_bytes"] = 20_000
    chunks: list[bytes] = []
    async with harness.store() as store:
        while True:
            try:
                chunks.append(await put(store, payload_of(len(chunks), 5000)))
            except NoSpace:
                break
        assert store.statistics().free_bytes >= 20_000
        assert 10 <= len(chunks) <= 16
        assert await store.add_reference(chunks[0], BOB)
        for chunk in chunks[1:]:
            assert await store.drop_reference(chunk, ALICE.referrer)
        await ChunkExpiry(store).run_once()
        await put(store, payload_of(1000, 5000))
        assert await store.read(chunks[0]) == payload_of(0, 5000)
    assert default_reserve(1 << 30) == (1 << 30) // 20
    assert default_reserve(100 << 30) == 1 << 30
    assert default_reserve(10 << 30) == 256 << 20


async def test_damage_is_found_by_reading_set_aside_and_replaced_by_a_put(harness: Harness) -> None:
    async with harness.store() as store:
        payload = payload_of(1, 40_000)
        chunk = await put(store, payload)
        other = await put(store, b"other")
        await store.read(chunk)
        harness.simulated.flip(harness.log(), 30_000)
        assert store.read_cached(chunk, 0, 100) == payload[:100], "another block"
        assert store.read_cached(chunk, 29_000, 2000) is None
        with pytest.raises(Corrupt):
            await store.read(chunk, 29_000, 2000)
        assert [damage.chunk for damage in harness.damages] == [chunk]
        assert store.statistics().quarantined == 1
        assert await store.holds([chunk, other]) == [False, True]
        assert not await store.add_reference(chunk, BOB)
        assert store.read_cached(chunk, 0, 100) is None
        with pytest.raises(NotFound):
            await store.read(chunk)
        await store.put(chunk, payload, BOB)
        assert await store.read(chunk) == payload
    for _ in range(2):
        async with harness.store() as store:
            assert await store.read(chunk) == payload
            assert store.statistics().quarantined == 1
        harness.index.unlink()


async def test_a_put_over_a_damaged_copy_replaces_it_and_keeps_its_references(harness: Harness) -> None:
    payload = payload_of(1, 40_000)
    chunk = chunk_of(payload)
    async with harness.store(abandon=True) as store:
        await store.put(chunk, payload, ALICE)
        await store.add_reference(chunk, BOB)
        harness.simulated.flip(harness.log(), 30_000)
        await store.put(chunk, payload, Reference(ALICE.referrer, 9))
        assert await store.read(chunk) == payload
        assert len(harness.damages) == 1
    async with harness.store() as store:
        assert await everything(store) == [ChunkEntry(chunk, 40_000, (Reference(ALICE.referrer, 9), BOB))]
        assert await store.read(chunk) == payload


async def test_a_flipped_bit_anywhere_is_never_served(harness: Harness) -> None:
    chunks: dict[bytes, bytes] = {}
    async with harness.store() as store:
        for number in range(20):
            payload = payload_of(number, 100 + 400 * number)
            chunks[await put(store, payload)] = payload
    whole = harness.simulated
    chance = random.Random(11)
    saved = saved_index(harness)
    lost = 0
    for round_ in range(60):
        harness.disk = harness.simulated = whole.copy()
        size = len(harness.simulated.bytes_of(harness.log(2 if round_ % 2 and len(whole.paths()) > 1 else 1)))
        harness.simulated.flip(
            harness.log(2 if round_ % 2 and len(whole.paths()) > 1 else 1),
            chance.randrange(size),
            1 << chance.randrange(8),
        )
        if round_ % 3:
            for path, data in saved.items():
                path.write_bytes(data)
        else:
            harness.index.unlink()
        async with harness.store() as store:
            for chunk, payload in chunks.items():
                try:
                    assert await store.read(chunk) == payload
                except (Corrupt, NotFound):
                    lost += 1
                    assert not (await store.holds([chunk]))[0]
    assert 20 < lost <= 61


def saved_index(harness: Harness) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in (harness.index, Path(f"{harness.index}.seal"))}


def damage_index(harness: Harness, how: str, older: bytes) -> None:
    data = harness.index.read_bytes()
    if how == "missing":
        harness.index.unlink()
    elif how == "truncated":
        harness.index.write_bytes(data[: len(data) // 2])
    elif how == "empty":
        harness.index.write_bytes(b"")
    elif how == "garbage":
        harness.index.write_bytes(random.Random(1).randbytes(len(data)))
    elif how == "page":
        harness.index.write_bytes(data[:8192] + random.Random(1).randbytes(4096) + data[12288:])
    elif how == "text":  # not even the error's message can be decoded
        assert data.count(b"CREATE INDEX chunks_freed") == 1
        harness.index.write_bytes(data.replace(b"CREATE INDEX chunks_freed", b"CREATE INDE\xe6 chunks_freed"))
    elif how == "flip":
        at = data.index(payload_chunk(28))
        harness.index.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    elif how == "older":
        harness.index.write_bytes(older)
    elif how == "seal":
        Path(f"{harness.index}.seal").write_bytes(b"{garbage")


def payload_chunk(number: int) -> bytes:
    return chunk_of(payload_of(number, 3000))


@pytest.mark.parametrize(
    ("how", "sealed"),
    [
        (how, sealed)
        for how in ("missing", "truncated", "empty", "garbage", "page", "text", "older")
        for sealed in (True, False)
    ]
    + [("flip", True), ("seal", True)],  # only a seal tells these
)
async def test_a_bad_index_is_rebuilt(
    harness: Harness, monkeypatch: pytest.MonkeyPatch, how: str, sealed: bool
) -> None:
    monkeypatch.setattr(chunk_writer, "FLUSH_STATES", 10)
    harness.settings["grace_s"] = 0.0
    async with harness.store() as store:
        for number in range(30):
            await put(store, payload_of(number, 3000))
    older = harness.index.read_bytes()
    async with harness.store(abandon=not sealed) as store:
        for number in range(20, 60):
            await put(store, payload_of(number, 3000), BOB)
        for number in range(25):
            if number % 4:
                await store.drop_reference(payload_chunk(number), ALICE.referrer)
        await ChunkExpiry(store).run_once()
        expected = await everything(store)
        statistics = store.statistics()
    damage_index(harness, how, older)
    store = harness.make()
    found = await store.open()
    try:
        if how != "older":
            assert found.rebuilt is not None
        assert await everything(store) == expected
        for entry in expected:
            assert chunk_of(await store.read(entry.chunk)) == entry.chunk
        assert await store.list_referrer(BOB.referrer, None, 100) == sorted(
            entry.chunk for entry in expected if BOB.referrer in {one.referrer for one in entry.references}
        )
        after = store.statistics()
        assert (after.chunks, after.live_bytes, after.log_files) == (
            statistics.chunks,
            statistics.live_bytes,
            statistics.log_files,
        )
    finally:
        await store.close()


async def test_an_index_that_goes_bad_while_in_use_is_rebuilt_behind_the_question(harness: Harness) -> None:
    async with harness.store() as store:
        chunks = [await put(store, payload_of(number, 100)) for number in range(50)]
    async with harness.store() as store:
        assert not store.statistics().pending
        with sqlite3.connect(harness.index) as connection:
            connection.execute("UPDATE chunks SET offset = offset + 8 WHERE chunk IN (?, ?)", (chunks[3], chunks[4]))
        connection.close()
        found = await asyncio.gather(*[store.read(chunk) for chunk in chunks])
        assert found == [payload_of(number, 100) for number in range(50)]
        with sqlite3.connect(harness.index) as connection:
            connection.execute("UPDATE chunks SET offset = offset + 8 WHERE chunk = ?", (chunks[5],))
        connection.close()
        await store.put(chunks[5], payload_of(5, 100), BOB)
        assert len(await everything(store)) == 50
        assert harness.damages == []


async def test_an_index_of_another_log_is_not_believed(tmp_path: Path) -> None:
    one, two = Harness(tmp_path / "one"), Harness(tmp_path / "two")
    async with one.store() as store:
        await put(store, b"one")
    async with two.store() as store:
        await asyncio.gather(*[put(store, payload_of(number, 100)) for number in range(10)])
    for suffix in ("", ".seal"):
        shutil.copyfile(f"{one.index}{suffix}", f"{two.index}{suffix}")
    descriptor = two.simulated.open(two.log())
    header = bytearray(two.simulated.pread(descriptor, 64, 0))
    assert header[:8] == b"HFCHUNKS"
    two.simulated.close(descriptor)
    # the same seed gave both logs the same salt; a log of its own has another
    store = two.make()
    store._log._new_salt = lambda: 99
    other = Harness(tmp_path / "three")
    third = other.make()
    third._log._new_salt = lambda: 99
    await third.open()
    await asyncio.gather(*[put(third, payload_of(number, 100)) for number in range(10)])
    await third.close()
    for suffix in ("", ".seal"):
        shutil.copyfile(f"{one.index}{suffix}", f"{other.index}{suffix}")
    third = other.make()
    found = await third.open()
    assert found.rebuilt is not None
    assert len(await everything(third)) == 10
    await third.close()


async def test_a_log_inside_a_chunk_is_not_taken_for_records(harness: Harness) -> None:
    async with harness.store() as store:
        for number in range(5):
            await put(store, payload_of(number, 500))
        inner = harness.simulated.bytes_of(harness.log())
        chunk = await put(store, inner)
        await put(store, b"after")
        start = harness.simulated.bytes_of(harness.log()).rindex(inner)
        expected = {entry.chunk for entry in await everything(store)}
    harness.simulated.flip(harness.log(), start - 60)  # the header of the chunk that holds a log
    harness.index.unlink()
    async with harness.store() as store:
        assert {entry.chunk for entry in await everything(store)} == expected - {chunk}
        assert len(harness.damages) == 1


async def test_the_queue_holds_back_instead_of_growing(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunk_store_module, "QUEUE_BYTES", 10_000)
    async with harness.store() as store:
        most = 0

        async def one(number: int) -> None:
            nonlocal most
            await put(store, payload_of(number, 3000))
            most = max(most, store._room.taken)

        await asyncio.gather(*[one(number) for number in range(50)])
        assert most <= 10_000
        cancelled = [asyncio.ensure_future(one(number)) for number in range(100, 120)]
        await asyncio.sleep(0)
        for task in cancelled:
            task.cancel()
        await asyncio.gather(*cancelled, return_exceptions=True)
        await store.settle()
        assert store._room.taken == 0
        await put(store, b"still going")


class Gate:
    """Holds up whoever passes it on another thread while it is shut."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, disk: SimulatedDisk, kind: str) -> None:
        self._passed = threading.Event()
        self._passed.set()
        self.waiting = threading.Event()
        """Somebody stands before it."""
        call = getattr(disk, kind)

        def gated(*arguments: Any) -> Any:
            if not self._passed.is_set():
                self.waiting.set()
                assert self._passed.wait(30), "nobody opened the gate"
            return call(*arguments)

        monkeypatch.setattr(disk, kind, gated)

    @contextmanager
    def shut(self) -> Iterator[None]:
        self._passed.clear()
        try:
            yield
        finally:
            self._passed.set()

    async def reached(self) -> None:
        assert await asyncio.to_thread(self.waiting.wait, 30)


async def test_what_is_queued_stays_bounded_while_the_disk_hangs_and_every_put_is_given_up(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit, size = 10_000, 3000
    monkeypatch.setattr(chunk_store_module, "QUEUE_BYTES", limit)
    gate = Gate(monkeypatch, harness.simulated, "fdatasync")
    async with harness.store() as store:
        writer = store._writer
        assert writer is not None
        given_up: list[bytes] = []
        with gate.shut():
            first = asyncio.ensure_future(put(store, payload_of(0, size)))
            await gate.reached()
            for turn in range(20):
                payloads = [payload_of(1 + 10 * turn + number, size) for number in range(10)]
                tasks = [asyncio.ensure_future(put(store, payload)) for payload in payloads]
                for _ in range(3):
                    await asyncio.sleep(0)
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                given_up += map(chunk_of, payloads)
                queued = sum(len(item.payload) for item in list(writer._queue) if isinstance(item, Put))
                assert queued + size <= limit, "with the one that is being written"
                assert queued + size == store._room.taken
                assert not store._room.waiting
            behind = asyncio.ensure_future(put(store, payload_of(1, size), BOB))
            tried = asyncio.ensure_future(store.add_reference(given_up[1], BOB))
            written = store.statistics().puts
        assert await first == chunk_of(payload_of(0, size))
        assert await behind == given_up[0], "it brings the bytes itself"
        assert not await tried
        await store.settle()
        assert store._room.taken == 0
        assert store.statistics().puts == written + 2
        assert [entry for entry in await store.describe(given_up) if entry] == [ChunkEntry(given_up[0], size, (BOB,))]


async def test_a_put_that_is_given_up_while_it_is_written_is_kept_and_gives_its_room_back_afterwards(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(monkeypatch, harness.simulated, "fdatasync")
    async with harness.store() as store:
        with gate.shut():
            task = asyncio.ensure_future(put(store, payload_of(0, 3000)))
            await gate.reached()
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            assert store._room.taken == 3000
        await store.settle()
        assert store._room.taken == 0
        assert await store.read(chunk_of(payload_of(0, 3000))) == payload_of(0, 3000)


async def test_a_start_after_a_kill_replays_only_the_end_of_the_log(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunk_writer, "FLUSH_STATES", 100)
    async with harness.store(abandon=True) as store:
        chunks = [await put(store, payload_of(number, 50)) for number in range(450)]
    store = harness.make()
    found = await store.open()
    assert found.rebuilt is None
    assert 0 < found.replayed <= 250
    assert await store.holds(chunks) == [True] * 450
    await store.close()
    store = harness.make()
    assert (await store.open()).replayed == 0
    await store.close()


async def test_a_full_index_disk_holds_up_nothing_but_puts_in_the_end(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunk_writer, "FLUSH_STATES", 10)
    monkeypatch.setattr(chunk_writer, "STATES_LIMIT", 30)
    real = ChunkIndex.write
    full = True

    def write(index: ChunkIndex, snapshot: Snapshot) -> None:
        if full:
            raise IndexFull("the disk is full")
        real(index, snapshot)

    monkeypatch.setattr(ChunkIndex, "write", write)
    async with harness.store() as store:
        chunks: list[bytes] = []
        with pytest.raises(NoSpace):
            await put_until_refused(store, chunks)
        assert len(chunks) >= 40
        assert await store.drop_reference(chunks[0], ALICE.referrer)
        assert await store.holds(chunks) == [True] * len(chunks)
        full = False
        harness.clock.now += chunk_writer.FLUSH_RETRY_S
        await store.add_reference(chunks[1], BOB)
        await store.settle()
        await ChunkExpiry(store).run_once()
        chunks.append(await put(store, b"there is room again"))
    async with harness.store() as store:
        assert len(await everything(store)) == len(chunks)
        assert await store.list_referrer(BOB.referrer, None, 9) == [chunks[1]]


async def put_until_refused(store: LogChunkStore, chunks: list[bytes]) -> None:
    for number in range(1000):
        chunks.append(await put(store, payload_of(number, 10)))


async def test_few_files_are_open_at_once(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunk_log, "OPEN_FILES_LIMIT", 3)
    harness.settings["file_bytes"] = 10_000
    async with harness.store() as store:
        chunks = [await put(store, payload_of(number, 9000)) for number in range(30)]
        found = await asyncio.gather(*[store.read(chunk) for chunk in chunks])
        assert found == [payload_of(number, 9000) for number in range(30)]
        assert store.statistics().log_files == 30
        assert len(harness.simulated._descriptors) <= 3 + chunk_store_module.READERS
    assert not harness.simulated._descriptors


def test_the_cache_of_positions_is_bounded_and_keeps_what_was_used_last() -> None:
    cache = PositionCache(limit=10 * (POSITION_BYTES + 4))
    for number in range(20):
        cache.add(bytes([number]), Position(1, number, 10, bytes(4)))
        assert cache.get(bytes([0])) is not None
    assert len(cache) == 10
    assert cache.get(bytes([1])) is None
    cache.discard(bytes([19]))
    cache.add(bytes([0]), Position(2, 0, 10, bytes(4)))
    assert len(cache) == 9


async def test_real_files_with_many_readers_and_writers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunk_writer, "FLUSH_STATES", 64)
    harness = Harness(tmp_path / "chunks", RealDisk())
    harness.settings["grace_s"] = 0.0
    store = LogChunkStore(
        ChunkStoreSettings(harness.directory, grace_s=0.0, file_bytes=200_000, reserve_bytes=0),
        disk=harness.disk,
        clock=SystemClock(),
        random=random.Random(1),
    )
    await store.open()
    kept: dict[bytes, bytes] = {}

    async def work(worker: int) -> None:
        chance = random.Random(worker)
        for number in range(40):
            payload = chance.randbytes(chance.randrange(12_000))
            chunk = await put(store, payload)
            assert await store.read(chunk) == payload
            if number % 3:
                await store.drop_reference(chunk, ALICE.referrer)
            else:
                kept[chunk] = payload
            if number % 10 == 9:
                await ChunkExpiry(store).run_once()

    await asyncio.gather(*[work(worker) for worker in range(16)])
    await ChunkExpiry(store).run_once()
    store._catalog.ledger.check()
    assert {entry.chunk for entry in await everything(store)} == set(kept)
    await store.close()
    async with harness.store() as store:
        for chunk, payload in kept.items():
            assert await store.read(chunk) == payload
