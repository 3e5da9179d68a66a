"""The client of small requests: bare asyncio protocols on uvloop, one request at a time on each connection, kept alive.

It parses only what it must (a status, a length), since it shares the cores with the daemons it measures. `gets` and `puts` are to
be called in a process of its own.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Callable
from typing import cast

import uvloop

from benchmark.large_load import Address

BODY_BYTES = 4096

MIXED_CONCURRENCY = 4
"""Users at a time of each kind, beside a repair: enough to be seen, too few to fill the machine by themselves."""


class _Connection(asyncio.Protocol):
    """Sends the next request as soon as the answer to the one before is whole."""

    def __init__(self, next_request: Callable[[], list[bytes] | None], statuses: tuple[bytes, ...]) -> None:
        self._next = next_request
        self._statuses = statuses
        self._left = 0
        self._head = b""
        self.seconds: list[float] = []
        """How long each answer took."""
        self._sent = 0.0
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's are no subclass of it
        self._send()

    def _send(self) -> None:
        request = self._next()
        if request is None:
            self.ended.set_result(None)
            self._transport.close()
        else:
            self._sent = time.perf_counter()
            self._transport.writelines(request)

    def data_received(self, data: bytes) -> None:
        if self._left:
            self._left -= len(data)
        else:
            data = self._head + data
            end = data.find(b"\r\n\r\n")
            if end < 0:
                self._head = data
                return
            self._head = b""
            if data[9:12] not in self._statuses:
                self._fail(data[:2000].decode(errors="replace"))
                return
            start = data.index(b"Content-Length: ") + 16
            self._left = int(data[start : data.index(b"\r\n", start)]) - (len(data) - end - 4)
        if self._left == 0:
            self.seconds.append(time.perf_counter() - self._sent)
            self._send()

    def connection_lost(self, error: Exception | None) -> None:
        self._fail(f"the connection broke: {error}")

    def _fail(self, what: str) -> None:
        if not self.ended.done():
            self.ended.set_exception(AssertionError(what))
        self._transport.close()


def gets(to: Address, path: str, size: int, concurrency: int, seconds: float) -> float:
    """GETs of random aligned 4 KiB ranges of a volume of ``size`` bytes; answers a second."""
    rng = random.Random(1)  # noqa: S311 - which ranges are read is no secret
    heads = [
        f"GET {path} HTTP/1.1\r\nHost: {to.host}\r\nRange: bytes={start}-{start + BODY_BYTES - 1}\r\n\r\n".encode()
        for start in range(0, size, BODY_BYTES)
    ]

    def request() -> list[bytes]:
        return [rng.choice(heads)]

    answers, took = uvloop.run(_load(to, lambda _: request, (b"206",), concurrency, seconds))
    return len(answers) / took


def puts(to: Address, prefix: str, volumes: int, concurrency: int, seconds: float) -> float:
    """Whole-volume PUTs of 4 KiB of new content; answers a second. Each connection goes round ``volumes`` names of its own; with 0
    each PUT creates another volume."""
    answers, took = uvloop.run(_load(to, _puts(to, prefix, volumes), (b"200", b"201"), concurrency, seconds))
    return len(answers) / took


def slowest_hundredth(to: Address, path: str, size: int, prefix: str, seconds: float) -> float:
    """Milliseconds that 99 of 100 requests stay below: 4 KiB range GETs of a volume of ``size`` bytes and 4 KiB PUTs beside them,
    `MIXED_CONCURRENCY` connections of each, for so many seconds."""
    rng = random.Random(2)  # noqa: S311 - which ranges are read is no secret

    def get() -> list[bytes]:
        start = BODY_BYTES * rng.randrange(size // BODY_BYTES)
        return [
            f"GET {path} HTTP/1.1\r\nHost: {to.host}\r\nRange: bytes={start}-{start + BODY_BYTES - 1}\r\n\r\n".encode()
        ]

    put = _puts(to, prefix, 4)

    def requests(connection: int) -> Callable[[], list[bytes]]:
        return get if connection % 2 else put(connection)

    answers, _ = uvloop.run(_load(to, requests, (b"200", b"201", b"206"), 2 * MIXED_CONCURRENCY, seconds))
    return 1000 * sorted(answers)[len(answers) * 99 // 100]


def _puts(to: Address, prefix: str, volumes: int) -> Callable[[int], Callable[[], list[bytes]]]:
    run = os.urandom(4).hex()

    def requests(connection: int) -> Callable[[], list[bytes]]:
        sent = 0
        rest = os.urandom(BODY_BYTES - 8)

        def request() -> list[bytes]:
            nonlocal sent
            sent += 1
            name = f"{prefix}-{connection}-{sent % volumes}" if volumes else f"{prefix}-{run}-{connection}-{sent}"
            head = f"PUT /v1/volumes/{name}/data HTTP/1.1\r\nHost: {to.host}\r\nContent-Length: {BODY_BYTES}\r\n\r\n"
            return [head.encode(), sent.to_bytes(8, "big") + rest]

        return request

    return requests


async def _load(
    to: Address,
    requests: Callable[[int], Callable[[], list[bytes]]],
    statuses: tuple[bytes, ...],
    concurrency: int,
    seconds: float,
) -> tuple[list[float], float]:
    """The seconds of each answer, and how long it all took."""
    end = time.perf_counter() + seconds

    def until_end(request: Callable[[], list[bytes]]) -> Callable[[], list[bytes] | None]:
        return lambda: request() if time.perf_counter() < end else None

    loop = asyncio.get_running_loop()
    connections = [_Connection(until_end(requests(number)), statuses) for number in range(concurrency)]
    start = time.perf_counter()
    for connection in connections:
        await loop.create_connection(lambda c=connection: c, to.host, to.port)  # type: ignore[misc]  # a lambda with a default
    await asyncio.gather(*(connection.ended for connection in connections))
    return [took for connection in connections for took in connection.seconds], time.perf_counter() - start
