"""Which nodes hold what in a cluster that has not changed its layout yet: the planner, asked again with what the nodes were told."""

from __future__ import annotations

from blake3 import blake3

from cluster.layout.layout import Layout, LayoutNode
from cluster.layout.planner import plan_layout
from cluster.layout.ring import chunk_partition, partition_of
from cluster.volumes.head import head_key
from tests.cluster.gateway import Gateway
from tests.cluster.harness import ClusterProcess


async def first_layout(cluster: ClusterProcess) -> Layout:
    async with Gateway(cluster.urls()[0]) as gateway:
        shown = (await gateway.document("/v1/layout"))["current"]
    assert shown["version"] == 1, "only the first layout follows from the nodes alone"
    nodes = [
        LayoutNode(node["name"], node["zone"], node["capacity"], "127.0.0.1", cluster[node["name"]].plan.peer_port)
        for node in shown["nodes"]
    ]
    bits = shown["partitions"].bit_length() - 1
    layout = plan_layout(None, nodes, replication_factor=shown["replication_factor"], partition_bits=bits)
    planned = {node.name: len(layout.partitions_of(node.name)) for node in layout.nodes}
    assert planned == {node["name"]: node["partitions"] for node in shown["nodes"]}
    return layout


def head_replicas(layout: Layout, volume: str) -> tuple[str, ...]:
    """The nodes whose quorum decides what a volume of this name is."""
    return layout.replicas(partition_of(head_key(volume).partition, layout.partition_bits))


def chunk_replicas(layout: Layout, content: bytes) -> tuple[str, ...]:
    """The nodes that keep a chunk of these bytes."""
    return layout.replicas(chunk_partition(blake3(content).digest(), layout.partition_bits))
