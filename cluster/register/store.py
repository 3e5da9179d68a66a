"""The register store, as a door: what an acceptor keeps durable, and the order in which it becomes so.

`node.storage.register_store` keeps it in SQLite; tests keep it in memory. Invariants that an implementation must keep:

* `commit` batches become durable in the order of the calls, each wholly or not at all; the returned future is done only when its
  batch is durable, and is done in the same order;
* the read methods see exactly what is durable, and everything that was durable when they were called;
* after a failed commit the store refuses everything (a database that lost a write in the middle must not acknowledge the next);
* the Merkle trees over the registers change in the same durable step as the registers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from cluster.merkle.digest_tree import DigestTree
from cluster.register.ballot import NO_BALLOT, Ballot, Version
from cluster.register.key import RegisterKey
from cluster.register.record import Record

LEARNER = "learner"
"""Holds the partition's place but has forgotten, or never knew, what it must remember: votes in nothing."""

FRESH = "fresh"
"""New to the partition by a layout change in progress: votes for the new layout's group only, while it copies."""

VOTER = "voter"
"""A full replica."""

AWAY = "away"
"""Not a replica. What it once promised is kept."""


@dataclass(frozen=True, slots=True)
class PartitionRecord:
    """An acceptor's durable state of one partition: the highest ballot it promised, its standing, and the epoch of the layout change
    in which it became a replica (0: by a change long past, or from the beginning). ``fence`` counts purges: the ballot of the last
    one that was fenced here, never above ``promised`` (docs/decisions/tombstones.md)."""

    promised: Ballot = NO_BALLOT
    standing: str = AWAY
    tenure: int = 0
    fence: Ballot = NO_BALLOT


class RegisterWrite(NamedTuple):
    """Put a register's record in place of the one that is there."""

    partition: int
    key: RegisterKey
    record: Record


class PurgeWrite(NamedTuple):
    """Forget a register if it is a tombstone of exactly this version; otherwise leave it."""

    partition: int
    key: RegisterKey
    version: Version


class PartitionWrite(NamedTuple):
    """Put a partition's durable state in place of the one that is there; ``clear`` also forgets all of its registers first."""

    partition: int
    state: PartitionRecord
    clear: bool = False


class MetaWrite(NamedTuple):
    """A named value of the node's own: the installed layout, the stores of its peers."""

    name: str
    value: bytes


Write = RegisterWrite | PurgeWrite | PartitionWrite | MetaWrite


class HeldVersion(NamedTuple):
    """What a replica holds of a register, without the value."""

    key: RegisterKey
    version: Version
    deleted: bool
    """Whether it is a tombstone."""


class Page(NamedTuple):
    """Some of a partition's registers in order of key, and whether there are more after them."""

    entries: list[tuple[RegisterKey, Record]]
    more: bool


class RegisterStore(Protocol):
    def commit(self, writes: Sequence[Write]) -> asyncio.Future[None]:
        """Make a batch durable. An empty batch is a barrier: done once everything before it is durable. The future fails
        with NoSpace or Corrupt when the store can't; it may be awaited by several, so shield it."""

    async def get(self, partition: int, key: RegisterKey) -> Record:
        """The durable record, `ABSENT` when there is none."""

    async def scan(
        self, partition: int, table: str, partition_key: bytes, after: bytes, prefix: bytes, limit: int
    ) -> Page:
        """Records of one table and partition key, tombstones included, whose sort key is greater than ``after`` and starts with
        ``prefix``, at most ``limit``."""

    async def page(self, partition: int, after: RegisterKey | None, limit: int) -> Page:
        """Every register of a partition, tombstones included, after ``after``, at most ``limit``."""

    async def partitions(self) -> dict[int, PartitionRecord]:
        """All partitions' durable state."""

    async def meta(self, name: str) -> bytes | None:
        """A named value of the node's own."""

    def trees(self) -> Mapping[int, DigestTree]:
        """By partition, a tree over every register held in it, tombstones included (`cluster.merkle.identity`: the place is
        `register_place`, the digest `register_digest`). Partitions that hold nothing may be missing. The mapping is the caller's; the
        trees go on changing as commits become durable, and a growing partition gets a new, deeper tree: ask again for each use."""

    async def versions(self, partition: int, bits: int, prefixes: Collection[int]) -> list[HeldVersion]:
        """All registers whose place begins with one of ``prefixes`` of ``bits`` bits, in no particular order."""

    async def tombstone_counts(self) -> dict[int, int]:
        """How many tombstones each partition holds, for those that hold any."""

    async def tombstones(self, partition: int, after: RegisterKey | None, limit: int) -> list[HeldVersion]:
        """The tombstones of a partition in order of key, after ``after``, at most ``limit``."""
