"""What storing and reading chunks needs to know of the layout; `cluster.governance.installed.InstalledLayout` is the real one."""

from __future__ import annotations

from typing import Protocol

from cluster.register.quorum import QuorumRule


class ChunkView(Protocol):
    """A node's installed layout. Everything here raises NotReady while there is none."""

    @property
    def epoch(self) -> int: ...

    @property
    def partition_bits(self) -> int:
        """Partitions are the top so many bits of a chunk's id."""

    def check(self, epoch: int) -> bool:
        """Whether ``epoch`` is the installed one."""

    async def agree(self, epoch: int, peer: str) -> None:
        """Bring both sides to one epoch, or raise StaleLayout."""

    async def refresh(self, peer: str) -> None:
        """Learn a newer state from ``peer``."""

    def chunk_rule(self, chunk: bytes, copies: int) -> QuorumRule:
        """Where ``copies`` copies of a chunk belong, and what makes a quorum of them; joint while a layout changes."""

    def chunk_order(self, chunk: bytes) -> tuple[str, ...]:
        """Every node, in the order in which a copy of the chunk is likely there."""

    def is_alive(self, name: str) -> bool:
        """Whether a node is worth asking."""
