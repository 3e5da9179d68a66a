"""The register protocol's handlers: what a node does with its peers' requests.

Turns messages into calls of the node's `Acceptor` and `Leader` and back. Every request first brings both sides to the same layout
epoch. Owns no state.
"""

from __future__ import annotations

from cluster.errors import Invalid, NotReady, StaleLayout
from cluster.register.acceptor import Acceptor
from cluster.register.ballot import Ballot, Version
from cluster.register.change import Change
from cluster.register.key import RegisterKey
from cluster.register.leader import Leader
from cluster.register.messages import (
    Accept,
    Entry,
    Export,
    Exported,
    Fenced,
    FencePurge,
    Learn,
    Learned,
    Prepare,
    Promise,
    Purge,
    Purged,
    Read,
    Scan,
    Scanned,
    Tombstone,
    Update,
    Updated,
    Value,
)
from cluster.register.record import VALUE_LIMIT
from cluster.register.store import Page
from cluster.register.view import LayoutView
from cluster.rpc.service import Handlers, IncomingCall

PAGE_LIMIT_BYTES = 256 * 1024
"""Values in one page of a scan or an export: well under a message's limit, and short to encode."""

PAGE_LIMIT = 512
"""Registers in one page."""

ANSWER_TIME_S = 0.1
"""How long before its caller's deadline a leader gives up: an answer that says what is known beats none."""


class RegisterService:
    def __init__(self, acceptor: Acceptor, leader: Leader, view: LayoutView) -> None:
        self._acceptor = acceptor
        self._leader = leader
        self._view = view

    def register(self, handlers: Handlers) -> None:
        handlers.register(Prepare, self.prepare)
        handlers.register(Learn, self.learn)
        handlers.register(Accept, self.accept)
        handlers.register(Read, self.read)
        handlers.register(Scan, self.scan)
        handlers.register(Update, self.update)
        handlers.register(Export, self.export)
        handlers.register(FencePurge, self.fence_purge)
        handlers.register(Purge, self.purge)

    async def prepare(self, request: Prepare, call: IncomingCall) -> Promise:
        epoch = await self._agree(call)
        ballot = Ballot(request.round, request.proposer)
        promised = await self._acceptor.prepare(request.partition, ballot, epoch)
        fence = self._acceptor.fence(request.partition)
        return Promise(*promised, self._view.stores(request.partition), *fence)

    async def learn(self, request: Learn, call: IncomingCall) -> Learned:
        epoch = await self._agree(call)
        ballot = Ballot(request.round, request.proposer)
        promised, record = await self._acceptor.learn(request.partition, ballot, request.key, epoch, request.stores)
        version = record.version
        return Learned(
            promised.round,
            promised.proposer,
            self._view.stores(request.partition),
            version.round,
            version.proposer,
            version.seq,
            record.value,
        )

    async def accept(self, request: Accept, call: IncomingCall) -> Promise:
        if request.value is not None and len(request.value) > VALUE_LIMIT:
            raise Invalid(f"a register holds at most {VALUE_LIMIT} bytes")
        epoch = await self._agree(call)
        _same_epoch(request.epoch, epoch)
        promised = await self._acceptor.accept(request.partition, request.key, request.record, epoch, request.stores)
        return Promise(promised.round, promised.proposer, self._view.stores(request.partition))

    async def read(self, request: Read, call: IncomingCall) -> Value:
        epoch = await self._agree(call)
        key = request.key
        record = self._acceptor.read_cached(request.partition, key, epoch)
        if record is None:
            record = await self._acceptor.read(request.partition, key, epoch)
        # Fence and stores of the same moment as the record: no await in between.
        fence, stores = self._acceptor.fence(request.partition), self._view.stores(request.partition)
        return Value(*record.version, record.value, *fence, stores)

    async def scan(self, request: Scan, call: IncomingCall) -> Scanned:
        epoch = await self._agree(call)
        stores = self._view.stores(request.partition)
        page = await self._acceptor.scan(
            request.partition,
            request.table,
            request.partition_key,
            request.after,
            request.prefix,
            _limit(request.limit),
            epoch,
        )
        entries, more = _bounded(page, keys=False)
        if self._view.stores(request.partition) != stores:
            raise NotReady("a replica's disk was replaced during a listing", partition=request.partition)
        return Scanned(entries, more, stores)

    async def update(self, request: Update, call: IncomingCall) -> Updated:
        if request.value is not None and len(request.value) > VALUE_LIMIT:
            raise Invalid(f"a register holds at most {VALUE_LIMIT} bytes")
        await self._agree(call)
        change = Change(request.mode, request.value, request.expected)
        outcome = await self._leader.update(request.partition, request.key, change, call.deadline - ANSWER_TIME_S)
        return Updated(outcome.applied, outcome.current, *outcome.version, *outcome.fence)

    async def export(self, request: Export, call: IncomingCall) -> Exported:
        epoch = await self._agree(call)
        after = RegisterKey(request.table, request.partition_key, request.sort_key) if request.started else None
        promised, fence, page = await self._acceptor.export(request.partition, after, _limit(request.limit), epoch)
        entries, more = _bounded(page, keys=True)
        return Exported(*promised, entries, more, *fence)

    async def fence_purge(self, request: FencePurge, call: IncomingCall) -> Fenced:
        epoch = await self._agree(call)
        _same_epoch(request.epoch, epoch)
        ballot = Ballot(request.round, request.proposer)
        promised, held = await self._acceptor.fence_purge(
            request.partition, ballot, _named(request.tombstones), epoch, request.stores
        )
        return Fenced(held is not None, *promised, self._view.stores(request.partition), held or ())

    async def purge(self, request: Purge, call: IncomingCall) -> Purged:
        epoch = await self._agree(call)
        _same_epoch(request.epoch, epoch)
        fence = Ballot(request.round, request.proposer)
        count = await self._acceptor.purge(request.partition, fence, _named(request.tombstones), epoch, request.stores)
        return Purged(count)

    async def _agree(self, call: IncomingCall) -> int:
        epoch = call.layout_version
        if not self._view.check(epoch):
            await self._view.agree(epoch, call.peer)
        return epoch


def _limit(asked: int) -> int:
    if asked < 1:
        raise Invalid("a page holds at least one register")
    return min(asked, PAGE_LIMIT)


def _same_epoch(asked: int, epoch: int) -> None:
    if asked != epoch:
        raise StaleLayout("a request of an earlier layout epoch", version=epoch)


def _named(tombstones: tuple[Tombstone, ...]) -> list[tuple[RegisterKey, Version]]:
    if len(tombstones) > PAGE_LIMIT:
        raise Invalid(f"at most {PAGE_LIMIT} tombstones are purged at once")
    return [(tombstone.key, tombstone.version) for tombstone in tombstones]


def _bounded(page: Page, *, keys: bool) -> tuple[tuple[Entry, ...], bool]:
    entries: list[Entry] = []
    size = 0
    for key, record in page.entries:
        size += 100 + len(key.sort) + len(record.value or b"")
        if entries and size > PAGE_LIMIT_BYTES:
            return tuple(entries), True
        version = record.version
        table, partition_key = (key.table, key.partition) if keys else ("", b"")
        entries.append(
            Entry(table, partition_key, key.sort, version.round, version.proposer, version.seq, record.value)
        )
    return tuple(entries), page.more
