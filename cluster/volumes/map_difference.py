"""Which references a retired root holds that its successor does not: what reclaiming may drop.

The roots of a volume form a chain, oldest first, with the live one last. Every write puts new references on what it stored and takes over
others only from the root before it. So a reference that one root of the chain lacks is lacked by all later ones, and it is enough
to compare a root with its next neighbour among those retained (docs/decisions/references.md).

Equal pages are skipped without loading them. A data reference belongs to one cell, so whether the successor still has it is
decided within that cell. References of pages come after everything below them, so that a walk that was interrupted can be repeated.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import NamedTuple

from cluster.errors import Corrupt, NotFound
from cluster.volumes.page import Interior, Leaf, Node, Stored
from cluster.volumes.reference import data_referrer, page_referrer
from cluster.volumes.volume_map import PageLoader, child_of, child_span_of, extents_between, lifted, loaded


class DeadReference(NamedTuple):
    """A reference nobody needs. ``after_all``: it is a page's; drop it only when all those before it are dropped."""

    chunk: bytes
    referrer: bytes
    after_all: bool


class Cell(NamedTuple):
    """What a map has in one cell: ``(chunk, write)`` of the data, and the pages that cover parts of the cell, lowest first."""

    sources: dict[tuple[bytes, bytes], None]
    pages: dict[Stored, None]


async def dead_references(
    retired: Node | None,
    retired_span: int,
    successor: Node | None,
    successor_span: int,
    chunk_size: int,
    pages: PageLoader,
) -> AsyncGenerator[DeadReference, None]:
    """All references of ``retired`` that ``successor`` (of the same chunk size; None: an empty map) does not have.

    A page of ``retired`` that is gone counts as done: an earlier walk dropped it, after all that was below. Raises what loading the
    successor's pages raises."""
    if retired is None or retired == successor:
        return
    span = max(retired_span, successor_span)
    walk = Difference(chunk_size, pages)
    top, other = lifted(retired, retired_span, span), lifted(successor, successor_span, span)
    async for reference in walk.visit(top, other, 0, span):
        yield reference


async def all_references(
    node: Node, start: int, span: int, chunk_size: int, pages: PageLoader
) -> AsyncGenerator[DeadReference, None]:
    """Every reference of a map or a part of one, for a write that came to nothing."""
    async for reference in Difference(chunk_size, pages).visit(node, None, start, span):
        yield reference


class Difference:
    def __init__(self, chunk_size: int, pages: PageLoader) -> None:
        self._chunk_size = chunk_size
        self._pages = pages

    async def visit(
        self, retired: Node | None, other: Node | None, start: int, span: int
    ) -> AsyncGenerator[DeadReference, None]:
        if retired is None or retired == other:
            return
        if span <= self._chunk_size:
            async for reference in self._visit_cell(retired, other, start, span):
                yield reference
            return
        node = await self._load_retired(retired, start, span)
        if isinstance(node, Leaf):
            async for reference in self._visit_leaf(node, other, start, span):
                yield reference
        elif isinstance(node, Interior):
            against = await loaded(other, start, span, self._pages)
            size = child_span_of(span)
            for index in sorted(node.children):
                child, begin = node.children[index], start + index * size
                async for reference in self.visit(child, child_of(against, index, start, span), begin, size):
                    yield reference
        if isinstance(retired, Stored):
            yield DeadReference(retired.chunk, page_referrer(retired.write), after_all=True)

    async def _visit_leaf(
        self, leaf: Leaf, other: Node | None, start: int, span: int
    ) -> AsyncGenerator[DeadReference, None]:
        against = await loaded(other, start, span, self._pages)
        cell_size = self._chunk_size
        sources: dict[int, dict[tuple[bytes, bytes], None]] = {}
        for extent in leaf.extents:
            # An extent lies within one cell, since its piece did.
            sources.setdefault(extent.offset // cell_size, {})[extent.chunk, extent.write] = None
        for cell, mine in sources.items():
            begin = cell * cell_size
            async for extent in extents_between(against, start, span, begin, begin + cell_size, self._pages):
                mine.pop((extent.chunk, extent.write), None)
            for chunk, write in mine:
                yield DeadReference(chunk, data_referrer(write, cell), after_all=False)

    async def _visit_cell(
        self, retired: Node, other: Node | None, start: int, span: int
    ) -> AsyncGenerator[DeadReference, None]:
        mine, theirs = Cell({}, {}), Cell({}, {})
        await self._collect(retired, start, span, mine, lenient=True)
        if other is not None:
            await self._collect(other, start, span, theirs, lenient=False)
        for chunk, write in mine.sources:
            if (chunk, write) in theirs.sources:
                continue
            yield DeadReference(chunk, data_referrer(write, start // self._chunk_size), after_all=False)
        for page in mine.pages:
            if page not in theirs.pages:
                yield DeadReference(page.chunk, page_referrer(page.write), after_all=True)

    async def _collect(self, node: Node, start: int, span: int, into: Cell, *, lenient: bool) -> None:
        found = await (self._load_retired if lenient else self._load_needed)(node, start, span)
        if isinstance(found, Leaf):
            into.sources.update(((extent.chunk, extent.write), None) for extent in found.extents)
        elif isinstance(found, Interior):
            size = child_span_of(span)
            for index, child in found.children.items():
                await self._collect(child, start + index * size, size, into, lenient=lenient)
        if isinstance(node, Stored):
            into.pages[node] = None

    async def _load_needed(self, node: Node, start: int, span: int) -> Leaf | Interior | None:
        return await loaded(node, start, span, self._pages)

    async def _load_retired(self, node: Node, start: int, span: int) -> Leaf | Interior | None:
        try:
            return await loaded(node, start, span, self._pages)
        except (NotFound, Corrupt):
            return None
