"""Whether one root names a reference: a look at one cell for data, at one path for a page.

Data of a reference lies in the cell that the referrer tells. A page is where it says that it starts, so it can only be among the nodes on
the way to that address. Only when its own bytes can't be read any more is the whole tree looked through, interior pages only.
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing

from cluster.errors import Corrupt
from cluster.volumes.head import Head, RetiredRoot
from cluster.volumes.page import Interior, Leaf, Node, Stored
from cluster.volumes.page_store import PageCache, PageStore
from cluster.volumes.volume_map import Geometry, child_span_of, extents_between, loaded


class RootSearch:
    """One root, decoded once for many questions. The methods raise NotFound, Corrupt and QuorumUnavailable of pages on the way."""

    def __init__(self, root: Head | RetiredRoot, cache: PageCache, leaf_extents: int) -> None:
        """Raises Corrupt when the inline root can't be read."""
        self.replicas = root.replicas
        self._chunk_size = root.chunk_size
        self._span = Geometry(root.chunk_size, leaf_extents).root_span(root.size)
        self._node = root.root.node(self._span)
        self._pages = PageStore(cache, root.replicas)

    @property
    def has_pages(self) -> bool:
        """Whether any page of it is a chunk."""
        return isinstance(self._node, Stored | Interior)

    async def names_data(self, chunk: bytes, write: bytes, cell: int) -> bool:
        begin = cell * self._chunk_size
        found = extents_between(self._node, 0, self._span, begin, begin + self._chunk_size, self._pages)
        async with aclosing(found):
            async for extent in found:
                if extent.chunk == chunk and extent.write == write:
                    return True
        return False

    async def names_page(self, chunk: bytes, write: bytes, start: int) -> bool:
        """``start``: the address where that page begins, by its own word."""
        node, at, span = self._node, 0, self._span
        if start >= span:
            return False
        while node is not None:
            if isinstance(node, Stored):
                if at == start and is_page(node, chunk, write):
                    return True
                if node.extents:
                    return False
            found = await loaded(node, at, span, self._pages)
            if not isinstance(found, Interior):
                return False
            span = child_span_of(span)
            index = (start - at) // span
            at += index * span
            node = found.children.get(index)
        return False

    async def names_page_anywhere(self, chunk: bytes, write: bytes) -> bool:
        """For a page that can't say where it starts: looks at every interior page."""
        if self._node is None:
            return False
        waiting: list[tuple[Node, int, int]] = [(self._node, 0, self._span)]
        while waiting:
            node, at, span = waiting.pop()
            if isinstance(node, Stored):
                if is_page(node, chunk, write):
                    return True
                if node.extents:
                    continue
                node = await self._pages.load(node, at, span)
                await asyncio.sleep(0)  # a large map in the cache would hold up everybody else
                if isinstance(node, Leaf):
                    raise Corrupt(f"The map page for address {at} is a leaf, its parent says that it is none.")
            if isinstance(node, Interior):
                size = child_span_of(span)
                waiting += [(child, at + index * size, size) for index, child in node.children.items()]
        return False


def is_page(page: Stored, chunk: bytes, write: bytes) -> bool:
    return page.chunk == chunk and page.write == write
