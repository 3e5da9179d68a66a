"""The copier: a node fetches what it is due.

Two occasions, one job. A layout change makes it a new replica of partitions (standing FRESH): it copies their registers from a majority
of the replicas in force, then their chunks, and the change is finished only when all nodes have. Or its store is empty, or was put
back from an old copy (standing LEARNER): it relearns each partition's registers from so many of the *other* replicas that any
quorum which once counted its vote has a member among them, their highest promise included; only then does it vote again; then
it fetches the chunks it lacks.

Invariants: a partition's standing becomes VOTER only after all that was copied is durable, and only in the epoch that the copying
began in; sources answer only under that epoch, after which no earlier write can reach them any more. References of retired roots are
left where they are: they are about to be dropped by their reclaimer, which may have told this node already. Owns the progress.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import replace

from cluster.chunks.listing import whole
from cluster.chunks.messages import ListChunks, ListedChunk, ListFilled
from cluster.chunks.store import ChunkStore, Reference
from cluster.doors.clock import Clock
from cluster.doors.offload import Offload
from cluster.errors import HoldfastError, NotReady, QuorumUnavailable, StaleLayout
from cluster.governance.installed import InstalledLayout
from cluster.governance.messages import FillProgress, GetFill
from cluster.governance.state import LayoutState
from cluster.layout.layout import Layout
from cluster.merkle.bits import set_bits
from cluster.register.acceptor import Acceptor
from cluster.register.ballot import NO_BALLOT, Ballot
from cluster.register.copying import Origin, merge_pages
from cluster.register.key import RegisterKey
from cluster.register.messages import Export, Exported
from cluster.register.quorum import majority
from cluster.register.registers import Registers
from cluster.register.store import FRESH, LEARNER, VOTER, MetaWrite, Page, PartitionRecord, RegisterStore
from cluster.register.view import META_PARTITION
from cluster.repair.budget import RepairBudget
from cluster.repair.chunk_mender import fetch_chunk
from cluster.repair.judge import Judge, Verdict, no_longer_live
from cluster.rpc.caller import Caller
from cluster.rpc.service import Handlers, IncomingCall

CALL_DEADLINE_S = 10.0
"""For one page or one chunk."""

PAGE = 500
"""Registers or chunks asked for at once."""

PARTITIONS_AT_ONCE = 16
"""Looked through side by side, since one spends its time waiting for answers and for the disk; with rests in between while users are
active. Times `PAGE` they bound what is listed in memory; payloads are bounded by the turns of the budget."""

CHUNKS_AT_ONCE = 8
"""Tasks for chunks of one page; how many are fetched at a time is the budget's to say."""

RETRY_S = 0.5
"""After a partition could not be copied; grows to `RETRY_LIMIT_S`."""

RETRY_LIMIT_S = 5.0

MOST_COPIES = 7
"""The most replicas that a volume may ask for: nodes further down a preference list never hold a partition's chunks by right."""

REFILL_META = "refill"
"""Set while a store that lost its chunks fetches them again."""


class Copier:
    """See the module. ``confirmed(name)``: whether that peer has durably taken note of this node's present store."""

    def __init__(
        self,
        me: str,
        caller: Caller,
        acceptor: Acceptor,
        registers: Registers,
        store: RegisterStore,
        chunks: ChunkStore,
        installed: InstalledLayout,
        confirmed: Callable[[str], bool],
        clock: Clock,
        rng: random.Random,
        offload: Offload,
        budget: RepairBudget,
        judge: Judge,
    ) -> None:
        self._me = me
        self._caller = caller
        self._acceptor = acceptor
        self._registers = registers
        self._store = store
        self._chunks = chunks
        self._installed = installed
        self._confirmed = confirmed
        self._clock = clock
        self._rng = rng
        self._offload = offload
        self._budget = budget
        self._judge = judge
        self._changed = asyncio.Event()
        self._epoch = 0
        self._due: set[int] = set()
        self._done: set[int] = set()
        self._review: set[int] = set()
        """Partitions that this node keeps and must look through all the same: see `_shrinks`."""
        self._refill: set[int] = set()
        self._filled: dict[str, frozenset[int]] = {}
        """Node -> the partitions in which it holds any chunks, as of the beginning of this round. Who could not say is missing here."""
        self.chunks_copied = 0
        self.bytes_copied = 0
        self.last_error = ""
        installed.on_install(self._installed_anew)

    def register(self, handlers: Handlers) -> None:
        handlers.register(GetFill, self._answer)

    @property
    def queue_length(self) -> int:
        """Partitions that are still to be copied."""
        return len(self._due) - len(self._done) + len(self._refill) + len(self._with_standing(LEARNER))

    def progress(self) -> FillProgress:
        return FillProgress(
            self._epoch, len(self._due), len(self._done), self.chunks_copied, self.bytes_copied, self.last_error
        )

    def look_again(self) -> None:
        """A standing has changed otherwise than by a new layout."""
        self._changed.set()

    async def open(self) -> None:
        """Go on with a refill that was under way."""
        state = self._installed.state
        if state is not None and await self._store.meta(REFILL_META):
            self._refill = set(state.current.partitions_of(self._me))

    async def run(self) -> None:
        pause = RETRY_S
        while True:
            self._changed.clear()
            if await self._round():
                pause = RETRY_S
                await self._changed.wait()
                continue
            await self._clock.sleep(pause * (0.5 + self._rng.random()))
            pause = min(2 * pause, RETRY_LIMIT_S)

    # What there is to do

    def _installed_anew(self, state: LayoutState) -> None:
        self._epoch = state.epoch
        self._due = _due(state, self._me)
        self._done = set()
        self._review = {partition for partition in self._due if _keeps(state, partition, self._me)}
        self._changed.set()

    def _with_standing(self, standing: str) -> list[int]:
        return sorted(p for p, record in self._acceptor.standings().items() if record.standing == standing)

    async def _round(self) -> bool:
        """One go at everything; whether nothing is left."""
        state = self._installed.state
        if state is None:
            return True
        learning = self._with_standing(LEARNER)
        if learning:
            await asyncio.shield(self._store.commit([MetaWrite(REFILL_META, b"1")]))
            self._refill = set(state.current.partitions_of(self._me))
        registers = {*learning, *self._with_standing(FRESH), *self._review}
        ok = await self._each(sorted(registers), state, self._copy_registers)
        filled = [p for p in sorted(self._due - self._done) if p not in self._review and self._may_fill(p)]
        refill = [] if self._with_standing(LEARNER) else sorted(self._refill)
        if filled or refill:
            await self._ask_filled(state)
        ok &= await self._each(filled, state, self._fill)
        if refill:
            ok &= await self._each(refill, state, self._refill_one)
            if not self._refill:
                await asyncio.shield(self._store.commit([MetaWrite(REFILL_META, b"")]))
        if ok:
            self.last_error = ""
        return ok and self._epoch == state.epoch and not self._with_standing(LEARNER)

    def _may_fill(self, partition: int) -> bool:
        """Registers first: a partition counts as copied only when both are."""
        return self._acceptor.state(partition).standing not in {FRESH, LEARNER}

    async def _each(
        self,
        partitions: Sequence[int],
        state: LayoutState,
        work: Callable[[int, LayoutState], Awaitable[None]],
    ) -> bool:
        """Do the work for each partition, some at once; whether all succeeded."""
        gate = asyncio.Semaphore(PARTITIONS_AT_ONCE)
        failures: list[HoldfastError] = []

        async def one(partition: int) -> None:
            async with gate:
                if failures and isinstance(failures[-1], StaleLayout):
                    return
                try:
                    async with self._budget.yielding():
                        await work(partition, state)
                except HoldfastError as error:
                    failures.append(error)
                    self.last_error = error.message

        async with asyncio.TaskGroup() as group:
            for partition in partitions:
                group.create_task(one(partition))
        return not failures

    # Registers

    async def _copy_registers(self, partition: int, state: LayoutState) -> None:
        group = (
            tuple(node.name for node in state.current.nodes)
            if partition == META_PARTITION
            else state.current.replicas(partition)
        )
        others = [name for name in group if name != self._me]
        before = self._acceptor.state(partition)
        needed = _sources_needed(group, self._me, remembers=before.standing == VOTER)
        if before.standing == LEARNER:
            # A source that does not know yet that this disk is new could still count votes of the one before it.
            others = [name for name in others if self._confirmed(name)]
        candidates = sorted(others, key=lambda name: not self._installed.is_alive(name))
        trouble: dict[str, str] = {}
        while len(candidates) >= needed:
            sources = candidates[:needed]
            failed = await self._copy_from(sources, group, partition)
            if not failed:
                break
            trouble.update(failed)
            candidates = [name for name in candidates if name not in failed]
        else:
            why = ", ".join(f"{name}: {code}" for name, code in trouble.items())
            raise QuorumUnavailable(
                f"partition {partition} can be learned only from {needed} of {', '.join(others) or 'no others'} ({why})"
            )
        if self._epoch != state.epoch or self._acceptor.state(partition).standing != before.standing:
            raise StaleLayout("the layout changed while a partition was copied", version=self._epoch)
        await self._acceptor.set_standings({partition: PartitionRecord(standing=VOTER, tenure=before.tenure)})
        self._review.discard(partition)

    async def _copy_from(self, sources: Sequence[str], group: Sequence[str], partition: int) -> dict[str, str]:
        """Everything that the sources hold in a partition, side by side; what is not known to be decided is settled. Empty when
        all went well, else the sources that failed, and why."""
        after: RegisterKey | None = None
        while True:
            epoch, stores = self._installed.epoch, self._installed.stores(partition)
            exports = await asyncio.gather(*(self._export(name, partition, after) for name in sources))
            failed = {name: e.code for name, e in zip(sources, exports, strict=True) if isinstance(e, HoldfastError)}
            if failed:
                return failed
            pages: dict[str, Page] = {}
            promised = NO_BALLOT
            fences: list[Ballot] = []
            for name, export in zip(sources, exports, strict=True):
                assert isinstance(export, Exported)
                pages[name] = Page([(entry.key, entry.record) for entry in export.entries], export.more)
                promised = max(promised, export.promised)
                fences.append(export.fence)
            merged = merge_pages(pages, group)
            origin = Origin(min(fences), max(fences), epoch, stores)
            for key in await self._acceptor.import_records(partition, merged.records, promised, origin):
                await self._registers.settle(key, partition=partition)
            if merged.resume is None:
                return {}
            after = merged.resume

    async def _export(self, name: str, partition: int, after: RegisterKey | None) -> Exported | HoldfastError:
        if after is None:
            request = Export(partition, False, "", b"", b"", PAGE)
        else:
            request = Export(partition, True, after.table, after.partition, after.sort, PAGE)
        try:
            return (await self._caller.call(name, request, deadline_s=CALL_DEADLINE_S)).message
        except HoldfastError as error:
            return error

    # Chunks

    async def _fill(self, partition: int, state: LayoutState) -> None:
        if partition != META_PARTITION:
            await self._copy_chunks(partition, state, remembers=partition not in self._refill)
        if self._epoch != state.epoch:
            raise StaleLayout("the layout changed while a partition was copied", version=self._epoch)
        self._done.add(partition)

    async def _refill_one(self, partition: int, state: LayoutState) -> None:
        await self._copy_chunks(partition, state, remembers=False)
        self._refill.discard(partition)

    async def _copy_chunks(self, partition: int, state: LayoutState, *, remembers: bool) -> None:
        """Fetch what the replicas in force hold and this node should."""
        layout = state.current
        group = layout.replicas(partition)
        others = [name for name in group if name != self._me]
        needed = min(len(others), _sources_needed(group, self._me, remembers=remembers))
        listed = 0
        trouble: dict[str, str] = {}
        for name in layout.placement(partition, MOST_COPIES):
            if name == self._me or (name not in group and not self._installed.is_alive(name)):
                continue
            try:
                await self._copy_chunks_from(name, partition, state)
            except HoldfastError as error:
                trouble[name] = error.code
                continue
            listed += name in group
        if listed < needed:
            why = ", ".join(f"{name}: {code}" for name, code in trouble.items())
            raise QuorumUnavailable(
                f"the chunks of partition {partition} are known only by {needed} of {', '.join(others)} ({why})"
            )

    async def _ask_filled(self, state: LayoutState) -> None:
        """Of the nodes that are up, what need not be listed: most partitions are empty in most small clusters. What arrives there later
        is a write of this epoch, which this node has a part in like any other."""
        self._filled = {}

        async def ask(name: str) -> None:
            with suppress(HoldfastError):
                reply = await self._caller.call(name, ListFilled(), deadline_s=CALL_DEADLINE_S)
                self._filled[name] = frozenset(set_bits(reply.message.filled, state.current.partitions))

        async with asyncio.TaskGroup() as group:
            for node in state.current.nodes:
                if node.name != self._me and self._installed.is_alive(node.name):
                    group.create_task(ask(node.name))

    async def _copy_chunks_from(self, name: str, partition: int, state: LayoutState) -> None:
        if name in self._filled and partition not in self._filled[name]:
            return
        after, more = b"", True
        gate = asyncio.Semaphore(CHUNKS_AT_ONCE)
        while more:
            reply = await self._caller.call(name, ListChunks(partition, after, PAGE), deadline_s=CALL_DEADLINE_S)
            page = [await whole(self._caller, name, listed) for listed in reply.message.chunks]
            more = reply.message.more
            due = [listed for listed in page if self._is_due(listed, partition, state)]
            mine, live = await self._wanted(due, partition, name, state)
            held = await self._chunks.holds([listed.chunk for listed in mine])
            async with asyncio.TaskGroup() as group:
                failures: list[HoldfastError] = []
                for listed, here in zip(mine, held, strict=True):
                    group.create_task(self._copy_chunk(name, listed, here, gate, failures))
            if failures:
                raise failures[0]
            held_by_right = [listed for listed in mine if self._belongs(listed, partition, name, state.current)]
            if held_by_right:
                await self._drop_what_is_gone(name, partition, after, held_by_right)
            for chunk, referrer in await no_longer_live(self._judge, live):
                await self._chunks.drop_reference(chunk, referrer)
            after = page[-1].chunk if page else b""

    async def _wanted(
        self, page: Sequence[ListedChunk], partition: int, name: str, state: LayoutState
    ) -> tuple[list[ListedChunk], list[tuple[bytes, bytes]]]:
        """The chunks with the references that are to be copied from ``name``, and those of them that are live. What no root names may be
        a write in progress, and is copied from a holder; what a stand-in has of the kind is mostly waste, and comes from the stand-in
        when it turns out to be needed (`cluster.rebalance.tidier`). What can't be judged now is copied."""
        pairs = [(listed.chunk, reference.referrer) for listed in page for reference in listed.references]
        judged = await self._judge.judge_each(pairs) if pairs else []
        live = [pair for pair, verdict in zip(pairs, judged, strict=True) if verdict is Verdict.LIVE]
        verdicts = iter(judged)
        wanted: list[ListedChunk] = []
        for listed in page:
            unwanted = {Verdict.RETIRED}
            if not self._belongs(listed, partition, name, state.current):
                unwanted.add(Verdict.UNNAMED)
            references = tuple(r for r in listed.references if next(verdicts) not in unwanted)
            if references:
                wanted.append(replace(listed, references=references))
        return wanted, live

    async def _drop_what_is_gone(self, name: str, partition: int, after: bytes, copied: Sequence[ListedChunk]) -> None:
        """References that were dropped everywhere while they were being copied would stay here for ever: look at the source once
        more, and drop what it has no longer. Only of chunks that belong there: a stand-in drops what it kept for this node as soon as
        it is here (`cluster.rebalance.tidier`)."""
        reply = await self._caller.call(name, ListChunks(partition, after, PAGE), deadline_s=CALL_DEADLINE_S)
        now = [await whole(self._caller, name, listed) for listed in reply.message.chunks]
        there = {listed.chunk: {r.referrer for r in listed.references} for listed in now}
        for chunk in copied:
            # One that is not listed at all proves nothing: its copy there may have been found damaged meanwhile.
            for reference in chunk.references if chunk.chunk in there else ():
                if reference.referrer not in there[chunk.chunk]:
                    await self._chunks.drop_reference(chunk.chunk, reference.referrer)

    def _is_due(self, listed: ListedChunk, partition: int, state: LayoutState) -> bool:
        """Whether a chunk with these references belongs here in either layout."""
        return any(self._belongs(listed, partition, self._me, layout) for layout in state.layouts())

    def _belongs(self, listed: ListedChunk, partition: int, name: str, layout: Layout) -> bool:
        copies = max((reference.replicas for reference in listed.references), default=0)
        return name in layout.placement(partition, copies)

    async def _copy_chunk(
        self, name: str, listed: ListedChunk, here: bool, gate: asyncio.Semaphore, failures: list[HoldfastError]
    ) -> None:
        async with gate:
            if failures:
                return
            try:
                references = [Reference(r.referrer, r.replicas) for r in listed.references]
                if not here and references:
                    async with self._budget.turn(listed.length):
                        payload = await fetch_chunk(self._caller, self._offload, name, listed.chunk, listed.length)
                        await self._chunks.put(listed.chunk, payload, references.pop(), repair=True)
                    self._budget.note(listed.length)
                    self.chunks_copied += 1
                    self.bytes_copied += listed.length
                for reference in references:
                    await self._chunks.add_reference(listed.chunk, reference)
            except HoldfastError as error:
                failures.append(error)

    def _answer(self, request: GetFill, call: IncomingCall) -> FillProgress:
        if self._installed.state is None:
            raise NotReady("this node has no layout yet")
        return self.progress()


def _sources_needed(group: Sequence[str], me: str, *, remembers: bool) -> int:
    """From how many others in a group one must copy to have met every quorum: a majority. A member of the group that has what it was
    given counts itself; one that has forgotten needs so many that any quorum which once counted its vote has a source among its
    other members."""
    if me not in group:
        return majority(len(group))
    return majority(len(group)) - 1 if remembers else len(group) - majority(len(group)) + 1


def _due(state: LayoutState, me: str) -> set[int]:
    """The partitions that a layout change under way makes this node copy: as a new replica of their registers, as one that stays in
    a group that shrinks (`_shrinks`), or because it moves up their preference list and volumes with more copies may reach it."""
    current, coming = state.current, state.next
    if coming is None or coming.node(me) is None:
        return set()
    mine = set(current.partitions_of(me))
    due = {p for p in coming.partitions_of(me) if p not in mine or _shrinks(current.replicas(p), coming.replicas(p))}
    for partition in range(coming.partitions):
        then = coming.placement(partition, MOST_COPIES)
        if me in then:
            now = current.placement(partition, MOST_COPIES)
            if me not in now or then.index(me) < now.index(me):
                due.add(partition)
    if current.node(me) is None or _shrinks(current.nodes, coming.nodes):
        due.add(META_PARTITION)
    return due


def _keeps(state: LayoutState, partition: int, me: str) -> bool:
    """Whether this node has a partition in both layouts, and has to look it through because its group shrinks."""
    current, coming = state.current, state.next
    if coming is None:
        return False
    if partition == META_PARTITION:
        return current.node(me) is not None and _shrinks(current.nodes, coming.nodes)
    old, new = current.replicas(partition), coming.replicas(partition)
    return me in old and me in new and _shrinks(old, new)


def _shrinks(old: Sequence[object], new: Sequence[object]) -> bool:
    """Whether the replicas that a write of the old group could do without are enough for a majority of the new one: then those
    that stay may all lack it, and have to copy like new ones."""
    return len(old) - majority(len(old)) >= majority(len(new))
