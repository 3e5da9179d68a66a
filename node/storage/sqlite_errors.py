"""What SQLite's error codes mean to a store. Pure."""

from __future__ import annotations

import sqlite3


def is_full(error: BaseException) -> bool:
    """Whether an operation found no room on the disk: for its pages, or for the shared memory beside a write-ahead log."""
    code = getattr(error, "sqlite_errorcode", None)
    return code is not None and (code & 0xFF == sqlite3.SQLITE_FULL or code == sqlite3.SQLITE_IOERR_SHMSIZE)
