"""A disk in memory that remembers what was not yet synced, loses some of it in a crash, and fails on demand.

Two ways to crash. In a long run the disk lives on: `crash` does to it what the end of a process, or a power cut, does, and it holds no
more than what is on it and what is not synced. With ``history`` every change is kept, so that after one run of a store every moment of
it can be turned into the disk that a power cut at that moment would have left (`crashed`); `note` puts the test's own marks into the
same history.
"""

from __future__ import annotations

import errno
import os
import random
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from node.storage.disk import Space

PAGE = 512
"""What a disk writes whole or not at all, in this simulation."""


class PowerCut(BaseException):
    """The process ends inside a call to the disk. Nothing that handles errors may handle it."""


@dataclass(frozen=True)
class Event:
    """One change: kind is create, write, truncate, sync, lost (a failed sync: what was pending will never be written), unlink,
    rename, sync_directory, rot, or note."""

    kind: str
    file: int = 0
    path: str = ""
    offset: int = 0
    data: bytes = b""
    note: Any = None


@dataclass
class Content:
    """A file: what the disk has for sure, and what has been changed since the last sync."""

    durable: bytearray = field(default_factory=bytearray)
    pending: list[Event] = field(default_factory=list)
    visible: bytearray = field(default_factory=bytearray)


@dataclass(frozen=True)
class Loss:
    """What a power cut does to changes of a file that were not synced. `keep`: how many of each file's pending changes survive (None: all).
    `torn`: bytes of the last of them that survive (None: all). `holes`: chance of each page of pending writes to be lost with its room
    kept. `garbage`: what is then in pages that are new: random bytes, else zeroes. `names`: unsynced changes of the folder survive."""

    keep: int | None = None
    torn: int | None = None
    holes: float = 0.0
    garbage: bool = False
    names: bool = True

    @classmethod
    def drawn(cls, pending: Sequence[Event], chance: random.Random) -> Loss:
        """Everything, nothing, the first of it with the last torn, or holes."""
        kind = chance.choice(["nothing", "everything", "first", "holes", "garbage"])
        if kind == "first":
            keep = chance.randrange(len(pending)) + 1
            return cls(keep=keep, torn=chance.randrange(len(pending[keep - 1].data) + 1))
        if kind == "nothing":
            return cls(keep=0)
        return cls() if kind == "everything" else cls(holes=0.5, garbage=kind == "garbage")


@dataclass
class Failure:
    """Calls of a kind that fail: `after` this many more, `times` of them (None: from then on)."""

    kind: str
    number: int
    after: int = 0
    times: int | None = 1


def apply(data: bytearray, event: Event) -> None:
    if event.kind == "truncate":
        del data[event.offset :]
        data.extend(bytes(event.offset - len(data)))
    else:
        if len(data) < event.offset:
            data.extend(bytes(event.offset - len(data)))
        data[event.offset : event.offset + len(event.data)] = event.data


class SimulatedDisk:
    """Fulfils `Disk`. `fault(kind, n)` is asked before the n-th call (from 1) of each kind and may return an errno."""

    def __init__(self, *, capacity: int = 1 << 40, history: bool = True) -> None:
        self.capacity = capacity
        self.history: list[Event] = []
        self._keeps_history = history
        self.failures: list[Failure] = []
        """Calls to come that will fail."""
        self.calls_left: int | None = None
        """How many more calls there are before the process is gone; None: no end."""
        self.fault: Callable[[str, int], int | None] = lambda _kind, _n: None
        self.calls: dict[str, int] = {}
        self.cached = True
        """Whether reads without waiting find everything."""
        self._contents: dict[int, Content] = {}
        self._names: dict[str, int] = {}
        self._synced_names: dict[str, int] = {}
        self._unsynced_names: list[Event] = []
        self._descriptors: dict[int, int] = {}
        self._numbers = 0
        self._first = 0
        """Descriptors below are of processes that are gone."""
        self.upheavals = 0
        """How often something else than a write has changed what is durable: crashes and rot."""
        self.sound = True
        """Whether no bit was ever flipped and no call ever failed as `failures` want it."""
        self.met = 0
        """Calls that failed as `failures` want it."""
        self._lock = threading.RLock()

    def note(self, mark: Any) -> None:
        with self._lock:
            self.history.append(Event("note", note=mark))

    def _record(self, event: Event) -> None:
        if self._keeps_history:
            self.history.append(event)

    def _call(self, kind: str) -> None:
        if self.calls_left is not None:
            if self.calls_left <= 0:
                raise PowerCut
            self.calls_left -= 1
        self.calls[kind] = self.calls.get(kind, 0) + 1
        number = self.fault(kind, self.calls[kind]) or self._failure(kind)
        if number is not None:
            raise OSError(number, os.strerror(number))

    def _failure(self, kind: str) -> int | None:
        for failure in self.failures:
            if failure.kind == kind:
                if failure.after:
                    failure.after -= 1
                    continue
                if failure.times is not None:
                    failure.times -= 1
                    if not failure.times:
                        self.failures.remove(failure)
                self.sound = False
                self.met += 1
                return failure.number
        return None

    def _number(self) -> int:
        self._numbers += 1
        return self._numbers

    # -- Disk

    def create(self, path: str) -> int:
        with self._lock:
            self._call("create")
            if path in self._names:
                raise FileExistsError(errno.EEXIST, "exists", path)
            file = self._number()
            self._contents[file] = Content()
            self._names[path] = file
            self._renamed(Event("create", file, path))
            return self._descriptor(file)

    def open(self, path: str) -> int:
        with self._lock:
            self._call("open")
            self._require(path)
            return self._descriptor(self._names[path])

    def _require(self, path: str) -> None:
        if path not in self._names:
            raise FileNotFoundError(errno.ENOENT, "not there", path)

    def _taken(self, path: str) -> int:
        self._require(path)
        return self._names.pop(path)

    def _descriptor(self, file: int) -> int:
        descriptor = self._number()
        self._descriptors[descriptor] = file
        return descriptor

    def close(self, descriptor: int) -> None:
        with self._lock:
            if descriptor < self._first:
                return
            file = self._descriptors.pop(descriptor)
            if file not in self._names.values():
                self._forget_lost()

    def pwritev(self, descriptor: int, buffers: Sequence[bytes | bytearray | memoryview], offset: int) -> int:
        with self._lock:
            file = self._descriptors[descriptor]
            data = b"".join(buffers)
            try:
                self._call("pwritev")
            except OSError as error:
                if error.errno == errno.ENOSPC and len(data) > 1:
                    # as real ones do: what fits is written, and the next call finds the disk full
                    data = data[: len(data) // 2]
                    self.calls["pwritev"] -= 1
                    if self._halved:
                        self._halved = False
                        self.calls["pwritev"] += 1
                        raise
                    self._halved = True
                else:
                    raise
            content = self._contents[file]
            room = self.capacity - self._used() + max(0, len(content.visible) - offset)
            if len(data) > room:
                data = data[: max(room, 0)]
                if not data:
                    raise OSError(errno.ENOSPC, "full")
            event = Event("write", file, "", offset, data)
            apply(content.visible, event)
            content.pending.append(event)
            self._record(event)
            return len(data)

    _halved = False

    def _used(self) -> int:
        return sum(len(self._contents[file].visible) for file in self._names.values())

    def pread(self, descriptor: int, length: int, offset: int) -> bytes:
        with self._lock:
            self._call("pread")
            return bytes(self._contents[self._descriptors[descriptor]].visible[offset : offset + length])

    def preadv_nowait(self, descriptor: int, buffer: bytearray, offset: int) -> int:
        if not self.cached or descriptor < self._first:
            return 0
        with self._lock:
            data = self._contents[self._descriptors[descriptor]].visible[offset : offset + len(buffer)]
            buffer[: len(data)] = data
            return len(data)

    def drop_cached(self, descriptor: int, length: int, offset: int) -> None:
        assert descriptor in self._descriptors

    def fdatasync(self, descriptor: int) -> None:
        with self._lock:
            file = self._descriptors[descriptor]
            try:
                self._call("fdatasync")
            except OSError:
                self._contents[file].pending.clear()
                self._record(Event("lost", file))
                raise
            content = self._contents[file]
            for event in content.pending:
                apply(content.durable, event)
            content.pending.clear()
            self._record(Event("sync", file))

    def truncate(self, descriptor: int, size: int) -> None:
        with self._lock:
            self._call("truncate")
            file = self._descriptors[descriptor]
            event = Event("truncate", file, "", size)
            apply(self._contents[file].visible, event)
            self._contents[file].pending.append(event)
            self._record(event)

    def allocate(self, descriptor: int, offset: int, length: int) -> None:
        with self._lock:
            self._call("allocate")
            file = self._descriptors[descriptor]
            if offset + length - len(self._contents[file].visible) > self.capacity - self._used():
                raise OSError(errno.ENOSPC, "full")
            event = Event("truncate", file, "", offset + length)
            apply(self._contents[file].visible, event)
            self._contents[file].pending.append(event)
            self._record(event)

    def size(self, descriptor: int) -> int:
        with self._lock:
            return len(self._contents[self._descriptors[descriptor]].visible)

    def rename(self, source: str, target: str) -> None:
        with self._lock:
            self._call("rename")
            self._names[target] = self._taken(source)
            self._renamed(Event("rename", self._names[target], target, note=source))

    def unlink(self, path: str) -> None:
        with self._lock:
            self._call("unlink")
            file = self._taken(path)
            self._renamed(Event("unlink", file, path))

    def make_directory(self, path: str) -> None:
        pass

    def list_directory(self, path: str) -> list[str]:
        with self._lock:
            return [os.path.basename(name) for name in self._names if os.path.dirname(name) == path]

    def fsync_directory(self, path: str) -> None:
        with self._lock:
            self._call("fsync_directory")
            for event in self._unsynced_names:
                if os.path.dirname(event.path) == path:
                    _rename(self._synced_names, event)
            self._unsynced_names = [one for one in self._unsynced_names if os.path.dirname(one.path) != path]
            self._forget_lost()
            self._record(Event("sync_directory", path=path))

    def _renamed(self, event: Event) -> None:
        self._unsynced_names.append(event)
        self._record(event)

    def _forget_lost(self) -> None:
        """The contents that no crash can bring back."""
        kept = {*self._names.values(), *self._synced_names.values(), *self._descriptors.values()}
        kept.update(event.file for event in self._unsynced_names)
        for file in self._contents.keys() - kept:
            del self._contents[file]

    def space(self, path: str) -> Space:
        with self._lock:
            return Space(self.capacity, max(0, self.capacity - self._used()))

    # -- for tests

    def copy(self) -> SimulatedDisk:
        """The disk as it is seen now, all of it durable."""
        return self._with({path: bytes(self._contents[file].visible) for path, file in self._names.items()})

    def crash(self, chance: random.Random, *, power: bool = True) -> None:
        """The process is gone; with `power` also, by chance, what was not synced. In place: for the disk's next process."""
        with self._lock:
            self.upheavals += 1
            self._descriptors.clear()
            self._first = self._numbers + 1
            self.calls_left = None
            if power:
                for change in self._unsynced_names:
                    if chance.random() < 0.5:
                        _rename(self._synced_names, change)
                self._unsynced_names = []
                self._names = dict(self._synced_names)
            self._forget_lost()
            if power:
                for content in self._contents.values():
                    if content.pending:
                        content.durable = bytearray(_survivor(content, Loss.drawn(content.pending, chance), chance))
                        content.pending = []
                    content.visible = bytearray(content.durable)

    def rot(self, chance: random.Random) -> str | None:
        """A flipped bit anywhere in what is stored; the file it is in."""
        sizes = {path: len(self._contents[self._names[path]].visible) for path in self.paths()}
        if not sum(sizes.values()):
            return None
        path = chance.choices(list(sizes), list(sizes.values()))[0]
        self.flip(path, chance.randrange(sizes[path]), 1 << chance.randrange(8))
        return path

    def _with(self, files: dict[str, bytes]) -> SimulatedDisk:
        disk = SimulatedDisk(history=self._keeps_history)
        for path, data in files.items():
            descriptor = disk.create(path)
            if data:
                disk.pwritev(descriptor, [data], 0)
            disk.fdatasync(descriptor)
            disk.close(descriptor)
        for directory in dict.fromkeys(map(os.path.dirname, files)):
            disk.fsync_directory(directory)
        disk.calls.clear()
        return disk

    def paths(self) -> list[str]:
        return sorted(self._names)

    def flip(self, path: str, offset: int, mask: int = 0x10) -> None:
        """Rot: change a byte where it lies."""
        with self._lock:
            self.upheavals += 1
            self.sound = False
            content = self._contents[self._names[path]]
            content.visible[offset] ^= mask
            if offset < len(content.durable):
                content.durable[offset] ^= mask
            self._record(Event("rot", self._names[path], path, offset, bytes([mask])))

    def used(self) -> int:
        """Bytes that files take."""
        with self._lock:
            return self._used()

    def durable(self) -> dict[str, bytearray]:
        """By path, what a power cut now would leave for sure. To look at."""
        return {path: self._contents[file].durable for path, file in self._synced_names.items()}

    def bytes_of(self, path: str) -> bytes:
        return bytes(self._contents[self._names[path]].visible)

    def crashed(self, at: int, loss: Loss, chance: random.Random) -> SimulatedDisk:
        """The disk after a power cut behind the first `at` events of the history."""
        contents: dict[int, Content] = {}
        names: dict[str, int] = {}
        unsynced: list[Event] = []
        for event in self.history[:at]:
            if event.kind in {"create", "unlink", "rename"}:
                unsynced.append(event)
                if event.kind == "create":
                    contents[event.file] = Content()
            elif event.kind == "sync_directory":
                for change in unsynced:
                    if os.path.dirname(change.path) == event.path:
                        _rename(names, change)
                unsynced = [change for change in unsynced if os.path.dirname(change.path) != event.path]
            elif event.kind == "sync":
                for change in contents[event.file].pending:
                    apply(contents[event.file].durable, change)
                contents[event.file].pending = []
            elif event.kind == "lost":
                contents[event.file].pending = []
            elif event.kind in {"write", "truncate"}:
                contents[event.file].pending.append(event)
            elif event.kind == "rot" and event.offset < len(contents[event.file].durable):
                contents[event.file].durable[event.offset] ^= event.data[0]
        if loss.names:
            for change in unsynced:
                _rename(names, change)
        files = {path: _survivor(contents[file], loss, chance) for path, file in names.items()}
        return self._with(files)


def _rename(names: dict[str, int], event: Event) -> None:
    if event.kind == "create":
        names[event.path] = event.file
    elif event.kind == "unlink":
        names.pop(event.path, None)
    else:
        names.pop(event.note, None)
        names[event.path] = event.file


def _survivor(content: Content, loss: Loss, chance: random.Random) -> bytes:
    data = bytearray(content.durable)
    pending = content.pending if loss.keep is None else content.pending[: loss.keep]
    for position, event in enumerate(pending):
        piece = event.data
        if loss.torn is not None and position == len(pending) - 1 and event.kind == "write":
            piece = piece[: loss.torn]
        if loss.holes and event.kind == "write":
            mangled = bytearray(piece)
            first = event.offset // PAGE
            for page in range(first, (event.offset + len(piece) + PAGE - 1) // PAGE):
                if chance.random() < loss.holes:
                    start = max(page * PAGE - event.offset, 0)
                    end = min((page + 1) * PAGE - event.offset, len(piece))
                    mangled[start:end] = chance.randbytes(end - start) if loss.garbage else bytes(end - start)
                    old = data[event.offset + start : event.offset + end]  # a lost overwrite leaves what was there
                    mangled[start : start + len(old)] = old
            piece = bytes(mangled)
        if event.kind == "truncate" or piece:
            apply(data, Event(event.kind, event.file, "", event.offset, piece))
    return bytes(data)
