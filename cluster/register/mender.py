"""The mender: brings this node's copies of single registers up to what is decided; the last step of anti-entropy.

Comparing trees finds registers that two replicas hold at different versions. Which of them is right can't be told from the two: the newest
version may be an acceptance that never reached a quorum. So the mender asks all replicas. A version that a quorum holds is decided and is
taken over; everything else is settled by the partition's leader, which writes it to all if it has to. No value is taken over in another way
(`cluster.register.copying`). Only a voter mends: others copy everything. Owns no state but counters.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import NamedTuple

from cluster.errors import HoldfastError, NotReady, QuorumUnavailable, StaleLayout
from cluster.register.acceptor import Acceptor
from cluster.register.ballot import NO_BALLOT, Ballot
from cluster.register.copying import Copied, Origin
from cluster.register.key import RegisterKey
from cluster.register.messages import Read, Value
from cluster.register.quorum import QuorumRule
from cluster.register.registers import Registers
from cluster.register.scatter import Scatter
from cluster.register.store import VOTER
from cluster.register.view import LayoutView

CALL_DEADLINE_S = 2.0
"""For one replica's answer."""

BATCH = 64
"""Registers taken over in one durable step."""

AT_ONCE = 8
"""Registers asked about at a time: repair yields to users' requests."""


class Decided(NamedTuple):
    """A decided record, and the lowest fence among the replicas that hold it."""

    copied: Copied
    fence: Ballot


class RegisterMender:
    def __init__(self, scatter: Scatter, view: LayoutView, acceptor: Acceptor, registers: Registers) -> None:
        self._scatter = scatter
        self._view = view
        self._acceptor = acceptor
        self._registers = registers
        self.taken_over = 0
        """Registers taken over as decided."""
        self.settled = 0
        """Registers that a leader had to settle."""

    async def mend(self, partition: int, keys: Sequence[RegisterKey]) -> None:
        """Bring this node's copies of these registers up to what is decided. On an error some may have been mended, and the rest can be
        tried again. Raises NotReady (not a voter here), QuorumUnavailable, StaleLayout, and what `Registers.settle` raises."""
        for start in range(0, len(keys), BATCH):
            await self._mend_batch(partition, keys[start : start + BATCH])

    async def _mend_batch(self, partition: int, keys: Sequence[RegisterKey]) -> None:
        epoch, rule, stores = self._view.epoch, self._view.rule(partition), self._view.stores(partition)
        self._require_voter(partition)
        gate = asyncio.Semaphore(AT_ONCE)
        failures: list[HoldfastError] = []
        decided: list[Decided] = []
        unsettled: list[RegisterKey] = []

        async def one(key: RegisterKey) -> None:
            async with gate:
                if failures:
                    return
                try:
                    found = await self._look(partition, key, rule)
                except HoldfastError as error:
                    failures.append(error)
                    return
                if found is None:
                    unsettled.append(key)
                else:
                    decided.append(found)

        async with asyncio.TaskGroup() as group:
            for key in keys:
                group.create_task(one(key))
        # No await from here until the acceptor has decided on the first record.
        if not self._view.check(epoch):
            raise StaleLayout("the layout changed while registers were mended", version=self._view.epoch)
        self._require_voter(partition)
        # A replica that has not met the last fence here may have been asked before a purge: such a record is left to the leader.
        fence = self._acceptor.state(partition).fence
        unsettled += [found.copied.key for found in decided if not self._is_current(found, fence)]
        taken = [found for found in decided if self._is_current(found, fence)]
        if taken:
            fences = [found.fence for found in taken]
            origin = Origin(min(fences), max(fences), epoch, stores)
            records = [found.copied for found in taken]
            unsettled += await self._acceptor.import_records(partition, records, NO_BALLOT, origin)
            self.taken_over += len(taken)
        for key in unsettled:
            await self._settle(partition, key)
            self.settled += 1
        if failures:
            raise failures[0]

    async def _settle(self, partition: int, key: RegisterKey) -> None:
        """Have the leader decide. If it has decided without this replica on something older than what is held here (an acceptance that
        reached no quorum, a tombstone that others have purged), it has to be written again: comparison would find the two different for
        ever."""
        settled = await self._registers.settle(key, partition=partition)
        held = await self._acceptor.read(partition, key, self._view.epoch)
        if held.version > settled.record.version:
            await self._registers.write_again(key, settled, partition=partition)

    async def _look(self, partition: int, key: RegisterKey, rule: QuorumRule) -> Decided | None:
        """The register as decided, or None when that has to be settled."""
        request = Read(partition, key.table, key.partition, key.sort)
        replies: dict[str, Value] = {}
        failed: dict[str, str] = {}
        async for name, answer in self._scatter.send(rule.members, request, deadline_s=CALL_DEADLINE_S):
            if isinstance(answer, HoldfastError):
                failed[name] = answer.code
            else:
                replies[name] = answer.message
        if not rule.satisfied(replies):
            why = ", ".join(f"{name}: {code}" for name, code in sorted(failed.items()))
            raise QuorumUnavailable(f"registers of partition {partition} can't be mended now ({why})", retry_after_s=2)
        newest = max((reply.record for reply in replies.values()), key=lambda record: record.version)
        holders = [name for name, reply in replies.items() if reply.record.version == newest.version]
        if not rule.satisfied(holders):
            return None
        return Decided(Copied(key, newest, decided=True), min(replies[name].fence for name in holders))

    def _is_current(self, found: Decided, fence: Ballot) -> bool:
        """Whether all who hold it had met this replica's fence when they were asked."""
        return found.fence >= fence

    def _require_voter(self, partition: int) -> None:
        standing = self._acceptor.state(partition).standing
        if standing != VOTER:
            raise NotReady(
                f"this node is {standing} in partition {partition}: it copies all of it", partition=partition
            )
