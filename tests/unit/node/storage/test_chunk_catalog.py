"""What readers see of the catalog while the writer changes it."""

from __future__ import annotations

import gc
from pathlib import Path

from node.storage.chunk_catalog import ChunkCatalog
from node.storage.chunk_index import ChunkIndex
from node.storage.chunk_state import ChunkState


def test_the_writer_may_change_a_table_during_any_garbage_collection(tmp_path: Path) -> None:
    """A collection runs destructors, and other threads with them, wherever something is allocated."""
    catalog = ChunkCatalog(ChunkIndex(str(tmp_path / "never-opened")))
    newest, _ = catalog.tables
    state = ChunkState(1, 64, 10, ())
    for number in range(1000):
        newest[number.to_bytes(32)] = state
    changes = 0

    def change(phase: str, info: dict[str, int]) -> None:
        nonlocal changes
        changes += 1
        newest[(1_000_000 + changes).to_bytes(32)] = state

    before = gc.get_threshold()
    gc.callbacks.append(change)
    gc.set_threshold(1, 1_000_000, 1_000_000)  # of the youngest only, or this would take half a minute
    try:
        found = catalog.overlay(lambda chunk, state: True)
    finally:
        gc.set_threshold(*before)
        gc.callbacks.remove(change)
    assert changes
    assert len(found) >= 1000
