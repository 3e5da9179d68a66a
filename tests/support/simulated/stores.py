"""What a simulated machine keeps its registers and chunks on, over all the lives of its node: the door, and the quick version in memory.

`MemoryStores` answer as a store should and fail only as a whole. `production_stores` are the daemon's own code on a simulated disk.
"""

from __future__ import annotations

import asyncio
import copy
import random
from collections.abc import Callable, Mapping
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
    failure: Exception | None
    """Why the last process ended by itself."""

    async def run(self, node: Hosted, clock: Clock) -> None:
        """One process: lives on these stores, until `stop`, a failure of the stores, or an error."""

    def stop(self) -> None:
        """End the process on purpose, with everything in order."""

    def crash(self) -> None:
        """The process is gone, with whatever was not on disk. `run` is cancelled next."""

    def wipe(self) -> None:
        """New disks. No process runs."""

    def copy(self) -> Any:
        """The disks as they are, for `put_back`."""

    def put_back(self, saved: Any) -> None:
        """The disks as they were. No process runs."""

    def remove(self) -> None:
        """The disks are not needed any more."""

    def held_registers(self) -> Mapping[int, Mapping[RegisterKey, Record]]:
        """By partition. While a node lives."""

    def held_chunks(self) -> Mapping[bytes, tuple[bytes, Mapping[bytes, int]]]:
        """Chunk -> (its bytes, if that costs nothing; referrer -> replicas). While a node lives."""


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


class MemoryStores:
    def __init__(self, name: str, seed: int, rng: random.Random) -> None:
        """``rng``: the machine's."""
        self._rng = rng
        self.failure: Exception | None = None
        self.registers = DiskContent()
        self.chunks = ChunkDisk()
        self.chunk_store = MemoryChunkStore(self.chunks, rng)
        self.register_store: MemoryRegisterStore | None = None
        self._ending: asyncio.Event | None = None

    async def run(self, node: Hosted, clock: Clock) -> None:
        ending = self._ending = asyncio.Event()
        while not ending.is_set():
            meta = self.registers.meta
            meta.setdefault("store_id", new_store_id(self._rng))
            meta["boot"] = str(int(meta.get("boot", b"0")) + 1).encode()
            life = Life(meta["store_id"], int(meta["boot"]), self._rng.randbytes(RUN_BYTES))
            self.register_store = MemoryRegisterStore(self.registers, self._rng)
            self.chunk_store = MemoryChunkStore(self.chunks, self._rng)
            await one_life(node, OpenStores(self.register_store, self.chunk_store, None, life), ending)
            self.register_store.crash()

    def stop(self) -> None:
        assert self._ending is not None
        self._ending.set()

    def crash(self) -> None:
        assert self.register_store is not None
        self.register_store.crash()

    def wipe(self) -> None:
        self.registers, self.chunks = DiskContent(), ChunkDisk()

    def copy(self) -> DiskContent:
        """Of the registers alone: what chunks a node has is no matter of trust."""
        return copy.deepcopy(self.registers)

    def put_back(self, saved: DiskContent) -> None:
        self.registers = saved

    def remove(self) -> None:
        pass

    def held_registers(self) -> Mapping[int, Mapping[RegisterKey, Record]]:
        return self.registers.registers

    def held_chunks(self) -> Mapping[bytes, tuple[bytes, Mapping[bytes, int]]]:
        return self.chunks


StoresFactory = Callable[[str, int, random.Random], Stores]
"""By a machine's name, the run's seed, and the machine's generator."""
