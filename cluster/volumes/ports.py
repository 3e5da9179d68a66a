"""What volumes need of the rest of the cluster: registers and chunks, as two narrow protocols.

The real ones are `cluster.register` and `cluster.chunks`; tests pass ones in memory. The results are protocols too, because the
layers below may not import from here. Nothing in `cluster.volumes` reaches a peer, a disk or the time in another way than through
these two and `cluster.doors`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from cluster.register.change import Absence
from cluster.register.key import RegisterKey
from cluster.rpc.message import Buffer

__all__ = ["Buffer", "CasResult", "Chunks", "LocalReferences", "RegisterKey", "Registers", "ScanPage"]


class CasResult(Protocol):
    """What became of a compare-and-set."""

    @property
    def applied(self) -> bool:
        """Whether the register now holds (or held, before somebody else's later change) the value that was offered."""

    @property
    def current(self) -> bytes | None:
        """The register's value after the attempt; None when it is absent."""


class ScanPage(Protocol):
    """Some registers of one partition key, in the order of their sort keys."""

    @property
    def entries(self) -> Sequence[tuple[bytes, bytes]]:
        """``(sort key, value)``, ascending."""

    @property
    def resume(self) -> bytes | None:
        """What to pass as ``after`` to go on (there may be more even after a short or empty page); None at the end."""


class Registers(Protocol):
    """Small linearizable records. Every call may raise QuorumUnavailable."""

    async def read(self, key: RegisterKey) -> bytes | None:
        """The value, linearizable; None when the register is absent."""

    async def compare_and_set(
        self, key: RegisterKey, expected: bytes | None, value: bytes | None, *, absence: Absence | None = None
    ) -> CasResult:
        """Replace ``expected`` (None: absent) by ``value`` (None: delete). Safe to repeat when values are unique, a creation when all
        its tries are given the same ``absence``.

        Raises QuorumUnavailable (nothing was changed) and OutcomeUnknown."""

    async def scan(self, table: str, partition_key: bytes, after: bytes, prefix: bytes, limit: int) -> ScanPage:
        """At most ``limit`` registers with sort keys that begin with ``prefix`` and are greater than ``after``."""


class Chunks(Protocol):
    """Immutable runs of bytes, named by their BLAKE3-256, replicated."""

    async def put(self, payload: Buffer, *, referrer: bytes, replicas: int) -> bytes:
        """Store ``payload`` durably on a quorum with the reference ``(chunk, referrer)``; returns the chunk id (32 bytes).

        Raises QuorumUnavailable, NoSpace. After an error or a cancellation the chunk may still be held somewhere."""

    async def read(self, chunk: bytes, offset: int, length: int, *, replicas: int) -> Buffer:
        """``length`` bytes of the chunk from ``offset``, verified. Raises NotFound, Corrupt (no good copy), QuorumUnavailable."""

    async def drop_reference(self, chunk: bytes, referrer: bytes, replicas: int) -> None:
        """Remove the reference from every replica, durably; one that is not there is no error. Raises QuorumUnavailable."""


class LocalReferences(Protocol):
    """The references that this node holds, in its own store. Every call may raise the store's errors (Corrupt, NoSpace, Busy)."""

    async def list_references(self, after: tuple[bytes, bytes] | None, limit: int) -> list[tuple[bytes, bytes]]:
        """At most ``limit`` of ``(referrer, chunk)``, ascending, greater than ``after`` as pairs of bytes (which may be shorter than a real
        referrer and chunk: ``(beginning, b"")`` comes before everything that begins so). Fewer than ``limit``: no more follow."""

    async def drop_reference(self, chunk: bytes, referrer: bytes) -> bool:
        """Remove it from this node's store, durably; whether it was there."""
