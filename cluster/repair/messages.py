"""Repair's messages: comparing trees, telling what is held, nudging, and how repair goes."""

from __future__ import annotations

from dataclasses import dataclass

from cluster.chunks.messages import ListedChunk
from cluster.register.key import RegisterKey
from cluster.rpc.message import Done, Request, message

CHUNK_TREE = "chunks"
"""A tree over chunk references; its ``key`` is the number of copies, its root the whole hash space."""

REGISTER_TREE = "registers"
"""A tree over the registers of one partition, which is its ``key``."""


@message
@dataclass(frozen=True, slots=True)
class ComparedRoots:
    """``chunks`` and ``registers``: which of the request's sums differ, a bit each, lowest first. ``copies``: classes that the receiver
    has beside those compared. ``skipped``: registers that the receiver can't speak about now (it is relearning), a bit each."""

    chunks: bytes
    registers: bytes
    copies: tuple[int, ...]
    skipped: bytes


@message("repair.compare-roots", reply=ComparedRoots)
@dataclass(frozen=True, slots=True)
class CompareRoots(Request[ComparedRoots]):
    """The sender's sums over what it shares with the receiver, 8 bytes each, big-endian, in the payload: first for each class in
    ``copies`` the partitions whose chunks in so many copies both hold, ascending; then the partitions whose registers both hold,
    ascending. Both work out the same list from the layout in force."""

    copies: tuple[int, ...]


@message
@dataclass(frozen=True, slots=True)
class NodeSums:
    """The sums in the payload, 8 bytes each, big-endian. ``bits``: how deep the receiver's tree is; when that is less than was
    asked for, there are none."""

    bits: int


@message("repair.node-sums", reply=NodeSums)
@dataclass(frozen=True, slots=True)
class GetNodeSums(Request[NodeSums]):
    """Sums of nodes of one tree: the prefixes of ``bits`` bits in the payload, 4 bytes each, big-endian."""

    tree: str
    key: int
    bits: int


@message
@dataclass(frozen=True, slots=True)
class LeafChunks:
    """``more``: the list was cut off; ask for fewer leaves."""

    chunks: tuple[ListedChunk, ...]
    more: bool


@message("repair.leaf-chunks", reply=LeafChunks)
@dataclass(frozen=True, slots=True)
class GetLeafChunks(Request[LeafChunks]):
    """What the receiver holds with references in these leaves of the tree of ``copies``."""

    copies: int
    leaves: tuple[int, ...]


@message
@dataclass(frozen=True, slots=True)
class KeyVersion:
    table: str
    partition_key: bytes
    sort_key: bytes
    round: int
    proposer: str
    seq: int


@message
@dataclass(frozen=True, slots=True)
class LeafVersions:
    versions: tuple[KeyVersion, ...]
    more: bool


@message("repair.leaf-versions", reply=LeafVersions)
@dataclass(frozen=True, slots=True)
class GetLeafVersions(Request[LeafVersions]):
    """The versions of the registers of a partition whose places begin with these prefixes of ``bits`` bits."""

    partition: int
    bits: int
    prefixes: tuple[int, ...]


@message("repair.nudge", reply=Done)
@dataclass(frozen=True, slots=True)
class Nudge(Request[Done]):
    """The receiver seems to lack copies or references of these chunks, which the sender holds, or has lost a copy: it looks, and
    mends itself."""

    chunks: tuple[bytes, ...]


@message
@dataclass(frozen=True, slots=True)
class NudgedKey:
    table: str
    partition_key: bytes
    sort_key: bytes

    @property
    def key(self) -> RegisterKey:
        return RegisterKey(self.table, self.partition_key, self.sort_key)


@message("repair.nudge-keys", reply=Done)
@dataclass(frozen=True, slots=True)
class NudgeKeys(Request[Done]):
    """The receiver's copies of these registers of a partition seem to be behind the sender's: it looks, and mends itself."""

    partition: int
    keys: tuple[NudgedKey, ...]


@message
@dataclass(frozen=True, slots=True)
class Described:
    """In the order asked; None: not held."""

    chunks: tuple[ListedChunk | None, ...]


@message("repair.describe", reply=Described)
@dataclass(frozen=True, slots=True)
class Describe(Request[Described]):
    """What the receiver holds of these chunks."""

    chunks: tuple[bytes, ...]


@message
@dataclass(frozen=True, slots=True)
class NodeRepair:
    """How one node's repair goes. Sizes in bytes, times in seconds, counters since its start.

    ``classes`` and ``counts``: for each number of copies the chunks held in each partition, 4 bytes each, big-endian; on the wire the
    counts are the payload, since a large cluster's are too long for a header. ``lacking``:
    copies that this node knows it should have and doesn't. ``oldest_s``: age of the oldest difference, negative for none.
    ``passes``: comparisons with all peers completed. ``oldest_verification_s``: nothing held was last read and verified longer ago;
    negative while not known."""

    classes: tuple[int, ...]
    counts: bytes
    lacking: int
    keys_diverged: int
    chunks_diverged: int
    oldest_s: float
    handoffs: int
    refilling: int
    queue: int
    copied_chunks: int
    copied_bytes: int
    chunk_rate: float
    byte_rate: float
    passes: int
    paused: bool
    last_error: str
    oldest_verification_s: float
    verified_chunks: int
    damaged_chunks: int
    compared_chunks: int


@message("repair.get", reply=NodeRepair)
@dataclass(frozen=True, slots=True)
class GetRepair(Request[NodeRepair]):
    """How the receiver's repair goes."""


@message("repair.control", reply=Done)
@dataclass(frozen=True, slots=True)
class ControlRepair(Request[Done]):
    """``action``: "run" (compare with everybody now), "scrub" (verify everything now, too), "pause", "resume"."""

    action: str
