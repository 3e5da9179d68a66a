"""One request to several peers at once. Whoever asked stops listening when it has heard enough; the other calls run on to their
own deadline, so that a slow replica still gets the write.

`Scatter` owns the tasks of all those calls: its `run` must be running. It is bounded by its callers (each call has a deadline).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable
from typing import Generic, TypeVar

from cluster.errors import HoldfastError, PeerLost, PeerUnavailable
from cluster.rpc.caller import Caller, Reply
from cluster.rpc.message import Payload, Request

R = TypeVar("R")


class Answers(Generic[R]):
    """The answers to one request, as they come: ``(peer, reply or error)``."""

    def __init__(self) -> None:
        self.expected = 0
        self._arrived: deque[tuple[str, Reply[R] | HoldfastError]] = deque()
        self._waiter: asyncio.Future[None] | None = None

    def put(self, peer: str, answer: Reply[R] | HoldfastError) -> None:
        self._arrived.append((peer, answer))
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def __aiter__(self) -> Answers[R]:
        return self

    async def __anext__(self) -> tuple[str, Reply[R] | HoldfastError]:
        if self.expected == 0:
            raise StopAsyncIteration
        while not self._arrived:
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        self.expected -= 1
        return self._arrived.popleft()


class Scatter:
    def __init__(self, caller: Caller) -> None:
        self._caller = caller
        self._group: asyncio.TaskGroup | None = None
        self.in_flight = 0

    async def run(self) -> None:
        """Hold the tasks; ends only by cancellation, which ends them too."""
        async with asyncio.TaskGroup() as group:
            self._group = group
            try:
                await asyncio.get_running_loop().create_future()
            finally:
                self._group = None

    def send(
        self, peers: Iterable[str], request: Request[R], payload: Payload = b"", *, deadline_s: float
    ) -> Answers[R]:
        """Start the calls. To be called while `run` is running."""
        answers: Answers[R] = Answers()
        self.extend(answers, peers, request, payload, deadline_s=deadline_s)
        return answers

    def extend(
        self,
        answers: Answers[R],
        peers: Iterable[str],
        request: Request[R],
        payload: Payload = b"",
        *,
        deadline_s: float,
    ) -> None:
        """Ask more peers, whose answers come in the same place."""
        for name in peers:
            answers.expected += 1
            if self._group is None:
                answers.put(name, PeerUnavailable("this node is stopping"))
            else:
                self.in_flight += 1
                self._group.create_task(self._call(answers, name, request, payload, deadline_s))

    async def _call(
        self, answers: Answers[R], peer: str, request: Request[R], payload: Payload, deadline_s: float
    ) -> None:
        answer: Reply[R] | HoldfastError = PeerLost("this node is stopping")
        try:
            answer = await self._caller.call(peer, request, payload, deadline_s=deadline_s)
        except HoldfastError as error:
            answer = error
        finally:
            # Also when this task is cancelled: whoever waits for the answer must not wait for ever.
            self.in_flight -= 1
            answers.put(peer, answer)
