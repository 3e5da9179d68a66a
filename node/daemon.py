"""One daemon: the one place where the parts of a node are put together.

It owns the order of things: raise the limit of open files, lock the data directory, open the stores, start the core, serve the API; and
at the end the reverse: stop taking requests, finish those under way, tell the peers, close the stores. A part that fails ends the daemon:
a node that can't keep its promises must not linger. One thing heals by itself: a damaged register database is set aside, and the node goes
on with a new one, as a node that has forgotten (docs/decisions/amnesia.md); where no other node remembers, it waits, and says so.
"""

from __future__ import annotations

import asyncio
import gc
import random
import shutil
import signal
from collections.abc import Callable
from contextlib import AsyncExitStack
from importlib.metadata import version
from pathlib import Path

import structlog

from cluster.doors.clock import SystemClock
from cluster.doors.network import TcpNetwork
from cluster.errors import Corrupt, HoldfastError, Invalid, Unauthorized, WrongCluster
from cluster.governance.stores import RUN_BYTES, Life, new_store_id
from cluster.peer.core import Doors, NewLifeError, PeerCore
from cluster.peer.settings import PeerSettings
from cluster.volumes.service import VolumeSettings
from node import open_files
from node.api.app import Api
from node.api.auth import ApiHosts, BearerToken
from node.api.metrics import Metrics
from node.api.server import ApiServer
from node.belonging import DirectoryBelonging
from node.cluster_view import CoreView
from node.config import Config
from node.data_directory import DataDirectory
from node.data_watch import DataWatch
from node.job_runner import Job, run_jobs
from node.live_volumes import LiveVolumes
from node.names import NameLookup
from node.repair_view import CoreRepairView
from node.storage.chunk_compaction import ChunkCompaction
from node.storage.chunk_expiry import ChunkExpiry
from node.storage.chunk_index import Damage
from node.storage.chunk_store import ChunkStoreSettings, LogChunkStore
from node.storage.damaged_registers import clear_leftovers, set_aside
from node.storage.disk import RealDisk
from node.storage.lanes import THREADS
from node.storage.register_store import SqliteRegisterStore
from node.storage.scrub import Scrubber, ScrubSettings
from node.storage.scrub_progress import ScrubFile
from node.threads import Threads

log = structlog.get_logger(__name__)

STOP_GRACE_S = 5.0
"""Requests under way get so long when the daemon is told to stop."""

CHUNKS = "chunks"

CAPACITY_UNIT = 1 << 30
"""The size of a disk counts in whole GiB, so that disks sold as equal, which differ by some blocks, weigh the same."""

EXIT_OK, EXIT_FAILED, EXIT_CONFIGURATION = 0, 1, 2


class Daemon:
    """``await Daemon(config).run()`` serves until it is stopped (`stop`, SIGTERM, SIGINT) or something fails."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._stop = asyncio.Event()
        self._is_damaged = asyncio.Event()
        """The register database of this life is damaged."""
        self._failure: HoldfastError | None = None
        self._core: PeerCore | None = None

    @property
    def core(self) -> PeerCore | None:
        """The running core; None while there is none."""
        return self._core

    def stop(self) -> None:
        self._stop.set()

    def fail(self, error: HoldfastError) -> None:
        """Stop because something can't be relied on any more."""
        if self._failure is None:
            self._failure = error
            log.error("node_failed", error=error.message)
        self._stop.set()

    async def run(self) -> None:
        """Raises Invalid, WrongCluster, Unauthorized (the configuration, the limit of open files or the data directory is wrong), OSError,
        and whatever made the daemon fail."""
        try:
            await self._serve()
        except Exception as error:
            if self._failure is not None:
                raise self._failure from error  # what goes wrong while stores on a failed disk are closed follows from it
            raise
        if self._failure is not None:
            raise self._failure

    async def _serve(self) -> None:
        config = self._config
        loop = asyncio.get_running_loop()
        max_connections = open_files.set_up()
        async with AsyncExitStack() as stack:
            directory = stack.enter_context(DataDirectory(config.data, config.name, config.require_mount))
            threads = Threads()
            stack.callback(threads.close)
            rng = random.SystemRandom()
            clock = SystemClock()
            chunk_directory = directory.path / CHUNKS
            chunk_directory.mkdir(exist_ok=True)
            disk = RealDisk()
            chunks = LogChunkStore(
                ChunkStoreSettings(
                    str(chunk_directory),
                    grace_s=config.chunk_grace_s,
                    reserve_bytes=config.reserve,
                    ballast_bytes=config.ballast,
                ),
                disk=disk,
                clock=clock,
                random=random.Random(),  # noqa: S311 - jitter only
                on_damage=self._mend_damage,
            )
            await asyncio.to_thread(chunks.ensure_room_to_start)
            await chunks.open()
            stack.push_async_callback(chunks.close)
            scrub_lane = THREADS.open("scrub")
            stack.push_async_callback(scrub_lane.close)
            scrubber = Scrubber(
                chunks,
                ScrubFile(disk, str(chunk_directory)),
                clock,
                ScrubSettings(config.scrub_period_s, config.scrub_rate),
                scrub_lane,
            )

            belonging = DirectoryBelonging(directory, self.fail)

            def doors(registers: SqliteRegisterStore) -> Doors:
                return Doors(TcpNetwork(NameLookup()), clock, threads, rng, registers, chunks, belonging, scrubber)

            repair = CoreRepairView(
                lambda: self._core.repair if self._core else None, lambda: self._core.volumes if self._core else None
            )
            watch = DataWatch(directory, clock, self.fail)
            compaction = ChunkCompaction(chunks, clock, rate=config.compaction_rate)
            jobs: list[Job] = [ChunkExpiry(chunks), compaction, scrubber]
            view = CoreView(lambda: self._core, chunks, (*jobs, watch), repair)
            metrics = Metrics()
            metrics.add(view)
            metrics.add(repair)
            token = BearerToken(config.api_token) if config.api_token else None
            api = Api(
                volumes=LiveVolumes(lambda: self._core),
                cluster=view,
                repair=repair,
                metrics=metrics,
                token=token,
                hosts=ApiHosts(config.api_hosts),
                release=version("holdfast"),
            )
            server = ApiServer(api, max_connections)
            for name in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(name, self.stop)
                stack.callback(loop.remove_signal_handler, name)
            await server.start(config.api_host, config.api_port)
            stack.push_async_callback(server.close, STOP_GRACE_S)
            gc.collect()
            gc.freeze()
            try:
                async with asyncio.TaskGroup() as group:
                    tasks = [
                        group.create_task(run_jobs(jobs, clock)),
                        group.create_task(watch.run()),
                    ]
                    try:
                        await self._live(directory.path, doors, chunks.release_ballast, server)
                    finally:
                        for task in tasks:
                            task.cancel()
            except BaseExceptionGroup as error:
                raise _root(error) from error

    def _mend_damage(self, damage: Damage) -> None:
        """A copy was found damaged and is set aside: fetch it anew."""
        log.warning("chunk_damaged", damage=str(damage))
        if damage.chunk and self._core is not None:
            self._core.repair.mender.note([damage.chunk])

    async def _live(
        self,
        directory: Path,
        doors: Callable[[SqliteRegisterStore], Doors],
        make_room: Callable[[], bool],
        server: ApiServer,
    ) -> None:
        """Run cores, one life after the other, each on the register database opened anew, until told to stop. A life ends early when
        its store had forgotten, or is found to be damaged: then the next begins on a new one. ``make_room``: on a full disk."""
        while not self._stop.is_set():
            registers = await asyncio.to_thread(self._open_registers, directory, make_room)
            try:
                await self._one_life(doors(registers), registers, server)
            finally:
                await registers.close()
            if self._is_damaged.is_set():
                await asyncio.to_thread(self._set_aside, directory)

    async def _one_life(self, doors: Doors, registers: SqliteRegisterStore, server: ApiServer) -> None:
        """One core on one store; the API is closed before the last core ends."""
        try:
            store_id, boot, new = await asyncio.to_thread(registers.begin_boot, new_store_id(doors.rng))
            life = Life(store_id, boot, doors.rng.randbytes(RUN_BYTES))
            core = PeerCore(self._peer_settings(server.port), doors, life)
            await core.open()
        except Corrupt as error:
            # Nothing but the register database has been read so far.
            self._registers_failed(error)
            return
        log.info("node_starting", node=self._config.name, store=store_id.hex(), boot=boot, new_store=new)
        if core.bootstrap.loss:
            log.error("registers_lost", node=self._config.name, waiting_for=core.bootstrap.loss)
        running = asyncio.ensure_future(core.run())
        stopping = asyncio.ensure_future(self._stop.wait())
        damaged = asyncio.ensure_future(self._is_damaged.wait())
        self._core = core
        log.info(
            "node_listening",
            node=self._config.name,
            api=f"{self._config.api_host}:{server.port}",
            peer=self._config.peer_port,
        )
        try:
            await asyncio.wait({running, stopping, damaged}, return_when=asyncio.FIRST_COMPLETED)
            if not running.done() and self._stop.is_set():
                log.info("node_stopping", node=self._config.name)
                await server.close(STOP_GRACE_S)
                await core.leave()
        finally:
            for waiting in (stopping, damaged, running):
                waiting.cancel()
            await asyncio.wait({running, stopping, damaged})
            self._core = None
        ended = None if running.cancelled() or self._is_damaged.is_set() else running.exception()
        if ended is None:
            return
        if not _contains(ended, NewLifeError):
            raise _root(ended)
        log.warning("store_had_forgotten", node=self._config.name, action="it takes a new store id and relearns")

    def _open_registers(self, directory: Path, make_room: Callable[[], bool]) -> SqliteRegisterStore:
        """The register database, a new one in the place of one that is damaged. Raises Invalid for a newer release's, OSError."""
        clear_leftovers(directory)
        try:
            return SqliteRegisterStore.open(directory, self._registers_failed, make_room)
        except Corrupt as error:
            log.error("registers_damaged", node=self._config.name, error=error.message)
            self._set_aside(directory)
            return SqliteRegisterStore.open(directory, self._registers_failed, make_room)

    def _registers_failed(self, error: HoldfastError) -> None:
        """What is damaged is replaced; a disk that is full or can't be used would fail the next store too."""
        if isinstance(error, Corrupt):
            log.error("registers_damaged", node=self._config.name, error=error.message)
            self._is_damaged.set()
        else:
            self.fail(error)

    def _set_aside(self, directory: Path) -> None:
        kept = set_aside(directory)
        self._is_damaged.clear()
        log.error(
            "registers_set_aside",
            node=self._config.name,
            kept=str(kept),
            action="this node begins a new register database and relearns from its peers; check the disk",
        )

    def _peer_settings(self, api_port: int) -> PeerSettings:
        config = self._config
        advertised = config.advertise_host if config.api_host in {"0.0.0.0", "::"} else config.api_host  # noqa: S104 - compared
        return PeerSettings(
            name=config.name,
            secret=config.secret.encode(),
            host=config.peer_host,
            port=config.peer_port,
            advertise_host=config.advertise_host,
            advertise_port=config.advertise_port,
            api=f"{advertised}:{api_port}",
            zone=config.zone,
            capacity=config.capacity or default_capacity(shutil.disk_usage(config.data).total),
            seeds=config.join,
            bootstrap_expect=config.bootstrap_expect,
            replication_factor=config.replication,
            auto_layout=config.auto_layout,
            release=version("holdfast"),
            repair=config.repair,
            volumes=VolumeSettings(
                retired_grace_s=config.retired_grace_s,
                sweep_period_s=config.sweep_period_s,
                sweep_age_s=config.sweep_age_s,
            ),
            tombstone_grace_s=config.tombstone_grace_s,
        )


def default_capacity(disk_bytes: int) -> int:
    """Bytes that a node offers when nothing else is said: its disk's size in whole GiB, at least one."""
    return max(1, disk_bytes // CAPACITY_UNIT) * CAPACITY_UNIT


def _contains(error: BaseException, kind: type[BaseException]) -> bool:
    if isinstance(error, BaseExceptionGroup):
        return any(_contains(inner, kind) for inner in error.exceptions)
    return isinstance(error, kind)


def _root(error: BaseException) -> BaseException:
    """The one error inside groups of one."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


CONFIGURATION_ERRORS = (Invalid, WrongCluster, Unauthorized)
