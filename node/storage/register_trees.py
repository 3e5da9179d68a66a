"""The Merkle trees over the registers, and the table that keeps their leaves.

Two owners, never at once: the event loop reads the trees and takes a step's changes over when its transaction is durable; the writer
thread reads them while it makes the next step, which begins only after that. Invariants:

* a leaf's row says how many registers of `register_place` fall into it and the sum of their digests, in every committed state;
* a partition without registers has no tree; a tree only gets deeper: at more than `ITEMS_PER_LEAF` registers a leaf it is made anew from
  the rows with `GROWTH_BITS` more, up to `MOST_BITS`, in the same transaction.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass, field
from typing import Final

from cluster.errors import Corrupt
from cluster.merkle.digest_tree import DIGEST_MASK, DigestTree
from cluster.merkle.identity import PLACE_BITS, register_digest, register_place
from cluster.register.ballot import Version
from cluster.register.key import RegisterKey
from node.storage.register_rows import REGISTER_COLUMNS, read_register

FIRST_BITS: Final = 6
"""Of a partition's first tree: 1 KiB of sums and counts; with 1024 partitions 1 MiB."""

GROWTH_BITS: Final = 4
"""A level of `cluster.merkle.descent`."""

MOST_BITS: Final = 18
"""4 MiB for a partition of more than 65 000 registers."""

ITEMS_PER_LEAF: Final = 4
"""What a comparison reads needlessly per difference, against memory."""

_SIGN: Final = 1 << 63

ROWS_OF_PARTITION: Final = f"SELECT {REGISTER_COLUMNS} FROM registers WHERE partition = ?"


def leaf_of(place: int, bits: int) -> int:
    return place >> (PLACE_BITS - bits)


def digest(key: RegisterKey, version: Version) -> int:
    return register_digest(key.table, key.partition, key.sort, *version)


class RegisterTrees:
    """See the module."""

    def __init__(self) -> None:
        self.trees: dict[int, DigestTree] = {}
        self._items: dict[int, int] = {}

    def load(self, connection: sqlite3.Connection) -> None:
        """Read what is stored. Raises Corrupt."""
        for partition, bits in connection.execute("SELECT partition, bits FROM trees"):
            if bits not in range(FIRST_BITS, MOST_BITS + 1, GROWTH_BITS):
                raise Corrupt(f"the tree of partition {partition} can't have {bits} bits")
            self.trees[partition] = DigestTree(bits)
            self._items[partition] = 0
        for partition, leaf, total, items in connection.execute("SELECT partition, leaf, sum, items FROM leaves"):
            tree = self.trees.get(partition)
            if tree is None or not are_integers(leaf, total, items) or not 0 <= leaf < 1 << tree.bits or items < 1:
                raise Corrupt(f"a leaf of partition {partition} has no place in its tree")
            tree.set_leaf(leaf, total & DIGEST_MASK, items)
            self._items[partition] += items

    def begin(self, connection: sqlite3.Connection) -> TreeStep:
        """Start the changes of one transaction."""
        return TreeStep(self, connection)

    def items(self, partition: int) -> int:
        return self._items.get(partition, 0)

    def take(self, step: TreeStep) -> None:
        """The step's transaction is durable."""
        for partition, change in step.changes.items():
            if change.made_anew is not None or change.cleared:
                self.trees.pop(partition, None)
                self._items[partition] = 0
            if change.made_anew is not None:
                self.trees[partition] = change.made_anew
            elif change.leaves:
                tree = self.trees.setdefault(partition, DigestTree(FIRST_BITS))
                for leaf, (total, items) in change.leaves.items():
                    tree.change(leaf, total, items)
            self._items[partition] = change.items


@dataclass(slots=True)
class _PartitionChange:
    bits: int
    items: int
    cleared: bool = False
    leaves: dict[int, list[int]] = field(default_factory=dict)
    """What is added to the sum and the count of each leaf."""
    made_anew: DigestTree | None = None


class TreeStep:
    """The changes that one transaction makes to the trees; made by the thread that writes."""

    def __init__(self, trees: RegisterTrees, connection: sqlite3.Connection) -> None:
        self._trees = trees
        self._connection = connection
        self.changes: dict[int, _PartitionChange] = {}

    def change(self, partition: int, key: RegisterKey, old: Version | None, new: Version | None) -> None:
        """A register went from one version to another; None where there is no row."""
        change = self._of(partition)
        leaf = leaf_of(register_place(key.table, key.partition, key.sort), change.bits)
        added = (0 if new is None else digest(key, new)) - (0 if old is None else digest(key, old))
        items = (new is not None) - (old is not None)
        entry = change.leaves.setdefault(leaf, [0, 0])
        entry[0] = (entry[0] + added) & DIGEST_MASK
        entry[1] += items
        change.items += items

    def clear(self, partition: int) -> None:
        """The partition's registers are gone, those changed in this step too."""
        self._connection.execute("DELETE FROM leaves WHERE partition = ?", (partition,))
        self._connection.execute("DELETE FROM trees WHERE partition = ?", (partition,))
        self.changes[partition] = _PartitionChange(FIRST_BITS, 0, cleared=True)

    def write(self) -> None:
        """Bring the table up to date, last before the commit, when the registers' rows are. Raises Corrupt when a leaf can't be true."""
        for partition, change in self.changes.items():
            if not change.leaves:
                continue
            base = None if change.cleared else self._trees.trees.get(partition)
            if base is None:
                self._connection.execute("INSERT INTO trees VALUES (?, ?)", (partition, change.bits))
            if change.items > ITEMS_PER_LEAF << change.bits and change.bits < MOST_BITS:
                self._make_anew(partition, change)
            else:
                self._write_leaves(partition, change, base)

    def _of(self, partition: int) -> _PartitionChange:
        change = self.changes.get(partition)
        if change is None:
            tree = self._trees.trees.get(partition)
            bits = FIRST_BITS if tree is None else tree.bits
            change = self.changes[partition] = _PartitionChange(bits, self._trees.items(partition))
        return change

    def _write_leaves(self, partition: int, change: _PartitionChange, base: DigestTree | None) -> None:
        rows: list[tuple[int, int, int, int]] = []
        for leaf, (added, more) in change.leaves.items():
            total, items = (0, 0) if base is None else base.leaf(leaf)
            total, items = (total + added) & DIGEST_MASK, items + more
            if items > 0:
                rows.append((partition, leaf, _signed(total), items))
            elif items or total:
                raise Corrupt(f"a leaf of partition {partition} does not match its registers")
            else:
                self._connection.execute("DELETE FROM leaves WHERE partition = ? AND leaf = ?", (partition, leaf))
        self._connection.executemany("INSERT OR REPLACE INTO leaves VALUES (?, ?, ?, ?)", rows)

    def _make_anew(self, partition: int, change: _PartitionChange) -> None:
        bits = change.bits
        while change.items > ITEMS_PER_LEAF << bits and bits < MOST_BITS:
            bits += GROWTH_BITS
        tree = DigestTree(bits)
        for row in self._connection.execute(ROWS_OF_PARTITION, (partition,)):
            key, record = read_register(row)
            place = register_place(key.table, key.partition, key.sort)
            tree.change(leaf_of(place, bits), digest(key, record.version), 1)
        if tree.total != change.items:
            raise Corrupt(f"the leaves of partition {partition} do not match its registers")
        self._connection.execute("UPDATE trees SET bits = ? WHERE partition = ?", (bits, partition))
        self._connection.execute("DELETE FROM leaves WHERE partition = ?", (partition,))
        self._connection.executemany(
            "INSERT INTO leaves VALUES (?, ?, ?, ?)",
            [(partition, leaf, _signed(total), items) for leaf in tree.filled() for total, items in [tree.leaf(leaf)]],
        )
        change.made_anew = tree


def are_integers(*columns: object) -> bool:
    """Whether columns that were written as integers still are: damage may have made anything of them."""
    return all(type(column) is int for column in columns)


def _signed(total: int) -> int:
    """As SQLite's 64-bit integers hold it."""
    return total - 2 * _SIGN if total >= _SIGN else total
