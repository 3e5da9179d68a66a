"""The acceptor: one node's votes in the registers of all the partitions that it replicates.

It owns, per partition, the promised ballot and the node's standing (voter, fresh, learner), and per register the newest accepted
record. State is decided in memory on the event loop, without an await between looking and deciding, and answered only when the
store has made it durable; the store commits in the order of the decisions. Invariants:

* a partition's promise never goes back, and no accepted record carries a ballot above it;
* nothing is answered that is not durable: not a promise, not an acceptance, not a value;
* a partition's fence never goes back, and is never above its promise; nothing that was read before a fence is taken over after it;
* a store that may have forgotten (a learner) votes in nothing and answers no read;
* every vote is cast under the same layout epoch as its request's.

The protocol is CASPaxos (Rystsov, 2018) with one ballot per partition in place of one per key; DESIGN 8. Called by the handlers of
`cluster.register.service` only; it never sends anything.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from cluster.errors import Busy, Conflict, NotReady, StaleLayout
from cluster.register.ballot import NO_BALLOT, Ballot, Version
from cluster.register.copying import Copied, Origin
from cluster.register.key import RegisterKey
from cluster.register.record import ABSENT, Record
from cluster.register.record_cache import CachedRecord, RecordCache
from cluster.register.store import (
    AWAY,
    LEARNER,
    VOTER,
    MetaWrite,
    Page,
    PartitionRecord,
    PartitionWrite,
    PurgeWrite,
    RegisterStore,
    RegisterWrite,
    Write,
)
from cluster.register.view import LayoutView

PENDING_LIMIT = 4096
"""Decisions on their way to the store at once; past it votes are refused as busy, so that a slow disk can't fill memory."""

PENDING_LIMIT_BYTES = 64 * 1024 * 1024
"""The same for the values that they carry."""


class ExportPage(NamedTuple):
    """Part of a partition's registers, read when the replica had this fence (or a later one), and its highest promise."""

    promised: Ballot
    fence: Ballot
    page: Page


class Acceptor:
    """See the module. ``attested(partition)`` says whether enough peers have confirmed that this store has not been put back."""

    def __init__(self, store: RegisterStore, view: LayoutView, attested: Callable[[int], bool]) -> None:
        self._store = store
        self._view = view
        self._attested = attested
        self._partitions: dict[int, PartitionRecord] = {}
        self._cache = RecordCache()
        self._loading: dict[tuple[int, RegisterKey], asyncio.Future[None]] = {}
        self._clears: dict[int, int] = {}
        self._clearing: dict[int, int] = {}
        self._raising: dict[int, int] = {}
        self._fences: dict[int, Ballot] = {}
        self._pending = 0
        self._pending_bytes = 0
        self.votes = 0
        """Prepare and Accept requests granted."""
        self.refusals = 0

    async def open(self) -> None:
        """Read the partitions' state. Before anything else."""
        self._partitions = await self._store.partitions()
        self._fences = {partition: state.fence for partition, state in self._partitions.items()}

    # What the governor decides

    def state(self, partition: int) -> PartitionRecord:
        return self._partitions.get(partition, PartitionRecord())

    def promised(self, partition: int) -> Ballot:
        return self.state(partition).promised

    def fence(self, partition: int) -> Ballot:
        """The last fence that is durable."""
        return self._fences.get(partition, NO_BALLOT)

    def standings(self) -> Mapping[int, PartitionRecord]:
        return self._partitions

    async def set_standings(
        self,
        standings: Mapping[int, PartitionRecord],
        clear: Collection[int] = (),
        meta: Sequence[MetaWrite] = (),
        registers: Sequence[RegisterWrite] = (),
    ) -> None:
        """Take up new standings (their ballots are ignored: promises and fences are kept) and named values in one durable step, decided
        before the first await. The registers of the partitions in ``clear`` are forgotten; ``registers``, which may only
        belong to those, are put in their place."""
        assert all(write.partition in clear for write in registers)
        assert all(partition in standings for partition in clear)
        writes: list[Write] = list(meta)
        cleared = frozenset(clear)
        for partition, wanted in standings.items():
            state = replace(self.state(partition), standing=wanted.standing, tenure=wanted.tenure)
            if partition in cleared:
                # A read of the store that began before this must not be remembered; one that begins now waits for the commit.
                self._clears[partition] = self._clears.get(partition, 0) + 1
            if partition in cleared or state != self.state(partition):
                self._partitions[partition] = state
                writes.append(PartitionWrite(partition, state, partition in cleared))
        future = self._store.commit([*writes, *registers])
        if cleared:
            self._cache.forget_partitions(cleared)
            for partition in cleared:
                _count_while(future, self._clearing, partition)
        await asyncio.shield(future)

    # The protocol

    async def prepare(self, partition: int, ballot: Ballot, epoch: int) -> Ballot:
        """Promise to refuse everything below ``ballot``. The answer is what is promised now: ``ballot`` itself when granted."""
        state = self._voting(partition, epoch, vote=True)
        if ballot < state.promised:
            self.refusals += 1
            return state.promised
        if ballot > state.promised:
            await self._raise(partition, replace(state, promised=ballot))
        else:
            # A second copy of the request: what it repeats need not be durable yet.
            await self._commit([])
        self.votes += 1
        return ballot

    async def learn(
        self, partition: int, ballot: Ballot, key: RegisterKey, epoch: int, stores: bytes
    ) -> tuple[Ballot, Record]:
        """The newest accepted record, under a promise of ``ballot``. When the promised ballot in the answer is higher than
        ``ballot`` the request was refused and the record means nothing. Raises NotReady when this node believes other
        ``stores`` to be behind the partition than the term was begun with."""
        entry = await self._entry(partition, key)
        state = self._voting(partition, epoch, vote=True)
        self._check_stores(partition, stores)
        if ballot < state.promised:
            self.refusals += 1
            return state.promised, entry.durable
        record = entry.newest
        if ballot > state.promised:
            await self._raise(partition, replace(state, promised=ballot))
        elif entry.pending or partition in self._raising:
            # Neither a record nor the promise itself is given as an answer before it is durable.
            await self._commit([])
        return ballot, record

    async def accept(self, partition: int, key: RegisterKey, record: Record, epoch: int, stores: bytes) -> Ballot:
        """Accept ``record`` unless a higher ballot was promised. The answer is the promised ballot: granted when it equals
        the record's own. Raises NotReady as `learn` does: what the term learned may rest on the memory of a store that is
        gone, so it must not be completed with the votes of the one in its place."""
        entry = await self._entry(partition, key)
        state = self._voting(partition, epoch, vote=True)
        self._check_stores(partition, stores)
        ballot = record.version.ballot
        if ballot < state.promised:
            self.refusals += 1
            return state.promised
        if record.version < entry.newest.version:
            self.refusals += 1
            raise Conflict("a late copy of an accept that its own leader has followed up since")
        if record.version == entry.newest.version:
            await self._commit([])
        else:
            await asyncio.shield(self._begin(partition, key, entry, record, max(ballot, state.promised)))
        self.votes += 1
        return ballot

    # Reading

    async def read(self, partition: int, key: RegisterKey, epoch: int) -> Record:
        """The newest durable record. Raises NotReady from a learner."""
        entry = await self._entry(partition, key)
        self._voting(partition, epoch)
        return entry.durable

    def read_cached(self, partition: int, key: RegisterKey, epoch: int) -> Record | None:
        """`read` when it needs no disk, else None."""
        entry = self._cache.get(partition, key)
        if entry is None:
            return None
        self._voting(partition, epoch)
        return entry.durable

    async def scan(
        self, partition: int, table: str, partition_key: bytes, after: bytes, prefix: bytes, limit: int, epoch: int
    ) -> Page:
        """A range of durable records, tombstones included."""
        self._voting(partition, epoch)
        if partition in self._clearing:
            await self._commit([])
        page = await self._store.scan(partition, table, partition_key, after, prefix, limit)
        self._voting(partition, epoch)
        return page

    # Copying (learners, new replicas)

    async def export(self, partition: int, after: RegisterKey | None, limit: int, epoch: int) -> ExportPage:
        """Part of the partition's registers for a replica that copies them, and the highest promise. Everything decided before
        the call, under this epoch or an earlier one, is in the store when the page is read. Only a voter exports."""
        state = self._voting(partition, epoch)
        if state.standing != VOTER:
            raise NotReady(f"this node is {state.standing} in partition {partition} and can't be copied from")
        fence = state.fence
        await self._commit([])
        page = await self._store.page(partition, after, limit)
        if self._voting(partition, epoch).standing != VOTER:
            raise NotReady(f"this node's standing in partition {partition} changed while it was copied")
        return ExportPage(self.promised(partition), fence, page)

    async def import_records(
        self, partition: int, records: Sequence[Copied], promised: Ballot, origin: Origin
    ) -> list[RegisterKey]:
        """Take over copied records that are newer than what is here, where that is safe (`cluster.register.copying`), and
        promise what their sources have promised. Durable on return. Returns the registers that the partition's leader has to
        settle instead, before the copy may be called complete. A replica that is not a voter yet takes over the highest fence
        as well; a voter raises StaleLayout when it has been fenced since the sources were read: read them again. Not for a node
        that isn't a replica."""
        state = self._copying(partition, origin)
        fence = state.fence if state.standing == VOTER else max(state.fence, origin.newest_fence)
        if promised > state.promised or fence > state.fence:
            await self._raise(partition, replace(state, promised=max(promised, state.promised), fence=fence))
        unsettled: list[RegisterKey] = []
        for key, record, decided in records:
            entry = await self._entry(partition, key)
            state = self._copying(partition, origin)
            if record.version <= entry.newest.version:
                continue
            ballot = record.version.ballot
            if decided or ballot >= state.promised:
                self._begin(partition, key, entry, record, max(ballot, state.promised))
            else:
                unsettled.append(key)
        await self._commit([])
        return unsettled

    # Purging (`cluster.register.purge`)

    async def fence_purge(
        self,
        partition: int,
        ballot: Ballot,
        tombstones: Sequence[tuple[RegisterKey, Version]],
        epoch: int,
        stores: bytes,
    ) -> tuple[Ballot, tuple[bool, ...] | None]:
        """Promise a new ballot and make it the fence. The answer is what is promised now, and, when it was granted, which of the
        tombstones this replica held when it decided so. A second copy of the request is refused: what is held may have changed."""
        entries: list[CachedRecord] = []
        try:
            for key, _ in tombstones:
                entry = await self._entry(partition, key)
                self._cache.pin(entry)
                entries.append(entry)
            state = self._purging(partition, epoch, stores)
            if ballot <= state.promised:
                self.refusals += 1
                return state.promised, None
            held = tuple(
                not entry.forgotten and entry.newest == Record(version, None)
                for entry, (_, version) in zip(entries, tombstones, strict=True)
            )
            await self._raise(partition, self._fenced(state, ballot))
            return ballot, held
        finally:
            for entry in entries:
                self._cache.unpin(entry)

    async def purge(
        self,
        partition: int,
        fence: Ballot,
        tombstones: Sequence[tuple[RegisterKey, Version]],
        epoch: int,
        stores: bytes,
    ) -> int:
        """Forget those of the tombstones that are still here at exactly their versions; how many. Durable on return. Only for
        tombstones that all replicas held when they took up ``fence``."""
        count = 0
        for key, version in tombstones:
            entry = await self._entry(partition, key)
            if self._purging(partition, epoch, stores).fence < fence:
                raise NotReady("this replica was not fenced for this purge", partition=partition)
            if entry.newest == Record(version, None):
                self._queue(entry, ABSENT, [PurgeWrite(partition, key, version)])
                count += 1
        await self._commit([])
        return count

    # Inside

    def _purging(self, partition: int, epoch: int, stores: bytes) -> PartitionRecord:
        """The partition's state if this node may take part in a purge."""
        state = self._voting(partition, epoch, vote=True)
        if state.standing != VOTER or len(self._view.rule(partition).groups) > 1:
            raise NotReady("nothing is purged while replicas are new or the layout changes", partition=partition)
        self._check_stores(partition, stores)
        return state

    def _fenced(self, state: PartitionRecord, ballot: Ballot) -> PartitionRecord:
        return replace(state, promised=ballot, fence=ballot)

    def _voting(self, partition: int, epoch: int, *, vote: bool = False) -> PartitionRecord:
        """The partition's state if this node may vote in it (or tell what it has voted) under ``epoch`` now."""
        if not self._view.check(epoch):
            raise StaleLayout("the layout changed on the way", version=self._view.epoch)
        state = self._partitions.get(partition)
        if state is None or state.standing in {AWAY, LEARNER}:
            standing = "not a replica of" if state is None or state.standing == AWAY else "relearning"
            raise NotReady(f"this node is {standing} partition {partition}", partition=partition)
        if vote and (self._pending >= PENDING_LIMIT or self._pending_bytes >= PENDING_LIMIT_BYTES):
            raise Busy("too many register writes wait for this node's disk")
        if not self._attested(partition):
            raise NotReady(
                "this node waits for its peers to confirm that its disk is not an old copy", partition=partition
            )
        return state

    def _copying(self, partition: int, origin: Origin) -> PartitionRecord:
        """The partition's state if records of this origin may be taken over now."""
        state = self.state(partition)
        if state.standing == AWAY or not self._view.check(origin.epoch):
            # under a later layout this may be another tenure of the partition, which has to begin empty
            raise StaleLayout("the layout changed while a partition was copied", version=self._view.epoch)
        if state.standing == VOTER:
            self._check_origin(partition, state, origin)
        return state

    def _check_origin(self, partition: int, state: PartitionRecord, origin: Origin) -> None:
        """A voter may have purged what its sources still held when they were read. Not while the layout changes: then nobody
        takes up a fence, and the sources answered under this very epoch."""
        if not self._view.check(origin.epoch) or self._view.stores(partition) != origin.stores:
            raise StaleLayout("the layout or a replica's disk changed while it was copied", version=self._view.epoch)
        if origin.oldest_fence < state.fence and len(self._view.rule(partition).groups) == 1:
            raise StaleLayout("tombstones were purged while it was copied", version=self._view.epoch)

    def _check_stores(self, partition: int, stores: bytes) -> None:
        if self._view.stores(partition) != stores:
            self.refusals += 1
            raise NotReady(
                "a replica's disk was replaced since this term began, or one of us hasn't heard yet",
                partition=partition,
            )

    def _promise(self, partition: int, state: PartitionRecord, ballot: Ballot) -> PartitionWrite:
        raised = replace(state, promised=ballot)
        self._partitions[partition] = raised
        return PartitionWrite(partition, raised)

    async def _raise(self, partition: int, raised: PartitionRecord) -> None:
        """Take up a higher promise or fence, durably."""
        state = self.state(partition)
        assert raised.promised >= state.promised
        assert raised.fence >= state.fence
        self._partitions[partition] = raised

        def done(finished: asyncio.Future[None]) -> None:
            if not finished.cancelled() and finished.exception() is None:
                self._fences[partition] = raised.fence

        future = self._store.commit([PartitionWrite(partition, raised)])
        future.add_done_callback(done)
        _count_while(future, self._raising, partition)
        await asyncio.shield(future)

    async def _entry(self, partition: int, key: RegisterKey) -> CachedRecord:
        """The register's entry in the cache. Valid until the next await."""
        entry = self._cache.get(partition, key)
        while entry is None:
            await self._load(partition, key)
            entry = self._cache.get(partition, key)
        return entry

    async def _load(self, partition: int, key: RegisterKey) -> None:
        """Bring a register from the store into the cache. One at a time for a register: a second read that came back late could
        otherwise bring back what has been overwritten, committed and evicted meanwhile."""
        name = (partition, key)
        flight = self._loading.get(name)
        if flight is not None:
            await asyncio.shield(flight)
            return
        flight = self._loading[name] = asyncio.get_running_loop().create_future()
        try:
            clears = self._clears.get(partition, 0)
            if partition in self._clearing:
                await self._commit([])
            record = await self._store.get(partition, key)
            if clears == self._clears.get(partition, 0):
                self._cache.add(partition, key, record)
        finally:
            del self._loading[name]
            flight.set_result(None)

    def _begin(
        self, partition: int, key: RegisterKey, entry: CachedRecord, record: Record, promised: Ballot
    ) -> asyncio.Future[None]:
        """Queue a decided record, and the promise that goes with it where that is a new one; the cache learns of their durability
        even when nobody waits any more. From the decision to this call there is no await."""
        state = self.state(partition)
        writes: list[Write] = [RegisterWrite(partition, key, record)]
        if promised > state.promised:
            writes.insert(0, self._promise(partition, state, promised))
        future = self._queue(entry, record, writes)
        if len(writes) > 1:
            _count_while(future, self._raising, partition)
        return future

    def _queue(self, entry: CachedRecord, record: Record, writes: Sequence[Write]) -> asyncio.Future[None]:
        """Queue what makes ``record`` the register's."""
        size = len(record.value or b"")
        self._cache.begin(entry, record)
        self._pending += 1
        self._pending_bytes += size

        def done(future: asyncio.Future[None]) -> None:
            self._pending -= 1
            self._pending_bytes -= size
            if not future.cancelled() and future.exception() is None:
                self._cache.finish(entry, record)

        future = self._store.commit(writes)
        future.add_done_callback(done)
        return future

    async def _commit(self, writes: Sequence[Write]) -> None:
        """Queue a batch; from the caller's decision to this call there is no await. Then wait until it is durable."""
        await asyncio.shield(self._store.commit(writes))


def _count_while(future: asyncio.Future[None], counts: dict[int, int], partition: int) -> None:
    """Keep ``partition`` in ``counts`` until the commit is done; for good when it fails, since then nothing may be answered."""
    counts[partition] = counts.get(partition, 0) + 1

    def done(finished: asyncio.Future[None]) -> None:
        if finished.cancelled() or finished.exception() is not None:
            return
        counts[partition] -= 1
        if not counts[partition]:
            del counts[partition]

    future.add_done_callback(done)
