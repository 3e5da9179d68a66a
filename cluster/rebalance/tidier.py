"""The tidier: after a layout change, a node gives up the chunks that are no longer its own.

It never deletes on faith: a chunk goes only when every node that should hold it now has confirmed that it does, with its references;
what one lacks is sent to it first. So a node that was away during the change, and comes back with the only copy of something,
hands it over instead of dropping it. Registers need no tidying: a replica that leaves a partition forgets them at once.
"""

from __future__ import annotations

import asyncio
from typing import NamedTuple

import crc32c

from cluster.chunks.messages import HoldChunks, ListedChunk, ListedReference, PutChunk
from cluster.chunks.store import ChunkEntry, ChunkStore
from cluster.doors.clock import Clock
from cluster.errors import HoldfastError, NotFound, StaleLayout
from cluster.governance.installed import InstalledLayout
from cluster.governance.state import LayoutState
from cluster.register.store import MetaWrite, RegisterStore
from cluster.rpc.caller import Caller

START_DELAY_S = 10.0
"""After a layout is in force: reads that began under the one before find their chunks where they were."""

RETRY_S = 10.0
"""After some chunk could not be given up."""

PAGE = 200
"""Chunks looked at between two pauses."""

PAUSE_S = 0.01
"""Between two pages, so that users' requests come first."""

CALL_DEADLINE_S = 10.0

TIDIED_META = "tidied"
"""The epoch for which everything was tidied."""


class _Moved(NamedTuple):
    entry: ChunkEntry
    holders: tuple[str, ...]


class Tidier:
    def __init__(
        self,
        me: str,
        caller: Caller,
        store: RegisterStore,
        chunks: ChunkStore,
        installed: InstalledLayout,
        clock: Clock,
    ) -> None:
        self._me = me
        self._caller = caller
        self._store = store
        self._chunks = chunks
        self._installed = installed
        self._clock = clock
        self._changed = asyncio.Event()
        self.queue_length = 0
        """Partitions still to be looked at."""
        self.given_up = 0
        """Chunks handed over and dropped."""
        self.last_error = ""
        self.waiting_for = ""
        installed.on_install(lambda _: self._changed.set())

    async def run(self) -> None:
        rested = 0
        while True:
            self._changed.clear()
            state = self._installed.state
            if state is None or state.next is not None:
                self.waiting_for = "a layout in force" if state is None else "the layout change to finish"
                await self._changed.wait()
                continue
            tidied = await self._store.meta(TIDIED_META)
            if state.epoch == 1 or tidied == str(state.epoch).encode():
                self.waiting_for = ""
                await self._changed.wait()
                continue
            if rested != state.epoch:
                self.waiting_for = "readers of the earlier layout"
                if not await self._unchanged_for(START_DELAY_S):
                    continue
                rested = state.epoch
            self.waiting_for = ""
            try:
                if await self._tidy(state):
                    await asyncio.shield(self._store.commit([MetaWrite(TIDIED_META, str(state.epoch).encode())]))
                    self.last_error = ""
                    continue
            except StaleLayout:
                continue
            except HoldfastError as error:
                self.last_error = error.message
            await self._unchanged_for(RETRY_S)

    async def _unchanged_for(self, seconds: float) -> bool:
        """Wait so long; False as soon as the layout state is another one, whose own delay begins then."""
        try:
            async with asyncio.timeout(seconds):
                await self._changed.wait()
        except TimeoutError:
            return True
        return False

    async def _tidy(self, state: LayoutState) -> bool:
        """Look at every chunk held here; whether nothing foreign is left."""
        clean = True
        bits = state.current.partition_bits
        self.queue_length = state.current.partitions
        for partition in range(state.current.partitions):
            after: bytes | None = None
            while True:
                if not self._installed.check(state.epoch):
                    raise StaleLayout("the layout changed while chunks were tidied", version=self._installed.epoch)
                entries = await self._chunks.list_partition(partition, bits, after, PAGE)
                moved = [m for m in (self._moved(entry, partition, state) for entry in entries) if m is not None]
                if moved:
                    clean &= await self._give_up(moved)
                if len(entries) < PAGE:
                    break
                after = entries[-1].chunk
                await self._clock.sleep(PAUSE_S)
            self.queue_length -= 1
            if partition % 64 == 0:
                await self._clock.sleep(PAUSE_S)
        return clean

    def _moved(self, entry: ChunkEntry, partition: int, state: LayoutState) -> _Moved | None:
        """Where a chunk belongs, when it isn't here. One without references is left to the store's own grace."""
        copies = max((reference.replicas for reference in entry.references), default=0)
        holders = state.current.placement(partition, copies) if copies else (self._me,)
        return None if self._me in holders else _Moved(entry, holders)

    async def _give_up(self, moved: list[_Moved]) -> bool:
        """Make sure that the holders have these chunks, then drop them here. Whether all could be dropped."""
        confirmed = dict.fromkeys((m.entry.chunk for m in moved), 0)
        for name in {name for m in moved for name in m.holders}:
            theirs = [m.entry for m in moved if name in m.holders]
            try:
                for chunk in await self._hand_over(name, theirs):
                    confirmed[chunk] += 1
            except HoldfastError as error:
                self.last_error = error.message
        clean = True
        for entry, holders in moved:
            if confirmed[entry.chunk] < len(holders):
                clean = False
                continue
            for reference in entry.references:
                await self._chunks.drop_reference(entry.chunk, reference.referrer)
            self.given_up += 1
        return clean

    async def _hand_over(self, name: str, entries: list[ChunkEntry]) -> list[bytes]:
        """Have ``name`` hold these chunks; those it confirmed."""
        listed = tuple(_listed(entry) for entry in entries)
        reply = await self._caller.call(name, HoldChunks(listed), deadline_s=CALL_DEADLINE_S)
        sent: list[bytes] = []
        for entry, held in zip(entries, reply.message.held, strict=True):
            if not held:
                try:
                    payload = await self._chunks.read(entry.chunk)
                except NotFound:
                    continue
                crc = crc32c.crc32c(payload)
                for reference in entry.references:
                    request = PutChunk(entry.chunk, reference.referrer, reference.replicas, crc, repair=True)
                    await self._caller.call(name, request, payload, deadline_s=CALL_DEADLINE_S)
            sent.append(entry.chunk)
        return sent


def _listed(entry: ChunkEntry) -> ListedChunk:
    return ListedChunk(
        entry.chunk, entry.length, tuple(ListedReference(r.referrer, r.replicas) for r in entry.references)
    )
