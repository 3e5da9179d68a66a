"""SQLite under a simulated machine: a crashed index is an earlier state, or known to be damaged; commits fail as a disk's do."""

from __future__ import annotations

import asyncio
import errno
import os
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from cluster.errors import Corrupt, HoldfastError, NoSpace
from cluster.register.ballot import Version
from cluster.register.key import RegisterKey
from cluster.register.record import Record
from cluster.register.store import RegisterWrite
from node.storage.chunk_index import IndexDamaged, Snapshot
from node.storage.chunk_state import ChunkState, ReferenceState
from node.storage.chunk_trees import TreeChanges
from node.storage.register_store import SqliteRegisterStore
from tests.support.simulated import sqlite_files
from tests.support.simulated.lanes import SimulatedLanes
from tests.support.simulated.loop import run_virtual
from tests.support.simulated.sqlite_files import RegisterFiles, SimulatedIndex, new_directory

STEPS = 6


def snapshot(step: int) -> Snapshot:
    chunk = step.to_bytes(32)
    state = ChunkState(1, 100 * step, 10, (ReferenceState(bytes(16), 1, 1),), -1, 0)
    return Snapshot({chunk: state}, {chunk: None}, 1, step, step, step, step, trees=TreeChanges())


def covered_after_crash(path: Path, seed: int, *, durable: int | None = None, power: bool = True) -> tuple[str, int]:
    """What happened to an index in a crash after `STEPS` transactions, and which it says was its last; -1 when it is found damaged.
    After ``durable`` of them it was made durable."""
    index = SimulatedIndex(str(path / f"index-{seed}"))
    index.create()
    for step in range(1, STEPS + 1):
        index.write(snapshot(step))
        if step == durable:
            index.checkpoint()
    fate = index.crash(random.Random(seed), power=power)
    try:
        state = index.open()
        held = index.reader().find_many([step.to_bytes(32) for step in range(1, STEPS + 1)])
    except IndexDamaged:
        return fate, -1
    finally:
        index.close()
    covered = state.covered_offset
    if fate != "damaged":
        assert [chunk for chunk, found in held.items() if found] == [n.to_bytes(32) for n in range(1, covered + 1)]
    return fate, covered


def test_an_index_goes_back_by_whole_transactions_or_is_found_damaged(tmp_path: Path) -> None:
    outcomes: dict[str, Counter[int]] = {}
    for seed in range(60):
        fate, covered = covered_after_crash(tmp_path, seed)
        outcomes.setdefault(fate, Counter())[covered] += 1
    assert set(outcomes) == {"kept", "older", "torn", "missing", "damaged"}
    assert set(outcomes["kept"]) == {STEPS}
    assert set(outcomes["missing"]) == {-1}
    assert -1 in outcomes["damaged"]
    assert len(outcomes["older"]) > 3
    assert -1 not in outcomes["older"]
    assert -1 not in outcomes["torn"]
    assert min(outcomes["torn"]) < STEPS


def test_what_was_made_durable_is_not_taken_back(tmp_path: Path) -> None:
    found = {covered_after_crash(tmp_path, seed, durable=3)[1] for seed in range(40)}
    assert found - {-1} <= {3, 4, 5, 6}
    assert 3 in found
    assert {covered_after_crash(tmp_path, seed, power=False)[1] for seed in range(100, 105)} == {STEPS}


KEY = RegisterKey("t", b"p", b"s")


def write(number: int) -> RegisterWrite:
    return RegisterWrite(1, KEY, Record(Version(1, "n", number), b"%d" % number))


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
@pytest.mark.parametrize("kept", [False, True])
def test_a_commit_that_fails_is_reported_as_production_does(tmp_path: Path, number: int, kept: bool) -> None:
    async def main() -> None:
        files = RegisterFiles(tmp_path)
        told: list[HoldfastError] = []

        def opened() -> SqliteRegisterStore:
            files.prepare()
            lanes = SimulatedLanes(random.Random(1))
            return SqliteRegisterStore.open(tmp_path, told.append, lanes=lanes, connect=files.connect)

        store = opened()
        await store.commit([write(1)])
        files.faults.fail(number, after=1, kept=kept)
        await store.commit([write(2)])
        expected = NoSpace if number == errno.ENOSPC else HoldfastError
        with pytest.raises(HoldfastError) as caught:
            await store.commit([write(3)])
        assert type(caught.value) is expected
        with pytest.raises(expected):
            await store.commit([write(4)])
        assert [type(error) for error in told] == [expected]
        await store.close()
        store = opened()
        assert await store.get(1, KEY) == write(3 if kept else 2).record
        await store.close()

    run_virtual(main())


def test_room_is_made_for_a_commit(tmp_path: Path) -> None:
    async def main() -> None:
        files = RegisterFiles(tmp_path)
        files.prepare()
        asked: list[int] = []

        def make_room() -> bool:
            asked.append(1)
            return len(asked) < 4

        told: list[HoldfastError] = []
        lanes = SimulatedLanes(random.Random(1))
        store = SqliteRegisterStore.open(tmp_path, told.append, make_room, lanes=lanes, connect=files.connect)
        files.faults.fail(errno.ENOSPC, times=3)
        await store.commit([write(1)])
        assert len(asked) == 3
        assert await store.get(1, KEY) == write(1).record
        files.faults.fail(errno.ENOSPC, times=None)
        with pytest.raises(NoSpace):
            await store.commit([write(2)])
        assert len(told) == 1
        await asyncio.wait_for(store.close(), 1)

    run_virtual(main())


def test_rot_is_found_or_harmless(tmp_path: Path) -> None:
    """A flipped bit never changes what a store says."""

    async def main() -> int:
        chance = random.Random(3)
        found = 0
        for attempt in range(25):
            directory = tmp_path / str(attempt)
            directory.mkdir()
            files = RegisterFiles(directory)
            files.prepare()
            told: list[HoldfastError] = []
            lanes = SimulatedLanes(random.Random(1))
            store = SqliteRegisterStore.open(directory, told.append, lanes=lanes, connect=files.connect)
            await store.commit([write(1)])
            await store.close()
            files.rot(chance, chance.choice([1, 2]))
            try:
                store = SqliteRegisterStore.open(directory, told.append, lanes=lanes, connect=files.connect)
                assert await store.get(1, KEY) == write(1).record
            except Corrupt:
                found += 1
                continue
            await store.close()
        return found

    assert run_virtual(main()) >= 20, "flips fall on bytes that say something"


def test_files_of_killed_runs_go_and_those_of_living_ones_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_files, "memory_directory", lambda: str(tmp_path))
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        ended.wait()
    left = tmp_path / f"simulated-{ended.pid}-abc"
    left.mkdir()
    (left / "registers.db").touch()
    other = tmp_path / f"simulated-{os.getppid()}-abc"
    other.mkdir()
    with new_directory() as made:
        assert not left.exists()
        assert other.exists()
        assert Path(made).parent == tmp_path
