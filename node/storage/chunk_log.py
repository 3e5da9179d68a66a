"""The chunk log: numbered append-only files in one folder, and the descriptors to them.

`ChunkLog` appends for the one writer: a batch is written and synced before `append` returns, and a failed sync (or a failed write that
could not be undone) poisons the log for good, because after that nobody knows what the disk holds and the kernel may have
dropped the pages. A write that found the disk full is undone: the file is cut back to its last whole record, durably. (A file system that
has no room even for that is asked again before the next append.)
A file is in use only once its header and its name are durable.

`LogFiles` keeps a bounded number of files open for all threads; a descriptor in use is pinned and never closed under a reader.
"""

from __future__ import annotations

import errno
import os
import re
import threading
from collections import Counter
from collections.abc import Callable, Sequence

from cluster.chunks.store import StoreFailed
from cluster.errors import Busy
from cluster.rpc.message import Buffer
from node.storage.chunk_record import FILE_HEADER_BYTES, pack_file_header
from node.storage.disk import IOV_LIMIT, Disk
from node.storage.disk_errors import FULL, NO_DESCRIPTOR

OPEN_FILES_LIMIT = 128
"""Log files kept open; with 1 GiB files this covers 128 GiB without reopening. `node.open_files` keeps so many descriptors for them."""

_NAME = re.compile(r"chunks-(\d{8})\.log")
_FULL = FULL | {errno.EFBIG}


class LogFull(Exception):
    """The disk had no room for the append; the log is as before it."""


def file_name(number: int) -> str:
    return f"chunks-{number:08d}.log"


def file_number(name: str) -> int | None:
    """The number of a log file's name, None for any other name."""
    match = _NAME.fullmatch(name)
    return int(match[1]) if match else None


class LogFiles:
    """Descriptors of the log files in `directory`. Any thread. The number of a file that is gone is not used again."""

    def __init__(self, disk: Disk, directory: str) -> None:
        self.disk = disk
        self.directory = directory
        self._lock = threading.Lock()
        self._open: dict[int, list[int]] = {}
        """File number -> [descriptor, pins], least recently pinned first."""
        self._unlinked: set[int] = set()
        """Files that are gone but were pinned, or about to be opened, when they went: their space is free when they are closed."""
        self._opening: Counter[int] = Counter()
        """Calls of `pin` that wait for the disk, by file: what they open may be gone before they have noted it."""

    def path(self, number: int) -> str:
        return os.path.join(self.directory, file_name(number))

    def pin(self, number: int) -> int:
        """The file's descriptor, not to be closed until `unpin`. Opens it if need be. Raises OSError."""
        with self._lock:
            entry = self._open.pop(number, None)
            if entry is not None:
                self._open[number] = entry
                entry[1] += 1
                return entry[0]
            self._opening[number] += 1
        try:
            descriptor = self.disk.open(self.path(number))
        except BaseException:
            with self._lock:
                self._opened(number)
                if number not in self._opening and number not in self._open:
                    self._unlinked.discard(number)
            raise
        with self._lock:
            self._opened(number)
            entry = self._open.get(number)
            if entry is None:
                self._open[number] = [descriptor, 1]
                spare = self._overdue()
            else:  # another thread was faster
                entry[1] += 1
                spare = [descriptor]
                descriptor = entry[0]
        for one in spare:
            self.disk.close(one)
        return descriptor

    def _opened(self, number: int) -> None:
        """One call of `pin` waits no more."""
        self._opening[number] -= 1
        if not self._opening[number]:
            del self._opening[number]

    def pin_open(self, number: int) -> int | None:
        """As `pin`, but None when the file isn't open: never waits for the disk."""
        with self._lock:
            entry = self._open.get(number)
            if entry is None:
                return None
            entry[1] += 1
            return entry[0]

    def unpin(self, number: int) -> None:
        with self._lock:
            entry = self._open[number]
            entry[1] -= 1
            if entry[1] or number not in self._unlinked:
                return
            del self._open[number]
            if number not in self._opening:
                self._unlinked.discard(number)
        self.disk.close(entry[0])

    def adopt(self, number: int, descriptor: int) -> None:
        """Keep a descriptor that somebody else opened."""
        with self._lock:
            assert number not in self._open
            self._open[number] = [descriptor, 1]  # it is not the one to be closed
            spare = self._overdue()
            self._open[number][1] = 0
        for one in spare:
            self.disk.close(one)

    def forget(self, number: int) -> bool:
        """Close the file if it is open; False when somebody is reading it."""
        with self._lock:
            entry = self._open.get(number)
            if entry is None:
                return True
            if entry[1]:
                return False
            del self._open[number]
        self.disk.close(entry[0])
        return True

    def unlinked(self, number: int) -> None:
        """The file's name is gone. Somebody may have opened it again since `forget`, or be about to note that: close it when nobody
        reads it any more."""
        with self._lock:
            if number in self._opening:
                self._unlinked.add(number)
            entry = self._open.get(number)
            if entry is None:
                return
            if entry[1]:
                self._unlinked.add(number)
                return
            del self._open[number]
        self.disk.close(entry[0])

    def is_missing(self, number: int) -> bool:
        """Whether the file is gone from a folder that is the log's still: a folder without any log file (one that was unmounted or moved
        away, or an empty one mounted over it) tells nothing. Raises OSError."""
        try:
            names = self.disk.list_directory(self.directory)
        except FileNotFoundError:
            return False
        return file_name(number) not in names and any(file_number(name) is not None for name in names)

    def _overdue(self) -> list[int]:
        spare = len(self._open) - OPEN_FILES_LIMIT
        numbers = [number for number, entry in self._open.items() if not entry[1]][: max(spare, 0)]
        return [self._open.pop(number)[0] for number in numbers]

    def close(self) -> None:
        """Close every descriptor; nobody may be reading."""
        with self._lock:
            entries = list(self._open.values())
            self._open.clear()
        for descriptor, _ in entries:
            self.disk.close(descriptor)


class ChunkLog:
    """Appends to the newest file. One thread (the writer's, recovery's before it)."""

    def __init__(self, files: LogFiles, new_salt: Callable[[], int]) -> None:
        self._files = files
        self._disk = files.disk
        self._new_salt = new_salt
        self.number = 0
        self.salt = 0
        self.end = 0
        """Where the next record goes; everything before it is durable."""
        self._descriptor = -1
        self.syncs = 0
        self.bytes_written = 0
        self.failure: str | None = None
        """Why nothing more is appended."""
        self._uncut = False
        """Whether bytes of an undone write stand behind the end still."""

    def begin(self, number: int) -> None:
        """Go on in a new file. Raises LogFull (go on in the old one), Busy (too many files are open: nothing was done), StoreFailed."""
        self.refuse_if_failed()
        self._cut_back_if_due()
        salt = self._new_salt()
        path = self._files.path(number)
        descriptor = -1
        try:
            descriptor = self._disk.create(path)
            self._write(descriptor, [pack_file_header(number, salt)], 0)
            self._disk.fdatasync(descriptor)
            self._disk.fsync_directory(self._files.directory)
        except (OSError, LogFull) as error:
            self._discard(descriptor, path)
            if isinstance(error, OSError) and error.errno in NO_DESCRIPTOR:
                raise Busy(
                    f"no new log file can be opened now: {error}; nothing was changed", retry_after_s=1
                ) from error
            if isinstance(error, OSError) and error.errno not in _FULL:
                raise self.poison(error, f"creating {path}") from error
            raise LogFull(str(error)) from error
        if self.number:
            self._files.unpin(self.number)
        self._files.adopt(number, descriptor)
        self.resume(number, salt, FILE_HEADER_BYTES)

    def resume(self, number: int, salt: int, end: int) -> None:
        """Append to an existing file from `end`, up to which it is durable."""
        self._descriptor = self._files.pin(number)
        self.number, self.salt, self.end = number, salt, end

    def _discard(self, descriptor: int, path: str) -> None:
        try:
            if descriptor >= 0:
                self._disk.close(descriptor)
                self._disk.unlink(path)
        except OSError:
            pass  # recovery removes a newest file without records

    def append(self, buffers: Sequence[Buffer], size: int) -> None:
        """Write the batch at `end` and sync it. Raises LogFull (nothing was written), StoreFailed."""
        self.refuse_if_failed()
        self._cut_back_if_due()
        try:
            self._write(self._descriptor, buffers, self.end)
        except LogFull:
            self._cut_back()
            raise
        except OSError as error:
            raise self.poison(error, "writing") from error
        try:
            self._disk.fdatasync(self._descriptor)
        except OSError as error:
            raise self.poison(error, "syncing") from error
        self.syncs += 1
        self.bytes_written += size
        self.end += size

    def _cut_back(self) -> None:
        try:
            self._uncut = True
            self._disk.truncate(self._descriptor, self.end)
        except OSError as error:
            if error.errno in _FULL:
                return
            raise self.poison(error, "cutting back a failed write") from error
        try:
            self._disk.fdatasync(self._descriptor)
        except OSError as error:
            raise self.poison(error, "cutting back a failed write") from error
        self._uncut = False

    def _cut_back_if_due(self) -> None:
        """What was undone must not be found behind records that are written now. Raises LogFull."""
        if self._uncut:
            self._cut_back()
            if self._uncut:
                raise LogFull("the disk has no room to cut the log back")

    def _write(self, descriptor: int, buffers: Sequence[Buffer], offset: int) -> None:
        """All of `buffers`, however many calls it takes. Raises LogFull, OSError."""
        for start in range(0, len(buffers), IOV_LIMIT):
            part: list[Buffer] = list(buffers[start : start + IOV_LIMIT])
            left = sum(map(len, part))
            while left:
                try:
                    written = self._disk.pwritev(descriptor, part, offset)
                except OSError as error:
                    if error.errno in _FULL:
                        raise LogFull(str(error)) from error
                    raise
                if written <= 0:
                    raise LogFull("the disk took no more bytes")
                offset += written
                left -= written
                if left:
                    part = _rest(part, written)

    def refuse_if_failed(self) -> None:
        if self.failure is not None:
            raise StoreFailed(self.failure)

    def poison(self, error: BaseException, doing: str) -> StoreFailed:
        """Refuse everything from now on."""
        if self.failure is None:
            self.failure = (
                f"the chunk log failed while {doing} (file {file_name(self.number)}): {error}; "
                "check the disk, then restart the daemon"
            )
        return StoreFailed(self.failure)


def _rest(buffers: Sequence[Buffer], written: int) -> list[Buffer]:
    """What of `buffers` is left after `written` bytes."""
    for position, buffer in enumerate(buffers):
        if written < len(buffer):
            return [memoryview(buffer)[written:], *buffers[position + 1 :]]
        written -= len(buffer)
    return []
