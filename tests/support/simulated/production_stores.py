"""The daemon's own stores on a simulated machine: chunk log and index, registers, scrub, expiry and compaction, without threads.

Their code is production's, put together as in `node.daemon`: lanes, disk and SQLite's connections are simulated. The log is on a
`SimulatedDisk`; SQLite's files are in a directory in memory that is made here and gone after `remove`.
"""

from __future__ import annotations

import asyncio
import dataclasses
import random
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from cluster.doors.clock import Clock
from cluster.errors import Corrupt, HoldfastError
from cluster.governance.stores import RUN_BYTES, Life, new_store_id
from cluster.register.key import RegisterKey
from cluster.register.record import Record
from node.job_runner import Job, run_jobs
from node.storage.chunk_compaction import ChunkCompaction
from node.storage.chunk_expiry import ChunkExpiry
from node.storage.chunk_index import Damage
from node.storage.chunk_store import INDEX_NAME, ChunkStoreSettings, LogChunkStore
from node.storage.damaged_registers import clear_leftovers, set_aside
from node.storage.register_reading import EVERYTHING
from node.storage.register_rows import read_register
from node.storage.register_store import SqliteRegisterStore
from node.storage.scrub import Scrubber, ScrubSettings
from node.storage.scrub_progress import ScrubFile
from tests.support.simulated.disk import SimulatedDisk
from tests.support.simulated.lanes import SimulatedLanes
from tests.support.simulated.sqlite_files import Files, RegisterFiles, SimulatedIndex, memory_directory
from tests.support.simulated.stores import Hosted, OpenStores, one_life

LOG_DIRECTORY: Final = "/chunks"
"""On the simulated disk."""

SETTINGS: Final = ChunkStoreSettings(
    LOG_DIRECTORY, grace_s=30.0, file_bytes=64 * 1024, reserve_bytes=0, ballast_bytes=0, flush_states=16
)
"""So small that log files change, die and are emptied, and the index is written, in a short run."""

SCRUB: Final = ScrubSettings(period_s=120.0)
WORTH_BYTES: Final = 4096
POWER_CUT: Final = 0.7
"""The share of crashes that are power cuts; the others are the end of the process alone."""


@dataclasses.dataclass(frozen=True)
class SavedDisks:
    log: SimulatedDisk
    index: Files
    registers: Files


class _Process:
    """What is open while a process runs."""

    def __init__(self, lanes: SimulatedLanes, chunks: LogChunkStore) -> None:
        self.lanes = lanes
        self.chunks = chunks
        self.registers: SqliteRegisterStore | None = None
        self.damaged = asyncio.Event()
        self.ending = asyncio.Event()


class ProductionStores:
    """Fulfils `Stores`."""

    def __init__(
        self,
        name: str,
        seed: int,
        rng: random.Random,
        *,
        settings: ChunkStoreSettings = SETTINGS,
        capacity: int = 1 << 30,
        make_disk: Callable[..., SimulatedDisk] = SimulatedDisk,
        open_registers: Callable[..., SqliteRegisterStore] = SqliteRegisterStore.open,
    ) -> None:
        """``make_disk``, ``open_registers``: for those that break a promise."""
        self._rng = rng
        self._chance = random.Random(f"{seed} {name} disk")
        self._settings = settings
        self._capacity = capacity
        self._make_disk = make_disk
        self._open_registers = open_registers
        self._directory = tempfile.TemporaryDirectory(dir=memory_directory(), prefix="simulated-")
        root = Path(self._directory.name)
        self.disk = self._new_disk()
        self.index = SimulatedIndex(str(root / INDEX_NAME))
        self.register_files = RegisterFiles(root)
        self.slowness = 1.0
        self.failure: Exception | None = None
        self.damages: list[Damage] = []
        """All that were found."""
        self.crashes: list[str] = []
        """What each crash did to the index."""
        self._process: _Process | None = None

    def _new_disk(self) -> SimulatedDisk:
        return self._make_disk(capacity=self._capacity, history=False)

    # -- a process

    async def run(self, node: Hosted, clock: Clock) -> None:
        assert self._process is None
        self.failure = None
        chance = random.Random(self._chance.randbytes(16))
        lanes = SimulatedLanes(chance)
        lanes.slowness = self.slowness

        def damaged(damage: Damage) -> None:
            self.damages.append(damage)
            if damage.chunk:
                node.mend(damage.chunk)

        chunks = LogChunkStore(
            self._settings,
            disk=self.disk,
            clock=clock,
            random=chance,
            on_damage=damaged,
            lanes=lanes,
            index=self.index,
        )
        process = self._process = _Process(lanes, chunks)
        chunks.ensure_room_to_start()
        await chunks.open()
        lane = lanes.open("scrub")
        scrubber = Scrubber(chunks, ScrubFile(self.disk, LOG_DIRECTORY), clock, SCRUB, lane)
        jobs: list[Job] = [ChunkExpiry(chunks), ChunkCompaction(chunks, clock, worth_bytes=WORTH_BYTES), scrubber]
        async with asyncio.TaskGroup() as group:
            background = group.create_task(run_jobs(jobs, clock))
            try:
                await self._live(process, node, scrubber)
            finally:
                background.cancel()
        await lane.close()
        await chunks.close()
        self._process = None

    async def _live(self, process: _Process, node: Hosted, scrubber: Scrubber) -> None:
        """Lives, one after the other, as `node.daemon` has them."""
        while not process.ending.is_set():
            try:
                registers = process.registers = self._open(process)
                store_id, boot, _ = registers.begin_boot(new_store_id(self._rng))
                life = Life(store_id, boot, self._rng.randbytes(RUN_BYTES))
                stores = OpenStores(registers, process.chunks, scrubber, life)
                await one_life(node, stores, process.ending, process.damaged)
            except Corrupt as error:
                self._failed(process, error)
            if process.registers is not None:
                await process.registers.close()
                process.registers = None
            if process.damaged.is_set():
                set_aside(self.register_files.directory)
                process.damaged.clear()

    def _open(self, process: _Process) -> SqliteRegisterStore:
        directory = self.register_files.directory
        clear_leftovers(directory)
        self.register_files.prepare()
        try:
            return self._opened(process)
        except Corrupt:
            set_aside(directory)
            self.register_files.prepare()
            return self._opened(process)

    def _opened(self, process: _Process) -> SqliteRegisterStore:
        return self._open_registers(
            self.register_files.directory,
            lambda error: self._failed(process, error),
            process.chunks.release_ballast,
            lanes=process.lanes,
            connect=self.register_files.connect,
        )

    def _failed(self, process: _Process, error: HoldfastError) -> None:
        if isinstance(error, Corrupt):
            process.damaged.set()
        else:
            self.failure = error
            process.ending.set()

    def stop(self) -> None:
        assert self._process is not None
        self._process.ending.set()

    def slow_down(self, slowness: float) -> None:
        """How many times slower than a good one the disk is, from now on."""
        self.slowness = slowness
        if self._process is not None:
            self._process.lanes.slowness = slowness

    # -- between processes

    def crash(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.lanes.crash(self.disk)
        power = self._chance.random() < POWER_CUT
        self.disk.crash(self._chance, power=power)
        self.crashes.append(self.index.crash(self._chance, power=power))
        if process.registers is not None:
            process.registers._reader.close()
            process.registers._writer.close()
        self.register_files.faults.clear()

    def wipe(self) -> None:
        assert self._process is None
        self.disk = self._new_disk()
        self.index.put_back({})
        self.register_files.put_back({})

    def copy(self) -> SavedDisks:
        return SavedDisks(self.disk.copy(), self.index.save(), self.register_files.save())

    def put_back(self, saved: SavedDisks) -> None:
        assert self._process is None
        self.disk = saved.log.copy()
        self.index.put_back(saved.index)
        self.register_files.put_back(saved.registers)

    def remove(self) -> None:
        self._directory.cleanup()

    # -- what is held

    def held_registers(self) -> Mapping[int, Mapping[RegisterKey, Record]]:
        assert self._process is not None
        assert self._process.registers is not None
        found: dict[int, dict[RegisterKey, Record]] = {}
        for row in self._process.registers._reader.execute(EVERYTHING):
            key, record = read_register(row)
            found.setdefault(row[0], {})[key] = record
        return found

    def held_chunks(self) -> Mapping[bytes, tuple[bytes, Mapping[bytes, int]]]:
        assert self._process is not None
        states = dict(self.index.reader().span(b"", None, b"\xff" * 33, 1 << 30))
        for chunk, state in self._process.chunks._catalog.overlay(lambda _chunk, _state: True).items():
            states.pop(chunk, None)
            if state is not None:
                states[chunk] = state
        return {chunk: (b"", {held.referrer: held.replicas for held in s.references}) for chunk, s in states.items()}
