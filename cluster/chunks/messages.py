"""The chunk protocol's messages. ``crc`` is the CRC32C of the payload, so that nothing is taken over that a wire or a memory has
changed on the way."""

from __future__ import annotations

from dataclasses import dataclass

from cluster.chunks.store import ChunkEntry
from cluster.rpc.message import Done, Request, message


@message("chunk.put", reply=Done)
@dataclass(frozen=True, slots=True)
class PutChunk(Request[Done]):
    """Keep the payload, durably, with a reference. `repair`: see `ChunkStore.put`."""

    chunk: bytes
    referrer: bytes
    replicas: int
    crc: int
    repair: bool = False
    """Not a user's write: a copy that is mended or moves home, for which a full disk has some space left."""


@message
@dataclass(frozen=True, slots=True)
class ChunkBytes:
    crc: int


@message("chunk.read", reply=ChunkBytes, bulk=True)
@dataclass(frozen=True, slots=True)
class ReadChunk(Request[ChunkBytes]):
    """Bytes of a chunk, in the payload of the reply. A large one."""

    chunk: bytes
    offset: int
    length: int
    repair: bool = False
    """On behalf of no user."""


@message("chunk.read-small", reply=ChunkBytes)
@dataclass(frozen=True, slots=True)
class ReadSmall(Request[ChunkBytes]):
    """As `ReadChunk`, for a few KiB: travels with the short messages."""

    chunk: bytes
    offset: int
    length: int


@message
@dataclass(frozen=True, slots=True)
class Dropped:
    found: bool


@message("chunk.drop-reference", reply=Dropped)
@dataclass(frozen=True, slots=True)
class DropReference(Request[Dropped]):
    chunk: bytes
    referrer: bytes


@message
@dataclass(frozen=True, slots=True)
class ListedReference:
    referrer: bytes
    replicas: int


@message
@dataclass(frozen=True, slots=True)
class ListedChunk:
    """``more``: the chunk has further references, above those listed (`cluster.chunks.listing`)."""

    chunk: bytes
    length: int
    references: tuple[ListedReference, ...]
    more: bool = False

    @staticmethod
    def of(entry: ChunkEntry) -> ListedChunk:
        """A store's entry, for the wire."""
        references = tuple(ListedReference(r.referrer, r.replicas) for r in entry.references)
        return ListedChunk(entry.chunk, entry.length, references)


@message
@dataclass(frozen=True, slots=True)
class ChunkPage:
    chunks: tuple[ListedChunk, ...]
    more: bool


@message("chunk.list", reply=ChunkPage)
@dataclass(frozen=True, slots=True)
class ListChunks(Request[ChunkPage]):
    """What the receiver holds of a partition, by ascending id. ``after`` empty: from the beginning."""

    partition: int
    after: bytes
    limit: int


@message
@dataclass(frozen=True, slots=True)
class FilledPartitions:
    """``filled``: a bit for each partition, lowest first (`cluster.merkle.bits`)."""

    filled: bytes


@message("chunk.list-filled", reply=FilledPartitions)
@dataclass(frozen=True, slots=True)
class ListFilled(Request[FilledPartitions]):
    """In which partitions the receiver holds chunks that anything refers to."""


@message
@dataclass(frozen=True, slots=True)
class ListedReferences:
    """``more``: further ones follow."""

    references: tuple[ListedReference, ...]
    more: bool


@message("chunk.references", reply=ListedReferences)
@dataclass(frozen=True, slots=True)
class GetReferences(Request[ListedReferences]):
    """The references that the receiver holds of one chunk, by ascending referrer. ``after`` empty: from the beginning."""

    chunk: bytes
    after: bytes


@message
@dataclass(frozen=True, slots=True)
class Held:
    held: tuple[bool, ...]


@message("chunk.hold", reply=Held)
@dataclass(frozen=True, slots=True)
class HoldChunks(Request[Held]):
    """Which of these chunks the receiver holds. Those it does gain the references given beside them."""

    chunks: tuple[ListedChunk, ...]
