"""Everything users can do to volumes, for one gateway: create, show, list, resize, delete, open, replace, write a range.

Each change prepares everything it needs (chunks, then pages) and then swings the head by compare-and-set from a version to the next. When
somebody else swung it first, the change is made again on what they left, if its condition still allows: nothing is locked, and nobody
waits for anybody. Until the swing nothing is visible; a change that fails before leaves what it stored to `reclaim`.

Errors: Invalid, NotFound, Conflict (a condition), QuorumUnavailable (nothing was changed), OutcomeUnknown, NoSpace, Corrupt, Busy.
"""

from __future__ import annotations

import asyncio
import random
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass, replace

from cluster.doors.clock import Clock
from cluster.errors import Busy, Conflict, HoldfastError, Invalid, NotFound, OutcomeUnknown, QuorumUnavailable
from cluster.volumes.byte_budget import ByteBudget
from cluster.volumes.content import OpenVolume
from cluster.volumes.fence import Began
from cluster.volumes.head import CLAIM_GENERATION, Head, RetiredRoot, retired_bytes
from cluster.volumes.head_store import HeadStore, Version
from cluster.volumes.judge import ReferenceJudge
from cluster.volumes.listing import LIST_LIMIT, list_volumes
from cluster.volumes.names import (
    DEFAULT_CHUNK_BYTES,
    DEFAULT_DURABILITY,
    DEFAULT_REPLICAS,
    MAX_CHUNK_BYTES,
    MAX_VOLUME_BYTES,
    check_chunk_size,
    check_durability,
    check_name,
    check_prefix,
    check_replicas,
    check_size,
)
from cluster.volumes.page import LEAF_EXTENTS
from cluster.volumes.page_store import PageCache, PageStore
from cluster.volumes.pieces import PIECES_LIMIT, Piece, PiecePage
from cluster.volumes.ports import Chunks, LocalReferences, Registers
from cluster.volumes.reclaim import RETIRED_GRACE_S, JobStatus, Reclaimer
from cluster.volumes.reference import new_write_id
from cluster.volumes.sweep import SWEEP_AGE_S, SWEEP_PERIOD_S, Sweeper
from cluster.volumes.volume import UNCONDITIONAL, Condition, Volume, VolumePage
from cluster.volumes.volume_map import EMPTY_ROOT, Geometry, Root, lifted, stored_root
from cluster.volumes.write_budget import WriteBudget
from cluster.volumes.writer import WRITE_WINDOW
from cluster.volumes.writing import Stores, Unfinished, Writing

__all__ = ["Condition", "OpenVolume", "Piece", "PiecePage", "Volume", "VolumePage", "VolumeService", "VolumeSettings"]

VOLUME_ID_BYTES = 16

SWING_TRIES = 64
"""Lost compare-and-sets before a change gives up with Busy. Each loss means that somebody else's change was made."""

RETIRED_LIMIT = 64
RETIRED_LIMIT_BYTES = 16 << 10
"""Retired roots in a head, by number and by size: more than so many make a write reclaim the oldest half first. Heads are read by every
request and stay small by this."""

ROOM_STEP = 8
"""Room is made with every so many retired roots past the limit: while a node is away it can't be made, and must not be tried every time."""

RETIRED_EXCESS = 2
"""At so many times the limits, what replicas that are away still hold of the oldest roots is left to a sweep: writes go on."""

OPEN_CACHE_ENTRIES = 1024
"""Opened versions kept for the next reader of the same version (small: the root's page decoded)."""


@dataclass(frozen=True, slots=True)
class VolumeSettings:
    """What a daemon may tune. Bytes and seconds."""

    write_budget: int = 64 << 20
    """Of all requests' bodies on their way into chunks."""
    slow_write_budget: int = 64 << 20
    """Of those besides that come so slowly that others would wait for them."""
    slow_body_s: float = 5.0
    """A piece that its client has not sent in so long makes way for others: less than 840 KB/s at the default chunk size."""
    refuse_body_s: float = 60.0
    """Where there is no way to make, its body is refused after so long: less than 70 KB/s, while more than thirty are as slow."""
    read_budget: int = 64 << 20
    """Of all requests' read-ahead; the first piece of each is not counted."""
    write_window: int = WRITE_WINDOW
    retired_grace_s: float = RETIRED_GRACE_S
    sweep_period_s: float = SWEEP_PERIOD_S
    sweep_age_s: float = SWEEP_AGE_S
    leaf_extents: int = LEAF_EXTENTS
    """Part of the format: all daemons of a cluster must agree. Tests choose small ones for deep maps."""


class VolumeService:
    """`run` does the background work; everything else may be called while it runs, by any number of tasks."""

    def __init__(
        self,
        registers: Registers,
        chunks: Chunks,
        clock: Clock,
        rng: random.Random,
        *,
        node_count: Callable[[], int],
        default_replicas: Callable[[], int] = lambda: DEFAULT_REPLICAS,
        settings: VolumeSettings | None = None,
        references: LocalReferences | None = None,
    ) -> None:
        """``references``: those in this node's own store, which it sweeps; without them it doesn't."""
        self.settings = settings or VolumeSettings()
        budgets = (self.settings.write_budget, self.settings.slow_write_budget, self.settings.read_budget)
        assert min(budgets) >= MAX_CHUNK_BYTES
        self.write_budget = WriteBudget(
            self.settings.write_budget,
            self.settings.slow_write_budget,
            self.settings.slow_body_s,
            self.settings.refuse_body_s,
        )
        self.read_budget = ByteBudget(self.settings.read_budget)
        self._chunks = chunks
        self._clock = clock
        self._rng = rng
        self._node_count = node_count
        self._default_replicas = default_replicas
        self._heads = HeadStore(registers, rng)
        self._cache = PageCache(chunks)
        self._opened: OrderedDict[str, tuple[bytes, OpenVolume]] = OrderedDict()
        self.reclaimer = Reclaimer(
            self._heads,
            self._cache,
            clock,
            rng,
            grace_s=self.settings.retired_grace_s,
            leaf_extents=self.settings.leaf_extents,
        )
        self.judge = ReferenceJudge(self._heads, self._cache, self.settings.leaf_extents)
        self.sweeper = (
            Sweeper(
                references,
                self.judge,
                self._heads,
                clock,
                rng,
                period_s=self.settings.sweep_period_s,
                age_s=self.settings.sweep_age_s,
            )
            if references is not None
            else None
        )
        self._stores = Stores(
            chunks,
            self._cache,
            self.reclaimer,
            self.write_budget,
            self.settings.leaf_extents,
            self.settings.write_window,
        )

    async def run(self) -> None:
        """Background work until cancelled."""
        async with asyncio.TaskGroup() as group:
            for part in self._background():
                group.create_task(part.run())

    def jobs(self) -> list[JobStatus]:
        return [part.status() for part in self._background()]

    def _background(self) -> list[Reclaimer | Sweeper]:
        return [self.reclaimer] if self.sweeper is None else [self.reclaimer, self.sweeper]

    # --- looking ---

    async def show(self, name: str) -> Volume:
        """The newest version. Raises NotFound."""
        return (await self._live(check_name(name)))[1].volume()

    async def list(self, *, prefix: str = "", after: str = "", limit: int = LIST_LIMIT) -> VolumePage:
        """Volumes in the order of their names, those after ``after`` (a name, or the beginning of one)."""
        if not 1 <= limit <= LIST_LIMIT:
            raise Invalid(f"A page has 1 to {LIST_LIMIT} volumes.", field="limit")
        return await list_volumes(self._heads, check_prefix(prefix), check_prefix(after, "after"), limit)

    async def open(self, name: str) -> OpenVolume:
        """The newest version, pinned. Raises NotFound."""
        if name not in self._opened:
            check_name(name)
        version = await self._heads.read(name)
        raw = version.raw
        cached = self._opened.get(name)
        if cached is not None and cached[0] is raw:
            return cached[1]
        head = version.live
        if head is None or raw is None:
            raise self._not_found(name)
        if head.retired:
            self.reclaimer.notice(head)
        span = self._geometry(head).root_span(head.size)
        opened = OpenVolume(
            head.volume(),
            head.root.node(span),
            span,
            self._chunks,
            PageStore(self._cache, head.replicas),
            self.read_budget,
        )
        self._opened[name] = (raw, opened)
        self._opened.move_to_end(name)
        if len(self._opened) > OPEN_CACHE_ENTRIES:
            self._opened.popitem(last=False)
        return opened

    async def pieces(self, name: str, start: int = 0, limit: int = PIECES_LIMIT) -> PiecePage:
        """Where the newest version's bytes from address ``start`` lie, at most ``limit`` pieces. Raises NotFound, Invalid."""
        check_size(start, "start")
        if not 1 <= limit <= PIECES_LIMIT:
            raise Invalid(f"A page has 1 to {PIECES_LIMIT} pieces.", field="limit")
        opened = await self.open(name)
        pieces: list[Piece] = []
        async with aclosing(opened.extents(start, opened.volume.size)) as extents:
            async for extent in extents:
                if len(pieces) == limit:
                    return PiecePage(opened.volume, pieces, extent.offset)
                pieces.append(Piece(extent.offset, extent.length, extent.chunk, extent.chunk_offset))
        return PiecePage(opened.volume, pieces, None)

    # --- changing ---

    async def create(
        self,
        name: str,
        size: int,
        condition: Condition = UNCONDITIONAL,
        *,
        chunk_size: int = DEFAULT_CHUNK_BYTES,
        replicas: int | None = None,
        durability: str = DEFAULT_DURABILITY,
    ) -> Volume:
        """A new volume that is one hole; ``replicas`` None: as many as the cluster keeps by default.
        Raises Conflict (``exists`` in the details) when there is one of that name."""
        check_name(name)
        check_size(size)
        replicas = self._default_replicas() if replicas is None else replicas
        self._check_shape(chunk_size, replicas, durability)
        write = new_write_id(name, self._rng)

        async def created(version: Version) -> Head:
            if version.live is not None:
                raise Conflict(f"The volume {name!r} exists already.", exists=True, etag=version.live.volume().etag)
            condition.check(None)
            return self._new_head(name, size, chunk_size, replicas, durability, write, EMPTY_ROOT, version)

        return (await self._change(name, await self._heads.read(name), created)).volume()

    async def resize(self, name: str, size: int, condition: Condition = UNCONDITIONAL) -> Volume:
        """Let the volume end at ``size`` >= its present size; what is new reads as zeroes. Raises NotFound, Conflict, Invalid."""
        check_name(name)
        check_size(size)
        version, head = await self._live(name)
        began = Began.on(head)
        write = new_write_id(name, self._rng)
        unfinished = Unfinished(self.reclaimer, self._cache, head.replicas, head.chunk_size, write)

        async def resized(version: Version) -> Head:
            head = self._still(version, name)
            check_condition(condition, head)
            began.check(version, name, write)
            if size < head.size:
                raise Invalid(
                    f"The volume {name!r} has {head.size} bytes and can't shrink to {size}: "
                    "create a smaller one and copy what you need, or replace the whole content.",
                    field="size",
                    size=head.size,
                )
            root = await self._root_of_size(head, size, unfinished)
            now = self._clock.wall()
            return replace(head, write=write, generation=head.generation + 1, size=size, root=root, modified_at=now)

        check_condition(condition, head)
        if size == head.size:
            return head.volume()
        return (await self._change(name, version, resized, unfinished)).volume()

    async def delete(self, name: str, condition: Condition = UNCONDITIONAL) -> None:
        """Remove the volume. Those who read it go on for the grace period. Raises NotFound, Conflict."""
        check_name(name)
        version, _ = await self._live(name)
        write = new_write_id(name, self._rng)

        async def deleted(version: Version) -> Head:
            head = self._still(version, name)
            check_condition(condition, head)
            # A hidden head even where nothing is to be given back: that the register is gone would not tell by whom.
            retired = head.retired_with_root(self._clock.wall())
            return replace(head, write=write, live=False, root=EMPTY_ROOT, retired=retired)

        await self._change(name, version, deleted)

    async def replace(
        self,
        name: str,
        body: AsyncIterator[bytes],
        length: int | None,
        condition: Condition = UNCONDITIONAL,
        *,
        chunk_size: int | None = None,
        replicas: int | None = None,
        durability: str | None = None,
    ) -> tuple[Volume, bool]:
        """Make content and size exactly the body; a volume that is absent is created, with the given shape or the defaults.

        ``length``: of the body in bytes, None when it is not known before it ends. Returns the new version and whether it was created. An
        existing volume keeps its id and shape, and the shape given is not looked at. Raises Invalid (also for a body shorter or longer than
        announced), Conflict, QuorumUnavailable, NoSpace, OutcomeUnknown, and what the body raises; except after OutcomeUnknown nothing
        was changed."""
        check_name(name)
        if length is not None:
            check_size(length, "length")
        version = await self._heads.read(name)
        check_condition(condition, version.live)
        shape = version.live
        if shape is None:
            shape = self._new_head(
                name,
                0,
                DEFAULT_CHUNK_BYTES if chunk_size is None else chunk_size,
                self._default_replicas() if replicas is None else replicas,
                DEFAULT_DURABILITY if durability is None else durability,
                b"",
                EMPTY_ROOT,
                version,
            )
            self._check_shape(shape.chunk_size, shape.replicas, shape.durability)
            version = await self._claimed(name, version, shape)
            check_condition(condition, version.live)
            shape = version.live or shape
        assert version.head is not None
        began = Began.on(version.head)
        write = new_write_id(name, self._rng)
        writing = Writing(self._stores, shape, write)
        with writing.unfinished.guarded():
            size = await writing.store(body, length, MAX_VOLUME_BYTES)
            root = await writing.whole_root()

        async def replaced(version: Version) -> Head:
            check_condition(condition, version.live)
            began.check(version, name, write)
            head = version.live
            if head is None:
                return self._new_head(
                    name, size, shape.chunk_size, shape.replicas, shape.durability, write, root, version
                )
            check_same_shape(head, shape)
            return self._following(head, size, root, write)

        head = await self._change(name, version, replaced, writing.unfinished)
        return head.volume(), head.generation == 1

    async def write_range(
        self,
        name: str,
        offset: int,
        body: AsyncIterator[bytes],
        length: int | None,
        condition: Condition = UNCONDITIONAL,
        *,
        size: int | None = None,
    ) -> Volume:
        """Make the bytes from ``offset`` the body; the rest stays what it is, also what others write there meanwhile. ``size``: the whole
        volume's, where the client says that; it is another volume to him when it has another.

        Raises NotFound, Invalid (also when the range leaves the volume), Conflict, and the rest as `replace` does."""
        check_name(name)
        check_size(offset, "offset")
        if length is not None:
            check_size(length, "length")
        version, shape = await self._live(name)
        check_condition(condition, shape)
        check_inside(shape, offset, length or 0, size)
        began = Began.on(shape)
        write = new_write_id(name, self._rng)
        writing = Writing(self._stores, shape, write, offset)
        with writing.unfinished.guarded():
            stored_length = await writing.store(body, length, shape.size - offset)

        async def written(version: Version) -> Head:
            head = self._still(version, name)
            check_condition(condition, head)
            began.check(version, name, write)
            check_same_shape(head, shape)
            check_inside(head, offset, stored_length, size)
            return self._following(head, head.size, await writing.root_over(head), write)

        if not stored_length:
            return shape.volume()
        return (await self._change(name, version, written, writing.unfinished)).volume()

    # --- parts of the above ---

    async def _live(self, name: str) -> tuple[Version, Head]:
        version = await self._heads.read(name)
        return version, self._still(version, name)

    def _still(self, version: Version, name: str) -> Head:
        if version.live is None:
            raise self._not_found(name)
        return version.live

    @staticmethod
    def _not_found(name: str) -> NotFound:
        return NotFound(f"There is no volume {name!r}.", volume=name)

    def _geometry(self, head: Head) -> Geometry:
        return Geometry(head.chunk_size, self.settings.leaf_extents)

    def _check_shape(self, chunk_size: int, replicas: int, durability: str) -> None:
        check_chunk_size(chunk_size)
        check_replicas(replicas, self._node_count())
        check_durability(durability)

    def _new_head(
        self,
        name: str,
        size: int,
        chunk_size: int,
        replicas: int,
        durability: str,
        write: bytes,
        root: Root,
        version: Version,
    ) -> Head:
        """A volume's first head, over nothing, a claim of its place, or a deleted one whose roots are not yet given back."""
        now = self._clock.wall()
        before = version.head
        head = Head(
            stamp=b"",
            write=write,
            id=self._rng.randbytes(VOLUME_ID_BYTES),
            live=True,
            generation=CLAIM_GENERATION + 1,
            name=name,
            size=size,
            chunk_size=chunk_size,
            replicas=replicas,
            durability=durability,
            root=root,
            created_at=now,
            modified_at=now,
        )
        if before is None:
            return head
        return replace(
            head,
            id=before.id if before.is_claim else head.id,
            retired=before.retired,
            fenced=before.fenced,
            fences=before.fences,
        )

    async def _claimed(self, name: str, version: Version, shape: Head) -> Version:
        """The newest version once the name has a head that a write may begin on: a live one, or a claim. Nobody sees a claim; it makes
        the name known to those who find the write's references."""
        for _ in range(SWING_TRIES):
            if version.head is not None and (version.head.live or version.head.is_claim):
                return version
            first = self._new_head(
                name,
                0,
                shape.chunk_size,
                shape.replicas,
                shape.durability,
                new_write_id(name, self._rng),
                EMPTY_ROOT,
                version,
            )
            try:
                claim = replace(first, live=False, generation=CLAIM_GENERATION)
                version = (await self._heads.swing(name, version, claim)).current
            except OutcomeUnknown as error:
                raise QuorumUnavailable(
                    f"The volume {name!r} could not be begun; nothing was changed.", retry_after_s=2
                ) from error
        raise too_contended(name)

    def _following(self, head: Head, size: int, root: Root, write: bytes) -> Head:
        """The head after a change of content."""
        now = self._clock.wall()
        return replace(
            head,
            write=write,
            generation=head.generation + 1,
            size=size,
            root=root,
            modified_at=now,
            retired=head.retired_with_root(now),
        )

    async def _change(
        self,
        name: str,
        version: Version,
        decide: Callable[[Version], Awaitable[Head]],
        unfinished: Unfinished | None = None,
    ) -> Head:
        """Swing to what ``decide`` makes of the newest version, until nobody comes between. Returns the last head decided on.
        ``unfinished``: what the change has stored for it."""
        doubt = Unfinished(self.reclaimer, self._cache) if unfinished is None else unfinished
        with doubt.guarded():
            for _ in range(SWING_TRIES):
                try:
                    decided = await decide(version)
                except NotFound:
                    # Of a version replaced long ago, while the body came slowly, the map is gone: the newest has one.
                    newest = await self._heads.read(name)
                    if newest.raw == version.raw:
                        raise
                    version = newest
                    continue
                head = await self._with_room(decided)
                doubt.in_doubt = True
                try:
                    swing = await self._heads.swing(name, version, head)
                except QuorumUnavailable:
                    doubt.in_doubt = False
                    raise
                doubt.in_doubt = swing.applied
                if swing.applied:
                    doubt.succeeded()
                    self.reclaimer.notice(head)
                    return head
                version = swing.current
            raise too_contended(name)

    async def _with_room(self, head: Head) -> Head:
        """``head`` with so few retired roots as may be: the oldest are reclaimed at once when there are too many."""
        retired = head.retired
        last_chance = too_many(retired, RETIRED_EXCESS)
        if not last_chance and not (too_many(retired, 1) and len(retired) % ROOM_STEP == 0):
            return head
        try:
            # The newest entry is the version that readers are most likely at: it is never among them.
            done = await self.reclaimer.make_room(head, max(1, len(retired) // 2), leave_behind=last_chance)
        except HoldfastError:
            done = 0
        head = replace(head, retired=retired[done:])
        if not done and last_chance:
            raise Busy(
                f"The volume {head.name!r} is overwritten faster than its old versions can be given back; try again soon.",
                retry_after_s=2,
            )
        return head

    async def _root_of_size(self, head: Head, size: int, unfinished: Unfinished) -> Root:
        """The root of the same map in a volume of ``size``, which is not smaller."""
        geometry = self._geometry(head)
        span, wanted = geometry.root_span(head.size), geometry.root_span(size)
        node = head.root.node(span)
        grown = lifted(node, span, wanted)
        return head.root if grown is node else await stored_root(grown, wanted, unfinished.attempt())


def check_condition(condition: Condition, head: Head | None) -> None:
    """Raises Conflict when the condition does not hold for the live ``head``, or for the absence of one."""
    if condition is not UNCONDITIONAL:
        condition.check(None if head is None else head.volume())


def check_inside(head: Head, offset: int, length: int, size: int | None) -> None:
    if size is not None and head.size != size:
        raise Invalid(
            f"The range is one of {size} bytes in all, the volume {head.name!r} has {head.size}: it is not what you think it is.",
            field="range",
            size=head.size,
        )
    if offset + length > head.size:
        raise Invalid(
            f"Bytes {offset} to {offset + length} are not all inside the volume {head.name!r} of {head.size} bytes: resize it first.",
            field="range",
            size=head.size,
        )


def check_same_shape(head: Head, shape: Head) -> None:
    """The body was cut and stored for ``shape``; another volume of that name came between."""
    if head.chunk_size != shape.chunk_size or head.replicas != shape.replicas:
        raise Conflict(
            f"The volume {head.name!r} was created anew with another shape while this write was under way; nothing was changed. "
            "Repeat it if it is still wanted.",
            condition="shape",
            etag=head.volume().etag,
        )


def too_many(retired: tuple[RetiredRoot, ...], times: int) -> bool:
    return len(retired) > times * RETIRED_LIMIT or retired_bytes(retired) > times * RETIRED_LIMIT_BYTES


def too_contended(name: str) -> Busy:
    return Busy(
        f"The volume {name!r} is being changed by too many others at once; nothing was changed, try again.",
        retry_after_s=1,
    )
