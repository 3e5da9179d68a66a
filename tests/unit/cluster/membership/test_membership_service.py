"""`Membership` over an RPC layer in memory and a clock that the test moves: no real time passes."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any, TypeVar

import pytest

from cluster.errors import Invalid, PeerLost, PeerUnavailable, Unauthorized
from cluster.membership.member import Member, MemberInfo, State
from cluster.membership.messages import Ack, HelpRequest, PingRequest, record_of
from cluster.membership.service import REPEAT_LOG_S, Membership
from cluster.membership.settings import TICK_S, MembershipSettings
from cluster.rpc.caller import Reply
from cluster.rpc.codec import codec_of
from cluster.rpc.message import Payload, Request
from cluster.rpc.service import Handlers, IncomingCall

R = TypeVar("R")

SETTLING_TURNS = 12
"""Turns of the event loop between two moments of virtual time: more than any chain of calls here takes."""


class ManualClock:
    def __init__(self) -> None:
        self.now = 500.0
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._count = itertools.count()

    def monotonic(self) -> float:
        return self.now

    def wall(self) -> float:
        return 0.0

    async def sleep(self, seconds: float) -> None:
        waiting = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self.now + seconds, next(self._count), waiting))
        await waiting

    async def advance(self, seconds: float) -> None:
        end = self.now + seconds
        await self._settle()
        while self._sleepers and self._sleepers[0][0] <= end:
            self.now, _, waiting = heapq.heappop(self._sleepers)
            if not waiting.done():
                waiting.set_result(None)
                await self._settle()
        self.now = end

    async def advance_until(self, condition: Callable[[], bool], limit_s: float) -> float:
        began = self.now
        while not condition():
            assert self.now - began < limit_s, f"not within {limit_s} s"
            await self.advance(TICK_S)
        return self.now - began

    @staticmethod
    async def _settle() -> None:
        for _ in range(SETTLING_TURNS):
            await asyncio.sleep(0)


@dataclass
class Host:
    """A node's end of the RPC layer."""

    name: str
    network: Network
    handlers: Handlers = field(default_factory=Handlers)
    addresses: dict[str, tuple[str, int]] = field(default_factory=dict)
    hung: bool = False
    calls: int = 0
    membership: Membership = field(init=False)

    def set_address(self, name: str, host: str, port: int) -> None:
        self.addresses[name] = host, port

    async def call(self, peer: str, request: Request[R], payload: Payload = b"", *, deadline_s: float) -> Reply[R]:
        if peer not in self.addresses:
            raise PeerUnavailable(f"no address of {peer}")
        return await self.call_address(*self.addresses[peer], request, payload, deadline_s=deadline_s)

    async def call_address(
        self, host: str, port: int, request: Request[R], payload: Payload = b"", *, deadline_s: float
    ) -> Reply[R]:
        assert not payload
        self.calls += 1
        target = self.network.hosts.get((host, port))
        if target is None:
            raise PeerUnavailable("connection refused")
        if target is self:
            raise Invalid("this address is the node itself", itself=True)
        if target.hung or self.hung:
            await self.network.clock.sleep(deadline_s)
            raise PeerLost("deadline passed")
        return Reply(await target.answer(self.name, request))

    async def addresses_of(self, host: str, *, deadline_s: float) -> Sequence[str]:
        if host in self.network.names and not self.network.names[host]:
            raise PeerUnavailable(f"{host} is not to be found")
        return self.network.names.get(host, (host,))

    async def answer(self, peer: str, request: Request[R]) -> R:
        """As the real one: through the codec both ways."""
        handler = self.handlers.find(codec_of(type(request)).name)
        asked = handler.unpack(codec_of(type(request)).pack(request))
        answer: Any = handler.function(asked, IncomingCall(peer, 0, b"", self.network.clock.now + 1.0))
        if isinstance(answer, Awaitable):
            answer = await answer
        reply: R = codec_of(handler.reply).unpack(handler.pack_reply(answer))
        return reply


class Network:
    def __init__(self) -> None:
        self.clock = ManualClock()
        self.hosts: dict[tuple[str, int], Host] = {}
        self.names: dict[str, tuple[str, ...]] = {}
        """Names that stand for other addresses than themselves."""
        self._running: dict[tuple[str, int], asyncio.Task[None]] = {}
        self._tasks = asyncio.TaskGroup()

    def add(self, number: int, *, boot: int = 1, port: int = 0, name: str = "", store: bytes = b"") -> Host:
        name = name or f"n{number}"
        info = MemberInfo(name, "h", port or number, store or bytes([number]) * 8, boot, api=f"h:{number}")
        host = Host(name, self)
        host.membership = Membership(
            me=info,
            caller=host,
            handlers=host.handlers,
            set_address=host.set_address,
            clock=self.clock,
            random=Random(number),
            settings=MembershipSettings(),
            seeds=[("h", 1), ("h", 2)],
        )
        self.hosts["h", info.port] = host
        return host

    def start(self, host: Host) -> Host:
        self._running[host.membership.me.address] = self._tasks.create_task(host.membership.run())
        return host

    def kill(self, host: Host) -> None:
        self._running.pop(host.membership.me.address).cancel()
        self.hosts.pop(host.membership.me.address)

    @classmethod
    @asynccontextmanager
    async def of(cls, count: int) -> AsyncIterator[tuple[Network, list[Host]]]:
        network = cls()
        async with network._tasks:
            hosts = [network.start(network.add(number)) for number in range(1, count + 1)]
            await network.clock.advance_until(lambda: agree(hosts), 10.0)
            yield network, hosts
            for task in network._running.values():
                task.cancel()


def agree(hosts: list[Host]) -> bool:
    expected = {host.name: host.membership.me for host in hosts}
    return all(host.membership.members() == expected for host in hosts)


async def test_nodes_find_together_and_a_killed_one_is_noticed_and_welcomed_back() -> None:
    async with Network.of(5) as (network, hosts):
        seen: list[tuple[Member | None, Member]] = []
        addresses_when_told: list[bool] = []
        hosts[0].membership.on_change(lambda old, new: seen.append((old, new)))
        hosts[0].membership.on_change(lambda _, new: addresses_when_told.append(new.name in hosts[0].addresses))
        network.kill(hosts[2])
        rest = [host for host in hosts if host is not hosts[2]]
        await network.clock.advance_until(lambda: not any(host.membership.is_alive("n3") for host in rest), 5.0)
        assert [new.state for _, new in seen] == [State.SUSPECT, State.DEAD]
        assert hosts[0].membership.members()["n3"].state is State.DEAD
        hosts[2] = network.start(network.add(3, boot=2, port=33))
        assert await network.clock.advance_until(lambda: agree(hosts), 5.0) < 1.0
        old, new = seen[-1]
        assert old is not None
        assert (old.state, new.state, new.boot, new.address) == (State.DEAD, State.ALIVE, 2, ("h", 33))
        assert hosts[0].addresses["n3"] == ("h", 33)
        assert all(addresses_when_told)


async def test_a_hung_node_is_noticed_and_hints_bring_it_forward() -> None:
    async with Network.of(5) as (network, hosts):
        hosts[3].hung = True
        for host in hosts[:3]:
            host.membership.report_failure("n4")
        await network.clock.advance_until(lambda: hosts[0].membership.is_suspect("n4"), 1.5)
        assert hosts[0].membership.is_alive("n4"), "a suspect is worth a try"
        await network.clock.advance_until(
            lambda: not any(host.membership.is_alive("n4") for host in hosts if host is not hosts[3]), 3.0
        )


async def test_a_node_that_answers_calls_is_not_declared_dead() -> None:
    async with Network.of(2) as (network, hosts):
        hosts[1].hung = True
        for _ in range(100):
            await network.clock.advance(TICK_S)
            hosts[0].membership.report_success("n2")
        assert hosts[0].membership.is_alive("n2")
        await network.clock.advance_until(lambda: not hosts[0].membership.is_alive("n2"), 5.0)


async def test_updates_and_goodbyes_reach_everybody() -> None:
    async with Network.of(4) as (network, hosts):
        told: list[int] = []
        hosts[1].membership.on_change(lambda _, new: told.append(new.layout_version))
        hosts[1].membership.update_me(layout_version=9)
        assert told == [9], "a node hears of its own changes"
        await network.clock.advance_until(
            lambda: all(host.membership.members()["n2"].layout_version == 9 for host in hosts), 3.0
        )
        with pytest.raises(Invalid):
            hosts[1].membership.update_me(release="r" * 300)
        await hosts[1].membership.leave()
        assert all(host.membership.members()["n2"].state is State.LEFT for host in hosts)
        assert not hosts[0].membership.is_alive("n2")
        before = hosts[1].calls
        await network.clock.advance(20.0)
        assert hosts[1].calls == before, "it has left, and still talks"


async def test_a_listener_may_call_back_and_sees_changes_in_order() -> None:
    async with Network.of(2) as (_, hosts):
        membership = hosts[0].membership
        told: list[int] = []

        def listen(_old: Member | None, new: Member) -> None:
            if new.name == "n1" and new.layout_version < 3:
                membership.update_me(layout_version=new.layout_version + 1)
            told.append(new.layout_version)

        membership.on_change(listen)
        membership.update_me(layout_version=1)
        assert told == [1, 2, 3]


async def test_snapshots_do_not_change_and_unknown_names_are_not_alive() -> None:
    async with Network.of(3) as (network, hosts):
        membership = hosts[0].membership
        before = membership.members()
        assert list(before) == ["n1", "n2", "n3"]
        assert membership.members() is before, "a look-up costs nothing"
        assert membership.is_alive("n1")
        assert not membership.is_alive("n9")
        assert not membership.is_suspect("n9")
        membership.report_failure("n9")
        membership.report_success("n9")
        network.kill(hosts[2])
        await network.clock.advance_until(lambda: not membership.is_alive("n3"), 5.0)
        assert before["n3"].state is State.ALIVE
        assert membership.members()["n3"].state is State.DEAD


async def test_the_second_of_two_nodes_with_one_name_waits_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    async with Network.of(3) as (network, hosts):
        second = network.start(network.add(9, name="n3", store=b"another!", boot=50))
        await network.clock.advance(REPEAT_LOG_S / 2)
        assert second.membership.rival == hosts[2].membership.me
        assert all(host.membership.members()["n3"] == hosts[2].membership.me for host in hosts)
        output = capsys.readouterr().out
        assert "membership.name_claimed_twice" in output
        assert b"another!".hex() in output


async def test_a_message_in_another_name_is_refused() -> None:
    async with Network.of(2) as (_, hosts):
        me = record_of(hosts[0].membership.me)
        with pytest.raises(Unauthorized):
            await hosts[1].answer("n7", PingRequest(me, ()))
        with pytest.raises(Invalid):
            await hosts[1].answer("n1", PingRequest(replace(me, port=0), ()))


async def test_records_that_make_no_sense_are_left_out_and_the_rest_is_used() -> None:
    async with Network.of(2) as (_, hosts):
        me = record_of(hosts[0].membership.me)
        good = replace(me, name="n5", store=b"5" * 8, port=5)
        bad = [replace(good, name="n6", state="sleeping"), replace(good, name="N7"), replace(good, name="n8", port=0)]
        answer: Ack = await hosts[1].answer("n1", PingRequest(me, (*bad, good)))
        assert answer.me.name == "n2"
        assert set(hosts[1].membership.members()) == {"n1", "n2", "n5"}
        assert hosts[1].membership.records_refused == 3


async def test_a_helper_reports_what_the_target_says_or_that_it_is_silent() -> None:
    async with Network.of(3) as (network, hosts):
        me = record_of(hosts[0].membership.me)
        answer = await hosts[1].answer("n1", HelpRequest(me, (), "n3", 0.4))
        assert answer.target == record_of(hosts[2].membership.me)
        hosts[2].hung = True
        asking = asyncio.create_task(hosts[1].answer("n1", HelpRequest(me, (), "n3", 0.4)))
        await network.clock.advance(0.5)
        assert (await asking).target is None
        assert (await hosts[1].answer("n1", HelpRequest(me, (), "unknown", 0.4))).target is None
        hosts[2].hung = False


async def test_a_cut_off_node_keeps_trying_its_seeds_and_comes_back() -> None:
    async with Network.of(3) as (network, hosts):
        lonely = network.add(4)
        away = {address: network.hosts.pop(address) for address in [("h", 1), ("h", 2), ("h", 3)]}
        network.start(lonely)
        await network.clock.advance(30.0)
        assert set(lonely.membership.members()) == {"n4"}
        network.hosts.update(away)
        await network.clock.advance_until(lambda: agree([*hosts, lonely]), 8.0)


async def test_nodes_find_together_by_one_name_that_stands_for_all_of_them_by_and_by() -> None:
    """As a headless service: each is given its own address first, and at the beginning none but that."""
    network = Network()
    async with network._tasks:
        hosts: list[Host] = []
        for number in (1, 2, 3):
            host = Host(f"n{number}", network)
            host.membership = Membership(
                me=MemberInfo(host.name, f"10.0.0.{number}", 7482, bytes([number]) * 8, 1),
                caller=host,
                handlers=host.handlers,
                set_address=host.set_address,
                clock=network.clock,
                random=Random(number),
                settings=MembershipSettings(),
                seeds=[("all", 7482)],
            )
            network.hosts[f"10.0.0.{number}", 7482] = host
            hosts.append(network.start(host))
        network.names["all"] = ()
        await network.clock.advance(3.0)
        assert hosts[0].membership.unmet_seeds() == [("all", 7482)]
        network.names["all"] = ("10.0.0.1",)
        await network.clock.advance_until(lambda: agree(hosts), 5.0)
        assert hosts[0].membership.unmet_seeds() == []
        for task in network._running.values():
            task.cancel()


async def test_a_node_that_finds_only_itself_goes_on_looking() -> None:
    async with Network.of(2) as (network, hosts):
        other = Host("n9", network)
        other.membership = Membership(
            me=MemberInfo("n9", "10.0.0.9", 7482, b"9" * 8, 1),
            caller=other,
            handlers=other.handlers,
            set_address=other.set_address,
            clock=network.clock,
            random=Random(9),
            settings=MembershipSettings(),
            seeds=[("all", 7482)],
        )
        network.hosts["10.0.0.9", 7482] = other
        network.names["all"] = ("10.0.0.9",)
        network.start(other)
        await network.clock.advance(3.0)
        assert (other.membership.unmet_seeds(), set(other.membership.members())) == ([], {"n9"})
        network.names["all"] = ("10.0.0.9", "10.0.0.8")
        await network.clock.advance(3.0)
        assert other.membership.unmet_seeds() == [("10.0.0.8", 7482)], "somebody there has not been heard"
        network.hosts["10.0.0.8", 7482] = hosts[0]
        await network.clock.advance_until(lambda: agree([*hosts, other]), 5.0)
        assert other.membership.unmet_seeds() == []


async def test_an_added_seed_is_tried() -> None:
    async with Network.of(2) as (network, hosts):
        other = network.add(5)
        other.membership = Membership(
            me=MemberInfo("n6", "h", 6, b"6" * 8, 1),
            caller=other,
            handlers=(handlers := Handlers()),
            set_address=other.set_address,
            clock=network.clock,
            random=Random(6),
            settings=MembershipSettings(),
        )
        other.name, other.handlers = "n6", handlers
        network.hosts["h", 6] = other
        network.start(other)
        await network.clock.advance(5.0)
        assert set(other.membership.members()) == {"n6"}
        other.membership.add_seed("h", 1)
        await network.clock.advance_until(lambda: agree([*hosts, other]), 3.0)


async def test_a_node_without_sense_is_refused_at_once() -> None:
    network = Network()
    with pytest.raises(Invalid):
        network.add(1, name="Not A Name")


async def test_an_idle_node_makes_four_calls_a_second() -> None:
    async with Network.of(5) as (network, hosts):
        await network.clock.advance(10.0)
        before = [host.calls for host in hosts]
        await network.clock.advance(10.0)
        for host, calls in zip(hosts, before, strict=True):
            assert host.calls - calls < 45
        assert hosts[0].membership.health_score == 0
        assert hosts[0].membership.lateness_s < 0.01
        assert hosts[0].membership.counters.probes_failed == 0
