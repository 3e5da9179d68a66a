"""Which cluster a simulated node belongs to, in memory: `cluster.governance.belonging` as a disk that never fails."""

from __future__ import annotations


class MemoryBelonging:
    """A new one is a new disk."""

    def __init__(self) -> None:
        self.cluster_id = b""
        self.lost_registers = False

    async def join(self, cluster_id: bytes) -> None:
        self.cluster_id = cluster_id
