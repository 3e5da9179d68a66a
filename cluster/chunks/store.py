"""One node's chunk store, as the cluster core sees it: a protocol, fulfilled by `node.storage.chunk_store`.

Owns the words (`Reference`, `ChunkEntry`, `ChunkStatistics`, `StoreFailed`) and the contract; never any I/O. What holds for
every store:

* An answer to `put`, `add_reference`, `drop_reference` or `drop_partition` comes after its records are durable (fdatasync).
* Bytes that do not match their checksums are never returned. What is found damaged is set aside at once: the chunk stops being
  listed as held, its references go with it, and repair may `put` it anew.
* Whatever has to look at the index or at a copy may raise Busy: the node lacks something (open files, memory) to do so. That says nothing
  about the chunk, and nothing was changed.
* A chunk lives as long as it has a reference, and a grace period beyond. A reference to a chunk that isn't held does not exist.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from cluster.errors import HoldfastError
from cluster.merkle.digest_tree import DigestTree
from cluster.rpc.message import Buffer

CHUNK_ID_BYTES = 32
"""BLAKE3-256."""

REFERRER_BYTES = 16
"""A volume's id."""

PAYLOAD_LIMIT = 8 * 1024 * 1024
"""Largest chunk a store takes, in bytes; the wire's payload limit."""


class StoreFailed(HoldfastError):
    """A write or fdatasync failed, so what the disk holds is not known: the store takes no more changes until it is opened anew.

    What was acknowledged before is still read, each byte checked. The operator should look at the disk, then restart the daemon.
    """

    code = "store-failed"


@dataclass(frozen=True, slots=True)
class Reference:
    """`referrer` (16 bytes) needs the chunk, in `replicas` (1..255) copies in the cluster."""

    referrer: bytes
    replicas: int


@dataclass(frozen=True, slots=True)
class ChunkEntry:
    """A chunk held here: its id, its length in bytes, and its references by ascending referrer."""

    chunk: bytes
    length: int
    references: tuple[Reference, ...]


@dataclass(frozen=True, slots=True)
class ChunkStatistics:
    """What the store holds and has done since it was opened. Sizes in bytes."""

    chunks: int
    live_bytes: int
    """Payload bytes of the chunks held."""
    log_bytes: int
    """Size of all log files: live, dead, and headers."""
    log_files: int
    free_bytes: int
    """What the disk still has for others than root."""
    reserve_bytes: int
    """Below this much free space a put is refused."""
    quarantined: int
    """Places in the log that are set aside as damaged."""
    queued: int
    """Operations that wait for the writer."""
    pending: int
    """Chunks whose newest state is in memory and the log, not yet in the index."""
    puts: int
    reads: int
    cached_reads: int
    syncs: int
    bytes_written: int
    bytes_read: int
    failure: str | None
    """Why the store takes no more changes, or None."""
    ballast_bytes: int = 0
    """Allocated to nothing, to be given up for deletes when the disk is full."""


class ChunkStore(Protocol):
    """Durable chunks with their references on one node. Every method is called on the store's event loop."""

    async def put(self, chunk: bytes, payload: Buffer, reference: Reference, *, repair: bool = False) -> None:
        """Keep `payload` under the name `chunk` (the caller has checked that it names it) with a reference; return when durable.

        `repair`: the copy makes up for one that is missing elsewhere; it may use half of the space that is kept free of users' puts.
        A copy that is already held only gains the reference, after its bytes were verified; a damaged one is replaced and keeps
        its references. Raises NoSpace, Invalid (sizes), Busy (nothing was changed), StoreFailed.
        """

    async def add_reference(self, chunk: bytes, reference: Reference) -> bool:
        """Add or replace (other `replicas`) a reference, durably. False when the chunk isn't held. Raises NoSpace, StoreFailed."""

    async def drop_reference(self, chunk: bytes, referrer: bytes) -> bool:
        """Drop a reference, durably. False when there was none. A chunk without any is deleted a grace period later."""

    def read_cached(self, chunk: bytes, offset: int, length: int) -> bytes | None:
        """The verified bytes if they can be had without waiting for anything; None means: use `read`. Invalid outside the chunk."""

    async def read(self, chunk: bytes, offset: int = 0, length: int | None = None) -> bytes:
        """`length` bytes (None: all) from `offset`, verified. Raises NotFound, Corrupt (then set aside), Invalid (range outside),
        Busy (nothing is known of the copy)."""

    async def length(self, chunk: bytes) -> int:
        """Bytes of a chunk. Raises NotFound."""

    async def holds(self, chunks: Sequence[bytes]) -> list[bool]:
        """Which of them are held, in order."""

    async def list_partition(self, partition: int, bits: int, after: bytes | None, limit: int) -> list[ChunkEntry]:
        """Chunks whose id has the top `bits` bits `partition`, by ascending id, after `after`. Fewer than `limit`: no more follow."""

    async def list_referrer(self, referrer: bytes, after: bytes | None, limit: int) -> list[bytes]:
        """Ids of chunks with a reference by `referrer`, ascending, after `after`. Fewer than `limit`: no more follow."""

    async def list_references(self, after: tuple[bytes, bytes] | None, limit: int) -> list[tuple[bytes, bytes]]:
        """All references held as (referrer, chunk), ascending, after the given pair. Fewer than `limit`: no more follow."""

    async def describe(self, chunks: Sequence[bytes]) -> list[ChunkEntry | None]:
        """The entry of each chunk, in order; None where it isn't held."""

    def trees(self) -> Mapping[int, DigestTree]:
        """Copies -> the tree (of `CHUNK_LEAF_BITS`) over the chunks of which so many copies shall be in the cluster: the most that one
        of the chunk's references wants. A chunk counts 1 at its `chunk_leaf`, and each of its references adds its `reference_digest`
        there; one without references is in no tree. Without chunks there may be no tree, or an empty one.

        They are what durable records add up to, and live: the store's writer goes on changing them while they are read. The mapping
        does not change, but trees come and go: ask again for each comparison.
        """

    async def drop_partition(self, partition: int, bits: int) -> int:
        """Delete every chunk of a partition with all references, durably; returns how many. No grace: the partition moved away."""

    def statistics(self) -> ChunkStatistics:
        """A snapshot."""
