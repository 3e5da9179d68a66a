"""A node that lacks descriptors, memory or permissions knows nothing of its copies, and gives none of them up for it."""

from __future__ import annotations

import asyncio
import errno
import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from cluster.chunks.store import StoreFailed
from cluster.errors import Busy, Corrupt, HoldfastError, NotFound
from node.storage import chunk_log
from node.storage.ballast import Ballast
from node.storage.chunk_index import ChunkIndex, IndexDamaged, IndexFull, IndexReader, IndexUnavailable, _judged
from node.storage.chunk_log import LogFiles
from node.storage.chunk_store import LogChunkStore
from node.storage.file_evacuation import FileEvacuation, Piece
from node.storage.log_scan import Gap, LogScan
from tests.support.simulated.disk import SimulatedDisk
from tests.unit.node.storage.test_chunk_store import ALICE, BOB, Harness, payload_of, put

NOT_OF_THE_MEDIUM = [errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EACCES, errno.EROFS, errno.ESTALE, errno.EINTR]
MEDIUM = [errno.EIO, errno.EBADMSG, errno.EUCLEAN, errno.ENODATA, errno.EREMOTEIO]


@pytest.fixture
def harness(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Harness:
    """Each chunk of 9000 bytes is in a log file of its own, and all but the newest have to be opened to be read."""
    monkeypatch.setattr(chunk_log, "OPEN_FILES_LIMIT", 1)
    harness = Harness(tmp_path / "chunks")
    harness.settings["file_bytes"] = 10_000
    return harness


@contextmanager
def failing(disk: SimulatedDisk, *kinds: str, number: int = errno.EMFILE) -> Iterator[None]:
    disk.fault = lambda kind, _: number if kind in kinds else None
    try:
        yield
    finally:
        disk.fault = lambda _kind, _n: None


def payload(number: int) -> bytes:
    return payload_of(number, 9000)


@pytest.mark.parametrize("kind", ["open", "pread"])
@pytest.mark.parametrize("number", NOT_OF_THE_MEDIUM)
async def test_a_copy_that_cannot_be_looked_at_is_kept(harness: Harness, kind: str, number: int) -> None:
    async with harness.store() as store:
        chunks = [await put(store, payload(n)) for n in range(6)]
        with failing(harness.simulated, kind, number=number):
            with pytest.raises(Busy) as caught:
                await store.read(chunks[0], 10, 20)
            assert caught.value.retryable
            with pytest.raises(Busy):
                await store.verify(chunks[1])
            with pytest.raises(Busy):
                await store.put(chunks[2], payload(2), BOB)
            assert await store.holds(chunks) == [True] * 6
        assert harness.damages == []
        assert store.statistics().quarantined == 0
        assert [await store.read(chunk) for chunk in chunks] == [payload(n) for n in range(6)]
        assert await store.verify(chunks[1]) == 9000
        await store.put(chunks[2], payload(2), BOB)
    for _ in range(2):
        async with harness.store() as store:
            assert await store.holds(chunks) == [True] * 6
            assert [await store.read(chunk) for chunk in chunks] == [payload(n) for n in range(6)]
        harness.index.unlink()


@pytest.mark.parametrize("kind", ["open", "pread"])
@pytest.mark.parametrize("number", MEDIUM)
async def test_what_the_medium_has_lost_is_damage(harness: Harness, kind: str, number: int) -> None:
    async with harness.store() as store:
        chunks = [await put(store, payload(n)) for n in range(3)]
        with failing(harness.simulated, kind, number=number), pytest.raises(Corrupt):
            await store.read(chunks[0])
        assert [damage.chunk for damage in harness.damages] == chunks[:1]
        assert await store.holds(chunks) == [False, True, True]


async def test_a_log_file_that_somebody_removed_is_damage_but_not_one_whose_folder_is_gone(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(_path: str) -> list[str]:
        raise FileNotFoundError(errno.ENOENT, "unmounted")

    looks: list[Callable[[str], list[str]]] = [gone, lambda _path: ["lost+found"]]
    async with harness.store() as store:
        chunks = [await put(store, payload(n)) for n in range(3)]
        for look in looks:
            with monkeypatch.context() as patched, failing(harness.simulated, "open", number=errno.ENOENT):
                patched.setattr(harness.simulated, "list_directory", look)
                with pytest.raises(Busy):
                    await store.read(chunks[0])
        assert harness.damages == []
        assert await store.read(chunks[0]) == payload(0)
        assert await store.read(chunks[1]) == payload(1)
        harness.simulated.unlink(harness.log(1))
        with pytest.raises(Corrupt):
            await store.read(chunks[0])
        with pytest.raises(NotFound):
            await store.read(chunks[0])
        assert [damage.chunk for damage in harness.damages] == chunks[:1]


async def test_a_piece_of_an_evacuation_is_done_later(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    write = FileEvacuation._write

    async with harness.store() as store:
        chunks = [await put(store, payload(n)) for n in range(4)]
        evacuation = store.evacuation(1)

        async def without_descriptors(self: FileEvacuation, piece: Piece) -> int:
            assert store._files.forget(1)
            with failing(harness.simulated, "open"):
                return await write(self, piece)

        with monkeypatch.context() as patched:
            patched.setattr(FileEvacuation, "_write", without_descriptors)
            before = evacuation.offset
            with pytest.raises(Busy):
                await evacuation.step()
            assert evacuation.offset == before
        assert harness.damages == []
        assert await store.holds(chunks) == [True] * 4
        while not evacuation.emptied:
            await evacuation.step()
        assert await evacuation.release()
        assert [await store.read(chunk) for chunk in chunks] == [payload(n) for n in range(4)]
    async with harness.store() as store:
        assert [await store.read(chunk) for chunk in chunks] == [payload(n) for n in range(4)]
        assert harness.damages == []


async def test_a_log_that_cannot_be_read_for_now_is_not_replayed_with_gaps(harness: Harness) -> None:
    harness.settings["file_bytes"] = 64 * 1024
    async with harness.store(abandon=True) as store:
        chunks = [await put(store, payload(n)) for n in range(4)]
    harness.index.unlink()
    header = harness.simulated.calls.get("pread", 0) + 1
    harness.simulated.fault = lambda kind, n: errno.ENOMEM if kind == "pread" and n > header else None
    with pytest.raises(OSError, match="memory"):
        await harness.make().open()
    harness.simulated.fault = lambda _kind, _n: None
    async with harness.store() as store:
        assert await store.holds(chunks) == [True] * 4
        assert harness.damages == []


async def test_a_scan_passes_over_what_the_medium_lost_only(harness: Harness) -> None:
    async with harness.store() as store:
        await put(store, payload(0))
    descriptor = harness.simulated.open(harness.log())
    size = harness.simulated.size(descriptor)

    def scanned() -> list[object]:
        return list(LogScan(harness.simulated, descriptor, size, None, start=16, verify_from=size).entries())

    with failing(harness.simulated, "pread", number=errno.EIO):
        assert [type(entry) for entry in scanned()] == [Gap]
    with failing(harness.simulated, "pread", number=errno.ENOMEM), pytest.raises(OSError, match="memory"):
        scanned()


@pytest.mark.parametrize("kind", ["create", "fsync_directory"])
async def test_a_new_log_file_waits_for_a_descriptor(harness: Harness, kind: str) -> None:
    async with harness.store() as store:
        await put(store, payload(0))
        with failing(harness.simulated, kind), pytest.raises(Busy):
            await put(store, payload(1))
        assert store.statistics().failure is None
        chunk = await put(store, payload(1))
        assert store.statistics().log_files == 2
    async with harness.store() as store:
        assert await store.read(chunk) == payload(1)


# -- descriptors of files that are gone


class Interrupting(SimulatedDisk):
    """Something happens between the opening of a file and the moment when that is noted."""

    def __init__(self) -> None:
        super().__init__()
        self.meanwhile: list[Callable[[], None]] = []

    def open(self, path: str) -> int:
        descriptor = super().open(path)
        if self.meanwhile:
            self.meanwhile.pop()()
        return descriptor


def log_files(disk: SimulatedDisk) -> LogFiles:
    files = LogFiles(disk, "d")
    disk.close(disk.create(files.path(1)))
    return files


def unlink(files: LogFiles) -> None:
    assert files.forget(1)
    files.disk.unlink(files.path(1))
    files.unlinked(1)


def assert_nothing_left(files: LogFiles, disk: SimulatedDisk) -> None:
    assert not disk._descriptors
    assert not files._unlinked
    assert not files._opening


def test_a_file_that_goes_while_it_is_opened_is_closed_by_its_last_reader() -> None:
    disk = Interrupting()
    files = log_files(disk)
    disk.meanwhile = [lambda: unlink(files)]
    files.pin(1)
    assert disk._descriptors
    files.unpin(1)
    assert_nothing_left(files, disk)


def test_so_it_is_when_two_open_it_at_once() -> None:
    """The first has opened it, it goes, the second opens it (before the name went) and is done; then the first notes what it has."""
    disk = Interrupting()
    files = log_files(disk)

    def another() -> None:
        disk.meanwhile = [lambda: unlink(files)]
        files.pin(1)
        files.unpin(1)

    disk.meanwhile = [another]
    files.pin(1)
    assert disk._descriptors
    files.unpin(1)
    assert_nothing_left(files, disk)


def test_nothing_is_remembered_of_a_file_that_could_not_be_opened() -> None:
    disk = Interrupting()
    files = log_files(disk)
    unlink(files)
    with pytest.raises(FileNotFoundError):
        files.pin(1)
    assert_nothing_left(files, disk)


# -- the index


def sqlite_error(code: int, kind: type[sqlite3.Error] = sqlite3.OperationalError) -> sqlite3.Error:
    error = kind("what happened")
    error.sqlite_errorcode = code
    return error


@pytest.mark.parametrize(
    ("error", "meaning"),
    [
        (sqlite_error(sqlite3.SQLITE_CORRUPT, sqlite3.DatabaseError), IndexDamaged),
        (sqlite_error(sqlite3.SQLITE_CORRUPT_INDEX, sqlite3.DatabaseError), IndexDamaged),
        (sqlite_error(sqlite3.SQLITE_NOTADB, sqlite3.DatabaseError), IndexDamaged),
        (sqlite_error(sqlite3.SQLITE_FORMAT, sqlite3.DatabaseError), IndexDamaged),
        (sqlite_error(sqlite3.SQLITE_IOERR), IndexDamaged),
        (sqlite_error(sqlite3.SQLITE_IOERR_READ), IndexDamaged),
        (sqlite_error(sqlite3.SQLITE_IOERR_SHORT_READ), IndexDamaged),
        (sqlite_error(sqlite3.SQLITE_IOERR_FSYNC), IndexDamaged),
        (sqlite_error(sqlite3.SQLITE_ERROR), IndexDamaged),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"), IndexDamaged),
        (sqlite_error(sqlite3.SQLITE_FULL), IndexFull),
        (sqlite_error(sqlite3.SQLITE_IOERR_SHMSIZE), IndexFull),
        (sqlite_error(sqlite3.SQLITE_CANTOPEN), IndexUnavailable),
        (sqlite_error(sqlite3.SQLITE_CANTOPEN_FULLPATH), IndexUnavailable),
        (sqlite_error(sqlite3.SQLITE_NOMEM), IndexUnavailable),
        (sqlite_error(sqlite3.SQLITE_BUSY), IndexUnavailable),
        (sqlite_error(sqlite3.SQLITE_BUSY_RECOVERY), IndexUnavailable),
        (sqlite_error(sqlite3.SQLITE_LOCKED), IndexUnavailable),
        (sqlite_error(sqlite3.SQLITE_IOERR_NOMEM), IndexUnavailable),
        (sqlite_error(sqlite3.SQLITE_IOERR_SHMOPEN), IndexUnavailable),
        (MemoryError(), IndexUnavailable),
        (OSError(errno.EIO, "I/O error"), IndexDamaged),
        (OSError(errno.ENOENT, "gone"), IndexDamaged),
        (OSError(errno.ENOSPC, "full"), IndexFull),
        (OSError(errno.EMFILE, "too many"), IndexUnavailable),
        (OSError(errno.EACCES, "no"), IndexUnavailable),
    ],
)
def test_what_an_error_says_of_the_index(error: Exception, meaning: type[Exception]) -> None:
    with pytest.raises((IndexDamaged, IndexFull)) as caught, _judged():
        raise error
    assert type(caught.value) is meaning


def test_an_index_that_cannot_be_used_is_an_error_that_can_be_told() -> None:
    assert issubclass(IndexUnavailable, HoldfastError)
    assert IndexUnavailable.retryable
    assert not issubclass(IndexUnavailable, IndexDamaged)


def no_descriptor(*_: object, **__: object) -> None:
    with _judged():
        raise sqlite_error(sqlite3.SQLITE_CANTOPEN)


async def test_a_good_index_is_not_thrown_away_for_want_of_descriptors(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with harness.store() as store:
        chunks = [await put(store, payload(n)) for n in range(3)]
    content = harness.index.read_bytes()
    with monkeypatch.context() as patched:
        patched.setattr(ChunkIndex, "_connect", no_descriptor)
        with pytest.raises(StoreFailed, match="can't be used now"):
            await harness.make().open()
    assert harness.index.read_bytes() == content
    store = harness.make()
    assert (await store.open()).rebuilt is None
    epoch = store._catalog.epoch
    with monkeypatch.context() as patched:
        patched.setattr(ChunkIndex, "reader", no_descriptor)
        with pytest.raises(Busy):
            await store.length(chunks[0])
        with pytest.raises(Busy):
            await put(store, payload(7))
    with monkeypatch.context() as patched:
        patched.setattr(IndexReader, "find", no_descriptor)
        with pytest.raises(Busy):
            await store.read(chunks[0])
    assert store._catalog.epoch == epoch
    assert store.statistics().failure is None
    assert [await store.read(chunk) for chunk in chunks] == [payload(n) for n in range(3)]
    await put(store, payload(7))
    await store.close()
    assert harness.damages == []


async def test_the_seal_is_not_broken_by_a_look_that_fails(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    async with harness.store() as store:
        await put(store, payload(0))

    def no_file(*_: object, **__: object) -> None:
        raise OSError(errno.EMFILE, "too many open files")

    with monkeypatch.context() as patched:
        patched.setattr("builtins.open", no_file)
        with pytest.raises(StoreFailed, match="too many open files"):
            await harness.make().open()
    store = harness.make()
    assert (await store.open()).rebuilt is None
    await store.close()


async def test_an_index_that_is_gone_is_built_anew(harness: Harness) -> None:
    async with harness.store() as store:
        chunk = await put(store, payload(0))
    async with harness.store() as store:
        for suffix in ("", "-wal", "-shm"):
            with suppress(FileNotFoundError):
                os.unlink(f"{harness.index}{suffix}")
        assert await store.holds([chunk]) == [True]
        assert await store.read(chunk) == payload(0)


async def until(store: LogChunkStore, harness: Harness, condition: Callable[[], bool]) -> None:
    """While time goes on for the store."""
    async with asyncio.timeout(10):
        while not condition():
            harness.clock.now += 1
            await store.settle()


async def test_what_the_index_did_not_take_is_written_later(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    harness.settings["flush_states"] = 4
    async with harness.store() as store:
        with monkeypatch.context() as patched:
            released: list[object] = []
            patched.setattr(ChunkIndex, "write", no_descriptor)
            patched.setattr(Ballast, "release", lambda *_arguments, **_named: released.append(1))
            chunks = [await put(store, payload_of(n, 10)) for n in range(10)]
            await until(store, harness, lambda: store._writer is not None and store._writer.index_error is not None)
            assert store.statistics().pending == 10
            assert not released, "the disk is not full"
        assert store.statistics().failure is None
        await until(store, harness, lambda: store.statistics().pending < 10)
        assert store._catalog.epoch == 0, "it was not built anew"
        chunks.append(await put(store, payload_of(10, 10)))
        monkeypatch.setattr(ChunkIndex, "write", no_descriptor)
    monkeypatch.undo()
    store = harness.make()
    assert (await store.open()).rebuilt is None
    assert await store.holds(chunks) == [True] * 11
    entry = (await store.describe(chunks[:1]))[0]
    assert entry is not None
    assert entry.references == (ALICE,)
    await store.close()
