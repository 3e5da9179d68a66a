"""What the register and chunk protocols need to know of the layout: who holds a partition, and under which epoch.

An *epoch* numbers the states of the layout (`cluster.governance.state`): a plan applied, a change finished or given up each
begin a new one. Two nodes exchange register and chunk writes only under the same epoch; that equality is what makes the
hand-over between layouts safe (docs/decisions/layout-change.md).
"""

from __future__ import annotations

from typing import Protocol

from cluster.register.quorum import QuorumRule

META_PARTITION = -1
"""The partition of the register that holds the layout itself; every member of the layout is a replica of it."""


class LayoutView(Protocol):
    """A node's installed layout. Everything here raises NotReady while there is none."""

    @property
    def epoch(self) -> int:
        """The installed epoch; 0 before there is a layout."""

    def partition_of(self, partition_key: bytes) -> int:
        """The partition of a register key or a chunk's position (a 32-byte hash takes its own top bits)."""

    def rule(self, partition: int) -> QuorumRule:
        """The quorum rule of a partition's registers."""

    def is_alive(self, name: str) -> bool:
        """Whether a node is worth asking."""

    def stores(self, partition: int) -> bytes:
        """Which store (disk) this node believes each replica of the partition to have: their store ids, in order of name.
        Answers that disagree about it are not counted in one quorum (docs/decisions/amnesia.md)."""

    def check(self, epoch: int) -> bool:
        """Whether ``epoch`` is the installed one."""

    async def agree(self, epoch: int, peer: str) -> None:
        """Return once the installed epoch equals ``epoch``, learning the newer state from ``peer`` if need be. Raises
        StaleLayout when the peer's epoch is the older one."""

    async def refresh(self, peer: str) -> None:
        """Learn whatever newer state ``peer`` has installed; best effort."""
