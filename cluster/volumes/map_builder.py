"""Building the map of a body while it streams by: extents in ascending order in, a canonical tree out, in bounded memory.

Every finished part of the tree that will certainly be a page of its own is saved at once, so that what is held is at most some leaf's worth
of extents per level, whatever the length of the body. A part that the body covers only partly (at the two ends of a ranged write)
is never saved, because it will be merged with what is there (`map_splice`): it stays in memory, two paths of the tree at most.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from cluster.volumes.extent import Extent, joined
from cluster.volumes.page import FAN_OUT, Interior, Leaf, Node
from cluster.volumes.volume_map import Geometry, PageSaver, count_of, stored


@dataclass(slots=True)
class OpenNode:
    """A node that may still grow: it covers [start, start + span)."""

    start: int
    span: int
    children: dict[int, Node] = field(default_factory=dict)
    saved: int = 0
    """Children below this index need no further look: they are saved, or never will be here."""
    extents: int = 0
    """Of all children; more than fit a leaf as soon as one of them is an interior node."""


class MapBuilder:
    """``add`` extents, then ``finish``. ``start``: the address where the body begins. One user at a time."""

    def __init__(self, geometry: Geometry, pages: PageSaver, start: int = 0) -> None:
        self._geometry = geometry
        self._pages = pages
        self._start = start
        self._stop: int | None = None
        self._levels: list[OpenNode] = []
        self._at = 0

    async def add(self, extent: Extent) -> None:
        """Extents ascend, each within one cell (chunk_size bytes from a multiple of it), at most one per cell."""
        chunk_size = self._geometry.chunk_size
        cell = extent.offset // chunk_size
        assert extent.offset >= self._at
        assert (extent.stop - 1) // chunk_size == cell
        self._at = (cell + 1) * chunk_size
        await self._place(0, cell * chunk_size, Leaf((extent,)))

    async def finish(self, span: int, stop: int) -> Node | None:
        """The tree with a root of ``span``; the body ended at ``stop`` <= span. Nothing can be added afterwards."""
        self._stop = stop
        level = 0
        while level < len(self._levels):
            open_node = self._levels[level]
            node = self._closed(open_node)
            if level + 1 == len(self._levels) and open_node.span >= span:
                # Larger than the root only when the root covers one cell: then it is a leaf, which is the same for any span.
                assert open_node.span == span or isinstance(node, Leaf)
                return node
            await self._place(level + 1, open_node.start, node)
            level += 1
        return None

    def parts(self) -> list[tuple[Node, int, int]]:
        """What was built so far as ``(node, start, span)``, for giving it back when the write fails."""
        return [
            (child, level.start + index * (level.span // FAN_OUT), level.span // FAN_OUT)
            for level in self._levels
            for index, child in level.children.items()
        ]

    async def _place(self, level: int, start: int, node: Node) -> None:
        """Make ``node`` a child of the open node of ``level``; one that ends before ``start`` is closed and passed up first."""
        size = self._geometry.chunk_size * FAN_OUT**level
        span = size * FAN_OUT
        if level == len(self._levels):
            self._levels.append(OpenNode(start - start % span, span))
        parent = self._levels[level]
        if start >= parent.start + span:
            await self._place(level + 1, parent.start, self._closed(parent))
            parent = self._levels[level] = OpenNode(start - start % span, span)
        index = (start - parent.start) // size
        limit = self._geometry.leaf_extents
        if parent.extents > limit:
            await self._save_children(parent, size)
        parent.children[index] = node
        parent.extents += count_of(node) or limit + 1

    async def _save_children(self, parent: OpenNode, size: int) -> None:
        """Called before a further child is placed: those that are there lie wholly before the end of the body."""
        for index in [index for index in parent.children if index >= parent.saved]:
            begin = parent.start + index * size
            if begin >= self._start and (self._stop is None or begin + size <= self._stop):
                parent.children[index] = await stored(parent.children[index], begin, size, self._pages)
            parent.saved = index + 1

    def _closed(self, open_node: OpenNode) -> Leaf | Interior:
        children = open_node.children
        if open_node.extents > self._geometry.leaf_extents:
            return Interior(children)
        # None of them is saved: that is done only once they are too many for one leaf.
        leaves = [children[index] for index in sorted(children)]
        return Leaf(tuple(joined(leaf.extents for leaf in leaves if isinstance(leaf, Leaf))))
