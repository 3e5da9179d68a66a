"""Names and ports of a local cluster's nodes: a pure function of how many there are and where their ports begin."""

from __future__ import annotations

from dataclasses import dataclass

from client.errors import Invalid

LOOPBACK = "127.0.0.1"

DEFAULT_NODES = 5
DEFAULT_PORT_BASE = 7480

PORTS_PER_NODE = 10
"""Node i (from 0) owns the ports base + 10 i and up: API, S3 (reserved), peers, and room for more doors."""

NODES_LIMIT = 100
"""Nodes on one machine; more would not say more about anything."""


@dataclass(frozen=True, slots=True)
class NodePlan:
    """Where one node listens."""

    name: str
    api_port: int
    peer_port: int

    @property
    def api(self) -> str:
        return f"{LOOPBACK}:{self.api_port}"

    @property
    def peer(self) -> str:
        return f"{LOOPBACK}:{self.peer_port}"


def plan_nodes(count: int, port_base: int) -> tuple[NodePlan, ...]:
    """Nodes n1, n2, ... Raises `Invalid` when they or their ports are too many."""
    if not 1 <= count <= NODES_LIMIT:
        raise Invalid(f"a local cluster has 1 to {NODES_LIMIT} nodes, not {count}")
    last = port_base + PORTS_PER_NODE * (count - 1) + 2
    if port_base < 1 or last > 65535:
        raise Invalid(f"{count} nodes from port {port_base} on need ports up to {last}; choose a --port-base that fits")
    return tuple(
        NodePlan(
            name=f"n{index + 1}",
            api_port=port_base + PORTS_PER_NODE * index,
            peer_port=port_base + PORTS_PER_NODE * index + 2,
        )
        for index in range(count)
    )
