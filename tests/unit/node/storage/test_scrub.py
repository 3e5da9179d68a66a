"""The scrub: what it finds, how fast it goes, what a restart keeps, and what it can promise about age."""

from __future__ import annotations

import errno
import random
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path

import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from cluster.chunks.store import ChunkEntry, ChunkStatistics, Reference
from cluster.errors import Corrupt, NotFound
from node.storage import scrub as module
from node.storage.chunk_index import Damage
from node.storage.chunk_store import ChunkStoreSettings, LogChunkStore
from node.storage.lanes import THREADS
from node.storage.scrub import SAVE_EVERY_S, SEEK_BYTES, Scrubber, ScrubSettings, share_of, wait_s
from node.storage.scrub_progress import FILE_NAME, ScrubFile, ScrubProgress
from tests.support.simulated.disk import Loss, SimulatedDisk

REFERENCE = Reference(b"alice-0123456789", 3)
CHUNKS = 40
PERIOD_S = 10_000.0
FAST = 1 << 40
"""A rate that holds nothing back."""


class ManualClock:
    def __init__(self) -> None:
        self.now = 100.0
        self.set_by = 1_700_000_000.0

    def monotonic(self) -> float:
        return self.now

    def wall(self) -> float:
        return self.now + self.set_by

    async def sleep(self, seconds: float) -> None:
        raise AssertionError("who runs the job sleeps")


class Bench:
    """A disk with a store's log, and the scrubs that run on it."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir()
        self.directory = str(directory)
        self.disk = SimulatedDisk()
        self.clock = ManualClock()
        self.damages: list[tuple[str, Damage]] = []
        self.verified: list[tuple[bytes, float]] = []
        self.lane = THREADS.open("scrub")
        self.store = self.make()
        self.scrubber = self.scrub()

    def make(self) -> LogChunkStore:
        def damaged(damage: Damage) -> None:
            self.damages.append((threading.current_thread().name, damage))

        return LogChunkStore(
            ChunkStoreSettings(self.directory, reserve_bytes=0),
            disk=self.disk,
            clock=self.clock,
            random=random.Random(1),
            on_damage=damaged,
        )

    def scrub(self, period_s: float = PERIOD_S, rate: int = FAST) -> Scrubber:
        self.scrubber = Scrubber(
            self,
            ScrubFile(self.disk, self.directory),
            self.clock,
            ScrubSettings(period_s, rate),
            self.lane,
        )
        return self.scrubber

    # -- the store, watched

    async def verify(self, chunk: bytes) -> int:
        self.verified.append((chunk, self.clock.now))
        return await self.store.verify(chunk)

    async def list_partition(self, partition: int, bits: int, after: bytes | None, limit: int) -> list[ChunkEntry]:
        return await self.store.list_partition(partition, bits, after, limit)

    def statistics(self) -> ChunkStatistics:
        return self.store.statistics()

    async def fill(self, count: int = CHUNKS, size: int = 600) -> list[bytes]:
        chunks = []
        for number in range(count):
            payload = random.Random(number).randbytes(size)
            chunks.append(blake3(payload).digest())
            await self.store.put(chunks[-1], payload, REFERENCE)
        return sorted(chunks)

    async def go(self, until: Callable[[], bool], deadline_s: float = 3 * PERIOD_S) -> None:
        """Run the job as a daemon does."""
        end = self.clock.now + deadline_s
        while not until():
            assert self.clock.now < end
            if not await self.scrubber.run_once() and not until():
                assert 0 < self.scrubber.interval_s <= module.PAUSE_LIMIT_S
                self.clock.now += self.scrubber.interval_s

    async def passes(self, count: int) -> None:
        await self.go(lambda: self.scrubber.passes >= count)

    def error(self) -> str:
        return self.scrubber.last_error or ""

    async def saved(self) -> None:
        """So much later the progress is on disk, however slowly it goes."""
        before = len(self.verified)
        self.clock.now += SAVE_EVERY_S
        await self.scrubber.run_once()
        assert len(self.verified) == before

    @asynccontextmanager
    async def restarted(self) -> AsyncIterator[None]:
        await self.store.close()
        yield
        self.store = self.make()
        await self.store.open()


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    bench = Bench(tmp_path / "chunks")
    await bench.store.open()
    yield bench
    await bench.store.close()
    await bench.lane.close()


# -- the pace


@given(
    st.lists(st.floats(0, 1), max_size=30),
    st.floats(0, 1e7),
    st.integers(1, 1 << 30),
    st.integers(0, 1 << 23),
)
def test_a_pass_ends_when_its_time_is_over_or_as_the_rate_allows(
    places: list[float], left_s: float, rate: int, work: int
) -> None:
    now = 0.0
    done = 0.0
    for following in [*sorted(places), 1.0]:
        wait = wait_s(done, following, left_s - now, work, rate)
        assert wait >= work / rate
        now += wait
        done = following
    unhurried = (len(places) + 1) * work / rate
    assert now >= left_s * (1 - 1e-9)
    assert now <= left_s + unhurried + 1e-3


@given(st.floats(0, 0.9), st.floats(0.01, 1), st.floats(1, 1e6))
def test_the_pace_is_even(done: float, part: float, left_s: float) -> None:
    following = done + part * (1 - done)
    assert wait_s(done, min(following, 1.0), left_s, 0, 1) == pytest.approx(part * left_s, rel=1e-6)
    assert wait_s(done, min(following, 1.0), -left_s, 7, 1) == 7


async def test_every_chunk_is_verified_once_in_the_period_and_evenly(bench: Bench) -> None:
    chunks = await bench.fill()
    start = bench.clock.now
    await bench.passes(1)
    assert [chunk for chunk, _ in bench.verified] == chunks
    assert bench.clock.now - start == pytest.approx(PERIOD_S, rel=0.01)
    for chunk, when in bench.verified:
        assert when - start == pytest.approx(share_of(chunk) * PERIOD_S, abs=0.01 * PERIOD_S)
    assert bench.scrubber.chunks_verified == CHUNKS
    assert bench.scrubber.bytes_verified == CHUNKS * 600


async def test_it_never_goes_faster_than_its_rate(bench: Bench) -> None:
    await bench.fill()
    bench.scrub(period_s=1.0, rate=SEEK_BYTES // 2)
    await bench.passes(1)
    times = [when for _, when in bench.verified]
    assert all(later - earlier >= 2.0 - 1e-6 for earlier, later in pairwise(times))
    assert times[-1] - times[0] == pytest.approx(2.0 * (CHUNKS - 1), rel=0.01)
    # nobody called for an hour: that is not caught up in a burst
    bench.verified.clear()
    bench.clock.now += 3600
    start = bench.clock.now
    await bench.go(lambda: len(bench.verified) >= 20)
    assert bench.clock.now - start >= 2.0 * 19 - module.BACKLOG_S


async def test_a_request_begins_a_pass_at_once_at_the_rate(bench: Bench) -> None:
    chunks = await bench.fill()
    bench.scrub(rate=SEEK_BYTES)
    await bench.go(lambda: len(bench.verified) == 20)
    bench.verified.clear()
    bench.scrubber.start_now()
    start = bench.clock.now
    await bench.go(lambda: len(bench.verified) == 5)
    assert bench.scrubber.waiting_for == "the rate"
    bench.scrubber.start_now()  # it is on its way
    await bench.passes(1)
    assert [chunk for chunk, _ in bench.verified] == chunks
    assert bench.clock.now - start == pytest.approx(CHUNKS, abs=2)
    assert bench.scrubber.progress == ScrubProgress(bench.clock.wall(), start + bench.clock.set_by)


async def test_an_empty_store_is_no_hurry(bench: Bench) -> None:
    start = bench.clock.now
    await bench.passes(2)
    assert bench.clock.now - start == pytest.approx(2 * PERIOD_S, rel=0.01)
    assert (bench.scrubber.queue_length, bench.scrubber.waiting_for) == (0, "the next pass")


async def test_it_tells_how_much_is_left_and_why_it_waits(bench: Bench) -> None:
    await bench.fill()
    await bench.go(lambda: bench.scrubber.chunks_verified == CHUNKS // 2)
    assert not await bench.scrubber.run_once()
    assert bench.scrubber.queue_length == pytest.approx(CHUNKS / 2, abs=CHUNKS / 5)
    assert bench.scrubber.waiting_for == "the pace that its period needs"
    await bench.go(lambda: bench.scrubber.chunks_verified == CHUNKS)
    await bench.scrubber.run_once()
    assert bench.scrubber.queue_length == 0


# -- what it finds


def rot(bench: Bench, payload: bytes) -> None:
    path = f"{bench.directory}/chunks-00000001.log"
    bench.disk.flip(path, bench.disk.bytes_of(path).index(payload) + len(payload) // 2)


async def test_flipped_bytes_are_found_and_told_with_the_chunks_id(bench: Bench) -> None:
    chunks = await bench.fill()
    rotten = {blake3(payload).digest() for payload in (random.Random(number).randbytes(600) for number in (3, 20, 39))}
    for number in (3, 20, 39):
        rot(bench, random.Random(number).randbytes(600))
    await bench.passes(1)
    assert bench.scrubber.damaged_found == 3
    assert bench.scrubber.chunks_verified == CHUNKS - 3
    assert {damage.chunk for _, damage in bench.damages} == rotten
    assert {thread for thread, _ in bench.damages} == {threading.current_thread().name}
    assert await bench.store.holds(chunks) == [chunk not in rotten for chunk in chunks]
    await bench.passes(2)
    assert bench.scrubber.damaged_found == len(bench.damages) == 3


async def test_a_chunk_that_goes_meanwhile_is_passed_over_and_one_that_comes_needs_nothing(bench: Bench) -> None:
    chunks = await bench.fill()
    await bench.go(lambda: len(bench.verified) == 5)
    assert await bench.store.drop_partition(chunks[20][0], 8) >= 1
    await bench.store.put(b"\xff" * 32, b"named by its writer", REFERENCE)
    await bench.passes(1)
    assert bench.scrubber.damaged_found == 0
    assert bench.scrubber.chunks_verified < CHUNKS
    assert b"\xff" * 32 not in [chunk for chunk, _ in bench.verified]


async def test_what_is_verified_comes_from_the_disk_in_a_readers_thread(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    chunk = (await bench.fill(1, 40_000))[0]
    calls: list[tuple[str, str]] = []
    for name in ("pread", "drop_cached"):
        real = getattr(bench.disk, name)

        def watched(*arguments: object, name: str = name, real: Callable[..., object] = real) -> object:
            calls.append((name, threading.current_thread().name.split("_")[0]))
            return real(*arguments)

        monkeypatch.setattr(bench.disk, name, watched)
    assert await bench.store.verify(chunk) == 40_000
    assert [name for name, _ in calls] == ["drop_cached", "pread", "pread", "drop_cached"]
    assert {thread for _, thread in calls} == {"chunk-reader"}
    with pytest.raises(NotFound):
        await bench.store.verify(bytes(32))


async def test_a_fault_on_the_way_costs_no_copy(bench: Bench) -> None:
    chunk = (await bench.fill(1))[0]
    good = bench.disk.calls.get("pread", 0)
    bench.disk.fault = lambda kind, number: errno.EIO if kind == "pread" and number <= good + 2 else None
    assert await bench.store.verify(chunk) == 600
    bench.disk.fault = lambda kind, _: errno.EIO if kind == "pread" else None
    with pytest.raises(Corrupt):
        await bench.store.verify(chunk)
    assert [damage.chunk for _, damage in bench.damages] == [chunk]


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENOMEM])
async def test_a_chunk_that_cannot_be_looked_at_is_verified_later(bench: Bench, number: int) -> None:
    chunks = await bench.fill()
    await bench.go(lambda: len(bench.verified) >= 5)
    done = bench.scrubber.chunks_verified
    bench.disk.fault = lambda kind, _: number if kind == "pread" else None
    await bench.go(lambda: len(bench.verified) >= 8)
    assert len({chunk for chunk, _ in bench.verified[5:]}) == 1, "the same one, again and again"
    assert bench.scrubber.chunks_verified == done
    assert "can't be read now" in bench.error()
    bench.disk.fault = lambda *_: None
    await bench.passes(1)
    assert not bench.error()
    assert bench.scrubber.chunks_verified == CHUNKS
    assert {chunk for chunk, _ in bench.verified} == set(chunks)
    assert bench.scrubber.damaged_found == 0
    assert bench.damages == []


async def test_every_way_to_damage_tells_which_chunk_it_is(bench: Bench) -> None:
    payloads = [random.Random(number).randbytes(600) for number in range(5)]
    names = [blake3(payload).digest() for payload in payloads]
    await bench.fill(5)

    def told() -> list[bytes]:
        assert {thread for thread, _ in bench.damages} <= {threading.current_thread().name}
        chunks = [damage.chunk for _, damage in bench.damages]
        bench.damages.clear()
        return chunks

    for number in range(3):
        rot(bench, payloads[number])
    with pytest.raises(Corrupt):
        await bench.store.read(names[0])
    assert told() == [names[0]]
    await bench.store.put(names[1], payloads[1], REFERENCE)
    assert told() == [names[1]]
    with pytest.raises(Corrupt):
        await bench.store.verify(names[2])
    assert told() == [names[2]]
    # the run ends before anybody has acted on it
    await bench.store.abandon()
    bench.store = bench.make()
    await bench.store.open()
    assert told() == names[:3]
    # in the newest batch, of which payloads are read too: a place that can't be read, told from a torn write
    large = random.Random(9).randbytes(40_000)
    await bench.store.put(blake3(large).digest(), large, REFERENCE)
    await bench.store.abandon()
    bad = bench.disk.bytes_of(f"{bench.directory}/chunks-00000001.log").index(large) + 20_000
    real = bench.disk.pread

    def unreadable(descriptor: int, length: int, offset: int) -> bytes:
        if offset <= bad < offset + length:
            raise OSError(errno.EIO, "a bad sector")
        return real(descriptor, length, offset)

    bench.disk.pread = unreadable  # type: ignore[method-assign]  # a disk with a bad sector
    (Path(bench.directory) / "chunks.sqlite").unlink()
    bench.store = bench.make()
    await bench.store.open()
    assert told()[-1] == blake3(large).digest()


# -- restarts


async def test_a_restart_goes_on(bench: Bench) -> None:
    chunks = await bench.fill()
    start = bench.clock.now
    await bench.go(lambda: len(bench.verified) == 20)
    await bench.saved()
    async with bench.restarted():
        bench.clock.now += 500
    bench.scrub()
    await bench.passes(1)
    assert [chunk for chunk, _ in bench.verified] == chunks
    assert bench.clock.now - start == pytest.approx(PERIOD_S, rel=0.01)


async def test_a_power_cut_costs_at_most_what_was_not_saved(bench: Bench) -> None:
    chunks = await bench.fill()
    bench.scrub(rate=SEEK_BYTES // 4)
    bench.scrubber.start_now()
    await bench.go(lambda: len(bench.verified) == 30)
    await bench.store.abandon()
    bench.disk = bench.disk.crashed(len(bench.disk.history), Loss(keep=0), random.Random(1))
    bench.store = bench.make()
    await bench.store.open()
    bench.verified.clear()
    bench.scrub(rate=SEEK_BYTES // 4)
    await bench.passes(1)
    again = [chunk for chunk, _ in bench.verified]
    assert again == chunks[-len(again) :]
    assert 10 <= len(again) <= 10 + SAVE_EVERY_S / 4 + 1


@pytest.mark.parametrize("how", ["missing", "flipped", "empty", "other version", "torn"])
async def test_without_its_progress_it_begins_anew_and_promises_nothing(bench: Bench, how: str) -> None:
    chunks = await bench.fill()
    await bench.passes(1)
    await bench.go(lambda: len(bench.verified) == CHUNKS + 20)
    path = f"{bench.directory}/{FILE_NAME}"
    data = bench.disk.bytes_of(path)
    bench.disk.unlink(path)
    if how != "missing":
        bad = {
            "flipped": data.replace(b'"requested": false', b'"requested": true'),
            "empty": b"",
            "other version": b'{"version": 2, "crc": 0}',
            "torn": data[:-9],
        }[how]
        descriptor = bench.disk.create(path)
        bench.disk.pwritev(descriptor, [bad], 0)
        bench.disk.close(descriptor)
    bench.verified.clear()
    start = bench.clock.now
    bench.scrub()
    await bench.scrubber.run_once()
    assert bench.scrubber.oldest_verification_s is None
    await bench.passes(1)
    assert [chunk for chunk, _ in bench.verified] == chunks
    assert bench.scrubber.oldest_verification_s == pytest.approx(bench.clock.now - start)


def test_progress_comes_back_as_it_was_saved() -> None:
    disk = SimulatedDisk()
    file = ScrubFile(disk, "/d")
    assert file.load() is None
    for progress in (
        ScrubProgress(1.5),
        ScrubProgress(1_700_000_000.123456, 5.0, bytes(range(32)), True),
    ):
        file.save(progress)
        assert file.load() == progress
    disk.create("/d/scrub.json.new")  # left by a crash
    file.save(ScrubProgress(2.0))
    assert file.load() == ScrubProgress(2.0)
    disk.fault = lambda kind, _: errno.ENOSPC if kind in {"create", "open"} else None
    with pytest.raises(OSError, match="space"):
        file.save(ScrubProgress(3.0))


async def test_errors_are_kept_and_tried_again(bench: Bench) -> None:
    await bench.fill()
    bench.disk.fault = lambda kind, _: errno.ENOSPC if kind == "create" else None
    assert not await bench.scrubber.run_once()
    assert "No space" in bench.error()
    bench.disk.fault = lambda *_: None
    bench.clock.now += SAVE_EVERY_S
    await bench.passes(1)
    assert not bench.error()
    async with bench.restarted():
        assert not await bench.scrubber.run_once()
        assert bench.error() == "the chunk store is not open"
    await bench.passes(2)
    assert not bench.error()


# -- what it can promise


async def test_the_oldest_verification_is_bounded(bench: Bench) -> None:
    clock, scrubber = bench.clock, bench.scrubber
    assert scrubber.oldest_verification_s is None
    opened = clock.now
    await scrubber.run_once()  # an empty store: all that will ever be held is written from now on
    await bench.fill()
    clock.now += 7
    assert scrubber.oldest_verification_s == pytest.approx(clock.now - opened)
    await bench.passes(1)
    assert scrubber.oldest_verification_s == pytest.approx(PERIOD_S, rel=0.01)
    second = clock.now
    await bench.go(lambda: len(bench.verified) == 20)
    assert scrubber.oldest_verification_s == pytest.approx(clock.now - opened)
    await bench.go(lambda: len(bench.verified) == CHUNKS)
    await scrubber.run_once()
    assert scrubber.oldest_verification_s == pytest.approx(clock.now - second, abs=module.PAUSE_LIMIT_S)
    await bench.go(lambda: len(bench.verified) == CHUNKS + 20)
    assert scrubber.passes == 2
    scrubber.start_now()  # of what the third pass has not reached the second still answers
    requested = clock.now
    await bench.go(lambda: len(bench.verified) == CHUNKS + 21)
    assert scrubber.oldest_verification_s == pytest.approx(clock.now - second, abs=module.PAUSE_LIMIT_S)
    await bench.passes(3)
    assert scrubber.oldest_verification_s == pytest.approx(clock.now - requested, abs=1)


async def test_every_chunk_is_as_young_as_is_said(bench: Bench) -> None:
    chance = random.Random(5)
    await bench.scrubber.run_once()
    fresh = dict.fromkeys(await bench.fill(), bench.clock.now)
    seen = 0
    for _ in range(300):
        bench.clock.now += chance.random() * 200
        if chance.random() < 0.02:
            bench.scrubber.start_now()
        if chance.random() < 0.05:
            bench.scrub()
        await bench.scrubber.run_once()
        for chunk, when in bench.verified[seen:]:
            fresh[chunk] = when
        seen = len(bench.verified)
        bound = bench.scrubber.oldest_verification_s
        assert bound is not None
        assert max(bench.clock.now - when for when in fresh.values()) <= bound + 1e-6
    assert seen > 3 * CHUNKS


async def test_a_clock_that_is_set_back_stops_nothing(bench: Bench) -> None:
    await bench.fill()
    await bench.go(lambda: len(bench.verified) == 20)
    await bench.saved()
    bench.clock.set_by -= 1e9
    bench.scrub()
    start = bench.clock.now
    await bench.passes(1)
    assert bench.clock.now - start <= PERIOD_S * 1.01
    assert len(bench.verified) == CHUNKS
