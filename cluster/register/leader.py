"""The leader: what a replica does to change registers of a partition. CASPaxos (Rystsov, 2018), one ballot a partition (DESIGN 8).

It owns the terms (the ballots this node leads under) and what it learned under them. Any replica may lead when asked to; that
there is usually one is a matter of routing and never of safety. Invariants:

* a ballot is never used by two lives of a process (the proposer's name) nor twice in one (rounds only grow);
* a register has at most one update in hand here at a time;
* (a) an answer that writes nothing is confirmed by a quorum under the term's ballot before it is given: the leader may have
  been deposed since it learned what it answers from;
* (b) after an Accept whose fate is unknown the term is closed: the next update, of any register, begins with a higher ballot, so
  that a late copy of that Accept meets a promise that refuses it;
* answers are counted under the epoch that the term began in, and only while it lasts; acceptors refuse whoever believes in other
  stores (disks) behind the partition than they do, so that what a term learned from a store that is gone is never completed with
  the votes of the one in its place;
* an update that may or may not have happened ends as OutcomeUnknown, never as a yes or a no.
"""

from __future__ import annotations

import asyncio
import random
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

from cluster.doors.clock import Clock
from cluster.errors import (
    Busy,
    HoldfastError,
    NotReady,
    OutcomeUnknown,
    PeerLost,
    PeerUnavailable,
    QuorumUnavailable,
    StaleLayout,
)
from cluster.register.ballot import NO_BALLOT, NO_VERSION, Ballot, Version
from cluster.register.change import SETTLE, Change
from cluster.register.key import RegisterKey
from cluster.register.messages import Accept, Learn, Prepare
from cluster.register.quorum import QuorumRule
from cluster.register.record import Record
from cluster.register.record_cache import ENTRY_OVERHEAD_BYTES
from cluster.register.scatter import Scatter
from cluster.register.tally import Tally
from cluster.register.view import LayoutView

CALL_DEADLINE_S = 2.0
"""For one message to a replica; a replica that takes longer is waited for no more."""

LEAST_WAIT_S = 0.1
"""For the answers to anything sent, however near the deadline."""

BACK_OFF_S = 0.01
"""First pause after losing a ballot to another leader; doubles to `BACK_OFF_LIMIT_S`, with jitter."""

BACK_OFF_LIMIT_S = 0.32

UPDATES_LIMIT = 1024
"""Updates in hand at once; more are refused as busy before anything is sent. Well below the acceptors' own limits, where a refusal
would cost the term."""

KNOWN_LIMIT_BYTES = 16 * 1024 * 1024
"""Values remembered from this leader's own terms."""


@dataclass(slots=True)
class Term:
    """A partition led under one ballot, one epoch and one belief about the stores behind it."""

    partition: int
    ballot: Ballot
    epoch: int
    stores: bytes
    rule: QuorumRule
    fence: Ballot = NO_BALLOT
    """The highest fence among the replicas whose promises began the term: every purge that was complete before it is in it, and
    none can become complete while its accepts are still taken."""
    seq: int = 0
    closed: bool = False


class Outcome(NamedTuple):
    """``applied``: the change was made and ``current`` is its value. Otherwise its condition failed on ``current``. The version
    is that of ``current``, seen under this fence."""

    applied: bool
    current: bytes | None
    version: Version = NO_VERSION
    fence: Ballot = NO_BALLOT


@dataclass(slots=True)
class _Turn:
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    users: int = 0


class _Attempt(NamedTuple):
    """An Accept whose fate is unknown: what it carried, the record it was computed from, and the fence of its term."""

    wrote: Record
    base: Record
    fence: Ballot


class _DeposedError(Exception):
    """The term's ballot was refused, or no quorum answered; take another. ``newer`` names a peer with a newer layout, if one
    said so. Never leaves this module."""

    def __init__(self, newer: str) -> None:
        super().__init__()
        self.newer = newer


class Leader:
    def __init__(
        self,
        me: str,
        proposer: str,
        scatter: Scatter,
        view: LayoutView,
        clock: Clock,
        rng: random.Random,
        promised: Callable[[int], Ballot],
    ) -> None:
        self._me = me
        self._proposer = proposer
        self._scatter = scatter
        self._view = view
        self._clock = clock
        self._rng = rng
        self._promised = promised
        self._terms: dict[int, Term] = {}
        self._rounds: dict[int, int] = {}
        self._turns: dict[tuple[int, RegisterKey | None], _Turn] = {}
        self._known: OrderedDict[tuple[int, RegisterKey], tuple[Ballot, Record]] = OrderedDict()
        self._known_bytes = 0
        self.in_hand = 0
        self.updates = 0
        self.terms_begun = 0

    async def update(self, partition: int, key: RegisterKey, change: Change, deadline: float) -> Outcome:
        """Make ``change``, or say on what value its condition failed; by ``deadline`` (of `Clock.monotonic`), or soon after.
        Raises QuorumUnavailable, Busy, NotReady (not a replica): nothing was written; OutcomeUnknown."""
        if self.in_hand >= UPDATES_LIMIT:
            raise Busy("this node has too many register updates in hand")
        self.in_hand += 1
        try:
            async with self._turn(partition, key):
                return await self._update(partition, key, change, deadline)
        finally:
            self.in_hand -= 1

    async def _update(self, partition: int, key: RegisterKey, change: Change, deadline: float) -> Outcome:
        attempt: _Attempt | None = None
        pause, newer = BACK_OFF_S, ""
        while True:
            try:
                if newer:
                    await self._view.refresh(newer)
                term = await self._lead(partition, deadline)
                outcome = await self._try(term, key, change, attempt, deadline)
            except _LostAcceptError as lost:
                attempt, newer = lost.attempt or attempt, lost.newer
            except _DeposedError as deposed:
                newer = deposed.newer
            except HoldfastError as error:
                # Whatever it is, it says nothing about the attempt in doubt.
                if attempt is not None:
                    raise _unknown(key) from error
                raise
            else:
                self.updates += 1
                return outcome
            if self._clock.monotonic() + pause >= deadline:
                if attempt is not None:
                    raise _unknown(key)
                raise _unavailable(partition, "another node kept taking over")
            await self._clock.sleep(pause * (0.5 + self._rng.random()))
            pause = min(2 * pause, BACK_OFF_LIMIT_S)

    async def _try(
        self, term: Term, key: RegisterKey, change: Change, attempt: _Attempt | None, deadline: float
    ) -> Outcome:
        """One go under one term."""
        current = self._recall(term, key)
        learned = decided = False
        if current is None:
            current, decided = await self._learn(term, key, deadline)
            learned = True
        if attempt is not None:
            if _same(current, attempt.wrote, change):
                version = await self._write(term, key, current, current.value, settles=True, attempt=attempt)
                return Outcome(True, current.value, version, term.fence)
            purged = current.version == NO_VERSION and attempt.fence != term.fence
            if purged or not _same(current, attempt.base, change):
                raise _unknown(key)
            # The term's ballot shuts the earlier Accept out for good, and it was not taken: start afresh.
        if change.allows(current, term.fence):
            version = await self._write(term, key, current, change.value)
            return Outcome(True, change.value, version, term.fence)
        version = current.version
        if learned and not decided:
            version = await self._write(term, key, current, current.value, settles=True, attempt=attempt)
        elif not learned:
            await self._confirm(term, key, deadline)
        return Outcome(change.mode == SETTLE, current.value, version, term.fence)

    async def _confirm(self, term: Term, key: RegisterKey, deadline: float) -> None:
        """Make sure that the term still had a quorum's promises after the update came in. What the answers hold does not matter:
        it may be an older leader's value that a minority accepted, which can't be decided any more."""
        await self._learn(term, key, deadline)

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
        """Have a quorum accept ``value`` on top of ``base``, under the version returned. Raises _LostAcceptError when its fate is
        unknown: even where every answer so far was a refusal, the calls not waited for may yet be accepted. A write that only
        settles what is there changes nothing, whatever its fate: an earlier attempt stays the one in question."""
        term.seq += 1
        record = Record(Version(term.ballot.round, term.ballot.proposer, term.seq), value)
        request = Accept(
            term.partition,
            term.epoch,
            term.stores,
            term.ballot.round,
            term.ballot.proposer,
            term.seq,
            key.table,
            key.partition,
            key.sort,
            value,
        )
        accepted, newer = False, ""
        try:
            tally = Tally(term.rule)
            async for name, answer in self._scatter.send(term.rule.members, request, deadline_s=CALL_DEADLINE_S):
                if isinstance(answer, HoldfastError):
                    newer = newer or self._newer(name, answer)
                    tally.no(name)
                elif answer.message.ballot == term.ballot:
                    tally.yes(name, answer.message.stores)
                else:
                    self._note(term.partition, answer.message.ballot)
                    tally.no(name)
                if tally.agreed is not None and self._view.check(term.epoch):
                    accepted = True
                    self._remember(term, key, record)
                    return record.version
                if tally.agreed is not None:
                    break
                if tally.hopeless:
                    break
        finally:
            if not accepted:
                term.closed = True
                self._forget(term.partition, key)
        raise _LostAcceptError(attempt if settles else _Attempt(record, base, term.fence), newer)

    async def _learn(self, term: Term, key: RegisterKey, deadline: float) -> tuple[Record, bool]:
        """The newest record that a quorum holds under this term's ballot, and whether a quorum holds that very version (so
        that it is decided)."""
        request = Learn(
            term.partition, term.ballot.round, term.ballot.proposer, term.stores, key.table, key.partition, key.sort
        )
        tally, newer = Tally(term.rule), ""
        records: dict[str, Record] = {}
        async for name, answer in self._scatter.send(term.rule.members, request, deadline_s=self._wait(deadline)):
            if isinstance(answer, HoldfastError):
                newer = newer or self._newer(name, answer)
                tally.no(name)
            elif answer.message.promised == term.ballot:
                tally.yes(name, answer.message.stores)
                records[name] = answer.message.record
            else:
                self._note(term.partition, answer.message.promised)
                tally.no(name)
            if tally.agreed is not None and self._view.check(term.epoch):
                newest = max((records[n] for n in tally.agreed), key=lambda record: record.version)
                decided = term.rule.satisfied([n for n in tally.agreed if records[n].version == newest.version])
                if decided:
                    self._remember(term, key, newest)
                return newest, decided
            if tally.hopeless or tally.agreed is not None:
                break
        term.closed = True
        raise _DeposedError(newer)

    async def _lead(self, partition: int, deadline: float) -> Term:
        """This node's term in the partition, begun anew when there is none under the present epoch."""
        term = self._terms.get(partition)
        if term is not None and not term.closed and self._view.check(term.epoch):
            return term
        async with self._turn(partition, None):
            term = self._terms.get(partition)
            if term is not None and not term.closed and self._view.check(term.epoch):
                return term
            return await self._begin_term(partition, deadline)

    async def _begin_term(self, partition: int, deadline: float) -> Term:
        rule = self._view.rule(partition)
        if self._me not in rule.members:
            raise NotReady(
                f"this node is not a replica of partition {partition} and can't lead it", partition=partition
            )
        epoch = self._view.epoch
        ballot = self.take_ballot(partition)
        tally, outbid, newer, reasons = Tally(rule), False, "", dict[str, str]()
        fences: dict[str, Ballot] = {}
        request = Prepare(partition, ballot.round, ballot.proposer)
        async for name, answer in self._scatter.send(rule.members, request, deadline_s=self._wait(deadline)):
            if isinstance(answer, HoldfastError):
                reasons[name] = answer.code
                newer = newer or self._newer(name, answer)
                tally.no(name)
            elif answer.message.ballot == ballot:
                fences[name] = answer.message.fence
                tally.yes(name, answer.message.stores)
            else:
                outbid = True
                self._note(partition, answer.message.ballot)
                tally.no(name)
            if tally.agreed is not None and self._view.check(epoch):
                fence = max(fences[name] for name in tally.agreed)
                term = Term(partition, ballot, epoch, tally.stores, rule, fence)
                self._terms[partition] = term
                self.terms_begun += 1
                return term
            if tally.hopeless or tally.agreed is not None:
                break
        # Peers that stay silent or are gone won't come back by trying again at once; everything else (a lost race for
        # the ballot, an epoch on the way, a disk just replaced) settles by itself.
        gone = [name for name, code in reasons.items() if code in {PeerLost.code, PeerUnavailable.code, NotReady.code}]
        if not outbid and not newer and not rule.possible(gone):
            why = ", ".join(f"{name}: {code}" for name, code in sorted(reasons.items()))
            raise _unavailable(partition, f"a quorum of {', '.join(rule.members)} is needed ({why})")
        raise _DeposedError(newer)

    def take_ballot(self, partition: int) -> Ballot:
        """A ballot that was never used, above all that this node knows of. A term that is led under a lower one is over."""
        number = max(self._rounds.get(partition, 0), self._promised(partition).round) + 1
        ballot = Ballot(number, self._proposer)
        self._note(partition, ballot)
        return ballot

    # Small state

    def _wait(self, deadline: float) -> float:
        """How long to wait for answers when nothing is in doubt: giving up before the caller does lets it know so."""
        return min(CALL_DEADLINE_S, max(LEAST_WAIT_S, deadline - self._clock.monotonic()))

    def _newer(self, name: str, error: HoldfastError) -> str:
        """The name of a peer that refused because its layout is newer, else empty."""
        newer = isinstance(error, StaleLayout) and error.details.get("version", 0) > self._view.epoch
        return name if newer else ""

    def _note(self, partition: int, ballot: Ballot) -> None:
        """Somebody was promised this ballot: the next one here must be higher."""
        self._rounds[partition] = max(self._rounds.get(partition, 0), ballot.round)
        if ballot != NO_BALLOT and (term := self._terms.get(partition)) is not None and ballot > term.ballot:
            term.closed = True

    def _recall(self, term: Term, key: RegisterKey) -> Record | None:
        """What this term decided or learned as decided for the register."""
        found = self._known.get((term.partition, key))
        if found is None or found[0] != term.ballot:
            return None
        self._known.move_to_end((term.partition, key))
        return found[1]

    def _remember(self, term: Term, key: RegisterKey, record: Record) -> None:
        self._forget(term.partition, key)
        self._known[term.partition, key] = (term.ballot, record)
        self._known_bytes += ENTRY_OVERHEAD_BYTES + len(record.value or b"")
        while self._known_bytes > KNOWN_LIMIT_BYTES:
            (partition, oldest), _ = next(iter(self._known.items()))
            self._forget(partition, oldest)

    def _forget(self, partition: int, key: RegisterKey) -> None:
        found = self._known.pop((partition, key), None)
        if found is not None:
            self._known_bytes -= ENTRY_OVERHEAD_BYTES + len(found[1].value or b"")

    @asynccontextmanager
    async def _turn(self, partition: int, key: RegisterKey | None) -> AsyncIterator[None]:
        """One at a time for a register (or, with None, for beginning a term of the partition)."""
        name = (partition, key)
        turn = self._turns.setdefault(name, _Turn())
        turn.users += 1
        try:
            async with turn.lock:
                yield
        finally:
            turn.users -= 1
            if turn.users == 0:
                del self._turns[name]


class _LostAcceptError(Exception):
    """An Accept's fate is unknown. Never leaves this module."""

    def __init__(self, attempt: _Attempt | None, newer: str) -> None:
        super().__init__()
        self.attempt = attempt
        self.newer = newer


def _same(now: Record, then: Record, change: Change) -> bool:
    """Whether the register still (or again, under another ballot) holds what it held. Equal bytes prove it only for writers
    whose values are unique."""
    return now.version == then.version or (change.once and now.value is not None and now.value == then.value)


def _unknown(key: RegisterKey) -> OutcomeUnknown:
    name = key.sort.decode(errors="replace")
    return OutcomeUnknown(
        f"whether the change of {key.table} {name!r} took effect is not known; look before you repeat it"
    )


def _unavailable(partition: int, why: str) -> QuorumUnavailable:
    return QuorumUnavailable(f"partition {partition} can't be written now: {why}", partition=partition, retry_after_s=2)
