"""A node's data directory: who it belongs to, and that only one daemon uses it.

It holds ``node.json`` (the marker: format, node name, and the cluster's id once the node is part of one), ``lock`` (an flock held while a
daemon runs), ``probe`` (written to see whether that can be done), ``registers.db`` and ``chunks/``. Owns the lock and the marker. A
directory with anything else in it and no marker is not taken for an empty one, nor is one that can't be written; `fault` tells whether it
still is what it was when it was entered.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

from cluster.errors import Busy, Invalid, WrongCluster
from node.mounts import require_mount
from node.storage.disk_errors import FULL, PASSING

FORMAT = 1
MARKER = "node.json"
LOCK = "lock"
PROBE = "probe"

MINE = {MARKER, f"{MARKER}.new", LOCK, PROBE, "lost+found", "log"}
"""What may stand in a directory that is new to a node."""


class DataDirectory:
    """A locked data directory. Raises Invalid (not mounted, can't be written, in use, foreign content) and WrongCluster (another
    node's). ``mount``: where the directory must lie, see `node.mounts`."""

    def __init__(self, path: Path, name: str, mount: Path | bool = False) -> None:
        self.path = path
        self.name = name
        self.cluster_id = b""
        """Of the cluster that the node belongs to; empty for a node that has not been part of one. Changed by `join` alone."""
        self._mount = mount
        self._marking = threading.Lock()
        """Held while the marker changes, and while it is compared with what it should be."""
        self._lock: int | None = None
        self._marked: tuple[int, int, bytes] | None = None

    def __enter__(self) -> Self:
        require_mount(self.path, self._mount)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self.path / LOCK, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise self._unusable(error) from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._close()
            raise Invalid(f"the data directory {self.path} is in use by another daemon", field="data") from error
        try:
            self._check_marker()
            try:
                self._probe()
                self._marked = self._read_marker()
            except OSError as error:
                raise self._unusable(error) from error
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def join(self, cluster_id: bytes) -> None:
        """Remember the cluster, for ever: durable on return. Once one is known nothing is changed. Blocking. Raises OSError."""
        with self._marking:
            if self.cluster_id:
                return
            self._write_marker(cluster_id)
            self._marked = self._read_marker()
            self.cluster_id = cluster_id

    def fault(self) -> str | None:
        """What has become of the directory since it was entered: None when it still is the same and can be written, else what is
        wrong and what to do. Raises Busy when nobody can tell, for want of descriptors or memory. Blocks for as long as the disk does;
        for a thread."""
        if self._lock is None:
            return None  # given up on purpose
        again = "see to the disk, then start the node again"
        try:
            with self._marking:
                is_marked = self._read_marker() == self._marked
            lock, held = os.stat(self.path / LOCK), os.fstat(self._lock)
        except FileNotFoundError as error:
            return (
                f"{error.filename} is gone: the data directory was unmounted, moved or emptied under the node; {again}"
            )
        except OSError as error:
            self._refuse_to_judge(error)
            return f"the data directory {self.path} can't be read any more: {error}; {again}"
        if not is_marked or (lock.st_dev, lock.st_ino) != (held.st_dev, held.st_ino):
            return f"the data directory {self.path} is not the one that the node was started on: {again}"
        try:
            self._probe()
        except OSError as error:
            self._refuse_to_judge(error)
            return f"the data directory {self.path} can't be written any more: {error}; {again}"
        return None

    def _refuse_to_judge(self, error: OSError) -> None:
        if error.errno in PASSING:
            raise Busy(f"the data directory {self.path} can't be looked at now: {error}") from error

    def _read_marker(self) -> tuple[int, int, bytes]:
        """The marker's device, inode and content."""
        with (self.path / MARKER).open("rb") as file:
            status = os.fstat(file.fileno())
            return status.st_dev, status.st_ino, file.read()

    def _probe(self) -> None:
        """Write something and see it on the disk. Raises OSError, but not for a full disk: that is no fault of the directory, and the node
        goes on and refuses writes by itself."""
        try:
            file = os.open(self.path / PROBE, os.O_CREAT | os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            try:
                os.write(file, b"can this be written?\n")
                os.fsync(file)
            finally:
                os.close(file)
        except OSError as error:
            if error.errno not in FULL:
                raise

    def _unusable(self, error: OSError) -> Invalid:
        advice = {
            errno.EROFS: "it is mounted read-only, perhaps because its disk failed: look at the kernel's log, check the file system, "
            "and mount it writable",
            errno.EACCES: f"give it to the user that the node runs as (uid {os.geteuid()})",
            errno.EPERM: f"give it to the user that the node runs as (uid {os.geteuid()})",
            errno.EIO: "its disk fails: replace it, and start the node with an empty directory; it fetches its copies from the others",
        }.get(error.errno or 0, "give a directory that can be written")
        return Invalid(f"the data directory {self.path} can't be used: {error}; {advice}", field="data")

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
        try:
            self.cluster_id = bytes.fromhex(document.get("cluster", ""))
        except (TypeError, ValueError) as error:
            raise Invalid(f"{marker} names a cluster that makes no sense: {error}", field="data") from error

    def _found(self) -> None:
        """A new directory: mark it, durably. Raises Invalid."""
        foreign = sorted(entry.name for entry in self.path.iterdir() if entry.name not in MINE)
        if foreign:
            raise Invalid(
                f"the data directory {self.path} has no {MARKER} but holds {', '.join(foreign[:5])}: it is not a node's; "
                "mount its disk if that is missing, or give an empty directory",
                field="data",
            )
        try:
            self._write_marker(b"")
        except OSError as error:
            raise self._unusable(error) from error

    def _write_marker(self, cluster_id: bytes) -> None:
        document: dict[str, object] = {"format": FORMAT, "name": self.name}
        if cluster_id:
            document["cluster"] = cluster_id.hex()
        text = json.dumps(document) + "\n"
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
