"""One read for many readers: at most one in flight and one to come per key.

A shared read must be as good as one's own: it is sent after each of its sharers arrived. So a reader that finds a read in flight waits for
the next one, together with all that arrive meanwhile; the next is sent when the present one has ended. Linearizable reads stay so.

No tasks: one of the sharers reads for all. When that one is cancelled, another takes over.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class ReadCoalescer(Generic[K, V]):
    def __init__(self, read: Callable[[K], Awaitable[V]]) -> None:
        self._read = read
        self._next: dict[K, list[asyncio.Future[Lead[V] | Answer[V]]]] = {}
        """A key is here while a read of it is in flight or about to be sent; its list: who waits for the next one."""

    async def read(self, key: K) -> V:
        """The value as of some moment after this call. Raises what the read raises."""
        waiting = self._next.get(key)
        if waiting is None:
            self._next[key] = []
            return await self._lead(key, [])
        turn: asyncio.Future[Lead[V] | Answer[V]] = asyncio.get_running_loop().create_future()
        waiting.append(turn)
        try:
            told = await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and isinstance(told := turn.result(), Lead):
                self._hand_over(key, told.sharers)
            raise
        if isinstance(told, Lead):
            return await self._lead(key, told.sharers + self._taken(key))  # none is sent yet: all may share
        return told.value()

    async def _lead(self, key: K, sharers: list[asyncio.Future[Lead[V] | Answer[V]]]) -> V:
        """Read for oneself and for the sharers, none of whom arrived after this began."""
        try:
            value = await self._read(key)
        except Exception as error:
            answer: Answer[V] = Answer(error=error)
            tell(sharers, answer)
            self._hand_over(key, self._taken(key))
            raise
        except BaseException:
            # Cancelled, which is no answer for the others: one of them begins anew, with those that came since.
            self._hand_over(key, sharers + self._taken(key))
            raise
        if sharers:
            tell(sharers, Answer(result=value))
        self._hand_over(key, self._taken(key))
        return value

    def _taken(self, key: K) -> list[asyncio.Future[Lead[V] | Answer[V]]]:
        waiting = self._next[key]
        if waiting:
            self._next[key] = []
        return waiting

    def _hand_over(self, key: K, waiting: list[asyncio.Future[Lead[V] | Answer[V]]]) -> None:
        """Let the first of those still waiting read next; without any, and nobody new, the key is idle."""
        for index, turn in enumerate(waiting):
            if not turn.done():
                turn.set_result(Lead(waiting[index + 1 :]))
                return
        late = self._taken(key)
        if late:
            self._hand_over(key, late)
        else:
            del self._next[key]


class Lead(Generic[V]):
    """Told to one that waits: read, for yourself and for these."""

    __slots__ = ("sharers",)

    def __init__(self, sharers: list[asyncio.Future[Lead[V] | Answer[V]]]) -> None:
        self.sharers = sharers


class Answer(Generic[V]):
    __slots__ = ("_error", "_result")

    def __init__(self, result: V | None = None, error: Exception | None = None) -> None:
        self._result = result
        self._error = error

    def value(self) -> V:
        if self._error is not None:
            raise self._error
        return self._result  # type: ignore[return-value]  # V may itself be optional


def tell(sharers: list[asyncio.Future[Lead[V] | Answer[V]]], answer: Answer[V]) -> None:
    for turn in sharers:
        if not turn.done():
            turn.set_result(answer)
