"""Setting a damaged register database aside, so that a new store can begin in its place and relearn from its peers.

The files are kept for people to look at, a few of them. Crash-safe: the database is renamed before its log, since a database without its
log would pass for an older state of itself, while a log without its database is only a leftover; `clear_leftovers` removes such a one from
the way before a new database is made, which SQLite would otherwise fill from it. Blocking.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from node.storage.register_store import DATABASE_NAME

COMPANIONS = ("-wal", "-shm")
"""SQLite's log and its index, beside the database."""

KEPT = 3
"""Damaged databases that are kept. The oldest always is: on a node that has nobody to relearn from, what came after it is empty."""

MARK = ".damaged-"


def set_aside(directory: Path) -> Path:
    """Rename the database and its companions; where the database is now. Durable on return. Raises OSError."""
    numbers = sorted(_numbers(directory))
    number = numbers[-1] + 1 if numbers else 1
    for old in numbers[1 : max(1, len(numbers) + 2 - KEPT)]:
        for companion in ("", *COMPANIONS):
            _named(directory, old, companion).unlink(missing_ok=True)
    target = _named(directory, number)
    (directory / DATABASE_NAME).rename(target)
    _move_companions(directory, number)
    _sync(directory)
    return target


def clear_leftovers(directory: Path) -> None:
    """Finish a `set_aside` that a crash interrupted. Before the database is opened. Raises OSError."""
    if (directory / DATABASE_NAME).exists():
        return
    if _move_companions(directory, max(_numbers(directory), default=0)):
        _sync(directory)


def _move_companions(directory: Path, number: int) -> bool:
    moved = False
    for companion in COMPANIONS:
        path = directory / f"{DATABASE_NAME}{companion}"
        if path.exists():
            path.rename(_named(directory, number, companion))
            moved = True
    return moved


def _named(directory: Path, number: int, companion: str = "") -> Path:
    return directory / f"{DATABASE_NAME}{MARK}{number}{companion}"


def _numbers(directory: Path) -> Iterator[int]:
    """Of the databases that were set aside."""
    for path in directory.glob(f"{DATABASE_NAME}{MARK}*"):
        number = path.name.removeprefix(f"{DATABASE_NAME}{MARK}")
        if number.isdecimal():
            yield int(number)


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
