"""Byte streams between simulated nodes: delayed, broken when a node dies, stalled while it is frozen. In place of TCP."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any, TypeVar, cast

from cluster.doors.network import Listener

P = TypeVar("P", bound=asyncio.BaseProtocol)

LATENCY_S = 0.0005
HIGH_WATER = 256 * 1024
TURN_BYTES = 1024 * 1024


class SimulatedNetwork:
    """All hosts and their streams. A host is a name; ports are anything."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.listening: dict[tuple[str, int], Callable[[], asyncio.BaseProtocol]] = {}
        self.streams: list[SimulatedTransport] = []
        self.frozen: set[str] = set()
        self.thawed = asyncio.Event()

    def host(self, name: str) -> SimulatedHost:
        return SimulatedHost(self, name)

    def kill(self, name: str) -> None:
        """The host's streams break and nobody listens there any more."""
        for place in [place for place in self.listening if place[0] == name]:
            del self.listening[place]
        for stream in list(self.streams):
            if name in {stream.here, stream.there}:
                stream.break_off()

    def freeze(self, name: str) -> None:
        """Nothing reaches the host or leaves it, and no stream breaks."""
        self.frozen.add(name)
        self.thawed.clear()

    def thaw(self, name: str) -> None:
        self.frozen.discard(name)
        self.thawed.set()
        for stream in self.streams:
            stream.plan()

    def delay(self) -> float:
        return LATENCY_S * (0.5 + self.rng.expovariate(1))


class SimulatedHost:
    """A `Network` for one host."""

    def __init__(self, network: SimulatedNetwork, name: str) -> None:
        self._network = network
        self._name = name

    async def connect(self, factory: Callable[[], P], host: str, port: int) -> P:
        network = self._network
        await asyncio.sleep(2 * network.delay())
        while {host, self._name} & network.frozen:
            network.thawed.clear()
            await network.thawed.wait()
        accept = network.listening.get((host, port))
        if accept is None:
            raise ConnectionRefusedError(f"nobody listens on {host}:{port}")
        near = SimulatedTransport(network, self._name, host)
        far = SimulatedTransport(network, host, self._name)
        near.peer, far.peer = far, near
        protocol = factory()
        near.protocol = cast("asyncio.BufferedProtocol", protocol)
        far.protocol = cast("asyncio.BufferedProtocol", accept())
        network.streams += [near, far]
        far.protocol.connection_made(far)
        near.protocol.connection_made(near)
        return protocol

    async def listen(self, factory: Callable[[], asyncio.BaseProtocol], host: str, port: int) -> Listener:
        place = (self._name, port)
        if place in self._network.listening:
            raise OSError(98, f"{place} is in use")
        self._network.listening[place] = factory
        return SimulatedListener(self._network, place)


class SimulatedListener:
    def __init__(self, network: SimulatedNetwork, place: tuple[str, int]) -> None:
        self._network = network
        self._place = place

    @property
    def port(self) -> int:
        return self._place[1]

    async def close(self) -> None:
        self._network.listening.pop(self._place, None)


class SimulatedTransport(asyncio.Transport):
    """One end of a stream."""

    def __init__(self, network: SimulatedNetwork, here: str, there: str) -> None:
        super().__init__({"peername": (there, 0)})
        self.network = network
        self.here = here
        self.there = there
        self.protocol: asyncio.BufferedProtocol
        self.peer: SimulatedTransport
        self.arriving = bytearray()
        self.reading = True
        self.closing = False
        self.ended = False
        self.paused_writer = False
        self.high = HIGH_WATER
        self.planned = False

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self.high = high or HIGH_WATER

    def write(self, data: bytes | bytearray | memoryview[Any]) -> None:
        if self.closing or self.peer.closing:
            return
        self.peer.arriving += data
        self.peer.plan()
        if len(self.peer.arriving) > self.high and not self.paused_writer:
            self.paused_writer = True
            self.protocol.pause_writing()

    def plan(self) -> None:
        if not self.planned and not self.closing:
            self.planned = True
            asyncio.get_running_loop().call_later(self.network.delay(), self._deliver)

    def _deliver(self) -> None:
        self.planned = False
        if self.closing or {self.here, self.there} & self.network.frozen:
            return
        turn = TURN_BYTES
        while self.arriving and self.reading and turn > 0:
            buffer = cast("memoryview[int]", self.protocol.get_buffer(-1))
            count = min(len(buffer), len(self.arriving), self.network.rng.choice((100, 4096, 1 << 20)))
            buffer[:count] = self.arriving[:count]
            del self.arriving[:count]
            turn -= count
            self.protocol.buffer_updated(count)
        if self.arriving and self.reading:
            self.plan()
        if self.peer.paused_writer and len(self.arriving) <= self.peer.high // 4 and not self.peer.closing:
            self.peer.paused_writer = False
            self.peer.protocol.resume_writing()
        if self.ended and not self.arriving:
            self._lose()

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True
        self.plan()

    def is_closing(self) -> bool:
        return self.closing

    def close(self) -> None:
        self.peer.ended = True
        self.peer.plan()
        self._lose()

    def abort(self) -> None:
        self.close()

    def break_off(self) -> None:
        """Both ends lose the stream, and what was on its way."""
        for end in (self, self.peer):
            end.arriving.clear()
            end._lose()

    def _lose(self) -> None:
        if not self.closing:
            self.closing = True
            if self in self.network.streams:
                self.network.streams.remove(self)
            asyncio.get_running_loop().call_soon(self.protocol.connection_lost, None)
