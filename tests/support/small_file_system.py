"""A real ext4 file system of a few MiB, to be filled to its last block. Needs root, mkfs.ext4, loop devices."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

FILL_PIECES = (1 << 20, 64 << 10, 4096, 256, 16, 1)
COMMAND_TIMEOUT_S = 60


@contextmanager
def small_file_system(directory: Path, size: int) -> Iterator[Path]:
    """Mounts one under `directory`; it is gone afterwards whatever happens. Skips the test where that can't be had, but not in CI."""
    image, mount = directory / "image", directory / "mount"
    mount.mkdir()
    with image.open("wb") as file:
        file.truncate(size)
    problem = _problem()
    if problem is None:
        try:
            _run("mkfs.ext4", "-q", "-F", "-m", "0", "-J", "size=4", str(image))
            _run("mount", "-o", "loop", str(image), str(mount))  # the loop device goes with the mount
        except subprocess.CalledProcessError as error:
            problem = f"no loop mount: {error.stderr.decode(errors='replace').strip()}"
    if problem is not None:
        if os.environ.get("CI"):
            pytest.fail(problem)
        pytest.skip(problem)
    try:
        yield mount
    finally:
        _run("umount", "--lazy", str(mount))
        image.unlink()


def _problem() -> str | None:
    if os.geteuid() != 0:
        return "mounting needs root"
    missing = [tool for tool in ("mkfs.ext4", "mount", "umount") if shutil.which(tool) is None]
    return f"not installed: {', '.join(missing)}" if missing else None


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, timeout=COMMAND_TIMEOUT_S)


def fill(path: Path) -> None:
    """Somebody else's file, until there is not one block left. What is given back meanwhile is taken too, again in large pieces."""
    place = written = 0
    with path.open("ab", buffering=0) as file:
        while place < len(FILL_PIECES):
            try:
                written += file.write(bytes(FILL_PIECES[place]))
                os.fdatasync(file.fileno())
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
                place, written = place + 1, 0
                continue
            if place and written >= FILL_PIECES[place - 1]:
                place, written = place - 1, 0
