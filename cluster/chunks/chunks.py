"""Chunks in the cluster, from any node: stored on a quorum of their replicas, read from the nearest healthy copy.

A put goes to all replicas at once and is done when a majority (of each layout, while one is being changed) has it on disk; the others
finish behind it, within `LATE_LIMIT_BYTES` of payloads waiting for them in all, past which puts wait: a slow replica slows its
writers down rather than filling their memory. For a replica that is dead, full or does not answer, another node stands in
(`spread`), so that all copies exist at once. A read asks one replica, the next after a short adaptive delay or at once after an
error, and takes the first good answer; copies that it found missing or damaged on the way are told to `on_bad_copy`. Owns the tasks
of its calls, the latency estimate and a short memory of full nodes; nothing durable.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import crc32c
from blake3 import blake3

from cluster.chunks.hedge import HedgeDelay
from cluster.chunks.messages import DropReference, PutChunk, ReadChunk, ReadSmall
from cluster.chunks.spread import Spread
from cluster.chunks.store import ChunkStore
from cluster.chunks.view import ChunkView
from cluster.doors.clock import Clock
from cluster.doors.offload import Offload
from cluster.errors import (
    Corrupt,
    HoldfastError,
    Invalid,
    NoSpace,
    NotFound,
    PeerUnavailable,
    QuorumUnavailable,
    StaleLayout,
)
from cluster.rpc.caller import Caller
from cluster.rpc.message import Buffer

PUT_DEADLINE_S = 5.0
"""For one replica to have a chunk on disk."""

READ_DEADLINE_S = 5.0
"""For one replica to answer a read."""

DROP_DEADLINE_S = 2.0

RETRIES = 3
"""Goes at a put whose layout went stale or whose quorum failed for a passing reason."""

RETRY_PAUSE_S = 0.1

LATE_LIMIT_BYTES = 48 * 1024 * 1024
"""Payloads that have their quorum and still wait for slower replicas, all together."""

FULL_S = 5.0
"""A node that refused a chunk for lack of space is not sent any for so long."""

INLINE_HASH_BYTES = 64 * 1024
"""Hashing this much takes less time than handing it to a thread."""

SMALL_READ_BYTES = 64 * 1024
"""Reads up to this size travel with the short messages."""


class ClusterChunks:
    """See the module; `cluster.volumes.ports.Chunks` is its face to the volumes. `run` must be running."""

    def __init__(
        self, me: str, store: ChunkStore, caller: Caller, view: ChunkView, clock: Clock, offload: Offload
    ) -> None:
        self._me = me
        self._store = store
        self._caller = caller
        self._view = view
        self._clock = clock
        self._offload = offload
        self._group: asyncio.TaskGroup | None = None
        self._hedge = HedgeDelay()
        self._asked: Counter[str] = Counter()
        self._full: dict[str, float] = {}
        self.on_bad_copy: Callable[[bytes, Sequence[str]], None] = lambda chunk, names: None
        """Told which nodes that should hold a chunk did not have it, or a damaged copy, when a read found it elsewhere."""
        self._late_bytes = 0
        self._less_late = asyncio.Event()
        self.puts = 0
        self.handoffs = 0
        """Copies put on a stand-in."""
        self.reads = 0
        self.local_reads = 0
        self.hedged_reads = 0
        self.damaged_reads = 0

    @property
    def late_bytes(self) -> int:
        return self._late_bytes

    async def run(self) -> None:
        """Hold the tasks of calls; ends only by cancellation, which ends them too."""
        async with asyncio.TaskGroup() as group:
            self._group = group
            try:
                await asyncio.get_running_loop().create_future()
            finally:
                self._group = None

    # Writing

    async def put(self, payload: Buffer, *, referrer: bytes, replicas: int) -> bytes:
        """Store durably on a quorum; the chunk's id. Raises QuorumUnavailable, NoSpace; the chunk may then be held somewhere,
        with its reference."""
        if len(payload) <= INLINE_HASH_BYTES:
            chunk, crc = _name_of(payload)
        else:
            chunk, crc = await self._offload.run(_name_of, payload)
        request = PutChunk(chunk, referrer, replicas, crc)
        for attempt in range(RETRIES):
            spread = self._send(request, payload)
            if await spread.verdict:
                await self._let_late_ones_catch_up(spread)
                self.puts += 1
                return chunk
            stale = [name for name, error in spread.failed.items() if isinstance(error, StaleLayout)]
            if attempt + 1 < RETRIES:
                for name in stale[:1]:
                    await self._view.refresh(name)
                await self._clock.sleep(RETRY_PAUSE_S * (attempt + 1))
        raise _put_error(spread)

    def _send(self, request: PutChunk, payload: Buffer) -> Spread:
        if self._group is None:
            raise PeerUnavailable("this node is stopping")
        rule = self._view.chunk_rule(request.chunk, request.replicas)
        places = rule.members
        others = [name for name in self._view.chunk_order(request.chunk) if name not in places]
        spread = Spread(rule, len(payload), others, self._usable)
        # Liveness is a guess: when it leaves no quorum, stand-ins included, whoever is thought dead is asked all the same.
        hopeless = sum(map(self._usable, (*places, *others))) * 2 <= len(places)
        for place in places:
            direct = hopeless or self._usable(place)
            self._group.create_task(self._fill(place, request, payload, spread, self._view.epoch, direct=direct))
        return spread

    def _usable(self, name: str) -> bool:
        return self._view.is_alive(name) and self._full.get(name, 0.0) <= self._clock.monotonic()

    async def _fill(
        self, place: str, request: PutChunk, payload: Buffer, spread: Spread, epoch: int, *, direct: bool
    ) -> None:
        """Put the copy for one place there, or on a stand-in."""
        error: HoldfastError = PeerUnavailable(f"{place} is not alive")
        target = place if direct else spread.next_stand_in()
        try:
            while target is not None:
                try:
                    await self._caller.call(target, request, payload, deadline_s=PUT_DEADLINE_S)
                except (StaleLayout, Corrupt, Invalid) as refusal:
                    error = refusal
                    break
                except HoldfastError as failure:
                    if target == place or not isinstance(error, NoSpace):
                        error = failure
                    if isinstance(failure, NoSpace):
                        self._full[target] = self._clock.monotonic() + FULL_S
                    target = spread.next_stand_in()
                    continue
                if self._view.check(epoch):
                    self.handoffs += target != place
                    spread.fill(place)
                    return
                error = StaleLayout("the layout changed during a write", version=self._view.epoch)
                break
            spread.give_up(place, error)
            if isinstance(error, StaleLayout) and target == place and await spread.verdict:
                await self._put_again(place, request, payload)
        finally:
            spread.close()
            if spread.late and not spread.open:
                self._late_bytes -= spread.size
                self._less_late.set()

    async def _put_again(self, name: str, request: PutChunk, payload: Buffer) -> None:
        """A replica was already under the next layout when a chunk came that the others took under the one before: without this
        the chunk would be a copy short, though nothing is broken. No promise hangs on it."""
        try:
            await self._view.refresh(name)
            if name in self._view.chunk_rule(request.chunk, request.replicas).members:
                await self._caller.call(name, request, payload, deadline_s=PUT_DEADLINE_S)
        except HoldfastError:
            return

    async def _let_late_ones_catch_up(self, spread: Spread) -> None:
        if not spread.open:
            return
        spread.late = True
        self._late_bytes += spread.size
        while self._late_bytes > LATE_LIMIT_BYTES and spread.open:
            self._less_late.clear()
            await self._less_late.wait()

    async def drop_reference(self, chunk: bytes, referrer: bytes, replicas: int) -> None:
        """Remove a reference from every replica. Raises QuorumUnavailable when one could not be told."""
        rule = self._view.chunk_rule(chunk, replicas)
        told = await asyncio.gather(*(self._drop_on(name, DropReference(chunk, referrer)) for name in rule.members))
        missed = [name for name, done in zip(rule.members, told, strict=True) if not done]
        if missed:
            raise QuorumUnavailable(f"{', '.join(missed)} could not be told to drop a reference", retry_after_s=60)

    async def _drop_on(self, name: str, request: DropReference) -> bool:
        try:
            await self._caller.call(name, request, deadline_s=DROP_DEADLINE_S)
        except HoldfastError:
            return False
        return True

    # Reading

    async def read(self, chunk: bytes, offset: int, length: int, *, replicas: int) -> Buffer:
        """``length`` bytes from ``offset``, verified. Raises NotFound or Corrupt when no copy is good, QuorumUnavailable when a
        good one may be on a node that can't be reached."""
        self.reads += 1
        order = self._view.chunk_order(chunk)
        holders = self._view.chunk_rule(chunk, replicas).members
        if self._me in holders:
            data = self._read_here(chunk, offset, length)
            if data is not None:
                self.local_reads += 1
                return data
        ranked = sorted(holders, key=lambda name: (name != self._me, not self._view.is_alive(name), self._asked[name]))
        ranked += [name for name in order if name not in holders and self._view.is_alive(name)]
        return await self._read_from(ranked, chunk, offset, length)

    def _read_here(self, chunk: bytes, offset: int, length: int) -> bytes | None:
        if length > SMALL_READ_BYTES:
            return None
        try:
            return self._store.read_cached(chunk, offset, length)
        except (NotFound, Corrupt):
            return None

    async def _read_from(self, names: Sequence[str], chunk: bytes, offset: int, length: int) -> Buffer:
        """The first good answer; the next replica is asked whenever the ones before are late or have failed."""
        waiting = list(names)
        running: dict[asyncio.Task[Buffer], str] = {}
        failed: dict[str, HoldfastError] = {}
        started = self._clock.monotonic()
        try:
            while True:
                if waiting:
                    name = waiting.pop(0)
                    running[asyncio.ensure_future(self._read_on(name, chunk, offset, length))] = name
                elif not running:
                    raise _read_error(chunk, failed, self._away(chunk))
                timeout = self._hedge.seconds if waiting else None
                done, _ = await asyncio.wait(running, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
                if not done:
                    self.hedged_reads += 1
                for task in done:
                    name = running.pop(task)
                    error = task.exception()
                    if error is None:
                        self._hedge.note(self._clock.monotonic() - started)
                        self._tell_bad_copies(chunk, failed)
                        return task.result()
                    if not isinstance(error, HoldfastError):
                        raise error
                    if isinstance(error, Invalid):
                        raise error
                    if isinstance(error, Corrupt):
                        self.damaged_reads += 1
                    failed[name] = error
        finally:
            for task in running:
                task.cancel()
            if running:
                await asyncio.gather(*running, return_exceptions=True)

    def _away(self, chunk: bytes) -> list[str]:
        """Nodes that can't be asked now, and may have stood in for a holder."""
        return [name for name in self._view.chunk_order(chunk) if not self._view.is_alive(name)]

    def _tell_bad_copies(self, chunk: bytes, failed: Mapping[str, HoldfastError]) -> None:
        bad = [name for name, error in failed.items() if isinstance(error, NotFound | Corrupt)]
        if bad:
            self.on_bad_copy(chunk, bad)

    async def _read_on(self, name: str, chunk: bytes, offset: int, length: int) -> Buffer:
        request = ReadSmall(chunk, offset, length) if length <= SMALL_READ_BYTES else ReadChunk(chunk, offset, length)
        self._asked[name] += 1
        try:
            reply = await self._caller.call(name, request, deadline_s=READ_DEADLINE_S)
        finally:
            self._asked[name] -= 1
        data = reply.payload
        if len(data) != length:
            raise Corrupt(f"{name} sent {len(data)} bytes of a chunk instead of {length}")
        if name != self._me and crc32c.crc32c(data) != reply.message.crc:
            raise Corrupt(f"what {name} sent was changed on the way")
        return data


def _name_of(payload: Buffer) -> tuple[bytes, int]:
    """A chunk's id and its CRC32C."""
    return blake3(payload).digest(), crc32c.crc32c(payload)


def _put_error(spread: Spread) -> HoldfastError:
    why = ", ".join(f"{name}: {error.code}" for name, error in sorted(spread.failed.items()))
    members = ", ".join(spread.rule.members)
    if any(isinstance(error, NoSpace) for error in spread.failed.values()):
        return NoSpace(f"too few of the replicas {members} have space for a chunk ({why})")
    return QuorumUnavailable(f"a chunk can't be stored now: a quorum of {members} is needed ({why})", retry_after_s=2)


def _read_error(chunk: bytes, failed: Mapping[str, HoldfastError], away: Sequence[str]) -> HoldfastError:
    name = chunk.hex()[:16]
    why = ", ".join(f"{node}: {error.code}" for node, error in sorted(failed.items()))
    if any(not isinstance(error, NotFound | Corrupt) for error in failed.values()):
        return QuorumUnavailable(f"no good copy of chunk {name} can be reached now ({why})", retry_after_s=2)
    if away:
        return QuorumUnavailable(
            f"no living node has a good copy of chunk {name} ({why}); {', '.join(away)} may, and can't be reached",
            retry_after_s=10,
        )
    if any(isinstance(error, Corrupt) for error in failed.values()):
        return Corrupt(f"every copy of chunk {name} is damaged ({why})")
    return NotFound(f"no node holds chunk {name} ({why})")
