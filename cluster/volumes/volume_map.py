"""The map of a volume: a radix tree over its address space that says which bytes lie in which chunk.

Shape. A node covers a *span*: chunk_size * 64^k bytes, or, below the chunk size, that divided by 64 again and again (at least
one byte). It is a leaf iff the extents of its span are at most ``leaf_extents``, else an interior node with children of a 64th of the
span; what has no extents has no node. The root's span is the smallest chunk_size * 64^k that covers the volume's size.

So the shape depends on the extents alone: equal extents make equal trees, equal pages and equal roots, in whatever order they
were written, and a difference of two maps is found by skipping what is equal.

This module has the geometry, the normalising of nodes, lookups, and storing what is new. Building from a stream is `map_builder`, laying
one map over another `map_splice`, differences `map_difference`. Nothing here changes a node: a change makes new nodes along the path.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from cluster.volumes.extent import Extent, clip, joined
from cluster.volumes.page import FAN_OUT, LEAF_EXTENTS, Interior, Leaf, Node, Stored, decode_page, encode_node

INLINE_LIMIT_BYTES = 1024
"""A root page of up to so many bytes lives in the head itself: reading a small volume then needs no page at all."""


class PageLoader(Protocol):
    async def load(self, page: Stored, start: int, span: int) -> Leaf | Interior:
        """The page that covers [start, start + span). Raises NotFound, Corrupt, QuorumUnavailable."""


class PageSaver(Protocol):
    async def save(self, data: bytes, extents: int) -> Stored:
        """Store a page of so many ``extents`` (0: interior). Raises QuorumUnavailable, NoSpace."""


@dataclass(frozen=True, slots=True)
class Geometry:
    """What decides the shape of a map beside its extents."""

    chunk_size: int
    leaf_extents: int = LEAF_EXTENTS

    def root_span(self, size: int) -> int:
        span = self.chunk_size
        while span < size:
            span *= FAN_OUT
        return span


@dataclass(frozen=True, slots=True)
class Root:
    """How a head names its map: the root page's bytes, or where they are stored; neither for a volume that is one hole."""

    inline: bytes = b""
    page: Stored | None = None

    def node(self, span: int) -> Node | None:
        """The map's root node. Raises Corrupt."""
        if self.page is not None:
            return self.page
        return decode_page(self.inline, 0, span) if self.inline else None


EMPTY_ROOT = Root()


def child_span_of(span: int) -> int:
    assert span > 1
    return max(1, span // FAN_OUT)


def count_of(node: Node) -> int | None:
    """The number of extents of a leaf; None for an interior node."""
    if isinstance(node, Leaf):
        return len(node.extents)
    return node.extents or None if isinstance(node, Stored) else None


def leaf_of(extents: Sequence[Extent]) -> Leaf | None:
    return Leaf(tuple(extents)) if extents else None


def child_of(node: Leaf | Interior | None, index: int, start: int, span: int) -> Node | None:
    """The child of ``node``, which covers [start, start + span); of a leaf, the part of its extents as a leaf of their own."""
    if node is None:
        return None
    if isinstance(node, Interior):
        return node.children.get(index)
    size = child_span_of(span)
    begin = start + index * size
    return leaf_of(clip(node.extents, begin, begin + size))


def divided(extents: Sequence[Extent], start: int, span: int, geometry: Geometry) -> Leaf | Interior | None:
    """The map of [start, start + span) with these extents, all of it in memory."""
    if len(extents) <= geometry.leaf_extents:
        return leaf_of(extents)
    size = child_span_of(span)
    parts: dict[int, list[Extent]] = {}
    for extent in extents:
        for index in range((extent.offset - start) // size, (extent.stop - 1 - start) // size + 1):
            begin = start + index * size
            parts.setdefault(index, []).extend(clip((extent,), begin, begin + size))
    children: dict[int, Node] = {}
    for index, part in parts.items():
        child = divided(part, start + index * size, size, geometry)
        assert child is not None
        children[index] = child
    return Interior(children)


async def normalised(
    children: Mapping[int, Node], start: int, span: int, geometry: Geometry, pages: PageLoader
) -> Leaf | Interior | None:
    """The node with these children (each in its right shape): one leaf when their extents fit one."""
    if not children:
        return None
    total = 0
    for child in children.values():
        count = count_of(child)
        if count is None:
            return Interior(children)
        total += count
    # A piece that was cut by the border of two children counts twice: below the chunk size the sum may be too high by that.
    size = child_span_of(span)
    if total - (len(children) - 1 if size < geometry.chunk_size else 0) > geometry.leaf_extents:
        return Interior(children)
    parts = []
    for index in sorted(children):
        leaf = children[index]
        if isinstance(leaf, Stored):
            leaf = await pages.load(leaf, start + index * size, size)
        assert isinstance(leaf, Leaf)
        parts.append(leaf.extents)
    extents = joined(parts)
    return leaf_of(extents) if len(extents) <= geometry.leaf_extents else Interior(children)


async def loaded(node: Node | None, start: int, span: int, pages: PageLoader) -> Leaf | Interior | None:
    return await pages.load(node, start, span) if isinstance(node, Stored) else node


def lifted(node: Node | None, span: int, to: int) -> Node | None:
    """The map whose root covers ``span`` as one that covers ``to`` >= span; the rest is a hole."""
    assert to >= span
    if to == span or node is None or count_of(node) is not None:
        return node  # a leaf says where it starts, not how far it goes: it is the same page
    while span < to:
        node = Interior({0: node})
        span *= FAN_OUT
    return node


async def extents_between(
    node: Node | None, node_start: int, span: int, start: int, stop: int, pages: PageLoader
) -> AsyncGenerator[Extent, None]:
    """The extents in [start, stop), ascending, clipped to it; pages are loaded when they are reached."""
    if node is None or start >= stop or stop <= node_start or start >= node_start + span:
        return
    node = await loaded(node, node_start, span, pages)
    if isinstance(node, Leaf):
        for extent in clip(node.extents, start, stop):
            yield extent
        return
    assert isinstance(node, Interior)
    size = child_span_of(span)
    for index in sorted(node.children):
        begin = node_start + index * size
        if begin >= stop:
            return
        if begin + size > start:
            async for extent in extents_between(node.children[index], begin, size, start, stop, pages):
                yield extent


async def stored(node: Node, start: int, span: int, pages: PageSaver) -> Stored:
    """``node`` as a stored page, everything below it that is not yet stored first."""
    if isinstance(node, Stored):
        return node
    complete = await with_stored_children(node, start, span, pages)
    return await pages.save(encode_node(complete, start), len(complete.extents) if isinstance(complete, Leaf) else 0)


async def with_stored_children(node: Leaf | Interior, start: int, span: int, pages: PageSaver) -> Leaf | Interior:
    if isinstance(node, Leaf):
        return node
    size = child_span_of(span)
    children: dict[int, Node] = {}
    for index, child in node.children.items():
        children[index] = await stored(child, start + index * size, size, pages)
    return Interior(children)


async def stored_root(node: Node | None, span: int, pages: PageSaver) -> Root:
    """The root of the map whose root node is ``node``: everything stored, small roots inline."""
    if node is None:
        return EMPTY_ROOT
    if isinstance(node, Stored):
        return Root(page=node)
    complete = await with_stored_children(node, 0, span, pages)
    data = encode_node(complete, 0)
    if len(data) <= INLINE_LIMIT_BYTES:
        return Root(inline=data)
    return Root(page=await pages.save(data, len(complete.extents) if isinstance(complete, Leaf) else 0))
