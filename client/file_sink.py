"""Where a download to a file goes: a temporary file beside its destination, renamed when it is whole.

A reader of the destination sees the old file or the whole new one. Pieces are gathered into blocks, written in a thread;
blocks of zeroes become holes, so that a thin volume makes a thin file. Devices, pipes and the like are written in place.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import stat
from pathlib import Path

from client.sources import BLOCK_SIZE

_ZEROES = bytes(BLOCK_SIZE)


class FileSink:
    """One file under way. `write` pieces in order, then `commit`; `discard` (also after a failed commit) leaves no trace."""

    def __init__(self, destination: Path) -> None:
        self._destination = Path(os.path.realpath(destination))
        try:
            mode: int | None = self._destination.stat().st_mode
        except FileNotFoundError:
            mode = None
        self._in_place = mode is not None and not stat.S_ISREG(mode)
        self._mode = stat.S_IMODE(mode) if mode is not None else None
        name = f".{self._destination.name[:200]}.{secrets.token_hex(6)}.part"
        self._path = self._destination if self._in_place else self._destination.with_name(name)
        flags = os.O_WRONLY if self._in_place else os.O_WRONLY | os.O_CREAT | os.O_EXCL
        self._descriptor = os.open(self._path, flags | os.O_CLOEXEC, 0o666)
        self._pending = bytearray()
        self._written = 0

    @property
    def can_restart(self) -> bool:
        """Whether `restart` can take back what was written: not from a pipe."""
        return not self._in_place

    async def write(self, piece: bytes) -> None:
        self._pending += piece
        if len(self._pending) >= BLOCK_SIZE:
            await asyncio.to_thread(self._flush, BLOCK_SIZE)

    async def restart(self) -> None:
        """Forget everything written so far."""
        assert self.can_restart
        self._pending.clear()
        self._written = 0
        await asyncio.to_thread(os.ftruncate, self._descriptor, 0)
        await asyncio.to_thread(os.lseek, self._descriptor, 0, os.SEEK_SET)

    async def commit(self) -> None:
        """Write the rest and give the file its name."""
        await asyncio.to_thread(self._commit)

    def discard(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
            if not self._in_place:
                self._path.unlink(missing_ok=True)

    def _commit(self) -> None:
        self._flush(1)
        if self._in_place:
            os.close(self._descriptor)
        else:
            os.ftruncate(self._descriptor, self._written)
            if self._mode is not None:
                os.fchmod(self._descriptor, self._mode)
            os.close(self._descriptor)
            os.replace(self._path, self._destination)
        self._descriptor = -1

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
