"""Nodes on two networks: real TCP on 127.0.0.1, and one in memory whose streams arrive in random pieces."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack
from typing import Any, TypeVar, cast

import pytest

from cluster.doors.clock import SystemClock
from cluster.doors.network import Listener, Network, TcpNetwork
from cluster.rpc.handshake import Hello
from cluster.rpc.node import RpcNode
from cluster.rpc.service import Handlers

P = TypeVar("P", bound=asyncio.BaseProtocol)


class LoopbackTransport(asyncio.Transport):
    """One end of a stream in memory. What is written arrives a turn of the loop later, cut at random places."""

    def __init__(self, network: LoopbackNetwork, address: tuple[str, int]) -> None:
        super().__init__({"peername": address})
        self.network = network
        self.loop = asyncio.get_running_loop()
        self.protocol: asyncio.BufferedProtocol
        self.peer: LoopbackTransport
        self.arriving = bytearray()
        self.reading = True
        self.closing = False
        self.high = 64 * 1024
        self.writer_paused = False
        self.planned = False

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self.high = high if high is not None else 64 * 1024

    def write(self, data: bytes | bytearray | memoryview[Any]) -> None:
        if self.closing:
            return
        self.network.captured.extend(data)
        self.peer.arriving += data
        self.peer.plan()
        if len(self.peer.arriving) > self.high and not self.writer_paused:
            self.writer_paused = True
            self.protocol.pause_writing()

    def plan(self) -> None:
        if not self.planned:
            self.planned = True
            self.loop.call_soon(self.deliver)

    def deliver(self) -> None:
        self.planned = False
        turn = 512 * 1024
        while self.arriving and self.reading and not self.closing and turn > 0:
            buffer = cast("memoryview[int]", self.protocol.get_buffer(-1))
            count = min(len(buffer), len(self.arriving), self.network.random.choice([1, 7, 100, 5000, 10**6, 10**6]))
            buffer[:count] = self.arriving[:count]
            del self.arriving[:count]
            turn -= count
            self.protocol.buffer_updated(count)
        if self.arriving and self.reading and not self.closing:
            self.plan()
        if self.peer.writer_paused and len(self.arriving) <= self.peer.high // 4 and not self.peer.closing:
            self.peer.writer_paused = False
            self.peer.protocol.resume_writing()
        if self.peer.closing and not self.arriving and not self.closing:
            self.abort()

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True
        self.plan()

    def is_closing(self) -> bool:
        return self.closing

    def close(self) -> None:
        if not self.closing:
            self.closing = True
            self.loop.call_soon(self.protocol.connection_lost, None)
            self.peer.plan()

    def abort(self) -> None:
        if not self.closing:
            self.arriving.clear()
            self.close()


class LoopbackListener:
    def __init__(self, network: LoopbackNetwork, port: int) -> None:
        self.network = network
        self.port = port

    async def close(self) -> None:
        self.network.listening.pop(self.port, None)


class LoopbackNetwork:
    def __init__(self) -> None:
        self.random = random.Random(7)
        self.listening: dict[int, Callable[[], asyncio.BaseProtocol]] = {}
        self.captured = bytearray()
        self.transports: list[LoopbackTransport] = []

    async def connect(self, factory: Callable[[], P], host: str, port: int) -> P:
        await asyncio.sleep(0)
        if port not in self.listening:
            raise ConnectionRefusedError(f"nobody listens on {host}:{port}")
        near, far = LoopbackTransport(self, (host, port)), LoopbackTransport(self, (host, 1))
        near.peer, far.peer = far, near
        protocol = factory()
        near.protocol = cast("asyncio.BufferedProtocol", protocol)
        far.protocol = cast("asyncio.BufferedProtocol", self.listening[port]())
        self.transports += [near, far]
        far.protocol.connection_made(far)
        near.protocol.connection_made(near)
        return protocol

    async def addresses(self, host: str) -> Sequence[str]:
        return (host,)

    async def listen(self, factory: Callable[[], asyncio.BaseProtocol], host: str, port: int) -> Listener:
        port = port or 10000 + len(self.listening)
        self.listening[port] = factory
        return LoopbackListener(self, port)

    def cut(self) -> None:
        for transport in self.transports:
            transport.abort()


@pytest.fixture(params=["memory", "tcp"])
def network(request: pytest.FixtureRequest) -> Network:
    return LoopbackNetwork() if request.param == "memory" else TcpNetwork()


@pytest.fixture
def loopback() -> LoopbackNetwork:
    return LoopbackNetwork()


@pytest.fixture
async def make_node() -> AsyncIterator[Callable[..., Any]]:
    """``await make_node(network, name, handlers, ...)``: a node that listens, until the test ends."""
    async with AsyncExitStack() as nodes:

        async def make(
            network: Network,
            name: str,
            handlers: Handlers | None = None,
            *,
            secret: bytes = b"the secret of the cluster",
            cluster: bytes = b"c" * 16,
            boot: int = 1,
            store: bytes | None = None,
            check_hello: Callable[[Hello], None] = lambda hello: None,
            layout_version: Callable[[], int] = lambda: 1,
        ) -> RpcNode:
            node = RpcNode(
                me=Hello(name, store or name.encode().ljust(8), boot, cluster),
                secret=secret,
                handlers=handlers or Handlers(),
                network=network,
                clock=SystemClock(),
                random=random.Random(1),
                layout_version=layout_version,
                check_hello=check_hello,
            )
            await nodes.enter_async_context(node)
            await node.listen("127.0.0.1", 0)
            return node

        yield make
