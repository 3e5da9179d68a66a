"""Where a download to a file goes: a temporary file beside its destination, renamed when it is whole.

A reader of the destination sees the old file or the whole new one, also after a power cut; what is under way nobody but its owner
can read. Pieces are gathered into blocks, written in a thread; blocks of zeroes become holes, so that a thin volume makes a thin
file. Devices, pipes and the like are written in place.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
from pathlib import Path

from client.sources import BLOCK_SIZE
from client.threads import in_thread

_ZEROES = bytes(BLOCK_SIZE)

_CANNOT_SYNC = frozenset({errno.EACCES, errno.EPERM, errno.EINVAL, errno.ENOTSUP})
"""What folders say that we may not read, and file systems that cannot sync a folder."""


class FileSink:
    """One file under way. `write` pieces in order, then `commit`; `discard` (also after a failed commit) leaves no trace.

    One call at a time. A call that is cancelled ends when its thread has: from then on `discard` may close the file.
    """

    def __init__(self, destination: Path) -> None:
        self._destination = Path(os.path.realpath(destination))
        try:
            mode: int | None = self._destination.stat().st_mode
        except FileNotFoundError:
            mode = None
        self._in_place = mode is not None and not stat.S_ISREG(mode)
        self._mode = stat.S_IMODE(mode) if mode is not None else None
        self._stem = f".{self._destination.name[:200]}.{secrets.token_hex(6)}"
        self._path = self._destination if self._in_place else self._destination.with_name(f"{self._stem}.part")
        flags = os.O_WRONLY if self._in_place else os.O_WRONLY | os.O_CREAT | os.O_EXCL
        self._descriptor = os.open(self._path, flags | os.O_CLOEXEC, 0o600)
        self._temporary = not self._in_place
        """There is a file to remove."""
        self._pending = bytearray()
        self._written = 0

    @property
    def can_restart(self) -> bool:
        """Whether `restart` can take back what was written: not from a pipe."""
        return not self._in_place

    async def write(self, piece: bytes) -> None:
        self._pending += piece
        if len(self._pending) >= BLOCK_SIZE:
            await in_thread(self._flush, BLOCK_SIZE)

    async def restart(self) -> None:
        """Forget everything written so far."""
        assert self.can_restart
        self._pending.clear()
        self._written = 0
        await in_thread(os.ftruncate, self._descriptor, 0)
        await in_thread(os.lseek, self._descriptor, 0, os.SEEK_SET)

    async def commit(self) -> None:
        """Write the rest and give the file its name. Both outlast a power cut then; a device or pipe has only been handed it."""
        await in_thread(self._commit)

    def discard(self) -> None:
        self._close()
        if self._temporary:
            self._temporary = False
            self._path.unlink(missing_ok=True)

    def _close(self) -> None:
        """Once, whatever comes of it: the number may be another file's a moment later."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def _commit(self) -> None:
        self._flush(1)
        if self._in_place:
            self._close()
            return
        os.ftruncate(self._descriptor, self._written)
        mode = self._plain_mode() if self._mode is None else self._mode
        if stat.S_IMODE(os.fstat(self._descriptor).st_mode) != mode:
            os.fchmod(self._descriptor, mode)
        os.fsync(self._descriptor)
        self._close()
        os.replace(self._path, self._destination)
        self._temporary = False
        _sync_folder(self._destination.parent)

    def _plain_mode(self) -> int:
        """What a new file gets here, by umask and the folder's default ACL. Tried out: asking for the umask changes it for a moment,
        for all threads."""
        trial = self._path.with_name(f"{self._stem}.mode")
        descriptor = os.open(trial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        try:
            return stat.S_IMODE(os.fstat(descriptor).st_mode)
        finally:
            os.close(descriptor)
            trial.unlink(missing_ok=True)

    def _flush(self, block: int) -> None:
        """Write the pending bytes in blocks of at most `BLOCK_SIZE`, keeping what is shorter than ``block``."""
        pending, self._pending = self._pending, bytearray()
        view = memoryview(pending)
        start = 0
        while len(view) - start >= block:
            piece = view[start : start + BLOCK_SIZE]
            if not self._in_place and len(piece) == BLOCK_SIZE and piece == _ZEROES:
                os.lseek(self._descriptor, BLOCK_SIZE, os.SEEK_CUR)
            else:
                offset = 0
                while offset < len(piece):
                    offset += os.write(self._descriptor, piece[offset:])
            start += len(piece)
        self._written += start
        self._pending += view[start:]


def _sync_folder(path: Path) -> None:
    """Make the names in a folder outlast a power cut, where its file system can."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in _CANNOT_SYNC:
            return
        raise
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _CANNOT_SYNC:
            raise
    finally:
        os.close(descriptor)
