"""How many bytes of bodies the whole daemon may hold at once: a counter with a fair queue.

First come, first served: a large request at the head of the queue is not overtaken by small ones, so nobody starves.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque


class ByteBudget:
    """Users take before they allocate and give back when the buffer is gone."""

    def __init__(self, capacity: int) -> None:
        assert capacity > 0
        self.capacity = capacity
        self.held = 0
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def wanted(self) -> int:
        """Bytes that are waited for."""
        return sum(amount for amount, turn in self._waiting if not turn.done())

    async def take(self, amount: int) -> None:
        """Wait until ``amount`` bytes (at most the capacity) are free and everybody before has been served."""
        assert 0 <= amount <= self.capacity, f"{amount} bytes at once exceed the budget of {self.capacity}"
        if self.take_now(amount):
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((amount, turn))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.give(amount)
            else:
                with contextlib.suppress(ValueError):  # already passed over in the queue
                    self._waiting.remove((amount, turn))
                self._serve()
            raise

    def take_now(self, amount: int) -> bool:
        """Take without waiting; False when there is not enough or others wait."""
        if self._waiting or self.held + amount > self.capacity:
            return False
        self.held += amount
        return True

    def give(self, amount: int) -> None:
        assert 0 <= amount <= self.held
        self.held -= amount
        self._serve()

    def _serve(self) -> None:
        while self._waiting and self.held + self._waiting[0][0] <= self.capacity:
            amount, turn = self._waiting.popleft()
            if not turn.done():
                self.held += amount
                turn.set_result(None)
