"""The simulated disk of long runs: a crash loses nothing that was synced and anything else; failures come when they are due."""

from __future__ import annotations

import errno
import os
import random
from collections import Counter

import pytest

from tests.support.simulated.disk import PAGE, Failure, PowerCut, SimulatedDisk

OLD, NEW = b"o" * (4 * PAGE), b"n" * (4 * PAGE)


def made() -> tuple[SimulatedDisk, int]:
    """A disk with a durable file, open."""
    disk = SimulatedDisk(history=False)
    descriptor = disk.create("/d/f")
    disk.pwritev(descriptor, [OLD], 0)
    disk.fdatasync(descriptor)
    disk.fsync_directory("/d")
    return disk, descriptor


def after_crash(seed: int, *, power: bool = True) -> bytes:
    disk, descriptor = made()
    disk.pwritev(descriptor, [NEW], len(OLD))
    disk.crash(random.Random(seed), power=power)
    data = disk.bytes_of("/d/f")
    assert disk.bytes_of("/d/f") == disk.pread(disk.open("/d/f"), 1 << 20, 0)
    return data


def fate(data: bytes) -> str:
    assert data.startswith(OLD)
    rest = data[len(OLD) :]
    if not rest:
        return "dropped"
    if rest == NEW:
        return "kept"
    if NEW.startswith(rest):
        return "torn"
    assert len(rest) == len(NEW)
    pages = [rest[start : start + PAGE] for start in range(0, len(rest), PAGE)]
    return "zeroes" if all(page in {NEW[:PAGE], bytes(PAGE)} for page in pages) else "garbage"


def test_a_power_cut_loses_what_was_not_synced_in_every_way() -> None:
    fates = Counter(fate(after_crash(seed)) for seed in range(300))
    assert set(fates) == {"dropped", "kept", "torn", "zeroes", "garbage"}
    assert min(fates.values()) > 10
    assert after_crash(7) == after_crash(7)


def test_synced_bytes_survive_and_are_all_that_is_sure() -> None:
    for seed in range(100):
        disk, descriptor = made()
        disk.pwritev(descriptor, [NEW], PAGE)
        disk.fdatasync(descriptor)
        disk.pwritev(descriptor, [b"x" * PAGE], 0)
        disk.crash(random.Random(seed))
        data = disk.bytes_of("/d/f")
        assert data[PAGE:] == NEW
        assert set(data[:PAGE]) <= set(b"ox")


def test_the_end_of_the_process_alone_loses_nothing_but_syncs_nothing_either() -> None:
    assert {fate(after_crash(seed, power=False)) for seed in range(20)} == {"kept"}
    fates = set()
    for seed in range(60):
        disk, descriptor = made()
        disk.pwritev(descriptor, [NEW], len(OLD))
        disk.crash(random.Random(seed), power=False)
        disk.crash(random.Random(seed))
        fates.add(fate(disk.bytes_of("/d/f")))
    assert "dropped" in fates


@pytest.mark.parametrize("synced", [False, True])
def test_names_are_durable_when_their_folder_is(synced: bool) -> None:
    left = Counter[tuple[str, ...]]()
    for seed in range(100):
        disk, descriptor = made()
        new = disk.create("/d/new")
        disk.fdatasync(new)
        other = disk.create("/e/other")
        disk.fdatasync(other)
        disk.rename("/d/f", "/d/g")
        if synced:
            disk.fsync_directory("/d")
        disk.crash(random.Random(seed))
        paths = disk.paths()
        assert ("/d/f" in paths) != ("/d/g" in paths)
        assert disk.bytes_of("/d/f" if "/d/f" in paths else "/d/g") == OLD
        left[tuple(path for path in paths if path.startswith("/d"))] += 1
        del descriptor
    assert set(left) == (
        {("/d/g", "/d/new")} if synced else {("/d/f",), ("/d/f", "/d/new"), ("/d/g",), ("/d/g", "/d/new")}
    )


def test_an_unlinked_file_may_come_back_until_its_folder_is_synced() -> None:
    found = set()
    for seed in range(40):
        disk, _ = made()
        disk.unlink("/d/f")
        disk.crash(random.Random(seed))
        found.add("/d/f" in disk.paths())
        assert "/d/f" not in disk.paths() or disk.bytes_of("/d/f") == OLD
    assert found == {False, True}


def test_a_failed_sync_leaves_the_pages_in_memory_and_never_writes_them() -> None:
    disk, descriptor = made()
    disk.failures.append(Failure("fdatasync", errno.EIO))
    disk.pwritev(descriptor, [NEW], len(OLD))
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        disk.fdatasync(descriptor)
    assert disk.bytes_of("/d/f") == OLD + NEW
    disk.fdatasync(descriptor)  # "succeeds"
    disk.crash(random.Random(1))
    assert disk.bytes_of("/d/f") == OLD


def test_calls_fail_when_they_are_due() -> None:
    disk, descriptor = made()
    disk.failures += [Failure("pread", errno.EIO, after=2, times=2), Failure("pwritev", errno.ENOSPC, times=None)]
    outcomes = []
    for _ in range(6):
        try:
            disk.pread(descriptor, 1, 0)
            outcomes.append(0)
        except OSError as error:
            outcomes.append(error.errno or -1)
    assert outcomes == [0, 0, errno.EIO, errno.EIO, 0, 0]
    assert disk.pwritev(descriptor, [NEW], 0) == len(NEW) // 2  # as real disks do: what fits is written
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        disk.pwritev(descriptor, [NEW], 0)


def test_capacity_is_a_bound() -> None:
    disk = SimulatedDisk(capacity=1000, history=False)
    descriptor = disk.create("/f")
    assert disk.pwritev(descriptor, [bytes(900)], 0) == 900
    assert disk.pwritev(descriptor, [bytes(900)], 900) == 100
    with pytest.raises(OSError, match="full"):
        disk.pwritev(descriptor, [bytes(1)], 1000)
    assert disk.space("/").free == 0


def test_a_process_ends_at_a_call() -> None:
    disk, descriptor = made()
    disk.calls_left = 2
    disk.pwritev(descriptor, [NEW], 0)
    disk.fdatasync(descriptor)
    for _ in range(2):
        with pytest.raises(PowerCut):
            disk.pwritev(descriptor, [OLD], 0)
    disk.crash(random.Random(1))
    assert disk.bytes_of("/d/f") == NEW


def test_rot_flips_one_bit_that_stays_flipped() -> None:
    disk, _ = made()
    assert SimulatedDisk().rot(random.Random(1)) is None
    assert disk.rot(random.Random(1)) == "/d/f"
    disk.crash(random.Random(1))
    changed = [(old, new) for old, new in zip(OLD, disk.bytes_of("/d/f"), strict=True) if old != new]
    assert len(changed) == 1
    assert (changed[0][0] ^ changed[0][1]).bit_count() == 1


def test_a_long_run_keeps_only_what_is_on_the_disk() -> None:
    disk = SimulatedDisk(history=False)
    for number in range(200):
        descriptor = disk.create(f"/d/{number}")
        for _ in range(10):
            disk.pwritev(descriptor, [NEW], 0)
            disk.fdatasync(descriptor)
        disk.close(descriptor)
        if number >= 3:
            disk.unlink(f"/d/{number - 3}")
        disk.fsync_directory("/d")
    assert len(disk._contents) == 3
    assert not any(content.pending for content in disk._contents.values())
    assert not disk.history
    assert not disk._unsynced_names
