"""Which references a retired root holds that its successor does not: what reclaiming may drop.

The roots of a volume form a chain, oldest first, with the live one last. Every write puts new references on what it stored and takes over
others only from the root before it. So a reference that one root of the chain lacks is lacked by all later ones, and it is enough
to compare a root with its next neighbour among those retained (docs/decisions/references.md).

Equal pages are skipped without loading them. A data reference belongs to one cell, so whether the successor still has it is
decided within that cell. References of pages come after everything below them, so that a walk that was interrupted can be repeated.

A walk goes through several roots before they leave the head, and when it is interrupted the next one begins again with the oldest. So
pages may be gone of the retired root, and of a successor that is retired too. Whoever drops a page of a root has dropped before, on every
replica, all that older roots have and this one lacks, and all below that page that no later root has. Hence nothing is left to do where a
page of the successor is gone: what lies there is passed over. That drops less, never more. If that page was lost instead, or replicas that
were away were left behind, references remain that no root names once these are forgotten, and the sweep finds them. A page of the *live*
root is never passed over: without it nothing is given back there, the error is seen in the job's status, and the retired root, which may be
the last to have that part, stays in the head until the volume is written anew.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import NamedTuple

from cluster.errors import Corrupt, HoldfastError, NotFound
from cluster.volumes.page import Interior, Leaf, Node, Stored
from cluster.volumes.reference import data_referrer, page_referrer
from cluster.volumes.volume_map import PageLoader, child_of, child_span_of, extents_between, lifted, loaded

GONE: tuple[type[HoldfastError], ...] = (NotFound, Corrupt)
"""A page that no node has a good copy of. That a copy may be on a node that can't be reached is another error."""


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
    *,
    successor_live: bool,
) -> AsyncGenerator[DeadReference, None]:
    """All references of ``retired`` that ``successor`` (of the same chunk size; None: an empty map) does not have.

    A page that is gone counts as done: an earlier walk dropped it, after all that was below. One of a successor that is the live root
    does not. Raises QuorumUnavailable; NotFound and Corrupt of pages of the live root."""
    if retired is None or retired == successor:
        return
    span = max(retired_span, successor_span)
    walk = Difference(chunk_size, pages, () if successor_live else GONE)
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
    """``passed_over``: the errors of a successor's page that mean that nothing is left to do there."""

    def __init__(self, chunk_size: int, pages: PageLoader, passed_over: tuple[type[HoldfastError], ...] = ()) -> None:
        self._chunk_size = chunk_size
        self._pages = pages
        self._passed_over = passed_over

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
            async for reference in self._visit_children(node, other, start, span):
                yield reference
        if isinstance(retired, Stored):
            yield DeadReference(retired.chunk, page_referrer(retired.write), after_all=True)

    async def _visit_children(
        self, node: Interior, other: Node | None, start: int, span: int
    ) -> AsyncGenerator[DeadReference, None]:
        try:
            against = await loaded(other, start, span, self._pages)
        except self._passed_over:
            return
        size = child_span_of(span)
        for index in sorted(node.children):
            child, begin = node.children[index], start + index * size
            async for reference in self.visit(child, child_of(against, index, start, span), begin, size):
                yield reference

    async def _visit_leaf(
        self, leaf: Leaf, other: Node | None, start: int, span: int
    ) -> AsyncGenerator[DeadReference, None]:
        try:
            against = await loaded(other, start, span, self._pages)
        except self._passed_over:
            return
        cell_size = self._chunk_size
        sources: dict[int, dict[tuple[bytes, bytes], None]] = {}
        for extent in leaf.extents:
            # An extent lies within one cell, since its piece did.
            sources.setdefault(extent.offset // cell_size, {})[extent.chunk, extent.write] = None
        for cell, mine in sources.items():
            begin = cell * cell_size
            try:
                async for extent in extents_between(against, start, span, begin, begin + cell_size, self._pages):
                    mine.pop((extent.chunk, extent.write), None)
            except self._passed_over:
                continue
            for chunk, write in mine:
                yield DeadReference(chunk, data_referrer(write, cell), after_all=False)

    async def _visit_cell(
        self, retired: Node, other: Node | None, start: int, span: int
    ) -> AsyncGenerator[DeadReference, None]:
        mine, theirs = Cell({}, {}), Cell({}, {})
        await self._collect(retired, start, span, mine, lenient=True)
        if other is not None:
            try:
                await self._collect(other, start, span, theirs, lenient=False)
            except self._passed_over:
                return
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
        except GONE:
            return None
