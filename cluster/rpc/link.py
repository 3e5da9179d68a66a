"""One peer's address and the connections to it, made on demand.

A link has two lanes, each at most one connection: one for small calls, and one for large payloads, which the peer may
stop reading when its memory is full. After a failed attempt calls fail at once until the back-off is over; an attempt
belongs to the node, not to the call that caused it, so a caller that gives up leaves it running for the next one.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from typing import Any

from cluster.errors import HoldfastError, PeerUnavailable
from cluster.rpc.limits import CONNECT_BACK_OFF_MAX_S, CONNECT_BACK_OFF_MIN_S
from cluster.rpc.outgoing import OutgoingConnection

Connect = Callable[[str, int, str], Coroutine[Any, Any, OutgoingConnection]]
"""(host, port, expected name) to a greeted connection; raises HoldfastError."""


class Lane:
    """At most one connection to the peer, and the attempt to make it."""

    def __init__(self) -> None:
        self.connection: OutgoingConnection | None = None
        self._attempt: asyncio.Task[None] | None = None
        self._waiting: list[asyncio.Future[None]] = []

    async def wait(self, loop: asyncio.AbstractEventLoop, attempt: Callable[[], asyncio.Task[None]]) -> None:
        """Wait for the attempt under way, or a new one. Raises the error that it failed with."""
        if self._attempt is None:
            self._attempt = attempt()
        waiter = loop.create_future()
        self._waiting.append(waiter)
        try:
            await waiter
        finally:
            if waiter in self._waiting:
                self._waiting.remove(waiter)

    def settle(self, connection: OutgoingConnection | None, error: HoldfastError | None) -> None:
        """The attempt is over."""
        self._attempt = None
        self.connection = connection
        waiting, self._waiting = self._waiting, []
        for waiter in waiting:
            if waiter.done():
                continue
            if error is None:
                waiter.set_result(None)
            else:
                waiter.set_exception(type(error)(error.message, **error.details))

    def close(self) -> None:
        if self._attempt is not None:
            self._attempt.cancel()
        if self.connection is not None:
            self.connection.abort()
            self.connection = None


class Link:
    """A peer by name."""

    def __init__(
        self,
        name: str,
        host: str,
        port: int,
        *,
        connect: Connect,
        spawn: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]],
        random: random.Random,
    ) -> None:
        self.name = name
        self.host = host
        self.port = port
        self.small = Lane()
        self.bulk = Lane()
        self._connect = connect
        self._spawn = spawn
        self._random = random
        self._failures = 0
        self._not_before = 0.0
        self._last_error: HoldfastError | None = None

    async def connected(self, lane: Lane) -> OutgoingConnection:
        """The lane's open connection. Raises PeerUnavailable when there is none, and there was none a moment ago."""
        loop = asyncio.get_running_loop()
        connection = lane.connection
        while connection is None or connection.closed:
            if self._last_error is not None and loop.time() < self._not_before:
                raise PeerUnavailable(f"{self._last_error} (the next attempt follows shortly)", peer=self.name)
            await lane.wait(loop, lambda: self._spawn(self._attempt(lane)))
            connection = lane.connection
        return connection

    def close(self) -> None:
        """Give both lanes up. Calls under way fail."""
        self.small.close()
        self.bulk.close()

    def lost(self, connection: OutgoingConnection) -> None:
        """That connection is gone."""
        for lane in (self.small, self.bulk):
            if lane.connection is connection:
                lane.connection = None

    async def _attempt(self, lane: Lane) -> None:
        try:
            connection = await self._connect(self.host, self.port, self.name)
        except HoldfastError as error:
            wait_s = min(CONNECT_BACK_OFF_MIN_S * 2**self._failures, CONNECT_BACK_OFF_MAX_S)
            self._failures = min(self._failures + 1, 16)
            self._not_before = asyncio.get_running_loop().time() + wait_s * self._random.uniform(0.5, 1.0)
            self._last_error = PeerUnavailable(
                f"{self.name} cannot be reached: {error}", peer=self.name, why=error.code
            )
            lane.settle(None, self._last_error)
        except asyncio.CancelledError:
            lane.settle(None, PeerUnavailable(f"{self.name}: the connection was given up", peer=self.name))
            raise
        else:
            self._failures = 0
            self._last_error = None
            lane.settle(connection, None)
