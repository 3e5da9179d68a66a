"""The registers an acceptor has in memory: what was decided last (`newest`) and what is known to be durable (`durable`).

Bounded. An entry whose newest record is not durable yet is pinned: dropping it would let a decision be made on older knowledge.
Owned by `Acceptor`; nobody else touches it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection
from dataclasses import dataclass

from cluster.register.key import RegisterKey
from cluster.register.record import Record

ENTRY_OVERHEAD_BYTES = 400
"""What an entry costs besides its value: the key, tuples, the dict's slot."""

CACHE_LIMIT_BYTES = 48 * 1024 * 1024
"""Some 20 000 heads of 2 KiB: the working set of a busy node, within the memory a node may use."""


@dataclass(slots=True)
class CachedRecord:
    newest: Record
    durable: Record
    pending: int = 0
    """Commits under way for this register."""
    pins: int = 0
    """Held by somebody who must see its changes; not evicted."""
    forgotten: bool = False
    """No longer in the cache: its partition was cleared."""


class RecordCache:
    def __init__(self, limit_bytes: int = CACHE_LIMIT_BYTES) -> None:
        self._entries: OrderedDict[tuple[int, RegisterKey], CachedRecord] = OrderedDict()
        self._limit = limit_bytes
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, partition: int, key: RegisterKey) -> CachedRecord | None:
        entry = self._entries.get((partition, key))
        if entry is not None:
            self._entries.move_to_end((partition, key))
        return entry

    def add(self, partition: int, key: RegisterKey, record: Record) -> CachedRecord:
        """Enter a record just read from the store, unless a newer one has been entered meanwhile."""
        entry = self._entries.get((partition, key))
        if entry is None:
            entry = self._entries[partition, key] = CachedRecord(record, record)
            self._bytes += _cost(record)
            self._evict(keep=(partition, key))
        return entry

    def begin(self, entry: CachedRecord, record: Record) -> None:
        """``record`` has been decided and is on its way to the store. ``entry`` comes from `get` or `add`, without an await since."""
        assert not entry.forgotten
        self._bytes += _cost(record) - _cost(entry.newest)
        entry.newest = record
        entry.pending += 1

    def finish(self, entry: CachedRecord, record: Record) -> None:
        """``record`` is durable."""
        entry.durable = record
        entry.pending -= 1
        self._evict()

    def pin(self, entry: CachedRecord) -> None:
        """Keep an entry, just got without an await since, until `unpin`. It may still be forgotten."""
        entry.pins += 1

    def unpin(self, entry: CachedRecord) -> None:
        entry.pins -= 1
        self._evict()

    def forget_partitions(self, partitions: Collection[int]) -> None:
        """Drop everything of partitions whose registers are cleared; entries in the hands of a commit are let go too."""
        for name in [name for name in self._entries if name[0] in partitions]:
            self._entries[name].forgotten = True
            self._bytes -= _cost(self._entries.pop(name).newest)

    def _evict(self, keep: tuple[int, RegisterKey] | None = None) -> None:
        """``keep`` is in its caller's hands: a decision on it may follow without another look at the cache."""
        skipped = 0
        while self._bytes > self._limit and skipped < len(self._entries):
            name, entry = self._entries.popitem(last=False)
            if entry.pending or entry.pins or name == keep:
                self._entries[name] = entry
                skipped += 1
            else:
                self._bytes -= _cost(entry.newest)


def _cost(record: Record) -> int:
    return ENTRY_OVERHEAD_BYTES + len(record.value or b"")
