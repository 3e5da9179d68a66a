"""The trees that a store should have, from what it holds."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from cluster.merkle import identity
from cluster.merkle.digest_tree import DigestTree
from cluster.merkle.identity import chunk_leaf, reference_digest

SMALL_BITS = 10


def use_small_trees(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trees of 16 KiB instead of 4 MiB, for tests that make thousands of them."""
    monkeypatch.setattr("cluster.merkle.identity.CHUNK_LEAF_BITS", SMALL_BITS)
    monkeypatch.setattr("node.storage.chunk_trees.CHUNK_LEAF_BITS", SMALL_BITS)
    monkeypatch.setattr("node.storage.chunk_trees.NEWS_LIMIT", 200)  # and folded often


def trees_of(held: Mapping[bytes, Mapping[bytes, int] | None]) -> dict[int, DigestTree]:
    """The trees over chunks (id -> referrer -> replicas), from nothing."""
    trees: dict[int, DigestTree] = {}
    for chunk, references in held.items():
        if references:
            copies = max(references.values())
            if copies not in trees:
                trees[copies] = DigestTree(identity.CHUNK_LEAF_BITS)
            trees[copies].change(chunk_leaf(chunk), 0, 1)
            for referrer, replicas in references.items():
                trees[copies].change(chunk_leaf(chunk), reference_digest(chunk, referrer, replicas), 0)
    return trees


def check_trees(found: Mapping[int, DigestTree], held: Mapping[bytes, Mapping[bytes, int] | None]) -> None:
    """Assert that the trees are those over `held`; where there are no chunks there may be an empty one."""
    expected = trees_of(held)
    assert found.keys() >= expected.keys()
    for copies, tree in found.items():
        if copies in expected:
            assert tree == expected[copies], copies
        else:
            assert tree == DigestTree(tree.bits), copies
