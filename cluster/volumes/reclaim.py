"""Giving back what no root needs: references of retired roots, and of writes that came to nothing.

It also removes heads that nobody needs: of deleted volumes once nothing is left of them, and claims whose write never came to an end.

Three sources of work: a swing of this gateway (`notice` with its head), heads with retired roots that it meets or finds on patrol (a
gateway that died with its queue left them), and writes that failed here (`abandon`). One bounded unit of work at a time: at most
UNIT_DROPS references of one volume, then the next volume.

A retired root waits ``grace_s`` from when *this* reclaimer first saw it, by its own monotonic clock: readers of that version go on
meanwhile. Dropping is idempotent, so several gateways may do the same work; what makes it safe at any time is in
docs/decisions/references.md. After a crash at any point the work is found and done again.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Sequence
from dataclasses import dataclass, field, replace
from heapq import heappop, heappush
from typing import Any

from cluster.doors.clock import Clock
from cluster.errors import HoldfastError, QuorumUnavailable
from cluster.volumes.head import VOLUME_SHARDS, Head, RetiredRoot
from cluster.volumes.head_store import HeadStore, Version
from cluster.volumes.map_difference import DeadReference, all_references, dead_references
from cluster.volumes.page import LEAF_EXTENTS, Node, Stored
from cluster.volumes.page_store import PageCache, PageStore
from cluster.volumes.reference import page_referrer
from cluster.volumes.together import together
from cluster.volumes.volume_map import Geometry

RETIRED_GRACE_S = 60.0
"""How long a replaced version stays readable for those who are reading it."""

UNIT_DROPS = 1024
"""References dropped before the next volume has its turn."""

DROP_WINDOW = 16
"""References being dropped at a time: they share the disks' syncs, and leave room for users' requests."""

QUEUE_LIMIT = 10_000
"""Volumes and abandoned writes waiting. What does not fit is found on patrol, or (abandoned writes) left to a later sweep."""

RETRY_S = 5.0
RETRY_LIMIT_S = 300.0
"""Pause of a volume whose reclaiming failed, doubled with each failure: while a node is away every drop that concerns it fails."""

ABANDONED_TRIES = 20
"""After so many failures what an unfinished write left is left to a later sweep."""

SEEN_LIMIT = 256
"""Entries of a job before those of roots that are gone are forgotten."""

TICK_S = 1.0
"""While anything waits for its grace to pass: how soon work that came meanwhile is noticed."""

PATROL_INTERVAL_S = 60.0
"""Between looks at one shard of the volumes: all of them within about half an hour."""

PATROL_PAGE = 200
"""Heads looked at in one register scan of the patrol."""

CLAIM_AGE_S = 24 * 3600.0
"""A claim that has not changed for so long is removed. A first PUT of a volume that takes longer has to be repeated."""

CLAIMS_LIMIT = 10_000
"""Claims of one shard whose age is known here. Others wait until these are gone."""

ROOM_DROPS = 4096
"""References dropped on behalf of a write whose head is full of retired roots, before it goes on without."""


@dataclass(frozen=True, slots=True)
class Abandoned:
    """What a write stored that no root will ever name: parts of its tree as ``(node, start, span)`` and pages beside it."""

    replicas: int
    chunk_size: int
    parts: tuple[tuple[Node, int, int], ...] = ()
    pages: tuple[Stored, ...] = ()


@dataclass(slots=True, eq=False)
class Clearing:
    """An abandoned write waiting for its turn."""

    abandoned: Abandoned
    due: float
    tries: int = 0


@dataclass(slots=True, eq=False)
class Job:
    """One volume's retired roots. ``seen``: when each was first seen here, by the write that made it."""

    name: str
    due: float
    seen: dict[bytes, float] = field(default_factory=dict)
    walk: AsyncGenerator[DeadReference, None] | None = None
    walking: tuple[RetiredRoot, ...] = ()
    replicas: int = 1
    failures: int = 0


@dataclass(frozen=True, slots=True)
class JobStatus:
    """The shape every background job shows itself in."""

    name: str
    queue_length: int
    last_error: str
    waiting_for: str
    done: int
    """References dropped since the start."""


class Reclaimer:
    """`run` does the work; the other methods are cheap and may be called from anywhere on the loop."""

    def __init__(
        self,
        heads: HeadStore,
        cache: PageCache,
        clock: Clock,
        rng: random.Random,
        *,
        grace_s: float = RETIRED_GRACE_S,
        leaf_extents: int = LEAF_EXTENTS,
    ) -> None:
        self._heads = heads
        self._cache = cache
        self._clock = clock
        self._rng = rng
        self._grace_s = grace_s
        self._leaf_extents = leaf_extents
        self._jobs: dict[str, Job] = {}
        self._clearings = 0
        self._claims: dict[int, dict[bytes, float]] = {}
        """By shard: when each claim was first met on patrol, by its stamp."""
        self._queue: list[tuple[float, int, Job | Clearing]] = []
        self._turn = 0
        self._wake = asyncio.Event()
        self._dropped = 0
        self._last_error = ""
        self._busy = False

    def notice(self, head: Head) -> None:
        """A head was written or met: it may have retired roots, or be that of a deleted volume, to be removed."""
        job = self._jobs.get(head.name)
        now = self._clock.monotonic()
        if job is None:
            idle = not head.retired and (head.live or head.is_claim)
            if idle or len(self._jobs) >= QUEUE_LIMIT:
                return
            job = self._jobs[head.name] = Job(head.name, now)
            self._schedule(job, now + self._grace_s)
        for entry in head.retired:
            job.seen.setdefault(entry.write, now)
        if len(job.seen) > SEEN_LIMIT:
            job.seen = {entry.write: job.seen[entry.write] for entry in head.retired}

    def abandon(self, abandoned: Abandoned) -> None:
        """A write failed, and none of what it stored is in any root, nor ever will be."""
        if (abandoned.parts or abandoned.pages) and self._clearings < QUEUE_LIMIT:
            self._clearings += 1
            now = self._clock.monotonic()
            self._schedule(Clearing(abandoned, now), now)

    def retry_now(self) -> None:
        """What waits because something failed is due at once: a node has come back."""
        now = self._clock.monotonic()
        for due, _, item in list(self._queue):
            failures = item.tries if isinstance(item, Clearing) else item.failures
            if failures and item.due == due:
                self._schedule(item, now)

    def status(self) -> JobStatus:
        if self._busy:
            waiting = ""
        elif self._jobs or self._clearings:
            waiting = "the grace period of retired roots, or a retry"
        else:
            waiting = "something to reclaim"
        return JobStatus("reclaim", len(self._jobs) + self._clearings, self._last_error, waiting, self._dropped)

    async def run(self) -> None:
        """Work until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._work())
            group.create_task(self._patrol())

    async def run_due(self) -> bool:
        """One unit of work, if any is due; says whether there was."""
        now = self._clock.monotonic()
        while self._queue and self._queue[0][0] <= now:
            due, _, item = heappop(self._queue)
            if item.due != due:
                continue  # it was put in again since
            if isinstance(item, Clearing):
                await self._clear(item)
                return True
            if self._jobs.get(item.name) is item:
                if await self._guarded(self._unit(item)):
                    item.failures = 0
                else:
                    await self._stop_walk(item)
                    item.failures += 1
                    self._schedule(item, self._clock.monotonic() + retry_pause(item.failures))
                return True
        return False

    async def make_room(self, head: Head, wanted: int, *, leave_behind: bool = False) -> int:
        """Drop what only the ``wanted`` oldest retired roots of ``head`` need, whatever their age, on behalf of a write that needs
        their room; returns how many of them are done (fewer when it takes too long). Raises QuorumUnavailable, unless ``leave_behind``:
        then what replicas that are away still hold counts as done, and is left to a sweep."""
        done = 0
        left = ROOM_DROPS
        for entry, following in neighbours(head)[:wanted]:
            walk = self._dead(entry, following)
            left = await self._drop_some(walk, entry.replicas, left, leave_behind)
            await walk.aclose()
            if left <= 0:
                break
            done += 1
        return done

    async def _work(self) -> None:
        while True:
            self._wake.clear()
            self._busy = True
            try:
                working = True
                while working:
                    working = await self.run_due()
                    await asyncio.sleep(0)  # lets users' requests in between two units
            finally:
                self._busy = False
            if self._queue:
                wait = max(0.0, self._queue[0][0] - self._clock.monotonic())
                await self._clock.sleep(min(wait, TICK_S))
            else:
                await self._wake.wait()

    async def _patrol(self) -> None:
        shards = list(range(VOLUME_SHARDS))
        self._rng.shuffle(shards)
        while True:
            for shard in shards:
                await self._clock.sleep(PATROL_INTERVAL_S * (0.5 + self._rng.random()))
                await self._guarded(self._patrol_shard(shard))

    async def _patrol_shard(self, shard: int) -> None:
        after: bytes | None = b""
        before = self._claims.get(shard, {})
        claims: dict[bytes, float] = {}
        while after is not None:
            versions, after = await self._heads.scan(shard, after, b"", PATROL_PAGE)
            for version in versions:
                head = version.head
                if head is None:
                    continue
                if head.retired:
                    self.notice(head)
                elif not head.live:
                    await self._meet_hidden(version, head, before, claims)
        self._claims[shard] = claims

    async def _meet_hidden(
        self, version: Version, head: Head, before: dict[bytes, float], claims: dict[bytes, float]
    ) -> None:
        """A head that is not live and has no roots: remove it, a claim only when no write can be expected to need it any more."""
        now = self._clock.monotonic()
        since = before.get(head.stamp, now)
        if not head.is_claim or now - since >= CLAIM_AGE_S:
            await self._heads.swing(head.name, version, None)
        elif len(claims) < CLAIMS_LIMIT:
            claims[head.stamp] = since

    async def _guarded(self, work: Coroutine[Any, Any, None]) -> bool:
        """Run it; an error is remembered for `status`, and the work found again later."""
        try:
            await work
        except HoldfastError as error:
            self._last_error = f"{error.code}: {error.message}"
            return False
        return True

    async def _unit(self, job: Job) -> None:
        if job.walk is None and not await self._begin(job):
            return
        assert job.walk is not None
        if await self._drop_some(job.walk, job.replicas, UNIT_DROPS) <= 0:
            self._schedule(job, self._clock.monotonic())
            return
        await self._stop_walk(job)
        await self._forget(job)

    async def _begin(self, job: Job) -> bool:
        """Look at the head and begin a walk of its ripe roots; False when there is nothing to do now."""
        now = self._clock.monotonic()
        version = await self._heads.read(job.name)
        head = version.head
        if head is None or not head.retired:
            del self._jobs[job.name]
            if head is not None and not head.live and not head.is_claim:
                await self._heads.swing(job.name, version, None)
            return False
        job.seen = {entry.write: job.seen.get(entry.write, now) for entry in head.retired}
        ripe: list[tuple[RetiredRoot, RetiredRoot | Head]] = []
        for entry, following in neighbours(head):
            if job.seen[entry.write] + self._grace_s > now:
                break
            # Different numbers of replicas are different volumes under one name: one walk is of one volume.
            if ripe and ripe[0][0].replicas != entry.replicas:
                break
            ripe.append((entry, following))
        if not ripe:
            self._schedule(job, min(job.seen.values()) + self._grace_s)
            return False
        job.replicas = ripe[0][0].replicas
        job.walking = tuple(entry for entry, _ in ripe)
        job.walk = self._dead_of_all(ripe)
        return True

    async def _forget(self, job: Job) -> None:
        """Everything that only the walked roots needed is dropped: take them out of the head."""
        version = await self._heads.read(job.name)
        while version.head is not None:
            head = version.head
            left = tuple(entry for entry in head.retired if entry not in job.walking)
            gone = not left and not head.live and not head.is_claim
            if not gone and len(left) == len(head.retired):
                break
            swing = await self._heads.swing(job.name, version, None if gone else replace(head, retired=left))
            version = swing.current
            if swing.applied:
                break
        job.walking = ()
        head_now = version.head
        if head_now is None or not head_now.retired:
            self._jobs.pop(job.name, None)
        else:
            now = self._clock.monotonic()
            self._schedule(job, min(job.seen.get(entry.write, now) for entry in head_now.retired) + self._grace_s)

    async def _stop_walk(self, job: Job) -> None:
        if job.walk is not None:
            await job.walk.aclose()
            job.walk = None

    async def _dead_of_all(
        self, ripe: Sequence[tuple[RetiredRoot, RetiredRoot | Head]]
    ) -> AsyncGenerator[DeadReference, None]:
        for entry, following in ripe:
            async for reference in self._dead(entry, following):
                yield reference

    def _dead(self, entry: RetiredRoot, following: RetiredRoot | Head) -> AsyncGenerator[DeadReference, None]:
        """What ``entry`` refers to and its successor does not. Another volume of the same name shares nothing with it."""
        geometry = Geometry(entry.chunk_size, self._leaf_extents)
        span = geometry.root_span(entry.size)
        same = following.id == entry.id
        other_span = geometry.root_span(following.size) if same else span
        other = following.root.node(other_span) if same else None
        return dead_references(
            entry.root.node(span),
            span,
            other,
            other_span,
            entry.chunk_size,
            PageStore(self._cache, entry.replicas),
            successor_live=isinstance(following, Head),
        )

    async def _drop_some(
        self, walk: AsyncIterator[DeadReference], replicas: int, limit: int, leave_behind: bool = False
    ) -> int:
        """Drop at most about ``limit`` references; returns what is left of the limit, above 0 when the walk has ended."""
        batch: list[DeadReference] = []
        while limit > 0:
            reference = await anext(walk, None)
            if batch and (reference is None or reference.after_all or len(batch) >= DROP_WINDOW):
                await self._drop(batch, replicas, leave_behind)
                batch = []
            if reference is None:
                return limit
            limit -= 1
            batch.append(reference)
            if reference.after_all:
                await self._drop(batch, replicas, leave_behind)
                batch = []
        if batch:
            await self._drop(batch, replicas, leave_behind)
        return 0

    async def _drop(self, references: Sequence[DeadReference], replicas: int, leave_behind: bool) -> None:
        if len(references) == 1:
            await self._drop_one(references[0], replicas, leave_behind)
            return
        await together(self._drop_one(reference, replicas, leave_behind) for reference in references)

    async def _drop_one(self, reference: DeadReference, replicas: int, leave_behind: bool = False) -> None:
        try:
            await self._cache.chunks.drop_reference(reference.chunk, reference.referrer, replicas)
        except QuorumUnavailable:
            if not leave_behind:
                raise
        self._dropped += 1

    def _schedule(self, item: Job | Clearing, due: float) -> None:
        item.due = due
        self._turn += 1
        heappush(self._queue, (due, self._turn, item))
        self._wake.set()

    async def _clear(self, clearing: Clearing) -> None:
        clearing.tries += 1
        if await self._guarded(self._give_back(clearing.abandoned)) or clearing.tries >= ABANDONED_TRIES:
            self._clearings -= 1
        else:
            self._schedule(clearing, self._clock.monotonic() + retry_pause(clearing.tries))

    async def _give_back(self, abandoned: Abandoned) -> None:
        pages = PageStore(self._cache, abandoned.replicas)
        for node, start, span in abandoned.parts:
            walk = all_references(node, start, span, abandoned.chunk_size, pages)
            while await self._drop_some(walk, abandoned.replicas, UNIT_DROPS) <= 0:
                pass
        for page in abandoned.pages:
            await self._drop_one(
                DeadReference(page.chunk, page_referrer(page.write), after_all=True), abandoned.replicas
            )


def retry_pause(failures: int) -> float:
    """Seconds, after so many failures in a row."""
    return float(min(RETRY_LIMIT_S, RETRY_S * 2 ** min(failures - 1, 16)))


def neighbours(head: Head) -> list[tuple[RetiredRoot, RetiredRoot | Head]]:
    """The retired roots of a head, oldest first, each with the root that replaced it (or the next one still known)."""
    following: list[RetiredRoot | Head] = [*head.retired[1:], head]
    return list(zip(head.retired, following, strict=True))
