"""One node's durable chunks: `cluster.chunks.store.ChunkStore` over a chunk log and its index, in one directory.

The event loop's side: it checks arguments, queues changes for the writer's lane, sends lookups and reads to a lane of a few readers, and
owns the cache of positions for reads that need neither. No method waits for the disk on the event loop.
Read on in this order: `chunk_record`, `chunk_state`, `chunk_trees`, `file_ledger`, `chunk_log`, `log_scan`, `chunk_index`,
`chunk_catalog`, `chunk_lookup`, `chunk_operation`, `chunk_reading`, `put_room`, `chunk_writer`, `chunk_recovery`, `disk_errors`; for
space `chunk_expiry`, `chunk_relocation`, `file_evacuation`, `chunk_compaction`, `ballast`.
The owner of the data directory sees to it that one process opens it at a time.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, TypeVar

from cluster.chunks.store import (
    CHUNK_ID_BYTES,
    PAYLOAD_LIMIT,
    REFERRER_BYTES,
    ChunkEntry,
    ChunkStatistics,
    Reference,
    StoreFailed,
)
from cluster.doors.clock import Clock
from cluster.errors import Busy, Corrupt, Invalid, NoSpace, NotFound
from cluster.merkle.digest_tree import DigestTree
from cluster.rpc.message import Buffer
from node.storage.ballast import RELEASE_BYTES, START_BYTES, Ballast, default_ballast
from node.storage.chunk_catalog import ChunkCatalog
from node.storage.chunk_index import ChunkIndex, Damage, IndexDamaged, IndexFull, IndexUnavailable
from node.storage.chunk_log import ChunkLog, LogFiles
from node.storage.chunk_lookup import ChunkLookup
from node.storage.chunk_operation import AddReference, Condemn, Delete, DropReference, Expire, Operation, Put
from node.storage.chunk_reading import ChunkReading, Damaged, Position, PositionCache
from node.storage.chunk_recovery import ChunkRecovery, Recovered
from node.storage.chunk_state import ChunkState
from node.storage.chunk_writer import Barrier, ChunkWriter, Rebuild, Retire, Seal
from node.storage.disk import Disk
from node.storage.file_evacuation import EvacuationDoors, FileEvacuation
from node.storage.file_ledger import FileFigures
from node.storage.lanes import THREADS, Lane, Lanes
from node.storage.put_room import PutRoom

log = logging.getLogger(__name__)

R = TypeVar("R")

READERS = 4
"""Reads from the disk at once; enough to keep a disk's queue busy, few enough to keep memory small."""

QUEUE_BYTES = 256 * 1024 * 1024
"""Payload bytes that may be queued for the writer, or be with it; a put beyond that waits before it is queued: see `put_room`."""

INDEX_NAME = "chunks.sqlite"
FILE_BYTES = 1024 * 1024 * 1024
GRACE_S = 24 * 3600.0
PARTITION_PAGE = 1024
"""Chunks deleted per round while a partition is dropped."""


def default_reserve(total: int) -> int:
    """Bytes of a disk of `total` bytes that puts leave free: 1 %, at least 256 MiB, at most 5 %."""
    return min(max(256 * 1024 * 1024, total // 100), total // 20)


@dataclass(frozen=True, slots=True)
class ChunkStoreSettings:
    """`directory`: where the log and the index live. `grace_s`: how long a chunk outlives its last reference. `file_bytes`: size at
    which a log file is sealed. `reserve_bytes`: free space below which a put is refused; None: `default_reserve`.
    `ballast_bytes`: see `ballast`; None: `default_ballast`. `flush_states`: see `chunk_writer.FLUSH_STATES`, which is the default."""

    directory: str
    grace_s: float = GRACE_S
    file_bytes: int = FILE_BYTES
    reserve_bytes: int | None = None
    ballast_bytes: int | None = None
    flush_states: int | None = None


class LogChunkStore:
    """Fulfils `ChunkStore`. `open` first, `close` last; everything on one event loop."""

    def __init__(
        self,
        settings: ChunkStoreSettings,
        *,
        disk: Disk,
        clock: Clock,
        random: Random,
        on_damage: Callable[[Damage], None] | None = None,
        lanes: Lanes = THREADS,
        index: ChunkIndex | None = None,
    ) -> None:
        """`index`: in the place of the one in the directory."""
        assert settings.file_bytes < 2**31, "offsets in the log are 32 bits"
        self._settings = settings
        self._disk = disk
        self._clock = clock
        self._random = random
        self._on_damage = on_damage
        self._lanes = lanes
        self._directory = settings.directory
        self._files = LogFiles(disk, settings.directory)
        self._ballast = Ballast(disk, settings.directory)
        self._index = index or ChunkIndex(os.path.join(settings.directory, INDEX_NAME))
        self._catalog = ChunkCatalog(self._index)
        self._lookup = ChunkLookup(self._catalog, self._index)
        self._reading = ChunkReading(self._files)
        self._positions = PositionCache()
        self._moves = 0
        """Counts chunks whose known position became void: what a reader found before may be old."""
        self._log = ChunkLog(self._files, lambda: random.getrandbits(64) or 1)
        self._writer: ChunkWriter | None = None
        self._readers: Lane | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._room = PutRoom(QUEUE_BYTES)
        self._reserve = 0
        self._reads = 0
        self._cached_reads = 0
        self._bytes_read = 0

    # -- life

    async def open(self) -> Recovered:
        """Recover what the directory holds and open the lanes. Raises OSError, StoreFailed."""
        assert self._writer is None
        self._loop = asyncio.get_running_loop()
        self._readers = self._lanes.open("chunk-reader", READERS)
        try:
            found = await self._readers.run(self._recover)
        except BaseException:
            await self._readers.close()
            self._index.close()
            self._files.close()
            self._ballast.close()
            raise
        self._writer = ChunkWriter(
            files=self._files,
            catalog=self._catalog,
            chunk_log=self._log,
            clock=self._clock,
            age_ms=found.age_ms,
            file_bytes=self._settings.file_bytes,
            reserve_bytes=self._reserve,
            flush_states=self._settings.flush_states,
            ballast=self._ballast,
            lanes=self._lanes,
            loop=self._loop,
            answered=self._answered,
            damaged=self._report,
        )
        log.info(
            "chunk store open: chunks=%d replayed=%d cut_bytes=%d index=%s",
            self._catalog.chunks,
            found.replayed,
            found.cut_bytes,
            f"rebuilt ({found.rebuilt})" if found.rebuilt else "good",
        )
        self._report(found.new_damages)
        return found

    def _recover(self) -> Recovered:
        self._disk.make_directory(self._directory)
        settings = self._settings
        reserve, ballast = settings.reserve_bytes, settings.ballast_bytes
        self._reserve = default_reserve(self._disk.space(self._directory).total) if reserve is None else reserve
        found = ChunkRecovery(self._files, self._catalog, self._log, self._ballast).run()
        self._ballast.open(default_ballast(self._reserve) if ballast is None else ballast)
        return found

    async def close(self) -> None:
        """Finish what is queued, put everything into the index, seal it, end the lanes."""
        await self._stop(tidy=True)

    async def abandon(self) -> None:
        """End the lanes and leave index and log as they are, as if the process had died after its last answer."""
        await self._stop(tidy=False)

    async def _stop(self, *, tidy: bool) -> None:
        writer, self._writer = self._writer, None
        if writer is None:
            return
        self._room.close("the chunk store is closed")
        readers = self._readers
        assert readers is not None
        await readers.close()
        await writer.stop(tidy=tidy)
        self._index.close()
        self._files.close()
        self._ballast.close()

    # -- changes

    async def put(self, chunk: bytes, payload: Buffer, reference: Reference, *, repair: bool = False) -> None:
        """See `ChunkStore.put`."""
        _check_chunk(chunk)
        _check_reference(reference)
        if isinstance(payload, memoryview) and (payload.format != "B" or payload.ndim != 1):
            payload = payload.cast("B")
        size = len(payload)
        if size > PAYLOAD_LIMIT:
            raise Invalid(f"a chunk has at most {PAYLOAD_LIMIT} bytes, not {size}", field="payload")
        await self._room.take(size)
        checked: tuple[int, int] | None = None
        fault: str | None = None
        operation: Put | None = None
        try:
            while True:
                who, copies = reference.referrer, reference.replicas
                operation = Put(chunk, self._future(), payload, who, copies, checked, fault, repair=repair)
                held = await self._submit(operation)
                if held is None:
                    return
                checked = (held.file, held.offset)
                fault = await self._verify(chunk, held)
        finally:
            if operation is None or not operation.given_up:  # else the writer has the payload still: see `_answered`
                self._room.give(size)

    async def _verify(self, chunk: bytes, state: ChunkState) -> str | None:
        """What is wrong with a copy, None if nothing. Raises Busy."""
        try:
            await self._run(self._reading.verify, chunk, state)
        except Damaged as damaged:
            return damaged.reason
        return None

    async def add_reference(self, chunk: bytes, reference: Reference) -> bool:
        """See `ChunkStore.add_reference`."""
        _check_chunk(chunk)
        _check_reference(reference)
        return bool(await self._submit(AddReference(chunk, self._future(), reference.referrer, reference.replicas)))

    async def drop_reference(self, chunk: bytes, referrer: bytes) -> bool:
        """See `ChunkStore.drop_reference`."""
        _check_chunk(chunk)
        _check_referrer(referrer)
        return bool(await self._submit(DropReference(chunk, self._future(), referrer)))

    async def drop_partition(self, partition: int, bits: int) -> int:
        """See `ChunkStore.drop_partition`."""
        dropped = 0
        after: bytes | None = None
        while True:
            entries = await self.list_partition(partition, bits, after, PARTITION_PAGE)
            operations = [Delete(entry.chunk, self._future()) for entry in entries]
            for operation in operations:
                self._queue(operation)
            outcomes = await asyncio.gather(*[operation.future for operation in operations])
            dropped += outcomes.count(True)
            if len(entries) < PARTITION_PAGE:
                return dropped
            after = entries[-1].chunk

    async def expire(self, limit: int) -> int:
        """Delete up to `limit` chunks whose grace period is over, oldest first; returns how many."""
        until = self._running().age_ms() - int(self._settings.grace_s * 1000)
        if until < 0:
            return 0
        chunks = await self._ask(self._lookup.freed, until, limit)
        operations = [Expire(chunk, self._future(), until) for chunk in chunks]
        for operation in operations:
            self._queue(operation)
        return (await asyncio.gather(*[operation.future for operation in operations])).count(True)

    async def freed_count(self) -> int:
        """Chunks without references, deleted when their grace period is over."""
        return await self._ask(self._lookup.count_freed)

    async def unlink_dead_files(self) -> int:
        """Unlink log files that nothing needs any more; returns how many went."""
        return len(await self._submit(Retire(self._future())))

    def evacuation(self, number: int) -> FileEvacuation:
        """One emptying of a sealed log file, for compaction."""
        doors = EvacuationDoors(
            self._files, self._catalog, self._reading, self._ask, self._run, self._submit, self._future
        )
        return FileEvacuation(number, doors)

    def log_files(self) -> list[FileFigures]:
        """Figures of the log files, ascending; the last is the one that is appended to."""
        accounts = sorted(
            self._catalog.ledger.accounts.copy().items()
        )  # one step for the writer, see `ChunkCatalog.overlay`
        return [account.figures for _, account in accounts]

    def log_file(self, number: int) -> FileFigures | None:
        """Figures of one log file, None when it is gone."""
        account = self._catalog.ledger.accounts.get(number)
        return None if account is None else account.figures

    async def seal(self) -> bool:
        """Go on in a new log file; False when there is nothing in this one, or no room."""
        return bool(await self._submit(Seal(self._future())))

    @property
    def short_of_space(self) -> bool:
        """Whether the disk has less free than puts must leave: giving space back is urgent."""
        return self._disk.space(self._directory).free < self._reserve

    def room_to_move(self) -> int:
        """Bytes that compaction may write: what is free, and half of the ballast."""
        ballast = self._ballast
        return self._disk.space(self._directory).free + max(0, ballast.held - ballast.size // 2)

    def ensure_room_to_start(self) -> None:
        """Before anything is opened on this disk, if others have filled it. Blocks."""
        self._ballast.ensure_free(START_BYTES)

    def release_ballast(self, size: int = RELEASE_BYTES) -> bool:
        """Make room on a full disk for what must not be refused: whether there is any to try again with. Any thread, also before `open`."""
        return self._ballast.release(size)

    async def settle(self) -> None:
        """Return when everything queued before has been answered."""
        await self._submit(Barrier(self._future()))

    # -- reads

    def read_cached(self, chunk: bytes, offset: int, length: int) -> bytes | None:
        """See `ChunkStore.read_cached`."""
        position = self._positions.get(chunk)
        if position is None:
            return None
        _check_range(offset, length, position.length)
        data = self._reading.cached(position, offset, length)
        if data is not None:
            self._cached_reads += 1
            self._bytes_read += length
        return data

    async def read(self, chunk: bytes, offset: int = 0, length: int | None = None) -> bytes:
        """See `ChunkStore.read`."""
        _check_chunk(chunk)
        self._reads += 1
        while True:
            moves = self._moves
            position = self._positions.get(chunk)
            place: tuple[int, int] | None = None
            try:
                if position is not None:
                    wanted = _check_range(offset, length, position.length)
                    data = await self._run(self._reading.read, position, offset, wanted)
                else:
                    state = await self._find(chunk)
                    if state is None:
                        raise NotFound("the chunk is not held here")
                    place = (state.file, state.offset)
                    wanted = _check_range(offset, length, state.length)
                    data, found = await self._run(self._locate_and_read, chunk, state, offset, wanted)
                    if self._moves == moves:
                        self._positions.add(chunk, found)
            except Damaged as damaged:
                if place is None:  # judged by a position from memory: look again with what the catalog says
                    self._positions.discard(chunk)
                    continue
                if await self._condemn(chunk, place, damaged.reason):
                    raise Corrupt(f"a stored chunk was damaged and is set aside: {damaged.reason}") from None
                continue  # it was replaced or deleted meanwhile
            self._bytes_read += wanted
            return data

    def _locate_and_read(self, chunk: bytes, state: ChunkState, offset: int, length: int) -> tuple[bytes, Position]:
        position = self._reading.locate(chunk, state)
        return self._reading.read(position, offset, length), position

    async def verify(self, chunk: bytes) -> int:
        """Check all of a chunk's bytes as the disk has them; returns how many. Raises NotFound, Corrupt (then set aside), Busy (it
        can't be told now)."""
        _check_chunk(chunk)
        while True:
            state = await self._find(chunk)
            if state is None:
                raise NotFound("the chunk is not held here")
            try:
                await self._run(self._reading.verify_on_disk, chunk, state)
            except Damaged as damaged:
                if await self._condemn(chunk, (state.file, state.offset), damaged.reason):
                    raise Corrupt(f"a stored chunk was damaged and is set aside: {damaged.reason}") from None
                continue  # it was replaced or deleted meanwhile
            return state.length

    async def _condemn(self, chunk: bytes, place: tuple[int, int], reason: str) -> bool:
        """Set a damaged copy aside. False when it was not the copy any more."""
        try:
            return bool(await self._submit(Condemn(chunk, self._future(), place, reason)))
        except StoreFailed:
            return True  # it can't be recorded any more, but it isn't served either

    async def length(self, chunk: bytes) -> int:
        """See `ChunkStore.length`."""
        _check_chunk(chunk)
        state = await self._find(chunk)
        if state is None:
            raise NotFound("the chunk is not held here")
        return state.length

    async def holds(self, chunks: Sequence[bytes]) -> list[bool]:
        """See `ChunkStore.holds`."""
        for chunk in chunks:
            _check_chunk(chunk)
        return await self._ask(self._lookup.hold, chunks)

    async def list_partition(self, partition: int, bits: int, after: bytes | None, limit: int) -> list[ChunkEntry]:
        """See `ChunkStore.list_partition`."""
        if not 0 <= bits <= 32 or not 0 <= partition < 1 << bits:
            raise Invalid(f"there is no partition {partition} of 2^{bits}", field="partition")
        if limit < 1:
            raise Invalid("a page has at least one entry", field="limit")
        width = 8 * CHUNK_ID_BYTES - bits
        first = (partition << width).to_bytes(CHUNK_ID_BYTES, "big")
        end = ((partition + 1) << width).to_bytes(CHUNK_ID_BYTES + 1, "big")
        below = end[1:] if end[0] == 0 else b"\xff" * (CHUNK_ID_BYTES + 1)
        return await self._ask(self._lookup.list_span, first, below, after, limit)

    async def list_referrer(self, referrer: bytes, after: bytes | None, limit: int) -> list[bytes]:
        """See `ChunkStore.list_referrer`."""
        _check_referrer(referrer)
        if limit < 1:
            raise Invalid("a page has at least one entry", field="limit")
        return await self._ask(self._lookup.list_referrer, referrer, after, limit)

    async def list_references(self, after: tuple[bytes, bytes] | None, limit: int) -> list[tuple[bytes, bytes]]:
        """See `ChunkStore.list_references`."""
        if limit < 1:
            raise Invalid("a page has at least one entry", field="limit")
        return await self._ask(self._lookup.list_references, after, limit)

    async def describe(self, chunks: Sequence[bytes]) -> list[ChunkEntry | None]:
        """See `ChunkStore.describe`."""
        for chunk in chunks:
            _check_chunk(chunk)
        return await self._ask(self._lookup.describe, chunks)

    def trees(self) -> Mapping[int, DigestTree]:
        """See `ChunkStore.trees`."""
        return self._catalog.shown_trees.by_copies

    def statistics(self) -> ChunkStatistics:
        """See `ChunkStore.statistics`."""
        writer = self._running()
        catalog = self._catalog
        return ChunkStatistics(
            chunks=catalog.chunks,
            live_bytes=catalog.bytes,
            log_bytes=sum(account.size for account in list(catalog.ledger.accounts.values())),
            log_files=len(catalog.ledger.accounts),
            free_bytes=self._disk.space(self._directory).free,
            reserve_bytes=self._reserve,
            quarantined=len(catalog.damages),
            queued=writer.queued,
            pending=catalog.pending,
            puts=writer.puts,
            reads=self._reads,
            cached_reads=self._cached_reads,
            syncs=self._log.syncs,
            bytes_written=self._log.bytes_written,
            bytes_read=self._bytes_read,
            failure=self._log.failure,
            ballast_bytes=self._ballast.held,
        )

    def damages(self) -> list[Damage]:
        """The places in the log that are set aside."""
        return list(self._catalog.damages.values())

    # -- the event loop's side of the lanes

    def _running(self) -> ChunkWriter:
        if self._writer is None:
            raise StoreFailed("the chunk store is not open")
        return self._writer

    def _future(self) -> asyncio.Future[Any]:
        assert self._loop is not None, "the store was not opened"
        return self._loop.create_future()

    def _queue(self, operation: Operation) -> None:
        self._running().submit(operation)

    async def _submit(self, operation: Operation) -> Any:
        """Queue an operation and wait for its outcome."""
        self._running().submit(operation)
        return await operation.future

    def _answered(self, group: Sequence[Operation]) -> None:
        """From the writer, in the order of commits: the cache first, then the callers."""
        positions = self._positions
        for operation in group:
            if operation.moved:
                self._moves += 1
                positions.discard(operation.chunk)
            if operation.position is not None and not isinstance(operation.outcome, Exception):
                positions.add(operation.chunk, operation.position)
            future = operation.future
            if operation.given_up:
                if isinstance(operation, Put):
                    self._room.give(len(operation.payload))
            elif not future.done():
                if isinstance(operation.outcome, Exception):
                    future.set_exception(operation.outcome)
                else:
                    future.set_result(operation.outcome)

    def _report(self, damages: Sequence[Damage]) -> None:
        for damage in damages:
            log.error(
                "a place in the chunk log is damaged and set aside: file=%d offset=%d length=%d chunk=%s reason=%s",
                damage.file,
                damage.offset,
                damage.length,
                damage.chunk.hex() or "unknown",
                damage.reason,
            )
            if self._on_damage is not None:
                self._on_damage(damage)

    async def _run(self, function: Callable[..., R], *arguments: Any) -> R:
        """`function` on the readers' lane."""
        self._running()
        assert self._readers is not None
        return await self._readers.run(function, *arguments)

    async def _ask(self, function: Callable[..., R], *arguments: Any) -> R:
        """A question to the catalog, on the readers' lane; asked again when the index was rebuilt meanwhile."""
        catalog = self._catalog
        while True:
            epoch = catalog.epoch
            if epoch % 2:
                await self.settle()
                continue
            try:
                answer = await self._run(function, *arguments)
            except IndexDamaged as error:
                await self._submit(Rebuild(self._future(), epoch, str(error)))
                continue
            except IndexUnavailable as error:
                if catalog.epoch != epoch:
                    continue  # it is being built anew
                raise Busy(error.message, **error.details) from error
            except IndexFull as error:
                raise NoSpace(f"the disk is full: {error}", retry_after_s=1) from error
            if catalog.epoch == epoch:
                return answer

    async def _find(self, chunk: bytes) -> ChunkState | None:
        if not self._catalog.epoch % 2:
            state = self._catalog.find(chunk)
            if state is None or isinstance(state, ChunkState):
                return state
        return await self._ask(self._lookup.look_up, chunk)


def _check_chunk(chunk: bytes) -> None:
    if len(chunk) != CHUNK_ID_BYTES:
        raise Invalid(f"a chunk id has {CHUNK_ID_BYTES} bytes, not {len(chunk)}", field="chunk")


def _check_referrer(referrer: bytes) -> None:
    if len(referrer) != REFERRER_BYTES:
        raise Invalid(f"a referrer has {REFERRER_BYTES} bytes, not {len(referrer)}", field="referrer")


def _check_reference(reference: Reference) -> None:
    _check_referrer(reference.referrer)
    if not 1 <= reference.replicas <= 255:
        raise Invalid(f"a reference wants 1 to 255 copies, not {reference.replicas}", field="replicas")


def _check_range(offset: int, length: int | None, size: int) -> int:
    """The length asked for, if it lies inside a chunk of `size` bytes."""
    wanted = size - offset if length is None else length
    if offset < 0 or wanted < 0 or offset + wanted > size:
        raise Invalid(f"bytes {offset}+{wanted} are not inside a chunk of {size}", field="range")
    return wanted
