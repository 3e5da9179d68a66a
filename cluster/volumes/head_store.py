"""Heads in their registers: linearizable reads, listing scans, and swings whose outcome is known whenever it can be.

Decoded heads are cached by their register's value: a read always asks the register, and decodes only what has changed.
"""

from __future__ import annotations

import random
from collections import OrderedDict
from dataclasses import dataclass, replace

from cluster.errors import OutcomeUnknown, QuorumUnavailable
from cluster.register.change import Absence
from cluster.volumes.head import STAMP_BYTES, TABLE, Head, decode_head, encode_head, head_key, shard_key
from cluster.volumes.ports import Registers
from cluster.volumes.read_coalescer import ReadCoalescer

HEAD_CACHE_ENTRIES = 1024
"""Decoded heads kept; a head is at most some 20 KiB, typically 0.3 KiB."""

UNKNOWN_TRIES = 3
"""Tries of a swing of unknown outcome before the caller is told that it is unknown."""


@dataclass(frozen=True, slots=True)
class Version:
    """What a register held: ``raw`` is what a compare-and-set expects. Neither for an absent register."""

    raw: bytes | None
    head: Head | None

    @property
    def live(self) -> Head | None:
        return self.head if self.head is not None and self.head.live else None


ABSENT = Version(None, None)


@dataclass(frozen=True, slots=True)
class Swing:
    """What became of one: done, or not, and what the register holds instead."""

    applied: bool
    current: Version


class HeadStore:
    def __init__(self, registers: Registers, rng: random.Random) -> None:
        self._registers = registers
        self._rng = rng
        self._cache: OrderedDict[str, Version] = OrderedDict()
        self._reads: ReadCoalescer[str, Version] = ReadCoalescer(self._read)

    async def read(self, name: str) -> Version:
        """Linearizable. Readers of the same head share register reads. Raises QuorumUnavailable, Corrupt."""
        return await self._reads.read(name)

    async def scan(self, shard: int, after: bytes, prefix: bytes, limit: int) -> tuple[list[Version], bytes | None]:
        """Heads of one shard in the order of their names, deleted ones too, and where to go on."""
        page = await self._registers.scan(TABLE, shard_key(shard), after=after, prefix=prefix, limit=limit)
        return [Version(value, decode_head(value)) for _, value in page.entries], page.resume

    async def scan_names(self, shard: int, after: bytes, limit: int) -> tuple[list[str], bytes | None]:
        """Names that have a register in one shard, hidden ones too, and where to go on. Looks into no head."""
        page = await self._registers.scan(TABLE, shard_key(shard), after=after, prefix=b"", limit=limit)
        return [name.decode() for name, _ in page.entries], page.resume

    async def swing(self, name: str, expected: Version, head: Head | None) -> Swing:
        """Replace ``expected`` by ``head`` (None: remove the register), if it is still there.

        Raises QuorumUnavailable (nothing was changed) and OutcomeUnknown (only after repeating)."""
        key = head_key(name)
        if head is not None:
            head = replace(head, stamp=self._rng.randbytes(STAMP_BYTES))
        value = None if head is None else encode_head(head)
        absence = Absence() if expected.raw is None else None
        unknown: OutcomeUnknown | None = None
        for _ in range(UNKNOWN_TRIES):
            try:
                result = await self._registers.compare_and_set(key, expected.raw, value, absence=absence)
            except QuorumUnavailable as error:
                if unknown is not None:
                    raise unknown from error
                raise
            except OutcomeUnknown as error:
                unknown = error
                continue  # repeating it is safe, and its answer tells what became of this one
            if result.applied or (value is not None and result.current == value):
                done = Version(value, head)
                self._remember(name, done)
                return Swing(True, done)
            current = self._known(name, result.current)
            if unknown is None:
                return Swing(False, current)
            if took_effect(current, expected, head):
                return Swing(True, Version(value, head))
            raise unknown
        assert unknown is not None
        raise unknown

    async def _read(self, name: str) -> Version:
        return self._known(name, await self._registers.read(head_key(name)))

    def _known(self, name: str, raw: bytes | None) -> Version:
        """The decoded value, from the cache when it is the one decoded last."""
        if raw is None:
            self._remember(name, ABSENT)
            return ABSENT
        cached = self._cache.get(name)
        if cached is not None and cached.raw == raw:
            self._cache.move_to_end(name)
            return cached
        version = Version(raw, decode_head(raw))
        self._remember(name, version)
        return version

    def _remember(self, name: str, version: Version) -> None:
        if version.raw is None:
            self._cache.pop(name, None)
            return
        self._cache[name] = version
        self._cache.move_to_end(name)
        if len(self._cache) > HEAD_CACHE_ENTRIES:
            self._cache.popitem(last=False)


def took_effect(current: Version, expected: Version, head: Head | None) -> bool:
    """Whether the register shows that the swing from ``expected`` to ``head`` was done, though more may have happened since."""
    if head is None:
        return current.raw is None
    if expected.head is not None and expected.head.write == head.write:
        return False  # nothing but bookkeeping changed, which leaves no trace once it is overwritten
    return current.head is not None and current.head.has_seen(head.write)
