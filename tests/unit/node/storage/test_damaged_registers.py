"""Setting a damaged database aside: what is kept, and what a crash in the middle leaves."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.errors import Corrupt
from node.storage.damaged_registers import KEPT, clear_leftovers, set_aside
from node.storage.register_store import DATABASE_NAME, SqliteRegisterStore

FILES = (DATABASE_NAME, f"{DATABASE_NAME}-wal", f"{DATABASE_NAME}-shm")


def fill(directory: Path, content: str) -> None:
    for name in FILES:
        (directory / name).write_text(content)


def test_all_three_files_go_together(tmp_path: Path) -> None:
    fill(tmp_path, "one")
    (tmp_path / "lock").touch()
    assert set_aside(tmp_path) == tmp_path / "registers.db.damaged-1"
    assert {path.name for path in tmp_path.iterdir()} == {
        "registers.db.damaged-1",
        "registers.db.damaged-1-wal",
        "registers.db.damaged-1-shm",
        "lock",
    }


def test_the_first_and_a_few_of_the_last_are_kept(tmp_path: Path) -> None:
    for number in range(KEPT + 4):
        fill(tmp_path, f"{number}")
        set_aside(tmp_path)
    kept = sorted(path.read_text() for path in tmp_path.glob("*-wal"))
    assert kept == ["0", *(str(number) for number in range(5, KEPT + 4))]
    assert len(list(tmp_path.iterdir())) == 3 * KEPT


def test_a_log_without_its_database_is_not_taken_for_a_new_ones(tmp_path: Path) -> None:
    """The crash came after the first rename."""
    fill(tmp_path, "one")
    (tmp_path / DATABASE_NAME).rename(tmp_path / "registers.db.damaged-1")
    clear_leftovers(tmp_path)
    assert not any((tmp_path / name).exists() for name in FILES)
    assert (tmp_path / "registers.db.damaged-1-wal").read_text() == "one"


def test_nothing_is_moved_from_beside_a_database(tmp_path: Path) -> None:
    fill(tmp_path, "one")
    clear_leftovers(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == set(FILES)


async def test_a_new_store_begins_in_its_place(tmp_path: Path) -> None:
    store = SqliteRegisterStore.open(tmp_path, lambda error: None)
    store.begin_boot(b"old")
    await store.close()
    path = tmp_path / DATABASE_NAME
    path.write_bytes(path.read_bytes()[:4096] + b"\x55" * 8192)
    with pytest.raises(Corrupt):
        SqliteRegisterStore.open(tmp_path, lambda error: None)
    set_aside(tmp_path)
    store = SqliteRegisterStore.open(tmp_path, lambda error: None)
    assert store.begin_boot(b"new") == (b"new", 1, True)
    await store.close()
