"""The mender of chunks: brings this node's own copies up to what the cluster needs.

Everybody mends only what is on their own disk. Whoever suspects that a copy is missing or incomplete here (this node's anti-entropy
or scrub, a read that met a bad copy, a peer's nudge) puts the chunk into the queue; the mender asks the other holders what
references there are, asks the judge which of them the newest roots need, and takes those over, fetching the bytes when they are not
here. It never takes over a reference that no live root names: what was dropped while this node was away does not come back, and
what a write in progress has stored elsewhere is taken over once its root is in place. It deletes nothing.

Owns the queue: bounded, in memory; what does not fit, or is lost with the process, is found again by comparing trees.
"""

from __future__ import annotations

import asyncio
import random
from collections import OrderedDict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field

import crc32c
from blake3 import blake3

from cluster.chunks.listing import whole
from cluster.chunks.messages import ListedChunk, ReadChunk
from cluster.chunks.store import ChunkStore, Reference
from cluster.chunks.view import ChunkView
from cluster.doors.clock import Clock
from cluster.doors.offload import Offload
from cluster.errors import Corrupt, HoldfastError, NoSpace, NotFound, QuorumUnavailable
from cluster.repair.budget import RepairBudget
from cluster.repair.judge import Judge, Verdict, no_longer_live
from cluster.repair.messages import Describe
from cluster.rpc.caller import Caller
from cluster.rpc.message import Buffer

QUEUE_LIMIT = 50_000
"""Chunks that wait: some 10 MiB."""

BATCH = 64
"""Chunks asked about at once: one message to each holder, one question to the judge."""

DESCRIBE_DEADLINE_S = 5.0

FETCH_DEADLINE_S = 10.0
"""For one chunk."""

RETRY_S = 1.0
"""After a chunk could not be mended, doubled up to `RETRY_LIMIT_S`."""

RETRY_LIMIT_S = 60.0

TRIES = 8
"""Goes at a chunk before it is left to be found anew: some two minutes."""

MOST_COPIES = 7
"""The most copies a volume may ask for: nodes further down a preference list hold a chunk only as a handoff."""

IDLE_S = 0.25
"""How often the queue is looked at while everything in it waits for another try."""


@dataclass(slots=True)
class _Case:
    due: float
    tries: int = 0


@dataclass(slots=True)
class _Wanted:
    """A chunk that lacks references here which a live root names, and who holds it. ``length`` None: the bytes are here."""

    chunk: bytes
    length: int | None
    references: list[Reference] = field(default_factory=list)
    holders: list[str] = field(default_factory=list)


class ChunkMender:
    """See the module. `run` does the work; `note` may be called from anywhere on the loop."""

    def __init__(
        self,
        me: str,
        store: ChunkStore,
        caller: Caller,
        view: ChunkView,
        judge: Judge,
        budget: RepairBudget,
        clock: Clock,
        rng: random.Random,
        offload: Offload,
    ) -> None:
        self._me = me
        self._store = store
        self._caller = caller
        self._view = view
        self._judge = judge
        self._budget = budget
        self._clock = clock
        self._rng = rng
        self._offload = offload
        self._cases: OrderedDict[bytes, _Case] = OrderedDict()
        self._lacking: set[bytes] = set()
        self._wake = asyncio.Event()
        self.mended = 0
        """Chunks that were completed."""
        self.last_error = ""

    @property
    def queue_length(self) -> int:
        return len(self._cases)

    @property
    def lacking(self) -> int:
        """Chunks in the queue that a live root needs here and that are not here."""
        return len(self._lacking)

    @property
    def waiting_for(self) -> str:
        if not self._cases:
            return "something to mend"
        return "repair to be resumed" if self._budget.paused else ""

    def note(self, chunks: Iterable[bytes]) -> None:
        """These copies here may be missing or incomplete."""
        now = self._clock.monotonic()
        for chunk in chunks:
            if chunk not in self._cases and len(self._cases) < QUEUE_LIMIT:
                self._cases[chunk] = _Case(now)
        self._wake.set()

    async def run(self) -> None:
        """Mend until cancelled."""
        while True:
            await self._budget.wait_running()
            if not await self.run_once():
                if self._cases:
                    await self._clock.sleep(IDLE_S)
                else:
                    self._wake.clear()
                    await self._wake.wait()

    async def run_once(self) -> bool:
        """One batch of what is due; whether there was any."""
        now = self._clock.monotonic()
        batch: list[bytes] = []
        for chunk, case in self._cases.items():
            if case.due <= now:
                batch.append(chunk)
                if len(batch) == BATCH:
                    break
        if not batch:
            return False
        try:
            left = await self._mend(batch)
        except HoldfastError as error:
            self.last_error = error.message
            left = set(batch)
        for chunk in batch:
            self._settle_case(chunk, again=chunk in left)
        if not left:
            self.last_error = ""
        return True

    def _settle_case(self, chunk: bytes, *, again: bool) -> None:
        case = self._cases.pop(chunk)
        case.tries += 1
        if again and case.tries < TRIES:
            pause = min(RETRY_LIMIT_S, RETRY_S * 2.0 ** (case.tries - 1)) * (0.5 + self._rng.random())
            case.due = self._clock.monotonic() + pause
            self._cases[chunk] = case
        else:
            self._lacking.discard(chunk)

    # One batch

    async def _mend(self, chunks: Sequence[bytes]) -> set[bytes]:
        """Take over what is needed; the chunks that have to be tried again."""
        wanted, unsure = await self._wanted(chunks)
        self._lacking.update(want.chunk for want in wanted if want.length is not None)
        failed: set[bytes] = set()

        async def one(want: _Wanted) -> None:
            try:
                await self._complete(want)
            except HoldfastError as error:
                self.last_error = error.message
                failed.add(want.chunk)

        async with asyncio.TaskGroup() as group:
            for want in wanted:
                group.create_task(one(want))
        # While they were fetched they may have been overwritten and reclaimed: this node was told before it had them.
        taken = [(want.chunk, reference.referrer) for want in wanted for reference in want.references]
        for chunk, referrer in await no_longer_live(self._judge, taken):
            await self._store.drop_reference(chunk, referrer)
        return failed | unsure

    async def _wanted(self, chunks: Sequence[bytes]) -> tuple[list[_Wanted], set[bytes]]:
        """What is to be taken over, and the chunks of which that can't be told yet."""
        here = dict(zip(chunks, await self._store.describe(chunks), strict=True))
        there, silent = await self._describe_elsewhere(chunks)
        found: list[_Wanted] = []
        unsure: set[bytes] = set()
        for chunk in chunks:
            listings = there.get(chunk, {})
            entry = here[chunk]
            known = {} if entry is None else {held.referrer: held.replicas for held in entry.references}
            offered = {r.referrer: r.replicas for listed in listings.values() for r in listed.references}
            copies = max([*known.values(), *offered.values()], default=0)
            if not copies or self._me not in self._view.chunk_rule(chunk, copies).members:
                continue
            if any(name in silent for name in self._view.chunk_rule(chunk, copies).members) and not offered:
                unsure.add(chunk)
            missing = [
                Reference(referrer, replicas)
                for referrer, replicas in offered.items()
                if known.get(referrer) != replicas
            ]
            if missing:
                length = next(listed.length for listed in listings.values()) if entry is None else None
                holders = sorted(listings, key=lambda name: self._rng.random())
                found.append(_Wanted(chunk, length, missing, holders))
        return await self._needed(found, unsure), unsure

    async def _needed(self, found: list[_Wanted], unsure: set[bytes]) -> list[_Wanted]:
        """Those of the references that a live root names; chunks about which that can't be known join ``unsure``."""
        questions = [(want.chunk, reference.referrer) for want in found for reference in want.references]
        verdicts = iter(await self._judge.judge_each(questions) if questions else [])
        needed: list[_Wanted] = []
        for want in found:
            references = []
            for reference in want.references:
                verdict = next(verdicts)
                if isinstance(verdict, HoldfastError):
                    self.last_error = verdict.message
                    unsure.add(want.chunk)
                elif verdict is Verdict.LIVE:
                    references.append(reference)
            if references:
                want.references = references
                needed.append(want)
        return needed

    async def _describe_elsewhere(
        self, chunks: Sequence[bytes]
    ) -> tuple[dict[bytes, dict[str, ListedChunk]], set[str]]:
        """What the other nodes that may hold these chunks say of them, and who did not answer."""
        questions: dict[str, list[bytes]] = {}
        silent: set[str] = set()
        for chunk in chunks:
            for name in self._view.chunk_rule(chunk, MOST_COPIES).members:
                if name == self._me:
                    continue
                if self._view.is_alive(name):
                    questions.setdefault(name, []).append(chunk)
                else:
                    silent.add(name)
        there: dict[bytes, dict[str, ListedChunk]] = {}

        async def ask(name: str, asked: list[bytes]) -> None:
            try:
                reply = await self._caller.call(name, Describe(tuple(asked)), deadline_s=DESCRIBE_DEADLINE_S)
                found = [c if c is None else await whole(self._caller, name, c) for c in reply.message.chunks]
            except HoldfastError:
                silent.add(name)
                return
            for chunk, listed in zip(asked, found, strict=True):
                if listed is not None and listed.references:
                    there.setdefault(chunk, {})[name] = listed

        async with asyncio.TaskGroup() as group:
            for name, asked in questions.items():
                group.create_task(ask(name, asked))
        return there, silent

    # One chunk

    async def _complete(self, want: _Wanted) -> None:
        references = list(want.references)
        if want.length is not None:
            async with self._budget.turn(want.length):
                payload = await self._fetch(want.chunk, want.length, want.holders)
                await self._store.put(want.chunk, payload, references.pop(), repair=True)
            self._budget.note(len(payload))
            self._lacking.discard(want.chunk)
        for reference in references:
            if not await self._store.add_reference(want.chunk, reference):
                raise NotFound("a copy went while its references were mended")
        self.mended += 1

    async def _fetch(self, chunk: bytes, length: int, holders: Collection[str]) -> Buffer:
        """The bytes, from whichever holder has them right."""
        trouble: HoldfastError = QuorumUnavailable("nobody holds the chunk", retry_after_s=2)
        for name in holders:
            try:
                return await fetch_chunk(self._caller, self._offload, name, chunk, length)
            except NoSpace:
                raise
            except HoldfastError as error:
                trouble = error
        raise trouble


async def fetch_chunk(caller: Caller, offload: Offload, name: str, chunk: bytes, length: int) -> Buffer:
    """A whole chunk from a peer, checked against its name. Raises Corrupt for other bytes, and what the peer or the wire raises."""
    reply = await caller.call(name, ReadChunk(chunk, 0, length, repair=True), deadline_s=FETCH_DEADLINE_S)
    payload = reply.payload
    if crc32c.crc32c(payload) != reply.message.crc or await offload.run(_digest, payload) != chunk:
        raise Corrupt(f"{name} sent other bytes than those of chunk {chunk.hex()[:16]}")
    return payload


def _digest(payload: Buffer) -> bytes:
    return blake3(payload).digest()
