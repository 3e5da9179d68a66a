"""What two nodes both hold under a layout, in an order that both work out alike. Pure; remembers the lists of the layout asked
about last."""

from __future__ import annotations

from cluster.layout.layout import Layout
from cluster.register.view import META_PARTITION


class Sharing:
    """For one node, ``me``."""

    def __init__(self, me: str) -> None:
        self._me = me
        self._layout: Layout | None = None
        self._chunks: dict[tuple[str, int], tuple[int, ...]] = {}

    def chunks(self, layout: Layout, peer: str, copies: int) -> tuple[int, ...]:
        """The partitions whose chunks in ``copies`` copies belong on both nodes, ascending."""
        if layout is not self._layout:
            self._layout = layout
            self._chunks.clear()
        known = self._chunks.get((peer, copies))
        if known is None:
            known = self._chunks[peer, copies] = tuple(
                partition
                for partition in range(layout.partitions)
                if {self._me, peer} <= set(layout.placement(partition, copies))
            )
        return known

    def registers(self, layout: Layout, peer: str) -> tuple[int, ...]:
        """The partitions whose registers both nodes are replicas of, that of the agreed layout (all members') first."""
        if layout.node(self._me) is None or layout.node(peer) is None:
            return ()
        return (META_PARTITION, *self.chunks(layout, peer, layout.replicas_per_partition))
