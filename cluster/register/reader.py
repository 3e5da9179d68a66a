"""Linearizable reads by any node: ask a quorum; when it agrees on the newest version, that is the answer.

Answers count together only from replicas that agree about whose disks were replaced (docs/decisions/amnesia.md).

A version that a quorum holds is decided, and a newer decided one would show in that quorum. Where replicas differ (a write under
way, or one that a replica missed) the partition's leader settles the register first. Asks the fewest replicas that can answer,
itself first; the others after `HEDGE_DELAY_S` or an error. Owns no state.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import NamedTuple, TypeVar

from cluster.errors import HoldfastError, QuorumUnavailable, StaleLayout
from cluster.register.ballot import Ballot
from cluster.register.key import RegisterKey
from cluster.register.messages import Read, Scan, Scanned, Value
from cluster.register.quorum import QuorumRule
from cluster.register.record import ABSENT, Record
from cluster.register.scatter import Scatter
from cluster.register.view import LayoutView
from cluster.rpc.message import Request

HEDGE_DELAY_S = 0.1
"""A replica that has not answered a read by then is joined by the next ones."""

CALL_DEADLINE_S = 2.0
"""For one replica's answer."""

SCAN_LIMIT = 512
"""Registers in one page of one replica."""

R = TypeVar("R", Value, Scanned)


class Reading(NamedTuple):
    """A decided record, and the highest fence among the replicas that told it."""

    record: Record
    fence: Ballot


Settle = Callable[[int, RegisterKey], Awaitable[Reading]]


class ScanPage(NamedTuple):
    """Live registers of a range, ``(sort key, value)`` in order, and where to go on: None at the end of the range."""

    entries: list[tuple[bytes, bytes]]
    resume: bytes | None


class Reader:
    def __init__(self, me: str, scatter: Scatter, view: LayoutView, settle: Settle) -> None:
        self._me = me
        self._scatter = scatter
        self._view = view
        self._settle = settle
        self.reads = 0
        self.settled = 0

    async def read(self, partition: int, key: RegisterKey) -> Reading:
        """The register's decided record. Raises QuorumUnavailable, StaleLayout (look at the layout again), NotReady."""
        rule = self._view.rule(partition)
        epoch = self._view.epoch
        replies = await self._ask(partition, rule, Read(partition, key.table, key.partition, key.sort))
        records = {name: message.record for name, message in replies.items()}
        newest = max(record.version for record in records.values())
        holders = [name for name, record in records.items() if record.version == newest]
        if rule.satisfied(holders) and self._view.check(epoch):
            self.reads += 1
            return Reading(records[holders[0]], max(message.fence for message in replies.values()))
        self.settled += 1
        return await self._settle(partition, key)

    async def scan(
        self, partition: int, table: str, partition_key: bytes, after: bytes, prefix: bytes, limit: int
    ) -> ScanPage:
        """Up to ``limit`` live registers with sort keys above ``after`` that start with ``prefix``; each as current as
        `read` would give it. A page may be shorter although there is more: go on from ``resume``."""
        rule = self._view.rule(partition)
        epoch = self._view.epoch
        ask = min(limit, SCAN_LIMIT)
        replies = await self._ask(partition, rule, Scan(partition, table, partition_key, after, prefix, ask))
        pages: dict[str, dict[bytes, Record]] = {}
        end: bytes | None = None
        for name, message in replies.items():
            pages[name] = {entry.sort_key: entry.record for entry in message.entries}
            if message.more:
                # Beyond its last entry this replica's page says nothing.
                last = message.entries[-1].sort_key
                end = last if end is None else min(end, last)
        if not self._view.check(epoch):
            raise StaleLayout("the layout changed during a listing", version=self._view.epoch)
        entries: list[tuple[bytes, bytes]] = []
        for sort_key in sorted({key for page in pages.values() for key in page}):
            if end is not None and sort_key > end:
                break
            records = {name: page.get(sort_key, ABSENT) for name, page in pages.items()}
            newest = max(record.version for record in records.values())
            if rule.satisfied([name for name, record in records.items() if record.version == newest]):
                value = next(record.value for record in records.values() if record.version == newest)
            else:
                self.settled += 1
                value = (await self._settle(partition, RegisterKey(table, partition_key, sort_key))).record.value
            if value is not None:
                entries.append((sort_key, value))
            if len(entries) == limit:
                return ScanPage(entries, sort_key)
        return ScanPage(entries, end)

    async def _ask(self, partition: int, rule: QuorumRule, request: Request[R]) -> dict[str, R]:
        """Answers that satisfy the rule, from the fewest replicas that will do. They agree about which disks the replicas have: a process
        that was replaced, with its disk, may still be running somewhere, and must not make up a quorum with one that has not noticed."""
        alive = self._view.is_alive
        order = sorted(rule.members, key=lambda name: 0 if name == self._me else 1 if alive(name) else 2)
        first = rule.smallest(order)
        rest = [name for name in order if name not in first]
        answers = self._scatter.send(first, request, deadline_s=CALL_DEADLINE_S)
        replies: dict[str, R] = {}
        failed: dict[str, HoldfastError] = {}
        beliefs: dict[bytes, dict[str, R]] = {}
        while len(replies) + len(failed) < len(rule.members):
            if rest:
                try:
                    async with asyncio.timeout(HEDGE_DELAY_S):
                        name, answer = await anext(answers)
                except TimeoutError:
                    self._scatter.extend(answers, rest, request, deadline_s=CALL_DEADLINE_S)
                    rest = []
                    continue
            else:
                name, answer = await anext(answers)
            if isinstance(answer, HoldfastError):
                failed[name] = answer
                if rest:
                    self._scatter.extend(answers, rest, request, deadline_s=CALL_DEADLINE_S)
                    rest = []
                if not rule.possible(failed):
                    break
                continue
            replies[name] = answer.message
            agreeing = beliefs.setdefault(answer.message.stores, {})
            agreeing[name] = answer.message
            if rule.satisfied(agreeing):
                return agreeing
            if rest and len(beliefs) > 1:
                self._scatter.extend(answers, rest, request, deadline_s=CALL_DEADLINE_S)
                rest = []
        raise await self._failure(partition, rule, failed, agreed=len(beliefs) < 2)

    async def _failure(
        self, partition: int, rule: QuorumRule, failed: dict[str, HoldfastError], *, agreed: bool
    ) -> HoldfastError:
        """What there is to say when no quorum has answered."""
        for name, error in failed.items():
            if isinstance(error, StaleLayout):
                if error.details.get("version", 0) > self._view.epoch:
                    await self._view.refresh(name)
                return error
        reasons = [f"{name}: {error.code}" for name, error in sorted(failed.items())]
        if not agreed:
            reasons.append("not all know that a disk was replaced")
        return QuorumUnavailable(
            f"partition {partition} can't be read now: a quorum of {', '.join(rule.members)} is needed ({', '.join(reasons)})",
            partition=partition,
            retry_after_s=2,
        )
