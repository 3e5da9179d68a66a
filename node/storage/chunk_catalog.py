"""What the store holds: the newest states in memory (bounded), over the index, with the accounts of the log files.

Only the writer's thread (recovery, before it starts) changes a catalog, and only with effects of records that are durable. Other
threads read: `tables` is one attribute, so that a reader gets two dicts that belong together; states are immutable. A reader looks at
the tables first and at the index second: what leaves the tables is in the index before it does.

Flushing: `freeze` hands over the newest states as a snapshot and begins new tables on top; the snapshot goes into the index in
another thread; `flushed` forgets it. A snapshot that could not be written stays and is tried again.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import TypeVar

from node.storage.chunk_index import ChunkIndex, Damage, IndexReader, Snapshot
from node.storage.chunk_state import Change, ChunkState
from node.storage.chunk_trees import ChunkTrees
from node.storage.file_ledger import FileLedger

States = dict[bytes, ChunkState | None]

PREFIX_BYTES = 2
"""A table finds its chunks by the first bytes of their ids: with some 10 000 states there is hardly more than one to a prefix."""

ABSENT = object()
"""Marks a chunk of which the tables know nothing (None: they know that it is gone)."""


class Table(dict[bytes, "ChunkState | None"]):
    """States in memory. They come and are replaced, none is taken out."""

    def __init__(self) -> None:
        super().__init__()
        self.by_prefix: defaultdict[bytes, list[bytes]] = defaultdict(list)
        """The first `PREFIX_BYTES` of its chunks -> the chunks."""


class ChunkCatalog:
    """Tables, ledger, trees, counters and covered position over an index."""

    def __init__(self, index: ChunkIndex) -> None:
        self.index = index
        self.ledger = FileLedger()
        self.trees = ChunkTrees()
        self.shown_trees = self.trees
        """The trees for others to read: while tables and index are rebuilt, those of before, since what is held does not change by it."""
        self.tables: tuple[Table, Table] = (Table(), Table())
        """The newest states, and the ones being flushed under them."""
        self._bases: States = {}
        self.chunks = 0
        self.bytes = 0
        self.end_file = 0
        self.end_offset = 0
        """The log position up to which tables and index together are true."""
        self.log_since_freeze = 0
        """Bytes of log that a scan would have to read if the store stopped now, beyond what is being flushed."""
        self.damages: dict[tuple[int, int], Damage] = {}
        self._new_damages: list[Damage] = []
        self.frozen: Snapshot | None = None
        self.epoch = 0
        """Odd while tables and index are being rebuilt; an answer found under another epoch than the question's is void."""

    @property
    def pending(self) -> int:
        newest, flushing = self.tables
        return len(newest) + len(flushing)

    def find(self, chunk: bytes) -> ChunkState | object | None:
        """The state in the tables: None if it is gone, ABSENT if only the index can tell. Any thread."""
        newest, flushing = self.tables
        state = newest.get(chunk, ABSENT)
        return flushing.get(chunk, ABSENT) if state is ABSENT else state

    def bases(self, chunks: Iterable[bytes], reader: IndexReader) -> States:
        """The state of each chunk, for a `Change` to start from."""
        newest, flushing = self.tables
        found: States = {}
        missing: list[bytes] = []
        for chunk in chunks:
            if chunk in newest:
                found[chunk] = newest[chunk]
            elif chunk in flushing:
                found[chunk] = flushing[chunk]
            else:
                missing.append(chunk)
        if missing:
            found.update(reader.find_many(missing))
        return found

    def merge(self, change: Change, file: int, end: int) -> None:
        """Take over the effects of durable records, the last of which ends at `end` of a log file."""
        newest, _ = self.tables
        bases = self._bases
        before = change.bases
        by_prefix = newest.by_prefix
        for chunk in change.states:
            if chunk not in newest:
                bases[chunk] = before[chunk]
                by_prefix[chunk[:PREFIX_BYTES]].append(chunk)
        newest.update(change.states)
        self.ledger.merge(change)
        self.trees.change(change.leaves)
        self.chunks += change.chunks
        self.bytes += change.bytes
        self.advance(file, end)

    def advance(self, file: int, end: int) -> None:
        """Up to here the log is accounted for."""
        self.log_since_freeze += end - self.end_offset if file == self.end_file else end
        self.end_file, self.end_offset = file, end

    def set_aside(self, damage: Damage) -> bool:
        """Remember a damaged place; False when it is known already."""
        place = (damage.file, damage.offset)
        if place in self.damages:
            return False
        self.damages[place] = damage
        self._new_damages.append(damage)
        return True

    def freeze(self, age_ms: int) -> Snapshot:
        """Hand over what the index lacks. Only one snapshot at a time."""
        assert self.frozen is None
        newest, flushing = self.tables
        assert not flushing
        ledger = self.ledger
        self.frozen = Snapshot(
            states=newest,
            bases=self._bases,
            covered_file=self.end_file,
            covered_offset=self.end_offset,
            age_ms=age_ms,
            chunks=self.chunks,
            bytes=self.bytes,
            accounts=[
                replace(ledger.accounts[number], covers=set(ledger.accounts[number].covers))
                for number in ledger.changed
            ],
            removed=sorted(ledger.removed),
            damages=self._new_damages,
            trees=self.trees.freeze(),
            tree_sum=self.trees.sum,
            tree_count=self.trees.count,
        )
        ledger.changed = set()
        ledger.removed = set()
        self._new_damages = []
        self._bases = {}
        self.tables = (Table(), newest)
        self.log_since_freeze = 0
        return self.frozen

    def flushed(self) -> None:
        """The frozen snapshot is in the index."""
        assert self.frozen is not None
        self.frozen = None
        self.tables = (self.tables[0], Table())

    def forget(self) -> None:
        """Begin from nothing, over an empty index."""
        self.ledger = FileLedger()
        self.trees = ChunkTrees()
        self.tables = (Table(), Table())
        self._bases = {}
        self.chunks = self.bytes = self.end_file = self.end_offset = self.log_since_freeze = 0
        self.damages = {}
        self._new_damages = []
        self.frozen = None

    def complete(self) -> None:
        """Tables and index now say all that the log says."""
        self.ledger.check()
        self.shown_trees = self.trees

    def overlay(self, keep: Callable[[bytes, ChunkState | None], bool]) -> States:
        """The states in the tables that pass, newest wins. Any thread; take it before looking at the index."""
        newest, flushing = self.tables
        # `copy` is one step for other threads. `list(items())` is not: it makes a tuple an entry, any of which may start a garbage
        # collection, and that lets the writer in.
        found = {chunk: state for chunk, state in flushing.copy().items() if keep(chunk, state)}
        found.update({chunk: state for chunk, state in newest.copy().items() if keep(chunk, state)})
        return found

    def overlay_of(self, prefix: bytes) -> States:
        """As `overlay`, for the chunks whose ids begin with these `PREFIX_BYTES`, without looking at all the others."""
        found: States = {}
        newest, flushing = self.tables
        for table in (flushing, newest):
            for chunk in list(table.by_prefix.get(prefix, ())):
                if chunk in table:  # its state comes just after its prefix
                    found[chunk] = table[chunk]
        return found


Key = TypeVar("Key", bytes, tuple[bytes, bytes])


def merged_page(
    fetch: Callable[[Key | None, int], Sequence[Key]],
    known: Callable[[Key], bool],
    extra: Sequence[Key],
    after: Key | None,
    limit: int,
) -> list[Key]:
    """A page of `limit` ids (or pairs of them), ascending: those of the index (`fetch(after, limit)`, ascending) that the tables know
    nothing about (`known`), merged with those that the tables add (`extra`, ascending). Shorter only when nothing follows."""
    page: list[Key] = []
    position = 0
    while len(page) < limit:
        wanted = limit - len(page)
        rows = fetch(after, wanted)
        fresh = [chunk for chunk in rows if not known(chunk)]
        last = rows[-1] if len(rows) == wanted else None  # beyond it the index may have more
        while position < len(extra) and (last is None or extra[position] <= last):
            fresh.append(extra[position])
            position += 1
        fresh.sort()
        page += fresh
        if last is None:
            break
        after = last
    return page[:limit]
