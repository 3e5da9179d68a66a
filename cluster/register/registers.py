"""Registers as a gateway uses them: reads, scans and updates of any register in the cluster, from any node.

Routes an update to the first live replica of its partition, which leads it, and moves on to the next when that one is gone, hung
or stopping. A conditional update may be asked of two leaders, and executed by the first at any later time: it replaces a value that is
unique, or an absence at one version, so that it can take effect only once, and whichever comes second finds the value already
there. An unconditional one is never asked twice once it may have been executed. Owns no state but a short memory of replicas that
did not answer.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from cluster.doors.clock import Clock
from cluster.errors import (
    Busy,
    HoldfastError,
    Invalid,
    NotReady,
    OutcomeUnknown,
    PeerUnavailable,
    QuorumUnavailable,
    StaleLayout,
)
from cluster.register.ballot import NO_BALLOT, Version
from cluster.register.change import ANY, SETTLE, Absence, Change, creation, replacement
from cluster.register.key import RegisterKey
from cluster.register.leader import Outcome
from cluster.register.messages import Update
from cluster.register.reader import Reader, Reading, ScanPage
from cluster.register.record import Record
from cluster.register.scatter import Scatter
from cluster.register.view import LayoutView
from cluster.rpc.caller import Caller

TOTAL_DEADLINE_S = 8.0
"""For an update or a read, all attempts together."""

ATTEMPT_DEADLINE_S = 1.5
"""For one leader's answer while there are others to ask."""

UNAVAILABLE_PATIENCE_S = 1.5
"""How long a lack of quorum is taken for a passing one (a leader just died, a disk just replaced)."""

PAUSE_S = 0.02
"""Between rounds of attempts; doubles to `PAUSE_LIMIT_S`, with jitter."""

PAUSE_LIMIT_S = 0.3

LEAST_ATTEMPT_S = 0.2
"""A leader is not asked at all when there is less time left."""

AVOID_S = 2.0
"""A leader that did not answer in time is asked last for so long."""


class Registers:
    def __init__(
        self, me: str, caller: Caller, scatter: Scatter, view: LayoutView, clock: Clock, rng: random.Random
    ) -> None:
        self._me = me
        self._caller = caller
        self._view = view
        self._clock = clock
        self._rng = rng
        self._reader = Reader(me, scatter, view, self._settle)
        self._avoid: dict[str, float] = {}

    @property
    def reader(self) -> Reader:
        return self._reader

    async def read(self, key: RegisterKey, *, partition: int | None = None) -> bytes | None:
        """The register's value, linearizably; None when it does not exist. Raises QuorumUnavailable."""
        return (await self._read(key, partition)).record.value

    async def _read(self, key: RegisterKey, partition: int | None) -> Reading:
        deadline = self._clock.monotonic() + TOTAL_DEADLINE_S
        patience = self._clock.monotonic() + UNAVAILABLE_PATIENCE_S
        pause = PAUSE_S
        while True:
            try:
                return await self._reader.read(self._partition(key, partition), key)
            except (StaleLayout, QuorumUnavailable, NotReady) as error:
                await self._pause(error, pause, deadline if isinstance(error, StaleLayout) else patience)
                pause = min(2 * pause, PAUSE_LIMIT_S)

    async def scan(self, table: str, partition_key: bytes, after: bytes, prefix: bytes, limit: int) -> ScanPage:
        """See `Reader.scan`. Raises Invalid for a ``limit`` below 1."""
        if limit < 1:
            raise Invalid("a listing needs a limit of at least 1", field="limit")
        deadline = self._clock.monotonic() + TOTAL_DEADLINE_S
        patience = self._clock.monotonic() + UNAVAILABLE_PATIENCE_S
        pause = PAUSE_S
        while True:
            try:
                partition = self._view.partition_of(partition_key)
                return await self._reader.scan(partition, table, partition_key, after, prefix, limit)
            except (StaleLayout, QuorumUnavailable, NotReady) as error:
                await self._pause(error, pause, deadline if isinstance(error, StaleLayout) else patience)
                pause = min(2 * pause, PAUSE_LIMIT_S)

    async def compare_and_set(
        self,
        key: RegisterKey,
        expected: bytes | None,
        value: bytes | None,
        *,
        absence: Absence | None = None,
        partition: int | None = None,
    ) -> Outcome:
        """Replace exactly ``expected`` (None: absent) by ``value`` (None: delete). ``value`` must be unique to this change
        (carry an id of the write) so that finding it in place means that it was applied, by this call or an earlier one that ended
        as unknown. To repeat a creation of unknown outcome, give every try the same ``absence``: only the register that was absent
        then is created. Raises QuorumUnavailable (nothing changed) and OutcomeUnknown."""
        if expected is not None:
            return await self._update(key, replacement(expected, value), partition)
        if absence is not None and absence.version is not None:
            return await self._update(key, creation(absence.version, absence.fence, value), partition)
        deadline = self._clock.monotonic() + TOTAL_DEADLINE_S
        record, fence = await self._read(key, partition)
        while True:
            if record.value is not None or value is None:
                return Outcome(record.value == value, record.value, record.version, fence)
            if absence is not None:
                absence.version, absence.fence = record.version, fence
            outcome = await self._update(key, creation(record.version, fence, value), partition)
            if outcome.applied or outcome.current is not None:
                return outcome
            # Still, or again, absent, at another version or fence: somebody settled it, created and deleted it, or purges. The
            # leader has just told what it is, as good as another read; other replicas may have met another fence.
            record, fence = Record(outcome.version, None), outcome.fence
            if self._clock.monotonic() >= deadline:
                raise QuorumUnavailable("the register kept changing while it was to be created", retry_after_s=2)

    async def put(self, key: RegisterKey, value: bytes) -> None:
        """Set without a condition. Raises QuorumUnavailable, OutcomeUnknown."""
        await self._update(key, Change(ANY, value), None)

    async def settle(self, key: RegisterKey, *, partition: int) -> Reading:
        """Have the partition's leader decide what the register holds. Raises QuorumUnavailable."""
        return await self._settle(partition, key)

    async def write_again(self, key: RegisterKey, settled: Reading, *, partition: int) -> None:
        """Write what was settled anew, because this node holds something newer of which the leader's quorum has never heard; nothing when
        the register is no longer that. This node leads it itself: its ballot is above all that it has accepted, and that of
        the leader may not be. Raises QuorumUnavailable, OutcomeUnknown (nothing that anybody can see has changed)."""
        (version, value), fence = settled
        change = creation(version, fence, None) if value is None else replacement(value, value)
        request = Update(partition, key.table, key.partition, key.sort, change.mode, change.value, change.expected)
        await self._caller.call(self._me, request, deadline_s=ATTEMPT_DEADLINE_S)

    async def delete_again(self, key: RegisterKey, version: Version, *, partition: int) -> None:
        """Write the tombstone of this version anew, so that replicas that lack it get it; nothing when the register is no longer that
        tombstone. Settling would not do: what a quorum holds is settled. Raises QuorumUnavailable, OutcomeUnknown."""
        await self._update(key, creation(version, NO_BALLOT, None), partition)

    async def _settle(self, partition: int, key: RegisterKey) -> Reading:
        outcome = await self._update(key, Change(SETTLE), partition)
        return Reading(Record(outcome.version, outcome.current), outcome.fence)

    def _partition(self, key: RegisterKey, partition: int | None) -> int:
        return self._view.partition_of(key.partition) if partition is None else partition

    async def _update(self, key: RegisterKey, change: Change, at: int | None) -> Outcome:
        start = self._clock.monotonic()
        deadline, patience = start + TOTAL_DEADLINE_S, start + UNAVAILABLE_PATIENCE_S
        doubt = _Doubt()
        pause = PAUSE_S
        while True:
            partition = self._partition(key, at)
            request = Update(partition, key.table, key.partition, key.sort, change.mode, change.value, change.expected)
            answer = await self._ask_leaders(change, request, deadline, doubt)
            if isinstance(answer, Outcome):
                return self._judge(change, answer, doubt)
            passing = isinstance(answer, StaleLayout | Busy)
            until = deadline if passing or doubt.cause is not None else patience
            if self._clock.monotonic() + pause >= until:
                if doubt.cause is not None:
                    raise _unknown() from doubt.cause
                if isinstance(answer, QuorumUnavailable):
                    raise answer
                raise QuorumUnavailable(
                    f"no replica of partition {partition} leads it now ({answer})", partition=partition, retry_after_s=2
                ) from answer
            await self._clock.sleep(pause * (0.5 + self._rng.random()))
            pause = min(2 * pause, PAUSE_LIMIT_S)

    async def _ask_leaders(
        self, change: Change, request: Update, deadline: float, doubt: _Doubt
    ) -> Outcome | HoldfastError:
        """The first answer of a leader, or why the last one asked gave none."""
        failure: HoldfastError | None = None
        for name in self._leaders(request.partition):
            wait = min(ATTEMPT_DEADLINE_S, deadline - self._clock.monotonic())
            if failure is not None and wait < LEAST_ATTEMPT_S:
                break
            try:
                reply = await self._caller.call(name, request, deadline_s=max(wait, LEAST_ATTEMPT_S))
            except (PeerUnavailable, NotReady, Busy, StaleLayout, QuorumUnavailable, Invalid) as error:
                # Certainly not executed there.
                failure = error
                if isinstance(error, StaleLayout):
                    await self._view.refresh(name)
                    break
                if isinstance(error, Invalid) and doubt.cause is None:
                    raise
            except HoldfastError as error:
                # PeerLost, OutcomeUnknown, or a fault over there.
                self._avoid[name] = self._clock.monotonic() + AVOID_S
                if change.mode == ANY:
                    raise _unknown() from error
                failure = error
                if change.mode != SETTLE:
                    doubt.cause = error
            else:
                message = reply.message
                return Outcome(message.applied, message.current, message.record.version, message.fence)
        assert failure is not None
        return failure

    def _judge(self, change: Change, outcome: Outcome, doubt: _Doubt) -> Outcome:
        """What an answer means, given that an earlier attempt may have been executed."""
        if change.once and change.value is not None and outcome.current == change.value:
            return outcome._replace(applied=True)
        if outcome.applied or doubt.cause is None:
            return outcome
        # The condition failed on something else: ours may have been there in between.
        raise _unknown() from doubt.cause

    def _leaders(self, partition: int) -> list[str]:
        """Whom to ask to lead, in order: the live replicas by preference, those that lately failed to answer last; the dead
        too when nobody seems alive."""
        now = self._clock.monotonic()
        members = self._view.rule(partition).members
        alive = [name for name in members if self._view.is_alive(name)]
        return sorted(alive or members, key=lambda name: self._avoid.get(name, 0.0) > now)

    async def _pause(self, error: HoldfastError, pause: float, until: float) -> None:
        if self._clock.monotonic() + pause >= until:
            raise error
        await self._clock.sleep(pause * (0.5 + self._rng.random()))


@dataclass(slots=True)
class _Doubt:
    """Why an attempt may have been executed although it gave no answer."""

    cause: HoldfastError | None = None


def _unknown() -> OutcomeUnknown:
    return OutcomeUnknown("whether the change took effect is not known; look before you repeat it", retry_after_s=2)
