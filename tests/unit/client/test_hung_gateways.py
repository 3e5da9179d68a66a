"""Gateways that accept connections and say nothing: hung ones are left within the stall and probe times, busy ones are waited for."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

import pytest
import uvloop
from aiohttp import web

from client import Holdfast, RetryPolicy
from client.endpoints import QUARANTINE_S
from client.errors import OutcomeUnknown, Unavailable
from client.liveness import PROBES
from tests.unit.client.fake_cluster import FakeCluster, Gateway, StoredVolume

POLICY = RetryPolicy(deadline_s=5.0, backoff_s=0.01, idle_timeout_s=20.0, stall_s=0.4, probe_timeout_s=0.3)
HANG_S = POLICY.stall_s + PROBES * POLICY.probe_timeout_s
"""After which a hung gateway must have been left."""
SLACK_S = 1.0
"""For a busy machine."""
SLOW_S = 2.5 * HANG_S
BIG = os.urandom(3_000_000)


@contextmanager
def took(least: float, most: float) -> Iterator[None]:
    began = asyncio.get_running_loop().time()
    yield
    seconds = asyncio.get_running_loop().time() - began
    assert least <= seconds < most, f"{seconds:.2f} s"


def read_to_end(connection: socket.socket) -> None:
    while connection.recv(65536):
        pass


class Freezable:
    """The address of a gateway that can be stopped: the kernel goes on accepting connections and bytes, nobody reads or answers.

    ``freeze_after`` bytes of answers it stops by itself, ``deaf`` is one that stops before it reads anything of a request, else
    requests still reach the gateway and only their answers get lost.
    """

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._thawed = asyncio.Event()
        self._thawed.set()
        self.deaf = True
        self.freeze_after: int | None = None
        self.connections = 0
        self._serving: set[asyncio.Task[None]] = set()
        self.url = ""

    def freeze(self, *, deaf: bool = True) -> None:
        self.deaf = deaf
        self._thawed.clear()

    def thaw(self) -> None:
        self._thawed.set()

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[Freezable]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        try:
            yield self
        finally:
            for task in self._serving:
                task.cancel()
            await asyncio.gather(*self._serving, return_exceptions=True)
            server.close()
            await server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)
        try:
            if self.deaf:
                await self._thawed.wait()
            there, to_there = await asyncio.open_connection("127.0.0.1", self._gateway.port)
            try:
                async with asyncio.TaskGroup() as group:
                    upward = group.create_task(self._pass(reader, to_there, answers=False))
                    await self._pass(there, writer, answers=True)
                    upward.cancel()
            finally:
                to_there.transport.abort()
        finally:
            writer.close()

    async def _pass(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, answers: bool) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await source.read(16384):
                if answers or self.deaf:
                    await self._thawed.wait()
                sink.write(data)
                await sink.drain()
                if answers and self.freeze_after is not None:
                    self.freeze_after -= len(data)
                    if self.freeze_after <= 0:
                        self.freeze_after = None
                        self.freeze()
            sink.write_eof()


@pytest.fixture
async def frozen_first(fake_cluster: FakeCluster) -> AsyncIterator[Freezable]:
    """The first gateway's address, not frozen yet. Use with the second gateway's."""
    async with Freezable(fake_cluster.gateways[0]).serving() as freezable:
        yield freezable


@pytest.fixture
async def holdfast(fake_cluster: FakeCluster, frozen_first: Freezable) -> AsyncIterator[Holdfast]:
    async with Holdfast([frozen_first.url, fake_cluster.urls[1]], policy=POLICY) as holdfast:
        yield holdfast


async def test_a_socket_that_accepts_and_never_answers(fake_cluster: FakeCluster) -> None:
    """As the kernel of a stopped process: a backlog, and no one who takes connections from it."""
    fake_cluster.volumes["v"] = StoredVolume("v", b"x")
    actions: list[Callable[[Holdfast], Awaitable[object]]] = [
        lambda holdfast: holdfast.get("v"),
        lambda holdfast: holdfast.list_page(),
        lambda holdfast: holdfast.put("small", b"y"),
        lambda holdfast: holdfast.put("big", BIG),
        lambda holdfast: holdfast.create("new", 4096),
    ]
    for action in actions:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            async with Holdfast([url, fake_cluster.urls[0]], policy=POLICY) as holdfast:
                with took(HANG_S - 0.05, HANG_S + SLACK_S):
                    await action(holdfast)
                with took(0, HANG_S / 2):
                    await holdfast.show("v")  # the hung one is left alone now
            request, _ = listener.accept()
            with request, pytest.raises(ConnectionResetError):  # should it wake, it sees that nobody waits
                read_to_end(request)
    assert fake_cluster.volumes["big"].data == BIG


async def test_a_download_goes_on_elsewhere_when_its_gateway_hangs_midway(
    holdfast: Holdfast, fake_cluster: FakeCluster, frozen_first: Freezable
) -> None:
    fake_cluster.volumes["v"] = StoredVolume("v", BIG)
    frozen_first.freeze_after = len(BIG) // 2
    with took(HANG_S - 0.05, HANG_S + SLACK_S):
        assert await holdfast.get("v") == BIG
    assert len(fake_cluster.gateways[1].requests) == 1


async def test_an_upload_starts_again_elsewhere_when_its_gateway_hangs_midway(
    holdfast: Holdfast, fake_cluster: FakeCluster, frozen_first: Freezable
) -> None:
    def freeze(done: int) -> None:
        frozen_first.freeze()

    data = BIG * 8  # more than the kernels' buffers take
    with took(HANG_S - 0.05, HANG_S + SLACK_S):
        await holdfast.put("v", data, on_progress=freeze)
    assert fake_cluster.volumes["v"].data == data


async def test_what_cannot_be_repeated_has_an_unknown_outcome(
    holdfast: Holdfast, fake_cluster: FakeCluster, frozen_first: Freezable
) -> None:
    first = await fake_holdfast_put(fake_cluster, "v", b"1")
    frozen_first.freeze(deaf=False)  # it does what it is asked, and the answer never comes
    with took(HANG_S - 0.05, HANG_S + SLACK_S), pytest.raises(OutcomeUnknown, match="was written is unknown"):
        await holdfast.put("v", b"2", if_match=first)
    assert fake_cluster.volumes["v"].data == b"2"


@pytest.mark.parametrize("answers", [True, False])
async def test_a_stream_is_not_sent_twice(
    holdfast: Holdfast, fake_cluster: FakeCluster, frozen_first: Freezable, *, answers: bool
) -> None:
    async def stream() -> AsyncIterator[bytes]:
        yield b"1"
        if not answers:
            frozen_first.freeze(deaf=False)
        yield b"2"

    if answers:
        frozen_first.freeze()  # it does not even ask for the body: another one may have it
        with took(HANG_S - 0.05, HANG_S + SLACK_S):
            await holdfast.put("v", stream())
        assert fake_cluster.volumes["v"].data == b"12"
    else:
        with took(HANG_S - 0.05, HANG_S + SLACK_S), pytest.raises(OutcomeUnknown, match=r"it hangs; .*again"):
            await holdfast.put("v", stream())
    assert len(fake_cluster.gateways[1].requests) == int(answers)


async def test_a_busy_gateway_is_waited_for(holdfast: Holdfast, fake_cluster: FakeCluster) -> None:
    """Its event loop answers probes while a request takes long: nothing is repeated."""
    fake_cluster.documents["/healthz"] = {"alive": True}
    fake_cluster.volumes["v"] = StoredVolume("v", b"x")

    async def slow(request: web.Request) -> web.StreamResponse | None:
        await asyncio.sleep(SLOW_S)
        return None

    actions: list[Callable[[], Awaitable[object]]] = [
        lambda: holdfast.get("v"),
        lambda: holdfast.put("v", b"y"),
        lambda: holdfast.put("v", BIG),
    ]
    for number, action in enumerate(actions):
        gateway = fake_cluster.gateways[number % 2]
        gateway.before.append(slow)
        gateway.requests.clear()
        fake_cluster.gateways[1 - number % 2].requests.clear()
        with took(SLOW_S, SLOW_S + SLACK_S):
            await action()
        assert gateway.requests.count("GET /healthz") >= SLOW_S // (POLICY.stall_s + SLACK_S)
        assert fake_cluster.gateways[1 - number % 2].requests == []
    assert fake_cluster.volumes["v"].data == BIG


async def test_slow_transfers_that_make_progress_are_not_asked_about() -> None:
    """A gateway that takes and gives bytes slowly and answers no probe at all, so that a single question would end the transfer."""
    rounds, pause_s = 12, POLICY.stall_s / 2
    body = b"z" * (rounds * 8192)
    received = bytearray()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        if head.startswith(b"GET /v1"):
            writer.write(b'HTTP/1.1 200 OK\r\nConnection: close\r\nETag: "1"\r\nContent-Length: %d\r\n\r\n' % len(body))
            for start in range(0, len(body), 8192):
                await asyncio.sleep(pause_s)
                writer.write(body[start : start + 8192])
        elif head.startswith(b"PUT"):
            # Less at a time than one block of the source, so that only the kernel's queues show the progress.
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            while len(received) < len(BIG):
                await asyncio.sleep(pause_s)
                received.extend(await reader.readexactly(min(len(BIG) // rounds + 1, len(BIG) - len(received))))
            writer.write(
                b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s" % (len(ANSWER), ANSWER)
            )
        else:
            await reader.read()  # a probe: silence until it goes away
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)  # inherited by the connections
    listener.bind(("127.0.0.1", 0))
    server = await asyncio.start_server(serve, sock=listener, limit=65536)
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    try:
        async with Holdfast([url], policy=POLICY) as holdfast:
            with took(2 * HANG_S, 60):
                assert await holdfast.get("v") == body
            with took(2 * HANG_S, 60):
                await holdfast.put_range("v", 0, BIG)
            assert received == BIG
    finally:
        server.close()
        await server.wait_closed()


ANSWER = json.dumps(StoredVolume("v", BIG).to_json()).encode()


async def test_many_who_wait_ask_once(holdfast: Holdfast, fake_cluster: FakeCluster, frozen_first: Freezable) -> None:
    fake_cluster.volumes["v"] = StoredVolume("v", b"x")
    frozen_first.freeze()
    waiting = 20
    with took(HANG_S - 0.05, HANG_S + SLACK_S):
        async with asyncio.TaskGroup() as group:
            for _ in range(waiting):
                group.create_task(holdfast.get("v"))
    assert frozen_first.connections == waiting // 2 + PROBES


async def test_a_hung_gateway_must_show_life_before_it_gets_a_request_again(
    holdfast: Holdfast, fake_cluster: FakeCluster, frozen_first: Freezable
) -> None:
    fake_cluster.documents["/healthz"] = {"alive": True}
    fake_cluster.volumes["v"] = StoredVolume("v", b"x")
    first = fake_cluster.gateways[0]
    frozen_first.freeze()
    await holdfast.get("v")
    await asyncio.sleep(QUARANTINE_S)
    connections = frozen_first.connections
    with took(POLICY.probe_timeout_s - 0.05, POLICY.probe_timeout_s + SLACK_S):
        for _ in range(2):  # one of them is the hung one's turn
            await holdfast.put("v", b"y", if_match=fake_cluster.volumes["v"].etag)  # nothing is in doubt
    assert frozen_first.connections == connections + 1
    frozen_first.thaw()
    await asyncio.sleep(2 * QUARANTINE_S)
    first.requests.clear()  # those of before, which it found when it woke
    for _ in range(4):
        await holdfast.get("v")
    assert first.requests.count("GET /healthz") == 1
    assert first.requests.count("GET /v1/volumes/v/data") >= 1


async def test_all_gateways_hang(fake_cluster: FakeCluster) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        async with Holdfast([url], policy=RetryPolicy(deadline_s=1.0, stall_s=0.2, probe_timeout_s=0.2)) as holdfast:
            with took(0.5, 5), pytest.raises(Unavailable, match="hangs"):
                await holdfast.show("v")
            with took(0, 5), pytest.raises(Unavailable, match="hangs"):
                await holdfast.put("v", b"never sent to one that is known to hang")


def test_under_uvloop() -> None:
    """Whose transports and sockets are not quite asyncio's."""

    async def scenario() -> None:
        cluster = FakeCluster(1)
        await cluster.start()
        try:
            with socket.create_server(("127.0.0.1", 0)) as listener:
                url = f"http://127.0.0.1:{listener.getsockname()[1]}"
                async with Holdfast([url, *cluster.urls], policy=POLICY) as holdfast:
                    with took(HANG_S - 0.05, HANG_S + SLACK_S):
                        await holdfast.put("v", BIG)
                request, _ = listener.accept()
                with request, pytest.raises(ConnectionResetError):
                    read_to_end(request)
            assert cluster.volumes["v"].data == BIG
        finally:
            await cluster.stop()

    uvloop.run(scenario())


async def fake_holdfast_put(cluster: FakeCluster, name: str, data: bytes) -> str:
    """Through the second gateway alone; the ETag."""
    async with Holdfast(cluster.urls[1], policy=POLICY) as holdfast:
        return (await holdfast.put(name, data)).etag
