"""The store's writer: one lane that owns catalog and log, and commits what the event loop queues in groups.

A turn takes everything that is queued (bounded in bytes), decides each operation, appends all records with one write and one fdatasync,
only then takes over the effects, and hands the answers to the event loop in one call. A second lane puts the newest states into
the index whenever enough have come together, and unlinks dead log files; the writer goes on meanwhile and waits for it only when twice
the bound has gathered. Whatever goes wrong, every queued operation gets an answer; so do puts that were given up in the queue, which are
dropped.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from typing import Any

from cluster.chunks.store import StoreFailed
from cluster.doors.clock import Clock
from cluster.errors import HoldfastError, NoSpace
from node.storage.ballast import Ballast
from node.storage.chunk_catalog import ChunkCatalog
from node.storage.chunk_index import Damage, IndexDamaged, IndexFull, IndexUnavailable, Snapshot
from node.storage.chunk_log import ChunkLog, LogFiles, LogFull
from node.storage.chunk_operation import NO_MOVES, NO_PUTS, Batch, Operation, Put, Room
from node.storage.chunk_recovery import BATCH_BYTES, ChunkRecovery
from node.storage.chunk_state import Change
from node.storage.lanes import Lanes

log = logging.getLogger(__name__)

FLUSH_STATES = 8 * 1024
"""Chunk states in memory at which they go to the index. Bounds memory (some 5 MiB) and what a start after a crash replays."""

FLUSH_LOG_BYTES = 256 * 1024 * 1024
"""Log written since the last flush at which the next comes, for the same reason (64 large chunks are replayed in a millisecond)."""

STATES_LIMIT = 8 * FLUSH_STATES
"""States in memory that the index has not taken (its disk is full) beyond which puts are refused. Deletes go on."""

FLUSH_RETRY_S = 1.0
"""How long after a flush that found the disk full the next try comes."""

BALLAST_RETRY_S = 1.0
"""How often it is looked whether there is room for missing ballast."""

GROUP_OPERATIONS = 1024
"""Operations in one batch at most; bounds for how long handing out the answers holds up the event loop (about 2 ms)."""


class Barrier(Operation):
    """Answered when everything queued before it is done. Subclasses say what else the writer does then."""

    __slots__ = ()

    def __init__(self, future: asyncio.Future[Any]) -> None:
        super().__init__(b"", future)


class Retire(Barrier):
    """Unlink dead log files. The outcome is the list of those that went. `released`: a file that compaction has emptied under this
    `epoch` of the catalog; it goes too, unless something in it is live still or the index was rebuilt since."""

    __slots__ = ("epoch", "released")

    def __init__(self, future: asyncio.Future[Any], released: int | None = None, epoch: int = 0) -> None:
        super().__init__(future)
        self.released = released
        self.epoch = epoch


class Seal(Barrier):
    """Go on in a new log file, so that compaction may have this one. The outcome is whether that was done."""

    __slots__ = ()


class Rebuild(Barrier):
    """Build the index anew, unless that has happened since `epoch`. The outcome is None."""

    __slots__ = ("epoch", "reason")

    def __init__(self, future: asyncio.Future[Any], epoch: int, reason: str) -> None:
        super().__init__(future)
        self.epoch = epoch
        self.reason = reason


class _Flushed:
    """From the indexer's lane: this flush has ended. It may have been waited for since, and another one be under way."""

    __slots__ = ("flush",)

    def __init__(self, flush: Future[list[int]]) -> None:
        self.flush = flush


class ChunkWriter:
    """Made after recovery; `submit` and, once, `stop` from the event loop."""

    def __init__(
        self,
        *,
        files: LogFiles,
        catalog: ChunkCatalog,
        chunk_log: ChunkLog,
        clock: Clock,
        age_ms: int,
        file_bytes: int,
        reserve_bytes: int,
        flush_states: int | None,
        ballast: Ballast,
        lanes: Lanes,
        loop: asyncio.AbstractEventLoop,
        answered: Callable[[Sequence[Operation]], None],
        damaged: Callable[[Sequence[Damage]], None],
    ) -> None:
        self._files = files
        self._disk = files.disk
        self._catalog = catalog
        self._log = chunk_log
        self._clock = clock
        self._age_base_ms = age_ms
        self._opened = clock.monotonic()
        self._file_bytes = file_bytes
        self._reserve_bytes = reserve_bytes
        self._flush_states = FLUSH_STATES if flush_states is None else flush_states
        self._ballast = ballast
        self._grow_again_at = 0.0
        self._loop = loop
        self._answered = answered
        self._damaged = damaged
        self._queue: deque[Operation | _Flushed] = deque()
        self._lane = lanes.open("chunk-writer")
        self._called = False
        """Whether a turn will come that has not begun to take what is queued."""
        self._ended = False
        self._indexer = lanes.open("chunk-indexer")
        self._flush: Future[list[int]] | None = None
        self._flush_again_at = 0.0
        self._retiring: Retire | None = None
        """Answered by the flush under way."""
        self._to_retire: deque[Retire] = deque()
        """Come while a flush was under way: they are begun when it has ended."""
        self.puts = 0
        self.index_error: str | None = None
        """Why the index lags behind, if it does."""

    def submit(self, operation: Operation) -> None:
        """Queue an operation. Event loop only."""
        self._put(operation)

    @property
    def queued(self) -> int:
        return len(self._queue)

    def age_ms(self) -> int:
        """The store's age: milliseconds for which it has been open, over all its starts."""
        return self._age_base_ms + int((self._clock.monotonic() - self._opened) * 1000)

    async def stop(self, *, tidy: bool) -> None:
        """Finish what is queued and end the lanes; `tidy`: with everything in a sealed index."""
        await self._lane.run(self._end, tidy)
        await self._indexer.close()
        await self._lane.close()

    def _put(self, item: Operation | _Flushed) -> None:
        """From anywhere. The queue first: a turn that has begun by then takes the item, or finds that it wasn't called."""
        self._queue.append(item)
        self._call_turn()

    def _call_turn(self) -> None:
        if not self._called:
            self._called = True
            self._lane.post(self._turn)

    # -- on the writer's lane

    def _turn(self) -> None:
        self._called = False
        if self._queue and not self._ended:
            self._step()
            if self._queue:
                self._call_turn()

    def _end(self, tidy: bool) -> None:
        """The last turn."""
        while self._queue:
            self._step()
        self._ended = True
        while self._flush is not None:
            self._guarded(self._end_flush)
            self._retire_waiting()
        if tidy:
            self._tidy()

    def _step(self) -> None:
        """One group of what is queued, or what comes before a barrier and then the barrier."""
        group: list[Operation] = []
        dropped: list[Operation] = []
        size = 0
        barrier: Barrier | None = None
        while self._queue and size < BATCH_BYTES and len(group) + len(dropped) < GROUP_OPERATIONS:
            item = self._queue.popleft()
            if isinstance(item, _Flushed):
                if item.flush is self._flush:
                    self._guarded(self._end_flush)
            elif isinstance(item, Barrier):
                barrier = item
                break
            elif isinstance(item, Put) and item.given_up:
                dropped.append(item)
            else:
                group.append(item)
                size += item.size
        if dropped:  # before the disk is asked for anything: what they held makes room for others
            self._answer(dropped)
            dropped = []
        if group:
            self._commit(group, size)
        if barrier is not None:
            self._barrier(barrier)
        self._retire_waiting()  # before the next flush begins
        self._guarded(self._flush_if_due)
        self._retire_waiting()  # if that waited for one
        self._guarded(self._grow_ballast_if_due)

    def _guarded(self, step: Callable[[], None]) -> None:
        """A step that answers nobody: what goes wrong fails the operations to come."""
        try:
            step()
        except HoldfastError:
            pass  # the log is poisoned, and says so to everyone who asks
        except Exception as error:
            log.exception("the chunk writer failed")
            self._log.poison(error, "keeping the index")

    def _commit(self, group: list[Operation], size: int) -> None:
        try:
            try:
                self._append(group, size)
            except IndexDamaged as error:
                self._rebuild(str(error))
                self._append(group, size)
        except HoldfastError as error:
            for operation in group:
                operation.outcome = error
        except IndexFull as error:  # nothing was decided yet
            self._ballast.release()
            for operation in group:
                operation.outcome = NoSpace(f"the disk is full: {error}; nothing was changed", retry_after_s=1)
        except Exception as error:
            log.exception("the chunk writer failed")
            failure = self._log.poison(error, "committing a batch")
            for operation in group:
                operation.outcome = failure
        self._answer(group)

    def _append(self, group: list[Operation], size: int) -> None:
        """Decide, write, sync, take over."""
        self._log.refuse_if_failed()
        catalog = self._catalog
        bases = catalog.bases({operation.chunk for operation in group}, catalog.index.reader())
        room = NO_PUTS
        if any(isinstance(operation, Put) for operation in group) and self._roomy():
            room = self._room()
        if self._log.end + size > self._file_bytes and catalog.ledger.accounts[self._log.number].size > self._first_end:
            try:
                self._roll()
            except LogFull:
                room = NO_PUTS
        batch = self._decide(group, bases, room)
        try:
            if batch.size:
                self._log.append(batch.buffers, batch.size)
        except LogFull:
            batch = self._append_on_full_disk(group, bases)
        self.puts += batch.puts
        if batch.size:
            catalog.ledger.grow(batch.file, self._log.end)
            catalog.merge(batch.change, batch.file, self._log.end)
        self._report([damage for damage in batch.damages if catalog.set_aside(damage)])

    def _room(self) -> Room:
        free = self._disk.space(self._files.directory).free
        return Room(free - self._reserve_bytes - self._ballast.missing, free - self._reserve_bytes // 2)

    def _append_on_full_disk(self, group: list[Operation], bases: dict[bytes, Any]) -> Batch:
        """Without puts, on what the ballast gives; moves may have half of it, the rest is for what gives space back. Raises NoSpace."""
        for room, keep in ((NO_PUTS, self._ballast.size // 2), (NO_MOVES, 0)):
            while True:
                batch = self._decide(group, bases, room)
                if not batch.size:
                    return batch
                try:
                    self._log.append(batch.buffers, batch.size)
                except LogFull:
                    if self._ballast.release(batch.size, keep=keep):
                        continue
                    break
                return batch
        raise batch.no_space()

    def _grow_ballast_if_due(self) -> None:
        if self._ballast.missing and self._clock.monotonic() >= self._grow_again_at:
            self._ballast.grow()
            self._grow_again_at = self._clock.monotonic() + BALLAST_RETRY_S

    def _seal(self) -> bool:
        if self._log.end <= self._first_end:
            return False
        try:
            self._roll()
        except LogFull:
            return False
        return True

    @property
    def _first_end(self) -> int:
        """A file that holds no more than this is not exchanged for a new one."""
        return 4096

    def _roll(self) -> None:
        number = self._log.number + 1
        self._log.begin(number)
        self._catalog.ledger.add(number, self._log.salt, self._log.end)
        self._catalog.advance(number, self._log.end)

    def _decide(self, group: list[Operation], bases: dict[bytes, Any], room: Room) -> Batch:
        batch = Batch(Change(bases), self._log.number, self._log.end, self._log.salt, self.age_ms(), room)
        for operation in group:
            operation.position = None
            operation.moved = False
            operation.decide(batch)
        return batch

    def _roomy(self) -> bool:
        return len(self._catalog.tables[0]) < STATES_LIMIT

    def _answer(self, group: Sequence[Operation]) -> None:
        self._call(self._answered, group)

    def _call(self, function: Callable[[Sequence[Any]], None], items: Sequence[Any]) -> None:
        try:
            self._loop.call_soon_threadsafe(function, items)
        except RuntimeError:
            log.warning("the event loop closed before the chunk store did")

    def _barrier(self, barrier: Barrier) -> None:
        try:
            self._log.refuse_if_failed()
            if isinstance(barrier, Retire):
                if self._flush is not None:  # it may be unlinking, and nobody's put waits for that
                    self._to_retire.append(barrier)
                    return
                if self._begin_retiring(barrier):
                    return
                barrier.outcome = []
            elif isinstance(barrier, Seal):
                barrier.outcome = self._seal()
            elif isinstance(barrier, Rebuild) and barrier.epoch == self._catalog.epoch:
                self._rebuild(barrier.reason)
        except HoldfastError as error:
            barrier.outcome = error
        except Exception as error:
            log.exception("the chunk writer failed")
            barrier.outcome = self._log.poison(error, "tidying")
        self._answer([barrier])

    # -- the index

    def _flush_if_due(self) -> None:
        catalog = self._catalog
        if self._flush is not None:
            if len(catalog.tables[0]) >= 2 * self._flush_states:
                self._end_flush()
            return
        if catalog.frozen is not None:
            if self._clock.monotonic() >= self._flush_again_at:
                self._begin_flush(catalog.frozen, [])
        elif len(catalog.tables[0]) >= self._flush_states or catalog.log_since_freeze >= FLUSH_LOG_BYTES:
            self._begin_flush(catalog.freeze(self.age_ms()), [])

    def _begin_flush(self, snapshot: Snapshot, doomed: list[int]) -> None:
        flush = self._indexer.submit(self._write_index, snapshot, doomed)
        self._flush = flush
        flush.add_done_callback(lambda ended: self._put(_Flushed(ended)))

    def _write_index(self, snapshot: Snapshot, doomed: list[int]) -> list[int]:
        """On the indexer's lane. Returns the files that were unlinked, oldest first."""
        index = self._catalog.index
        index.write(snapshot)
        gone: list[int] = []
        if doomed:
            index.checkpoint()  # the durable index must not know anything in a file that goes
        for number in doomed:
            if not self._files.forget(number):
                break  # being read; and none may go before an older one
            try:
                with suppress(FileNotFoundError):  # the last try got so far, and could not sync the folder
                    self._disk.unlink(self._files.path(number))
                self._files.unlinked(number)
                self._disk.fsync_directory(self._files.directory)
            except OSError as error:
                log.warning("a dead log file can't be unlinked: %s", error)
                break
            gone.append(number)
        return gone

    def _end_flush(self) -> None:
        """Wait for the flush under way, if any, and take its result over."""
        flush, self._flush = self._flush, None
        if flush is None:
            return
        retire, self._retiring = self._retiring, None
        gone: list[int] = []
        try:
            gone = flush.result()
        except IndexUnavailable as error:
            self.index_error = str(error)
            self._flush_again_at = self._clock.monotonic() + FLUSH_RETRY_S
        except IndexFull as error:
            self.index_error = str(error)
            if not self._ballast.release():
                self._flush_again_at = self._clock.monotonic() + FLUSH_RETRY_S
        except IndexDamaged as error:
            self._rebuild(str(error))
        else:
            self.index_error = None
            self._catalog.flushed()
            self._catalog.ledger.remove(gone)
        finally:
            if retire is not None:
                retire.outcome = gone
                self._answer([retire])

    def _retire_waiting(self) -> None:
        while self._to_retire and self._flush is None:
            self._barrier(self._to_retire.popleft())

    def _begin_retiring(self, retire: Retire) -> bool:
        """Whether there is something to unlink; the answer then comes with the end of the flush. None is under way."""
        catalog = self._catalog
        if catalog.frozen is not None:  # the disk was full: nothing can go before the index knows what went before
            self._begin_flush(catalog.frozen, [])
            self._end_flush()
            if catalog.frozen is not None:
                return False
        released = retire.released
        if (
            released not in catalog.ledger.accounts
            or retire.epoch != catalog.epoch
            or not catalog.ledger.release(released)
        ):
            released = None
        doomed = catalog.ledger.removable(self._log.number, released)
        if not doomed:
            return False
        self._retiring = retire
        self._begin_flush(catalog.freeze(self.age_ms()), doomed)
        return True

    def _rebuild(self, reason: str) -> None:
        """Build the index anew from the log. Questions asked meanwhile are asked again afterwards."""
        log.warning("rebuilding the chunk index: %s", reason)
        catalog = self._catalog
        catalog.epoch += 1
        flush, self._flush = self._flush, None
        if flush is not None:
            flush.exception()  # wait for it; what it did is thrown away
        try:
            found = ChunkRecovery(self._files, catalog, self._log, self._ballast).rebuild(reason)
        except (OSError, HoldfastError, LogFull) as error:
            raise self._log.poison(error, "rebuilding the index") from error
        finally:
            if self._retiring is not None:
                self._retiring.outcome = []
                self._answer([self._retiring])
                self._retiring = None
        catalog.epoch += 1
        self._report(found.new_damages)

    def _report(self, damages: Sequence[Damage]) -> None:
        if damages:
            self._call(self._damaged, damages)

    def _tidy(self) -> None:
        """Everything into the index, and the index sealed."""
        if self._log.failure is not None:
            return
        catalog = self._catalog
        try:
            self._end_flush()
            if catalog.frozen is not None:
                catalog.index.write(catalog.frozen)
                catalog.flushed()
            catalog.index.write(catalog.freeze(self.age_ms()))
            catalog.flushed()
            catalog.index.seal()
        except (IndexFull, IndexDamaged, StoreFailed) as error:
            log.warning("the chunk index was not sealed; the next start replays the log's end: %s", error)
