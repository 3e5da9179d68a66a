"""The acceptor, step by step, over a store whose commits end when the test says so."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Coroutine, Mapping, Sequence
from typing import Any, TypeVar

import pytest

from cluster.errors import Busy, Conflict, Corrupt, HoldfastError, NotReady, StaleLayout
from cluster.merkle.digest_tree import DigestTree
from cluster.register import acceptor as acceptor_module
from cluster.register.acceptor import Acceptor, ExportPage
from cluster.register.ballot import NO_BALLOT, Ballot, Version
from cluster.register.copying import Copied, Origin
from cluster.register.key import RegisterKey
from cluster.register.quorum import QuorumRule
from cluster.register.record import ABSENT, Record
from cluster.register.record_cache import RecordCache
from cluster.register.store import FRESH, LEARNER, VOTER, HeldVersion, Page, PartitionRecord, PartitionWrite, Write
from tests.support.simulated.memory_store import DiskContent, held_tombstones, held_versions

T = TypeVar("T")
KEY = RegisterKey("t", b"p", b"k")
OTHER = RegisterKey("t", b"p", b"other")
LOW, HIGH = Ballot(1, "x"), Ballot(2, "y")
STORES = b"stores"
ORIGIN = Origin(NO_BALLOT, NO_BALLOT, 1, STORES)


class SlowStore:
    """Commits wait for `sync`; reads for `let_read` when ``hold_reads``."""

    def __init__(self, disk: DiskContent) -> None:
        self.disk = disk
        self.queue: list[tuple[list[Write], asyncio.Future[None]]] = []
        self.hold_reads = False
        self.reading: list[asyncio.Future[None]] = []
        self.reads = 0

    def commit(self, writes: Sequence[Write]) -> asyncio.Future[None]:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if writes or self.queue:
            self.queue.append((list(writes), future))
        else:
            future.set_result(None)
        return future

    def sync(self, count: int = 1000, *, error: HoldfastError | None = None) -> None:
        done, self.queue = self.queue[:count], self.queue[count:]
        for writes, future in done:
            if error is not None:
                future.set_exception(error)
            else:
                self.disk.apply(writes)
                future.set_result(None)

    async def get(self, partition: int, key: RegisterKey) -> Record:
        self.reads += 1
        record = self.disk.registers.get(partition, {}).get(key, ABSENT)
        if self.hold_reads:
            gate: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self.reading.append(gate)
            await gate
        return record

    async def scan(
        self, partition: int, table: str, partition_key: bytes, after: bytes, prefix: bytes, limit: int
    ) -> Page:
        return await self.page(partition, None, limit)

    async def page(self, partition: int, after: RegisterKey | None, limit: int) -> Page:
        return Page(sorted(self.disk.registers.get(partition, {}).items())[:limit], False)

    async def partitions(self) -> dict[int, PartitionRecord]:
        return dict(self.disk.partitions)

    async def meta(self, name: str) -> bytes | None:
        return self.disk.meta.get(name)

    def trees(self) -> Mapping[int, DigestTree]:
        return self.disk.trees

    async def versions(self, partition: int, bits: int, prefixes: Collection[int]) -> list[HeldVersion]:
        return held_versions(self.disk, partition, bits, prefixes)

    async def tombstone_counts(self) -> dict[int, int]:
        raise NotImplementedError

    async def tombstones(self, partition: int, after: RegisterKey | None, limit: int) -> list[HeldVersion]:
        return held_tombstones(self.disk, partition, after, limit)


class View:
    """A view that says what it is told to."""

    def __init__(self) -> None:
        self.epoch = 1
        self.known_stores = STORES

    def check(self, epoch: int) -> bool:
        return epoch == self.epoch

    def stores(self, partition: int) -> bytes:
        return self.known_stores

    def partition_of(self, partition_key: bytes) -> int:
        return 0

    def rule(self, partition: int) -> QuorumRule:
        return QuorumRule((("a",),))

    def is_alive(self, name: str) -> bool:
        return True

    async def agree(self, epoch: int, peer: str) -> None:
        raise AssertionError

    async def refresh(self, peer: str) -> None:
        raise AssertionError


class Bench:
    def __init__(self, standing: str = VOTER) -> None:
        self.disk = DiskContent()
        self.disk.apply([PartitionWrite(0, PartitionRecord(standing=standing))])
        self.view = View()

    async def open(self) -> Acceptor:
        self.store = SlowStore(self.disk)
        self.acceptor = Acceptor(self.store, self.view, lambda partition: True)
        await self.acceptor.open()
        return self.acceptor

    async def settled(self, work: Coroutine[Any, Any, T]) -> T:
        """Run with a disk that syncs at once."""
        task = asyncio.ensure_future(work)
        while not task.done():
            await asyncio.sleep(0)
            self.store.sync()
        return await task


async def started(work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
    task = asyncio.ensure_future(work)
    for _ in range(5):
        await asyncio.sleep(0)
    return task


def record(ballot: Ballot, seq: int, value: bytes | None) -> Record:
    return Record(Version(*ballot, seq), value)


async def test_a_promise_refuses_everything_below_it() -> None:
    bench = Bench()
    acceptor = await bench.open()
    assert await bench.settled(acceptor.prepare(0, HIGH, 1)) == HIGH
    assert await bench.settled(acceptor.prepare(0, LOW, 1)) == HIGH
    assert await bench.settled(acceptor.accept(0, KEY, record(LOW, 1, b"v"), 1, STORES)) == HIGH
    assert (await bench.settled(acceptor.learn(0, LOW, KEY, 1, STORES)))[0] == HIGH
    assert await bench.settled(acceptor.read(0, KEY, 1)) == ABSENT


async def test_a_promise_survives_a_crash() -> None:
    bench = Bench()
    acceptor = await bench.open()
    await bench.settled(acceptor.prepare(0, HIGH, 1))
    acceptor = await bench.open()
    assert acceptor.promised(0) == HIGH
    assert await bench.settled(acceptor.accept(0, KEY, record(LOW, 1, b"v"), 1, STORES)) == HIGH


async def test_nothing_is_answered_before_it_is_durable() -> None:
    """Neither a promise, nor its second copy, nor a record under it, nor an acceptance, nor a value."""
    bench = Bench()
    acceptor = await bench.open()
    tasks: list[asyncio.Task[Any]] = [
        await started(acceptor.prepare(0, LOW, 1)),
        await started(acceptor.prepare(0, LOW, 1)),
        await started(acceptor.learn(0, LOW, KEY, 1, STORES)),
        await started(acceptor.accept(0, KEY, record(LOW, 1, b"v"), 1, STORES)),
        await started(acceptor.accept(0, KEY, record(LOW, 1, b"v"), 1, STORES)),
        await started(acceptor.learn(0, LOW, KEY, 1, STORES)),
    ]
    assert not any(task.done() for task in tasks)
    assert await acceptor.read(0, KEY, 1) == ABSENT
    bench.store.sync()
    answers = await asyncio.gather(*tasks)
    assert answers == [LOW, LOW, (LOW, ABSENT), LOW, LOW, (LOW, record(LOW, 1, b"v"))]
    assert acceptor.read_cached(0, KEY, 1) == record(LOW, 1, b"v")


async def test_a_late_copy_of_an_accept_is_refused() -> None:
    bench = Bench()
    acceptor = await bench.open()
    await bench.settled(acceptor.accept(0, KEY, record(LOW, 2, b"new"), 1, STORES))
    with pytest.raises(Conflict):
        await bench.settled(acceptor.accept(0, KEY, record(LOW, 1, b"old"), 1, STORES))
    assert (await bench.settled(acceptor.read(0, KEY, 1))).value == b"new"


async def test_votes_are_for_one_epoch_and_one_belief_about_the_stores() -> None:
    bench = Bench()
    acceptor = await bench.open()
    with pytest.raises(StaleLayout):
        await bench.settled(acceptor.prepare(0, LOW, 2))
    with pytest.raises(NotReady):
        await bench.settled(acceptor.learn(0, LOW, KEY, 1, b"others"))
    with pytest.raises(NotReady):
        await bench.settled(acceptor.accept(0, KEY, record(LOW, 1, b"v"), 1, b"others"))
    assert not bench.store.queue


async def test_the_epoch_is_looked_at_when_the_vote_is_cast_and_not_before() -> None:
    bench = Bench()
    acceptor = await bench.open()
    bench.store.hold_reads = True
    task = await started(acceptor.accept(0, KEY, record(LOW, 1, b"v"), 1, STORES))
    bench.view.epoch = 2
    bench.store.reading[0].set_result(None)
    with pytest.raises(StaleLayout):
        await task


@pytest.mark.parametrize("standing", [LEARNER, "away"])
async def test_who_has_forgotten_votes_in_nothing_and_tells_nothing(standing: str) -> None:
    bench = Bench(standing)
    acceptor = await bench.open()
    for work in (
        acceptor.prepare(0, LOW, 1),
        acceptor.learn(0, LOW, KEY, 1, STORES),
        acceptor.accept(0, KEY, record(LOW, 1, b"v"), 1, STORES),
        acceptor.read(0, KEY, 1),
        acceptor.scan(0, "t", b"p", b"", b"", 10, 1),
        acceptor.export(0, None, 10, 1),
    ):
        with pytest.raises(NotReady):
            await bench.settled(work)


async def test_a_fresh_replica_is_not_copied_from() -> None:
    bench = Bench(FRESH)
    acceptor = await bench.open()
    await bench.settled(acceptor.accept(0, KEY, record(LOW, 1, b"v"), 1, STORES))
    with pytest.raises(NotReady):
        await bench.settled(acceptor.export(0, None, 10, 1))


async def test_what_was_decided_before_an_export_is_in_it() -> None:
    bench = Bench()
    acceptor = await bench.open()
    accepting = await started(acceptor.accept(0, KEY, record(LOW, 1, b"v"), 1, STORES))
    exporting = await started(acceptor.export(0, None, 10, 1))
    assert not exporting.done()
    bench.store.sync()
    assert await exporting == ExportPage(LOW, NO_BALLOT, Page([(KEY, record(LOW, 1, b"v"))], False))
    await accepting


@pytest.mark.parametrize(("standing", "epoch"), [(LEARNER, 1), (VOTER, 2)])
async def test_an_export_is_void_when_its_source_may_have_forgotten_or_moved_on(standing: str, epoch: int) -> None:
    bench = Bench()
    acceptor = await bench.open()
    accepting = await started(acceptor.accept(0, KEY, record(LOW, 1, b"v"), 1, STORES))
    exporting = await started(acceptor.export(0, None, 10, 1))
    changing = await started(acceptor.set_standings({0: PartitionRecord(standing=standing)}))
    bench.view.epoch = epoch
    bench.store.sync()
    with pytest.raises(NotReady if epoch == 1 else StaleLayout):
        await exporting
    await asyncio.gather(accepting, changing)


async def test_undecided_records_below_the_promise_are_not_taken_over() -> None:
    bench = Bench(LEARNER)
    acceptor = await bench.open()
    copied = [Copied(KEY, record(LOW, 1, b"v"), decided=False), Copied(OTHER, record(LOW, 2, b"w"), decided=True)]
    assert await bench.settled(acceptor.import_records(0, copied, HIGH, ORIGIN)) == [KEY]
    assert acceptor.promised(0) == HIGH
    assert bench.disk.registers[0] == {OTHER: record(LOW, 2, b"w")}
    assert bench.disk.partitions[0].promised == HIGH


async def test_undecided_records_at_or_above_the_promise_are() -> None:
    bench = Bench(FRESH)
    acceptor = await bench.open()
    assert (
        await bench.settled(
            acceptor.import_records(0, [Copied(KEY, record(HIGH, 1, b"v"), decided=False)], LOW, ORIGIN)
        )
        == []
    )
    assert acceptor.promised(0) == HIGH
    assert (await acceptor.read(0, KEY, 1)).value == b"v"
    older = [Copied(KEY, record(LOW, 9, b"old"), decided=True)]
    assert await bench.settled(acceptor.import_records(0, older, LOW, ORIGIN)) == []
    assert (await acceptor.read(0, KEY, 1)).value == b"v"


async def test_a_read_that_comes_back_late_brings_nothing_back() -> None:
    """Two requests want a register from the disk; the first writes it and the entry is evicted before the second has read."""
    bench = Bench()
    acceptor = await bench.open()
    acceptor._cache = RecordCache(1)
    bench.store.hold_reads = True
    reading = await started(acceptor.read(0, KEY, 1))
    accepting = await started(acceptor.accept(0, KEY, record(LOW, 1, b"v"), 1, STORES))
    assert len(bench.store.reading) == 1
    bench.store.reading[0].set_result(None)
    while not accepting.done():
        await asyncio.sleep(0)
        bench.store.sync()
        for gate in bench.store.reading:
            if not gate.done():
                gate.set_result(None)
    bench.store.hold_reads = False
    assert (await reading).value in {None, b"v"}
    assert (await acceptor.read(0, KEY, 1)).value == b"v"


async def test_what_is_not_durable_is_never_read_again_from_the_disk() -> None:
    bench = Bench()
    acceptor = await bench.open()
    acceptor._cache = RecordCache(1)
    accepting = await started(acceptor.accept(0, KEY, record(HIGH, 1, b"v"), 1, STORES))
    for number in range(5):
        await acceptor.read(0, RegisterKey("t", b"p", b"%d" % number), 1)
    with pytest.raises(Conflict):
        await bench.settled(acceptor.accept(0, KEY, record(HIGH, 0, b"older"), 1, STORES))
    bench.store.sync()
    await accepting


async def test_a_cleared_partition_is_empty_at_once() -> None:
    """Also for a read that began before the clearing, and one that comes while it is on its way to the disk."""
    bench = Bench()
    acceptor = await bench.open()
    await bench.settled(acceptor.accept(0, KEY, record(LOW, 1, b"v"), 1, STORES))
    acceptor = await bench.open()
    bench.store.hold_reads = True
    before = await started(acceptor.read(0, KEY, 1))
    clearing = await started(acceptor.set_standings({0: PartitionRecord(standing=FRESH, tenure=2)}, [0]))
    bench.store.reading[0].set_result(None)
    bench.store.hold_reads = False
    during = await started(acceptor.read(0, KEY, 1))
    scanning = await started(acceptor.scan(0, "t", b"p", b"", b"", 10, 1))
    assert not during.done()
    bench.store.sync()
    assert await during == ABSENT
    assert await before == ABSENT
    assert (await scanning).entries == []
    await clearing
    assert acceptor.promised(0) == LOW
    assert not acceptor._clearing


async def test_a_cancelled_request_leaves_what_it_decided(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(acceptor_module, "PENDING_LIMIT", 1)
    bench = Bench()
    acceptor = await bench.open()
    accepting = await started(acceptor.accept(0, KEY, record(LOW, 1, b"v"), 1, STORES))
    with pytest.raises(Busy):
        await bench.settled(acceptor.accept(0, OTHER, record(LOW, 2, b"w"), 1, STORES))
    assert await acceptor.read(0, OTHER, 1) == ABSENT, "reading goes on"
    accepting.cancel()
    await asyncio.gather(accepting, return_exceptions=True)
    bench.store.sync()
    await asyncio.sleep(0)
    assert await acceptor.read(0, KEY, 1) == record(LOW, 1, b"v")
    assert acceptor._pending == acceptor._pending_bytes == 0


async def test_a_cancelled_reader_does_not_stop_the_others() -> None:
    bench = Bench()
    acceptor = await bench.open()
    bench.store.hold_reads = True
    first = await started(acceptor.read(0, KEY, 1))
    second = await started(acceptor.read(0, KEY, 1))
    first.cancel()
    for _ in range(5):
        await asyncio.sleep(0)
    assert len(bench.store.reading) == 2
    bench.store.reading[1].set_result(None)
    assert await second == ABSENT
    assert not acceptor._loading


async def test_after_a_failed_commit_nothing_newer_is_told() -> None:
    bench = Bench()
    acceptor = await bench.open()
    accepting = await started(acceptor.accept(0, KEY, record(LOW, 1, b"v"), 1, STORES))
    learning = await started(acceptor.learn(0, LOW, KEY, 1, STORES))
    bench.store.sync(error=Corrupt("no disk"))
    for task in (accepting, learning):
        with pytest.raises(Corrupt):
            await task
    assert await acceptor.read(0, KEY, 1) == ABSENT
