"""Whether a gateway that says nothing is busy or hung.

A hung gateway (stopped, swapped out, deadlocked) looks like a busy one: its kernel accepts connections and bytes, and no answer
comes. Waiting tells nothing, so whoever has waited without progress asks the same endpoint over a connection of its own for
``/healthz``, which a living gateway answers however long it takes over its requests. Only silence counts: any answer, even a
refusal, says that somebody is there.

A `Watch` belongs to one attempt and notices that it waits without progress; a `Liveness` belongs to a `Transport` and asks, once
for all who wait for the same endpoint. Neither repeats requests nor chooses endpoints. A watch that nothing stalls costs a timer.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import socket
import struct
import termios
from asyncio import Transport as Connection
from collections import defaultdict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

PROBES = 2
"""Probes in a row that must stay unanswered. One is not enough: when this process itself was stopped or kept its loop busy, the
timer of a probe under way fires before the answer is looked at; the next probe then gets its answer."""

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)
"""``struct linger``: on, for no time."""


@dataclass(frozen=True, slots=True)
class _Verdict:
    hung: bool
    at: float


class Liveness:
    """What probes said about each endpoint.

    ``probe`` asks an endpoint once and says whether anything came back within its time; ``on_hung`` learns of each verdict
    against one. Times are the event loop's, in seconds.
    """

    def __init__(self, probe: Callable[[str], Awaitable[bool]], on_hung: Callable[[str], None]) -> None:
        self._probe = probe
        self._on_hung = on_hung
        self._verdicts: dict[str, _Verdict] = {}
        self._asking: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def is_hung(self, url: str, *, since: float, probes: int = PROBES) -> bool:
        """Whether ``probes`` in a row stay without an answer. What others found out after ``since`` counts as well."""
        async with self._asking[url]:
            known = self._verdicts.get(url)
            if known is not None and known.at >= since:
                return known.hung
            hung = True
            for _ in range(probes):
                if await self._probe(url):
                    hung = False
                    break
            self._verdicts[url] = _Verdict(hung, asyncio.get_running_loop().time())
            if hung:
                self._on_hung(url)
            return hung


class Watch:
    """Cuts one attempt's connection when its endpoint hangs, so that the attempt fails as if the connection had broken.

    `connected` begins it; `wait` says that it is the endpoint's turn (also: that there was progress), `rest` that it is ours.
    `close` must be awaited at the end. ``hung`` tells why the connection broke. It looks at half of the stall time, to note how
    many bytes wait to be sent, and at its end, to compare.
    """

    def __init__(self, liveness: Liveness, url: str, stall_s: float) -> None:
        self._liveness = liveness
        self._url = url
        self._stall_s = stall_s
        self._loop = asyncio.get_running_loop()
        self._connection: Connection | None = None
        self._quiet_since: float | None = None
        self._noted: tuple[float, int] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._question: asyncio.Task[None] | None = None
        self.hung = False

    def connected(self, connection: Connection | None) -> None:
        """The request is about to be sent over ``connection``."""
        self._connection = connection
        self.wait()
        self._look_at(self._loop.time() + self._stall_s / 2)

    def wait(self) -> None:
        self._quiet_since = self._loop.time()

    def rest(self) -> None:
        self._quiet_since = None

    def cut(self) -> None:
        """Break the connection at once, and with a reset: nothing of what is still to be sent follows, and a gateway that wakes with
        the request in its hands can tell that nobody waits for it, which an ordinary end of the stream would not say."""
        connection, self._connection = self._connection, None
        if connection is None:
            return
        socket_ = connection.get_extra_info("socket")
        if socket_ is not None:
            with contextlib.suppress(OSError, ValueError):  # closed already, in asyncio's and in uvloop's words
                socket_.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        connection.abort()

    async def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        question, self._question = self._question, None
        self._connection = None
        if question is not None:
            question.cancel()
            await asyncio.wait({question})
            if not question.cancelled():
                question.result()

    def _look_at(self, when: float) -> None:
        self._timer = self._loop.call_at(when, self._look)

    def _look(self) -> None:
        now, since, half = self._loop.time(), self._quiet_since, self._stall_s / 2
        if since is None:
            self._look_at(now + half)
        elif now < since + half:
            self._look_at(since + half)
        elif self._noted is None or self._noted[0] != since:
            self._noted = (since, _unsent(self._connection))
            self._look_at(since + self._stall_s)
        elif (unsent := _unsent(self._connection)) != self._noted[1]:
            self._quiet_since = now  # slow, but it takes what we send
            self._noted = (now, unsent)
            self._look_at(now + self._stall_s)
        else:
            self._timer = None
            self._question = self._loop.create_task(self._ask(since, unsent))

    async def _ask(self, since: float, unsent: int) -> None:
        hung = await self._liveness.is_hung(self._url, since=since)
        if self._quiet_since == since and _unsent(self._connection) == unsent:
            if hung:
                self.hung = True
                self.cut()
                return
            self.wait()  # it lives; ask again when it has been silent for as long once more
        self._look_at(self._loop.time() + self._stall_s / 2)


def _unsent(connection: Connection | None) -> int:
    """Bytes that the other side's kernel has not acknowledged: in our buffer and in our kernel's."""
    if connection is None or connection.is_closing():
        return 0
    waiting = connection.get_write_buffer_size()
    try:
        queued = fcntl.ioctl(connection.get_extra_info("socket").fileno(), termios.TIOCOUTQ, bytes(4))
    except OSError:
        return waiting  # a system that does not tell: only our own buffer is seen
    return waiting + int(struct.unpack("i", queued)[0])
