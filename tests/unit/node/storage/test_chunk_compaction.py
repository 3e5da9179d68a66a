"""Compaction on a store: space comes back, what is held stays, damage on the way is set aside, and the budget is kept."""

from __future__ import annotations

import errno
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.chunks.store import Reference
from cluster.errors import Conflict, NotFound
from node.storage import file_evacuation
from node.storage.chunk_compaction import (
    COMPACT_BELOW,
    COMPACTION_INTERVAL_S,
    MEASURED_S,
    MEASURED_WHEN_SHORT_S,
    MEASURING_SHARE,
    ChunkCompaction,
    choose,
    live_size,
)
from node.storage.chunk_expiry import ChunkExpiry
from node.storage.chunk_record import FILE_HEADER_BYTES, MOVE_REFERENCES_LIMIT, Kind, pack_header
from node.storage.chunk_recovery import ChunkRecovery
from node.storage.chunk_relocation import RESTATED_LIMIT
from node.storage.chunk_store import LogChunkStore
from node.storage.chunk_writer import Rebuild
from node.storage.disk import RealDisk
from node.storage.file_evacuation import FileEvacuation
from node.storage.file_ledger import FileFigures
from node.storage.log_scan import Gap, LogScan
from tests.support.simulated.disk import Failure, SimulatedDisk
from tests.unit.node.storage.test_chunk_store import ALICE, BOB, Harness, everything, payload_of, put

KIB = 1024


@pytest.fixture
def harness(tmp_path: Path) -> Harness:
    harness = Harness(tmp_path / "chunks")
    harness.settings["grace_s"] = 0.0
    return harness


def job_of(store: LogChunkStore, harness: Harness, **options: int) -> ChunkCompaction:
    return ChunkCompaction(store, harness.clock, **{"worth_bytes": 8 * KIB, **options})


async def compact(job: ChunkCompaction) -> None:
    while await job.run_once():
        assert job.last_error is None
    assert job.last_error is None


async def fill(store: LogChunkStore, count: int = 60) -> list[bytes]:
    """Chunks of 5 KiB: twelve to a file of 64 KiB."""
    return [await put(store, payload_of(number, 5 * KIB)) for number in range(count)]


async def thin_out(store: LogChunkStore, chunks: list[bytes]) -> list[bytes]:
    """Delete all but every fourth; returns what is left."""
    for number, chunk in enumerate(chunks):
        if number % 4:
            await store.drop_reference(chunk, ALICE.referrer)
    await ChunkExpiry(store).run_once()
    return chunks[::4]


def test_the_choice_is_the_file_with_the_smallest_live_part_and_then_the_oldest() -> None:
    mib = 1 << 20
    half = FileFigures(1, 100 * mib, 10, 49 * mib)
    dead = FileFigures(2, 100 * mib, 0, 0, covering=1)
    free = FileFigures(3, 100 * mib, 0, 0)
    full = FileFigures(4, 100 * mib, 10, 85 * mib)
    tiny = FileFigures(5, 100 * mib, 700_000, 30 * mib)
    small = FileFigures(6, 7 * mib, 1, 1 * mib)
    active = FileFigures(7, 100 * mib, 0, 0, covering=1)
    accounts = [half, dead, free, full, tiny, small, active]
    assert live_size(tiny) > COMPACT_BELOW * tiny.size, "headers of tiny chunks are not waste"
    assert choose(accounts, short=False, room=1 << 40) == [2, 1]
    assert choose(accounts, short=False, room=10 * mib) == [2], "what does not fit is not begun"
    assert choose(accounts, short=True, room=1 << 40) == [2, 6, 1, 4, 5]
    assert choose(accounts, short=True, room=10 * mib) == [2, 6]
    assert choose([], short=True, room=0) == []


@pytest.mark.parametrize("real", [False, True])
async def test_mostly_dead_files_are_rewritten_and_nothing_held_changes(tmp_path: Path, real: bool) -> None:
    harness = Harness(tmp_path / "chunks", RealDisk() if real else None)
    harness.settings["grace_s"] = 0.0
    async with harness.store() as store:
        kept = await thin_out(store, await fill(store))
        await store.add_reference(kept[1], BOB)
        before = await everything(store)
        used = store.statistics().log_bytes
        job = job_of(store, harness)
        await compact(job)
        assert job.files_emptied >= 4
        assert job.moved_bytes > 0
        assert job.waiting_for
        assert await everything(store) == before
        assert store.statistics().log_bytes < used / 2
        assert job.freed_bytes > used / 2
        for number, chunk in enumerate(kept):
            assert await store.read(chunk) == payload_of(4 * number, 5 * KIB)
            assert await store.read(chunk, 17, 1000) == payload_of(4 * number, 5 * KIB)[17:1017]
    harness.index.unlink()
    async with harness.store() as store:
        assert await everything(store) == before
        for number, chunk in enumerate(kept):
            assert await store.read(chunk) == payload_of(4 * number, 5 * KIB)


async def test_a_dead_file_held_back_by_an_older_one_goes(harness: Harness) -> None:
    async with harness.store() as store:
        old = await fill(store, 24)
        kept = old[0]
        for chunk in old[1:]:  # their ends stand in later files, which cover the first as long as it is there
            await store.drop_reference(chunk, ALICE.referrer)
        await ChunkExpiry(store).run_once()
        for number in range(100, 112):
            chunk = await put(store, payload_of(number, 5 * KIB))
            await store.drop_reference(chunk, ALICE.referrer)
        await ChunkExpiry(store).run_once()
        await store.seal()
        held_back = [account for account in store.log_files()[:-1] if not account.live]
        assert held_back
        evacuation = store.evacuation(held_back[0].number)
        while not evacuation.emptied:
            await evacuation.step()
        assert evacuation.moved_bytes == 0
        assert await evacuation.release()
        assert store.log_files()[0].number == 1
        assert [entry.chunk for entry in await everything(store)] == [kept]
    harness.index.unlink()
    async with harness.store() as store:
        assert [entry.chunk for entry in await everything(store)] == [kept]


async def test_changes_in_the_middle_of_an_evacuation_are_kept(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_evacuation, "PIECE_RECORDS", 2)
    async with harness.store() as store:
        kept = await thin_out(store, await fill(store))
        job = job_of(store, harness)
        turn = 0
        while await job.run_once():
            chunk = kept[turn % len(kept)]
            if turn % 3 == 0:
                await store.add_reference(chunk, BOB)
            elif turn % 3 == 1:
                await store.drop_reference(chunk, ALICE.referrer)
            else:
                await put(store, payload_of(1000 + turn, 3 * KIB), BOB)
            turn += 1
        assert job.last_error is None
        assert job.files_emptied
        state = await everything(store)
    harness.index.unlink()
    async with harness.store() as store:
        assert await everything(store) == state


async def test_a_damaged_copy_is_condemned_on_the_way(harness: Harness) -> None:
    async with harness.store() as store:
        kept = await thin_out(store, await fill(store))
        state = await store._find(kept[0])
        assert state is not None
        harness.simulated.flip(harness.log(state.file), state.offset + 2000)
        await compact(job_of(store, harness))
        with pytest.raises(NotFound):
            await store.read(kept[0])
        assert [damage.chunk for damage in harness.damages] == [kept[0]]
        assert len(await everything(store)) == len(kept) - 1


async def test_what_stands_behind_a_damaged_header_is_found_by_the_index(harness: Harness) -> None:
    async with harness.store() as store:
        kept = await thin_out(store, await fill(store))
        state = await store._find(kept[0])
        assert state is not None
        await store.add_reference(kept[-1], BOB)
        harness.simulated.flip(harness.log(state.file), state.offset + 50)
        first = store.log_files()[0].number
        await compact(job_of(store, harness))
        assert first not in [account.number for account in store.log_files()]
        assert [damage.chunk for damage in harness.damages] == [kept[0]]
        assert sorted(entry.chunk for entry in await everything(store)) == sorted(kept[1:])


async def test_the_budget_is_kept_by_pausing(harness: Harness) -> None:
    async with harness.store() as store:
        await thin_out(store, await fill(store))
        job = job_of(store, harness, rate=10 * KIB)
        paused = 0.0
        while await job.run_once():
            paused += job.pause_s  # the clock stands still
        written = job.moved_bytes
        assert paused == pytest.approx(written / (10 * KIB), rel=0.1)


async def test_a_file_that_is_read_goes_later(harness: Harness) -> None:
    async with harness.store() as store:
        await thin_out(store, await fill(store, 20))
        job = job_of(store, harness)
        number = 1
        store._files.pin(number)
        while await job.run_once():
            pass
        assert job.waiting_for
        assert "readers" in job.waiting_for
        store._files.unpin(number)
        await compact(job)
        assert number not in [account.number for account in store.log_files()]


async def test_an_index_that_is_rebuilt_meanwhile_begins_the_file_anew(harness: Harness) -> None:
    async with harness.store() as store:
        kept = await thin_out(store, await fill(store))
        evacuation = store.evacuation(1)
        while not evacuation.emptied:
            await evacuation.step()
        await store._submit(Rebuild(store._future(), store._catalog.epoch, "a test"))
        assert evacuation.void
        assert not await evacuation.release() or not store.log_files()[0].covering
        await compact(job_of(store, harness))
        assert sorted(entry.chunk for entry in await everything(store)) == sorted(kept)


async def test_many_references_of_one_chunk_go_along_in_one_record(harness: Harness) -> None:
    """One by one, each costs the writer a look at all of them, and everybody waits for it."""
    async with harness.store() as store:
        chunk = await put(store, payload_of(1, 5 * KIB))
        await put(store, payload_of(2, 5 * KIB))
        await store.seal()
        for number in range(RESTATED_LIMIT + 1):
            await store.add_reference(chunk, Reference(number.to_bytes(16), 3))
        second = store.log_files()[-1].number
        await store.seal()
        before = await everything(store)
        evacuation = store.evacuation(second)
        while not evacuation.emptied:
            await evacuation.step()
        assert evacuation.restated_bytes < 5 * KIB + 17 * (RESTATED_LIMIT + 2) + 200
        assert await evacuation.release()
        assert await everything(store) == before
        state = await store._find(chunk)
        assert state is not None
        assert {held.file for held in state.references} == {state.file}
    harness.index.unlink()
    async with harness.store() as store:
        assert await everything(store) == before


async def test_a_file_for_which_there_is_no_room_makes_way_for_one_that_fits(harness: Harness) -> None:
    """Otherwise a disk that others filled meanwhile stays full, although the other file costs next to nothing."""
    harness.settings["file_bytes"] = 256 * KIB
    async with harness.store() as store:
        chunks = await fill(store, 120)
        await store.drop_reference(chunks[0], ALICE.referrer)
        for chunk in chunks[55:95]:
            await store.drop_reference(chunk, ALICE.referrer)
        await ChunkExpiry(store).run_once()
        job = job_of(store, harness, worth_bytes=4 * KIB)
        job._at_hand = store.evacuation(1)  # chosen while there was room
        harness.simulated.capacity -= harness.simulated.space("").free - 130 * KIB
        store._reserve = 1 << 40
        for _ in range(40):
            await job.run_once()
            if job.files_emptied:
                break
        numbers = [account.number for account in store.log_files()]
        assert 1 in numbers
        assert 2 not in numbers
        assert job.moved_bytes < 60 * KIB, "nothing was moved in vain"


async def test_a_file_in_which_something_stays_live_is_left(harness: Harness) -> None:
    """Whatever the reason: one file that can't go must not keep all the others from it."""
    async with harness.store() as store:
        await thin_out(store, await fill(store, 40))
        job = job_of(store, harness)
        await job.run_once()
        assert job._at_hand is not None
        stuck = job._at_hand.number
        store._catalog.ledger.accounts[stuck].live += 1
        await compact(job)
        assert job.files_emptied
        assert stuck in [account.number for account in store.log_files()]
        store._catalog.ledger.accounts[stuck].live -= 1
        await compact(job)
        await store.unlink_dead_files()
        assert stuck not in [account.number for account in store.log_files()]


async def drop_some(store: LogChunkStore) -> tuple[list[bytes], list[bytes], int]:
    """Chunks with references in files that stay more than half live, and a sealed file (its number is returned) of nothing but
    cancelling records against them. All of those are needed, although its account tells of nothing live."""
    chunks = [await put(store, payload_of(number, 500)) for number in range(40)]
    await store.seal()
    referrers = [number.to_bytes(16) for number in range(50)]
    for chunk in chunks:
        for referrer in referrers:
            await store.add_reference(chunk, Reference(referrer, 3))
    await store.seal()
    number = store.log_files()[-1].number
    for chunk in chunks:
        for referrer in referrers[:20]:
            await store.drop_reference(chunk, referrer)
    await store.seal()
    assert next(account.number for account in store.log_files() if not account.live) == number
    return chunks, referrers[20:], number


async def test_cancelling_records_that_are_needed_are_not_written_again_for_nothing(harness: Harness) -> None:
    """They would make another file that looks just as dead, and that one the next: the log would grow for ever."""
    async with harness.store() as store:
        chunks, left, number = await drop_some(store)
        used = store.statistics().log_bytes
        before = await everything(store)
        job = job_of(store, harness)
        for _ in range(200):
            if not await job.run_once():
                break
        else:
            pytest.fail("there is no end to it")
        assert store.statistics().log_bytes <= used
        assert number in [account.number for account in store.log_files()]
        assert await everything(store) == before
        for chunk in chunks:
            for referrer in left:
                await store.drop_reference(chunk, referrer)
        harness.clock.now += 60
        await compact(job)
        await store.unlink_dead_files()
        assert number not in [account.number for account in store.log_files()]
        before = await everything(store)
    harness.index.unlink()
    async with harness.store() as store:
        assert await everything(store) == before


def measurements(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The files that are measured from now on, each time that one has been."""
    measured: list[int] = []
    measure = FileEvacuation.measure

    async def counted(self: FileEvacuation) -> bool:
        more = await measure(self)
        if not more:
            measured.append(self.number)
        return more

    monkeypatch.setattr(FileEvacuation, "measure", counted)
    return measured


async def test_a_file_is_measured_again_only_when_its_account_has_changed_and_there_is_time(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = measurements(monkeypatch)
    async with harness.store() as store:
        _, _, number = await drop_some(store)
        account = store._catalog.ledger.accounts[number]
        job = job_of(store, harness)
        for _ in range(3):
            await compact(job)
            harness.clock.now += 60
        assert measured.count(number) == 1
        for times, covers in ((2, {1}), (2, {2}), (3, {1, 2})):
            account.covers = covers
            account.changes += 1
            await compact(job)
            await compact(job)
            assert measured.count(number) == times
            harness.clock.now += 0.6 * COMPACTION_INTERVAL_S


@pytest.mark.parametrize("short", [False, True])
async def test_what_was_measured_gets_old(harness: Harness, monkeypatch: pytest.MonkeyPatch, short: bool) -> None:
    """What a deletion costs to be written again hangs on whether the chunk is held again, in another file: the account of the file with
    the deletion does not tell when it becomes cheap."""
    measured = measurements(monkeypatch)
    lasts = MEASURED_WHEN_SHORT_S if short else MEASURED_S

    async def delete(chunks: list[bytes]) -> None:
        for chunk in chunks:
            await store.drop_reference(chunk, ALICE.referrer)
        await ChunkExpiry(store).run_once()

    async with harness.store() as store:
        await fill(store, 8)
        again = [await put(store, payload_of(100 + number, 5 * KIB)) for number in range(3)]
        await store.seal()
        dead = [await put(store, payload_of(200 + number, 5 * KIB)) for number in range(7)]
        await delete(dead + again)
        await store.seal()
        for number in range(3):
            await put(store, payload_of(100 + number, 5 * KIB))
        await put(store, payload_of(300, 5 * KIB))
        await store.seal()
        job = job_of(store, harness, worth_bytes=28 * KIB)
        await compact(job)
        store._reserve = 1 << 60 if short else 0
        assert measured == [2]
        assert 2 in [account.number for account in store.log_files()]
        await delete(again)
        harness.clock.now += 0.9 * lasts
        await compact(job)
        assert measured.count(2) == 1
        harness.clock.now += 0.2 * lasts
        used = store.statistics().log_bytes
        await compact(job)
        assert measured.count(2) == 2
        assert 2 not in [account.number for account in store.log_files()]
        assert store.statistics().log_bytes < used
        before = await everything(store)
    harness.index.unlink()
    async with harness.store() as store:
        assert await everything(store) == before


@pytest.mark.parametrize("short", [False, True])
async def test_what_cannot_be_emptied_is_not_tried_for_ever(
    harness: Harness, monkeypatch: pytest.MonkeyPatch, short: bool
) -> None:
    """Each time that it is tried anew the log may grow by a part of it."""
    tried: list[int] = []

    async def in_vain(self: FileEvacuation) -> int:
        tried.append(self.number)
        self.restated_bytes += self.size // 16
        raise Conflict("too many references")

    monkeypatch.setattr(FileEvacuation, "step", in_vain)
    async with harness.store() as store:
        await thin_out(store, await fill(store, 20))
        store._reserve = 1 << 60 if short else 0
        job = job_of(store, harness)
        for _ in range(30):
            while await job.run_once():
                pass
            harness.clock.now += 2 * MEASURED_S
        assert 2 <= tried.count(1) <= (12 if short else 4)
        kept = store._catalog.ledger.accounts[1]
        kept.live -= 1
        kept.live_bytes -= 5 * KIB
        while await job.run_once():
            pass
        assert tried[-1] == 1, "it is another one now"
        kept.live += 1
        kept.live_bytes += 5 * KIB


async def test_measuring_again_what_got_old_takes_its_share_of_the_time(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = measurements(monkeypatch)
    measure = FileEvacuation.measure

    async def slow(self: FileEvacuation) -> bool:
        harness.clock.now += MEASURED_WHEN_SHORT_S
        return await measure(self)

    monkeypatch.setattr(FileEvacuation, "measure", slow)
    async with harness.store() as store:
        await drop_some(store)
        store._reserve = 1 << 60
        job = job_of(store, harness, worth_bytes=60 * KIB)
        await compact(job)
        measured.clear()
        began = harness.clock.now
        for _ in range(500):
            if not await job.run_once():
                harness.clock.now += 60
        assert len(measured) > 3
        assert len(measured) * MEASURED_WHEN_SHORT_S <= MEASURING_SHARE * (harness.clock.now - began)


async def test_a_file_that_is_not_eligible_keeps_no_other_from_being_measured_again(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was measured while space was short, say: it is mostly live, and its turn would never end."""
    measured = measurements(monkeypatch)
    async with harness.store() as store:
        _, _, number = await drop_some(store)
        job = job_of(store, harness)
        await compact(job)
        assert measured.count(number) == 1
        assert 1 not in measured
        one = job._measured[number]
        job._measured[1] = one._replace(at=one.at - 1, state=(-1, -1))
        job._measured[number] = one._replace(state=(-1, -1))
        harness.clock.now += 60
        await compact(job)
        assert measured.count(number) == 2


async def test_a_file_that_goes_while_it_is_looked_at_ends_nothing(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever unlinks dead files is on other threads: between two looks at a file it may be gone."""
    async with harness.store(abandon=True) as store:
        await thin_out(store, await fill(store))
        job = job_of(store, harness)
        while job._at_hand is None or job._measuring:
            await job.run_once()
        number = job._at_hand.number

        def gone() -> int:
            if number in store._catalog.ledger.accounts:
                store._catalog.ledger.remove([number])
            return 0

        with monkeypatch.context() as patch:
            patch.setattr(store, "room_to_move", gone)
            assert await job.run_once()
        await compact(job)
        assert job.last_error is None
        assert job.files_emptied > 2


class Untouched(set[int]):
    """May be counted, and nothing else."""

    def copy(self) -> set[int]:
        raise AssertionError("copied")

    def __iter__(self) -> Iterator[int]:
        raise AssertionError("walked")


async def test_looking_for_files_does_not_copy_what_they_cover(harness: Harness) -> None:
    """With thousands of files of which each covers hundreds that held up the event loop."""
    async with harness.store(abandon=True) as store:
        await fill(store)
        account = store._catalog.ledger.accounts[2]
        account.covers = Untouched({1})
        assert store.log_files()[1] == (2, account.size, account.live, account.live_bytes, 1, account.changes)
        assert store.log_file(2) == store.log_files()[1]
        assert store.log_file(99) is None
        await compact(job_of(store, harness))


@pytest.mark.parametrize(("short", "pause_s"), [(False, 2.0 * (1 / MEASURING_SHARE - 1)), (True, 0.0)])
async def test_measuring_takes_its_share_of_the_time_and_all_of_it_when_space_is_short(
    harness: Harness, monkeypatch: pytest.MonkeyPatch, short: bool, pause_s: float
) -> None:
    measure = FileEvacuation.measure

    async def slow(self: FileEvacuation) -> bool:
        harness.clock.now += 2.0
        return await measure(self)

    monkeypatch.setattr(FileEvacuation, "measure", slow)
    async with harness.store() as store:
        await thin_out(store, await fill(store))
        if short:
            store._reserve = 1 << 60
        job = job_of(store, harness)
        assert await job.run_once(), "a file is chosen"
        assert await job.run_once(), "it is measured"
        assert job.pause_s == pytest.approx(pause_s)


async def test_a_file_that_is_opened_while_it_goes_gives_its_space_back(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between its last close and its unlinking somebody may open it: the space is the disk's again when that descriptor is closed."""
    async with harness.store() as store:
        for chunk in await fill(store, 30):
            await store.drop_reference(chunk, ALICE.referrer)
        files = store._files
        pinned: list[int] = []
        unlink = harness.simulated.unlink

        def late(path: str) -> None:
            number = int(path[-12:-4])
            files.pin(number)
            if pinned:
                files.unpin(number)  # one is read and done with, the other one still read
            pinned.append(number)
            unlink(path)

        monkeypatch.setattr(harness.simulated, "unlink", late)
        await store.expire(100)
        await store.seal()
        await store.unlink_dead_files()
        assert len(pinned) >= 2
        assert files._open.keys() & set(pinned) == {pinned[0]}
        files.unpin(pinned[0])
        assert not files._open.keys() & set(pinned)
        assert len(harness.simulated._descriptors) == len(files._open)


@pytest.mark.parametrize("real", [False, True])
async def test_a_folder_that_could_not_be_synced_once_holds_nothing_back(
    tmp_path: Path, real: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The name is gone by then, and the file is unlinked once more: it, and those that wait for it, go for good."""
    disk = RealDisk() if real else SimulatedDisk()
    harness = Harness(tmp_path / "chunks", disk)
    harness.settings["grace_s"] = 0.0
    async with harness.store() as store:
        chunks = await fill(store, 30)
        for chunk in chunks:
            await store.drop_reference(chunk, ALICE.referrer)
        await store.expire(100)
        await store.seal()

        def broken(_path: str) -> None:
            raise OSError(errno.EIO, "broken")

        with monkeypatch.context() as patch:
            patch.setattr(disk, "fsync_directory", broken)
            assert await store.unlink_dead_files() == 0
            assert harness.log(1) not in [
                f"{harness.directory}/{name}" for name in disk.list_directory(harness.directory)
            ]
            assert await store.unlink_dead_files() == 0, "nothing younger before it is gone for good"
        assert len(store.log_files()) > 3
        assert await store.unlink_dead_files() >= 3
        assert len(store.log_files()) == 1
        chunk = await put(store, payload_of(1, 5 * KIB))
    async with harness.store() as store:
        assert [entry.chunk for entry in await everything(store)] == [chunk]


async def test_what_a_process_unlinked_before_it_ended_does_not_come_back(harness: Harness) -> None:
    """It ended before it could sync the folder; the next one must not unlink what is younger as if that had been done."""
    async with harness.store(abandon=True) as store:
        for chunk in await fill(store, 30):
            await store.drop_reference(chunk, ALICE.referrer)
        await store.expire(100)
        await store.seal()
        harness.simulated.failures.append(Failure("fsync_directory", errno.EIO))
        assert await store.unlink_dead_files() == 0
    harness.simulated.crash(random.Random(1), power=False)
    assert harness.log(1) in harness.simulated.durable()
    async with harness.store() as store:
        assert harness.log(1) not in harness.simulated.durable()
        assert [account.number for account in store.log_files()] == [2, 3, 4]


def test_a_search_does_not_read_what_foreign_bytes_claim() -> None:
    """A stored copy of a chunk log is full of headers of moves, each of which may claim megabytes of references."""
    disk = SimulatedDisk()
    descriptor = disk.create("/log")
    claim = pack_header(Kind.MOVE, 0, 0, 7, 0, length=5, references=MOVE_REFERENCES_LIMIT)
    claims = claim * 500
    size = FILE_HEADER_BYTES + len(claims) + (6 << 20)
    disk.pwritev(descriptor, [claims], FILE_HEADER_BYTES)
    disk.truncate(descriptor, size)
    read = 0
    pread = disk.pread

    def counted(descriptor: int, length: int, offset: int) -> bytes:
        nonlocal read
        read += length
        return pread(descriptor, length, offset)

    disk.pread = counted  # type: ignore[method-assign]
    entries = list(LogScan(disk, descriptor, size, 8, start=FILE_HEADER_BYTES, verify_from=size).entries())
    assert entries == [Gap(FILE_HEADER_BYTES, size - FILE_HEADER_BYTES)]
    assert read < 3 * size


async def test_a_damaged_move_is_named(harness: Harness) -> None:
    async with harness.store() as store:
        kept = await thin_out(store, await fill(store))
        await compact(job_of(store, harness))
        state = await store._find(kept[0])
        assert state is not None
        record = Gap(state.offset, 6 * KIB)
        recovery = ChunkRecovery(store._files, store._catalog, store._log, store._ballast)
        recovery._list_files()
        assert recovery._named(state.file, record) == kept[0]
