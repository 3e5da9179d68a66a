"""One daemon: the one place where the parts of a node are put together.

It owns the order of things: lock the data directory, open the stores, start the core, serve the API; and at the end the reverse: stop
taking requests, finish those under way, tell the peers, close the stores. A part that fails ends the daemon: a node that can't
keep its promises must not linger.
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
from node.api.app import Api
from node.api.auth import BearerToken
from node.api.metrics import Metrics
from node.api.server import ApiServer
from node.cluster_view import CoreView
from node.config import Config
from node.data_directory import DataDirectory
from node.job_runner import Job, run_jobs
from node.live_volumes import LiveVolumes
from node.storage.chunk_compaction import ChunkCompaction
from node.storage.chunk_expiry import ChunkExpiry
from node.storage.chunk_store import ChunkStoreSettings, LogChunkStore
from node.storage.disk import RealDisk
from node.storage.register_store import DATABASE_NAME, SqliteRegisterStore
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
        """Raises Invalid, WrongCluster, Unauthorized (the configuration or the data directory is wrong), OSError, and whatever
        made the daemon fail."""
        config = self._config
        loop = asyncio.get_running_loop()
        async with AsyncExitStack() as stack:
            directory = stack.enter_context(DataDirectory(config.data, config.name))
            threads = Threads()
            stack.callback(threads.close)
            rng = random.SystemRandom()
            clock = SystemClock()
            chunk_directory = directory.path / CHUNKS
            chunk_directory.mkdir(exist_ok=True)
            chunks = LogChunkStore(
                ChunkStoreSettings(
                    str(chunk_directory),
                    grace_s=config.chunk_grace_s,
                    reserve_bytes=config.reserve,
                    ballast_bytes=config.ballast,
                ),
                disk=RealDisk(),
                clock=clock,
                random=random.Random(),  # noqa: S311 - jitter only
                on_damage=lambda damage: log.warning("chunk_damaged", damage=str(damage)),
            )
            await asyncio.to_thread(chunks.ensure_room_to_start)
            registers = await asyncio.to_thread(self._open_registers, directory.path, chunks.release_ballast)
            stack.push_async_callback(registers.close)
            await chunks.open()
            stack.push_async_callback(chunks.close)
            doors = Doors(TcpNetwork(), clock, threads, rng, registers, chunks)
            jobs: list[Job] = [ChunkExpiry(chunks), ChunkCompaction(chunks, clock, rate=config.compaction_rate)]
            view = CoreView(lambda: self._core, chunks, jobs)
            metrics = Metrics()
            metrics.add(view)
            token = BearerToken(config.api_token) if config.api_token else None
            api = Api(
                volumes=LiveVolumes(lambda: self._core),
                cluster=view,
                metrics=metrics,
                token=token,
                release=version("holdfast"),
            )
            server = ApiServer(api)
            for name in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(name, self.stop)
                stack.callback(loop.remove_signal_handler, name)
            await server.start(config.api_host, config.api_port)
            stack.push_async_callback(server.close, STOP_GRACE_S)
            gc.collect()
            gc.freeze()
            try:
                async with asyncio.TaskGroup() as group:
                    running_jobs = group.create_task(run_jobs(jobs, clock))
                    try:
                        await self._live(doors, registers, server)
                    finally:
                        running_jobs.cancel()
            except BaseExceptionGroup as error:
                raise _root(error) from error
        if self._failure is not None:
            raise self._failure

    async def _live(self, doors: Doors, registers: SqliteRegisterStore, server: ApiServer) -> None:
        """Run cores, one life after the other, until told to stop; the API is closed before the last core ends."""
        while not self._stop.is_set():
            store_id, boot, new = await asyncio.to_thread(registers.begin_boot, new_store_id(doors.rng))
            core = PeerCore(
                self._peer_settings(server.port), doors, Life(store_id, boot, doors.rng.randbytes(RUN_BYTES))
            )
            await core.open()
            log.info("node_starting", node=self._config.name, store=store_id.hex(), boot=boot, new_store=new)
            running = asyncio.ensure_future(core.run())
            stopping = asyncio.ensure_future(self._stop.wait())
            self._core = core
            log.info(
                "node_listening",
                node=self._config.name,
                api=f"{self._config.api_host}:{server.port}",
                peer=self._config.peer_port,
            )
            try:
                await asyncio.wait({running, stopping}, return_when=asyncio.FIRST_COMPLETED)
                if not running.done():
                    log.info("node_stopping", node=self._config.name)
                    await server.close(STOP_GRACE_S)
                    await core.leave()
            finally:
                stopping.cancel()
                running.cancel()
                await asyncio.wait({running, stopping})
                self._core = None
            if not running.cancelled() and (error := running.exception()) is not None:
                if not _contains(error, NewLifeError):
                    raise _root(error)
                log.warning(
                    "store_had_forgotten", node=self._config.name, action="it takes a new store id and relearns"
                )

    def _open_registers(self, directory: Path, make_room: Callable[[], bool]) -> SqliteRegisterStore:
        def on_failure(error: HoldfastError) -> None:
            self.fail(error)

        try:
            return SqliteRegisterStore.open(directory, on_failure, make_room)
        except Corrupt as error:
            raise Invalid(
                f"{error.message}. Move {directory / DATABASE_NAME} (with its -wal and -shm) away and start the node again: "
                "it relearns its registers from the other replicas",
                field="data",
            ) from error

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
