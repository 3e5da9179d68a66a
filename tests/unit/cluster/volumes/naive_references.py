"""By brute force: which references the heads of a cluster need."""

from __future__ import annotations

from cluster.volumes.head import Head, RetiredRoot, decode_head
from cluster.volumes.page import Interior, Leaf, Node, Stored, decode_page
from cluster.volumes.reference import data_referrer, page_referrer
from cluster.volumes.volume_map import Geometry, child_span_of
from tests.unit.cluster.volumes.memory_cluster import MemoryCluster

Reference = tuple[bytes, bytes]


def references_of(cluster: MemoryCluster, root: Head | RetiredRoot) -> set[Reference]:
    """Everything one root refers to; fails when a page or a chunk of it is missing."""
    found: set[Reference] = set()
    span = Geometry(root.chunk_size, cluster.settings.leaf_extents).root_span(root.size)

    def visit(node: Node, start: int, span: int) -> None:
        if isinstance(node, Stored):
            found.add((node.chunk, page_referrer(node.write)))
            visit(decode_page(cluster.chunks.payloads[node.chunk], start, span), start, span)
        elif isinstance(node, Leaf):
            for extent in node.extents:
                begin = extent.offset - extent.chunk_offset
                found.add((extent.chunk, data_referrer(extent.write, begin // root.chunk_size)))
        else:
            assert isinstance(node, Interior)
            for index, child in node.children.items():
                size = child_span_of(span)
                visit(child, start + index * size, size)

    node = root.root.node(span)
    if node is not None:
        visit(node, 0, span)
    return found


def heads_of(cluster: MemoryCluster) -> list[Head]:
    return [decode_head(value) for value in cluster.registers.values.values()]


def needed_references(cluster: MemoryCluster, *, retired: bool = True) -> set[Reference]:
    """What the live roots, and if wanted the retired ones, refer to."""
    needed: set[Reference] = set()
    for head in heads_of(cluster):
        needed |= references_of(cluster, head)
        for entry in head.retired if retired else ():
            needed |= references_of(cluster, entry)
    return needed
