"""Registers in SQLite: the durable memory of this node's votes (`cluster.register.store.RegisterStore`).

One database, ``registers.db``, in WAL mode with ``synchronous=FULL``: a commit is on disk when it returns. It also holds the store's
identity (``store_id``, ``boot``), so that a store without its registers can never pass for the one that voted with them. Invariants:

* one writer thread commits everything that is waiting in one transaction (group commit), in the order of the calls;
* the readers' connections see only committed data; no SQLite call is made on the event loop;
* after a failed commit every later call fails, and ``on_failure`` is told: memory is ahead of the disk and must not be trusted.

Owned by `node.daemon`, used by the acceptor and the governor.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TypeVar

import sqlite_utils

from cluster.errors import Corrupt, HoldfastError, NoSpace, NotReady
from cluster.register.ballot import Ballot, Version
from cluster.register.key import RegisterKey
from cluster.register.record import ABSENT, Record
from cluster.register.store import Page, PartitionRecord, PartitionWrite, RegisterWrite, Write

SCHEMA_VERSION = 1
"""``user_version`` of the database."""

DATABASE_NAME = "registers.db"

CACHE_KIB = 8 * 1024
"""SQLite's page cache of each connection."""

BATCH_LIMIT = 2048
"""Batches in one transaction, so that nobody waits for a very long one."""

SCHEMA = """
CREATE TABLE registers (
    partition INTEGER NOT NULL, tbl TEXT NOT NULL, partition_key BLOB NOT NULL, sort_key BLOB NOT NULL,
    round INTEGER NOT NULL, proposer TEXT NOT NULL, seq INTEGER NOT NULL, value BLOB,
    PRIMARY KEY (partition, tbl, partition_key, sort_key)
) WITHOUT ROWID;
CREATE TABLE partitions (
    partition INTEGER PRIMARY KEY, round INTEGER NOT NULL, proposer TEXT NOT NULL, standing TEXT NOT NULL, tenure INTEGER NOT NULL
);
CREATE TABLE meta (name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
"""

PUT_REGISTER = "INSERT OR REPLACE INTO registers VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
PUT_PARTITION = "INSERT OR REPLACE INTO partitions VALUES (?, ?, ?, ?, ?)"
PUT_META = "INSERT OR REPLACE INTO meta VALUES (?, ?)"
CLEAR_PARTITION = "DELETE FROM registers WHERE partition = ?"
GET_REGISTER = "SELECT round, proposer, seq, value FROM registers WHERE partition = ? AND tbl = ? AND partition_key = ? AND sort_key = ?"
SCAN_REGISTERS = (
    "SELECT tbl, partition_key, sort_key, round, proposer, seq, value FROM registers "
    "WHERE partition = ? AND tbl = ? AND partition_key = ? AND sort_key "
)
"""Goes on with `START` and perhaps `END`: one statement with optional conditions would make SQLite look at every register behind
the range."""

START = {True: ">= ?", False: "> ?"}
"""By whether the first key may be equal."""

END = " AND sort_key < ?"
IN_ORDER = " ORDER BY sort_key LIMIT ?"
FIRST_PAGE = (
    "SELECT tbl, partition_key, sort_key, round, proposer, seq, value FROM registers "
    "WHERE partition = ? ORDER BY tbl, partition_key, sort_key LIMIT ?"
)
NEXT_PAGE = (
    "SELECT tbl, partition_key, sort_key, round, proposer, seq, value FROM registers "
    "WHERE partition = ? AND (tbl, partition_key, sort_key) > (?, ?, ?) "
    "ORDER BY tbl, partition_key, sort_key LIMIT ?"
)

PAGE_LIMIT_BYTES = 512 * 1024
"""Values in one page, unless a single one is larger."""

R = TypeVar("R")
Row = tuple[str, bytes, bytes, int, str, int, bytes | None]


class SqliteRegisterStore:
    """See the module. Made by `open`."""

    def __init__(
        self,
        writer: sqlite3.Connection,
        reader: sqlite3.Connection,
        on_failure: Callable[[HoldfastError], None],
        make_room: Callable[[], bool] | None = None,
    ) -> None:
        self._writer = writer
        self._reader = reader
        self._on_failure = on_failure
        self._make_room = make_room
        self._writing = ThreadPoolExecutor(1, "registers-write")
        self._reading = ThreadPoolExecutor(1, "registers-read")
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
    ) -> SqliteRegisterStore:
        """Open or create the store (blocking: called before the event loop serves). `make_room`: called from the writer's thread when
        the disk is full; whether a retry makes sense. Raises Corrupt for a damaged database."""
        path = directory / DATABASE_NAME
        with ExitStack() as failed:
            try:
                writer = _connect(path)
                failed.callback(writer.close)
                _prepare(writer, path)
                reader = _connect(path)
            except sqlite3.DatabaseError as error:
                raise Corrupt(f"{path} can't be read as a database ({error})") from error
            failed.pop_all()
            return cls(writer, reader, on_failure, make_room)

    # Before the event loop serves

    def begin_boot(self, new_id: bytes) -> tuple[bytes, int, bool]:
        """Count this start durably. Returns the store's id, the boot's number (from 1), and whether the store is new."""
        row = self._writer.execute("SELECT value FROM meta WHERE name = 'store_id'").fetchone()
        store_id = bytes(row[0]) if row else new_id
        boot_row = self._writer.execute("SELECT value FROM meta WHERE name = 'boot'").fetchone()
        boot = int(boot_row[0]) + 1 if boot_row else 1
        with self._writer:
            self._writer.execute("BEGIN")
            self._writer.execute(PUT_META, ("store_id", store_id))
            self._writer.execute(PUT_META, ("boot", str(boot).encode()))
        return store_id, boot, row is None

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
        return await self._read(self._get, partition, key)

    async def scan(
        self, partition: int, table: str, partition_key: bytes, after: bytes, prefix: bytes, limit: int
    ) -> Page:
        return await self._read(self._scan, partition, table, partition_key, after, prefix, limit)

    async def page(self, partition: int, after: RegisterKey | None, limit: int) -> Page:
        return await self._read(self._page, partition, after, limit)

    async def partitions(self) -> dict[int, PartitionRecord]:
        return await self._read(self._partitions)

    async def meta(self, name: str) -> bytes | None:
        return await self._read(self._meta, name)

    async def close(self) -> None:
        """Finish what is queued and close the database."""
        if self._busy:
            self._idle = asyncio.get_running_loop().create_future()
            await self._idle
        self._failure = self._failure or NotReady("this node is stopping")
        await asyncio.to_thread(self._shutdown)

    # On the event loop

    def _start(self) -> None:
        """Hand everything that waits to the writer thread."""
        batch, self._waiting = self._waiting[:BATCH_LIMIT], self._waiting[BATCH_LIMIT:]
        self._busy = True
        groups = [writes for writes, _ in batch]
        done = asyncio.get_running_loop().run_in_executor(self._writing, self._write, groups)
        done.add_done_callback(lambda future: self._finish(future, batch))

    def _finish(self, done: asyncio.Future[None], batch: list[tuple[Sequence[Write], asyncio.Future[None]]]) -> None:
        error = done.exception()
        if error is not None:
            self._fail(error)
            batch, self._waiting = batch + self._waiting, []
        else:
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

    def _fail(self, error: BaseException) -> None:
        if "full" in str(error):
            self._failure = NoSpace(
                f"the disk is full: a register write failed ({error}); free space and start the node again"
            )
        else:
            self._failure = Corrupt(f"a register write failed ({error}); check the disk and start the node again")
        self._on_failure(self._failure)

    async def _read(self, function: Callable[..., R], *args: object) -> R:
        if self._failure is not None:
            raise _copy(self._failure)
        try:
            return await asyncio.get_running_loop().run_in_executor(self._reading, function, *args)
        except sqlite3.DatabaseError as error:
            raise Corrupt(f"the register database can't be read ({error})") from error

    # In the threads

    def _write(self, groups: list[Sequence[Write]]) -> None:
        """One transaction; tried again as long as the disk is full and room can be made."""
        while True:
            try:
                return self._transact(groups)
            except sqlite3.OperationalError as error:
                if "full" not in str(error) or self._make_room is None or not self._make_room():
                    raise

    def _transact(self, groups: list[Sequence[Write]]) -> None:
        connection = self._writer
        registers: list[tuple[object, ...]] = []
        connection.execute("BEGIN IMMEDIATE")
        try:
            for writes in groups:
                for write in writes:
                    if isinstance(write, RegisterWrite):
                        key, (version, value) = write.key, write.record
                        registers.append((write.partition, key.table, key.partition, key.sort, *version, value))
                        continue
                    if isinstance(write, PartitionWrite):
                        state = write.state
                        if write.clear:
                            connection.executemany(PUT_REGISTER, registers)
                            registers.clear()
                            connection.execute(CLEAR_PARTITION, (write.partition,))
                        connection.execute(
                            PUT_PARTITION, (write.partition, *state.promised, state.standing, state.tenure)
                        )
                    else:
                        connection.execute(PUT_META, (write.name, write.value))
            connection.executemany(PUT_REGISTER, registers)
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise

    def _get(self, partition: int, key: RegisterKey) -> Record:
        row = self._reader.execute(GET_REGISTER, (partition, key.table, key.partition, key.sort)).fetchone()
        return ABSENT if row is None else Record(Version(row[0], row[1], row[2]), row[3])

    def _scan(self, partition: int, table: str, partition_key: bytes, after: bytes, prefix: bytes, limit: int) -> Page:
        end = _after_prefix(prefix)
        from_prefix = prefix > after
        statement = SCAN_REGISTERS + START[from_prefix] + ("" if end is None else END) + IN_ORDER
        bounds = [max(prefix, after)] if end is None else [max(prefix, after), end]
        return _page(self._reader.execute(statement, (partition, table, partition_key, *bounds, limit + 1)), limit)

    def _page(self, partition: int, after: RegisterKey | None, limit: int) -> Page:
        if after is None:
            return _page(self._reader.execute(FIRST_PAGE, (partition, limit + 1)), limit)
        start = (after.table, after.partition, after.sort)
        return _page(self._reader.execute(NEXT_PAGE, (partition, *start, limit + 1)), limit)

    def _partitions(self) -> dict[int, PartitionRecord]:
        rows = self._reader.execute("SELECT partition, round, proposer, standing, tenure FROM partitions").fetchall()
        return {row[0]: PartitionRecord(Ballot(row[1], row[2]), row[3], row[4]) for row in rows}

    def _meta(self, name: str) -> bytes | None:
        row = self._reader.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
        return None if row is None else bytes(row[0])

    def _shutdown(self) -> None:
        self._writing.shutdown()
        self._reading.shutdown()
        self._reader.close()
        self._writer.close()


def _prepare(connection: sqlite3.Connection, path: Path) -> None:
    """Create the tables in a new database; check an old one."""
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version == 0 and not sqlite_utils.Database(connection).table_names():
        connection.executescript(f"BEGIN; {SCHEMA} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;")
    elif version != SCHEMA_VERSION:
        raise Corrupt(
            f"{path} has schema version {version}; this release reads version {SCHEMA_VERSION}: run the release that wrote it"
        )
    problem = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
    if problem != "ok":
        raise Corrupt(f"{path} is damaged ({problem})")


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
    except BaseException:
        connection.close()
        raise
    return connection


def _page(rows: sqlite3.Cursor, limit: int) -> Page:
    """As many of the rows as a page holds, at least one; ``rows`` go on past the limit when there are more."""
    entries: list[tuple[RegisterKey, Record]] = []
    size = 0
    row: Row
    with closing(rows):
        for row in rows:
            size += len(row[6] or b"")
            if len(entries) == limit or (entries and size > PAGE_LIMIT_BYTES):
                return Page(entries, True)
            entries.append((RegisterKey(row[0], row[1], row[2]), Record(Version(row[3], row[4], row[5]), row[6])))
    return Page(entries, False)


def _after_prefix(prefix: bytes) -> bytes | None:
    """The least string above everything that starts with ``prefix``; None when there is none."""
    stripped = prefix.rstrip(b"\xff")
    return stripped[:-1] + bytes([stripped[-1] + 1]) if stripped else None


def _copy(error: HoldfastError) -> HoldfastError:
    """The same error anew: one exception object raised in many places would collect their tracebacks."""
    return type(error)(error.message, **error.details)
