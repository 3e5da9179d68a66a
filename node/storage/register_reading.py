"""What is read from ``registers.db``: registers, ranges, versions, partitions, named values; each checked.

A row that is there is checked by its own checksum. That one is *not* there is checked too, since a damaged key hides its register: a
single register that is missing by the leaf of its place in the partition's tree, which says what belongs into it; the ends of a range by
the rows around them, since a search that was misled by a damaged key comes out next to it. Tombstones are looked up by an index that
may lack some when it is damaged after it was opened: they are purged later then. All on one thread, on a connection of its own.
Raises Corrupt and SQLite's errors.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Iterator, Mapping
from contextlib import closing, contextmanager
from typing import Final

from cluster.errors import Corrupt
from cluster.merkle.digest_tree import DIGEST_MASK, DigestTree
from cluster.merkle.identity import PLACE_BITS, register_digest, register_place
from cluster.register.key import RegisterKey
from cluster.register.record import ABSENT, Record
from cluster.register.store import HeldVersion, Page, PartitionRecord
from node.storage.register_rows import (
    META_COLUMNS,
    PARTITION_COLUMNS,
    REGISTER_COLUMNS,
    Row,
    check_register,
    key_columns,
    read_meta,
    read_partition,
    read_register,
)
from node.storage.register_trees import MOST_BITS, are_integers, digest

PAGE_LIMIT_BYTES = 512 * 1024
"""Values in one page, unless a single one is larger."""

ALL_KEY: Final = "(partition, tbl, partition_key, sort_key)"
GET_REGISTER: Final = (
    f"SELECT {REGISTER_COLUMNS} FROM registers WHERE partition = ? AND tbl = ? AND partition_key = ? AND sort_key = ?"
)
SCAN_REGISTERS: Final = (
    f"SELECT {REGISTER_COLUMNS} FROM registers WHERE partition = ? AND tbl = ? AND partition_key = ? AND sort_key "
)
"""Goes on with `START` and perhaps `END`: one statement with optional conditions would make SQLite look at every register behind
the range."""

START: Final = {True: ">= ?", False: "> ?"}
"""By whether the first key may be equal."""

END: Final = " AND sort_key < ?"
IN_ORDER: Final = " ORDER BY sort_key LIMIT ?"
FIRST_PAGE: Final = (
    f"SELECT {REGISTER_COLUMNS} FROM registers WHERE partition = ? ORDER BY tbl, partition_key, sort_key LIMIT ?"
)
NEXT_PAGE: Final = (
    f"SELECT {REGISTER_COLUMNS} FROM registers WHERE partition = ? AND (tbl, partition_key, sort_key) > (?, ?, ?) "
    "ORDER BY tbl, partition_key, sort_key LIMIT ?"
)
BEHIND: Final = (
    f"SELECT {REGISTER_COLUMNS} FROM registers WHERE {ALL_KEY} > (?, ?, ?, ?) "
    "ORDER BY partition, tbl, partition_key, sort_key LIMIT 1"
)
BEFORE: Final = (
    f"SELECT {REGISTER_COLUMNS} FROM registers WHERE {ALL_KEY} < (?, ?, ?, ?) "
    "ORDER BY partition DESC, tbl DESC, partition_key DESC, sort_key DESC LIMIT 1"
)
EVERYTHING: Final = f"SELECT {REGISTER_COLUMNS} FROM registers ORDER BY partition, tbl, partition_key, sort_key"
EVERYTHING_PLACED: Final = EVERYTHING.replace(REGISTER_COLUMNS, f"{REGISTER_COLUMNS}, place")
BY_PLACE: Final = f"SELECT {REGISTER_COLUMNS} FROM registers INDEXED BY registers_by_place WHERE partition = ? AND place BETWEEN ? AND ?"
TREE_BITS: Final = "SELECT bits FROM trees WHERE partition = ?"
LEAVES: Final = "SELECT sum, items FROM leaves WHERE partition = ? AND leaf BETWEEN ? AND ?"
TOMBSTONE_COUNTS: Final = "SELECT partition, count(*) FROM registers WHERE value IS NULL GROUP BY partition"
FIRST_TOMBSTONES: Final = (
    f"SELECT {REGISTER_COLUMNS} FROM registers WHERE partition = ? AND value IS NULL "
    "ORDER BY tbl, partition_key, sort_key LIMIT ?"
)
NEXT_TOMBSTONES: Final = (
    f"SELECT {REGISTER_COLUMNS} FROM registers WHERE partition = ? AND value IS NULL "
    "AND (tbl, partition_key, sort_key) > (?, ?, ?) ORDER BY tbl, partition_key, sort_key LIMIT ?"
)


class RegisterReading:
    """See the module."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def get(self, partition: int, key: RegisterKey) -> Record:
        row = self._connection.execute(GET_REGISTER, (partition, *key_columns(key))).fetchone()
        if row is not None:
            return read_register(row)[1]
        with self._snapshot():
            held = self._sound(partition, PLACE_BITS, register_place(*key_columns(key)))
        # One that was written between the two looks is not as good as absent, but as good as one that was read.
        return held.get(key, ABSENT)

    def scan(self, partition: int, table: str, partition_key: bytes, after: bytes, prefix: bytes, limit: int) -> Page:
        end = _after_prefix(prefix)
        start = max(prefix, after)
        statement = SCAN_REGISTERS + START[prefix > after] + ("" if end is None else END) + IN_ORDER
        bounds = [start] if end is None else [start, end]
        with self._snapshot():
            page = self._page(statement, (partition, table, partition_key, *bounds), limit)
            self._check_ends(partition, RegisterKey(table, partition_key, start), page)
        return page

    def page(self, partition: int, after: RegisterKey | None, limit: int) -> Page:
        with self._snapshot():
            if after is None:
                page = self._page(FIRST_PAGE, (partition,), limit)
            else:
                page = self._page(NEXT_PAGE, (partition, *key_columns(after)), limit)
            self._check_ends(partition, after or RegisterKey("", b"", b""), page)
        return page

    def versions(self, partition: int, bits: int, prefixes: Collection[int]) -> list[HeldVersion]:
        found: list[HeldVersion] = []
        with self._snapshot():
            for prefix in sorted(prefixes):
                held = self._sound(partition, bits, prefix)
                found += [HeldVersion(key, record.version, record.value is None) for key, record in held.items()]
        return found

    def tombstone_counts(self) -> dict[int, int]:
        return dict(self._connection.execute(TOMBSTONE_COUNTS).fetchall())

    def tombstones(self, partition: int, after: RegisterKey | None, limit: int) -> list[HeldVersion]:
        if after is None:
            rows = self._connection.execute(FIRST_TOMBSTONES, (partition, limit))
        else:
            rows = self._connection.execute(NEXT_TOMBSTONES, (partition, *key_columns(after), limit))
        held = [HeldVersion(key, r.version, r.value is None) for key, r in map(read_register, rows.fetchall())]
        if not all(entry.deleted for entry in held):
            raise Corrupt(f"the index of tombstones of partition {partition} does not match its registers")
        return held

    def partitions(self) -> dict[int, PartitionRecord]:
        return dict(map(read_partition, self._connection.execute(f"SELECT {PARTITION_COLUMNS} FROM partitions")))

    def meta(self) -> dict[str, bytes]:
        return read_meta(self._connection.execute(f"SELECT {META_COLUMNS} FROM meta"))

    def check(self, trees: Mapping[int, DigestTree]) -> None:
        """Look at every register: whether all are sound and in order, and those that the trees say. Before the database is used, and
        after SQLite has found that its indexes have what its tables have: what went wrong while it was closed is found here. A damaged
        key in the middle of a partition can hide others, and damage that came out much later could meet that of another replica."""
        found = {partition: DigestTree(tree.bits) for partition, tree in trees.items()}
        last: Row = ()
        for row in self._connection.execute(EVERYTHING_PLACED):
            check_register(row)
            if row[:4] <= last:
                raise Corrupt("the registers are not in order")
            last = row[:4]
            tree, place = found.get(row[0]), row[-1]
            if tree is None or not are_integers(place) or not 0 <= place < 1 << PLACE_BITS:
                raise Corrupt(f"a register of partition {row[0]} has no place in its tree")
            tree.change(place >> (PLACE_BITS - tree.bits), register_digest(*row[1:7]), 1)
        for partition, tree in trees.items():
            if found[partition].packed(0, 1 << tree.bits) != tree.packed(0, 1 << tree.bits):
                raise Corrupt(f"partition {partition} does not hold the registers that its tree says")
        self.partitions()
        self.meta()

    # Checks

    @contextmanager
    def _snapshot(self) -> Iterator[None]:
        """Several statements that see one and the same state."""
        self._connection.execute("BEGIN")
        try:
            yield
        finally:
            if self._connection.in_transaction:
                self._connection.execute("COMMIT")

    def _sound(self, partition: int, bits: int, prefix: int) -> dict[RegisterKey, Record]:
        """All registers whose place begins with a prefix, after making sure that they are those which the tree says. Where the tree
        is not as deep, its whole leaf is looked at."""
        row = self._connection.execute(TREE_BITS, (partition,)).fetchone()
        if row is None:
            if self._connection.execute("SELECT 1 FROM registers WHERE partition = ?", (partition,)).fetchone():
                raise Corrupt(f"partition {partition} has registers but no tree")
            return {}
        depth: int = row[0]
        if not are_integers(depth) or not 0 < depth <= MOST_BITS:
            raise Corrupt(f"the tree of partition {partition} can't have {depth} bits")
        wide, wide_prefix = (bits, prefix) if bits <= depth else (depth, prefix >> (bits - depth))
        shift = depth - wide
        total = items = 0
        leaves = (partition, wide_prefix << shift, ((wide_prefix + 1) << shift) - 1)
        for leaf_sum, leaf_items in self._connection.execute(LEAVES, leaves):
            if not are_integers(leaf_sum, leaf_items):
                raise Corrupt(f"a leaf of partition {partition} is no number")
            total, items = total + leaf_sum, items + leaf_items
        held: dict[RegisterKey, Record] = {}
        low = wide_prefix << (PLACE_BITS - wide)
        rows = self._connection.execute(BY_PLACE, (partition, low, low + (1 << (PLACE_BITS - wide)) - 1)).fetchall()
        for key, record in map(read_register, rows):
            held[key] = record
            total -= digest(key, record.version)
        if total & DIGEST_MASK or items != len(held):
            raise Corrupt(f"partition {partition} does not hold the registers that its tree says")
        if wide == bits:
            return held
        shift = PLACE_BITS - bits
        return {key: r for key, r in held.items() if register_place(*key_columns(key)) >> shift == prefix}

    def _page(self, statement: str, values: tuple[object, ...], limit: int) -> Page:
        """As many of the rows as a page holds, at least one; one row more is asked for, to know whether there are more."""
        entries: list[tuple[RegisterKey, Record]] = []
        size = 0
        row: Row
        with closing(self._connection.execute(statement, (*values, limit + 1))) as rows:
            for row in rows:
                key, record = read_register(row)
                size += len(record.value or b"")
                if len(entries) == limit or (entries and size > PAGE_LIMIT_BYTES):
                    return Page(entries, True)
                entries.append((key, record))
        return Page(entries, False)

    def _check_ends(self, partition: int, start: RegisterKey, page: Page) -> None:
        """The row before the range, and where the range ended by itself the one behind it, must be sound: see the module."""
        ends = [self._connection.execute(BEFORE, (partition, *key_columns(start))).fetchone()]
        if not page.more:
            last = page.entries[-1][0] if page.entries else start
            ends.append(self._connection.execute(BEHIND, (partition, *key_columns(last))).fetchone())
        for row in ends:
            if row is not None:
                read_register(row)


def _after_prefix(prefix: bytes) -> bytes | None:
    """The least string above everything that starts with ``prefix``; None when there is none."""
    stripped = prefix.rstrip(b"\xff")
    return stripped[:-1] + bytes([stripped[-1] + 1]) if stripped else None
