"""A download's file: what a power cut leaves of it, who may read it on the way, and what a cancelled caller leaves."""

from __future__ import annotations

import asyncio
import errno
import os
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from client.file_sink import FileSink
from client.sources import BLOCK_SIZE

DEADLINE_S = 10.0


@pytest.fixture(autouse=True)
def umask() -> Iterator[None]:
    before = os.umask(0o027)
    yield
    os.umask(before)


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def part_of(folder: Path) -> Path:
    return next(path for path in folder.iterdir() if path.name.endswith(".part"))


async def test_content_and_name_are_on_the_disk_before_it_counts_as_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    fsync, replace = os.fsync, os.replace

    def noted_fsync(descriptor: int) -> None:
        facts = os.fstat(descriptor)
        steps.append("folder" if stat.S_ISDIR(facts.st_mode) else f"{facts.st_size} bytes, {facts.st_mode & 0o777:o}")
        fsync(descriptor)

    def noted_replace(source: Path, target: Path) -> None:
        steps.append("name")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "replace", noted_replace)
    sink = FileSink(tmp_path / "copy")
    await sink.write(b"whole")
    assert steps == []
    await sink.commit()
    sink.discard()
    assert steps == ["5 bytes, 640", "name", "folder"]
    assert (tmp_path / "copy").read_bytes() == b"whole"
    assert os.listdir(tmp_path) == ["copy"]


@pytest.mark.parametrize("before", [None, 0o604, 0o600])
async def test_nobody_else_reads_what_is_under_way(tmp_path: Path, before: int | None) -> None:
    target = tmp_path / "copy"
    if before is not None:
        target.write_bytes(b"old")
        target.chmod(before)
    sink = FileSink(target)
    await sink.write(b"s" * BLOCK_SIZE)
    assert mode_of(part_of(tmp_path)) == 0o600
    await sink.commit()
    assert mode_of(target) == (0o640 if before is None else before)  # 0o640: what a plain new file gets
    assert os.listdir(tmp_path) == ["copy"]


async def test_a_folder_that_cannot_be_synced_has_the_file_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync, failure = os.fsync, errno.EINVAL

    def no_folders(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(failure, os.strerror(failure))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", no_folders)
    for failure in (errno.EINVAL, errno.EIO):
        sink = FileSink(tmp_path / "copy")
        await sink.write(b"whole")
        if failure == errno.EIO:
            with pytest.raises(OSError, match="Input/output"):
                await sink.commit()
        else:
            await sink.commit()
        sink.discard()
        assert os.listdir(tmp_path) == ["copy"]


@pytest.mark.parametrize("step", ["write", "fsync", "replace"])
async def test_a_cancelled_call_ends_after_its_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """The thread still has the descriptor: closed beside it, it would be another file's by the time it is used or closed again."""
    begun, go_on = threading.Event(), threading.Event()
    whole = getattr(os, step)
    failures: list[OSError] = []

    def slow(*arguments: object) -> object:
        begun.set()
        assert go_on.wait(DEADLINE_S)
        try:
            return whole(*arguments)
        except OSError as error:
            failures.append(error)
            raise

    ended: list[bool] = []

    async def download() -> None:
        sink = FileSink(tmp_path / "copy")
        monkeypatch.setattr(os, step, slow)
        try:
            await sink.write(b"x" * BLOCK_SIZE)
            await sink.commit()
        finally:
            ended.append(go_on.is_set())
            sink.discard()

    task = asyncio.create_task(download())
    try:
        assert await asyncio.to_thread(begun.wait, DEADLINE_S)
        for _ in range(3):  # twice impatient
            task.cancel()
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        assert not task.done()
    finally:
        go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    monkeypatch.undo()
    assert (ended, failures) == ([True], [])
    assert os.listdir(tmp_path) == ([] if step == "write" else ["copy"])


async def test_a_failed_commit_closes_once_and_leaves_no_trace(tmp_path: Path) -> None:
    sink = FileSink(tmp_path / "copy")
    await sink.write(b"whole")
    (tmp_path / "copy").mkdir()  # since then: it cannot be replaced
    with pytest.raises(IsADirectoryError):
        await sink.commit()
    sink.discard()
    assert os.listdir(tmp_path) == ["copy"]
