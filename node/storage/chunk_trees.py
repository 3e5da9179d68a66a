"""The trees over the chunks held and their references, by which replicas are compared; one for each number of copies.

A chunk belongs to the tree of its *copies*, the largest ``replicas`` among its references: that many nodes of its partition's preference
list keep it. It counts 1 at its leaf, and the digests of all its references are added there. A chunk without references is in no tree.

What changes is computed where states change (`chunk_state.Change`), taken over when the records are durable (`ChunkCatalog.merge`), and
goes into the index in the transaction that carries the states: as *runs* of `RUN_LEAVES` leaves, and, since some thousand chunks touch
all of those, as *news*, the changed leaves alone, until they have grown to `NEWS_LIMIT` and are folded into the runs. One thread
changes the trees, others read them; `by_copies` is exchanged, never changed, when a tree comes or goes.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Final, NamedTuple

from cluster.merkle.digest_tree import DIGEST_MASK, MAX_BITS, DigestTree
from cluster.merkle.identity import CHUNK_LEAF_BITS
from node.storage.chunk_state import LeafChanges

RUN_BITS: Final = 8
RUN_LEAVES: Final = 1 << RUN_BITS
"""Leaves in a row of the index: 4 KiB, a page of the database, of which SQLite never writes less."""

_LEAF_MASK: Final = (1 << MAX_BITS) - 1
_RUN_MASK: Final = _LEAF_MASK >> RUN_BITS

NEWS_LIMIT: Final = 1 << 20
"""Bytes of news at which they are folded: 50 000 leaves, read in some 50 ms on opening."""

_NEWS: Final = struct.Struct("<BIQq")


class TreeRun(NamedTuple):
    """The leaves ``run * RUN_LEAVES`` and following of the tree of ``copies``, packed; empty if all of them are."""

    copies: int
    run: int
    leaves: bytes


class TreeChanges(NamedTuple):
    """What the index lacks: ``news``, leaves as they are now (copies, leaf, sum, count), to be added to earlier news; or, ``folded``, runs
    that take the place of all news."""

    news: bytes = b""
    runs: tuple[TreeRun, ...] = ()
    folded: bool = False


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
        self._changed: set[int] = set()
        """Places (`chunk_state.LeafChanges`) in which the index differs."""
        self._stale: set[int] = set()
        """Runs, as places without their last `RUN_BITS`, of which the index has newer leaves in the news."""
        self._news_bytes = 0
        """In the index."""

    @classmethod
    def loaded(cls, runs: Iterable[TreeRun], news: Iterable[bytes]) -> ChunkTrees:
        """As the index has them; news in the order in which they came."""
        trees = cls()
        for copies, run, leaves in runs:
            trees._tree(copies).unpack(run * RUN_LEAVES, leaves)
        for some in news:
            trees._news_bytes += len(some)
            for copies, leaf, digest, count in _NEWS.iter_unpack(some):
                trees._tree(copies).set_leaf(leaf, digest, count)
                trees._stale.add((copies << MAX_BITS | leaf) >> RUN_BITS)
        for copies, tree in trees.by_copies.items():
            trees._sizes[copies] = tree.total
            trees.count += trees._sizes[copies]
            trees.sum = (trees.sum + tree.sum(0, 0)) & DIGEST_MASK
        return trees

    def change(self, changes: LeafChanges) -> None:
        """Take over what durable records change."""
        total = self.sum
        known = -1
        for place, (digest, count) in changes.items():
            copies = place >> MAX_BITS
            if copies != known:
                tree = self._tree(copies)
                known = copies
            tree.change(place & _LEAF_MASK, digest, count)
            total += digest
            if count:
                self.count += count
                self._sizes[copies] += count
        self.sum = total & DIGEST_MASK
        self._changed.update(changes)

    def freeze(self) -> TreeChanges:
        """What the index lacks, as it is now. Trees without chunks go."""
        changed, self._changed = self._changed, set()
        self._stale.update({place >> RUN_BITS for place in changed})
        if self._news_bytes + len(changed) * _NEWS.size > NEWS_LIMIT:
            changes = TreeChanges(runs=tuple([self._run(run) for run in sorted(self._stale)]), folded=True)
            self._stale = set()
            self._news_bytes = 0
        else:
            trees, pack = self.by_copies, _NEWS.pack
            news = [
                pack(place >> MAX_BITS, place & _LEAF_MASK, *trees[place >> MAX_BITS].leaf(place & _LEAF_MASK))
                for place in changed
            ]
            changes = TreeChanges(b"".join(news))
            self._news_bytes += len(changes.news)
        if 0 in self._sizes.values():
            self._sizes = {copies: size for copies, size in self._sizes.items() if size}
            self.by_copies = {copies: self.by_copies[copies] for copies in self._sizes}
        return changes

    def _run(self, number: int) -> TreeRun:
        copies, run = number >> MAX_BITS - RUN_BITS, number & _RUN_MASK
        tree = self.by_copies.get(copies)  # it may have been emptied long ago
        leaves = _EMPTY_RUN if tree is None else tree.packed(run * RUN_LEAVES, RUN_LEAVES)
        return TreeRun(copies, run, b"" if leaves == _EMPTY_RUN else leaves)

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
