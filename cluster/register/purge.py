"""The purger: tombstones go when all replicas hold them as decided, so that deleted registers cost nothing for ever.

A tombstone is what refuses an older value; with it goes the proof that the register was ever there. So each purge first puts up a
*fence*: all replicas, not a quorum, promise a new ballot and keep it as the partition's fence, and tell which of the tombstones they hold
at that moment. Only those that all hold are forgotten then. What that shuts out, and why nothing less does
(docs/decisions/tombstones.md):

* an older Accept that arrives late meets the promise;
* a creation that was asked for before the register was created and deleted carries another fence than the leader's term has learned;
* a copy that was read before is refused by whoever has taken up the fence since.

A purge that stops half-way leaves a tombstone on some replicas, which a later one writes to all again and forgets.
Led by the partition's first live replica, as a matter of routing; two at once outbid each other and harm nothing. Owns the times at which
it first saw each tombstone, by this node's own clock, and its place in the round.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Collection, Sequence
from typing import NamedTuple

from cluster.doors.clock import Clock
from cluster.errors import HoldfastError, QuorumUnavailable, StaleLayout
from cluster.register.ballot import Version
from cluster.register.key import RegisterKey
from cluster.register.leader import Leader
from cluster.register.messages import Fenced, FencePurge, Purge, Read, Tombstone
from cluster.register.quorum import QuorumRule
from cluster.register.record import Record
from cluster.register.registers import Registers
from cluster.register.scatter import Scatter
from cluster.register.store import HeldVersion, RegisterStore
from cluster.register.view import META_PARTITION, LayoutView

TOMBSTONE_GRACE_S = 60.0
"""How old a tombstone is, by the clock of the node that purges it, before it goes. Safety does not depend on it: a purge costs the
partition's leader its ballot, and registers that are created again soon keep theirs."""

PURGE_INTERVAL_S = 10.0
"""Between two rounds over the partitions."""

PAUSE_S = 0.05
"""Between two partitions with tombstones: users' requests come first."""

CALL_DEADLINE_S = 2.0
"""For one replica's answer."""

LISTED = 512
"""Tombstones of a partition that are watched at a time."""

BATCH = 64
"""Tombstones purged behind one fence."""

AT_ONCE = 8
"""Tombstones asked about at a time."""


class _Seen(NamedTuple):
    version: Version
    since: float
    rewritten: bool
    """Whether this purger has had it written again, which gives it another version."""


class Purger:
    name = "tombstones"

    def __init__(
        self,
        me: str,
        store: RegisterStore,
        leader: Leader,
        scatter: Scatter,
        view: LayoutView,
        registers: Registers,
        clock: Clock,
        rng: random.Random,
        grace_s: float = TOMBSTONE_GRACE_S,
        interval_s: float = PURGE_INTERVAL_S,
    ) -> None:
        self._me = me
        self._store = store
        self._leader = leader
        self._scatter = scatter
        self._view = view
        self._registers = registers
        self._clock = clock
        self._rng = rng
        self._grace_s = grace_s
        self._interval_s = interval_s
        self._todo: list[int] = []
        self._seen: dict[int, dict[RegisterKey, _Seen]] = {}
        self.queue_length = 0
        """Tombstones that this node holds, when it last counted them."""
        self.last_error = ""
        self.waiting_for = ""
        self.purged = 0
        """Tombstones that this node has had forgotten by all replicas."""

    async def run(self) -> None:
        while True:
            more = await self.run_once()
            await self._clock.sleep((PAUSE_S if more else self._interval_s) * (0.5 + self._rng.random()))

    async def run_once(self) -> bool:
        """One bounded piece of work: a batch of one partition. Whether this round goes on."""
        try:
            if not self._todo:
                await self._begin_round()
            if self._todo:
                await self._visit(self._todo.pop())
        except HoldfastError as error:
            self.last_error = error.message
        return bool(self._todo)

    async def _begin_round(self) -> None:
        counts = await self._store.tombstone_counts()
        counts.pop(META_PARTITION, None)
        self.queue_length = sum(counts.values())
        self._todo = sorted(counts, reverse=True)
        self._seen = {partition: seen for partition, seen in self._seen.items() if partition in counts}
        self.waiting_for = self.last_error = ""

    async def _visit(self, partition: int) -> None:
        rule = self._view.rule(partition)
        if len(rule.groups) > 1:
            self.waiting_for = "the layout change to finish"
            return
        away = [name for name in rule.members if not self._view.is_alive(name)]
        if self._me not in rule.members or self._me != self._first(rule):
            return
        if not self._enough(rule, [name for name in rule.members if name not in away]):
            self.waiting_for = f"{', '.join(away)} to come back"
            return
        ripe = await self._ripe(partition)
        if ripe:
            await self._purge(partition, rule, ripe)

    def _first(self, rule: QuorumRule) -> str:
        return next((name for name in rule.members if self._view.is_alive(name)), "")

    def _enough(self, rule: QuorumRule, names: Collection[str]) -> bool:
        """Whether these are all replicas."""
        return all(name in names for name in rule.members)

    async def _ripe(self, partition: int) -> list[HeldVersion]:
        """The tombstones whose grace is over."""
        now = self._clock.monotonic()
        before = self._seen.get(partition, {})
        seen: dict[RegisterKey, _Seen] = {}
        ripe: list[HeldVersion] = []
        for held in await self._store.tombstones(partition, None, LISTED):
            known = before.get(held.key)
            same = known is not None and (known.rewritten or known.version == held.version)
            since = known.since if known is not None and same else now
            seen[held.key] = _Seen(held.version, since, rewritten=False)
            if now - since >= self._grace_s and len(ripe) < BATCH:
                ripe.append(held)
        self._seen[partition] = seen
        return ripe

    async def _purge(self, partition: int, rule: QuorumRule, ripe: Sequence[HeldVersion]) -> None:
        epoch, stores = self._view.epoch, self._view.stores(partition)
        agreed = await self._agreed(partition, rule, ripe)
        if not agreed:
            return
        tombstones = tuple(
            Tombstone(held.key.table, held.key.partition, held.key.sort, *held.version) for held in agreed
        )
        # A ballot above all that wrote them: every one of those is at most what this replica has promised.
        fence = FencePurge(partition, epoch, stores, *self._leader.take_ballot(partition), tombstones)
        gone = await self._fence(rule, fence)
        if not self._view.check(epoch) or self._view.stores(partition) != stores:
            raise StaleLayout("the layout or a replica's disk changed during a purge", version=self._view.epoch)
        if gone:
            await self._forget(rule, Purge(partition, epoch, stores, fence.round, fence.proposer, gone))

    async def _fence(self, rule: QuorumRule, fence: FencePurge) -> tuple[Tombstone, ...]:
        """Put up a fence; the tombstones that may go: none unless all replicas have taken it up."""
        answers: dict[str, Fenced] = {}
        async for name, answer in self._scatter.send(rule.members, fence, deadline_s=CALL_DEADLINE_S):
            if isinstance(answer, HoldfastError):
                self.last_error = f"{name}: {answer.message}"
            elif answer.message.granted and answer.message.stores == fence.stores:
                answers[name] = answer.message
        if not self._enough(rule, answers):
            return ()
        held = zip(*(answer.held for answer in answers.values()), strict=True)
        return tuple(tombstone for tombstone, by in zip(fence.tombstones, held, strict=True) if all(by))

    async def _forget(self, rule: QuorumRule, purge: Purge) -> None:
        done = 0
        async for name, answer in self._scatter.send(rule.members, purge, deadline_s=CALL_DEADLINE_S):
            if isinstance(answer, HoldfastError):
                self.last_error = f"{name}: {answer.message}"
            else:
                done += 1
        if done == len(rule.members):
            self.purged += len(purge.tombstones)

    async def _agreed(self, partition: int, rule: QuorumRule, ripe: Sequence[HeldVersion]) -> list[HeldVersion]:
        """Those which all replicas hold already, so that no leader is deposed for nothing; the others are written again, for the
        replicas that lack them."""
        gate = asyncio.Semaphore(AT_ONCE)
        agreed: list[HeldVersion] = []
        failures: list[HoldfastError] = []

        async def one(held: HeldVersion) -> None:
            async with gate:
                if failures:
                    return
                try:
                    if await self._held_by_all(partition, rule, held):
                        agreed.append(held)
                    else:
                        seen = self._seen[partition]
                        seen[held.key] = seen[held.key]._replace(rewritten=True)
                        await self._registers.delete_again(held.key, held.version, partition=partition)
                except HoldfastError as error:
                    failures.append(error)

        async with asyncio.TaskGroup() as group:
            for held in ripe:
                group.create_task(one(held))
        if failures and not agreed:
            raise failures[0]
        return agreed

    async def _held_by_all(self, partition: int, rule: QuorumRule, held: HeldVersion) -> bool:
        """Raises QuorumUnavailable when somebody does not answer."""
        request = Read(partition, held.key.table, held.key.partition, held.key.sort)
        holders: set[str] = set()
        answered: set[str] = set()
        async for name, answer in self._scatter.send(rule.members, request, deadline_s=CALL_DEADLINE_S):
            if isinstance(answer, HoldfastError):
                continue
            answered.add(name)
            if answer.message.record == Record(held.version, None):
                holders.add(name)
        if not self._enough(rule, answered):
            missing = ", ".join(name for name in rule.members if name not in answered)
            raise QuorumUnavailable(f"tombstones are purged only when all replicas answer; {missing} did not")
        return self._enough(rule, holders)
