"""The disk, as a door: the few file operations that the chunk log is made of.

`RealDisk` is the operating system. Tests have one that remembers what was not yet synced and shows what a crash may leave.
Everything here blocks: it is called on the store's lanes, except `preadv_nowait`, which never waits. Errors are the
operating system's own (OSError); what they mean is decided by the log.

What durable means, and all the log relies on: bytes and size of a file after `fdatasync` of it; that a name exists, is gone or was
changed after `fsync_directory` of its folder. Before that a crash may keep any part of it.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from cluster.rpc.message import Buffer

IOV_LIMIT = 1024
"""Buffers per pwritev (IOV_MAX on Linux)."""


@dataclass(frozen=True, slots=True)
class Space:
    """Bytes of a file system: all, and what is free for others than root."""

    total: int
    free: int


class Disk(Protocol):
    """File operations on descriptors (ints) and paths (str)."""

    def create(self, path: str) -> int:
        """A new empty file, open for reading and writing. Raises FileExistsError."""

    def open(self, path: str) -> int:
        """An existing file, open for reading and writing."""

    def close(self, descriptor: int) -> None: ...

    def pwritev(self, descriptor: int, buffers: Sequence[Buffer], offset: int) -> int:
        """Write at most `IOV_LIMIT` buffers at `offset`; returns the bytes written, which may be fewer than given."""

    def pread(self, descriptor: int, length: int, offset: int) -> bytes:
        """Up to `length` bytes; fewer only at the end of the file."""

    def preadv_nowait(self, descriptor: int, buffer: bytearray, offset: int) -> int:
        """Fill `buffer` from memory alone; returns bytes read, 0 when anything would have to be waited for."""

    def drop_cached(self, descriptor: int, length: int, offset: int) -> None:
        """Forget what memory holds of synced bytes, where the system lets us ask for that: the next read is the disk's."""

    def fdatasync(self, descriptor: int) -> None: ...

    def truncate(self, descriptor: int, size: int) -> None: ...

    def allocate(self, descriptor: int, offset: int, length: int) -> None:
        """Make the file have blocks from `offset` on, and its size reach behind them."""

    def size(self, descriptor: int) -> int: ...

    def rename(self, source: str, target: str) -> None: ...

    def unlink(self, path: str) -> None: ...

    def make_directory(self, path: str) -> None:
        """Create the folder and those above it where missing."""

    def list_directory(self, path: str) -> list[str]: ...

    def fsync_directory(self, path: str) -> None: ...

    def space(self, path: str) -> Space: ...


class RealDisk:
    """The operating system's file system."""

    def __init__(self) -> None:
        self._nowait = getattr(os, "RWF_NOWAIT", 0)

    def create(self, path: str) -> int:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)

    def open(self, path: str) -> int:
        return os.open(path, os.O_RDWR | os.O_CLOEXEC)

    def close(self, descriptor: int) -> None:
        os.close(descriptor)

    def pwritev(self, descriptor: int, buffers: Sequence[Buffer], offset: int) -> int:
        return os.pwritev(descriptor, buffers, offset)

    def pread(self, descriptor: int, length: int, offset: int) -> bytes:
        data = os.pread(descriptor, length, offset)
        if len(data) == length or not data:
            return data
        pieces = [data]
        got = len(data)
        while got < length and (data := os.pread(descriptor, length - got, offset + got)):
            pieces.append(data)
            got += len(data)
        return b"".join(pieces)

    def preadv_nowait(self, descriptor: int, buffer: bytearray, offset: int) -> int:
        if not self._nowait:
            return 0
        try:
            return os.preadv(descriptor, [buffer], offset, self._nowait)
        except BlockingIOError:
            return 0
        except OSError as error:
            if error.errno in {errno.EOPNOTSUPP, errno.EINVAL}:
                self._nowait = 0  # this file system (tmpfs, for one) or kernel has no such read: don't ask again
            return 0  # any other error is for the checked, repeated read to judge

    def drop_cached(self, descriptor: int, length: int, offset: int) -> None:
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(descriptor, offset, length, os.POSIX_FADV_DONTNEED)

    def fdatasync(self, descriptor: int) -> None:
        os.fdatasync(descriptor)

    def truncate(self, descriptor: int, size: int) -> None:
        os.ftruncate(descriptor, size)

    def allocate(self, descriptor: int, offset: int, length: int) -> None:
        os.posix_fallocate(descriptor, offset, length)

    def size(self, descriptor: int) -> int:
        return os.fstat(descriptor).st_size

    def rename(self, source: str, target: str) -> None:
        os.replace(source, target)

    def unlink(self, path: str) -> None:
        os.unlink(path)

    def make_directory(self, path: str) -> None:
        os.makedirs(path, mode=0o700, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            self.fsync_directory(os.path.dirname(os.path.abspath(path)))

    def list_directory(self, path: str) -> list[str]:
        return os.listdir(path)

    def fsync_directory(self, path: str) -> None:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def space(self, path: str) -> Space:
        found = os.statvfs(path)
        return Space(found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize)
