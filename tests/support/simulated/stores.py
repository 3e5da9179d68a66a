"""What a simulated machine keeps its registers and chunks on, over all the lives of its node: the door, and the quick version in memory.

`MemoryStores` answer as a store should and fail only as a whole. `production_stores` are the daemon's own code on a simulated disk.
"""

from __future__ import annotations

import asyncio
import copy
import random
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple, Protocol

from cluster.chunks.store import ChunkStore
from cluster.doors.clock import Clock
from cluster.governance.stores import RUN_BYTES, Life, new_store_id
from cluster.register.key import RegisterKey
from cluster.register.record import Record
from cluster.register.store import RegisterStore
from cluster.repair.repair import Scrub
from tests.support.simulated.memory_chunks import ChunkDisk, MemoryChunkStore
from tests.support.simulated.memory_store import DiskContent, MemoryRegisterStore


class OpenStores(NamedTuple):
    """For one life of a core."""

    registers: RegisterStore
    chunks: ChunkStore
    scrub: Scrub | None
    life: Life


class Hosted(Protocol):
    """The node that stands on the stores."""

    async def live(self, stores: OpenStores) -> None:
        """One life: until its store is found to have forgotten, or it is cancelled."""

    async def leave(self) -> None:
        """Before the end of the last life, if it ends on purpose."""

    def mend(self, chunk: bytes) -> None:
        """A copy was found damaged."""


class Stores(Protocol):
    failure: BaseException | None
    """Why the last process ended by itself."""

    async def run(self, node: Hosted, clock: Clock) -> None:
        """One process: lives on these stores, until `stop`, a failure of the stores, or an error."""

    def stop(self) -> None:
        """End the process on purpose, with everything in order."""

    def crash(self, *, power: bool | None = None) -> None:
        """The process is gone, with whatever was not on disk. `run` is cancelled next. ``power``: whether power fails, which takes more
        than the end of a process; None: drawn."""

    def wipe(self) -> None:
        """New disks. No process runs."""

    def copy(self) -> Any:
        """The disks as they are, for `put_back`."""

    def put_back(self, saved: Any) -> None:
        """The disks as they were. No process runs."""

    def set_pace(self, register_sync_s: float, chunk_sync_s: float) -> None:
        """What a sync takes on an average, from now on."""

    def fill(self, room: int | None) -> None:
        """From now on there is room for so many bytes more; None: for all that come."""

    def remove(self) -> None:
        """The disks are not needed any more."""

    def held_registers(self) -> Mapping[int, Mapping[RegisterKey, Record]]:
        """By partition. While a node lives."""

    def held_chunks(self) -> Mapping[bytes, tuple[bytes, Mapping[bytes, int]]]:
        """Chunk -> (its bytes, if that costs nothing; referrer -> replicas). While a node lives."""

    def chunks_on_disk(self) -> Collection[bytes]:
        """Those with a reference that would be there, whole, after a power cut at this moment. Also while no process runs."""

    def references_on_disk(self, chunk: bytes) -> Mapping[bytes, int]:
        """Of such a chunk, referrer -> replicas; empty for any other."""


async def one_life(node: Hosted, stores: OpenStores, ending: asyncio.Event, *others: asyncio.Event) -> None:
    """Until it ends by itself, or one of the events comes; at the end of the process the node takes its leave."""
    running = asyncio.ensure_future(node.live(stores))
    waiting = [asyncio.ensure_future(event.wait()) for event in (ending, *others)]
    try:
        await asyncio.wait({running, *waiting}, return_when=asyncio.FIRST_COMPLETED)
        if not running.done() and ending.is_set():
            await node.leave()
    finally:
        for task in (running, *waiting):
            task.cancel()
        await asyncio.wait({running, *waiting})
    if not running.cancelled() and not any(event.is_set() for event in others):
        running.result()


RESERVE_BYTES = 4096
"""Of stores in memory: what users' puts leave free."""


class MemoryStores:
    def __init__(self, name: str, seed: int, rng: random.Random) -> None:
        """``rng``: the machine's."""
        self._rng = rng
        self.failure: BaseException | None = None
        self.registers = DiskContent()
        self.chunks = ChunkDisk()
        self.chunk_store = MemoryChunkStore(self.chunks, rng)
        self.register_store: MemoryRegisterStore | None = None
        self._ending: asyncio.Event | None = None
        self._pace: tuple[float, float] | None = None
        self._capacity: int | None = None

    async def run(self, node: Hosted, clock: Clock) -> None:
        ending = self._ending = asyncio.Event()
        while not ending.is_set():
            meta = self.registers.meta
            meta.setdefault("store_id", new_store_id(self._rng))
            meta["boot"] = str(int(meta.get("boot", b"0")) + 1).encode()
            life = Life(meta["store_id"], int(meta["boot"]), self._rng.randbytes(RUN_BYTES))
            self.register_store = MemoryRegisterStore(self.registers, self._rng)
            self.chunk_store = MemoryChunkStore(self.chunks, self._rng)
            self._set()
            await one_life(node, OpenStores(self.register_store, self.chunk_store, None, life), ending)
            self.register_store.crash()

    def stop(self) -> None:
        assert self._ending is not None
        self._ending.set()

    def crash(self, *, power: bool | None = None) -> None:
        assert self.register_store is not None
        self.register_store.crash()

    def wipe(self) -> None:
        self.registers, self.chunks = DiskContent(), ChunkDisk()

    def copy(self) -> tuple[DiskContent, ChunkDisk]:
        return copy.deepcopy(self.registers), copy.deepcopy(self.chunks)

    def put_back(self, saved: tuple[DiskContent, ChunkDisk]) -> None:
        self.registers, self.chunks = saved

    def set_pace(self, register_sync_s: float, chunk_sync_s: float) -> None:
        self._pace = register_sync_s, chunk_sync_s
        self._set()

    def fill(self, room: int | None) -> None:
        self._capacity = None if room is None else sum(len(data) for data, _ in self.chunks.values()) + room
        self._set()

    def _set(self) -> None:
        """Tell the stores of this life."""
        if self._pace is not None:
            if self.register_store is not None:
                self.register_store.sync_s = self._pace[0]
            self.chunk_store.sync_s = self._pace[1]
        self.chunk_store.capacity = self._capacity
        self.chunk_store.reserve = RESERVE_BYTES

    def remove(self) -> None:
        pass

    def held_registers(self) -> Mapping[int, Mapping[RegisterKey, Record]]:
        return self.registers.registers

    def held_chunks(self) -> Mapping[bytes, tuple[bytes, Mapping[bytes, int]]]:
        return self.chunks

    def chunks_on_disk(self) -> Collection[bytes]:
        return {chunk for chunk, (_, references) in self.chunks.items() if references}

    def references_on_disk(self, chunk: bytes) -> Mapping[bytes, int]:
        return self.chunks[chunk][1] if chunk in self.chunks else {}


StoresFactory = Callable[[str, int, random.Random], Stores]
"""By a machine's name, the run's seed, and the machine's generator."""
