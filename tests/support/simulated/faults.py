"""Registers that are wrong on purpose, each in one way: what the simulation must be able to notice."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Collection, Sequence
from typing import Any, cast

from cluster.errors import HoldfastError, OutcomeUnknown
from cluster.register.acceptor import Acceptor
from cluster.register.ballot import NO_BALLOT, NO_VERSION, Ballot, Version
from cluster.register.change import ABSENT_ONLY, Change, token_of
from cluster.register.copying import Copied, Origin
from cluster.register.key import RegisterKey
from cluster.register.leader import Leader, Outcome, Term, _Attempt
from cluster.register.mender import Decided, RegisterMender
from cluster.register.messages import Read
from cluster.register.purge import Purger
from cluster.register.quorum import QuorumRule
from cluster.register.reader import Reading
from cluster.register.record import ABSENT, Record
from cluster.register.record_cache import CachedRecord, RecordCache
from cluster.register.store import LEARNER, VOTER, PartitionRecord, PartitionWrite
from cluster.register.view import LayoutView
from tests.support.simulated.node import Life, Parts


class ForgetfulAcceptor(Acceptor):
    """Comes back from a crash without its promises."""

    async def open(self) -> None:
        await super().open()
        for partition, state in self._partitions.items():
            self._partitions[partition] = dataclasses.replace(state, promised=NO_BALLOT, fence=NO_BALLOT)


class HastyAcceptor(Acceptor):
    """Answers before its promises are durable."""

    async def _raise(self, partition: int, raised: PartitionRecord) -> None:
        self._partitions[partition] = raised
        self._fences[partition] = raised.fence
        self._store.commit([PartitionWrite(partition, raised)])


class UnsyncedAcceptor(Acceptor):
    """Answers an accept before it is durable."""

    def _begin(
        self, partition: int, key: RegisterKey, entry: CachedRecord, record: Record, promised: Ballot
    ) -> asyncio.Future[None]:
        super()._begin(partition, key, entry, record, promised)
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        done.set_result(None)
        return done


class MemoryAcceptor(UnsyncedAcceptor):
    """Takes its memory for its disk: answers reads from it too, so that nobody sees anything wrong before a crash."""

    def _begin(
        self, partition: int, key: RegisterKey, entry: CachedRecord, record: Record, promised: Ballot
    ) -> asyncio.Future[None]:
        done = super()._begin(partition, key, entry, record, promised)
        entry.durable = record
        return done


class EagerLearner(Acceptor):
    """Votes although it has forgotten."""

    def _voting(self, partition: int, epoch: int, *, vote: bool = False) -> PartitionRecord:
        state = self._partitions.get(partition)
        if state is not None and state.standing == LEARNER:
            self._partitions[partition] = dataclasses.replace(state, standing=VOTER)
        return super()._voting(partition, epoch, vote=vote)


class StoreBlindAcceptor(Acceptor):
    """Doesn't care which disks a term was begun with."""

    def _check_stores(self, partition: int, stores: bytes) -> None:
        """Anything goes."""


class CredulousCopier(Acceptor):
    """Takes over whatever it is given, below its own promise too."""

    async def import_records(
        self, partition: int, records: Sequence[Copied], promised: Ballot, origin: Origin
    ) -> list[RegisterKey]:
        believed = [Copied(key, record, decided=True) for key, record, _ in records]
        return await super().import_records(partition, believed, promised, origin)


class EmptyHandedCopier(Acceptor):
    """Calls itself a full replica without having copied anything."""

    async def import_records(
        self, partition: int, records: Sequence[Copied], promised: Ballot, origin: Origin
    ) -> list[RegisterKey]:
        return []


class UnfencedImport(Acceptor):
    """Takes over what was read before a purge."""

    def _check_origin(self, partition: int, state: PartitionRecord, origin: Origin) -> None:
        """Anything goes."""


class UnpromisedFence(Acceptor):
    """Counts the purge, and goes on accepting under older ballots."""

    def _fenced(self, state: PartitionRecord, ballot: Ballot) -> PartitionRecord:
        return dataclasses.replace(state, fence=ballot)


class ObedientAcceptor(Acceptor):
    """Accepts below its promise."""

    async def accept(self, partition: int, key: RegisterKey, record: Record, epoch: int, stores: bytes) -> Ballot:
        state = self._partitions[partition]
        lowered = min(state.promised, record.version.ballot)
        self._partitions[partition] = dataclasses.replace(state, promised=lowered)
        return await super().accept(partition, key, record, epoch, stores)


class _UnpinnedCache(RecordCache):
    """Evicts what is still on its way to the disk."""

    def begin(self, entry: CachedRecord, record: Record) -> None:
        super().begin(entry, record)
        entry.pending -= 1

    def finish(self, entry: CachedRecord, record: Record) -> None:
        entry.pending += 1
        super().finish(entry, record)


class TrustingLeader(Leader):
    """Skips rule (a): answers from memory without asking whether it still leads."""

    async def _confirm(self, term: Term, key: RegisterKey, deadline: float) -> None:
        """It will do."""


class StubbornLeader(Leader):
    """Skips rule (b): goes on under the ballot of an Accept whose fate is unknown, and believes what it had learned before."""

    async def _write(
        self,
        term: Term,
        key: RegisterKey,
        base: Record,
        value: bytes | None,
        *,
        settles: bool = False,
        attempt: _Attempt | None = None,
    ) -> Version:
        was_closed = term.closed
        try:
            return await super()._write(term, key, base, value, settles=settles, attempt=attempt)
        except BaseException:
            term.closed = was_closed
            self._remember(term, key, base)
            raise


class ConfidentLeader(Leader):
    """Calls a write whose fate is unknown a failure."""

    async def _update(self, partition: int, key: RegisterKey, change: Change, deadline: float) -> Outcome:
        try:
            return await super()._update(partition, key, change, deadline)
        except OutcomeUnknown:
            return Outcome(False, b"something else")


class ReusingLeader(Leader):
    """Leads once more under the ballot that its last life led under."""

    def take_ballot(self, partition: int) -> Ballot:
        promised = self._promised(partition)
        if partition not in self._rounds and promised.proposer.startswith(f"{self._me}/"):
            self._note(partition, promised)
            return promised
        return super().take_ballot(partition)


class RepeatingLeader(Leader):
    """Forgets that an earlier Accept of the same update is in doubt, and decides anew."""

    async def _try(
        self, term: Term, key: RegisterKey, change: Change, attempt: _Attempt | None, deadline: float
    ) -> Outcome:
        return await super()._try(term, key, change, None, deadline)


class UnfencedCreation(Leader):
    """Creates whatever is absent, whenever the request arrives."""

    async def _try(
        self, term: Term, key: RegisterKey, change: Change, attempt: _Attempt | None, deadline: float
    ) -> Outcome:
        if change.mode == ABSENT_ONLY and attempt is None:
            record = self._recall(term, key) or (await self._learn(term, key, deadline))[0]
            change = dataclasses.replace(change, expected=token_of(record.version, term.fence))
        return await super()._try(term, key, change, attempt, deadline)


class UncountedAbsence(Leader):
    """Takes one absence without a record for another, whatever was purged in between."""

    async def _try(
        self, term: Term, key: RegisterKey, change: Change, attempt: _Attempt | None, deadline: float
    ) -> Outcome:
        if change.mode == ABSENT_ONLY and change.expected.startswith(token_of(NO_VERSION, NO_BALLOT)):
            change = dataclasses.replace(change, expected=token_of(NO_VERSION, term.fence))
        return await super()._try(term, key, change, attempt, deadline)


class QuorumPurger(Purger):
    """Purges what a quorum of the replicas holds."""

    def _enough(self, rule: QuorumRule, names: Collection[str]) -> bool:
        return rule.satisfied(names)


class HalfRuleLeader(Leader):
    """Leads by the old group alone while the layout changes."""

    async def _begin_term(self, partition: int, deadline: float) -> Term:
        term = await super()._begin_term(partition, deadline)
        term.rule = QuorumRule(term.rule.groups[:1])
        return term


class _HalfView:
    """A view under which any one replica is enough."""

    def __init__(self, view: LayoutView, me: str) -> None:
        self._view = view
        self._me = me

    def __getattr__(self, name: str) -> Any:
        return getattr(self._view, name)

    def rule(self, partition: int) -> QuorumRule:
        members = self._view.rule(partition).members
        return QuorumRule(((self._me if self._me in members else members[0],),))


def _read_from_one(life: Life) -> None:
    life.registers._reader._view = cast("LayoutView", _HalfView(life.view, life.machine.name))


class _LaxMender(RegisterMender):
    """Believes that whatever a quorum held when it was asked may be taken over."""

    def _is_current(self, found: Decided, fence: Ballot) -> bool:
        return True


class CredulousMender(RegisterMender):
    """Takes what this replica, or whoever has the newest, holds for decided."""

    async def _look(self, partition: int, key: RegisterKey, rule: QuorumRule) -> Decided | None:
        found = await super()._look(partition, key, rule)
        if found is not None:
            return found
        newest = ABSENT
        fence = self._acceptor.state(partition).fence
        request = Read(partition, key.table, key.partition, key.sort)
        async for _, answer in self._scatter.send(rule.members, request, deadline_s=2.0):
            if not isinstance(answer, HoldfastError) and answer.message.record.version > newest.version:
                newest = answer.message.record
        return Decided(Copied(key, newest, decided=True), fence)


def _credulous_mender(life: Life) -> None:
    life.mender = CredulousMender(life.scatter, life.view, life.acceptor, life.registers)


def _lax_mender(life: Life) -> None:
    life.mender = _LaxMender(life.scatter, life.view, life.acceptor, life.registers)


def _read_from_leader(life: Life) -> None:
    async def read(partition: int, key: RegisterKey) -> Reading:
        return await life.registers.settle(key, partition=partition)

    cast("Any", life.registers._reader).read = read


def _storeless(life: Life) -> None:
    def stores(partition: int) -> bytes:
        return b""

    cast("Any", life.view).stores = stores


def _unpinned(life: Life) -> None:
    life.acceptor._cache = _UnpinnedCache(900)


FAULTS: dict[str, Parts] = {
    "acceptor forgets its promises in a crash": Parts(acceptor=ForgetfulAcceptor),
    "acceptor answers before its promise is durable": Parts(acceptor=HastyAcceptor),
    "acceptor answers before its accept is durable": Parts(acceptor=UnsyncedAcceptor),
    "acceptor takes its memory for its disk": Parts(acceptor=MemoryAcceptor),
    "acceptor accepts below its promise": Parts(acceptor=ObedientAcceptor),
    "acceptor evicts what is not durable yet": Parts(rig=_unpinned),
    "read quorum of one": Parts(rig=_read_from_one),
    "ballot reused after a restart": Parts(leader=ReusingLeader),
    "leader answers reads alone": Parts(leader=TrustingLeader, rig=_read_from_leader),
    "leader skips rule (a)": Parts(leader=TrustingLeader),
    "leader skips rule (b)": Parts(leader=StubbornLeader),
    "leader calls unknown a no": Parts(leader=ConfidentLeader),
    "leader repeats what is in doubt": Parts(leader=RepeatingLeader),
    "late creations are not fenced": Parts(leader=UnfencedCreation),
    "leader uses half of a joint rule": Parts(leader=HalfRuleLeader),
    "learner votes": Parts(acceptor=EagerLearner),
    "acceptor ignores which stores it votes with": Parts(acceptor=StoreBlindAcceptor),
    "nobody minds which stores vote": Parts(rig=_storeless),
    "copier takes over undecided records": Parts(acceptor=CredulousCopier),
    "anti-entropy takes over undecided records": Parts(acceptor=CredulousCopier, rig=_credulous_mender),
    "copier copies nothing": Parts(acceptor=EmptyHandedCopier),
    "purge with a quorum": Parts(purger=QuorumPurger),
    "purge without a promise": Parts(acceptor=UnpromisedFence),
    "absences are all the same": Parts(leader=UncountedAbsence),
    "import across a purge": Parts(acceptor=UnfencedImport, rig=_lax_mender),
}
