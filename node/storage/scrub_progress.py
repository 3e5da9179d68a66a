"""How far the scrub has come, kept in a small file beside the chunk log so that a restart goes on where it was.

`ScrubProgress` is the value, `ScrubFile` reads and replaces the file; both block, so they are called on a lane. The file is a hint: one
that is missing or damaged only starts a new pass. It is replaced as a whole, its bytes synced first. One line of JSON:

    {"version": 1, "began": 1764115200.0, "previous_began": null, "cursor": "0f…", "requested": false, "crc": 1234567890}

``crc`` is the CRC32C of the line without it, keys in this order.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace
from typing import Any, Final

from crc32c import crc32c

from cluster.chunks.store import CHUNK_ID_BYTES
from node.storage.disk import Disk

FILE_NAME: Final = "scrub.json"
FILE_LIMIT: Final = 4096
"""Bytes: no such file is longer."""

VERSION: Final = 1


@dataclass(frozen=True, slots=True)
class ScrubProgress:
    """A pass under way. Times are wall times in seconds."""

    began: float
    previous_began: float | None = None
    """Before this nothing that the pass has not reached yet was verified last; None: not known."""
    cursor: bytes | None = None
    """The last chunk verified; None at the start."""
    requested: bool = False
    """Whether an operator asked for it, so that it goes at the full rate."""

    def until(self, now: float) -> ScrubProgress:
        """The same by a clock that shows ``now``: nothing began later than that."""
        if self.began <= now and (self.previous_began is None or self.previous_began <= now):
            return self
        previous = None if self.previous_began is None else min(self.previous_began, now)
        return replace(self, began=min(self.began, now), previous_began=previous)


class ScrubFile:
    """The file in ``directory``."""

    def __init__(self, disk: Disk, directory: str) -> None:
        self._disk = disk
        self._path = os.path.join(directory, FILE_NAME)

    def load(self) -> ScrubProgress | None:
        """None when there is no file, or none that makes sense."""
        try:
            descriptor = self._disk.open(self._path)
            try:
                data = self._disk.pread(descriptor, FILE_LIMIT, 0)
            finally:
                self._disk.close(descriptor)
        except OSError:
            return None
        try:
            return _parsed(data)
        except (ValueError, KeyError, TypeError, AttributeError):
            return None

    def save(self, progress: ScrubProgress) -> None:
        """Raises OSError; the file is then as it was."""
        data = _packed(progress)
        new = self._path + ".new"
        try:
            descriptor = self._disk.create(new)
        except FileExistsError:  # left by a crash
            self._disk.unlink(new)
            descriptor = self._disk.create(new)
        try:
            if self._disk.pwritev(descriptor, [data], 0) != len(data):
                raise OSError(f"{new} took only a part of {len(data)} bytes")
            self._disk.fdatasync(descriptor)
        finally:
            self._disk.close(descriptor)
        self._disk.rename(new, self._path)


def _packed(progress: ScrubProgress) -> bytes:
    fields: dict[str, Any] = {
        "version": VERSION,
        "began": progress.began,
        "previous_began": progress.previous_began,
        "cursor": None if progress.cursor is None else progress.cursor.hex(),
        "requested": progress.requested,
    }
    return (json.dumps({**fields, "crc": crc32c(json.dumps(fields).encode())}) + "\n").encode()


def _parsed(data: bytes) -> ScrubProgress:
    fields = json.loads(data)
    crc = fields.pop("crc")
    if fields["version"] != VERSION or crc != crc32c(json.dumps(fields).encode()):
        raise ValueError("not the progress of a scrub")
    cursor = None if fields["cursor"] is None else bytes.fromhex(fields["cursor"])
    if cursor is not None and len(cursor) != CHUNK_ID_BYTES:
        raise ValueError("not a chunk id")
    previous = fields["previous_began"]
    return ScrubProgress(
        float(fields["began"]), None if previous is None else float(previous), cursor, bool(fields["requested"])
    )
