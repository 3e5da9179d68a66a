"""Strangers and broken peers on the port: nothing gets in, nothing leaks, and the others notice nothing."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import msgpack
import pytest

from cluster.doors.network import TcpNetwork
from cluster.errors import PeerLost, PeerUnavailable, Unauthorized
from cluster.rpc.frame import CALLER_PROOF, PREFIX, REQUEST, short_frame
from cluster.rpc.handshake import CallerHandshake, HandshakeError, Hello, Identity
from cluster.rpc.limits import GREETINGS_LIMIT, HEADER_LIMIT, PAYLOAD_LIMIT, PIECE_SIZE
from cluster.rpc.message import Done, Request, message
from cluster.rpc.node import RpcNode
from cluster.rpc.service import Handlers, IncomingCall

MakeNode = Callable[..., Awaitable[RpcNode]]
SECRET = b"the secret of the cluster"


@message("hostile.ping", reply=Done)
@dataclass(frozen=True, slots=True)
class Ping(Request[Done]):
    number: int


def answer(request: Ping, call: IncomingCall) -> Done:
    return Done()


@pytest.fixture
async def node(make_node: MakeNode) -> RpcNode:
    handlers = Handlers()
    handlers.register(Ping, answer)
    return await make_node(TcpNetwork(), "b", handlers)


@pytest.fixture
async def friend(make_node: MakeNode, node: RpcNode) -> RpcNode:
    friend = await make_node(TcpNetwork(), "friend")
    friend.set_address("b", "127.0.0.1", node.port)
    await friend.call("b", Ping(1), deadline_s=5)
    return friend


async def read_frame(reader: asyncio.StreamReader) -> tuple[Any, ...]:
    header_length, payload_length = PREFIX.unpack(await reader.readexactly(8))
    header = msgpack.unpackb(await reader.readexactly(header_length), use_list=False)
    await reader.readexactly(payload_length)
    assert isinstance(header, tuple)
    return header


async def greeted(port: int, version: tuple[int, int] = (1, 1)) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A raw connection of somebody who knows the secret."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    hello = Hello("raw", b"r" * 8, 1)
    handshake = CallerHandshake(Identity(hello, SECRET, lambda hello: None, *version), random.randbytes(32))
    packed = handshake.start()
    try:
        while packed is not None:
            writer.write(PREFIX.pack(len(packed), 0) + packed)
            packed = handshake.receive(await read_frame(reader))
    except BaseException:
        writer.close()
        raise
    return reader, writer


async def ended(reader: asyncio.StreamReader) -> bytes:
    """Everything up to the end of the connection, which has to come."""
    async with asyncio.timeout(10):
        try:
            return await reader.read(-1)
        except ConnectionResetError:
            return b""


async def eventually(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - counters have no event
            await asyncio.sleep(0.005)


@pytest.mark.parametrize(
    "garbage",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200),
        b"SSH-2.0-OpenSSH_9.6\r\n",
        bytes(100),
        b"\xff" * 100,
        random.Random(3).randbytes(5000),
        short_frame((REQUEST, 1, "hostile.ping", 1000, 1, (1,), 0)),
        short_frame((CALLER_PROOF, b"x" * 32)),
    ],
)
async def test_garbage_closes_the_connection_and_harms_nobody(node: RpcNode, friend: RpcNode, garbage: bytes) -> None:
    served = node.statistics.calls_served
    reader, writer = await asyncio.open_connection("127.0.0.1", node.port)
    writer.write(garbage)
    assert await ended(reader) == b""
    writer.close()
    assert node.statistics.broken == 1
    assert node.statistics.calls_served == served
    await friend.call("b", Ping(1), deadline_s=5)
    await eventually(lambda: node.statistics.greetings == 0)


async def test_a_peer_that_is_no_node_is_unavailable(make_node: MakeNode) -> None:
    async def web_server(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(10)
        writer.write(b"HTTP/1.1 400 Bad Request\r\nServer: x\r\n\r\n")
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(web_server, "127.0.0.1", 0)
    async with server:
        a = await make_node(TcpNetwork(), "a")
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(PeerUnavailable, match="protocol"):
            await a.call_address("127.0.0.1", port, Ping(1), deadline_s=5)


async def test_another_version_is_told_why(node: RpcNode) -> None:
    with pytest.raises(HandshakeError, match="version") as refused:
        await greeted(node.port, (9, 8))
    assert isinstance(refused.value.error, PeerUnavailable)
    reader, writer = await greeted(node.port, (2, 1))
    writer.write(short_frame((REQUEST, 1, "hostile.ping", 1000, 1, (1,), 0)))
    assert await read_frame(reader) == (2, 1, (), 0)
    writer.close()


async def test_another_secret_is_told_so(node: RpcNode) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", node.port)
    handshake = CallerHandshake(Identity(Hello("raw", b"", 1), b"guess", lambda hello: None), b"1" * 32)
    first = handshake.start()
    assert first is not None
    writer.write(PREFIX.pack(len(first), 0) + first)
    proof = handshake.receive(await read_frame(reader))
    assert proof is not None
    writer.write(PREFIX.pack(len(proof), 0) + proof)
    assert (await read_frame(reader))[1] == Unauthorized.code
    assert await ended(reader) == b""
    writer.close()


async def test_what_a_newer_release_adds_is_ignored(node: RpcNode) -> None:
    reader, writer = await greeted(node.port)
    writer.write(short_frame((99, "a kind of the future", {"x": 1})))
    writer.write(PREFIX.pack(2, 3) + b"\x91\x63" + b"abc")
    writer.write(short_frame((REQUEST, 7, "hostile.ping", 1000, 1, (1, "new field"), 0, "new item")))
    assert await read_frame(reader) == (2, 7, (), 0)
    writer.write(short_frame((REQUEST, 8, "hostile.from-the-future", 1000, 1, (), 0)))
    assert (await read_frame(reader))[:3] == (3, 8, "unsupported")
    writer.close()


@pytest.mark.parametrize(
    "frames",
    [
        PREFIX.pack(HEADER_LIMIT + 1, 0),
        PREFIX.pack(10, PIECE_SIZE + 1),
        short_frame((REQUEST,)),
        short_frame((REQUEST, 1, "hostile.ping")),
        short_frame((REQUEST, 1, "hostile.ping", "soon", 1, (1,), 0)),
        short_frame((REQUEST, (), ["x"], 1, 1, (1,), 0)),
        short_frame((REQUEST, 1, "hostile.ping", 1, 1, (1,), -1)),
        short_frame((REQUEST, 1, "hostile.ping", 1, 1, (1,), PAYLOAD_LIMIT + 1)),
        short_frame((REQUEST, 1, "hostile.ping", 1, 1, (1,), "x")),
        short_frame((REQUEST, {}, "hostile.ping", 1, 1, (1,), 5)),
        b"".join(short_frame((REQUEST, n, "hostile.ping", 1, 1, (1,), 100)) for n in range(20)),
        PREFIX.pack(3, 4) + msgpack.packb((1, 2)) + b"abcd",
    ],
)
async def test_malformed_frames_of_a_proven_peer_close_its_connection_only(
    node: RpcNode, friend: RpcNode, frames: bytes
) -> None:
    reader, writer = await greeted(node.port)
    writer.write(frames)
    await ended(reader)
    writer.close()
    assert node.statistics.broken == 1
    await friend.call("b", Ping(1), deadline_s=5)
    await eventually(lambda: node.statistics.connections_in == 1)


@pytest.mark.parametrize("cut", [1, 8, 20, 100_000])
async def test_a_connection_that_ends_in_the_middle_of_a_frame_leaves_nothing_behind(node: RpcNode, cut: int) -> None:
    _, writer = await greeted(node.port)
    served = node.statistics.calls_served
    header = msgpack.packb((REQUEST, 1, "hostile.ping", 1000, 1, (1,), 200_000))
    writer.write((PREFIX.pack(len(header), 200_000) + header + bytes(200_000))[:cut])
    await writer.drain()
    writer.close()
    await writer.wait_closed()
    await eventually(lambda: node.statistics.connections_in == 0 and not node._incoming)
    assert node.statistics.calls_served == served
    assert node.statistics.held_bytes == 0


async def test_half_open_connections_are_bounded_and_the_oldest_give_way(node: RpcNode, friend: RpcNode) -> None:
    strangers = [await asyncio.open_connection("127.0.0.1", node.port) for _ in range(GREETINGS_LIMIT + 20)]
    await eventually(lambda: len(node._incoming) <= GREETINGS_LIMIT + 1)
    assert node.statistics.greetings == GREETINGS_LIMIT
    assert await ended(strangers[0][0]) == b""
    await friend.call("b", Ping(1), bytes(100_000), deadline_s=5)  # a new connection gets through all the same
    for _, writer in strangers:
        writer.close()
    await eventually(lambda: node.statistics.greetings == 0)


async def test_a_silent_stranger_is_closed_after_the_handshake_timeout(
    make_node: MakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.rpc.connection.HANDSHAKE_TIMEOUT_S", 0.1)
    b = await make_node(TcpNetwork(), "b")
    reader, writer = await asyncio.open_connection("127.0.0.1", b.port)
    assert await ended(reader) == b""
    writer.close()
    await eventually(lambda: b.statistics.greetings == 0 and not b._incoming)


async def test_a_peer_that_accepts_and_says_nothing_is_unavailable_at_the_deadline(make_node: MakeNode) -> None:
    listener = await TcpNetwork().listen(asyncio.Protocol, "127.0.0.1", 0)
    a = await make_node(TcpNetwork(), "a")
    a.set_address("b", "127.0.0.1", listener.port)
    with pytest.raises(PeerUnavailable):
        await a.call("b", Ping(1), deadline_s=0.1)
    with pytest.raises(PeerUnavailable):
        await a.call_address("127.0.0.1", listener.port, Ping(1), deadline_s=0.1)
    await listener.close()


async def test_a_connection_that_has_gone_silent_is_given_up(
    make_node: MakeNode, loopback: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.rpc.outgoing.PING_TIMEOUT_S", 0.1)
    handlers = Handlers()
    handlers.register(Ping, answer)
    b = await make_node(loopback, "b", handlers)
    a = await make_node(loopback, "a")
    a.set_address("b", "127.0.0.1", b.port)
    await a.call("b", Ping(1), deadline_s=5)
    for transport in loopback.transports:
        transport.pause_reading()
    with pytest.raises(PeerLost, match="no answer"):
        await a.call("b", Ping(1), deadline_s=0.05)
    await eventually(lambda: a.statistics.connections_out == 0)
    await a.call("b", Ping(1), deadline_s=5)  # over a new connection


async def test_an_idle_peer_is_pinged_and_a_dead_one_closed(
    make_node: MakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.rpc.node.IDLE_PING_S", 0.05)
    handlers = Handlers()
    handlers.register(Ping, answer)
    b = await make_node(TcpNetwork(), "b", handlers)
    a = await make_node(TcpNetwork(), "a")
    a.set_address("b", "127.0.0.1", b.port)
    await a.call("b", Ping(1), deadline_s=5)
    reader, writer = await greeted(b.port)  # answers no pings
    assert await ended(reader)  # the ping, then the end
    writer.close()
    await eventually(lambda: b.statistics.connections_in == 1)  # a's is still there
    await a.call("b", Ping(1), deadline_s=5)
    assert a.statistics.connections_out == 1
