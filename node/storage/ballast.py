"""A file of allocated blocks that can be given up: room for deletes, compaction and registers on a disk that others have filled.

What nobody may be refused on a full disk is what makes it less full: dropped references, deletes, the moves of compaction, the index and
the register database behind them. When one of these finds no room, `release` cuts a piece off the file, and it is tried again. `grow`
allocates what is missing once there is space again. Users' puts never get any of it.

Any thread: the chunk writer, its indexer and the registers' thread use it side by side. It is a promise only where allocated blocks stay
allocated until they are given back (ext4, XFS); on file systems that copy on write it is a good chance.
"""

from __future__ import annotations

import logging
import os
import threading
from contextlib import suppress

from node.storage.disk import Disk

log = logging.getLogger(__name__)

BALLAST_BYTES = 64 * 1024 * 1024
"""Its size, where half of the reserve is not less: a quarter of a million deletes, or the moves of many files with little in them."""

RELEASE_BYTES = 1024 * 1024
"""Given up at once, at least: enough for a transaction of SQLite and its write-ahead file."""

GROW_MARGIN_BYTES = 2 * RELEASE_BYTES
"""Free space that growing leaves, so that it does not take what it was just released for."""

START_BYTES = 4 * 1024 * 1024
"""Free space that a start wants: SQLite's two write-ahead files with their shared memory, and a new log file."""

NAME = "ballast"


def default_ballast(reserve: int) -> int:
    return min(BALLAST_BYTES, reserve // 2)


class Ballast:
    """`size`: bytes that it should have; `held`: bytes that it has."""

    def __init__(self, disk: Disk, directory: str) -> None:
        self._disk = disk
        self._directory = directory
        self._path = os.path.join(directory, NAME)
        self._lock = threading.Lock()
        self._descriptor = -1
        self.size = 0
        self.held = 0

    @property
    def missing(self) -> int:
        return max(0, self.size - self.held)

    def open(self, size: int) -> None:
        """Find what is there, and bring it to `size` as far as the disk has room. Raises OSError, but not for want of space."""
        with self._lock:
            self.size = size
            if not self._opened() and size:
                try:
                    self._descriptor = self._disk.create(self._path)
                    self._disk.fsync_directory(self._directory)
                except OSError as error:
                    log.warning("no ballast for now: %s", error)
            if self._descriptor >= 0 and self.held > size:
                self._cut(size)
        self.grow()

    def close(self) -> None:
        with self._lock:
            if self._descriptor >= 0:
                self._disk.close(self._descriptor)
            self._descriptor = -1

    def release(self, size: int = RELEASE_BYTES, *, keep: int = 0) -> bool:
        """Give up `size` bytes or somewhat more, but leave `keep`. False when there is nothing to give: a retry would not help."""
        with self._lock:
            if not self._opened() or self.held <= keep:
                return False
            try:
                self._cut(max(keep, self.held - max(size, RELEASE_BYTES)))
            except OSError as error:
                log.warning("the ballast can't be released: %s", error)
                return False
            log.warning("the disk is full: ballast released, %d bytes left", self.held)
            return True

    def ensure_free(self, size: int) -> None:
        """Release as much as brings free space to `size`, if it is less."""
        lacking = size - self._disk.space(self._directory).free
        if lacking > 0:
            self.release(lacking)

    def grow(self) -> None:
        """Allocate what is missing, as far as there is room. What goes wrong is only missed: the chunk writer is not stopped by it."""
        with self._lock:
            if self._descriptor < 0 or self.held >= self.size:
                return
            held = self.held
            try:
                room = self._disk.space(self._directory).free - GROW_MARGIN_BYTES
                wanted = min(self.size - self.held, room)
                if wanted < min(RELEASE_BYTES, self.size - self.held):
                    return
                self._disk.allocate(self._descriptor, self.held, wanted)
                self._disk.fdatasync(self._descriptor)
                self.held += wanted
            except OSError as error:
                log.warning("the ballast can't grow: %s", error)
                with suppress(OSError):
                    self.held = self._disk.size(self._descriptor)
                with suppress(OSError):
                    self._cut(held)

    def _opened(self) -> bool:
        """Whether there is a file, opened if need be."""
        if self._descriptor < 0:
            try:
                self._descriptor = self._disk.open(self._path)
            except OSError:
                return False
            self.held = self._disk.size(self._descriptor)
        return True

    def _cut(self, size: int) -> None:
        self._disk.truncate(self._descriptor, size)
        self._disk.fdatasync(self._descriptor)  # only then may the file system give the blocks to others
        self.held = size
