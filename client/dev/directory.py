"""The directory of a local cluster: who may use it, its secret, what is in it, and emptying a node's part."""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from client.dev.cluster_file import FILE_NAME
from client.errors import Conflict, Invalid

LOCK_NAME = "runner.lock"
SECRET_NAME = "secret"  # noqa: S105 - a file's name
LOGS_NAME = "logs"

_OURS = frozenset(
    {
        f".{SECRET_NAME}.new",
        LOCK_NAME,
        SECRET_NAME,
        LOGS_NAME,
        FILE_NAME,
        f".{FILE_NAME}.new",
        "control.sock",
        "lost+found",
    }
)


def prepare_directory(directory: Path) -> None:
    """Make it, or see that it is empty or ours. Raises `Invalid` for a directory that holds something else."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if not (directory / FILE_NAME).exists():
            strangers = sorted(entry.name for entry in directory.iterdir() if entry.name not in _OURS)
            if strangers:
                raise Invalid(
                    f"{directory} is not empty ({strangers[0]} ...) and holds no {FILE_NAME}; "
                    "choose an empty or new directory for --data"
                )
        (directory / LOGS_NAME).mkdir(exist_ok=True)
    except OSError as error:
        raise Invalid(f"cannot use {directory}: {error.strerror}; choose another --data") from error


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Only one runner a directory. Raises `Conflict` naming the other. The kernel lets go when this process ends."""
    descriptor = os.open(directory / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            owner = os.pread(descriptor, 20, 0).decode(errors="replace").strip() or "unknown"
            raise Conflict(
                f"a cluster runs in {directory} already (process {owner}); stop it with `holdfast dev stop --data {directory}`"
            ) from error
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)


def ensure_secret(directory: Path) -> Path:
    """The file with the cluster's secret, readable by its owner alone; made when absent."""
    path = directory / SECRET_NAME
    if not path.exists():
        # under another name first: a runner that dies here must not leave an empty secret
        temporary = directory / f".{SECRET_NAME}.new"
        temporary.unlink(missing_ok=True)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_hex(32) + "\n")
        os.replace(temporary, path)
    return path


def empty(data: Path) -> None:
    """Remove everything in a node's data directory; the directory itself stays."""
    if not data.is_dir():
        return
    for entry in data.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()
