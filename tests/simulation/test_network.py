"""The simulated network: what TCP may do to a stream happens, what it never does does not; the production RPC keeps its word."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace
from typing import Any, cast

import pytest

from cluster.doors.network import Network
from cluster.errors import HoldfastError, PeerLost, PeerUnavailable
from cluster.rpc.handshake import Hello
from cluster.rpc.message import Request, message
from cluster.rpc.node import RpcNode
from cluster.rpc.service import Handlers, IncomingCall
from tests.support.simulated.clock import VirtualClock
from tests.support.simulated.loop import Scheduling, process_context, run_virtual
from tests.support.simulated.network import SimulatedNetwork
from tests.support.simulated.streams import Streams
from tests.support.simulated.trace import Trace
from tests.support.simulated.weather import CALM, STORM, WINDY, Weather


class Recorder(asyncio.BufferedProtocol):
    """One end: keeps what arrives, and when."""

    def __init__(self, made: list[Recorder] | None = None) -> None:
        self.buffer = bytearray(1000)
        self.received = bytearray()
        self.reads = 0
        self.times: list[float] = []
        self.lost_at: float | None = None
        self.paused = 0
        if made is not None:
            made.append(self)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.made_at = asyncio.get_running_loop().time()

    def get_buffer(self, sizehint: int) -> memoryview:
        return memoryview(self.buffer)

    def buffer_updated(self, nbytes: int) -> None:
        self.received += self.buffer[:nbytes]
        self.reads += 1
        self.times.append(asyncio.get_running_loop().time())

    def connection_lost(self, exc: Exception | None) -> None:
        assert self.lost_at is None
        self.lost_at = asyncio.get_running_loop().time()

    def pause_writing(self) -> None:
        self.paused += 1

    def resume_writing(self) -> None:
        self.paused -= 1


Two = Callable[[SimulatedNetwork, Recorder, Recorder], Coroutine[Any, Any, None]]


def play(scenario: Two, weather: Weather = CALM, seed: int = 1) -> None:
    """A stream from a to b, then the scenario."""

    async def main() -> None:
        network = SimulatedNetwork(random.Random(seed), weather)
        accepted: list[Recorder] = []
        await network.host("b").listen(lambda: Recorder(accepted), "b", 1)
        near = await network.host("a").connect(Recorder, "b", 1)
        await asyncio.sleep(0.01)
        await scenario(network, near, accepted[0])

    run_virtual(main())


def now() -> float:
    return asyncio.get_running_loop().time()


@pytest.mark.parametrize("seed", range(5))
def test_bytes_arrive_once_in_order_and_in_arbitrary_parts(seed: int) -> None:
    async def scenario(network: SimulatedNetwork, near: Recorder, far: Recorder) -> None:
        rng = random.Random(seed)
        sent = bytearray()
        for _ in range(200):
            piece = rng.randbytes(rng.randrange(1, 3000))
            sent += piece
            near.transport.write(piece)
            await asyncio.sleep(rng.choice([0, 0, 0.001]))
        near.transport.close()
        await asyncio.sleep(60)
        assert far.received == sent
        assert far.reads > 300
        assert far.lost_at is not None

    play(scenario, Weather(late_chance=0.1, late_max_s=2.0, fragment_chance=0.3), seed)


def test_a_late_segment_holds_up_its_own_stream_and_no_other() -> None:
    async def scenario(network: SimulatedNetwork, near: Recorder, far: Recorder) -> None:
        network.set_weather(Weather(late_chance=1.0, late_s=50.0, late_max_s=60.0))
        near.transport.write(b"late")
        network.set_weather(CALM)
        near.transport.write(b"behind it")
        other = await network.host("a").connect(Recorder, "b", 1)
        other.transport.write(b"overtakes")
        await asyncio.sleep(1)
        assert far.received == b""
        await asyncio.sleep(60)
        assert far.received == b"latebehind it"
        assert far.times[0] >= 50

    play(scenario)


def test_a_late_copy_arrives_after_its_sender_has_moved_on() -> None:
    """The sender gives up, connects again and sends the request anew; then the first one is read."""

    async def scenario(network: SimulatedNetwork, near: Recorder, far: Recorder) -> None:
        read: list[tuple[str, bytes]] = []
        far.buffer_updated = lambda nbytes: read.append(("old stream", bytes(far.buffer[:nbytes])))  # type: ignore[method-assign]
        network.set_weather(Weather(late_chance=1.0, late_s=100.0))
        near.transport.write(b"accept 1")
        network.set_weather(replace(CALM, fragment_chance=0))
        await asyncio.sleep(3)
        near.transport.abort()
        await asyncio.sleep(0)
        assert near.lost_at == pytest.approx(now(), abs=0.01)
        again = await network.host("a").connect(Recorder, "b", 1)
        again.transport.write(b"accept 2")
        await asyncio.sleep(1)
        assert read == []
        await asyncio.sleep(150)
        assert read == [("old stream", b"accept 1")]
        assert far.lost_at is not None
        assert far.lost_at >= 100

    play(scenario)


@pytest.mark.parametrize("seed", range(30))
def test_a_break_in_the_middle_of_a_frame(seed: int) -> None:
    """The other end gets a part of what was sent, and none of what is sent later; who is not told finds out when it writes."""

    async def scenario(network: SimulatedNetwork, near: Recorder, far: Recorder) -> None:
        network.set_weather(Weather(reset_chance=1.0, half_open_share=0.5))
        frame = bytes(range(256)) * 20
        near.transport.write(frame)
        network.set_weather(CALM)
        near.transport.write(b"more")
        await asyncio.sleep(5)
        assert len(far.received) < len(frame)
        assert frame.startswith(far.received)
        assert near.lost_at is not None or far.lost_at is not None
        told.append((near.lost_at is not None, far.lost_at is not None))
        near.transport.write(b"even more")
        far.transport.write(b"back")
        await asyncio.sleep(5)
        assert near.lost_at is not None
        assert far.lost_at is not None
        assert len(far.received) < len(frame)
        assert near.received == b""

    play(scenario, seed=seed)


told: list[tuple[bool, bool]] = []


def test_breaks_are_half_open_either_way() -> None:
    told.clear()
    for seed in range(30):
        test_a_break_in_the_middle_of_a_frame(seed)
    assert set(told) == {(True, True), (True, False), (False, True)}


def test_a_stalled_stream_goes_on_or_breaks() -> None:
    outcomes = Counter[str]()

    async def scenario(network: SimulatedNetwork, near: Recorder, far: Recorder) -> None:
        network.set_weather(Weather(stall_chance=1.0))
        near.transport.write(b"stalled")
        network.set_weather(CALM)
        far.transport.write(b"this way too")
        await asyncio.sleep(100)
        if far.lost_at is None:
            assert (bytes(far.received), bytes(near.received)) == (b"stalled", b"this way too")
            outcomes["goes on, late" if far.times[0] > 0.1 else "goes on"] += 1
        else:
            assert near.lost_at is not None
            outcomes["breaks"] += 1

    for seed in range(30):
        play(scenario, seed=seed)
    assert outcomes["goes on, late"] > 5
    assert outcomes["breaks"] > 5


def test_a_one_way_cut_stops_one_way_and_heals() -> None:
    async def scenario(network: SimulatedNetwork, near: Recorder, far: Recorder) -> None:
        network.cut("a", "b", one_way=True)
        near.transport.write(b"to b")
        far.transport.write(b"to a")
        await asyncio.sleep(20)
        assert far.received == b""
        assert near.received == b"to a"
        for host, there in (("a", "b"), ("b", "a")):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(10):
                    await network.host(host).connect(Recorder, there, 1)
        network.heal()
        await asyncio.sleep(5)
        assert far.received == b"to b"
        await network.host("a").connect(Recorder, "b", 1)

    play(scenario)


def test_a_cut_may_refuse_and_what_was_sent_before_its_sender_gave_up_comes_through_after_it() -> None:
    async def scenario(network: SimulatedNetwork, near: Recorder, far: Recorder) -> None:
        network.isolate("a", refuse=True)
        near.transport.write(b"held")
        with pytest.raises(ConnectionRefusedError):
            await network.host("a").connect(Recorder, "b", 1)
        near.transport.abort()
        await asyncio.sleep(30)
        assert far.received == b""
        assert far.lost_at is None
        network.heal("a")
        await asyncio.sleep(5)
        assert far.received == b"held"
        assert far.lost_at is not None

    play(scenario)


def test_a_frozen_process_is_connected_to_by_its_kernel_and_reads_when_it_thaws() -> None:
    async def scenario(network: SimulatedNetwork, near: Recorder, far: Recorder) -> None:
        accepted: list[Recorder] = []
        await network.host("b").listen(lambda: Recorder(accepted), "b", 2)
        network.freeze("b")
        near.transport.write(b"to be read later")
        other = await network.host("a").connect(Recorder, "b", 2)
        other.transport.write(b"hello")
        await asyncio.sleep(30)
        assert far.received == b""
        assert accepted == []
        other.transport.abort()
        network.thaw("b")
        await asyncio.sleep(1)
        assert far.received == b"to be read later"
        assert accepted[0].received == b"hello"
        assert accepted[0].lost_at is not None

    play(scenario)


def test_a_killed_host_ends_its_streams_and_one_without_power_does_not() -> None:
    async def told_scenario(network: SimulatedNetwork, near: Recorder, far: Recorder) -> None:
        far.transport.write(b"last words")
        network.kill("b")
        await asyncio.sleep(1)
        assert near.received == b"last words"
        assert near.lost_at is not None
        assert far.lost_at is not None
        with pytest.raises(ConnectionRefusedError):
            await network.host("a").connect(Recorder, "b", 1)

    play(told_scenario)

    async def untold(network: SimulatedNetwork, near: Recorder, far: Recorder) -> None:
        network.kill("b", powerless=True)
        near.transport.write(b"hello?")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(20):
                await network.host("a").connect(Recorder, "b", 1)
        assert near.lost_at is None
        await network.host("b").listen(Recorder, "b", 1)  # it is up again, and knows nothing of the stream
        near.transport.write(b"hello again")
        await asyncio.sleep(1)
        assert near.lost_at is not None

    play(untold)


def test_a_slow_host_takes_its_time_and_writers_are_held_back() -> None:
    async def scenario(network: SimulatedNetwork, near: Recorder, far: Recorder) -> None:
        network.slow("b", bytes_per_s=10_000, latency_s=0.5)
        start = now()
        for _ in range(10):
            near.transport.write(bytes(10_000))
        near.transport.set_write_buffer_limits(high=50_000)
        near.transport.write(bytes(1))
        assert near.paused == 1
        await asyncio.sleep(12)
        assert len(far.received) == 100_001
        assert 10 < far.times[-1] - start < 11.5
        assert near.paused == 0
        network.slow("b")
        start = now()
        near.transport.write(bytes(10_000))
        await asyncio.sleep(1)
        assert far.times[-1] - start < 0.1

    play(scenario)


def test_a_reader_that_does_not_read_holds_the_writer_back() -> None:
    async def scenario(network: SimulatedNetwork, near: Recorder, far: Recorder) -> None:
        near.transport.set_write_buffer_limits(high=10_000)
        far.transport.pause_reading()
        for _ in range(3):
            near.transport.write(bytes(5_000))
        await asyncio.sleep(5)
        assert far.received == b""
        assert near.paused == 1
        far.transport.resume_reading()
        await asyncio.sleep(1)
        assert len(far.received) == 15_000
        assert near.paused == 0

    play(scenario)


def test_a_connection_may_be_refused_hang_or_be_accepted_without_the_dialer_knowing() -> None:
    async def main() -> None:
        network = SimulatedNetwork(random.Random(1))
        accepted: list[Recorder] = []
        await network.host("b").listen(lambda: Recorder(accepted), "b", 1)
        connect = network.host("a").connect
        network.set_weather(Weather(connect_refuse_chance=1.0))
        with pytest.raises(ConnectionRefusedError):
            await connect(Recorder, "b", 1)
        network.set_weather(Weather(connect_hang_chance=1.0))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(50):
                await connect(Recorder, "b", 1)
        assert accepted == []
        network.set_weather(Weather(connect_ghost_chance=1.0))
        for _ in range(20):
            with pytest.raises(ConnectionResetError):
                await connect(Recorder, "b", 1)
        await asyncio.sleep(5)
        assert len(accepted) == 20
        left = [ghost for ghost in accepted if ghost.lost_at is None]
        assert 0 < len(left) < 20
        for ghost in left:
            ghost.transport.write(b"anybody there?")
        await asyncio.sleep(1)
        assert all(ghost.lost_at is not None for ghost in accepted)

    run_virtual(main())


@message
@dataclass(frozen=True, slots=True)
class Ran:
    token: int
    size: int


@message("simulation.run", reply=Ran)
@dataclass(frozen=True, slots=True)
class Run(Request[Ran]):
    token: int
    pause_s: float


def node(network: Network, name: str, rng: random.Random, ran: Counter[int]) -> RpcNode:
    handlers = Handlers()

    async def run(request: Run, call: IncomingCall) -> tuple[Ran, bytes]:
        payload = bytes(call.payload)
        assert payload == random.Random(request.token).randbytes(len(payload))
        ran[request.token] += 1
        await asyncio.sleep(request.pause_s)
        return Ran(request.token, len(payload)), payload

    handlers.register(Run, run)
    return RpcNode(
        me=Hello(name, name.encode().ljust(8), 1),
        secret=b"sixteen characters",
        handlers=handlers,
        network=network,
        clock=VirtualClock(),
        random=rng,
        layout_version=lambda: 1,
        check_hello=lambda hello: None,
    )


HARSH = Weather(
    late_chance=0.05,
    late_s=1.0,
    reset_chance=0.02,
    stall_chance=0.01,
    half_open_share=0.5,
    connect_hang_chance=0.05,
    connect_refuse_chance=0.1,
    connect_ghost_chance=0.1,
)


@pytest.mark.parametrize("weather", [CALM, WINDY, STORM, HARSH], ids=["calm", "windy", "storm", "harsh"])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_rpc_keeps_its_word_in_all_weather(seed: int, weather: Weather) -> None:
    """A reply: it ran once. PeerUnavailable: it never ran, nor does it later. PeerLost: once at most. Payloads arrive as they were."""
    streams = Streams(seed)
    ran = Counter[int]()
    outcomes: dict[int, str] = {}

    async def main() -> None:
        network = SimulatedNetwork(streams.stream("network"), weather)
        rng = streams.stream("workload")
        nodes = {name: node(network.host(name), name, streams.stream(f"node {name}"), ran) for name in ("a", "b", "c")}
        loop = asyncio.get_running_loop()
        homes = [loop.create_task(one.run(name, 7482), context=process_context(name)) for name, one in nodes.items()]
        await asyncio.sleep(0.1)
        for one in nodes.values():
            for name in nodes:
                one.set_address(name, name, 7482)

        async def client(name: str, number: int) -> None:
            for at in range(60):
                token = number * 1000 + at
                payload = random.Random(token).randbytes(rng.choice([0, 10, 10, 1000, 100_000, 700_000]))
                peer = rng.choice([other for other in nodes if other != name])
                request = Run(token, rng.choice([0, 0.01, 1.0]))
                try:
                    reply = await nodes[name].call(peer, request, payload, deadline_s=rng.choice([0.5, 2.0, 10.0]))
                    assert (reply.message.token, reply.message.size) == (token, len(payload))
                    assert reply.payload == payload
                    outcomes[token] = "answered"
                except PeerLost:
                    outcomes[token] = "lost"
                except PeerUnavailable:
                    outcomes[token] = "not executed"
                except HoldfastError as error:
                    raise AssertionError(f"{token}") from error
                await asyncio.sleep(rng.expovariate(10))

        clients = [
            loop.create_task(client("abc"[number % 3], number), context=process_context("abc"[number % 3]))
            for number in range(6)
        ]
        await asyncio.gather(*clients)
        network.set_weather(CALM)
        await asyncio.sleep(300)  # all that was late has arrived
        for token, outcome in outcomes.items():
            assert ran[token] in {"answered": (1,), "not executed": (0,), "lost": (0, 1)}[outcome], (token, outcome)
        for one in nodes.values():
            assert one.statistics.in_flight_in == one.statistics.in_flight_out == one.statistics.held_bytes == 0
            assert one.statistics.broken == 0
        for one in nodes.values():
            for peer in nodes:
                reply = await one.call(peer, Run(-1, 0), deadline_s=5.0)
                assert reply.message.token == -1
        for home in homes:
            home.cancel()
        await asyncio.wait(homes)

    run_virtual(main(), streams=streams, scheduling=Scheduling(slow_chance=0.005), trace=Trace(2000))
    counts = Counter(outcomes.values())
    assert counts["answered"] > 100
    if weather == CALM:  # then only those are lost that were given less time than they take
        assert counts["not executed"] == 0
        assert all(ran[token] == 1 for token in outcomes)
    if weather in {STORM, HARSH}:
        assert counts["lost"] > 0
    if weather == HARSH:
        assert counts["not executed"] > 0
        assert [token for token, outcome in outcomes.items() if outcome == "lost" and ran[token]]
