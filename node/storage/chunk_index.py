"""The SQLite index: a cache of what the log adds up to, up to a covered position. It can be thrown away at any time.

One transaction writes a batch of chunk states, the accounts of the log files, the counters, and the position in the log up to which
all this is true. SQLite runs in WAL mode with synchronous=NORMAL: commits wait for no disk, and after a power cut the index is
some earlier transaction's state, whole, so that scanning the log from its covered position makes it true again. (With
synchronous=OFF it could come back as a mixture of old and new pages, which nothing would notice.) Each chunk row carries a
CRC32C of itself, and a cleanly closed index is sealed by a file with its size and the CRC32C of its first 256 MiB. Tree rows are all read
on opening, so beside their checksums the totals over all leaves, in the state row, are compared: a row that is gone is noticed too.

Any sign of damage is `IndexDamaged`; the caller then rebuilds from the log. A full disk is `IndexFull`: nothing was written, try later.
What says nothing of the index (no descriptor, memory or lock is to be had) is `IndexUnavailable`: a good index is not thrown away for it.
Connections: one for writing, used by one thread at a time under the store's rules, and one for reading per thread that asks.
"""

# ruff: noqa: S608  (statements are put together from this module's own constants and question marks, never from values)

from __future__ import annotations

import json
import os
import sqlite3
import struct
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import sqlite_utils
from crc32c import crc32c

from cluster.errors import Busy
from node.storage.chunk_state import ChunkState, ReferenceState
from node.storage.chunk_trees import RUN_LEAVES, ChunkTrees, TreeChanges, TreeRun
from node.storage.disk_errors import FULL, is_of_medium
from node.storage.file_ledger import FileAccount
from node.storage.sqlite_errors import is_full, is_passing

SCHEMA_VERSION = 2
WRITE_CACHE_KIB = 8 * 1024
READ_CACHE_KIB = 2 * 1024
JOURNAL_LIMIT_PAGES = 2000
"""Pages (4 KiB) in the write-ahead file before SQLite folds it into the database; bounds the file's size."""

CHECK_LIMIT_BYTES = 256 * 1024 * 1024
"""After an unclean stop, an index up to this size is checked as a whole (about 10 ms per 10 MiB) before it is trusted; and a seal is
over so many bytes of the database from its beginning. Beyond, starting fast is worth more: rows carry checksums of their own."""

LOOKUP_WIDTH = 256
ROW_WIDTHS = (512, 64, 8, 1)
"""Rows per statement: one step of SQLite runs without Python's lock, so few large statements disturb the event loop least."""

_REFERENCE = struct.Struct("<16sBI")
_ROW = struct.Struct("<32sqqqqq")
_RUN = struct.Struct("<qq")
_CHUNK_COLUMNS = "chunk, file, offset, length, freed, freed_file, refs, crc"
Row = tuple[bytes, int, int, int, int, int, bytes, int]

_SCHEMA = """
CREATE TABLE chunks (
    chunk BLOB PRIMARY KEY, file INTEGER NOT NULL, offset INTEGER NOT NULL, length INTEGER NOT NULL,
    freed INTEGER NOT NULL, freed_file INTEGER NOT NULL, refs BLOB NOT NULL, crc INTEGER NOT NULL
) WITHOUT ROWID, STRICT;
CREATE INDEX chunks_freed ON chunks (freed) WHERE freed >= 0;
CREATE TABLE referrers (referrer BLOB NOT NULL, chunk BLOB NOT NULL, PRIMARY KEY (referrer, chunk)) WITHOUT ROWID, STRICT;
CREATE TABLE tree (
    copies INTEGER NOT NULL, run INTEGER NOT NULL, leaves BLOB NOT NULL, crc INTEGER NOT NULL, PRIMARY KEY (copies, run)
) WITHOUT ROWID, STRICT;
CREATE TABLE tree_news (number INTEGER PRIMARY KEY, leaves BLOB NOT NULL, crc INTEGER NOT NULL) STRICT;
"""


class IndexDamaged(Exception):
    """The index is missing, damaged, of another format, or does not fit the log: rebuild it."""


class IndexFull(Exception):
    """The disk has no room for the index to grow. What it holds is whole."""


class IndexUnavailable(IndexFull, Busy):
    """The index could not be used for a reason that says nothing of it: too many open files, no memory, a lock. What it holds is whole.

    It is an `IndexFull` for who writes it: nothing was written, and the same is written a moment later. Who asks gets an error of the
    one tree; nothing was changed."""

    code = "index-unavailable"


@dataclass(frozen=True, slots=True)
class Damage:
    """A place in the log that is set aside: `length` bytes at `offset` of a file, the chunk if known (else b""), and why."""

    file: int
    offset: int
    length: int
    chunk: bytes
    reason: str


@dataclass(slots=True)
class Snapshot:
    """One transaction's worth: what changed since the last one, and the position in the log it makes true."""

    states: dict[bytes, ChunkState | None]
    bases: dict[bytes, ChunkState | None]
    covered_file: int
    covered_offset: int
    age_ms: int
    chunks: int
    bytes: int
    accounts: list[FileAccount] = field(default_factory=list)
    removed: list[int] = field(default_factory=list)
    damages: list[Damage] = field(default_factory=list)
    trees: TreeChanges = field(default_factory=TreeChanges)
    tree_sum: int = 0
    tree_count: int = 0


@dataclass(slots=True)
class IndexState:
    """What the index says of itself. `clean`: it was sealed by a clean close, and the seal holds."""

    covered_file: int
    covered_offset: int
    age_ms: int
    chunks: int
    bytes: int
    accounts: list[FileAccount]
    damages: list[Damage]
    trees: ChunkTrees
    clean: bool


def _row(chunk: bytes, state: ChunkState) -> Row:
    references = b"".join([_REFERENCE.pack(*held) for held in state.references])
    fixed = _ROW.pack(chunk, state.file, state.offset, state.length, state.freed, state.freed_file)
    crc = crc32c(fixed + references)
    return (chunk, state.file, state.offset, state.length, state.freed, state.freed_file, references, crc)


def _state(row: Row) -> ChunkState:
    chunk, file, offset, length, freed, freed_file, references, crc = row
    if len(chunk) != 32 or crc32c(_ROW.pack(chunk, file, offset, length, freed, freed_file) + references) != crc:
        raise IndexDamaged("a row of the chunk index does not match its checksum")
    if len(references) == _REFERENCE.size:
        held: tuple[ReferenceState, ...] = (ReferenceState._make(_REFERENCE.unpack(references)),)
    else:
        held = tuple(map(ReferenceState._make, _REFERENCE.iter_unpack(references)))
    return ChunkState(file, offset, length, held, freed, freed_file)


def _tree_row(run: TreeRun) -> tuple[int, int, bytes, int]:
    return (*run, crc32c(_RUN.pack(run.copies, run.run) + run.leaves))


def _trees(
    runs: Sequence[tuple[int, int, bytes, int]], news: Sequence[tuple[bytes, int]], tree_sum: bytes, tree_count: int
) -> ChunkTrees:
    """The trees of all rows, if they are whole."""
    for copies, run, leaves, crc in runs:
        if len(leaves) != 16 * RUN_LEAVES or crc32c(_RUN.pack(copies, run) + leaves) != crc:
            raise IndexDamaged("a row of the trees does not match its checksum")
    for leaves, crc in news:
        if crc32c(leaves) != crc:
            raise IndexDamaged("a row of the trees' news does not match its checksum")
    trees = ChunkTrees.loaded(
        [TreeRun(copies, run, leaves) for copies, run, leaves, _ in runs], [leaves for leaves, _ in news]
    )
    if trees.count != tree_count or trees.sum.to_bytes(8, "little") != tree_sum:
        raise IndexDamaged("the rows of the trees do not add up to their totals")
    return trees


@contextmanager
def _judged() -> Iterator[None]:
    """Turns SQLite's errors into the three that matter. Damaged text can't even be decoded, be it only in an error's message.

    What is not known to be passing counts as damage, since rebuilding costs time and nothing else."""
    try:
        yield
    except (sqlite3.Error, UnicodeDecodeError, MemoryError) as error:
        if is_full(error):
            raise IndexFull(str(error)) from error
        if is_passing(error):
            raise _unavailable(error) from error
        raise IndexDamaged(f"{type(error).__name__}: {error}") from error
    except OSError as error:
        raise _judgement(error) from error


def _judgement(error: OSError) -> IndexDamaged | IndexFull:
    """Of an error of the operating system."""
    if error.errno in FULL:
        return IndexFull(str(error))
    if is_of_medium(error) or isinstance(error, FileNotFoundError):
        return IndexDamaged(str(error))
    return _unavailable(error)


def _unavailable(error: BaseException) -> IndexUnavailable:
    return IndexUnavailable(f"the chunk index can't be used now ({str(error) or 'no memory'})", retry_after_s=1)


def _cut(rows: Sequence[Sequence[Any]]) -> Iterator[tuple[int, list[Any]]]:
    """The rows as (number of rows, flat parameters), in as few statements as the fixed widths allow."""
    start = 0
    for width in ROW_WIDTHS:
        while len(rows) - start >= width:
            yield width, [value for row in rows[start : start + width] for value in row]
            start += width


class IndexReader:
    """Lookups on one connection, for one thread."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.connection = connection

    def find(self, chunk: bytes) -> ChunkState | None:
        with _judged():
            row = self.connection.execute(f"SELECT {_CHUNK_COLUMNS} FROM chunks WHERE chunk = ?", (chunk,)).fetchone()
        return None if row is None else _state(row)

    def find_many(self, chunks: Sequence[bytes]) -> dict[bytes, ChunkState | None]:
        """State of each chunk asked for, None where the index has none."""
        found: dict[bytes, ChunkState | None] = dict.fromkeys(chunks)
        with _judged():
            for start in range(0, len(chunks), LOOKUP_WIDTH):
                part: Sequence[bytes] = chunks[start : start + LOOKUP_WIDTH]
                width = 1
                while width < len(part):
                    width *= 4
                marks = ",".join("?" * width)  # few distinct statements, padded with NULLs
                rows = self.connection.execute(
                    f"SELECT {_CHUNK_COLUMNS} FROM chunks WHERE chunk IN ({marks})",
                    [*part, *([None] * (width - len(part)))],
                ).fetchall()
                for row in rows:
                    found[row[0]] = _state(row)
        return found

    def span(self, first: bytes, after: bytes | None, end: bytes, limit: int) -> list[tuple[bytes, ChunkState]]:
        """Chunks from `first` (or beyond `after`) and below `end`, ascending."""
        compare, start = (">=", first) if after is None or after < first else (">", after)
        with _judged():
            rows = self.connection.execute(
                f"SELECT {_CHUNK_COLUMNS} FROM chunks WHERE chunk {compare} ? AND chunk < ? ORDER BY chunk LIMIT ?",
                (start, end, limit),
            ).fetchall()
        return [(row[0], _state(row)) for row in rows]

    def of_referrer(self, referrer: bytes, after: bytes, limit: int) -> list[bytes]:
        with _judged():
            rows = self.connection.execute(
                "SELECT chunk FROM referrers WHERE referrer = ? AND chunk > ? ORDER BY chunk LIMIT ?",
                (referrer, after, limit),
            ).fetchall()
        return [row[0] for row in rows]

    def pairs(self, after: tuple[bytes, bytes], limit: int) -> list[tuple[bytes, bytes]]:
        """(referrer, chunk) of all references beyond `after`, ascending."""
        with _judged():
            rows: list[tuple[bytes, bytes]] = self.connection.execute(
                "SELECT referrer, chunk FROM referrers WHERE (referrer, chunk) > (?, ?) ORDER BY referrer, chunk LIMIT ?",
                (*after, limit),
            ).fetchall()
        return rows

    def freed(self, until_ms: int, limit: int) -> list[bytes]:
        """Chunks without references since the store's age `until_ms` or longer, oldest first."""
        with _judged():
            rows = self.connection.execute(
                "SELECT chunk FROM chunks WHERE freed >= 0 AND freed <= ? ORDER BY freed LIMIT ?", (until_ms, limit)
            ).fetchall()
        return [row[0] for row in rows]

    def freed_count(self) -> int:
        with _judged():
            return int(self.connection.execute("SELECT count(*) FROM chunks WHERE freed >= 0").fetchone()[0])


class ChunkIndex:
    """The index file at `path`, with its seal beside it."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._seal_path = path + ".seal"
        self._writer: sqlite3.Connection | None = None
        self._local = threading.local()
        self._readers: list[sqlite3.Connection] = []
        self._readers_lock = threading.Lock()
        self.generation = 0
        """Counts rebuilds; a thread's reading connection of an earlier one is not used again."""

    def open(self) -> IndexState:
        """Open what is there and check it. Raises IndexDamaged (also when there is none), IndexFull, IndexUnavailable."""
        try:
            return self._open()
        except (IndexDamaged, IndexFull):
            self.close()
            raise

    def create(self) -> None:
        """Throw away what is there and begin an empty index. Raises IndexDamaged or IndexFull if even that fails.

        Other threads may be reading: each drops its connection to the old file when it next asks for a reader.
        """
        self._close_writer()
        self.generation += 1
        with _judged():
            for suffix in (".seal", "-wal", "-shm", "-journal", ""):
                with suppress(FileNotFoundError):
                    os.unlink(self.path + suffix)
            self._writer = connection = self._connect(
                synchronous="OFF"
            )  # nothing worth waiting for until the first flush
            database = sqlite_utils.Database(connection, execute_plugins=False)
            with database.atomic():
                for statement in _SCHEMA.split(";"):
                    database.execute(statement)
                database["state"].create(  # type: ignore[union-attr]  # by name it may also be a view: not here
                    {
                        "id": int,
                        "covered_file": int,
                        "covered_offset": int,
                        "age_ms": int,
                        "chunks": int,
                        "bytes": int,
                        "tree_sum": bytes,
                        "tree_count": int,
                    },
                    pk="id",
                )
                database["files"].create(  # type: ignore[union-attr]  # as above
                    {"number": int, "salt": bytes, "size": int, "live": int, "live_bytes": int, "covers": str},
                    pk="number",
                )
                database["damage"].create(  # type: ignore[union-attr]  # as above
                    {"file": int, "offset": int, "length": int, "chunk": bytes, "reason": str}, pk=("file", "offset")
                )
                database.execute("INSERT INTO state VALUES (1, 0, 0, 0, 0, 0, zeroblob(8), 0)")
                database.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
            connection.execute("PRAGMA synchronous = NORMAL")

    def _connect(self, *, synchronous: str = "NORMAL") -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False, cached_statements=64)
        connection.execute(f"PRAGMA synchronous = {synchronous}")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute(f"PRAGMA cache_size = -{WRITE_CACHE_KIB}")
        connection.execute(f"PRAGMA wal_autocheckpoint = {JOURNAL_LIMIT_PAGES}")
        connection.execute("PRAGMA busy_timeout = 10000")
        return connection

    def _open(self) -> IndexState:
        if not os.path.exists(self.path):
            raise IndexDamaged("there is no index")
        sealed = self._check_seal()
        with _judged():
            self._writer = connection = self._connect()
            if connection.execute("PRAGMA user_version").fetchone()[0] != SCHEMA_VERSION:
                raise IndexDamaged("the index has another format")
            if not sealed and os.path.getsize(self.path) <= CHECK_LIMIT_BYTES:
                verdict = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
                if verdict != "ok":
                    raise IndexDamaged(str(verdict))
            state = connection.execute("SELECT * FROM state WHERE id = 1").fetchone()
            files = connection.execute("SELECT number, salt, size, live, live_bytes, covers FROM files").fetchall()
            damages = connection.execute("SELECT file, offset, length, chunk, reason FROM damage").fetchall()
            runs = connection.execute("SELECT copies, run, leaves, crc FROM tree").fetchall()
            news = connection.execute("SELECT leaves, crc FROM tree_news ORDER BY number").fetchall()
        if state is None:
            raise IndexDamaged("the index has no state row")
        try:
            accounts = [
                FileAccount(number, int.from_bytes(salt, "little"), size, live, live_bytes, set(json.loads(covers)))
                for number, salt, size, live, live_bytes, covers in files
            ]
        except (ValueError, TypeError) as error:
            raise IndexDamaged(f"a log file's row makes no sense: {error}") from error
        return IndexState(
            state[1],
            state[2],
            state[3],
            state[4],
            state[5],
            accounts,
            [Damage(*row) for row in damages],
            _trees(runs, news, state[6], state[7]),
            sealed,
        )

    def _check_seal(self) -> bool:
        """Whether a clean close sealed the index. The seal is broken by this: whoever opens the index may change it."""
        try:
            with open(self._seal_path, encoding="ascii") as file:
                seal = json.load(file)
            os.unlink(self._seal_path)
        except FileNotFoundError:
            return False
        except OSError as error:
            raise _judgement(error) from error
        except ValueError as error:
            raise IndexDamaged(f"the seal of the index can't be read: {error}") from error
        if not isinstance(seal, dict) or seal != self._measure():
            raise IndexDamaged("the index is not what its seal says")
        return True

    def _measure(self) -> dict[str, int]:
        crc = size = 0
        with _judged(), open(self.path, "rb") as file:
            while size < CHECK_LIMIT_BYTES and (piece := file.read(1024 * 1024)):
                crc = crc32c(piece, crc)
                size += len(piece)
            size = os.fstat(file.fileno()).st_size
        return {"size": size, "crc32c": crc}

    def reader(self) -> IndexReader:
        """The calling thread's own reader. Raises IndexDamaged, IndexUnavailable, as its methods do."""
        held: tuple[int, IndexReader] | None = getattr(self._local, "held", None)
        if held is not None and held[0] == self.generation:
            return held[1]
        generation = self.generation
        try:
            with _judged():
                connection = sqlite3.connect(
                    f"file:{_quoted(self.path)}?mode=rw", uri=True, isolation_level=None, check_same_thread=False
                )
                connection.execute("PRAGMA query_only = ON")
                connection.execute(f"PRAGMA cache_size = -{READ_CACHE_KIB}")
                connection.execute("PRAGMA busy_timeout = 10000")
        except IndexUnavailable as error:
            if not os.path.exists(self.path):
                raise IndexDamaged("the index is gone") from error
            raise
        reader = IndexReader(connection)
        with self._readers_lock:
            self._readers.append(connection)
            if held is not None and held[1].connection in self._readers:
                self._readers.remove(held[1].connection)
                held[1].connection.close()
        self._local.held = (generation, reader)
        return reader

    def write(self, snapshot: Snapshot) -> None:
        """One transaction with all of `snapshot`. Raises IndexFull, IndexUnavailable (nothing was written) or IndexDamaged."""
        assert self._writer is not None
        connection = self._writer
        with _judged():
            try:
                connection.execute("BEGIN IMMEDIATE")
                self._write_chunks(connection, snapshot)
                connection.execute(
                    "UPDATE state SET covered_file = ?, covered_offset = ?, age_ms = ?, chunks = ?, bytes = ?, "
                    "tree_sum = ?, tree_count = ? WHERE id = 1",
                    (
                        snapshot.covered_file,
                        snapshot.covered_offset,
                        snapshot.age_ms,
                        snapshot.chunks,
                        snapshot.bytes,
                        snapshot.tree_sum.to_bytes(8, "little"),
                        snapshot.tree_count,
                    ),
                )
                self._write_trees(connection, snapshot)
                connection.executemany("DELETE FROM files WHERE number = ?", [(number,) for number in snapshot.removed])
                connection.executemany("DELETE FROM damage WHERE file = ?", [(number,) for number in snapshot.removed])
                connection.executemany(
                    "INSERT OR REPLACE INTO files (number, salt, size, live, live_bytes, covers) VALUES (?, ?, ?, ?, ?, ?)",
                    [
                        (
                            account.number,
                            account.salt.to_bytes(8, "little"),
                            account.size,
                            account.live,
                            account.live_bytes,
                            json.dumps(sorted(account.covers)),
                        )
                        for account in snapshot.accounts
                    ],
                )
                connection.executemany(
                    "INSERT OR REPLACE INTO damage (file, offset, length, chunk, reason) VALUES (?, ?, ?, ?, ?)",
                    [(one.file, one.offset, one.length, one.chunk, one.reason) for one in snapshot.damages],
                )
                connection.execute("COMMIT")
            except (sqlite3.Error, MemoryError):
                with suppress(sqlite3.Error):
                    connection.execute("ROLLBACK")
                raise

    @staticmethod
    def _write_chunks(connection: sqlite3.Connection, snapshot: Snapshot) -> None:
        rows = [_row(chunk, state) for chunk, state in snapshot.states.items() if state is not None]
        rows.sort()
        for width, values in _cut(rows):
            marks = ",".join(["(?,?,?,?,?,?,?,?)"] * width)
            connection.execute(f"INSERT OR REPLACE INTO chunks ({_CHUNK_COLUMNS}) VALUES {marks}", values)
        gone = sorted((chunk,) for chunk, state in snapshot.states.items() if state is None)
        for width, values in _cut(gone):
            connection.execute(f"DELETE FROM chunks WHERE chunk IN ({','.join('?' * width)})", values)
        added, removed = _reference_changes(snapshot)
        for width, values in _cut(added):
            connection.execute(f"INSERT OR IGNORE INTO referrers VALUES {','.join(['(?,?)'] * width)}", values)
        for width, values in _cut(removed):
            marks = ",".join(["(?,?)"] * width)
            connection.execute(f"DELETE FROM referrers WHERE (referrer, chunk) IN (VALUES {marks})", values)

    @staticmethod
    def _write_trees(connection: sqlite3.Connection, snapshot: Snapshot) -> None:
        news, runs, folded = snapshot.trees
        if news:
            connection.execute("INSERT INTO tree_news (leaves, crc) VALUES (?, ?)", (news, crc32c(news)))
        if folded:
            connection.execute("DELETE FROM tree_news")
        rows = [_tree_row(run) for run in runs if run.leaves]
        for width, values in _cut(rows):
            connection.execute(f"INSERT OR REPLACE INTO tree VALUES {','.join(['(?,?,?,?)'] * width)}", values)
        connection.executemany(
            "DELETE FROM tree WHERE copies = ? AND run = ?",
            [(run.copies, run.run) for run in runs if not run.leaves],
        )

    def checkpoint(self) -> None:
        """Make everything written durable."""
        assert self._writer is not None
        with _judged():
            busy = self._writer.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
            if busy[0] or busy[1] != busy[2]:  # readers in the way: the write-ahead file itself will do
                with open(self.path + "-wal", "rb") as file:
                    os.fdatasync(file.fileno())

    def seal(self) -> None:
        """Close a whole index such that the next `open` can trust it without a scan."""
        assert self._writer is not None
        with _judged():
            self._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            self.close()
            measure = self._measure()
            with open(self.path, "rb") as file:
                os.fsync(file.fileno())
            with open(self._seal_path + ".new", "w", encoding="ascii") as file:
                json.dump(measure, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(self._seal_path + ".new", self._seal_path)

    def close(self) -> None:
        """Close all connections, as they are. No thread may be inside a lookup."""
        self.generation += 1
        with self._readers_lock:
            readers, self._readers = self._readers, []
        for reader in readers:
            with suppress(sqlite3.Error), closing(reader):
                pass
        self._close_writer()

    def _close_writer(self) -> None:
        if self._writer is not None:
            with suppress(sqlite3.Error), closing(self._writer):
                pass
            self._writer = None


def _reference_changes(snapshot: Snapshot) -> tuple[list[tuple[bytes, bytes]], list[tuple[bytes, bytes]]]:
    """(referrer, chunk) pairs that came and that went, against the states that the index has."""
    added: list[tuple[bytes, bytes]] = []
    removed: list[tuple[bytes, bytes]] = []
    for chunk, state in snapshot.states.items():
        base = snapshot.bases[chunk]
        if base is None:
            if state is not None:
                added += [(held.referrer, chunk) for held in state.references]
            continue
        before = {held.referrer for held in base.references}
        after = {held.referrer for held in state.references} if state is not None else set()
        added += [(referrer, chunk) for referrer in after - before]
        removed += [(referrer, chunk) for referrer in before - after]
    added.sort()
    removed.sort()
    return added, removed


def _quoted(path: str) -> str:
    return path.replace("%", "%25").replace("?", "%3f").replace("#", "%23")
