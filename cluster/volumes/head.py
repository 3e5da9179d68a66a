"""A volume's head: the value of its register (docs/formats/volume-map.md). Frozen values and their codec. Pure.

A head names the newest root, and keeps the roots before it until what only they need has been given back (`retired`). A deleted volume's
head stays, hidden, as long as it has retired roots. A *claim* is a hidden head without any content: a write to a name that has no
volume puts it there before its first chunk, so that the names of all writes in progress are known (`fence`). Every value written carries
a random ``stamp`` of its own, so that no two values of a register are ever equal and a compare-and-set may be repeated.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgpack
from blake3 import blake3

from cluster.errors import Corrupt
from cluster.register.key import RegisterKey
from cluster.volumes.page import Stored
from cluster.volumes.volume import Volume
from cluster.volumes.volume_map import EMPTY_ROOT, Root

VERSION = 1
TABLE = "volume"
VOLUME_SHARDS = 32
"""Register partitions that heads are spread over. A volume's shard is BLAKE3(name) mod 32; a listing merges all of them."""

STAMP_BYTES = 8

CLAIM_GENERATION = 0
"""Of a head that never had content; a volume's first generation is 1."""


def shard_of(name: str) -> int:
    return blake3(name.encode()).digest(length=4)[3] % VOLUME_SHARDS


def shard_key(shard: int) -> bytes:
    return b"volumes/%02d" % shard


def head_key(name: str) -> RegisterKey:
    return RegisterKey(TABLE, shard_key(shard_of(name)), name.encode())


@dataclass(frozen=True, slots=True)
class RetiredRoot:
    """A root that was live once. ``write`` made it; ``retired_at`` is wall time, for people only."""

    write: bytes
    id: bytes
    root: Root
    size: int
    chunk_size: int
    replicas: int
    retired_at: float


@dataclass(frozen=True, slots=True)
class Head:
    """``write``: the write id of the newest change of content, size or existence. ``fenced``: the newest writes that were shut out, oldest
    first; ``fences``: how many were, ever (see `fence`)."""

    stamp: bytes
    write: bytes
    id: bytes
    live: bool
    generation: int
    name: str
    size: int
    chunk_size: int
    replicas: int
    durability: str
    root: Root
    created_at: float
    modified_at: float
    retired: tuple[RetiredRoot, ...] = ()
    fenced: tuple[bytes, ...] = ()
    fences: int = 0

    @property
    def is_claim(self) -> bool:
        """Whether it only holds the place of a volume that a write is about to create."""
        return not self.live and self.generation == CLAIM_GENERATION

    def volume(self) -> Volume:
        assert self.live
        return Volume(
            name=self.name,
            id=self.id,
            generation=self.generation,
            size=self.size,
            chunk_size=self.chunk_size,
            replicas=self.replicas,
            durability=self.durability,
            created_at=self.created_at,
            modified_at=self.modified_at,
            map_inline=self.root.page is None,
        )

    def has_seen(self, write: bytes) -> bool:
        """Whether this value shows that ``write`` took effect."""
        return self.write == write or any(entry.write == write for entry in self.retired)

    def retired_with_root(self, wall: float) -> tuple[RetiredRoot, ...]:
        """The retired roots once the present root is one of them; an empty root needs no giving back."""
        if self.root == EMPTY_ROOT:
            return self.retired
        return (
            *self.retired,
            RetiredRoot(self.write, self.id, self.root, self.size, self.chunk_size, self.replicas, wall),
        )


def retired_bytes(entries: tuple[RetiredRoot, ...]) -> int:
    """About how much of a head they are."""
    return sum(64 + len(entry.root.inline) for entry in entries)


def encode_head(head: Head) -> bytes:
    packed: bytes = msgpack.packb(
        [
            VERSION,
            head.stamp,
            head.write,
            head.id,
            head.live,
            head.generation,
            head.name,
            head.size,
            head.chunk_size,
            head.replicas,
            head.durability,
            root_to_wire(head.root),
            head.created_at,
            head.modified_at,
            [
                [e.write, e.id, root_to_wire(e.root), e.size, e.chunk_size, e.replicas, e.retired_at]
                for e in head.retired
            ],
            head.fenced,
            head.fences,
        ]
    )
    return packed


def decode_head(value: bytes) -> Head:
    """Raises Corrupt; items after those known here are ignored."""
    try:
        items = msgpack.unpackb(value)
        if items[0] != VERSION:
            raise Corrupt(f"A volume's head has the format {items[0]}, this release reads {VERSION}: update this node.")
        stamp, write, volume_id, live, generation, name, size, chunk_size, replicas, durability = items[1:11]
        return Head(
            stamp,
            write,
            volume_id,
            live,
            generation,
            name,
            size,
            chunk_size,
            replicas,
            durability,
            root_from_wire(items[11]),
            items[12],
            items[13],
            tuple(RetiredRoot(e[0], e[1], root_from_wire(e[2]), *e[3:7]) for e in items[14]),
            tuple(items[15]) if len(items) > 15 else (),
            items[16] if len(items) > 16 else 0,
        )
    except (ValueError, TypeError, LookupError, msgpack.UnpackException) as error:
        raise Corrupt("A volume's head can't be read.") from error


def root_to_wire(root: Root) -> bytes | list[Any]:
    return root.inline if root.page is None else list(root.page)


def root_from_wire(wire: Any) -> Root:
    if isinstance(wire, bytes):
        return Root(wire) if wire else EMPTY_ROOT
    chunk, write, length, extents = wire[:4]
    return Root(page=Stored(chunk, write, length, extents))
