"""What SQLite's error codes mean to a store. Pure."""

from __future__ import annotations

import sqlite3

PASSING = frozenset(
    {
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_INTERRUPT,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_NOLFS,
        sqlite3.SQLITE_NOMEM,
        sqlite3.SQLITE_PERM,
        sqlite3.SQLITE_PROTOCOL,
    }
)
"""Primary codes that say nothing of what is stored: no descriptor, memory, permission or lock was to be had."""

PASSING_IO = frozenset(
    {
        sqlite3.SQLITE_IOERR_ACCESS,
        sqlite3.SQLITE_IOERR_BLOCKED,
        sqlite3.SQLITE_IOERR_CHECKRESERVEDLOCK,
        sqlite3.SQLITE_IOERR_GETTEMPPATH,
        sqlite3.SQLITE_IOERR_LOCK,
        sqlite3.SQLITE_IOERR_NOMEM,
        sqlite3.SQLITE_IOERR_RDLOCK,
        sqlite3.SQLITE_IOERR_SHMLOCK,
        sqlite3.SQLITE_IOERR_SHMMAP,
        sqlite3.SQLITE_IOERR_SHMOPEN,
        sqlite3.SQLITE_IOERR_UNLOCK,
    }
)
"""The same among the extended codes of an I/O error, most of which are the disk's own."""


def is_full(error: BaseException) -> bool:
    """Whether an operation found no room on the disk: for its pages, or for the shared memory beside a write-ahead log."""
    code = getattr(error, "sqlite_errorcode", None)
    return code is not None and (code & 0xFF == sqlite3.SQLITE_FULL or code == sqlite3.SQLITE_IOERR_SHMSIZE)


def is_passing(error: BaseException) -> bool:
    """Whether an operation failed for a reason that says nothing of what is stored, and that may pass. Python tells of SQLite's want
    of memory by a MemoryError."""
    code = getattr(error, "sqlite_errorcode", None)
    return isinstance(error, MemoryError) or (code is not None and (code & 0xFF in PASSING or code in PASSING_IO))
