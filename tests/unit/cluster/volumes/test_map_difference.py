"""What a walk that meets pages which are gone gives back: less than one that meets all of them, never more."""

from __future__ import annotations

import random
from collections.abc import Iterable

import pytest

from cluster.errors import Corrupt, HoldfastError, NotFound
from cluster.volumes.head import Head, RetiredRoot
from cluster.volumes.map_difference import dead_references
from cluster.volumes.names import MIN_CHUNK_BYTES
from cluster.volumes.page import Interior, Leaf, Stored, decode_page
from cluster.volumes.reclaim import neighbours
from cluster.volumes.service import VolumeService, VolumeSettings
from cluster.volumes.volume_map import Geometry
from tests.unit.cluster.volumes.memory_cluster import MemoryCluster, body_of, put
from tests.unit.cluster.volumes.naive_references import Reference, heads_of, references_of

CELL = MIN_CHUNK_BYTES


class Pages:
    """Those of a cluster's store, without the ones that are gone."""

    def __init__(self, cluster: MemoryCluster, gone: Iterable[bytes] = (), error: HoldfastError | None = None) -> None:
        self._payloads = cluster.chunks.payloads
        self._gone = set(gone)
        self._error = error

    async def load(self, page: Stored, start: int, span: int) -> Leaf | Interior:
        if page.chunk in self._gone:
            assert self._error is not None
            raise self._error
        return decode_page(self._payloads[page.chunk], start, span)


async def many_versions(leaf_extents: int, seed: int) -> MemoryCluster:
    """One volume, none of whose versions was given back: leaves that become interior pages and leaves again, in the head and outside."""
    cluster = MemoryCluster(settings=VolumeSettings(leaf_extents=leaf_extents))
    service: VolumeService = cluster.gateway()
    rng = random.Random(seed)
    await put(service, "v", rng.randbytes(2 * CELL))
    await service.resize("v", 100 * CELL)
    for _ in range(14):
        begin, length = rng.choice([0, 1, 2, 64, 65]) * CELL, rng.choice([CELL, 2 * CELL, 30 * CELL])
        await service.write_range("v", begin, body_of(rng.randbytes(length)), length)
        if rng.random() < 0.3:
            await service.write_range("v", begin + 100, body_of(rng.randbytes(50)), 50)
    return cluster


async def dead(
    cluster: MemoryCluster, entry: RetiredRoot, following: RetiredRoot | Head, pages: Pages, *, live: bool
) -> set[Reference]:
    geometry = Geometry(entry.chunk_size, cluster.settings.leaf_extents)
    span, other_span = geometry.root_span(entry.size), geometry.root_span(following.size)
    walk = dead_references(
        entry.root.node(span),
        span,
        following.root.node(other_span),
        other_span,
        entry.chunk_size,
        pages,
        successor_live=live,
    )
    return {(reference.chunk, reference.referrer) async for reference in walk}


def pages_of(references: set[Reference]) -> list[bytes]:
    return sorted(chunk for chunk, referrer in references if referrer.endswith(b"\xff" * 6))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("leaf_extents", [2, 8])
@pytest.mark.parametrize("error", [NotFound("gone"), Corrupt("damaged")], ids=["gone", "damaged"])
async def test_nothing_is_dead_that_a_page_which_is_gone_may_have_named(
    seed: int, leaf_extents: int, error: HoldfastError
) -> None:
    cluster = await many_versions(leaf_extents, seed)
    rng = random.Random(seed)
    passed_over = refused = 0
    for entry, following in neighbours(heads_of(cluster)[0]):
        mine, theirs = references_of(cluster, entry), references_of(cluster, following)
        assert await dead(cluster, entry, following, Pages(cluster), live=True) == mine - theirs
        theirs_alone = pages_of(theirs - mine)
        choices = [[page] for page in rng.sample(theirs_alone, min(8, len(theirs_alone)))]
        choices += [[page for page in theirs_alone if rng.random() < 0.4] for _ in range(2)]
        for gone in choices:
            pages = Pages(cluster, gone, error)
            found = await dead(cluster, entry, following, pages, live=False)
            assert found <= mine - theirs
            passed_over += found < mine - theirs
            try:
                assert await dead(cluster, entry, following, pages, live=True) == mine - theirs
            except type(error):
                refused += 1
    assert passed_over > 5
    assert refused > 5
