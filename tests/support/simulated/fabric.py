"""A network of simulated processes: `Caller` and `Handlers` without a wire.

It is worse than TCP on purpose: requests and answers are lost, late by seconds (even past their own deadline, as in the buffer
of a process that was stopped), overtake each other, and requests that only ask an acceptor arrive twice. `Update` is never
duplicated: TCP doesn't, and an unconditional write asked twice is written twice.
"""

from __future__ import annotations

import asyncio
import inspect
import random
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

from cluster.errors import HoldfastError, PeerLost, PeerUnavailable, error_from_wire, error_to_wire
from cluster.register.messages import Accept, FencePurge, Learn, Prepare, Purge, Read, Scan
from cluster.rpc.caller import Reply
from cluster.rpc.codec import codec_of
from cluster.rpc.message import Payload, Request
from cluster.rpc.service import Handlers, IncomingCall
from tests.support.simulated.loop import process_context

R = TypeVar("R")

REPEATABLE = (Prepare, Learn, Accept, Read, Scan, FencePurge, Purge)
LONGEST_DELAY_S = 6.0


@dataclass
class Weather:
    """Chances per message."""

    loss: float = 0.0
    late: float = 0.0
    duplicate: float = 0.0


class Process:
    """One life of one node: its tasks, and whether it runs. Its clock is the loop's plus an offset of its own."""

    def __init__(self, name: str, fabric: Fabric, offset_s: float) -> None:
        self.name = name
        self.fabric = fabric
        self.handlers = Handlers()
        self.layout_version: Callable[[], int] = lambda: 0
        self.up = True
        self.frozen = False
        self._offset = offset_s
        self._held: list[Callable[[], object]] = []
        self._tasks: dict[asyncio.Task[Any], None] = {}

    # Clock

    def monotonic(self) -> float:
        return asyncio.get_running_loop().time() + self._offset

    def wall(self) -> float:
        return self.monotonic()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    # Life

    def spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.get_running_loop().create_task(work, context=process_context(self.name))
        self._tasks[task] = None
        task.add_done_callback(lambda done: self._tasks.pop(done, None))
        return task

    def unless_frozen(self, action: Callable[[], object]) -> None:
        """Now, or when it is thawed."""
        if self.frozen:
            self._held.append(action)
        else:
            action()

    def thaw(self) -> None:
        self.frozen = False
        held, self._held = self._held, []
        for action in held:
            action()

    async def kill(self) -> None:
        """From one moment to the next nothing of it reaches the outside any more."""
        self.up = False
        self._held.clear()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            _, stubborn = await asyncio.wait(tasks, timeout=1.0)
            assert not stubborn, f"tasks that can't be cancelled: {stubborn}"

    async def call(self, peer: str, request: Request[R], payload: Payload = b"", *, deadline_s: float) -> Reply[R]:
        """`Caller.call`."""
        return await self.fabric.call(self, peer, request, deadline_s)


class Fabric:
    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self.weather = Weather()
        self.processes: dict[str, Process] = {}
        self.cuts: set[tuple[str, str]] = set()
        """(from, to) pairs between which nothing travels."""
        self.delivered = 0
        self.resets = False
        """Whether a call ends when its process at the other end does, and none hangs in a cut: what a kernel knows it tells."""

    def cut(self, one: set[str], other: set[str], *, both_ways: bool = True) -> None:
        for a in sorted(one):
            for b in sorted(other):
                self.cuts.add((a, b))
                if both_ways:
                    self.cuts.add((b, a))

    def heal(self) -> None:
        self.cuts.clear()

    async def call(self, source: Process, peer: str, request: Request[R], deadline_s: float) -> Reply[R]:
        assert deadline_s > 0
        if not source.up:
            raise PeerUnavailable("this process is dead")
        future: asyncio.Future[Reply[R]] = asyncio.get_running_loop().create_future()
        running: list[asyncio.Task[Any]] = []
        if peer == source.name:
            self._deliver(source, source.name, request, source.layout_version(), deadline_s, future, running)
        else:
            cut = (source.name, peer) in self.cuts
            if peer not in self.processes or (cut and (self.resets or self._rng.random() < 0.5)):
                await asyncio.sleep(self._rng.random() * 0.02)
                raise PeerUnavailable("connection refused")
            self._send(source, peer, request, deadline_s, future, running)
        try:
            async with asyncio.timeout(deadline_s):
                return await future
        except TimeoutError:
            self._call_off(running)
            raise PeerLost(f"no answer from {peer}") from None
        except asyncio.CancelledError:
            self._call_off(running)
            raise

    def _call_off(self, running: list[asyncio.Task[Any]]) -> None:
        """The cancellation frame, which may be lost too."""
        if self._rng.random() < 0.5:
            delay = self._delay()
            for task in running:
                asyncio.get_running_loop().call_later(delay, task.cancel)

    def _send(
        self,
        source: Process,
        peer: str,
        request: Request[Any],
        deadline_s: float,
        future: asyncio.Future[Any],
        running: list[asyncio.Task[Any]],
    ) -> None:
        loop = asyncio.get_running_loop()
        version = source.layout_version()
        copies = 1
        if isinstance(request, REPEATABLE) and self._rng.random() < self.weather.duplicate:
            copies = 2
        for _ in range(copies):
            if self._rng.random() < self.weather.loss:
                continue

            def arrive() -> None:
                if (source.name, peer) in self.cuts:
                    return
                if (target := self.processes.get(peer)) is not None:
                    target.unless_frozen(
                        lambda: self._deliver(target, source.name, request, version, deadline_s, future, running)
                    )
                elif self.resets:
                    _lose(future, peer)

            delay = self._delay()
            source.unless_frozen(lambda delay=delay, arrive=arrive: loop.call_later(delay, arrive))  # type: ignore[misc] # bound now

    def _deliver(
        self,
        target: Process,
        source: str,
        request: Request[Any],
        version: int,
        deadline_s: float,
        future: asyncio.Future[Any],
        running: list[asyncio.Task[Any]],
    ) -> None:
        if target.up:
            self.delivered += 1
            running.append(target.spawn(self._handle(target, source, request, version, deadline_s, future)))

    async def _handle(
        self,
        target: Process,
        source: str,
        request: Request[Any],
        version: int,
        deadline_s: float,
        future: asyncio.Future[Any],
    ) -> None:
        incoming = IncomingCall(source, version, b"", target.monotonic() + deadline_s)
        answer: Reply[Any] | HoldfastError
        try:
            async with asyncio.timeout(deadline_s):
                result = target.handlers.find(codec_of(type(request)).name).function(request, incoming)
                answer = Reply(await result if inspect.isawaitable(result) else result)
        except TimeoutError:
            return
        except HoldfastError as error:
            answer = error_from_wire(*error_to_wire(error))
        except asyncio.CancelledError:
            if self.resets and not target.up:
                _lose(future, target.name)
            raise
        if not target.up:
            return
        loop = asyncio.get_running_loop()

        def arrive() -> None:
            if future.done() or (target.name, source) in self.cuts:
                return
            if isinstance(answer, HoldfastError):
                future.set_exception(answer)
            else:
                future.set_result(answer)

        if source == target.name:
            arrive()
        elif self._rng.random() >= self.weather.loss:
            delay = self._delay()
            target.unless_frozen(lambda: loop.call_later(delay, arrive))

    def _delay(self) -> float:
        delay = 0.0002 + self._rng.expovariate(2000)
        if self._rng.random() < self.weather.late:
            delay += min(LONGEST_DELAY_S, 0.01 * self._rng.paretovariate(0.6))
        return delay


def _lose(future: asyncio.Future[Any], peer: str) -> None:
    if not future.done():
        future.set_exception(PeerLost(f"{peer} died"))
