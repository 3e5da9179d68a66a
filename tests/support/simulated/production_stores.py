"""The daemon's own stores on a simulated machine: chunk log and index, registers, scrub, expiry and compaction, without threads.

Their code is production's, put together as in `node.daemon`: lanes, disk and SQLite's connections are simulated. The log is on a
`SimulatedDisk`; SQLite's files are in a directory in memory that is made here and gone after `remove`.
"""

from __future__ import annotations

import asyncio
import dataclasses
import random
import sqlite3
from collections.abc import Callable, Collection, Mapping
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
from tests.support.simulated.durable_log import DurableLog
from tests.support.simulated.lanes import SYNC_S, SimulatedLanes
from tests.support.simulated.sqlite_files import CommitFaults, Files, RegisterFiles, SimulatedIndex, new_directory
from tests.support.simulated.stores import Hosted, OpenStores, one_life

LOG_DIRECTORY: Final = "/chunks"
"""On the simulated disk."""

SETTINGS: Final = ChunkStoreSettings(
    LOG_DIRECTORY, grace_s=30.0, file_bytes=64 * 1024, reserve_bytes=0, ballast_bytes=0, flush_states=16
)
"""So small that log files change, die and are emptied, and the index is written, in a short run."""

SCRUB: Final = ScrubSettings(period_s=120.0)
WORTH_BYTES: Final = 4096
POWER_CUT: Final = 0.5
"""The share of crashes that are power cuts; the others are the end of the process alone."""


FAILURES: Final = (HoldfastError, OSError, sqlite3.Error)
"""What ends a process as it ends the daemon. Anything else is a mistake."""


@dataclasses.dataclass(frozen=True)
class SavedDisks:
    log: SimulatedDisk
    index: Files
    registers: Files


class _Commits(CommitFaults):
    """Remembers whether any was ever made to fail."""

    failed = False

    def next(self) -> tuple[int, bool] | None:
        fault = super().next()
        self.failed |= fault is not None
        return fault


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
        scrub: ScrubSettings = SCRUB,
        capacity: int = 1 << 30,
        make_disk: Callable[..., SimulatedDisk] = SimulatedDisk,
        open_registers: Callable[..., SqliteRegisterStore] = SqliteRegisterStore.open,
    ) -> None:
        """``make_disk``, ``open_registers``: for those that break a promise."""
        self._rng = rng
        self._chance = random.Random(f"{seed} {name} disk")
        self._settings = settings
        self._scrub = scrub
        self._capacity = self._whole_capacity = capacity
        self._make_disk = make_disk
        self._open_registers = open_registers
        self._directory = new_directory()
        root = Path(self._directory.name)
        self._calls_failed = self._was_full = False
        self._put_in(self._new_disk())
        self.index = SimulatedIndex(str(root / INDEX_NAME))
        self.register_files = RegisterFiles(root)
        self.register_files.faults = self._commits = _Commits()
        self._slowness = (1.0, 1.0)
        """Of registers and chunks."""
        self.failure: BaseException | None = None
        self.damages: list[Damage] = []
        """All that were found."""
        self.crashes: list[str] = []
        """What each crash did to the index."""
        self._process: _Process | None = None

    def _new_disk(self) -> SimulatedDisk:
        return self._make_disk(capacity=self._capacity, history=False)

    def _put_in(self, disk: SimulatedDisk) -> None:
        def before(_kind: str, _number: int) -> None:
            self._calls_failed |= bool(disk.failures)

        disk.fault = before
        self.disk = disk
        self._log = DurableLog(disk)

    # -- a process

    async def run(self, node: Hosted, clock: Clock) -> None:
        try:
            await self._serve(node, clock)
        except Exception as error:
            causes = list(leaves(error))
            if not all(isinstance(cause, FAILURES) for cause in causes):
                raise
            self.failure = self.failure or causes[0]
            self._end_of_process(power=False)

    async def _serve(self, node: Hosted, clock: Clock) -> None:
        assert self._process is None
        self.failure = None
        chance = random.Random(self._chance.randbytes(16))
        lanes = SimulatedLanes(chance)
        lanes.register_slowness, lanes.slowness = self._slowness

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
        if self.disk.sound:
            self._check_open()
        lane = lanes.open("scrub")
        scrubber = Scrubber(chunks, ScrubFile(self.disk, LOG_DIRECTORY), clock, self._scrub, lane)
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

    def _check_open(self) -> None:
        """A store that has just been opened holds what is in its log, all of it durably."""
        held = {chunk: references for chunk, (_, references) in self.held_chunks().items()}
        on_disk = self._log.chunks()
        wrong = sorted(chunk for chunk in held.keys() | on_disk.keys() if held.get(chunk) != on_disk.get(chunk))
        assert not wrong, (
            f"chunk {wrong[0].hex()[:8]} is held as {held.get(wrong[0])}, the log has {on_disk.get(wrong[0])}"
        )

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
        self._set_slowness(slowness, slowness)

    def set_pace(self, register_sync_s: float, chunk_sync_s: float) -> None:
        """Reads get slower with the syncs."""
        self._set_slowness(register_sync_s / SYNC_S, chunk_sync_s / SYNC_S)

    def _set_slowness(self, registers: float, chunks: float) -> None:
        self._slowness = registers, chunks
        if self._process is not None:
            self._process.lanes.register_slowness, self._process.lanes.slowness = registers, chunks

    def fill(self, room: int | None) -> None:
        """Of the disk that the chunk log is on."""
        self._was_full |= room is not None
        self._capacity = self._whole_capacity if room is None else self.disk.used() + room
        self.disk.capacity = self._capacity

    def heal(self) -> None:
        """The disk fails no more."""
        self.disk.failures.clear()
        self.register_files.faults.clear()

    @property
    def was_made_to_fail(self) -> bool:
        """Whether calls or commits were ever to fail, or the disk to be full: then a process may end, and its log may take nothing more.
        Flipped bits are no reason: what is damaged is made good while it runs."""
        return self._calls_failed or self._commits.failed or self._was_full

    @property
    def end(self) -> object:
        """Why the process ends, has ended by itself, or takes nothing more into its log; None while all is well."""
        if self.failure is not None or self._process is None:
            return self.failure
        return self._process.chunks._log.failure

    def is_writing(self) -> bool:
        """Whether chunks are being written just now."""
        return self._process is not None and self._process.lanes.is_working("chunk-writer")

    # -- between processes

    def crash(self, *, power: bool | None = None) -> None:
        self._end_of_process(power=self._chance.random() < POWER_CUT if power is None else power)

    def _end_of_process(self, *, power: bool) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.lanes.crash(self.disk)
        self.disk.crash(self._chance, power=power)
        self.crashes.append(self.index.crash(self._chance, power=power))
        if process is not None and process.registers is not None:
            process.registers._reader.close()
            process.registers._writer.close()

    def wipe(self) -> None:
        assert self._process is None
        self._put_in(self._new_disk())
        self.index.put_back({})
        self.register_files.put_back({})

    def copy(self) -> SavedDisks:
        return SavedDisks(self.disk.copy(), self.index.save(), self.register_files.save())

    def put_back(self, saved: SavedDisks) -> None:
        assert self._process is None
        disk = saved.log.copy()
        disk.capacity = self._capacity
        self._put_in(disk)
        self.index.put_back(saved.index)
        self.register_files.put_back(saved.registers)

    def remove(self) -> None:
        self._directory.cleanup()

    # -- what is held

    def held_registers(self) -> Mapping[int, Mapping[RegisterKey, Record]]:
        if self._process is None or self._process.registers is None:
            return {}
        found: dict[int, dict[RegisterKey, Record]] = {}
        for row in self._process.registers._reader.execute(EVERYTHING):
            key, record = read_register(row)
            found.setdefault(row[0], {})[key] = record
        return found

    def held_chunks(self) -> Mapping[bytes, tuple[bytes, Mapping[bytes, int]]]:
        if self._process is None:
            return {}
        states = dict(self.index.reader().span(b"", None, b"\xff" * 33, 1 << 30))
        for chunk, state in self._process.chunks._catalog.overlay(lambda _chunk, _state: True).items():
            states.pop(chunk, None)
            if state is not None:
                states[chunk] = state
        return {chunk: (b"", {held.referrer: held.replicas for held in s.references}) for chunk, s in states.items()}

    def chunks_on_disk(self) -> Collection[bytes]:
        return {chunk for chunk, references in self._log.chunks().items() if references}

    def references_on_disk(self, chunk: bytes) -> Mapping[bytes, int]:
        return self._log.chunks().get(chunk, {})


def leaves(error: BaseException) -> list[BaseException]:
    """What is in groups of errors."""
    if isinstance(error, BaseExceptionGroup):
        return [leaf for part in error.exceptions for leaf in leaves(part)]
    return [error]
