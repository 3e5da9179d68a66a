"""Registers in SQLite: the durable memory of this node's votes (`cluster.register.store.RegisterStore`).

One database, ``registers.db``, in WAL mode with ``synchronous=FULL``: a commit is on disk when it returns. It also holds the store's
identity (``store_id``, ``boot``), so that a store without its registers can never pass for the one that voted with them. Invariants:

* one writer's lane commits everything that is waiting in one transaction (group commit), in the order of the calls;
* the readers' connections see only committed data; no SQLite call is made on the event loop;
* after a failed commit every later call fails, and ``on_failure`` is told: memory is ahead of the disk and must not be trusted;
* every row is checked when it is read (`register_reading`); one that is damaged, or missing, is a failure like that of a commit, so that
  a store either answers what was written or nothing;
* the trees change on the event loop, in the step in which a commit is known to be durable.

Read next: `register_schema` (tables), `register_rows` (checksums), `register_trees`, `register_reading`, `register_writing`.

Owned by `node.daemon`, used by the acceptor and the governor.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TypeVar

from cluster.errors import Corrupt, HoldfastError, NotReady
from cluster.merkle.digest_tree import DigestTree
from cluster.register.key import RegisterKey
from cluster.register.record import Record
from cluster.register.store import HeldVersion, Page, PartitionRecord, Write
from node.storage.lanes import THREADS, Lanes
from node.storage.register_reading import RegisterReading
from node.storage.register_rows import meta_row
from node.storage.register_schema import PUT_META, SQLITE_ERRORS, as_open_error, connect, failure_of, prepare
from node.storage.register_trees import RegisterTrees, TreeStep
from node.storage.register_writing import write_all
from node.storage.sqlite_errors import is_full

DATABASE_NAME = "registers.db"

BATCH_LIMIT = 2048
"""Batches in one transaction, so that nobody waits for a very long one."""

R = TypeVar("R")


class SqliteRegisterStore:
    """See the module. Made by `open`."""

    def __init__(
        self,
        writer: sqlite3.Connection,
        reader: sqlite3.Connection,
        trees: RegisterTrees,
        on_failure: Callable[[HoldfastError], None],
        make_room: Callable[[], bool] | None = None,
        lanes: Lanes = THREADS,
    ) -> None:
        self._writer = writer
        self._reader = reader
        self._on_failure = on_failure
        self._make_room = make_room
        self._trees = trees
        self._reading = RegisterReading(reader)
        self._write_lane = lanes.open("registers-write")
        self._read_lane = lanes.open("registers-read")
        self._waiting: list[tuple[Sequence[Write], asyncio.Future[None]]] = []
        self._busy = False
        self._idle: asyncio.Future[None] | None = None
        self._failure: HoldfastError | None = None
        self.commits = 0
        """Transactions made durable."""
        self.writes = 0

    @classmethod
    def open(
        cls,
        directory: Path,
        on_failure: Callable[[HoldfastError], None],
        make_room: Callable[[], bool] | None = None,
        *,
        lanes: Lanes = THREADS,
        connect: Callable[[Path], sqlite3.Connection] = connect,
    ) -> SqliteRegisterStore:
        """Open or create the store (blocking: called before the event loop serves). ``on_failure`` is told once, on the event loop, when
        the store can't be relied on any more. ``make_room`` is called from wherever is written when the disk is full; whether a retry
        makes sense. Raises Corrupt for a damaged database, Invalid for one of a newer release, OSError for a disk that can't be read."""
        path = directory / DATABASE_NAME
        trees = RegisterTrees()
        with ExitStack() as failed:
            try:
                writer = connect(path)
                failed.callback(writer.close)
                prepare(writer, path)
                trees.load(writer)
                RegisterReading(writer).check(trees.trees)
                reader = connect(path)
            except SQLITE_ERRORS as error:
                raise as_open_error(error, path) from error
            failed.pop_all()
            return cls(writer, reader, trees, on_failure, make_room, lanes)

    # Before the event loop serves

    def begin_boot(self, new_id: bytes) -> tuple[bytes, int, bool]:
        """Count this start durably. Returns the store's id, the boot's number (from 1), and whether the store is new. Raises Corrupt,
        NoSpace, HoldfastError."""

        def count() -> tuple[bytes, int, bool]:
            known = RegisterReading(self._writer).meta()
            store_id = known.get("store_id", new_id)
            boot = int(known.get("boot", b"0")) + 1
            with self._writer:
                self._writer.execute("BEGIN")
                self._writer.execute(PUT_META, meta_row("store_id", store_id))
                self._writer.execute(PUT_META, meta_row("boot", str(boot).encode()))
            return store_id, boot, "store_id" not in known

        try:
            return self._with_room(count)
        except SQLITE_ERRORS as error:
            raise failure_of(error, "counting this start") from error

    # RegisterStore

    def commit(self, writes: Sequence[Write]) -> asyncio.Future[None]:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self._failure is not None:
            future.set_exception(_copy(self._failure))
        elif not writes and not self._waiting and not self._busy:
            future.set_result(None)
        else:
            self._waiting.append((writes, future))
            if not self._busy:
                self._start()
        return future

    async def get(self, partition: int, key: RegisterKey) -> Record:
        return await self._read(self._reading.get, partition, key)

    async def scan(
        self, partition: int, table: str, partition_key: bytes, after: bytes, prefix: bytes, limit: int
    ) -> Page:
        return await self._read(self._reading.scan, partition, table, partition_key, after, prefix, limit)

    async def page(self, partition: int, after: RegisterKey | None, limit: int) -> Page:
        return await self._read(self._reading.page, partition, after, limit)

    async def partitions(self) -> dict[int, PartitionRecord]:
        return await self._read(self._reading.partitions)

    async def meta(self, name: str) -> bytes | None:
        return await self._read(self._meta, name)

    def trees(self) -> Mapping[int, DigestTree]:
        return dict(self._trees.trees)

    async def versions(self, partition: int, bits: int, prefixes: Collection[int]) -> list[HeldVersion]:
        return await self._read(self._reading.versions, partition, bits, prefixes)

    async def tombstone_counts(self) -> dict[int, int]:
        return await self._read(self._reading.tombstone_counts)

    async def tombstones(self, partition: int, after: RegisterKey | None, limit: int) -> list[HeldVersion]:
        return await self._read(self._reading.tombstones, partition, after, limit)

    async def close(self) -> None:
        """Finish what is queued and close the database."""
        if self._busy:
            self._idle = asyncio.get_running_loop().create_future()
            await self._idle
        self._failure = self._failure or NotReady("this node is stopping")
        await self._read_lane.run(self._reader.close)
        await self._read_lane.close()
        await self._write_lane.run(self._writer.close)
        await self._write_lane.close()

    # On the event loop

    def _start(self) -> None:
        """Hand everything that waits to the writer's lane."""
        batch, self._waiting = self._waiting[:BATCH_LIMIT], self._waiting[BATCH_LIMIT:]
        self._busy = True
        groups = [writes for writes, _ in batch]
        done = self._write_lane.run(self._write, groups)
        done.add_done_callback(lambda future: self._finish(future, batch))

    def _finish(
        self, done: asyncio.Future[TreeStep], batch: list[tuple[Sequence[Write], asyncio.Future[None]]]
    ) -> None:
        error = done.exception()
        if error is not None:
            self._fail(failure_of(error, "a register write"))
        if self._failure is not None:
            batch, self._waiting = batch + self._waiting, []
        else:
            self._trees.take(done.result())
            self.commits += 1
        for writes, future in batch:
            if future.done():
                continue
            if self._failure is None:
                self.writes += len(writes)
                future.set_result(None)
            else:
                future.set_exception(_copy(self._failure))
        self._busy = False
        if self._waiting:
            self._start()
        elif self._idle is not None and not self._idle.done():
            self._idle.set_result(None)

    def _fail(self, failure: HoldfastError) -> None:
        if self._failure is None:
            self._failure = failure
            self._on_failure(failure)

    async def _read(self, function: Callable[..., R], *args: object) -> R:
        if self._failure is not None:
            raise _copy(self._failure)
        try:
            return await self._read_lane.run(function, *args)
        except (*SQLITE_ERRORS, Corrupt) as error:
            failure = failure_of(error, "a register read")
            self._fail(failure)
            raise _copy(failure) from error

    # On the lanes

    def _write(self, groups: list[Sequence[Write]]) -> TreeStep:
        """One transaction."""
        return self._with_room(lambda: write_all(self._writer, self._trees, groups))

    def _with_room(self, transaction: Callable[[], R]) -> R:
        """Tried again as long as the disk is full and room can be made."""
        while True:
            try:
                return transaction()
            except sqlite3.Error as error:
                if not is_full(error) or self._make_room is None or not self._make_room():
                    raise

    def _meta(self, name: str) -> bytes | None:
        return self._reading.meta().get(name)


def _copy(error: HoldfastError) -> HoldfastError:
    """The same error anew: one exception object raised in many places would collect their tracebacks."""
    return type(error)(error.message, **error.details)
