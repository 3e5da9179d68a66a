"""The trees over the chunks held and their references, by which replicas are compared; one for each number of copies.

A chunk belongs to the tree of its *copies*, the largest ``replicas`` among its references: that many nodes of its partition's preference
list keep it. It counts 1 at its leaf, and the digests of all its references are added there. A chunk without references is in no tree.

What changes is computed where states change (`chunk_state.Change`), taken over when the records are durable (`ChunkCatalog.merge`), and
goes into the index in the transaction that carries the states. Rows are runs of `RUN_LEAVES` leaves: loading and writing cost little per
leaf. One thread changes the trees, others read them; `by_copies` is exchanged, never changed, when a tree comes or goes.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple

from cluster.merkle.digest_tree import DIGEST_MASK, DigestTree
from cluster.merkle.identity import CHUNK_LEAF_BITS
from node.storage.chunk_state import LeafChanges

RUN_LEAVES: Final = 256
"""Leaves in a row of the index: 4 KiB, a page of the database, of which SQLite never writes less."""


class TreeRun(NamedTuple):
    """The leaves ``run * RUN_LEAVES`` and following of the tree of ``copies``, packed; empty if all of them are."""

    copies: int
    run: int
    leaves: bytes


_EMPTY_RUN: Final = bytes(16 * RUN_LEAVES)


class ChunkTrees:
    """The trees, what of them the index lacks, and the totals over all leaves."""

    def __init__(self) -> None:
        self.by_copies: dict[int, DigestTree] = {}
        self.sum = 0
        """Of all digests, modulo 2^64."""
        self.count = 0
        """Of the chunks that have references."""
        self._sizes: dict[int, int] = {}
        """Copies -> chunks in the tree."""
        self._changed: set[tuple[int, int]] = set()
        """(copies, leaf) in which the index differs."""

    @classmethod
    def loaded(cls, rows: Iterable[TreeRun]) -> ChunkTrees:
        """As the index has them."""
        trees = cls()
        for copies, run, leaves in rows:
            trees._tree(copies).unpack(run * RUN_LEAVES, leaves)
        for copies, tree in trees.by_copies.items():
            trees._sizes[copies] = tree.total
            trees.count += trees._sizes[copies]
            trees.sum = (trees.sum + tree.sum(0, 0)) & DIGEST_MASK
        return trees

    def change(self, changes: LeafChanges) -> None:
        """Take over what durable records change."""
        total = self.sum
        for (copies, leaf), (digest, count) in changes.items():
            tree = self.by_copies.get(copies) or self._tree(copies)
            tree.change(leaf, digest, count)
            total += digest
            if count:
                self.count += count
                self._sizes[copies] += count
        self.sum = total & DIGEST_MASK
        self._changed.update(changes)

    def freeze(self) -> list[TreeRun]:
        """What the index lacks, as it is now. Trees without chunks go."""
        rows = []
        for copies, run in sorted({(copies, leaf // RUN_LEAVES) for copies, leaf in self._changed}):
            leaves = self.by_copies[copies].packed(run * RUN_LEAVES, RUN_LEAVES)
            rows.append(TreeRun(copies, run, b"" if leaves == _EMPTY_RUN else leaves))
        self._changed = set()
        if 0 in self._sizes.values():
            self._sizes = {copies: size for copies, size in self._sizes.items() if size}
            self.by_copies = {copies: self.by_copies[copies] for copies in self._sizes}
        return rows

    def check(self) -> None:
        """Assert the invariants."""
        assert self.count == sum(self._sizes.values())
        assert self.sum == sum(tree.sum(0, 0) for tree in self.by_copies.values()) & DIGEST_MASK
        for copies, tree in self.by_copies.items():
            assert tree.total == self._sizes[copies] >= 0, copies
            assert self._sizes[copies] or tree == DigestTree(CHUNK_LEAF_BITS), copies

    def _tree(self, copies: int) -> DigestTree:
        tree = self.by_copies.get(copies)
        if tree is None:
            tree = DigestTree(CHUNK_LEAF_BITS)
            self.by_copies = {**self.by_copies, copies: tree}
            self._sizes[copies] = 0
        return tree
