"""Whose a data directory is, and that one daemon uses it."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.chunks.store import StoreFailed
from cluster.doors.clock import SystemClock
from cluster.errors import Busy, HoldfastError, Invalid, WrongCluster
from node import data_watch, mounts
from node.data_directory import LOCK, MARKER, PROBE, DataDirectory
from node.data_watch import DataWatch


def test_it_is_marked_once_and_found_again(tmp_path: Path) -> None:
    with DataDirectory(tmp_path / "new" / "n1", "n1") as directory:
        assert json.loads((directory.path / MARKER).read_text())["name"] == "n1"
    with DataDirectory(tmp_path / "new" / "n1", "n1"):
        pass


def test_the_cluster_is_remembered_for_ever(tmp_path: Path) -> None:
    first, second = b"1" * 16, b"2" * 16
    with DataDirectory(tmp_path, "n1") as directory:
        assert directory.cluster_id == b""
        directory.join(first)
        directory.join(second)
        assert directory.cluster_id == first
        assert directory.fault() is None
    with DataDirectory(tmp_path, "n1") as directory:
        assert directory.cluster_id == first
        assert directory.fault() is None
    assert not (tmp_path / f"{MARKER}.new").exists()


def test_a_cluster_that_could_not_be_written_is_not_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with DataDirectory(tmp_path, "n1") as directory:
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", _fail)
            with pytest.raises(OSError, match="fails"):
                directory.join(b"1" * 16)
        assert directory.cluster_id == b""
        directory.join(b"2" * 16)
    with DataDirectory(tmp_path, "n1") as directory:
        assert directory.cluster_id == b"2" * 16


def _fail(_: int) -> None:
    raise OSError(errno.EIO, "the disk fails")


def test_a_second_daemon_is_refused_until_the_first_ends(tmp_path: Path) -> None:
    with DataDirectory(tmp_path, "n1"), pytest.raises(Invalid, match="in use"), DataDirectory(tmp_path, "n1"):
        pass
    with DataDirectory(tmp_path, "n1"):
        pass


def test_another_nodes_directory_is_refused_and_left_alone(tmp_path: Path) -> None:
    with DataDirectory(tmp_path, "n1"):
        pass
    with pytest.raises(WrongCluster, match="belongs to node 'n1'"), DataDirectory(tmp_path, "n2"):
        pass
    with DataDirectory(tmp_path, "n1"):
        pass


def test_foreign_content_is_not_taken_for_an_empty_disk(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    with pytest.raises(Invalid, match="photos"), DataDirectory(tmp_path, "n1"):
        pass
    assert not (tmp_path / MARKER).exists()


@pytest.mark.parametrize(
    "marker",
    [
        "",
        "{",
        '{"format": 99, "name": "n1"}',
        '{"format": 1, "name": "n1", "cluster": "x"}',
        '{"format": 1, "name": "n1", "cluster": 7}',
    ],
)
def test_a_marker_that_makes_no_sense_is_said(tmp_path: Path, marker: str) -> None:
    (tmp_path / MARKER).write_text(marker)
    with pytest.raises(Invalid), DataDirectory(tmp_path, "n1"):
        pass


def failing(number: int) -> Callable[..., None]:
    """In the place of a system call on a disk that gives this error."""

    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    return fail


@pytest.mark.parametrize(
    ("number", "advice"),
    [(errno.EROFS, "mounted read-only"), (errno.EIO, "its disk fails"), (errno.EACCES, "uid")],
)
def test_a_directory_that_cannot_be_written_is_refused_with_advice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, advice: str
) -> None:
    with DataDirectory(tmp_path, "n1"):
        pass
    monkeypatch.setattr(os, "fsync", failing(number))
    with pytest.raises(Invalid, match=advice), DataDirectory(tmp_path, "n1"):
        pass
    with pytest.raises(Invalid, match=advice), DataDirectory(tmp_path / "new", "n1"):
        pass
    monkeypatch.undo()
    with DataDirectory(tmp_path, "n1"):  # and the lock was let go
        pass


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_no_reason_to_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    with DataDirectory(tmp_path, "n1"):
        pass
    monkeypatch.setattr(os, "fsync", failing(number))
    with DataDirectory(tmp_path, "n1") as directory:
        assert directory.fault() is None


def test_a_directory_without_its_disk_is_not_taken_for_an_empty_one(tmp_path: Path) -> None:
    """The trick of the operations guide."""
    (tmp_path / "NOT_MOUNTED").touch()
    with pytest.raises(Invalid, match=r"NOT_MOUNTED.*mount its disk"), DataDirectory(tmp_path, "n1"):
        pass


def move_away(path: Path) -> None:
    path.rename(path.with_name("moved"))


def move_away_and_leave_an_empty_one(path: Path) -> None:
    move_away(path)
    path.mkdir()


def put_a_copy_in_its_place(path: Path) -> None:
    move_away(path)
    shutil.copytree(path.with_name("moved"), path)


def replace_the_lock(path: Path) -> None:
    (path / LOCK).unlink()
    (path / LOCK).touch()


def edit_the_marker(path: Path) -> None:
    (path / MARKER).write_text((path / MARKER).read_text() + " ")


DAMAGES = [
    (move_away, "is gone"),
    (move_away_and_leave_an_empty_one, "is gone"),
    (put_a_copy_in_its_place, "is not the one"),
    (replace_the_lock, "is not the one"),
    (edit_the_marker, "is not the one"),
    (lambda path: (path / MARKER).unlink(), "is gone"),
    (lambda path: (path / LOCK).unlink(), "is gone"),
]


@pytest.mark.parametrize(("damage", "words"), DAMAGES)
def test_what_becomes_of_it_is_noticed(tmp_path: Path, damage: Callable[[Path], None], words: str) -> None:
    with DataDirectory(tmp_path / "n1", "n1") as directory:
        assert directory.fault() is None
        (directory.path / PROBE).unlink()  # nothing that matters
        assert directory.fault() is None
        damage(directory.path)
        fault = directory.fault()
        assert fault is not None
        assert words in fault
        assert "start the node again" in fault
    assert directory.fault() is None  # given up on purpose


@pytest.mark.parametrize("number", [errno.EROFS, errno.EIO])
def test_a_disk_that_takes_no_more_writes_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    with DataDirectory(tmp_path, "n1") as directory:
        monkeypatch.setattr(os, "fsync", failing(number))
        fault = directory.fault()
        assert fault is not None
        assert "can't be written any more" in fault


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM])
@pytest.mark.parametrize("call", ["open", "fsync"])
def test_want_of_descriptors_is_no_fault_of_the_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, call: str
) -> None:
    with DataDirectory(tmp_path, "n1") as directory:
        with monkeypatch.context() as patched:
            patched.setattr(os, call, failing(number))
            with pytest.raises(Busy, match="can't be looked at now"):
                directory.fault()
        assert directory.fault() is None


def test_the_marker_that_cannot_be_opened_for_want_of_descriptors_tells_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with DataDirectory(tmp_path, "n1") as directory:
        monkeypatch.setattr(Path, "open", failing(errno.EMFILE))
        with pytest.raises(Busy):
            directory.fault()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_watch, "WATCH_INTERVAL_S", 0.01)
    monkeypatch.setattr(data_watch, "SLOW_S", 0.1)


async def eventually(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - the state of a job, which has no event for tests
            await asyncio.sleep(0.005)


@pytest.mark.usefixtures("quick")
async def test_the_watch_says_once_what_is_wrong(tmp_path: Path) -> None:
    failures: list[HoldfastError] = []
    with DataDirectory(tmp_path / "n1", "n1") as directory:
        watch = DataWatch(directory, SystemClock(), failures.append)
        task = asyncio.create_task(watch.run())
        await eventually(lambda: (directory.path / PROBE).stat().st_mtime_ns > before(directory))
        assert failures == []
        move_away(directory.path)
        async with asyncio.timeout(10):
            await task
    assert [type(failure) for failure in failures] == [StoreFailed]
    assert watch.last_error == failures[0].message


@pytest.mark.usefixtures("quick")
async def test_the_watch_goes_on_when_nothing_can_be_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failures: list[HoldfastError] = []
    with DataDirectory(tmp_path, "n1") as directory:
        watch = DataWatch(directory, SystemClock(), failures.append)
        task = asyncio.create_task(watch.run())
        with monkeypatch.context() as patched:
            patched.setattr(Path, "open", failing(errno.EMFILE))
            await eventually(lambda: watch.last_error)
            assert "can't be looked at now" in (watch.last_error or "")
        await eventually(lambda: watch.last_error is None)
        assert not task.done()
        (directory.path / MARKER).unlink()
        async with asyncio.timeout(10):
            await task
    assert [type(failure) for failure in failures] == [StoreFailed]


def before(directory: DataDirectory) -> int:
    """When the node took the directory."""
    return (directory.path / MARKER).stat().st_mtime_ns


@pytest.mark.usefixtures("quick")
async def test_a_disk_that_hangs_hangs_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hanging, go_on = threading.Event(), threading.Event()

    def hang(_: int) -> None:
        hanging.set()
        assert go_on.wait(20)

    failures: list[HoldfastError] = []
    with DataDirectory(tmp_path, "n1") as directory:
        monkeypatch.setattr(os, "fsync", hang)
        watch = DataWatch(directory, SystemClock(), failures.append)
        task = asyncio.create_task(watch.run())
        try:
            await eventually(lambda: watch.last_error)
            assert hanging.is_set()
            assert watch.last_error is not None
            assert "has not answered" in watch.last_error
        finally:
            go_on.set()
        await eventually(lambda: watch.last_error is None)
        task.cancel()
        await asyncio.wait([task])
    assert failures == []


TABLE = r"""22 27 0:21 / /proc rw,relatime - proc proc rw
31 27 8:1 /a /srv/disk\0401 rw,relatime shared:1 - ext4 /dev/sda1 rw
32 27 8:1 / / rw - ext4 /dev/sda1 rw

nonsense
"""


def test_mount_points_are_read_from_the_table() -> None:
    assert mounts.mount_points(TABLE) == {"/proc", "/srv/disk 1", "/"}


def test_a_required_mount(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "disk" / "n1"
    monkeypatch.setattr(mounts, "_table", lambda: f"1 1 8:1 / {os.path.realpath(tmp_path)}/disk rw - ext4 /dev/sda1 rw")
    mounts.require_mount(place, wanted=False)
    mounts.require_mount(place, tmp_path / "disk")
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    mounts.require_mount(tmp_path / "link" / "n1", tmp_path / "link")
    with pytest.raises(Invalid, match="does not lie below"):
        mounts.require_mount(tmp_path / "other", tmp_path / "disk")
    monkeypatch.setattr(mounts, "_table", lambda: "")
    (tmp_path / "disk").mkdir()
    with pytest.raises(Invalid, match="is not mounted") as caught, DataDirectory(place, "n1", tmp_path / "disk"):
        pass
    assert caught.value.details["field"] == "require_mount"
    assert not place.exists()  # nothing was made on the wrong disk


def test_any_mount_but_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    mounts.require_mount(Path("/proc/n1"), wanted=True)
    with pytest.raises(Invalid, match="file system of /"):
        mounts.require_mount(Path("/nowhere/at/all"), wanted=True)
    monkeypatch.setattr(mounts, "_table", lambda: "1 1 8:1 / /nowhere rw - ext4 /dev/sda1 rw")
    mounts.require_mount(Path("/nowhere"), wanted=True)
