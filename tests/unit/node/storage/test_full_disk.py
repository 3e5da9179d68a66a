"""A disk that is full, by users, or to the last block by somebody else: what gives space back goes on, and puts come back by themselves."""

from __future__ import annotations

import asyncio
import errno
import random
from pathlib import Path
from typing import NoReturn

import pytest

from cluster.errors import HoldfastError, NoSpace
from cluster.register.ballot import Version
from cluster.register.key import RegisterKey
from cluster.register.record import Record
from cluster.register.store import RegisterWrite
from node.storage.ballast import GROW_MARGIN_BYTES, RELEASE_BYTES, Ballast, default_ballast
from node.storage.chunk_compaction import ChunkCompaction
from node.storage.chunk_expiry import ChunkExpiry
from node.storage.chunk_index import IndexFull, IndexReader
from node.storage.chunk_store import LogChunkStore
from node.storage.disk import RealDisk, Space
from node.storage.file_evacuation import FileEvacuation
from node.storage.register_store import SqliteRegisterStore
from tests.support.simulated.disk import SimulatedDisk
from tests.support.small_file_system import fill, small_file_system
from tests.unit.node.storage.test_chunk_store import ALICE, BOB, Harness, chunk_of, everything, payload_of, put

MIB = 1 << 20
KIB = 1024


@pytest.fixture
def harness(tmp_path: Path) -> Harness:
    harness = Harness(tmp_path / "chunks")
    harness.settings |= {"grace_s": 0.0, "reserve_bytes": 4 * MIB, "ballast_bytes": 2 * MIB}
    harness.simulated.capacity = 64 * MIB
    return harness


def leave_free(harness: Harness, free: int) -> None:
    """Somebody else takes all but `free` bytes."""
    harness.simulated.capacity = harness.simulated._used() + free


async def give_back(store: LogChunkStore, harness: Harness) -> ChunkCompaction:
    """Expiry and compaction, as the daemon runs them."""
    expiry = ChunkExpiry(store)
    compaction = ChunkCompaction(store, harness.clock, rate=0)
    for _ in range(1000):
        more = await expiry.run_once()
        assert expiry.last_error is None
        more |= await compaction.run_once()
        assert compaction.last_error is None
        if not more:
            break
    return compaction


async def put_without_end(store: LogChunkStore, chunks: dict[bytes, bytes]) -> None:
    for number in range(1000):
        payload = payload_of(number, 256 * KIB)
        chunks[await put(store, payload)] = payload


async def empty(evacuation: FileEvacuation) -> None:
    while not evacuation.emptied:
        await evacuation.step()


def test_the_ballast_is_given_up_in_pieces_and_grows_back() -> None:
    disk = SimulatedDisk(capacity=32 * MIB)
    ballast = Ballast(disk, "/d")
    assert not ballast.release(), "there is none yet"
    ballast.open(8 * MIB)
    assert (ballast.held, ballast.missing, disk.space("/d").free) == (8 * MIB, 0, 24 * MIB)
    assert ballast.release(1)
    assert ballast.held == 8 * MIB - RELEASE_BYTES
    assert ballast.release(100 * MIB, keep=4 * MIB)
    assert ballast.held == 4 * MIB
    assert not ballast.release(1, keep=4 * MIB)
    disk.capacity = disk._used() + GROW_MARGIN_BYTES + RELEASE_BYTES - 1
    ballast.grow()
    assert ballast.held == 4 * MIB, "what is left stays for what it was released for"
    disk.capacity += 2 * MIB
    ballast.grow()
    assert 5 * MIB < ballast.held < 8 * MIB
    disk.capacity += 20 * MIB
    ballast.grow()
    assert ballast.missing == 0
    ballast.close()
    again = Ballast(disk, "/d")
    assert again.release(), "also before it is opened: a start on a full disk needs it"
    assert again.held == 7 * MIB
    again.open(2 * MIB)
    assert again.held == 2 * MIB, "a smaller setting gives space back"
    again.close()
    assert default_ballast(1 << 40) == 64 * MIB
    assert default_ballast(10 * MIB) == 5 * MIB


def test_a_ballast_that_cannot_be_allocated_is_missed_but_no_error() -> None:
    disk = SimulatedDisk(capacity=32 * MIB)
    disk.fault = lambda kind, _n: errno.ENOSPC if kind == "allocate" else None
    ballast = Ballast(disk, "/d")
    ballast.open(8 * MIB)
    assert (ballast.held, ballast.missing) == (0, 8 * MIB)
    disk.fault = lambda _kind, _n: None
    ballast.grow()
    assert ballast.held == 8 * MIB


def test_a_disk_that_cannot_tell_its_space_stops_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """The chunk writer's own thread asks: an error there would leave everybody waiting for ever."""
    disk = SimulatedDisk(capacity=32 * MIB)
    ballast = Ballast(disk, "/d")
    ballast.open(8 * MIB)
    assert ballast.release(4 * MIB)

    def broken(path: str) -> Space:
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(disk, "space", broken)
    ballast.grow()
    assert ballast.missing == 4 * MIB


async def test_an_index_without_room_to_be_read_refuses_and_goes_on(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with harness.store() as store:
        held = await put(store, payload_of(1, 5000))
        real = IndexReader.find_many

        def full(reader: IndexReader, chunks: object) -> NoReturn:
            raise IndexFull("database or disk is full")

        monkeypatch.setattr(IndexReader, "find_many", full)
        with pytest.raises(NoSpace):
            await put(store, payload_of(2, 5000))
        with pytest.raises(NoSpace):
            await store.holds([chunk_of(payload_of(3, 5000))])
        monkeypatch.setattr(IndexReader, "find_many", real)
        assert store.statistics().failure is None
        await put(store, payload_of(2, 5000))
        assert await store.drop_reference(held, ALICE.referrer)


async def test_users_leave_the_reserve_repairs_half_of_it_and_references_nothing(harness: Harness) -> None:
    async with harness.store() as store:
        assert store.statistics().ballast_bytes == 2 * MIB
        held = await put(store, payload_of(1, 5000))
        leave_free(harness, 4 * MIB + 100 * KIB)
        assert not store.short_of_space
        await put(store, payload_of(2, 90 * KIB))
        with pytest.raises(NoSpace):
            await put(store, payload_of(3, 90 * KIB))
        repaired = payload_of(4, 90 * KIB)
        await store.put(chunk_of(repaired), repaired, ALICE, repair=True)
        leave_free(harness, 2 * MIB + 50 * KIB)
        with pytest.raises(NoSpace):
            await store.put(chunk_of(payload_of(5, 90 * KIB)), payload_of(5, 90 * KIB), ALICE, repair=True)
        leave_free(harness, 0)
        assert await store.add_reference(held, BOB)
        assert await store.drop_reference(held, ALICE.referrer)
        assert store.statistics().ballast_bytes < 2 * MIB
        with pytest.raises(NoSpace):
            await put(store, payload_of(6, 100))
        harness.simulated.capacity += 20 * MIB
        harness.clock.now += 2
        await put(store, payload_of(6, 100))
        await store.unlink_dead_files()
        assert store.statistics().ballast_bytes == 2 * MIB, "it grew back"


async def test_users_do_not_get_what_the_ballast_misses(harness: Harness) -> None:
    async with harness.store() as store:
        await put(store, payload_of(1, 5000))
        store.release_ballast(2 * MIB)
        leave_free(harness, 5 * MIB)
        store._writer._grow_again_at = 1e9  # type: ignore[union-attr]  # it is open
        with pytest.raises(NoSpace):
            await put(store, payload_of(2, 90 * KIB))


async def test_a_disk_filled_to_the_last_block_gives_space_back(harness: Harness) -> None:
    harness.settings["file_bytes"] = 256 * KIB
    async with harness.store() as store:
        chunks = [await put(store, payload_of(number, 20 * KIB)) for number in range(60)]
        leave_free(harness, 0)
        for number, chunk in enumerate(chunks):
            if number % 4:
                assert await store.drop_reference(chunk, ALICE.referrer)
        assert store.short_of_space
        before = harness.simulated.space("").free
        job = await give_back(store, harness)
        assert job.files_emptied >= 3
        assert harness.simulated.space("").free > before
        assert sorted(entry.chunk for entry in await everything(store)) == sorted(chunks[::4])
        for number, chunk in enumerate(chunks[::4]):
            assert await store.read(chunk) == payload_of(4 * number, 20 * KIB)
    harness.index.unlink()
    async with harness.store() as store:
        assert sorted(entry.chunk for entry in await everything(store)) == sorted(chunks[::4])


async def test_moves_leave_half_of_the_ballast_to_deletes(harness: Harness) -> None:
    harness.settings["file_bytes"] = 8 * MIB
    async with harness.store() as store:
        chunks = [await put(store, payload_of(number, 512 * KIB)) for number in range(16)]
        await store.seal()
        leave_free(harness, 0)
        assert store.room_to_move() == 1 * MIB
        evacuation = store.evacuation(1)
        with pytest.raises(NoSpace):
            await empty(evacuation)
        assert MIB // 2 <= store.statistics().ballast_bytes <= 1 * MIB
        assert all(await asyncio.gather(*[store.drop_reference(chunk, ALICE.referrer) for chunk in chunks]))
        assert store.statistics().failure is None


@pytest.mark.parametrize("kind", ["pwritev", "truncate", "create", "allocate"])
async def test_the_nth_call_that_finds_no_room_costs_nothing_but_puts(tmp_path: Path, kind: str) -> None:
    for nth in range(1, 30, 2):
        harness = Harness(tmp_path / f"chunks-{nth}")
        harness.settings |= {
            "grace_s": 0.0,
            "reserve_bytes": 4 * MIB,
            "ballast_bytes": 2 * MIB,
            "file_bytes": 64 * KIB,
        }
        disk = harness.simulated
        chance = random.Random(nth)
        async with harness.store(abandon=True) as store:
            disk.calls.clear()
            disk.fault = lambda called, n, nth=nth: errno.ENOSPC if called == kind and n in {nth, nth + 1} else None  # type: ignore[misc]
            held: dict[bytes, bytes] = {}
            for number in range(40):
                payload = payload_of(number, 6 * KIB)
                try:
                    held[await put(store, payload)] = payload
                except NoSpace:
                    assert kind in {"pwritev", "create"}
                if held and chance.random() < 0.6:
                    victim = chance.choice(sorted(held))
                    assert await store.drop_reference(victim, ALICE.referrer), "never refused"
                    del held[victim]
                if number % 8 == 7:
                    await give_back(store, harness)
            assert store.statistics().failure is None
            disk.fault = lambda _called, _n: None
            await put(store, payload_of(1000, 6 * KIB))
            held[chunk_of(payload_of(1000, 6 * KIB))] = payload_of(1000, 6 * KIB)
            await give_back(store, harness)
            assert {entry.chunk for entry in await everything(store)} == set(held)
        harness.index.unlink()
        async with harness.store() as store:
            assert {entry.chunk for entry in await everything(store)} == set(held)
            for chunk, payload in held.items():
                assert await store.read(chunk) == payload


async def test_what_could_not_be_cut_back_is_not_found_again(harness: Harness) -> None:
    """The disk is so full that even the undoing of a write is refused; the next, shorter write must not leave the rest behind it."""
    async with harness.store(abandon=True) as store:
        kept = await put(store, payload_of(1, 3000))
        disk = harness.simulated
        disk.calls.clear()
        disk.fault = lambda kind, n: errno.ENOSPC if (kind, n) in {("pwritev", 1), ("truncate", 1)} else None
        puts = [put(store, payload_of(number, 3000)) for number in range(2, 6)]
        results = await asyncio.gather(*puts, return_exceptions=True)
        assert isinstance(results[0], NoSpace), "with it those that the writer found queued behind it"
        held = {kept, *(result for result in results if isinstance(result, bytes))}
        assert await store.add_reference(kept, BOB)
        assert store.statistics().failure is None
    harness.index.unlink()
    async with harness.store() as store:
        assert {entry.chunk for entry in await everything(store)} == held


def register_write(number: int) -> RegisterWrite:
    key = RegisterKey("heads", b"p", number.to_bytes(4, "big"))
    return RegisterWrite(1, key, Record(Version(1, "n", number), bytes([number % 251]) * 2000))


async def test_a_real_file_system_filled_to_the_last_block(tmp_path: Path) -> None:
    """Registers commit, references drop, space comes back, puts work again; a start on the full disk works too."""
    with small_file_system(tmp_path, 96 * MIB) as mount:
        harness = Harness(mount / "chunks", RealDisk())
        harness.settings |= {
            "grace_s": 0.0,
            "reserve_bytes": 24 * MIB,
            "ballast_bytes": 12 * MIB,
            "file_bytes": 4 * MIB,
        }
        failures: list[HoldfastError] = []
        store = harness.make()
        await store.open()
        registers = SqliteRegisterStore.open(mount, failures.append, store.release_ballast)
        registers.begin_boot(b"s" * 16)
        chunks: dict[bytes, bytes] = {}
        with pytest.raises(NoSpace):
            await put_without_end(store, chunks)
        assert len(chunks) > 80
        fill(mount / "foreign")
        assert harness.disk.space(str(mount)).free < 64 * KIB
        for number in range(200):
            await registers.commit([register_write(number)])
        kept = {chunk: payload for number, (chunk, payload) in enumerate(chunks.items()) if number % 3 == 0}
        gone = [chunk for chunk in chunks if chunk not in kept]
        for chunk in gone[:20]:
            assert await store.drop_reference(chunk, ALICE.referrer)
        # a stop and a start while there is not one block
        fill(mount / "foreign")
        await store.close()
        await registers.close()
        store = harness.make()
        await asyncio.to_thread(store.ensure_room_to_start)
        registers = SqliteRegisterStore.open(mount, failures.append, store.release_ballast)
        registers.begin_boot(b"s" * 16)
        await store.open()
        fill(mount / "foreign")
        for chunk in gone[20:]:
            assert await store.drop_reference(chunk, ALICE.referrer)
        await registers.commit([register_write(1000)])
        assert not failures
        with pytest.raises(NoSpace):
            await put(store, payload_of(5000, 256 * KIB))
        job = await give_back(store, harness)
        assert job.files_emptied
        used = store.statistics().log_bytes
        assert used < 0.6 * 256 * KIB * len(chunks)
        (mount / "foreign").unlink()
        harness.clock.now += 2
        fresh = [await put(store, payload_of(6000 + number, 256 * KIB)) for number in range(20)]
        assert {entry.chunk for entry in await everything(store)} == {*kept, *fresh}
        for chunk, payload in kept.items():
            assert await store.read(chunk) == payload
        await store.unlink_dead_files()
        assert store.statistics().ballast_bytes == 12 * MIB
        assert len((await registers.page(1, None, 1000)).entries) == 201
        await registers.close()
        await store.close()
