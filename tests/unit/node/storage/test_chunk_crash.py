"""Crashes and failing calls: what was acknowledged is there afterwards, what was not is there whole or not at all.

One run of a store records its whole history on the simulated disk. Then the power is cut behind every event of it, with what was not yet
synced kept, dropped, torn at many places, or left as holes and garbage, and the store is opened on what is left.
"""

from __future__ import annotations

import asyncio
import errno
import os
import random
import shutil
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest
from blake3 import blake3

from cluster.chunks.store import Reference, StoreFailed
from cluster.errors import Corrupt, HoldfastError, NoSpace
from node.storage import chunk_store as chunk_store_module
from node.storage import chunk_writer
from node.storage.chunk_compaction import ChunkCompaction
from node.storage.chunk_expiry import ChunkExpiry
from node.storage.chunk_record import HEADER_BYTES
from node.storage.chunk_store import ChunkStoreSettings, LogChunkStore
from node.storage.disk import Space
from tests.support.simulated.disk import Loss, SimulatedDisk
from tests.unit.node.storage.naive_trees import check_trees, use_small_trees

References = dict[bytes, int]
State = References | None
"""A chunk's references, None if it isn't held."""

REFERRERS = [bytes([letter]) * 16 for letter in b"abc"]


class FrozenClock:
    """Time that does not pass: without a grace period nothing waits for it."""

    def monotonic(self) -> float:
        return 5.0

    def wall(self) -> float:
        return 0.0

    async def sleep(self, seconds: float) -> None:
        raise AssertionError("the store never sleeps")


def make(directory: Path, disk: SimulatedDisk, *, file_bytes: int = 24 * 1024) -> LogChunkStore:
    directory.mkdir(exist_ok=True)
    return LogChunkStore(
        ChunkStoreSettings(str(directory), grace_s=0.0, file_bytes=file_bytes, reserve_bytes=0),
        disk=disk,
        clock=FrozenClock(),
        random=random.Random(len(disk.history)),
    )


@dataclass(frozen=True)
class Begun:
    """Mark in the history: a change of `chunk` to `state` has been asked for."""

    chunk: bytes
    state: tuple[tuple[bytes, int], ...] | None


@dataclass(frozen=True)
class Done:
    """Mark in the history: the change was acknowledged."""

    chunk: bytes


@dataclass
class Workload:
    """Changes in rounds; in a round each chunk is changed at most once, so that what may be found is the state before or after."""

    disk: SimulatedDisk
    chance: random.Random
    payloads: dict[bytes, bytes] = field(default_factory=dict)
    states: dict[bytes, References] = field(default_factory=dict)

    async def change(self, chunk: bytes, state: State, act: Callable[[], Awaitable[object]]) -> None:
        self.disk.note(Begun(chunk, None if state is None else tuple(sorted(state.items()))))
        await act()
        self.disk.note(Done(chunk))
        if state is None:
            self.states.pop(chunk, None)
        else:
            self.states[chunk] = state

    async def round(self, store: LogChunkStore, width: int) -> None:
        held = sorted(self.states)
        self.chance.shuffle(held)
        jobs = [self.any(store, held.pop() if held else None) for _ in range(width)]
        await asyncio.gather(*jobs)

    async def any(self, store: LogChunkStore, chunk: bytes | None) -> None:
        chance = self.chance
        kind = chance.choice(["put", "put", "put", "again", "refer", "drop", "drop"]) if chunk else "put"
        referrer, replicas = chance.choice(REFERRERS), chance.randrange(1, 4)
        reference = Reference(referrer, replicas)
        if kind == "put" or chunk is None:
            payload = chance.randbytes(chance.choice([0, 10, 700, 4096, 9000, 20_000]))
            fresh = blake3(payload).digest()
            if fresh in self.payloads:
                return
            self.payloads[fresh] = payload
            await self.change(fresh, {referrer: replicas}, lambda: store.put(fresh, payload, reference))
            return
        state = self.states[chunk]
        if kind == "again":
            await self.change(
                chunk, {**state, referrer: replicas}, lambda: store.put(chunk, self.payloads[chunk], reference)
            )
        elif kind == "refer":
            await self.change(chunk, {**state, referrer: replicas}, lambda: store.add_reference(chunk, reference))
        else:
            left = {one: count for one, count in state.items() if one != referrer}
            await self.change(chunk, left, lambda: store.drop_reference(chunk, referrer))

    async def release(self, store: LogChunkStore, keep: int, every: int = 1) -> None:
        """Drop the references of all but the newest few chunks (or of every second one), so that whole log files die (or half of them)."""
        for referrer in REFERRERS:
            jobs = []
            for chunk in list(self.states)[:-keep:every]:
                state = self.states[chunk]
                if referrer in state:
                    left = {one: count for one, count in state.items() if one != referrer}
                    jobs.append(self.change(chunk, left, partial(store.drop_reference, chunk, referrer)))
            await asyncio.gather(*jobs)

    async def expire(self, store: LogChunkStore) -> None:
        doomed = [chunk for chunk, state in self.states.items() if not state]
        for chunk in doomed:
            self.disk.note(Begun(chunk, None))
        await ChunkExpiry(store).run_once()
        for chunk in doomed:
            self.disk.note(Done(chunk))
            del self.states[chunk]

    async def compact(self, store: LogChunkStore, pieces: int = 1000, *, busy: bool = True) -> int:
        """Empty log files, if `busy` while other changes go on; returns how many went."""
        job = ChunkCompaction(store, FrozenClock(), worth_bytes=1000)
        store._reserve = 1 << 50  # space is short: every file with a gain
        for piece in range(pieces):
            more = await job.run_once()
            assert job.last_error is None
            if not more:
                break
            if busy and piece % 3 == 0:
                await self.round(store, 1)
        return job.files_emptied


def allowed(disk: SimulatedDisk, at: int) -> dict[bytes, list[State]]:
    """What may be found of each chunk after a crash behind the first `at` events."""
    found: dict[bytes, list[State]] = {}
    for event in disk.history[:at]:
        if isinstance(event.note, Begun):
            state = None if event.note.state is None else dict(event.note.state)
            found.setdefault(event.note.chunk, [None]).append(state)
        elif isinstance(event.note, Done):
            del found[event.note.chunk][:-1]
    return found


async def observed(store: LogChunkStore) -> dict[bytes, State]:
    entries = await store.list_partition(0, 0, None, 100_000)
    return {
        entry.chunk: {reference.referrer: reference.replicas for reference in entry.references} for entry in entries
    }


async def check(
    store: LogChunkStore, payloads: dict[bytes, bytes], expected: dict[bytes, list[State]], label: str
) -> None:
    found = await observed(store)
    assert set(found) <= set(expected), f"{label}: a chunk that nobody put"
    for chunk, states in expected.items():
        assert found.get(chunk) in states, f"{label}: {found.get(chunk)} is none of {states}"
    for chunk in found:
        assert await store.read(chunk) == payloads[chunk], label
    for referrer in REFERRERS:
        listed = await store.list_referrer(referrer, None, 100_000)
        assert listed == sorted(chunk for chunk, state in found.items() if state and referrer in state), label
    check_trees(store.trees(), found)
    store._catalog.ledger.check()


def losses(chance: random.Random, last_write: int) -> list[Loss]:
    """Ways to lose what was not synced; `last_write` is the size of the newest unsynced write."""
    chosen = [Loss(), Loss(keep=0), Loss(keep=0, names=False), Loss(names=False)]
    if last_write:
        edges = [1, 4, HEADER_BYTES - 1, HEADER_BYTES, HEADER_BYTES + 4, last_write - 1, last_write - 9]
        chosen += [Loss(torn=min(max(edge, 0), last_write)) for edge in chance.sample(edges, 3)]
        chosen += [Loss(torn=chance.randrange(last_write)) for _ in range(2)]
        chosen += [Loss(holes=rate, garbage=garbage) for rate, garbage in ((0.5, True), (0.1, True), (1.0, False))]
    return chosen


@pytest.fixture(autouse=True)
def small_flushes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunk_writer, "FLUSH_STATES", 12)
    monkeypatch.setattr(chunk_store_module, "READERS", 1)
    use_small_trees(monkeypatch)


@pytest.mark.parametrize("seed", [1, 2])
async def test_power_cut_behind_every_write(tmp_path: Path, seed: int) -> None:
    disk = SimulatedDisk()
    work = Workload(disk, random.Random(seed))
    live = tmp_path / "live"
    indexes: list[tuple[int, Path]] = []
    emptied = 0
    for session in range(3):
        store = make(live, disk)
        await store.open()
        for _ in range(3):
            await work.round(store, 5)
        await work.release(store, 4)
        await work.expire(store)
        for _ in range(3):
            await work.round(store, 5)
        await work.release(store, 1, every=2)
        await work.expire(store)
        await store.seal()
        emptied += await work.compact(store, 4 if session == 1 else 1000)
        await (store.close() if session == 1 else store.abandon())
        saved = tmp_path / f"index-{session}"
        saved.mkdir()
        for path in live.iterdir():
            shutil.copy(path, saved)
        indexes.append((len(disk.history), saved))
    chance = random.Random(seed)
    cases = 0
    deleted = sum(isinstance(event.note, Begun) and event.note.state is None for event in disk.history)
    assert deleted > 3
    rolls = sum(event.kind == "create" for event in disk.history)
    assert rolls > 5
    assert any(event.kind == "unlink" for event in disk.history)
    assert emptied >= 3
    for at in range(len(disk.history) + 1):
        if at and disk.history[at - 1].kind == "note":
            continue
        last = disk.history[at - 1] if at else None
        options = losses(chance, len(last.data) if last is not None and last.kind == "write" else 0)
        older = [path for when, path in indexes if when <= at]
        for loss in chance.sample(options, min(len(options), 2)):
            cases += 1
            label = f"seed {seed}, behind event {at} {last and last.kind}, {loss}"
            left = disk.crashed(at, loss, chance)
            # the disk's paths name the live directory: the index, if one is there, is put into its place
            shutil.rmtree(live)
            live.mkdir()
            if older and chance.random() < 0.5:
                for path in older[-1].iterdir():
                    shutil.copy(path, live)
            store = make(live, left)
            await store.open()
            expected = allowed(disk, at)
            await check(store, work.payloads, expected, label)
            settled = {chunk: [state] for chunk, state in (await observed(store)).items()}
            extra = chance.randbytes(50)
            name = blake3(extra).digest()
            await store.put(name, extra, Reference(REFERRERS[0], 1))
            if cases % 3 == 0:
                await ChunkExpiry(store).run_once()
                await Workload(left, chance).compact(store, busy=False)
                expired = {chunk for chunk, state in settled.items() if state == [{}]}
                settled = {chunk: state for chunk, state in settled.items() if chunk not in expired}
                assert set(await observed(store)) == {*settled, name}, label
            await store.abandon()
            if cases % 4 == 0:
                (live / "chunks.sqlite").unlink()
            # a second power cut, with nothing kept that was not synced: what was shown once stays
            left = left.crashed(len(left.history), Loss(keep=0, names=False), chance)
            store = make(live, left)
            await store.open()
            await check(
                store, {**work.payloads, name: extra}, {**settled, name: [{REFERRERS[0]: 1}]}, f"{label}, opened again"
            )
            assert store.statistics().quarantined == 0, f"{label}: a torn write was taken for damage"
            await store.abandon()
    assert cases > 150


@pytest.mark.parametrize(
    ("kind", "number"),
    [
        ("pwritev", errno.EIO),
        ("fdatasync", errno.EIO),
        ("fdatasync", errno.ENOSPC),
        ("fsync_directory", errno.EIO),
        ("create", errno.EIO),
    ],
)
async def test_a_call_that_fails_poisons_the_store_and_loses_nothing(tmp_path: Path, kind: str, number: int) -> None:
    failures = 0
    for nth in range(1, 40, 3):
        disk = SimulatedDisk()
        work = Workload(disk, random.Random(nth))
        live = tmp_path / f"live-{nth}"
        store = make(live, disk)
        await store.open()
        disk.calls.clear()
        disk.fault = lambda called, n, nth=nth: number if called == kind and n == nth else None  # type: ignore[misc]
        failed: HoldfastError | None = None
        for _ in range(6):
            results = await asyncio.gather(*[work.round(store, 1) for _ in range(1)], return_exceptions=True)
            for result in results:
                if isinstance(result, HoldfastError):
                    failed = failed or result
                elif result is not None:
                    raise result
            await asyncio.sleep(0)
        disk.fault = lambda _called, _n: None
        if failed is None:
            await store.abandon()
            continue
        failures += 1
        assert isinstance(failed, StoreFailed)
        with pytest.raises(StoreFailed):
            await store.put(bytes(32), b"", Reference(REFERRERS[0], 1))
        for chunk, state in work.states.items():
            with pytest.raises(StoreFailed):
                await store.drop_reference(chunk, next(iter(state), REFERRERS[0]))
            assert await store.read(chunk) == work.payloads[chunk], "what was acknowledged is still read"
        assert store.statistics().failure
        await store.close()
        for keep in (None, 0):
            left = disk.crashed(len(disk.history), Loss(keep=keep), random.Random(1))
            for index in (True, False):
                if not index:
                    (live / "chunks.sqlite").unlink()
                store = make(live, left)
                await store.open()
                await check(store, work.payloads, allowed(disk, len(disk.history)), f"{kind} {nth} {keep} {index}")
                await store.abandon()
    assert failures or kind in {"fsync_directory", "create"}
    if kind in {"fsync_directory", "create"}:
        await _fail_while_rolling(tmp_path / "rolling", kind, number)


async def _fail_while_rolling(live: Path, kind: str, number: int) -> None:
    disk = SimulatedDisk()
    store = make(live, disk)
    await store.open()
    payloads = [random.Random(one).randbytes(20_000) for one in range(3)]
    names = [blake3(payload).digest() for payload in payloads]
    await store.put(names[0], payloads[0], Reference(REFERRERS[0], 1))
    disk.fault = lambda called, _n: number if called == kind else None
    with pytest.raises(StoreFailed):
        await store.put(names[1], payloads[1], Reference(REFERRERS[0], 1))
    await store.abandon()
    disk.fault = lambda _called, _n: None
    store = make(live, disk)
    await store.open()
    assert await store.holds(names) == [True, False, False]
    await store.put(names[2], payloads[2], Reference(REFERRERS[0], 1))
    await store.close()


@pytest.mark.parametrize("nth", range(1, 9))
async def test_a_full_disk_in_the_middle_of_an_append_leaves_the_log_usable(tmp_path: Path, nth: int) -> None:
    disk = SimulatedDisk()
    live = tmp_path / "live"
    store = make(live, disk, file_bytes=1 << 20)
    await store.open()
    payloads = [random.Random(one).randbytes(5000 + one) for one in range(30)]
    names = [blake3(payload).digest() for payload in payloads]
    disk.calls.clear()
    disk.fault = lambda called, n: errno.ENOSPC if called == "pwritev" and n == nth else None
    stored: list[bytes] = []
    refused: list[bytes] = []
    dropped: list[bytes] = []

    async def put(number: int) -> None:
        try:
            await store.put(names[number], payloads[number], Reference(REFERRERS[0], 1))
        except NoSpace:
            refused.append(names[number])
        else:
            stored.append(names[number])

    async def drop(name: bytes) -> None:
        assert await store.drop_reference(name, REFERRERS[0])
        dropped.append(name)

    for start in range(0, 30, 5):
        victims = [name for name in stored[-2:] if name not in dropped]
        await asyncio.gather(*[put(number) for number in range(start, start + 5)], *[drop(name) for name in victims])
    if nth <= 6:
        assert refused
    assert len(stored) >= 20
    assert set(await observed(store)) == set(stored)
    assert store.statistics().failure is None
    await store.abandon()
    disk.fault = lambda _called, _n: None
    for keep in (None, 0):
        left = disk.crashed(len(disk.history), Loss(keep=keep), random.Random(1))
        store = make(live, left, file_bytes=1 << 20)
        await store.open()
        found = await observed(store)
        assert set(found) == set(stored)
        for name, state in found.items():
            assert state == ({} if name in dropped else {REFERRERS[0]: 1})
            assert await store.read(name) == payloads[names.index(name)]
        await store.abandon()


async def test_a_really_full_disk_refuses_puts_and_takes_deletes(tmp_path: Path) -> None:
    disk = SimulatedDisk()
    store = make(tmp_path / "live", disk)
    await store.open()
    names: list[bytes] = []
    for number in range(20):
        payload = random.Random(number).randbytes(3000)
        names.append(blake3(payload).digest())
        await store.put(names[-1], payload, Reference(REFERRERS[0], 1))
    # somebody else fills the disk behind the reserve's back, up to a few hundred bytes
    disk.capacity = disk._used() + 700
    disk.space = lambda path: Space(1 << 40, 1 << 39)  # type: ignore[method-assign]  # what it said before
    with pytest.raises(NoSpace):
        await store.put(bytes(32), bytes(3000), Reference(REFERRERS[0], 1))
    assert store.statistics().failure is None
    results = await asyncio.gather(
        store.put(bytes(32), bytes(3000), Reference(REFERRERS[0], 1)),
        *[store.drop_reference(name, REFERRERS[0]) for name in names[:5]],
        return_exceptions=True,
    )
    assert isinstance(results[0], NoSpace)
    assert results[1:] == [True] * 5, "deletes of the same batch go through"
    assert len(await observed(store)) == 20
    with pytest.raises(NoSpace):
        await asyncio.gather(*[store.drop_reference(name, REFERRERS[0]) for name in names[5:]])
    assert store.statistics().failure is None
    disk.capacity += 100_000
    assert await store.drop_reference(names[10], REFERRERS[0])
    await store.close()


async def test_a_put_is_not_built_upon_a_copy_that_a_kill_left_unsynced(tmp_path: Path) -> None:
    """The process dies between write and fdatasync, or the fdatasync failed; the copy is only in the page cache when the next start
    finds it whole and a put of the same chunk is answered on its strength. A power cut then must not take it away."""
    payload = random.Random(1).randbytes(9000)
    name = blake3(payload).digest()
    for fault in ("fdatasync", None):
        disk = SimulatedDisk()
        live = tmp_path / f"live-{fault}"
        store = make(live, disk)
        await store.open()
        if fault:
            disk.calls.clear()
            disk.fault = lambda called, n: errno.EIO if called == "fdatasync" else None
            with pytest.raises(StoreFailed):
                await store.put(name, payload, Reference(REFERRERS[0], 1))
            await store.abandon()
            disk.fault = lambda _called, _n: None
        else:
            await store.put(name, payload, Reference(REFERRERS[0], 1))
            await store.abandon()
            disk = _unsync(disk)
        store = make(live, disk)
        await store.open()
        assert await store.read(name) == payload
        await store.put(name, payload, Reference(REFERRERS[0], 1))
        await store.abandon()
        left = disk.crashed(len(disk.history), Loss(keep=0, names=False), random.Random(1))
        store = make(live, left)
        await store.open()
        assert await store.read(name) == payload
        await store.close()


def _unsync(disk: SimulatedDisk) -> SimulatedDisk:
    """The same, as if the process had died before its last sync."""
    last = max(position for position, event in enumerate(disk.history) if event.kind == "sync")
    fresh = SimulatedDisk()
    descriptors: dict[int, int] = {}
    for event in disk.history[:last]:
        if event.kind == "create":
            descriptors[event.file] = fresh.create(event.path)
        elif event.kind == "write":
            fresh.pwritev(descriptors[event.file], [event.data], event.offset)
        elif event.kind == "sync":
            fresh.fdatasync(descriptors[event.file])
        elif event.kind == "sync_directory":
            fresh.fsync_directory(event.path)
    return fresh


async def test_damage_in_the_middle_is_set_aside_and_the_rest_is_kept(tmp_path: Path) -> None:
    disk = SimulatedDisk()
    live = tmp_path / "live"
    store = make(live, disk)
    await store.open()
    payloads: dict[bytes, bytes] = {}
    for number in range(40):
        payload = random.Random(number).randbytes(2000)
        payloads[blake3(payload).digest()] = payload
        await store.put(blake3(payload).digest(), payload, Reference(REFERRERS[0], 1))
    await store.abandon()
    path = os.path.join(str(live), "chunks-00000001.log")
    chance = random.Random(4)
    for _ in range(30):
        left = disk.copy()
        size = len(left.bytes_of(path))
        start = chance.randrange(100, size - 8000)
        for offset in range(start, start + chance.choice([1, 100, 5000])):
            left.flip(path, offset, chance.randrange(1, 256))
        (live / "chunks.sqlite").unlink()
        store = make(live, left)
        await store.open()
        found = await observed(store)
        lost = set(payloads) - set(found)
        for chunk in found:
            try:
                assert await store.read(chunk) == payloads[chunk]
            except Corrupt:
                lost.add(chunk)
        assert 1 <= len(lost) <= 4
        assert store.statistics().quarantined >= 1
        await store.close()


async def test_an_unreadable_place_is_damage_not_death(tmp_path: Path) -> None:
    disk = SimulatedDisk()
    live = tmp_path / "live"
    store = make(live, disk)
    await store.open()
    payload = random.Random(1).randbytes(9000)
    name = blake3(payload).digest()
    await store.put(name, payload, Reference(REFERRERS[0], 1))
    disk.fault = lambda called, _n: errno.EIO if called == "pread" else None
    with pytest.raises(Corrupt):
        await store.read(name)
    disk.fault = lambda _called, _n: None
    assert await store.holds([name]) == [False]
    await store.put(name, payload, Reference(REFERRERS[0], 1))
    assert await store.read(name) == payload
    await store.close()
    disk.calls.clear()
    disk.fault = lambda called, n: errno.EIO if called == "pread" and n == 1 else None
    (live / "chunks.sqlite").unlink()
    store = make(live, disk)
    await store.open()
    disk.fault = lambda _called, _n: None
    assert await store.read(name) == payload
    await store.close()
