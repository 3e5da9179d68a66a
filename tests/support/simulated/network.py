"""Byte streams between simulated hosts, in place of TCP: who can reach whom, how long it takes, and what breaks on the way.

Faults of two sorts: `Weather` draws its own from the network's stream of randomness; a scenario kills, freezes, cuts and slows hosts
by name. A host is a name; ports are anything. Everything that a host's process does runs with `PROCESS` set to that name, which is how
a frozen process is held by the loop while its kernel goes on: connections to it are made, and what is sent to it waits in its buffers.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterable, Sequence
from contextvars import Context
from typing import TypeVar, cast

import msgpack

from cluster.doors.network import Listener
from cluster.rpc.frame import PREFIX
from tests.support.simulated.loop import VirtualTimeLoop, process_context
from tests.support.simulated.stream import Segment, SimulatedTransport
from tests.support.simulated.trace import Trace
from tests.support.simulated.weather import CALM, Weather

P = TypeVar("P", bound=asyncio.BaseProtocol)

RETRANSMIT_MAX_S = 3.0
"""After a cut is healed a stream goes on within so many seconds, or half the time that it was cut if that is shorter."""
SYN_WAITS_S = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
"""When a connection that gets no answer is tried again; then it has failed."""

FRAME_KINDS = {1: "request", 2: "reply", 3: "failure", 4: "cancel", 5: "piece", 6: "ping", 7: "pong"}
FRAME_KINDS |= {16: "hello", 17: "hello back", 18: "proof", 19: "welcome", 20: "refused"}


class SimulatedNetwork:
    """All hosts and their streams. Used inside a `VirtualTimeLoop` only."""

    def __init__(self, rng: random.Random, weather: Weather = CALM) -> None:
        self.rng = rng
        self.listening: dict[tuple[str, int], tuple[Callable[[], asyncio.BaseProtocol], Context]] = {}
        self.streams: dict[SimulatedTransport, None] = {}
        """The ends whose protocols have not been told of their loss."""
        self.frozen: set[str] = set()
        self.absent: set[str] = set()
        """Hosts without power: they do not even refuse."""
        self.broken = 0
        """Streams that the weather broke or stalled."""
        self._hosts: dict[str, Context] = {}
        self._cut: dict[tuple[str, str], float] = {}
        self._refusing: set[tuple[str, str]] = set()
        self._slow: dict[str, tuple[float, float]] = {}
        self._busy_until: dict[str, float] = {}
        self._loop: VirtualTimeLoop | None = None
        self.set_weather(weather)

    @property
    def loop(self) -> VirtualTimeLoop:
        if self._loop is None:
            self._loop = cast("VirtualTimeLoop", asyncio.get_running_loop())
        return self._loop

    @property
    def trace(self) -> Trace:
        return self.loop.trace

    def note(self, node: str, *words: object) -> None:
        trace = self.loop.trace
        if trace.on:
            trace.note(self.loop.time(), node, *words)

    def host(self, name: str) -> SimulatedHost:
        return SimulatedHost(self, name)

    def context(self, name: str) -> Context:
        """In which everything of that host's process runs."""
        context = self._hosts.get(name)
        if context is None:
            context = self._hosts[name] = process_context(name)
        return context

    # what a scenario does

    def set_weather(self, weather: Weather) -> None:
        """From now on."""
        self.weather = weather
        self._late = weather.late_chance
        self._reset = self._late + weather.reset_chance
        self._faults = self._reset + weather.stall_chance

    def kill(self, name: str, *, powerless: bool | None = None) -> None:
        """The host's process is gone: its streams end, nobody listens there any more. `powerless`: nobody is told; by default the
        weather decides."""
        if powerless is None:
            powerless = self.weather.vanish_share > 0 and self.rng.random() < self.weather.vanish_share
        self.note(name, "killed", "without power" if powerless else "")
        for place in [place for place in self.listening if place[0] == name]:
            del self.listening[place]
        if powerless:
            self.absent.add(name)
        for stream in list(self.streams):
            if name == stream.here:
                if not powerless:
                    stream.peer.end_after(self.latency_s())
                stream.lose()
        self.thaw(name)

    def freeze(self, name: str) -> None:
        """The host's process stands still, as by SIGSTOP; no stream breaks, and its kernel goes on taking what is sent."""
        self.note(name, "freezes")
        self.frozen.add(name)
        self.loop.hold(name)

    def thaw(self, name: str) -> None:
        """It goes on, with everything overdue."""
        if name in self.frozen:
            self.note(name, "thaws")
            self.frozen.discard(name)
            self.loop.release(name)

    def cut(
        self, ours: Iterable[str] | str, theirs: Iterable[str] | str, *, one_way: bool = False, refuse: bool = False
    ) -> None:
        """Nothing gets from our hosts to theirs, nor back unless `one_way`. Streams stall; connecting gets no answer, or is refused."""
        left = [ours] if isinstance(ours, str) else list(ours)
        right = [theirs] if isinstance(theirs, str) else list(theirs)
        for source in left:
            for target in right:
                for pair in [(source, target)] if one_way else [(source, target), (target, source)]:
                    self.note(pair[0], "is cut off from", pair[1])
                    self._cut.setdefault(pair, self.loop.time())
                    if refuse:
                        self._refusing.add(pair)

    def isolate(self, name: str, *, refuse: bool = False) -> None:
        """Cut a host off from all others that are known now."""
        self.cut(name, [other for other in self._hosts if other != name], refuse=refuse)

    def heal(self, *names: str) -> None:
        """Undo the cuts that touch these hosts, or all."""
        for pair in list(self._cut):
            if not names or set(pair) & set(names):
                self.mend(*pair)

    def mend(self, source: str, target: str) -> None:
        """Undo the cut of one direction, if there is one."""
        now = self.loop.time()
        since = self._cut.pop((source, target), None)
        if since is None:
            return
        self._refusing.discard((source, target))
        self.note(source, "reaches", target, "again")
        wait_s = min((now - since) / 2, RETRANSMIT_MAX_S)
        for stream in list(self.streams):
            if (stream.there, stream.here) == (source, target) and stream.arriving:
                stream.stalled_until = max(stream.stalled_until, now + self.rng.random() * wait_s)
                stream.plan()

    def slow(self, name: str, *, bytes_per_s: float = 0.0, latency_s: float = 0.0) -> None:
        """What the host sends, and what is sent to it, takes longer; zeros: as before."""
        self.note(name, "is slow:", bytes_per_s, "B/s,", latency_s, "s")
        if bytes_per_s or latency_s:
            self._slow[name] = (bytes_per_s, latency_s)
        else:
            self._slow.pop(name, None)

    # what streams ask

    def is_cut(self, end: SimulatedTransport) -> bool:
        """Whether what is sent to this end does not arrive now."""
        return bool(self._cut) and (end.there, end.here) in self._cut

    def latency_s(self) -> float:
        """The way of a segment."""
        return self.weather.latency_s * (0.5 + 0.5 * self.rng.expovariate(1.0))

    def is_fragmented(self) -> bool:
        return self.rng.random() < self.weather.fragment_chance

    def due(self, sender: SimulatedTransport, size: int) -> float:
        """When a segment of that size arrives at the other end. Negative: it does not, the stream breaks inside it."""
        loop, rng, peer = self.loop, self.rng, sender.peer
        start = loop.time()
        delay = self.weather.latency_s * (0.5 + 0.5 * rng.expovariate(1.0))
        if self._slow or self.weather.bytes_per_s:
            start, delay = self._slowed(sender, size, start, delay)
        if self._faults:
            draw = rng.random()
            if draw < self._late:
                delay += min(self.weather.late_s / (1.0 - rng.random()), self.weather.late_max_s)
            elif draw < self._reset:
                return -1.0
            elif draw < self._faults:
                self._stall(sender)
        due = max(start + delay, peer.last_due)
        peer.last_due = due
        return due

    def _slowed(self, sender: SimulatedTransport, size: int, start: float, delay: float) -> tuple[float, float]:
        for name in (sender.here, sender.there):
            bytes_per_s, latency_s = self._slow.get(name, (0.0, 0.0))
            delay += latency_s
            bytes_per_s = bytes_per_s or (self.weather.bytes_per_s if name == sender.here else 0.0)
            if bytes_per_s:
                start = max(start, self._busy_until.get(name, 0.0)) + size / bytes_per_s
                self._busy_until[name] = start
        return start, delay

    def break_inside(self, sender: SimulatedTransport, data: Segment) -> None:
        """The stream breaks in the middle of a segment. A part of it arrives; both ends are told, or only one."""
        self.broken += 1
        rng, peer = self.rng, sender.peer
        part = data[: rng.randrange(len(data))]
        told = "both" if rng.random() >= self.weather.half_open_share else rng.choice(("sender", "receiver"))
        self.note(
            sender.here,
            f"its stream breaks after {len(part)} of {len(data)} bytes to",
            sender.there,
            "and told is",
            told,
        )
        if part:
            peer.last_due = max(self.loop.time() + self.latency_s(), peer.last_due)
            peer.take(peer.last_due, part)
        if told != "receiver":
            sender.mute = True
            sender.end_after(self.latency_s())
        if told != "sender":
            peer.end_after(self.latency_s())

    def _stall(self, sender: SimulatedTransport) -> None:
        """Nothing goes either way for a while; then the stream breaks, or goes on."""
        self.broken += 1
        weather = self.weather
        until = self.loop.time() + weather.stall_max_s * self.rng.random() ** 2
        self.note(sender.here, f"its stream stalls until {until:.3f}, to", sender.there)
        for end in (sender, sender.peer):
            end.stalled_until = max(end.stalled_until, until)
        if self.rng.random() < weather.stall_break_share:
            self.loop.call_at(until, sender.break_off, context=Context())

    def round_trip_s(self, here: str, there: str) -> float:
        """There and back, as a connection takes."""
        slow = sum(2 * self._slow[name][1] for name in (here, there) if name in self._slow)
        return self.latency_s() + self.latency_s() + slow

    def way(self, here: str, there: str) -> str:
        """What a connection meets: ``open``, ``refused`` or ``silent``."""
        pairs = ((here, there), (there, here))
        if any(pair in self._refusing for pair in pairs):
            return "refused"
        return "silent" if there in self.absent or any(pair in self._cut for pair in pairs) else "open"

    # the trace

    def note_frames(self, sender: SimulatedTransport, data: Segment) -> None:
        """Note the frames that begin in a segment, as far as they can be told."""
        at = 0
        while at + PREFIX.size <= len(data):
            header, payload = PREFIX.unpack_from(data, at)
            at += PREFIX.size
            try:
                items = msgpack.unpackb(data[at : at + header], use_list=False)
            except ValueError:
                return  # the middle of a payload
            if type(items) is not tuple or not items or items[0] not in FRAME_KINDS:
                return
            words = [items[2]] if items[0] == 1 else [items[2]] if items[0] == 3 else []
            self.note(
                sender.here, FRAME_KINDS[items[0]], *words, *items[1:2] if items[0] < 6 else (), "to", sender.there
            )
            at += header + payload


class SimulatedHost:
    """A `Network` for one host."""

    def __init__(self, network: SimulatedNetwork, name: str) -> None:
        self._network = network
        self._name = name

    async def connect(self, factory: Callable[[], P], host: str, port: int) -> P:
        network, here = self._network, self._name
        weather, rng = network.weather, network.rng
        await asyncio.sleep(network.round_trip_s(here, host))
        for wait_s in SYN_WAITS_S:
            way = network.way(here, host)
            if way == "refused":
                raise ConnectionRefusedError(f"no way to {host}")
            if way == "open":
                break
            await asyncio.sleep(wait_s)
        else:
            raise TimeoutError(f"{host} does not answer")
        if weather.connect_hang_chance and rng.random() < weather.connect_hang_chance:
            network.note(here, "connects without an answer to", host)
            await asyncio.sleep(sum(SYN_WAITS_S))
            raise TimeoutError(f"{host} does not answer")
        if weather.connect_refuse_chance and rng.random() < weather.connect_refuse_chance:
            network.note(here, "is refused by the weather at", host)
            raise ConnectionRefusedError(f"{host}:{port} refused the connection")
        listener = network.listening.get((host, port))
        if listener is None:
            raise ConnectionRefusedError(f"nobody listens on {host}:{port}")
        accept, context = listener
        near = SimulatedTransport(network, here, host, network.context(here))
        far = SimulatedTransport(network, host, here, context)
        near.peer, far.peer = far, near
        network.streams[far] = None
        network.loop.call_soon(far.accept, accept, context=context)
        if weather.connect_ghost_chance and rng.random() < weather.connect_ghost_chance:
            network.note(here, "takes for failed a connection that was accepted by", host)
            near.lose()
            if rng.random() < 0.5:
                far.end_after(network.latency_s())
            raise ConnectionResetError(f"{host}:{port} broke the connection off")
        network.note(here, "connects to", host)
        network.streams[near] = None
        near.protocol = cast("asyncio.BufferedProtocol", factory())
        near.protocol.connection_made(near)
        return cast("P", near.protocol)

    async def addresses(self, host: str) -> Sequence[str]:
        return (host,)

    async def listen(self, factory: Callable[[], asyncio.BaseProtocol], host: str, port: int) -> Listener:
        place = (self._name, port)
        if place in self._network.listening:
            raise OSError(98, f"{place} is in use")
        self._network.absent.discard(self._name)
        self._network.listening[place] = factory, self._network.context(self._name)
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
