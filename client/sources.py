"""What can be sent as a volume's content, and whether it can be sent twice.

A `Source` that is rewindable gives the same bytes each time it is opened, so a transfer that broke may begin again on
another node; one that isn't (a pipe, a generator) can only be sent once. A source with a known length gives exactly
that many bytes or raises: a file that shrinks while it is read must not look like a short volume.
"""

from __future__ import annotations

import asyncio
import io
import os
import stat
from collections.abc import AsyncGenerator, AsyncIterable
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO, TypeAlias

from client.errors import Invalid
from client.threads import in_thread

Buffer: TypeAlias = bytes | bytearray | memoryview
SourceLike: TypeAlias = "Buffer | os.PathLike[str] | BinaryIO | AsyncIterable[bytes] | Source"

BLOCK_SIZE = 1024 * 1024
"""Bytes handed to the connection at once: large enough that a thread hop per block costs little, small enough to show
progress and to bound memory."""


class Source:
    """Bytes to send. ``length`` is None when it cannot be known beforehand."""

    length: int | None = None
    rewindable: bool = False

    def blocks(self) -> AsyncGenerator[Buffer, None]:
        """The bytes from the start. Called again for each attempt when ``rewindable``, after the one before was closed."""
        raise NotImplementedError


class BytesSource(Source):
    """Bytes in memory; the caller leaves them unchanged until the transfer ends."""

    rewindable = True

    def __init__(self, data: Buffer) -> None:
        self._view = memoryview(data).cast("B")
        self.length = len(self._view)

    async def blocks(self) -> AsyncGenerator[Buffer, None]:
        for start in range(0, len(self._view), BLOCK_SIZE):
            yield self._view[start : start + BLOCK_SIZE]


class FileSource(Source):
    """A path, or an open binary file from where it stands now, up to ``limit`` bytes.

    Regular files and block devices have a length and can be read again; pipes, sockets and terminals cannot.
    Raises `Invalid` when the file cannot be read or holds fewer bytes than ``limit``.
    """

    def __init__(self, file: Path | BinaryIO, limit: int | None = None) -> None:
        self._file = file
        self._name = str(file) if isinstance(file, Path) else str(getattr(file, "name", "the open file"))
        self._start = 0
        self.length = limit
        try:
            if isinstance(file, Path):
                if _has_size(file):
                    with file.open("rb") as handle:
                        self._measure(handle)
            elif _handle_has_size(file):
                self._start = file.tell()
                self._measure(file)
                file.seek(self._start)
        except OSError as error:
            raise Invalid(f"cannot read {self._name}: {error.strerror or error}") from error

    def _measure(self, handle: BinaryIO) -> None:
        available = max(0, handle.seek(0, os.SEEK_END) - self._start)
        if self.length is None:
            self.length = available
        elif self.length > available:
            raise Invalid(f"{self._name} has {available} bytes, fewer than the {self.length} asked for")
        self.rewindable = True

    async def blocks(self) -> AsyncGenerator[Buffer, None]:
        # Reading a file soon ends, and is waited for also when it is given up, so that no old thread moves the place that the next
        # attempt reads from. A pipe or terminal may keep its reader for ever.
        run = in_thread if self.rewindable else asyncio.to_thread
        with ExitStack() as opened:
            if isinstance(self._file, Path):
                handle = await run(self._open, self._file, opened)
            else:
                handle = self._file
                if self.rewindable:
                    handle.seek(self._start)
            sent = 0
            while self.length is None or sent < self.length:
                wanted = BLOCK_SIZE if self.length is None else min(BLOCK_SIZE, self.length - sent)
                block = await run(handle.read, wanted)
                if not block:
                    break
                sent += len(block)
                yield block
            if self.length is not None and sent < self.length:
                raise Invalid(f"{self._name} ended after {sent} of {self.length} bytes; was it cut while it was read?")

    @staticmethod
    def _open(path: Path, opened: ExitStack) -> BinaryIO:
        return opened.enter_context(path.open("rb"))


def _has_size(path: Path) -> bool:
    mode = path.stat().st_mode
    if stat.S_ISDIR(mode):
        raise Invalid(f"{path} is a directory; name a file")
    return stat.S_ISREG(mode) or stat.S_ISBLK(mode)


def _handle_has_size(file: BinaryIO) -> bool:
    """Not merely seekable: character devices say they are, and have no end."""
    try:
        mode = os.fstat(file.fileno()).st_mode
    except io.UnsupportedOperation:
        return file.seekable()
    return stat.S_ISREG(mode) or stat.S_ISBLK(mode)


class StreamSource(Source):
    """An async iterable, read once. With ``length`` given, more or fewer bytes than that raise `Invalid`."""

    def __init__(self, stream: AsyncIterable[bytes], length: int | None = None) -> None:
        self._stream = stream
        self.length = length

    async def blocks(self) -> AsyncGenerator[Buffer, None]:
        sent = 0
        async for block in self._stream:
            sent += len(block)
            if self.length is not None and sent > self.length:
                raise Invalid(f"the stream gives more than the {self.length} bytes that were announced")
            if block:
                yield block
        if self.length is not None and sent < self.length:
            raise Invalid(f"the stream ended after {sent} of {self.length} bytes")


def as_source(content: SourceLike, length: int | None = None) -> Source:
    """The `Source` for anything that `Holdfast.put` accepts. ``length`` bytes are taken of it where given."""
    if isinstance(content, Source):
        return content
    if isinstance(content, (bytes, bytearray, memoryview)):
        return BytesSource(content if length is None else memoryview(content).cast("B")[:length])
    if isinstance(content, os.PathLike):
        return FileSource(Path(content), length)
    if isinstance(content, AsyncIterable):
        return StreamSource(content, length)
    if hasattr(content, "read"):
        return FileSource(content, length)
    raise TypeError(
        f"cannot send {type(content).__name__}: give bytes, a pathlib.Path, a binary file or an async iterable"
    )
