"""The memory of bodies on their way into chunks: two lanes, so that slow clients hold up only each other.

A piece's memory is reserved whole before its bytes come, or bodies with half a piece each could wait for one another for ever. What
comes slowly therefore holds memory for long: sixteen uploads over thin lines would fill a gateway. A piece that is not whole after
`slow_body_s`, while others wait, moves to the slow lane, where it may take as long as the API lets it. While there is no room either
it stays, and when it is not whole after `refuse_body_s`, its body is refused as Busy: as few of them as will do. Pieces that are being
stored end by themselves, as puts have deadlines.

Invariant: a lane never holds more than its capacity, and no piece that waits for its client keeps memory that others wait for, but in
the slow lane, for longer than `refuse_body_s`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from cluster.errors import Busy
from cluster.volumes.byte_budget import ByteBudget

LOOKS = 10
"""How often a piece that comes slowly looks whether others wait for its memory, in `slow_body_s`."""


class WriteBudget:
    """The lanes of one daemon."""

    def __init__(self, quick: int, slow: int, slow_body_s: float, refuse_body_s: float) -> None:
        """``quick``, ``slow``: bytes of the lanes."""
        self.quick = ByteBudget(quick)
        self.slow = ByteBudget(slow)
        self.slow_body_s = slow_body_s
        self.refuse_body_s = refuse_body_s
        self.leaving = 0
        """Bytes of the quick lane that are about to be free, since their bodies were refused."""

    @property
    def held(self) -> int:
        """Bytes in both lanes."""
        return self.quick.held + self.slow.held

    async def reserve(self, amount: int) -> Reservation:
        """Wait for the memory of a piece of ``amount`` bytes. First come, first served."""
        await self.quick.take(amount)
        return Reservation(self, amount)


class Reservation:
    """The memory of one piece. Whoever has it calls `give`, once."""

    __slots__ = ("_amount", "_budget", "_lane", "_limit", "_refused", "_timer")

    def __init__(self, budget: WriteBudget, amount: int) -> None:
        self._budget = budget
        self._amount = amount
        self._lane = budget.quick
        self._limit = asyncio.timeout(None)
        self._refused = False
        self._timer: asyncio.TimerHandle | None = None

    def give(self) -> None:
        if self._refused:
            self._budget.leaving -= self._amount
        self._lane.give(self._amount)

    @asynccontextmanager
    async def filling(self) -> AsyncIterator[None]:
        """Around the wait for the piece's bytes, once. Raises Busy when others need the memory and the slow lane is full too; what is
        awaited inside is cancelled then."""
        now = asyncio.get_running_loop().time()
        self._look_at(now + self._budget.slow_body_s, now + self._budget.refuse_body_s)
        try:
            async with self._limit:
                yield
        except TimeoutError:
            if not self._limit.expired():
                raise
            raise Busy(
                f"Others wait for memory, and as many uploads as this node holds memory for ({self._budget.slow.capacity >> 20} MiB) "
                f"are as slow as this one: less than {self._amount} bytes in {self._budget.refuse_body_s:g} s. Nothing was changed; "
                "try again later or at another node."
            ) from None
        finally:
            assert self._timer is not None
            self._timer.cancel()

    def _look_at(self, when: float, refuse_at: float) -> None:
        self._timer = asyncio.get_running_loop().call_at(when, self._look, refuse_at)

    def _look(self, refuse_at: float) -> None:
        """Whether others need the memory more. What was refused is theirs in a moment, and not asked of the next one as well."""
        budget, now = self._budget, asyncio.get_running_loop().time()
        needed = budget.quick.wanted > budget.leaving
        if needed and budget.slow.take_now(self._amount):
            self._lane = budget.slow
            budget.quick.give(self._amount)
        elif needed and now >= refuse_at:
            self._refused = True
            budget.leaving += self._amount
            self._limit.reschedule(now)
        else:
            self._look_at(now + budget.slow_body_s / LOOKS, refuse_at)
