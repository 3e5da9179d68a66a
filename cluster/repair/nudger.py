"""Read repair: a read that met a missing or damaged copy has its repair begun at once. Tells the nodes concerned, a message for
many chunks.

Owns what is still to be told: bounded, in memory; what does not fit is found by comparing trees.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from cluster.errors import HoldfastError
from cluster.repair.chunk_mender import ChunkMender
from cluster.repair.messages import Nudge
from cluster.rpc.caller import Caller

QUEUE_LIMIT = 10_000
"""Chunks to tell somebody about."""

NUDGE_LIMIT = 1000
"""Chunks in one message."""

DEADLINE_S = 2.0


class Nudger:
    """`run` does the work; `bad_copy` may be called from anywhere on the loop."""

    def __init__(self, me: str, caller: Caller, mender: ChunkMender) -> None:
        self._me = me
        self._caller = caller
        self._mender = mender
        self._waiting: dict[str, dict[bytes, None]] = {}
        self._wake = asyncio.Event()
        self.told = 0
        """Bad copies that reads have met."""

    @property
    def queue_length(self) -> int:
        return sum(map(len, self._waiting.values()))

    def bad_copy(self, chunk: bytes, names: Sequence[str]) -> None:
        """These nodes should hold a good copy of a chunk and did not."""
        self.told += 1
        for name in names:
            if name == self._me:
                self._mender.note([chunk])
            elif self.queue_length < QUEUE_LIMIT:
                self._waiting.setdefault(name, {})[chunk] = None
                self._wake.set()

    async def run(self) -> None:
        """Tell until cancelled."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._waiting:
                name, chunks = next(iter(self._waiting.items()))
                part = tuple(list(chunks)[:NUDGE_LIMIT])
                for chunk in part:
                    del chunks[chunk]
                if not chunks:
                    del self._waiting[name]
                try:
                    await self._caller.call(name, Nudge(part), deadline_s=DEADLINE_S)
                except HoldfastError:
                    continue  # it compares its trees when it is back
