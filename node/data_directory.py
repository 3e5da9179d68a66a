"""A node's data directory: who it belongs to, and that only one daemon uses it.

It holds ``node.json`` (the marker: format, node name), ``lock`` (an flock held while a daemon runs), ``registers.db``
and ``chunks/``. Owns the lock. A directory with anything else in it and no marker is not taken for an empty one.
"""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path
from types import TracebackType
from typing import Self

from cluster.errors import Invalid, WrongCluster

FORMAT = 1
MARKER = "node.json"
LOCK = "lock"

MINE = {MARKER, f"{MARKER}.new", LOCK, "lost+found", "log"}
"""What may stand in a directory that is new to a node."""


class DataDirectory:
    """A locked data directory. Raises Invalid (can't be used, in use, foreign content) and WrongCluster (another node's)."""

    def __init__(self, path: Path, name: str) -> None:
        self.path = path
        self.name = name
        self._lock: int | None = None

    def __enter__(self) -> Self:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self.path / LOCK, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise Invalid(f"the data directory {self.path} can't be used: {error}", field="data") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._close()
            raise Invalid(f"the data directory {self.path} is in use by another daemon", field="data") from error
        try:
            self._check_marker()
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def _close(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _check_marker(self) -> None:
        marker = self.path / MARKER
        try:
            document = json.loads(marker.read_text())
        except FileNotFoundError:
            self._found()
            return
        except (OSError, ValueError) as error:
            raise Invalid(f"{marker} can't be read: {error}", field="data") from error
        if document.get("format") != FORMAT:
            raise Invalid(f"{marker} has format {document.get('format')!r}; this release reads {FORMAT}", field="data")
        if document.get("name") != self.name:
            raise WrongCluster(
                f"the data directory {self.path} belongs to node {document.get('name')!r}, not {self.name!r}: "
                "give the node its own directory, or start it under its own name"
            )

    def _found(self) -> None:
        """A new directory: mark it, durably."""
        foreign = sorted(entry.name for entry in self.path.iterdir() if entry.name not in MINE)
        if foreign:
            raise Invalid(
                f"the data directory {self.path} has no {MARKER} but holds {', '.join(foreign[:5])}: it is not a node's; "
                "give an empty directory",
                field="data",
            )
        text = json.dumps({"format": FORMAT, "name": self.name}) + "\n"
        temporary = self.path / f"{MARKER}.new"
        with temporary.open("w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(self.path / MARKER)
        directory = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
