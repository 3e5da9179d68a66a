"""A `RegisterStore` in memory, with a disk that is slow and a process that may die between a write and its sync."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Collection, Mapping, Sequence

from cluster.errors import Corrupt
from cluster.merkle.digest_tree import DigestTree
from cluster.merkle.identity import PLACE_BITS, register_digest, register_place
from cluster.register.key import RegisterKey
from cluster.register.record import ABSENT, Record
from cluster.register.store import (
    HeldVersion,
    MetaWrite,
    Page,
    PartitionRecord,
    PartitionWrite,
    PurgeWrite,
    RegisterWrite,
    Write,
)

TREE_BITS = 8
"""Of every partition's tree, unless a disk is made with others; never deeper."""


class DiskContent:
    """What survives a crash."""

    def __init__(self, tree_bits: int = TREE_BITS) -> None:
        self._tree_bits = tree_bits
        self.registers: dict[int, dict[RegisterKey, Record]] = {}
        self.trees: dict[int, DigestTree] = {}
        self.partitions: dict[int, PartitionRecord] = {}
        self.meta: dict[str, bytes] = {}

    def apply(self, writes: Sequence[Write]) -> None:
        for write in writes:
            if isinstance(write, RegisterWrite):
                self._put(write.partition, write.key, write.record)
            elif isinstance(write, PurgeWrite):
                if self.registers.get(write.partition, {}).get(write.key) == Record(write.version, None):
                    self._put(write.partition, write.key, None)
            elif isinstance(write, PartitionWrite):
                self.partitions[write.partition] = write.state
                if write.clear:
                    self.registers.pop(write.partition, None)
                    self.trees.pop(write.partition, None)
            else:
                assert isinstance(write, MetaWrite)
                self.meta[write.name] = write.value

    def _put(self, partition: int, key: RegisterKey, record: Record | None) -> None:
        held = self.registers.setdefault(partition, {})
        tree = self.trees.setdefault(partition, DigestTree(self._tree_bits))
        leaf = _place(key) >> (PLACE_BITS - self._tree_bits)
        old = held.pop(key, None)
        if old is not None:
            tree.change(leaf, -_digest(key, old), -1)
        if record is not None:
            held[key] = record
            tree.change(leaf, _digest(key, record), 1)


def _place(key: RegisterKey) -> int:
    return register_place(key.table, key.partition, key.sort)


def _digest(key: RegisterKey, record: Record) -> int:
    return register_digest(key.table, key.partition, key.sort, *record.version)


class MemoryRegisterStore:
    """One process's hold on a disk. `crash` lets go of it: what was being synced is there or not, what waited is not."""

    def __init__(self, disk: DiskContent, rng: random.Random, sync_s: float = 0.002) -> None:
        self._disk = disk
        self._rng = rng
        self.sync_s = sync_s
        self._waiting: list[tuple[Sequence[Write], asyncio.Future[None]]] = []
        self._syncing: list[tuple[Sequence[Write], asyncio.Future[None]]] = []
        self._dead = False
        self._broken = False

    def crash(self) -> None:
        if self._syncing and self._rng.random() < 0.5:
            for writes, _ in self._syncing:
                self._disk.apply(writes)
        self._dead = True
        self._syncing, self._waiting = [], []

    def is_promising(self) -> bool:
        """Whether a promise is decided and not on the disk yet."""
        return any(isinstance(write, PartitionWrite) for writes, _ in self._waiting + self._syncing for write in writes)

    def fail(self) -> None:
        """Every commit from here on fails."""
        self._broken = True

    def commit(self, writes: Sequence[Write]) -> asyncio.Future[None]:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if not writes and not self._waiting and not self._syncing and not self._broken:
            future.set_result(None)
            return future
        self._waiting.append((list(writes), future))
        if not self._syncing and not self._dead:
            self._begin()
        return future

    def _begin(self) -> None:
        self._syncing, self._waiting = self._waiting, []
        asyncio.get_running_loop().call_later(self._pause(), self._end)

    def _end(self) -> None:
        if self._dead:
            return
        done, self._syncing = self._syncing, []
        for writes, future in done:
            if self._broken:
                if not future.done():
                    future.set_exception(Corrupt("the disk is broken"))
                continue
            self._disk.apply(writes)
            if not future.done():
                future.set_result(None)
        if self._waiting:
            self._begin()

    def _pause(self) -> float:
        return self.sync_s * (0.2 + self._rng.expovariate(1))

    async def _read(self) -> None:
        await asyncio.sleep(self._pause() / 4)

    async def get(self, partition: int, key: RegisterKey) -> Record:
        await self._read()
        record = self._disk.registers.get(partition, {}).get(key, ABSENT)
        await self._read()
        return record

    async def scan(
        self, partition: int, table: str, partition_key: bytes, after: bytes, prefix: bytes, limit: int
    ) -> Page:
        await self._read()
        held = self._disk.registers.get(partition, {})
        found = [
            (key, held[key])
            for key in sorted(held)
            if key.table == table
            and key.partition == partition_key
            and key.sort > after
            and key.sort.startswith(prefix)
        ]
        await self._read()
        return Page(found[:limit], len(found) > limit)

    async def page(self, partition: int, after: RegisterKey | None, limit: int) -> Page:
        await self._read()
        held = self._disk.registers.get(partition, {})
        found = [(key, held[key]) for key in sorted(held) if after is None or key > after]
        await self._read()
        return Page(found[:limit], len(found) > limit)

    async def partitions(self) -> dict[int, PartitionRecord]:
        return dict(self._disk.partitions)

    async def meta(self, name: str) -> bytes | None:
        return self._disk.meta.get(name)

    def trees(self) -> Mapping[int, DigestTree]:
        return dict(self._disk.trees)

    async def versions(self, partition: int, bits: int, prefixes: Collection[int]) -> list[HeldVersion]:
        await self._read()
        return held_versions(self._disk, partition, bits, prefixes)

    async def tombstone_counts(self) -> dict[int, int]:
        await self._read()
        counts = {p: sum(r.value is None for r in held.values()) for p, held in self._disk.registers.items()}
        return {partition: count for partition, count in counts.items() if count}

    async def tombstones(self, partition: int, after: RegisterKey | None, limit: int) -> list[HeldVersion]:
        await self._read()
        return held_tombstones(self._disk, partition, after, limit)


def held_versions(disk: DiskContent, partition: int, bits: int, prefixes: Collection[int]) -> list[HeldVersion]:
    held = disk.registers.get(partition, {})
    return [
        HeldVersion(key, record.version, record.value is None)
        for key, record in held.items()
        if _place(key) >> (PLACE_BITS - bits) in prefixes
    ]


def held_tombstones(disk: DiskContent, partition: int, after: RegisterKey | None, limit: int) -> list[HeldVersion]:
    held = disk.registers.get(partition, {})
    found = [
        HeldVersion(key, held[key].version, True)
        for key in sorted(held)
        if held[key].value is None and (after is None or key > after)
    ]
    return found[:limit]


def tombstones_of(disk: DiskContent) -> int:
    return sum(record.value is None for held in disk.registers.values() for record in held.values())
