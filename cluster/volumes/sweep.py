"""The sweep of one node: finds references of its own store that no root needs and no list remembers, and drops them.

They come from gateways that died in the middle of a write, pieces in flight when a write failed, nodes that were away when something
was reclaimed. Every period the sweep walks through all references of this node, in units with pauses between, and has each
judged. A write of which something is UNNAMED may be in progress, so it is left to grow old first; that only saves work. What makes
dropping safe is the order, for each write: **fence it, judge again, drop what is still UNNAMED** (docs/decisions/references.md).

What retired roots name is left to `reclaim`. Every node drops from its own store only.

A verdict is worth what the names are worth that it rests on: in a cluster without names everything is UNNAMED. That they are those of the
cluster that the references were written in does not follow from counting them (one new volume would do), but from how a node gets its
layout, without which nothing is judged: it belongs to one cluster for ever, remembered apart from the registers, and one that holds
chunks, or has lost its registers, founds none (`cluster.governance.founding`).
"""

from __future__ import annotations

import random
from collections.abc import Coroutine, Iterable, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import Any

from cluster.doors.clock import Clock
from cluster.errors import HoldfastError
from cluster.repair.judge import Verdict
from cluster.volumes.fence import FENCED_LIMIT, fence
from cluster.volumes.head_store import HeadStore
from cluster.volumes.judge import Reference, ReferenceJudge
from cluster.volumes.ports import LocalReferences
from cluster.volumes.reclaim import JobStatus, retry_pause
from cluster.volumes.reference import TAG_BYTES, WRITE_BYTES

SWEEP_PERIOD_S = 6 * 3600.0
"""From the beginning of one walk through all references of a node to that of the next."""

SWEEP_AGE_S = 3600.0
"""How long a write must have been seen UNNAMED before it is fenced. A write that takes longer than that may have to be repeated."""

LONE_AGE_S = 60.0
"""The same for a write of which this node alone holds something: what was acknowledged of a write in progress is on several nodes, and one
chunk is stored or given up within this time. A write that is fenced all the same (the others have lost their copies) is repeated."""

FIRST_WALK_S = 600.0
"""The first walk begins within so many seconds after the start, sooner if the period is shorter."""

UNIT_REFERENCES = 256
"""References judged at a time."""

UNIT_WRITES = 32
"""Old writes looked at in one unit: of one volume they are fenced by one compare-and-set. Below FENCED_LIMIT, so that writes in progress
rarely have to be repeated because of fences that were not for them."""

UNIT_PAUSE_S = 0.05
"""Between two units: a walk takes at most some 5000 references a second, and is not felt."""

SUSPECTS_LIMIT = 10_000
"""Writes that grow old at a time. Others are found by the next walk."""

SUSPECT_TRIES = 8
"""Failures after which a write is left to the next walk."""

WALK_TRIES = 8
"""Failures of one unit of the walk, with growing pauses, before the walk goes on behind it."""

TICK_S = 1.0
"""How soon what became due, or was handed in meanwhile, is noticed."""


@dataclass(slots=True, eq=False)
class Suspect:
    """A write of which something was UNNAMED. ``after``: how far its references have been looked at, in the store's order."""

    write: bytes
    due: float
    after: tuple[bytes, bytes]
    fenced: bool = False
    failures: int = 0


class Sweeper:
    """`run` does the work; `suspect` may be called from anywhere on the loop."""

    def __init__(
        self,
        references: LocalReferences,
        judge: ReferenceJudge,
        heads: HeadStore,
        clock: Clock,
        rng: random.Random,
        *,
        period_s: float = SWEEP_PERIOD_S,
        age_s: float = SWEEP_AGE_S,
    ) -> None:
        self._references = references
        self._judge = judge
        self._heads = heads
        self._clock = clock
        self._period_s = period_s
        self._age_s = age_s
        self._suspects: dict[bytes, Suspect] = {}
        self._queue: list[tuple[float, int, Suspect]] = []
        self._turn = 0
        self._walk_due = clock.monotonic() + rng.random() * min(FIRST_WALK_S, period_s)
        self._walk_began: float | None = None
        self._walk_after: tuple[bytes, bytes] | None = None
        self._walk_failures = 0
        self._dropped = 0
        self._last_error = ""
        self._busy = False

    def suspect(self, references: Iterable[Reference], lone: bool = False) -> None:
        """``(chunk, referrer)`` that somebody found UNNAMED, or may be: looked at when they have grown old, without waiting for a walk.
        ``lone``: no other holder has them, so that they are hardly a part of a write in progress, and need not grow so old."""
        age_s = min(self._age_s, LONE_AGE_S) if lone else self._age_s
        due = self._clock.monotonic() + age_s
        for _, referrer in references:
            write = referrer[:WRITE_BYTES]
            known = self._suspects.get(write)
            if known is not None:
                if due < known.due and not known.failures:
                    self._schedule(known, due)
            elif len(self._suspects) < SUSPECTS_LIMIT:
                found = self._suspects[write] = Suspect(write, due, (write, b""))
                self._schedule(found, due)

    def status(self) -> JobStatus:
        if self._busy:
            waiting = ""
        elif self._suspects:
            waiting = "unfinished writes to grow old, or a retry"
        else:
            waiting = "the next walk"
        return JobStatus("sweep", len(self._suspects), self._last_error, waiting, self._dropped)

    async def run(self) -> None:
        """Work until cancelled."""
        while True:
            self._busy = True
            try:
                while await self.run_due():
                    await self._clock.sleep(UNIT_PAUSE_S)
            finally:
                self._busy = False
            await self._clock.sleep(TICK_S)

    async def run_due(self) -> bool:
        """One unit of work, if any is due; says whether there was."""
        now = self._clock.monotonic()
        batch: list[Suspect] = []
        while self._queue and self._queue[0][0] <= now and len(batch) < UNIT_WRITES:
            due, _, suspect = heappop(self._queue)
            if suspect.due == due and self._suspects.get(suspect.write) is suspect:  # else it was put in again, earlier
                batch.append(suspect)
        if batch:
            if not await self._guarded(self._sweep(batch)):
                for suspect in batch:
                    self._postpone(suspect)
            return True
        if self._walk_due <= now:
            await self._walk_on(now)
            return True
        return False

    # --- the walk ---

    async def _walk_on(self, now: float) -> None:
        if self._walk_began is None:
            self._walk_began = now
        if await self._guarded(self._walk_unit()):
            self._walk_failures = 0
            return
        self._walk_failures += 1
        if self._walk_failures >= WALK_TRIES:
            self._walk_failures = 0
            self._end_walk()
        else:
            self._walk_due = now + retry_pause(self._walk_failures)

    async def _walk_unit(self) -> None:
        listed = await self._references.list_references(self._walk_after, UNIT_REFERENCES)
        references = [(chunk, referrer) for referrer, chunk in listed]
        unnamed, failed = await self._unnamed(references)
        if len(failed) == len(references) and failed and self._walk_failures + 1 < WALK_TRIES:
            raise next(iter(failed.values()))  # nothing is known just now: no reason to hurry past it
        self.suspect(unnamed)
        if len(listed) < UNIT_REFERENCES:
            self._end_walk()
        else:
            self._walk_after = listed[-1]
            self._walk_due = self._clock.monotonic()

    def _end_walk(self) -> None:
        now = self._clock.monotonic()
        began = now if self._walk_began is None else self._walk_began
        self._walk_due = max(now + UNIT_PAUSE_S, began + self._period_s)
        self._walk_began = self._walk_after = None

    # --- old writes ---

    async def _sweep(self, batch: Sequence[Suspect]) -> None:
        """Fence, judge again and drop, for as many references of these writes as fit a unit."""
        listed: dict[bytes, list[Reference]] = {}
        unfinished: set[bytes] = set()
        room = UNIT_REFERENCES
        for suspect in sorted(batch, key=lambda suspect: suspect.write):
            if room <= 0:
                unfinished.add(suspect.write)
                continue
            mine, more = await self._list(suspect, room)
            listed[suspect.write] = mine
            room -= len(mine)
            if more:
                unfinished.add(suspect.write)
        fenced = {suspect.write for suspect in batch if suspect.fenced}
        waste, failed = await self._unnamed(
            [reference for write, mine in listed.items() if write not in fenced for reference in mine]
        )
        await self._fence([suspect for suspect in batch if any(of(suspect, reference) for reference in waste)])
        waste += [reference for write, mine in listed.items() if write in fenced for reference in mine]
        waste, errors = await self._unnamed(waste)
        failed.update(errors)
        for chunk, referrer in waste:
            self._dropped += await self._references.drop_reference(chunk, referrer)
        for suspect in batch:
            if any(of(suspect, reference) for reference in failed):
                self._postpone(suspect)
            elif suspect.write in unfinished:
                if listed.get(suspect.write):
                    chunk, referrer = listed[suspect.write][-1]
                    suspect.after = (referrer, chunk)
                self._schedule(suspect, self._clock.monotonic())
            else:
                del self._suspects[suspect.write]

    async def _list(self, suspect: Suspect, limit: int) -> tuple[list[Reference], bool]:
        """References of the write that this node holds, and whether there may be more."""
        listed = await self._references.list_references(suspect.after, limit)
        mine = [(chunk, referrer) for referrer, chunk in listed if referrer[:WRITE_BYTES] == suspect.write]
        return mine, len(mine) == limit

    async def _fence(self, suspects: Sequence[Suspect]) -> None:
        by_tag: dict[bytes, list[Suspect]] = {}
        for suspect in suspects:
            by_tag.setdefault(suspect.write[:TAG_BYTES], []).append(suspect)
        for tag, of_tag in by_tag.items():
            writes = [suspect.write for suspect in of_tag]
            assert len(writes) <= FENCED_LIMIT
            # The scan begins after the references were seen: a name that it lacks has no write that could still succeed.
            for name in await self._judge.names_of(tag):
                await fence(self._heads, name, writes)
            for suspect in of_tag:
                suspect.fenced = True

    async def _unnamed(self, references: Sequence[Reference]) -> tuple[list[Reference], dict[Reference, HoldfastError]]:
        """Which of them no root names now, and those about which that can't be known."""
        unnamed: list[Reference] = []
        failed: dict[Reference, HoldfastError] = {}
        for reference, answer in zip(references, await self._judge.judge_each(references), strict=True):
            if isinstance(answer, HoldfastError):
                failed[reference] = answer
                self._note(answer)
            elif answer is Verdict.UNNAMED:
                unnamed.append(reference)
        return unnamed, failed

    def _postpone(self, suspect: Suspect) -> None:
        suspect.failures += 1
        if suspect.failures >= SUSPECT_TRIES:
            self._suspects.pop(suspect.write, None)
        else:
            self._schedule(suspect, self._clock.monotonic() + retry_pause(suspect.failures))

    def _schedule(self, suspect: Suspect, due: float) -> None:
        suspect.due = due
        self._turn += 1
        heappush(self._queue, (due, self._turn, suspect))

    async def _guarded(self, work: Coroutine[Any, Any, None]) -> bool:
        """Run it; an error is remembered for `status`, and the work done again later."""
        try:
            await work
        except HoldfastError as error:
            self._note(error)
            return False
        return True

    def _note(self, error: HoldfastError) -> None:
        self._last_error = f"{error.code}: {error.message}"


def of(suspect: Suspect, reference: Reference) -> bool:
    return reference[1][:WRITE_BYTES] == suspect.write
