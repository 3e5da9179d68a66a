"""The trees against plain sets, and the descent against looking at everything."""

from __future__ import annotations

import random

from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from cluster.merkle.descent import QUESTION_LIMIT, STEP_BITS, Descent
from cluster.merkle.digest_tree import DIGEST_MASK, DigestTree
from cluster.merkle.identity import (
    CHUNK_LEAF_BITS,
    PLACE_BITS,
    chunk_leaf,
    reference_digest,
    register_digest,
    register_place,
)

BITS = 9
"""So that there are kept nodes, and levels above and below them."""


def item(leaf: int, number: int) -> tuple[int, int]:
    """A place and a digest that depends on it, as real ones do: equal digests in two places would cancel out above them."""
    return leaf, int.from_bytes(blake3(f"{leaf} {number}".encode()).digest(length=8))


ITEMS = st.sets(st.builds(item, st.integers(0, 2**BITS - 1), st.integers(0, 3)), max_size=60)


def tree_of(items: set[tuple[int, int]], bits: int = BITS) -> DigestTree:
    tree = DigestTree(bits)
    for leaf, digest in items:
        tree.change(leaf, digest, 1)
    return tree


def walk(mine: DigestTree, theirs: DigestTree) -> tuple[list[int], Descent]:
    descent = Descent(mine, bits=0, differing=[0], deepest=mine.bits)
    while (question := descent.question()) is not None:
        assert len(question.prefixes) <= QUESTION_LIMIT
        descent.answer(theirs.sums(question.bits, question.prefixes))
    return descent.differing, descent


@given(ITEMS, st.integers(0, BITS), st.randoms())
def test_a_node_is_the_sum_of_what_is_under_it(items: set[tuple[int, int]], bits: int, rng: random.Random) -> None:
    tree = tree_of(items)
    prefix = rng.randrange(1 << bits)
    under = [digest for leaf, digest in items if leaf >> (BITS - bits) == prefix]
    assert tree.sum(bits, prefix) == sum(under) & DIGEST_MASK
    assert tree.count(bits, prefix) == len(under)
    assert tree.total == len(items)
    assert tree.filled() == sorted({leaf for leaf, _ in items})


@given(ITEMS)
def test_leaves_come_back_as_they_were_stored(items: set[tuple[int, int]]) -> None:
    tree, other = tree_of(items), DigestTree(BITS)
    for first in range(0, 1 << BITS, 64):
        other.unpack(first, tree.packed(first, 64))
    assert other == tree


def test_leaves_are_stored_little_endian() -> None:
    tree = tree_of({(4, 0x0102)})
    assert tree.packed(4, 2) == bytes((2, 1)) + bytes(14) + bytes((1,)) + bytes(15)


@given(ITEMS, ITEMS)
def test_what_comes_and_goes_leaves_no_trace(items: set[tuple[int, int]], others: set[tuple[int, int]]) -> None:
    tree = tree_of(items | others)
    for leaf, digest in others - items:
        tree.change(leaf, -digest, -1)
    assert tree == tree_of(items)


@given(ITEMS, ITEMS)
def test_a_descent_finds_exactly_the_leaves_that_differ(
    mine: set[tuple[int, int]], theirs: set[tuple[int, int]]
) -> None:
    one, other = tree_of(mine), tree_of(theirs)
    found, _ = walk(one, other)
    assert set(found) == {leaf for leaf in range(1 << BITS) if one.leaf(leaf)[0] != other.leaf(leaf)[0]}


def test_a_thousand_differences_among_a_million_cost_little() -> None:
    rng = random.Random(1)
    one, other = DigestTree(CHUNK_LEAF_BITS), DigestTree(CHUNK_LEAF_BITS)
    for _ in range(200_000):
        leaf, digest = rng.getrandbits(CHUNK_LEAF_BITS), rng.getrandbits(64)
        one.change(leaf, digest, 1)
        other.change(leaf, digest, 1)
    leaves = {rng.getrandbits(CHUNK_LEAF_BITS) for _ in range(1000)}
    for leaf in leaves:
        one.change(leaf, rng.getrandbits(64), 1)
    found, descent = walk(one, other)
    assert set(found) == leaves
    levels = -(-CHUNK_LEAF_BITS // STEP_BITS)
    assert descent.asked <= levels * len(leaves) << STEP_BITS


def test_places_and_digests() -> None:
    rng = random.Random(2)
    chunk, referrer = rng.randbytes(32), rng.randbytes(16)
    assert chunk_leaf(chunk) == int.from_bytes(chunk) >> (256 - CHUNK_LEAF_BITS)
    digests = {
        reference_digest(chunk, referrer, 3),
        reference_digest(chunk, referrer, 2),
        reference_digest(chunk, rng.randbytes(16), 3),
        register_digest("t", b"ab", b"c", 1, "p", 2),
        register_digest("t", b"a", b"bc", 1, "p", 2),
        register_digest("t", b"ab", b"c", 12, "p", 2),
        register_digest("t", b"ab", b"c", 1, "p", 12),
    }
    assert len(digests) == 7
    assert register_place("t", b"ab", b"c") != register_place("t", b"a", b"bc")
    assert 0 <= register_place("t", b"ab", b"c") < 1 << PLACE_BITS
