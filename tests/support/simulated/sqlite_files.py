"""The SQLite files of a simulated machine: what a power cut leaves of the chunk index, and commits of registers that fail.

SQLite is real, on files that the run owns. The register database is durable with each commit, so a crash takes nothing from it but what the
lane had not done. The chunk index is written without waiting for the disk: a power cut leaves its write-ahead file only up to any place
behind the last checkpoint, perhaps with garbage behind it; and since it is only a cache, also nothing, or something damaged.
"""

from __future__ import annotations

import errno
import os
import random
import shutil
import sqlite3
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, Final

from node.storage.chunk_index import ChunkIndex
from node.storage.register_schema import connect, prepare
from node.storage.register_store import DATABASE_NAME

GARBAGE_BYTES: Final = 8192

PAGE_BYTES: Final = 4096
USER_VERSION: Final = range(60, 64)
"""Of SQLite's pages the size, and in the header of the file the place of the schema's number."""

Files = dict[str, bytes]
"""Suffix of a name -> content."""


def memory_directory() -> str | None:
    """Where files cost least."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


PREFIX: Final = "simulated-"


def new_directory() -> tempfile.TemporaryDirectory[str]:
    """For a machine's files. Those that runs left which were killed go first: their names begin with the process that made them."""
    parent = memory_directory() or tempfile.gettempdir()
    for path in Path(parent).glob(f"{PREFIX}*-*"):
        maker = path.name.removeprefix(PREFIX).partition("-")[0]
        if maker.isdecimal() and not os.path.exists(f"/proc/{maker}"):
            shutil.rmtree(path, ignore_errors=True)
    return tempfile.TemporaryDirectory(dir=parent, prefix=f"{PREFIX}{os.getpid()}-")


def read_files(path: str, suffixes: tuple[str, ...]) -> Files:
    found: Files = {}
    for suffix in suffixes:
        with suppress(FileNotFoundError):
            found[suffix] = Path(path + suffix).read_bytes()
    return found


def write_files(path: str, files: Files, gone: tuple[str, ...]) -> None:
    """In the place of what is there."""
    for suffix in gone:
        with suppress(FileNotFoundError):
            os.unlink(path + suffix)
    for suffix, content in files.items():
        Path(path + suffix).write_bytes(content)


DATABASE: Final = ("", "-wal")
COMPANIONS: Final = ("", "-wal", "-shm", "-journal")


@cache
def empty_index() -> bytes:
    """A new index, made once."""
    with tempfile.TemporaryDirectory(dir=memory_directory()) as directory:
        index = ChunkIndex(os.path.join(directory, "index"))
        index.create()
        index.close()
        return Path(index.path).read_bytes()


@cache
def empty_registers() -> bytes:
    """A new register database, made once."""
    with tempfile.TemporaryDirectory(dir=memory_directory()) as directory:
        path = Path(directory, DATABASE_NAME)
        connection = connect(path)
        prepare(connection, path)
        connection.close()
        return path.read_bytes()


class SimulatedIndex(ChunkIndex):
    """A machine's, for all its processes."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self._durable_log = (b"", 0)
        """The write-ahead file's salts, and its size up to which it is durable or not needed."""
        self._removed_seal: bytes | None = None
        """A seal that was unlinked, which a power cut may bring back."""

    def create(self) -> None:
        self._close_writer()
        self.generation += 1
        write_files(self.path, {"": empty_index()}, (*COMPANIONS, ".seal"))
        self._durable_log = (b"", 0)
        self._writer = self._connect(synchronous="OFF")

    def _connect(self, *, synchronous: str = "OFF") -> sqlite3.Connection:
        return super()._connect(synchronous="OFF")  # nobody unplugs the machine that simulates

    def _check_seal(self) -> bool:
        self._removed_seal = read_files(self.path, (".seal",)).get(".seal")
        return super()._check_seal()

    def checkpoint(self) -> None:
        super().checkpoint()
        log = read_files(self.path, ("-wal",)).get("-wal", b"")
        self._durable_log = (log[16:24], len(log))

    def save(self) -> Files:
        return read_files(self.path, (*DATABASE, ".seal"))

    def put_back(self, files: Files) -> None:
        """No process runs."""
        write_files(self.path, files, (*COMPANIONS, ".seal"))
        self._durable_log = (b"", 0)
        self._removed_seal = None

    def crash(self, chance: random.Random, *, power: bool) -> str:
        """What happened to the files."""
        files = self.save()
        self.close()
        fate = self._damage(files, chance) if power and files else "kept"
        write_files(self.path, files, (*COMPANIONS, ".seal"))
        return fate

    def _damage(self, files: Files, chance: random.Random) -> str:
        fate = chance.choice(["kept", "older", "older", "torn", "missing", "damaged"])
        log = files.get("-wal", b"")
        durable = self._durable_log[1] if self._durable_log[0] == log[16:24] else 0
        if fate in {"older", "torn"} and durable <= len(log):
            cut = chance.randrange(durable, len(log) + 1)
            tail = chance.randbytes(min(GARBAGE_BYTES, len(log) - cut)) if fate == "torn" else b""
            files["-wal"] = log[:cut] + tail
        elif fate == "missing":
            files.clear()
        elif fate == "damaged":
            database = bytearray(files[""])
            for _ in range(chance.randrange(1, 200)):
                database[chance.randrange(len(database))] ^= 1 << chance.randrange(8)
            files[""] = bytes(database)
        if self._removed_seal is not None and chance.random() < 0.5:
            files[".seal"] = self._removed_seal
        self._removed_seal = None
        return fate


class CommitFaults:
    """Commits of registers that are to fail: ``code`` of SQLite, ``after`` so many more, ``times`` of them (None: from then on). With
    ``kept`` what is said to have failed is on disk all the same."""

    def __init__(self) -> None:
        self._plan: tuple[int, bool] | None = None
        self._after = 0
        self._times: int | None = 0
        self.met = 0
        """Commits that failed."""

    def fail(self, number: int, *, after: int = 0, times: int | None = 1, kept: bool = False) -> None:
        """``number``: ENOSPC, or EIO for anything else that goes wrong."""
        code = sqlite3.SQLITE_FULL if number == errno.ENOSPC else sqlite3.SQLITE_IOERR_FSYNC
        self._plan, self._after, self._times = (code, kept), after, times

    def clear(self) -> None:
        self._plan = None

    def next(self) -> tuple[int, bool] | None:
        """(code, kept) if this commit fails."""
        if self._plan is None:
            return None
        if self._after:
            self._after -= 1
            return None
        plan = self._plan
        self.met += 1
        if self._times is not None:
            self._times -= 1
            if not self._times:
                self._plan = None
        return plan


class _Connection(sqlite3.Connection):
    faults: CommitFaults
    _writes = False

    def execute(self, statement: str, parameters: Any = (), /) -> sqlite3.Cursor:
        if statement == "BEGIN IMMEDIATE":
            self._writes = True
        elif statement == "COMMIT" and self._writes:
            self._writes = False
            fault = self.faults.next()
            if fault is not None:
                code, kept = fault
                if kept:
                    super().execute("COMMIT")
                error = sqlite3.OperationalError("simulated failure")
                error.sqlite_errorcode = code
                raise error
        return super().execute(statement, parameters)


class RegisterFiles:
    """A machine's register database."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.path = str(directory / DATABASE_NAME)
        self.faults = CommitFaults()

    def prepare(self) -> None:
        """So that a new one need not be built."""
        if not os.path.exists(self.path):
            write_files(self.path, {"": empty_registers()}, COMPANIONS)

    def connect(self, path: Path) -> sqlite3.Connection:
        connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, factory=_Connection)
        connection.faults = self.faults
        connection.execute("PRAGMA synchronous = OFF")
        return connection

    def save(self) -> Files:
        return read_files(self.path, DATABASE)

    def put_back(self, files: Files) -> None:
        write_files(self.path, files, COMPANIONS)

    def rot(self, chance: random.Random, bits: int = 1) -> None:
        """Flipped bits in any pages of the database, in bytes that say something if there are such (most are zeroes). The number of the
        schema is left alone: by that it would look like a newer release's. No process runs, or it does."""
        database = bytearray(self.save()[""])
        for _ in range(bits):
            start = chance.randrange(len(database) // PAGE_BYTES) * PAGE_BYTES
            page = [place for place in range(start, start + PAGE_BYTES) if place not in USER_VERSION]
            place = chance.choice([place for place in page if database[place]] or page)
            database[place] ^= 1 << chance.randrange(8)
        with open(self.path, "r+b") as file:
            file.write(database)
