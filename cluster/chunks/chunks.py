"""Chunks in the cluster, from any node: stored on a quorum of their replicas, read from the nearest healthy copy.

A put goes to all replicas at once and is done when a majority (of each layout, while one is being changed) has it on disk; the others
finish behind it, within `LATE_LIMIT_BYTES` of payloads waiting for them in all, past which puts wait: a slow replica slows its
writers down rather than filling their memory. A read asks one replica, the next after a short adaptive delay or at once after an
error, and takes the first good answer. Owns the tasks of its calls and the latency estimate; nothing durable.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence

import crc32c
from blake3 import blake3

from cluster.chunks.hedge import HedgeDelay
from cluster.chunks.messages import DropReference, PutChunk, ReadChunk, ReadSmall
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
from cluster.register.quorum import QuorumRule
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

INLINE_HASH_BYTES = 64 * 1024
"""Hashing this much takes less time than handing it to a thread."""

SMALL_READ_BYTES = 64 * 1024
"""Reads up to this size travel with the short messages."""


class _Spread:
    """One payload on its way to its replicas."""

    def __init__(self, rule: QuorumRule, names: Sequence[str], size: int) -> None:
        self.rule = rule
        self.open = len(names)
        self.size = size
        self.stored: set[str] = set()
        self.failed: dict[str, HoldfastError] = {}
        self.late = False
        self.verdict: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

    def judge(self) -> None:
        if self.verdict.done():
            return
        if self.rule.satisfied(self.stored):
            self.verdict.set_result(True)
        elif self.open == 0 or not self.rule.possible(self.failed):
            self.verdict.set_result(False)


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
        self._late_bytes = 0
        self._less_late = asyncio.Event()
        self.puts = 0
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

    def _send(self, request: PutChunk, payload: Buffer) -> _Spread:
        if self._group is None:
            raise PeerUnavailable("this node is stopping")
        rule = self._view.chunk_rule(request.chunk, request.replicas)
        names = rule.members
        alive = [name for name in names if self._view.is_alive(name)]
        asked = alive if rule.satisfied(alive) else names
        spread = _Spread(rule, asked, len(payload))
        for name in names:
            if name not in asked:
                spread.failed[name] = PeerUnavailable(f"{name} is not alive")
        for name in asked:
            self._group.create_task(self._put_on(name, request, payload, spread, self._view.epoch))
        return spread

    async def _put_on(self, name: str, request: PutChunk, payload: Buffer, spread: _Spread, epoch: int) -> None:
        try:
            await self._caller.call(name, request, payload, deadline_s=PUT_DEADLINE_S)
            if self._view.check(epoch):
                spread.stored.add(name)
            else:
                spread.failed[name] = StaleLayout("the layout changed during a write", version=self._view.epoch)
        except StaleLayout as error:
            spread.failed[name] = error
            spread.judge()
            if await spread.verdict:
                await self._put_again(name, request, payload)
        except HoldfastError as error:
            spread.failed[name] = error
        finally:
            spread.open -= 1
            if spread.late and not spread.open:
                self._late_bytes -= spread.size
                self._less_late.set()
        spread.judge()

    async def _put_again(self, name: str, request: PutChunk, payload: Buffer) -> None:
        """A replica was already under the next layout when a chunk came that the others took under the one before: without this
        the chunk would be a copy short, though nothing is broken. No promise hangs on it."""
        try:
            await self._view.refresh(name)
            if name in self._view.chunk_rule(request.chunk, request.replicas).members:
                await self._caller.call(name, request, payload, deadline_s=PUT_DEADLINE_S)
        except HoldfastError:
            return

    async def _let_late_ones_catch_up(self, spread: _Spread) -> None:
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
                    raise _read_error(chunk, failed)
                timeout = self._hedge.seconds if waiting else None
                done, _ = await asyncio.wait(running, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
                if not done:
                    self.hedged_reads += 1
                for task in done:
                    name = running.pop(task)
                    error = task.exception()
                    if error is None:
                        self._hedge.note(self._clock.monotonic() - started)
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


def _put_error(spread: _Spread) -> HoldfastError:
    why = ", ".join(f"{name}: {error.code}" for name, error in sorted(spread.failed.items()))
    members = ", ".join(spread.rule.members)
    if any(isinstance(error, NoSpace) for error in spread.failed.values()):
        return NoSpace(f"too few of the replicas {members} have space for a chunk ({why})")
    return QuorumUnavailable(f"a chunk can't be stored now: a quorum of {members} is needed ({why})", retry_after_s=2)


def _read_error(chunk: bytes, failed: dict[str, HoldfastError]) -> HoldfastError:
    name = chunk.hex()[:16]
    why = ", ".join(f"{node}: {error.code}" for node, error in sorted(failed.items()))
    if any(not isinstance(error, NotFound | Corrupt) for error in failed.values()):
        return QuorumUnavailable(f"no good copy of chunk {name} can be reached now ({why})", retry_after_s=2)
    if any(isinstance(error, Corrupt) for error in failed.values()):
        return Corrupt(f"every copy of chunk {name} is damaged ({why})")
    return NotFound(f"no node holds chunk {name} ({why})")
