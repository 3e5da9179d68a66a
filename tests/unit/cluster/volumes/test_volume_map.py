"""The map against a plain list of (write, byte) per address: any order of writes, trims and growth gives the one canonical tree."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.errors import NotFound
from cluster.volumes.extent import Extent, is_normal, joined
from cluster.volumes.map_builder import MapBuilder
from cluster.volumes.map_splice import spliced
from cluster.volumes.page import (
    INTERIOR_LIMIT_BYTES,
    LEAF_EXTENTS,
    PAGE_LIMIT_BYTES,
    Interior,
    Leaf,
    Node,
    Stored,
    decode_page,
)
from cluster.volumes.volume_map import (
    Geometry,
    Root,
    child_span_of,
    divided,
    extents_between,
    lifted,
    stored_root,
)

CHUNK = 16
"""Far smaller than users may have it: spans go below the chunk size soon."""


@dataclass
class MemoryPages:
    """Pages by their chunk id; counts what is saved and loaded."""

    write: bytes = bytes(10)
    held: dict[bytes, bytes] = field(default_factory=dict)
    saved: int = 0
    loaded: int = 0

    async def save(self, data: bytes, extents: int) -> Stored:
        assert len(data) <= PAGE_LIMIT_BYTES
        self.saved += 1
        chunk = blake3(data).digest()
        self.held[chunk] = data
        return Stored(chunk, bytes(10), len(data), extents)

    async def load(self, page: Stored, start: int, span: int) -> Leaf | Interior:
        self.loaded += 1
        if page.chunk not in self.held:
            raise NotFound("no such page")
        data = self.held[page.chunk]
        assert len(data) == page.length
        node = decode_page(data, start, span)
        assert page.extents == (len(node.extents) if isinstance(node, Leaf) else 0)
        return node


def write_of(number: int) -> bytes:
    return number.to_bytes(10, "big")


def chunk_of(number: int, cell: int) -> bytes:
    return blake3(b"%d/%d" % (number, cell)).digest()


def pieces_of(number: int, start: int, stop: int, holes: int) -> list[Extent]:
    """A write's extents, cut at cells; a cell whose bit is set in ``holes`` was all zeroes."""
    found = []
    at = start
    while at < stop:
        cell = at // CHUNK
        end = min(stop, (cell + 1) * CHUNK)
        if not holes >> (cell % 64) & 1:
            found.append(Extent(at, end - at, chunk_of(number, cell), 0, write_of(number)))
        at = end
    return found


class Model:
    """Which write, and which byte of which of its pieces, each address has."""

    def __init__(self, size: int) -> None:
        self.at: list[tuple[int, int] | None] = [None] * size

    def write(self, number: int, start: int, stop: int, holes: int) -> None:
        for address in range(start, stop):
            hole = holes >> (address // CHUNK % 64) & 1
            self.at[address] = None if hole else (number, max(start, address // CHUNK * CHUNK))

    def extents(self) -> list[Extent]:
        single = [
            Extent(address, 1, chunk_of(source[0], address // CHUNK), address - source[1], write_of(source[0]))
            for address, source in enumerate(self.at)
            if source is not None
        ]
        return joined([single])


class MapUnderTest:
    def __init__(self, size: int, leaf_extents: int) -> None:
        self.pages = MemoryPages()
        self.geometry = Geometry(CHUNK, leaf_extents)
        self.size = size
        self.root = Root()

    @property
    def span(self) -> int:
        return self.geometry.root_span(self.size)

    async def write(self, number: int, start: int, stop: int, holes: int) -> None:
        builder = MapBuilder(self.geometry, self.pages, start)
        for extent in pieces_of(number, start, stop, holes):
            await builder.add(extent)
        side_span = self.geometry.root_span(stop)
        side = lifted(await builder.finish(side_span, stop), side_span, self.span)
        base = self.root.node(self.span)
        node = await spliced(base, side, 0, self.span, start, stop, self.geometry, self.pages)
        self.root = await stored_root(node, self.span, self.pages)

    async def replace(self, number: int, size: int, holes: int) -> None:
        builder = MapBuilder(self.geometry, self.pages)
        for extent in pieces_of(number, 0, size, holes):
            await builder.add(extent)
        self.size = size
        self.root = await stored_root(await builder.finish(self.span, size), self.span, self.pages)

    async def grow(self, size: int) -> None:
        node, before = self.root.node(self.span), self.span
        self.size = size
        grown = lifted(node, before, self.span)
        if grown is not node:
            self.root = await stored_root(grown, self.span, self.pages)

    async def extents(self, start: int = 0, stop: int | None = None) -> list[Extent]:
        node = self.root.node(self.span)
        end = self.size if stop is None else stop
        return [extent async for extent in extents_between(node, 0, self.span, start, end, self.pages)]

    async def canonical_root(self, extents: list[Extent]) -> Root:
        """The root that these extents make when they are all known at once."""
        return await stored_root(divided(extents, 0, self.span, self.geometry), self.span, MemoryPages())

    async def check_pages(self) -> None:
        """The shape rule, in every page that can be reached."""

        async def visit(node: Node, start: int, span: int) -> int:
            if isinstance(node, Stored):
                data = self.pages.held[node.chunk]
                found = await self.pages.load(node, start, span)
                if isinstance(found, Interior):
                    assert len(data) <= INTERIOR_LIMIT_BYTES
                return await visit(found, start, span)
            if isinstance(node, Leaf):
                assert 0 < len(node.extents) <= self.geometry.leaf_extents
                assert is_normal(node.extents, start, start + span)
                return len(node.extents)
            assert isinstance(node, Interior)
            size = child_span_of(span)
            total = 0
            for index, child in node.children.items():
                total += await visit(child, start + index * size, size)
            assert total > self.geometry.leaf_extents
            return total

        node = self.root.node(self.span)
        if node is not None:
            await visit(node, 0, self.span)


SIZE = 1500
ranges = st.tuples(st.integers(0, SIZE), st.integers(0, SIZE)).map(lambda pair: (min(pair), max(pair)))
no_holes = st.just(0)
hole_masks = st.one_of(no_holes, st.integers(0, 2**64 - 1), st.just(2**64 - 1))
operations = st.lists(
    st.one_of(
        st.tuples(st.just("write"), ranges, hole_masks),
        st.tuples(st.just("small"), st.tuples(st.integers(0, SIZE), st.integers(1, 40)), no_holes),
        st.tuples(st.just("replace"), st.tuples(st.just(0), st.integers(0, SIZE)), hole_masks),
        st.tuples(st.just("grow"), st.tuples(st.just(0), st.integers(0, SIZE)), no_holes),
    ),
    max_size=14,
)


@settings(max_examples=150, deadline=None)
@given(operations, st.integers(0, SIZE), st.sampled_from([1, 2, 3, 7, 40, LEAF_EXTENTS]))
def test_any_history_gives_the_canonical_map_of_its_content(
    history: list[tuple[str, tuple[int, int], int]], size: int, leaf_extents: int
) -> None:
    asyncio.run(check_history(history, size, leaf_extents))


small_ranges = st.tuples(st.integers(0, 40), st.integers(0, 40)).map(lambda pair: (min(pair), max(pair)))


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(st.just("write"), small_ranges, st.sampled_from([0, 0, 2**64 - 1, 5])), max_size=8),
    st.sampled_from([1, 2, 3]),
)
def test_so_does_a_crowd_of_small_writes_in_a_few_cells(
    history: list[tuple[str, tuple[int, int], int]], leaf_extents: int
) -> None:
    asyncio.run(check_history(history, 40, leaf_extents))


async def check_history(history: list[tuple[str, tuple[int, int], int]], size: int, leaf_extents: int) -> None:
    subject, model = MapUnderTest(size, leaf_extents), Model(size)
    for number, (kind, (first, second), holes) in enumerate(history):
        if kind == "replace":
            model = Model(second)
            model.write(number, 0, second, holes)
            await subject.replace(number, second, holes)
        elif kind == "grow":
            wanted = max(subject.size, second)
            model.at += [None] * (wanted - subject.size)
            await subject.grow(wanted)
        else:
            start, stop = (first, second) if kind == "write" else (first, first + second)
            start, stop = min(start, subject.size), min(stop, subject.size)
            if start < stop:
                model.write(number, start, stop, holes)
                await subject.write(number, start, stop, holes)
        expected = model.extents()
        assert joined([await subject.extents()]) == expected
        assert subject.root == await subject.canonical_root(expected)
        await subject.check_pages()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(ranges, hole_masks), max_size=6), ranges)
def test_a_lookup_gives_the_extents_of_its_range_clipped(
    writes: list[tuple[tuple[int, int], int]], window: tuple[int, int]
) -> None:
    async def run() -> None:
        subject, model = MapUnderTest(SIZE, 3), Model(SIZE)
        for number, ((start, stop), holes) in enumerate(writes):
            if start < stop:
                model.write(number, start, stop, holes)
                await subject.write(number, start, stop, holes)
        start, stop = window
        cut = Model(SIZE)
        cut.at[start:stop] = model.at[start:stop]
        assert joined([await subject.extents(start, stop)]) == cut.extents()

    asyncio.run(run())


async def test_a_small_write_into_a_large_map_touches_one_path() -> None:
    subject = MapUnderTest(CHUNK * 64 * 64, 20)
    await subject.replace(1, subject.size, 0)
    assert subject.pages.saved > 200
    subject.pages.saved = subject.pages.loaded = 0
    await subject.write(2, 1000, 1004, 0)
    assert subject.pages.saved <= 5
    assert subject.pages.loaded <= 5


async def test_a_long_body_is_built_in_bounded_memory() -> None:
    geometry, pages = Geometry(CHUNK, 100), MemoryPages()
    builder = MapBuilder(geometry, pages)
    most = 0
    for cell in range(20_000):
        await builder.add(Extent(cell * CHUNK, CHUNK, chunk_of(1, cell), 0, write_of(1)))
        if cell % 37 == 0:
            most = max(most, sum(len(part.extents) for part, _, _ in builder.parts() if isinstance(part, Leaf)))
    assert most <= 3 * (geometry.leaf_extents + 64)
    span = geometry.root_span(20_000 * CHUNK)
    root = await stored_root(await builder.finish(span, 20_000 * CHUNK), span, pages)
    found = [extent async for extent in extents_between(root.node(span), 0, span, 0, 20_000 * CHUNK, pages)]
    assert len(found) == 20_000


async def test_a_lost_page_is_an_error_and_not_a_hole() -> None:
    subject = MapUnderTest(CHUNK * 64, 4)
    await subject.replace(1, subject.size, 0)
    subject.pages.held.clear()
    with pytest.raises(NotFound):
        await subject.extents()
