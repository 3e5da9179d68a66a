"""The tables of ``registers.db``: their schema, how an older one is brought up to it, and what is checked before a database is used.

SQLite notices a damaged page when its structure is wrong, never a flipped bit in a key or a value. So each row carries a CRC32C of all that
it says (`register_rows`), and each leaf of a partition's Merkle tree says how many registers it has and the sum of their digests, which
proves that none is missing. Blocking; called by `register_store` only.
"""

from __future__ import annotations

import errno
import sqlite3
from pathlib import Path

import sqlite_utils

from cluster.errors import Corrupt, HoldfastError, Invalid, NoSpace
from cluster.register.ballot import NO_BALLOT, Ballot, Version
from cluster.register.key import RegisterKey
from cluster.register.record import Record
from cluster.register.store import PartitionRecord
from node.storage.register_rows import meta_row, partition_row, register_row
from node.storage.register_trees import RegisterTrees
from node.storage.sqlite_errors import is_full

SCHEMA_VERSION = 2
"""``user_version`` of the database. 1 had neither checksums nor trees."""

FORMATS, LAST_FORMAT = slice(18, 20), 2
"""Where the file's header has the versions of the format that writers and readers must know, one byte each, and the last one."""

CACHE_KIB = 8 * 1024
"""SQLite's page cache of each connection."""

SCHEMA = (
    "CREATE TABLE registers (partition INTEGER NOT NULL, tbl TEXT NOT NULL, partition_key BLOB NOT NULL, sort_key BLOB NOT NULL, "
    "round INTEGER NOT NULL, proposer TEXT NOT NULL, seq INTEGER NOT NULL, value BLOB, place INTEGER NOT NULL, crc INTEGER NOT NULL, "
    "PRIMARY KEY (partition, tbl, partition_key, sort_key)) WITHOUT ROWID",
    "CREATE INDEX registers_by_place ON registers (partition, place)",
    "CREATE INDEX tombstones ON registers (partition) WHERE value IS NULL",
    "CREATE TABLE partitions (partition INTEGER PRIMARY KEY, round INTEGER NOT NULL, proposer TEXT NOT NULL, standing TEXT NOT NULL, "
    "tenure INTEGER NOT NULL, fence_round INTEGER NOT NULL, fence_proposer TEXT NOT NULL, crc INTEGER NOT NULL)",
    "CREATE TABLE meta (name TEXT PRIMARY KEY, value BLOB NOT NULL, crc INTEGER NOT NULL) WITHOUT ROWID",
    "CREATE TABLE trees (partition INTEGER PRIMARY KEY, bits INTEGER NOT NULL)",
    "CREATE TABLE leaves (partition INTEGER NOT NULL, leaf INTEGER NOT NULL, sum INTEGER NOT NULL, items INTEGER NOT NULL, "
    "PRIMARY KEY (partition, leaf)) WITHOUT ROWID",
)

PUT_REGISTER = (
    "INSERT INTO registers VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET "
    "round = excluded.round, proposer = excluded.proposer, seq = excluded.seq, value = excluded.value, crc = excluded.crc"
)
"""An update, not a replacement: a register keeps its place, and its entry in the index."""

PUT_PARTITION = "INSERT OR REPLACE INTO partitions VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
PUT_META = "INSERT OR REPLACE INTO meta VALUES (?, ?, ?)"

DAMAGE = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_FORMAT})
"""Errors that say that what is stored is damaged. All others don't: setting votes aside because of a full table of files, or of a mistake
in this program, would lose them for nothing."""


SQLITE_ERRORS = (sqlite3.Error, UnicodeDecodeError)
"""What SQLite's calls raise; the second when damaged text can't be decoded, be it only in an error's message."""


def failure_of(error: BaseException, doing: str) -> HoldfastError:
    """What an error means: Corrupt (what is stored is damaged), NoSpace, or a plain HoldfastError (the disk or this program fails, which
    says nothing about what is stored)."""
    if isinstance(error, HoldfastError):
        return error
    code = getattr(error, "sqlite_errorcode", None)
    primary = None if code is None else code & 0xFF
    undecodable = isinstance(error, UnicodeDecodeError) or (
        primary is None and isinstance(error, sqlite3.OperationalError) and "decode" in str(error)
    )
    if primary in DAMAGE or undecodable:
        return Corrupt(f"the register database is damaged: {doing} failed ({error})")
    if is_full(error):
        return NoSpace(f"the disk is full: {doing} failed ({error}); free space and start the node again")
    return HoldfastError(f"{doing} failed ({error}); check the disk and start the node again")


def connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
    except BaseException:
        connection.close()
        raise
    return connection


def prepare(connection: sqlite3.Connection, path: Path) -> None:
    """Create the tables in a new database; check an old one and bring it to this schema. Raises Corrupt when it is damaged, Invalid when
    a newer release wrote it, OSError when the disk can't be read."""
    try:
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if version > SCHEMA_VERSION:
            raise Invalid(
                f"{path} has schema version {version}; this release reads version {SCHEMA_VERSION}: run the release that wrote it",
                field="data",
            )
        new = version == 0 and not sqlite_utils.Database(connection).table_names()
        if new:
            script = "; ".join(SCHEMA)
            connection.executescript(f"BEGIN; {script}; PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;")
            return
        _check_header(path)
        problem = connection.execute("PRAGMA integrity_check(1)").fetchone()[0]
        if problem != "ok":
            raise Corrupt(f"{path} is damaged ({problem})")
        if version == 1:
            _migrate(connection)
        elif version != SCHEMA_VERSION:
            raise Corrupt(f"{path} is damaged: it says that its schema is version {version}")
        if _definitions(connection) != _wanted_definitions():
            raise Corrupt(f"{path} is damaged: its tables are not defined as they were made")
    except SQLITE_ERRORS as error:
        raise as_open_error(error, path) from error


def as_open_error(error: Exception, path: Path) -> Exception:
    """What to raise for a database that can't be opened: OSError for a disk that can't be read, else what `failure_of` says. What is
    executed then is known to be right: what SQLite can't make out is the file."""
    if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_ERROR:
        return Corrupt(f"{path} is damaged: it can't be understood ({error})")
    failure = failure_of(error, f"opening {path}")
    if type(failure) is HoldfastError:
        return OSError(errno.EIO, f"{path} can't be opened ({error})")
    if isinstance(failure, Corrupt):
        return Corrupt(f"{path} can't be read as a database ({error})")
    return failure


def _check_header(path: Path) -> None:
    """SQLite takes a file that says it is of a later format for one that may only be read, and says so at the first write."""
    with path.open("rb") as file:
        header = file.read(FORMATS.stop)
    if max(header[FORMATS], default=0) > LAST_FORMAT:
        raise Corrupt(f"{path} is damaged: it says that it is of another format than SQLite's")


def _definitions(connection: sqlite3.Connection) -> set[tuple[str, str, str | None]]:
    return set(connection.execute("SELECT type, name, sql FROM sqlite_schema"))


def _wanted_definitions() -> set[tuple[str, str, str | None]]:
    connection = sqlite3.connect(":memory:")
    try:
        for statement in SCHEMA:
            connection.execute(statement)
        return _definitions(connection)
    finally:
        connection.close()


def _migrate(connection: sqlite3.Connection) -> None:
    """From schema 1, in one transaction: the same rows, with checksums, places and trees."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        for table in ("registers", "partitions", "meta"):
            connection.execute(f"ALTER TABLE {table} RENAME TO {table}_1")
        for statement in SCHEMA:
            connection.execute(statement)
        trees = RegisterTrees()
        step = trees.begin(connection)
        for row in connection.execute("SELECT * FROM registers_1"):
            key, record = RegisterKey(*row[1:4]), Record(Version(*row[4:7]), row[7])
            connection.execute(PUT_REGISTER, register_row(row[0], key, record))
            step.change(row[0], key, None, record.version)
        for row in connection.execute("SELECT * FROM partitions_1"):
            state = PartitionRecord(Ballot(row[1], row[2]), row[3], row[4], NO_BALLOT)
            connection.execute(PUT_PARTITION, partition_row(row[0], state))
        for name, value in connection.execute("SELECT name, value FROM meta_1"):
            connection.execute(PUT_META, meta_row(name, value))
        step.write()
        for table in ("registers", "partitions", "meta"):
            connection.execute(f"DROP TABLE {table}_1")
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
