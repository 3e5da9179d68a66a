"""Registers of which this node's copy seems to be behind, waiting to be mended (`cluster.register.mender`).

Owns the queue: bounded, in memory; what does not fit is found again by comparing trees.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import Protocol

from cluster.doors.clock import Clock
from cluster.errors import HoldfastError
from cluster.register.key import RegisterKey
from cluster.repair.budget import RepairBudget

QUEUE_LIMIT = 50_000

BATCH = 64
"""Registers of one partition mended at a time."""

RETRY_S = 1.0
"""After a batch failed; its registers are left to the next comparison."""


class Mender(Protocol):
    async def mend(self, partition: int, keys: Sequence[RegisterKey]) -> None:
        """Bring this node's copies of these registers up to what is decided. Raises HoldfastError."""


class RegisterQueue:
    """`run` does the work; `note` may be called from anywhere on the loop."""

    def __init__(self, mender: Mender, budget: RepairBudget, clock: Clock) -> None:
        self._mender = mender
        self._budget = budget
        self._clock = clock
        self._waiting: dict[int, dict[RegisterKey, None]] = {}
        self._count = 0
        self._wake = asyncio.Event()
        self.last_error = ""

    @property
    def queue_length(self) -> int:
        return self._count

    def note(self, partition: int, keys: Iterable[RegisterKey]) -> None:
        """These copies may be behind."""
        for key in keys:
            if self._count >= QUEUE_LIMIT:
                break
            waiting = self._waiting.setdefault(partition, {})
            if key not in waiting:
                waiting[key] = None
                self._count += 1
        self._wake.set()

    async def run(self) -> None:
        """Mend until cancelled."""
        while True:
            await self._budget.wait_running()
            if not self._waiting:
                self._wake.clear()
                await self._wake.wait()
                continue
            partition, keys = next(iter(self._waiting.items()))
            batch = list(keys)[:BATCH]
            for key in batch:
                del keys[key]
            self._count -= len(batch)
            if not keys:
                del self._waiting[partition]
            try:
                await self._mender.mend(partition, batch)
                self.last_error = ""
            except HoldfastError as error:
                self.last_error = error.message
                await self._clock.sleep(RETRY_S)
