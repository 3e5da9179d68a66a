"""Laying one map over a part of another: what a ranged write does to the newest root, as often as it takes.

The result's nodes are those of ``over`` where a node lies wholly in the range, those of ``base`` where it lies wholly outside, and new ones
along the two ends of the range: a write touches O(levels) pages, whatever the sizes. The result has the canonical shape.
"""

from __future__ import annotations

from cluster.volumes.extent import overlaid
from cluster.volumes.page import Interior, Leaf, Node
from cluster.volumes.volume_map import (
    Geometry,
    PageLoader,
    child_of,
    child_span_of,
    divided,
    loaded,
    normalised,
)


async def spliced(
    base: Node | None,
    over: Node | None,
    node_start: int,
    span: int,
    start: int,
    stop: int,
    geometry: Geometry,
    pages: PageLoader,
) -> Node | None:
    """The map of [node_start, node_start + span) that is ``over`` in [start, stop) and ``base`` elsewhere.

    ``over`` has nothing outside [start, stop)."""
    if start <= node_start and node_start + span <= stop:
        return over
    if stop <= node_start or node_start + span <= start:
        return base
    below = await loaded(base, node_start, span, pages)
    above = await loaded(over, node_start, span, pages)
    if not isinstance(below, Interior) and not isinstance(above, Interior):
        extents = overlaid(below.extents if below else (), above.extents if above else (), start, stop)
        return divided(extents, node_start, span, geometry)
    size = child_span_of(span)
    children: dict[int, Node] = {}
    for index in indexes(below, node_start, size) | indexes(above, node_start, size):
        child = await spliced(
            child_of(below, index, node_start, span),
            child_of(above, index, node_start, span),
            node_start + index * size,
            size,
            start,
            stop,
            geometry,
            pages,
        )
        if child is not None:
            children[index] = child
    return await normalised(children, node_start, span, geometry, pages)


def indexes(node: Leaf | Interior | None, start: int, size: int) -> set[int]:
    """Which children of ``size`` bytes the node has, or would have."""
    if node is None:
        return set()
    if isinstance(node, Interior):
        return set(node.children)
    found: set[int] = set()
    for extent in node.extents:
        found.update(range((extent.offset - start) // size, (extent.stop - 1 - start) // size + 1))
    return found
