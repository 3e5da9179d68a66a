"""The tidier: a node gives up the chunks that belong elsewhere, once those who should hold them do.

Two things bring chunks to a node where they don't belong: a layout change that moved their partition away, and writes for a replica
that was absent (handoffs, `cluster.chunks.spread`). Both look the same, and need no mark: the trees say in which partitions there
are chunks in so many copies, and the layout says whether this node is one of their holders.

It never deletes on faith: a reference goes only when every node that should hold it has confirmed that it does; what one lacks is
sent to it first. So a node that was away during a change, and comes back with the only copy of something, hands it over instead of
dropping it. What no live root names is not handed over, so that nothing deleted comes back: a reference of a retired root goes when
all holders have it too, or when its root has been reclaimed; one that no root ever named is a write in progress, or waste, and left
to the sweep. Registers need no tidying: a replica that leaves a partition forgets them at once.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import crc32c

from cluster.chunks.listing import REFERENCES_LIMIT, whole
from cluster.chunks.messages import HoldChunks, ListedChunk, ListedReference, PutChunk
from cluster.chunks.store import ChunkEntry, ChunkStore, Reference
from cluster.doors.clock import Clock
from cluster.errors import Corrupt, HoldfastError, NotFound, StaleLayout
from cluster.governance.installed import InstalledLayout
from cluster.governance.state import LayoutState
from cluster.repair.budget import RepairBudget
from cluster.repair.judge import Judge, Verdict
from cluster.repair.messages import Describe
from cluster.rpc.caller import Caller

START_DELAY_S = 10.0
"""After a layout is in force: reads that began under the one before find their chunks where they were."""

LOOK_S = 3.0
"""Between looks at whether there is anything foreign."""

RETRY_S = 10.0
"""After something could not be given up, doubled up to `RETRY_LIMIT_S`."""

RETRY_LIMIT_S = 40.0

RETRY_SHARE = 2 / 3
"""Of the time for which a replaced version's references are kept, the most between two looks: what is retired is seen to be, and
goes when its root is reclaimed."""

PAGE = 64
"""Chunks looked at between two pauses."""

PAUSE_S = 0.01
"""Between two pages, so that users' requests come first."""

CALL_DEADLINE_S = 10.0

AWAY_LIMIT = 5000
"""References judged in one look although a holder is away, so that a long absence costs little; the next look goes on behind them."""

RETIRED_LIMIT = 50_000
"""References remembered as named by a retired root."""

Pairs = Sequence[tuple[bytes, bytes]]


@dataclass(slots=True)
class _Foreign:
    """A chunk that belongs elsewhere: what is to be handed over, and what may go when the holders have it."""

    entry: ChunkEntry
    holders: tuple[str, ...]
    live: list[Reference] = field(default_factory=list)
    retired: list[Reference] = field(default_factory=list)
    unnamed: list[bytes] = field(default_factory=list)
    """Referrers that no root names: of a write in progress, or waste."""


class Tidier:
    """See the module. ``on_unshared``: told references that no root names, and whether none of the chunk's holders has them."""

    def __init__(
        self,
        me: str,
        caller: Caller,
        chunks: ChunkStore,
        installed: InstalledLayout,
        judge: Judge,
        budget: RepairBudget,
        clock: Clock,
        *,
        retired_grace_s: float,
    ) -> None:
        self._me = me
        self._caller = caller
        self._chunks = chunks
        self._installed = installed
        self._pause_limit_s = max(LOOK_S, min(RETRY_LIMIT_S, RETRY_SHARE * retired_grace_s))
        self._judge = judge
        self._budget = budget
        self._clock = clock
        self._changed = asyncio.Event()
        self._retired: dict[tuple[bytes, bytes], None] = {}
        """References seen to be named by a retired root only: once no root names them, they are dead for ever."""
        self._away_left = 0
        self._resume = 0
        """The partition at which the next look begins."""
        self.on_unshared: Callable[[Pairs, bool], None] = lambda references, lone: None
        self.queue_length = 0
        """Partitions with foreign chunks."""
        self.given_up = 0
        """Chunks handed over and dropped."""
        self.last_error = ""
        self.waiting_for = ""
        installed.on_install(lambda _: self._changed.set())

    async def run(self) -> None:
        rested = 0
        least = min(RETRY_S, self._pause_limit_s)
        pause = least
        while True:
            self._changed.clear()
            state = self._installed.state
            if state is None or state.next is not None:
                self.waiting_for = "a layout in force" if state is None else "the layout change to finish"
                await self._changed.wait()
                continue
            partitions = self._foreign_partitions(state)
            self.queue_length = len(partitions)
            if not partitions:
                self.waiting_for, self.last_error = "", ""
                await self._unchanged_for(LOOK_S)
                continue
            if rested != state.epoch and state.epoch > 1:
                self.waiting_for = "readers of the earlier layout"
                if not await self._unchanged_for(START_DELAY_S):
                    continue
            rested = state.epoch
            await self._budget.wait_running()
            self.waiting_for = ""
            clean = False
            try:
                clean = await self._tidy(state, partitions)
            except StaleLayout:
                continue
            except HoldfastError as error:
                self.last_error = error.message
            if clean:
                self.last_error = ""
            await self._unchanged_for(LOOK_S if clean else pause)
            pause = least if clean else min(2 * pause, self._pause_limit_s)

    async def _unchanged_for(self, seconds: float) -> bool:
        """Wait so long; False as soon as the layout state is another one, whose own delay begins then."""
        try:
            async with asyncio.timeout(seconds):
                await self._changed.wait()
        except TimeoutError:
            return True
        return False

    def _foreign_partitions(self, state: LayoutState) -> list[int]:
        """Where this node has chunks in more copies than its place in the preference list asks for."""
        layout = state.current
        return sorted(
            {
                partition
                for copies, tree in self._chunks.trees().items()
                for partition in range(layout.partitions)
                if self._me not in layout.placement(partition, copies) and tree.count(layout.partition_bits, partition)
            }
        )

    async def _tidy(self, state: LayoutState, partitions: Sequence[int]) -> bool:
        """Look at every chunk held in these partitions; whether nothing foreign is left."""
        clean = True
        bits = state.current.partition_bits
        self._away_left = AWAY_LIMIT
        start = bisect_left(partitions, self._resume)
        self._resume = 0
        for partition in (*partitions[start:], *partitions[:start]):
            if self._away_left <= 0 and not self._resume:
                self._resume = partition
            after: bytes | None = None
            while True:
                self._require_unchanged(state)
                entries = await self._chunks.list_partition(partition, bits, after, PAGE)
                foreign = [f for f in (self._foreign(entry, partition, state) for entry in entries) if f is not None]
                if foreign:
                    clean &= await self._give_up(foreign, state)
                if len(entries) < PAGE:
                    break
                after = entries[-1].chunk
                await self._clock.sleep(PAUSE_S)
            self.queue_length -= 1
        return clean

    def _foreign(self, entry: ChunkEntry, partition: int, state: LayoutState) -> _Foreign | None:
        """Where a chunk belongs, when it isn't here. One without references is left to the store's own grace."""
        copies = max((reference.replicas for reference in entry.references), default=0)
        holders = state.current.placement(partition, copies) if copies else (self._me,)
        return None if self._me in holders else _Foreign(entry, holders)

    def _require_unchanged(self, state: LayoutState) -> None:
        if not self._installed.check(state.epoch):
            raise StaleLayout("the layout changed while chunks were tidied", version=self._installed.epoch)

    async def _give_up(self, foreign: list[_Foreign], state: LayoutState) -> bool:
        """Make sure that the holders have what is needed of these chunks, then drop it here. Whether all of it could be dropped."""
        away = sorted({name for f in foreign for name in f.holders if not self._installed.is_alive(name)})
        if away:
            self.waiting_for = f"{', '.join(away)} to be back for copies kept here meanwhile"
        at_home = [f for f in foreign if not set(away) & set(f.holders)]
        if self._away_left > 0:
            # What is seen to be retired while a holder is away is known to be dead when its root is reclaimed.
            waiting = [f for f in foreign if set(away) & set(f.holders)]
            self._away_left -= sum(len(f.entry.references) for f in waiting)
            await self._sort(waiting)
        if not at_home:
            return False
        clean = await self._sort(at_home) and len(at_home) == len(foreign)
        names = sorted({name for f in at_home for name in f.holders})
        held = {name: await self._try_hand_over(name, [f for f in at_home if name in f.holders]) for name in names}
        for f in at_home:
            everywhere = [held[name].get(f.entry.chunk, frozenset()) for name in f.holders]
            kept = len(f.entry.references) - len(f.live) - len(f.retired)
            for reference in (*f.live, *f.retired):
                if all(reference.referrer in referrers for referrers in everywhere):
                    # Handing over may have taken long: by a newer layout this node may be a holder, on which others rely.
                    self._require_unchanged(state)
                    await self._chunks.drop_reference(f.entry.chunk, reference.referrer)
                else:
                    kept += 1
            answered = all(f.entry.chunk in held[name] for name in f.holders)
            for referrer in f.unnamed:
                lone = answered and not any(referrer in referrers for referrers in everywhere)
                self.on_unshared([(f.entry.chunk, referrer)], lone)
            self.given_up += not kept
            clean &= not kept
        return clean

    async def _sort(self, foreign: Sequence[_Foreign]) -> bool:
        """Fill in which references are needed; drop those that are known to be dead. False when some are left as they are."""
        pairs = [(f.entry.chunk, r.referrer) for f in foreign for r in f.entry.references]
        verdicts = dict(zip(pairs, await self._judge.judge_each(pairs), strict=True))
        known = True
        for f in foreign:
            for reference in f.entry.references:
                pair = (f.entry.chunk, reference.referrer)
                verdict = verdicts[pair]
                if isinstance(verdict, HoldfastError):
                    known, self.last_error = False, verdict.message
                elif verdict is Verdict.LIVE:
                    f.live.append(reference)
                elif verdict is Verdict.RETIRED:
                    f.retired.append(reference)
                    if len(self._retired) < RETIRED_LIMIT:
                        self._retired[pair] = None
                elif pair in self._retired:
                    del self._retired[pair]
                    await self._chunks.drop_reference(*pair)
                else:
                    f.unnamed.append(reference.referrer)
                    known = False
        return known

    async def _try_hand_over(self, name: str, foreign: Sequence[_Foreign]) -> Mapping[bytes, frozenset[bytes]]:
        """As `_hand_over`; nothing counts as held by a node that fails: what belongs to others is not to wait for it."""
        try:
            return await self._hand_over(name, foreign)
        except StaleLayout:
            raise
        except HoldfastError as error:
            self.last_error = error.message
            return {}

    async def _hand_over(self, name: str, foreign: Sequence[_Foreign]) -> Mapping[bytes, frozenset[bytes]]:
        """Have ``name`` hold the live references of these chunks; which references it holds of each then."""
        question = Describe(tuple(f.entry.chunk for f in foreign))
        reply = await self._caller.call(name, question, deadline_s=CALL_DEADLINE_S)
        held: dict[bytes, frozenset[bytes]] = {}
        for f, listed in zip(foreign, reply.message.chunks, strict=True):
            there = listed if listed is None else await whole(self._caller, name, listed)
            known = frozenset[bytes]() if there is None else frozenset(r.referrer for r in there.references)
            lacking = [reference for reference in f.live if reference.referrer not in known]
            if lacking:
                done = await (
                    self._send(name, f.entry, lacking) if there is None else self._add(name, f.entry, lacking)
                )
                known |= {reference.referrer for reference in lacking} if done else frozenset()
            held[f.entry.chunk] = known
        return held

    async def _send(self, name: str, entry: ChunkEntry, references: Sequence[Reference]) -> bool:
        """The bytes, with these references; False when there is no good copy here any more."""
        async with self._budget.turn(entry.length):
            try:
                payload = await self._chunks.read(entry.chunk)
            except (NotFound, Corrupt):
                return False
            crc = crc32c.crc32c(payload)
            request = PutChunk(entry.chunk, references[0].referrer, references[0].replicas, crc, repair=True)
            await self._caller.call(name, request, payload, deadline_s=CALL_DEADLINE_S)
        return await self._add(name, entry, references[1:])

    async def _add(self, name: str, entry: ChunkEntry, references: Sequence[Reference]) -> bool:
        """References to a chunk that is there; False when it has gone meanwhile."""
        for start in range(0, len(references), REFERENCES_LIMIT):
            part = references[start : start + REFERENCES_LIMIT]
            listed = ListedChunk(
                entry.chunk, entry.length, tuple(ListedReference(r.referrer, r.replicas) for r in part)
            )
            reply = await self._caller.call(name, HoldChunks((listed,)), deadline_s=CALL_DEADLINE_S)
            if not reply.message.held[0]:
                return False
        return True
