"""Which disk each node has: knowledge only grows, and a replaced disk is always the newer."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from cluster.governance.stores import NO_LIFE, UNKNOWN_STORE, Life, StoreRegistry, new_store_id

lives = st.builds(
    Life, st.binary(min_size=8, max_size=8).filter(lambda s: s != UNKNOWN_STORE), st.integers(1, 9), st.just(b"r")
)


def test_a_new_store_is_above_every_one_that_is_remembered() -> None:
    rng = random.Random(1)
    store = UNKNOWN_STORE
    for _ in range(300):
        above = new_store_id(rng, store)
        assert above > store
        assert len(above) == 8
        store = above


@given(st.lists(st.tuples(st.sampled_from("ab"), lives)))
def test_knowledge_grows_and_survives_packing(notes: list[tuple[str, Life]]) -> None:
    registry = StoreRegistry()
    newest: dict[str, Life] = {}
    for name, life in notes:
        news = registry.note(name, life)
        assert news == (life.age > newest.get(name, NO_LIFE).age)
        if news:
            newest[name] = life
    copy = StoreRegistry()
    copy.load(registry.pack())
    for name in "ab":
        assert registry.life(name) == copy.life(name) == newest.get(name, NO_LIFE)
    assert registry.stores(["a", "b"]) == registry.life("a").store + registry.life("b").store


def test_the_version_counts_disks_not_boots() -> None:
    registry = StoreRegistry()
    store, other = b"\0\1abcdef", b"\0\2abcdef"
    registry.note("a", Life(store, 1))
    version = registry.version
    registry.note("a", Life(store, 2))
    assert registry.version == version
    registry.note("a", Life(other, 1))
    assert registry.version > version
    assert not registry.note("a", Life(store, 99))
