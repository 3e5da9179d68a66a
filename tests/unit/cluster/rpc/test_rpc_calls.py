"""Calls between nodes, over TCP and over a stream in memory that arrives in random pieces."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from cluster.doors.network import Network, TcpNetwork
from cluster.errors import (
    Conflict,
    HoldfastError,
    Invalid,
    PeerLost,
    PeerUnavailable,
    Unauthorized,
    Unsupported,
    WrongCluster,
)
from cluster.rpc.handshake import Hello
from cluster.rpc.limits import (
    HEADER_LIMIT,
    HELD_LIMIT_CONNECTION,
    PAYLOAD_LIMIT,
    PIECE_SIZE,
    SEND_QUEUE_LIMIT,
)
from cluster.rpc.message import Buffer, Done, Payload, Request, message
from cluster.rpc.node import RpcNode
from cluster.rpc.service import Handlers, IncomingCall

MakeNode = Callable[..., Awaitable[RpcNode]]


@message
@dataclass(frozen=True, slots=True)
class Echoed:
    number: int
    peer: str
    layout_version: int
    raw: bytes = b""


@message("calls.echo", reply=Echoed)
@dataclass(frozen=True, slots=True)
class Echo(Request[Echoed]):
    number: int
    how: str = "plain"
    raw: bytes = b""


@message("calls.wait", reply=Done)
@dataclass(frozen=True, slots=True)
class Wait(Request[Done]):
    """Answered when the service says so."""


@message("calls.unknown", reply=Done)
@dataclass(frozen=True, slots=True)
class Unknown(Request[Done]):
    pass


class Service:
    """Handlers that note what happens to them."""

    def __init__(self) -> None:
        self.handlers = Handlers()
        self.handlers.register(Echo, self.echo)
        self.handlers.register(Wait, self.wait)
        self.go = asyncio.Event()
        self.waiting = 0
        self.cancelled = 0
        self.changed = asyncio.Condition()
        self.payload: Any = b""
        self.remaining_s = 0.0

    def echo(self, request: Echo, call: IncomingCall) -> Any:
        reply = Echoed(request.number, call.peer, call.layout_version, request.raw)
        match request.how:
            case "plain":
                return reply, call.payload
            case "bare":
                return reply
            case "task":
                return self.later(reply, call.payload)
            case "future":
                future: asyncio.Future[tuple[Echoed, Payload]] = asyncio.get_running_loop().create_future()
                asyncio.get_running_loop().call_soon(future.set_result, (reply, [b"", call.payload, b""]))
                return future
            case "conflict":
                raise Conflict("somebody else was first", etag="x", nested={"a": [1, 2]})
            case "bug":
                raise ZeroDivisionError("a bug")
            case "strange":
                return "not a reply", b""
            case "big":
                return reply, bytes(PAYLOAD_LIMIT + 1)
            case "big fields":
                return Echoed(1, "x", 1, bytes(HEADER_LIMIT))
            case "gives up":
                given_up: asyncio.Future[Echoed] = asyncio.get_running_loop().create_future()
                given_up.cancel()
                return given_up
        raise AssertionError(request.how)

    async def later(self, reply: Echoed, payload: Payload) -> tuple[Echoed, Payload]:
        await asyncio.sleep(0)
        if reply.number == 99:
            raise Conflict("late conflict")
        return reply, payload

    async def wait(self, request: Wait, call: IncomingCall) -> Done:
        self.payload = call.payload
        self.remaining_s = call.deadline - asyncio.get_running_loop().time()
        await self.note(1, 0)
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.waiting -= 1
            async with self.changed:
                self.changed.notify_all()
        return Done()

    async def note(self, waiting: int, cancelled: int) -> None:
        self.waiting += waiting
        self.cancelled += cancelled
        async with self.changed:
            self.changed.notify_all()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(10), self.changed:
            await self.changed.wait_for(condition)


async def eventually(condition: Callable[[], bool]) -> None:
    """Wait for something that nobody announces."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - counters have no event
            await asyncio.sleep(0.005)


@pytest.fixture
def service() -> Service:
    return Service()


@pytest.fixture
async def two(network: Network, make_node: MakeNode, service: Service) -> tuple[RpcNode, RpcNode]:
    """Node a, which calls, and node b, which serves."""
    b = await make_node(network, "b", service.handlers)
    a = await make_node(network, "a", layout_version=lambda: 42)
    a.set_address("b", "127.0.0.1", b.port)
    return a, b


@pytest.mark.parametrize("how", ["plain", "task", "future"])
@pytest.mark.parametrize("size", [0, 1, 4096, 65536, 65537, PIECE_SIZE, PIECE_SIZE * 3 + 17, PAYLOAD_LIMIT])
async def test_request_and_payload_arrive_and_come_back(two: tuple[RpcNode, RpcNode], how: str, size: int) -> None:
    a, _ = two
    payload = (bytes(range(251)) * (size // 251 + 1))[:size]
    reply = await a.call("b", Echo(5, how, b"raw"), payload, deadline_s=10)
    assert reply.message == Echoed(5, "a", 42, b"raw")
    assert bytes(reply.payload) == payload


async def test_a_payload_may_come_in_pieces(two: tuple[RpcNode, RpcNode]) -> None:
    a, _ = two
    pieces: list[Buffer] = [b"a" * 100_000, memoryview(bytearray(b"b" * 300_000))[5:], b"", bytearray(b"c")]
    reply = await a.call("b", Echo(1), pieces, deadline_s=10)
    assert bytes(reply.payload) == b"".join(pieces)
    small: list[Buffer] = [b"x", bytearray(b"y"), memoryview(b"z")]
    assert bytes((await a.call("b", Echo(1), small, deadline_s=10)).payload) == b"xyz"


async def test_many_calls_of_all_sizes_at_once_are_not_mixed_up(two: tuple[RpcNode, RpcNode]) -> None:
    a, b = two

    async def one(number: int) -> None:
        payload = bytes([number % 256]) * [0, 10, 5000, 70_000, 600_000][number % 5]
        how = ["plain", "task", "future"][number % 3]
        reply = await a.call("b", Echo(number, how), payload, deadline_s=30)
        assert reply.message.number == number
        assert bytes(reply.payload) == payload

    async with asyncio.TaskGroup() as tasks:
        for number in range(200):
            tasks.create_task(one(number))
    assert a.statistics.calls_sent == b.statistics.calls_served == 200
    await eventually(lambda: a.statistics.in_flight_out == b.statistics.in_flight_in == b.statistics.held_bytes == 0)
    assert a.statistics.connections_out == b.statistics.connections_in == 2


async def test_errors_travel_with_their_kind_text_and_details(two: tuple[RpcNode, RpcNode]) -> None:
    for node in two:  # over the wire, and to oneself
        with pytest.raises(Conflict) as conflict:
            await node.call("b", Echo(1, "conflict"), deadline_s=5)
        assert str(conflict.value) == "somebody else was first"
        assert conflict.value.details["etag"] == "x"
        with pytest.raises(Conflict):
            await node.call("b", Echo(99, "task"), deadline_s=5)
        with pytest.raises(Unsupported, match="unknown"):
            await node.call("b", Unknown(), deadline_s=5)


@pytest.mark.parametrize("how", ["bug", "strange", "big", "big fields", "gives up"])
async def test_a_broken_handler_fails_its_own_call_only(two: tuple[RpcNode, RpcNode], how: str) -> None:
    a, _ = two
    with pytest.raises(HoldfastError) as failed:
        await a.call("b", Echo(1, how), deadline_s=5)
    assert failed.value.code == "internal"
    assert (await a.call("b", Echo(2), deadline_s=5)).message.number == 2
    assert a.statistics.connections_out == 1
    if not how.startswith("big"):
        with pytest.raises(HoldfastError) as failed:
            await two[1].call("b", Echo(1, how), deadline_s=5)
        assert failed.value.code == "internal"


async def test_a_request_that_cannot_be_packed_or_is_too_large_is_invalid(two: tuple[RpcNode, RpcNode]) -> None:
    a, b = two
    for request, payload in (
        (Echo(2**70), b""),
        (Echo(1, raw=bytes(HEADER_LIMIT)), b""),
        (Echo(1), bytes(PAYLOAD_LIMIT + 1)),
        (Echo(object()), b""),  # type: ignore[arg-type]  # the mistake that is tested
    ):
        with pytest.raises(Invalid):
            await a.call("b", request, payload, deadline_s=5)
    with pytest.raises(Invalid):
        await b.call("b", Echo(1), bytes(PAYLOAD_LIMIT + 1), deadline_s=5)
    with pytest.raises(Invalid, match="number"):
        await a.call("b", Echo("text"), deadline_s=5)  # type: ignore[arg-type]  # checked where it arrives
    assert a.statistics.in_flight_out == 0


async def test_a_call_to_oneself_takes_no_wire(two: tuple[RpcNode, RpcNode], service: Service) -> None:
    _, b = two
    for how in ("plain", "task", "future"):
        reply = await b.call("b", Echo(3, how), [b"x", b"y"], deadline_s=5)
        assert reply.message.peer == "b"
        assert bytes(reply.payload) == b"xy"
    assert (await b.call("b", Echo(3, "bare"), deadline_s=5)).payload == b""
    with pytest.raises(HoldfastError) as failed:
        await b.call("b", Echo(1, "bug"), deadline_s=5)
    assert failed.value.code == "internal"
    with pytest.raises(PeerLost):
        await b.call("b", Wait(), deadline_s=0.05)
    assert service.cancelled == 1
    assert b.statistics.calls_sent == b.statistics.bytes_received == 0


async def test_a_deadline_that_passes_loses_the_peer_and_cancels_the_handler(
    two: tuple[RpcNode, RpcNode], service: Service
) -> None:
    a, b = two
    loop = asyncio.get_running_loop()
    start = loop.time()
    with pytest.raises(PeerLost, match=r"calls\.wait"):
        await a.call("b", Wait(), deadline_s=0.2)
    assert 0.2 <= loop.time() - start < 2
    assert 0 < service.remaining_s <= 0.21
    await service.until(lambda: service.cancelled == 1)
    await eventually(lambda: b.statistics.in_flight_in == b.statistics.held_bytes == 0)
    assert a.statistics.calls_expired == 1
    assert (await a.call("b", Echo(1), deadline_s=5)).message.number == 1  # the connection is as good as before


async def test_a_caller_that_goes_away_cancels_the_handler(two: tuple[RpcNode, RpcNode], service: Service) -> None:
    a, b = two
    task = asyncio.create_task(a.call("b", Wait(), deadline_s=30))
    await service.until(lambda: service.waiting == 1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await service.until(lambda: service.cancelled == 1)
    await eventually(lambda: a.statistics.in_flight_out == b.statistics.in_flight_in == 0)


async def test_late_answers_are_ignored(two: tuple[RpcNode, RpcNode], service: Service) -> None:
    """Answer and cancellation cross: many calls are cancelled just as they are answered, small and large."""
    a, _ = two
    await a.call("b", Echo(1), deadline_s=5)
    for turns in range(25):
        payload = bytes(600_000) if turns % 2 else b""
        tasks = [asyncio.create_task(a.call("b", Echo(1, "task"), payload, deadline_s=5)) for _ in range(4)]
        for _ in range(turns):
            await asyncio.sleep(0)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    assert (await a.call("b", Echo(2), bytes(600_000), deadline_s=5)).message.number == 2
    await eventually(lambda: a.statistics.in_flight_out == 0)


async def test_an_unknown_name_and_a_closed_port_are_unavailable_at_once(network: Network, make_node: MakeNode) -> None:
    a = await make_node(network, "a")
    with pytest.raises(PeerUnavailable, match="no address"):
        await a.call("b", Echo(1), deadline_s=5)
    a.set_address("b", "127.0.0.1", 1)
    for _ in range(3):  # the second and third time while backing off
        async with asyncio.timeout(2):
            with pytest.raises(PeerUnavailable):
                await a.call("b", Echo(1), deadline_s=30)
    with pytest.raises(PeerUnavailable):
        await a.call("b", Echo(1), deadline_s=0)
    with pytest.raises(Invalid):
        await a.call("b", Echo(1), deadline_s=1e9)


async def test_a_peer_that_comes_back_is_reached_again(network: Network, make_node: MakeNode, service: Service) -> None:
    b = await make_node(network, "b", service.handlers)
    a = await make_node(network, "a")
    a.set_address("b", "127.0.0.1", 1)
    with pytest.raises(PeerUnavailable):
        await a.call("b", Echo(1), deadline_s=5)
    a.set_address("b", "127.0.0.1", b.port)
    assert (await a.call("b", Echo(1), deadline_s=5)).message.number == 1
    a.forget_address("b")
    with pytest.raises(PeerUnavailable):
        await a.call("b", Echo(1), deadline_s=5)


async def test_back_off_ends(network: Network, make_node: MakeNode, service: Service) -> None:
    closed = await network.listen(asyncio.Protocol, "127.0.0.1", 0)
    port = closed.port
    await closed.close()
    a = await make_node(network, "a")
    a.set_address("b", "127.0.0.1", port)
    with pytest.raises(PeerUnavailable):
        await a.call("b", Echo(1), deadline_s=5)
    async with RpcNode(
        me=Hello("b", b"b" * 8, 1),
        secret=a._secret,
        handlers=service.handlers,
        network=network,
        clock=a._clock,
        random=a._random,
        layout_version=lambda: 0,
        check_hello=lambda hello: None,
    ) as b:
        await b.listen("127.0.0.1", port)
        async with asyncio.timeout(5):
            while True:
                try:
                    await a.call("b", Echo(1), deadline_s=5)
                    break
                except PeerUnavailable:
                    await asyncio.sleep(0.01)
    # its connections broke when it ended
    with pytest.raises(HoldfastError):
        await a.call("b", Echo(1), deadline_s=5)
    assert a.statistics.connections_out == 0


async def test_a_broken_connection_loses_the_calls_on_it_and_cancels_their_handlers(
    loopback: Any, make_node: MakeNode, service: Service
) -> None:
    b = await make_node(loopback, "b", service.handlers)
    a = await make_node(loopback, "a")
    a.set_address("b", "127.0.0.1", b.port)
    tasks = [asyncio.create_task(a.call("b", Wait(), bytes(size), deadline_s=30)) for size in (0, 100_000)]
    await service.until(lambda: service.waiting == 2)
    loopback.cut()
    for task in tasks:
        with pytest.raises(PeerLost, match="broke"):
            await task
    await service.until(lambda: service.cancelled == 2)
    await eventually(lambda: b.statistics.connections_in == b.statistics.in_flight_in == 0)
    assert a.statistics.in_flight_out == 0
    assert (await a.call("b", Echo(1), deadline_s=5)).message.number == 1


async def test_a_short_call_is_not_stuck_behind_large_ones(make_node: MakeNode, service: Service) -> None:
    b = await make_node(TcpNetwork(), "b", service.handlers)
    a = await make_node(TcpNetwork(), "a")
    a.set_address("b", "127.0.0.1", b.port)
    finished: list[str] = []

    async def call(name: str, size: int) -> None:
        await a.call("b", Echo(1), bytes(size), deadline_s=30)
        finished.append(name)

    async with asyncio.TaskGroup() as tasks:
        for number in range(8):
            tasks.create_task(call(f"large {number}", PAYLOAD_LIMIT))
        await asyncio.sleep(0)
        for number in range(8):
            tasks.create_task(call(f"short {number}", 60_000))
    assert all(name.startswith("short") for name in finished[:8]), finished


async def test_what_handlers_hold_is_bounded_and_reading_goes_on_later(
    two: tuple[RpcNode, RpcNode], service: Service
) -> None:
    a, b = two
    size = 4 * 1024 * 1024
    tasks = [asyncio.create_task(a.call("b", Wait(), bytes(size), deadline_s=60)) for _ in range(20)]
    await eventually(lambda: b.statistics.held_bytes > HELD_LIMIT_CONNECTION)
    # small calls are answered all the same: they have a connection of their own
    assert (await a.call("b", Echo(1), deadline_s=5)).message.number == 1
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.5):
            await service.until(lambda: service.waiting == 20)
    assert b.statistics.held_bytes <= HELD_LIMIT_CONNECTION + 2 * size
    service.go.set()
    await asyncio.gather(*tasks)
    assert b.statistics.held_bytes == 0


async def test_a_peer_that_reads_nothing_makes_callers_wait_and_then_refuses_them(
    loopback: Any, make_node: MakeNode, service: Service
) -> None:
    b = await make_node(loopback, "b", service.handlers)
    a = await make_node(loopback, "a")
    a.set_address("b", "127.0.0.1", b.port)
    await a.call("b", Echo(1), bytes(100_000), deadline_s=5)
    for transport in loopback.transports:
        transport.pause_reading()
    size = PAYLOAD_LIMIT
    number = SEND_QUEUE_LIMIT // size + 4
    calls = [a.call("b", Echo(1), bytes(size), deadline_s=0.5) for _ in range(number)]
    results = await asyncio.gather(*calls, return_exceptions=True)
    lost = [error for error in results if isinstance(error, PeerLost)]
    refused = [error for error in results if isinstance(error, PeerUnavailable)]
    assert len(lost) + len(refused) == number
    assert lost
    assert refused  # not a byte of these was sent
    (connection,) = [connection for connection in a._outgoing if connection._outbox.queued or connection._asked] or [
        next(iter(a._outgoing))
    ]
    assert connection.queued < SEND_QUEUE_LIMIT + size


async def test_the_secret_never_travels(loopback: Any, make_node: MakeNode, service: Service) -> None:
    b = await make_node(loopback, "b", service.handlers, secret=b"0123456789 secret")
    a = await make_node(loopback, "a", secret=b"0123456789 secret")
    a.set_address("b", "127.0.0.1", b.port)
    await a.call("b", Echo(1), deadline_s=5)
    assert b"holdfast" in loopback.captured
    assert b"0123456789 secret" not in loopback.captured


async def test_another_secret_is_refused_on_both_sides(network: Network, make_node: MakeNode, service: Service) -> None:
    b = await make_node(network, "b", service.handlers)
    a = await make_node(network, "a", secret=b"another")
    with pytest.raises(Unauthorized, match="secret"):
        await a.call_address("127.0.0.1", b.port, Echo(1), deadline_s=5)
    a.set_address("b", "127.0.0.1", b.port)
    with pytest.raises(PeerUnavailable, match="secret"):
        await a.call("b", Echo(1), deadline_s=5)
    assert a.statistics.refused == b.statistics.refused == 2
    await eventually(lambda: not a._outgoing and not b._incoming)
    assert service.waiting == b.statistics.calls_served == 0


async def test_calling_an_address(network: Network, make_node: MakeNode, service: Service) -> None:
    b = await make_node(network, "b", service.handlers)
    a = await make_node(network, "a")
    reply = await a.call_address("127.0.0.1", b.port, Echo(7), b"x" * 100_000, deadline_s=5)
    assert reply.message.number == 7
    assert len(reply.payload) == 100_000
    with pytest.raises(Invalid) as itself:
        await a.call_address("127.0.0.1", a.port, Echo(7), deadline_s=5)
    assert itself.value.details["itself"] is True
    with pytest.raises(PeerUnavailable):
        await a.call_address("127.0.0.1", 1, Echo(7), deadline_s=5)
    await eventually(lambda: not a._outgoing and not b._incoming)


class ManyMachines(TcpNetwork):
    async def addresses(self, host: str) -> Sequence[str]:
        if host != "all":
            raise OSError("no such name")
        return ("127.0.0.1", "127.0.0.2")


async def test_all_that_a_name_stands_for(make_node: MakeNode, service: Service) -> None:
    a = await make_node(ManyMachines(), "a")
    assert await a.addresses_of("all", deadline_s=5) == ("127.0.0.1", "127.0.0.2")
    with pytest.raises(PeerUnavailable, match="nowhere is not to be found: no such name"):
        await a.addresses_of("nowhere", deadline_s=5)


async def test_check_hello_is_asked_on_both_sides(network: Network, make_node: MakeNode, service: Service) -> None:
    def only_mine(hello: Hello) -> None:
        if hello.cluster != b"mine":
            raise WrongCluster(f"{hello.name} is of another cluster")

    b = await make_node(network, "b", service.handlers, cluster=b"theirs")
    strict = await make_node(network, "s", service.handlers, cluster=b"mine", check_hello=only_mine)
    with pytest.raises(WrongCluster, match="b is of another"):
        await strict.call_address("127.0.0.1", b.port, Echo(1), deadline_s=5)
    with pytest.raises(WrongCluster, match="b is of another"):
        await b.call_address("127.0.0.1", strict.port, Echo(1), deadline_s=5)
    b.set_cluster(b"mine")
    assert (await b.call_address("127.0.0.1", strict.port, Echo(1), deadline_s=5)).message.peer == "b"


async def test_an_address_that_belongs_to_another_node_is_not_used(
    network: Network, make_node: MakeNode, service: Service
) -> None:
    b = await make_node(network, "b", service.handlers)
    a = await make_node(network, "a")
    a.set_address("c", "127.0.0.1", b.port)
    with pytest.raises(PeerUnavailable, match="is node 'b'"):
        await a.call("c", Echo(1), deadline_s=5)
    assert b.statistics.calls_served == 0


async def test_leaving_a_node_ends_everything_of_it(network: Network, make_node: MakeNode, service: Service) -> None:
    b = await make_node(network, "b", service.handlers)
    async with RpcNode(
        me=Hello("a", b"a" * 8, 1),
        secret=b._secret,
        handlers=Handlers(),
        network=network,
        clock=b._clock,
        random=b._random,
        layout_version=lambda: 0,
        check_hello=lambda hello: None,
    ) as a:
        a.set_address("b", "127.0.0.1", b.port)
        task = asyncio.create_task(a.call("b", Wait(), deadline_s=30))
        await service.until(lambda: service.waiting == 1)
    with pytest.raises(PeerLost):
        await task
    await service.until(lambda: service.cancelled == 1)
    with pytest.raises(HoldfastError):
        await a.call("b", Echo(1), deadline_s=5)


async def test_a_peer_that_holds_back_for_lack_of_memory_is_not_taken_for_dead(
    two: tuple[RpcNode, RpcNode], service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.rpc.outgoing.PING_TIMEOUT_S", 0.3)
    monkeypatch.setattr("cluster.rpc.incoming.STOPPED_PING_S", 0.05)
    a, b = two
    size = 4 * 1024 * 1024
    tasks = [asyncio.create_task(a.call("b", Wait(), bytes(size), deadline_s=60)) for _ in range(8)]
    await eventually(lambda: b.statistics.held_bytes > HELD_LIMIT_CONNECTION)
    for _ in range(3):
        with pytest.raises((PeerLost, PeerUnavailable)):
            await a.call("b", Wait(), bytes(100_000), deadline_s=0.2)
    service.go.set()
    await asyncio.gather(*tasks)


async def test_an_empty_secret_is_refused(network: Network, make_node: MakeNode) -> None:
    with pytest.raises(Invalid, match="secret"):
        await make_node(network, "a", secret=b"")
