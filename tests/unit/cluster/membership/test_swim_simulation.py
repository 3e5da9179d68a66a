"""Clusters of machines on virtual time: one event queue, seeded loss and delay, no real clock. A seed is the reproduction."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

import pytest

from cluster.membership.member import Member, MemberInfo, State
from cluster.membership.seeds import Seeds
from cluster.membership.settings import TICK_S, MembershipSettings
from cluster.membership.swim import AskHelper, Changed, Exchange, Ping, Rivalry, Swim

SETTINGS = MembershipSettings()
REFUSED_AFTER_S = 0.001

Reply = tuple[Member, tuple[Member, ...]]


@dataclass(eq=False)
class Machine:
    """One life of one node."""

    info: MemberInfo
    swim: Swim
    seeds: Seeds
    up: bool = True
    frozen: bool = False
    late_s: Callable[[], float] = lambda: 0.0
    mail: list[Callable[[], None]] = field(default_factory=list)
    notices: list[tuple[float, Changed | Rivalry]] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.info.name

    def state_of(self, name: str) -> State | None:
        member = self.swim.others.get(name)
        return member.state if member else None


class Cluster:
    def __init__(
        self, seed: int, *, loss: float = 0.0, delay_s: float = 0.002, settings: MembershipSettings = SETTINGS
    ):
        self.random = Random(seed)
        self.now = 1000.0
        self.loss = loss
        self.delay_s = delay_s
        self.settings = settings
        self.machines: dict[tuple[str, int], Machine] = {}
        self.cut: Callable[[Machine, Machine], bool] = lambda _one, _other: False
        self.calls = 0
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._count = itertools.count()

    # Building.

    def start(self, number: int, *, name: str = "", store: bytes = b"", boot: int = 1, port: int = 0) -> Machine:
        info = MemberInfo(
            name=name or f"n{number:03}",
            host="10.0.0.1",
            port=port or 7000 + number,
            store=store or number.to_bytes(8, "big"),
            boot=boot,
        )
        swim = Swim(info, self.settings, Random(self.random.random()), self.now)
        machine = Machine(info, swim, Seeds([("10.0.0.1", 7000), ("10.0.0.1", 7001)], self.settings))
        self.machines[info.host, info.port] = machine
        self.at(self.random.uniform(0, TICK_S), lambda: self._tick(machine))
        return machine

    def start_all(self, count: int) -> list[Machine]:
        machines = [self.start(number) for number in range(count)]
        self.run_until(lambda: self.agree(machines), 30.0)
        return machines

    @staticmethod
    def agree(machines: list[Machine]) -> bool:
        """Everybody holds its name and believes everybody else alive, in the record that the other gives itself."""
        return all(
            machine.swim.claimed
            and all(machine.swim.others.get(other.name) == other.swim.me for other in machines if other is not machine)
            for machine in machines
        )

    # Time.

    def at(self, delay: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._queue, (self.now + delay, next(self._count), action))

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while self._queue and self._queue[0][0] <= end:
            self.now, _, action = heapq.heappop(self._queue)
            action()
        self.now = end

    def run_until(self, condition: Callable[[], bool], limit_s: float) -> float:
        """Seconds it took until ``condition`` held; fails after ``limit_s``."""
        began = self.now
        while not condition():
            assert self.now - began < limit_s, f"not within {limit_s} s"
            self.run(TICK_S / 2)
        return self.now - began

    # What the service does.

    def _tick(self, machine: Machine) -> None:
        if not machine.up:
            return
        if machine.frozen:
            machine.mail.append(lambda: self._tick(machine))
            return
        for send in machine.swim.tick(self.now):
            self._send(machine, send)
        alive = {machine.name, *machine.swim.living}
        alone = len(alive) == 1
        for address in machine.seeds.due(machine.swim.health.time, alive, alone=alone, forming=False):
            self._exchange(machine, self.machines.get(address), address)
        self._settle(machine)
        self.at(TICK_S + machine.late_s(), lambda: self._tick(machine))

    def _settle(self, machine: Machine) -> None:
        machine.swim.check()
        machine.notices += [(self.now, notice) for notice in machine.swim.notices()]

    def _send(self, machine: Machine, send: Ping | AskHelper | Exchange) -> None:
        if isinstance(send, Exchange):
            self._exchange(machine, self._peer(machine, send.to), None)
        elif isinstance(send, Ping):
            probe = send.probe
            self._ping(
                machine,
                self._peer(machine, send.to),
                send.news,
                send.deadline_s,
                lambda me: machine.swim.pinged(probe, me) if probe is not None else None,
                lambda: machine.swim.ping_failed(probe) if probe is not None else None,
            )
        else:
            ask = send

            def answer(helper: Machine, reply: Callable[[Callable[[], None]], None]) -> None:
                helper.swim.received(machine.swim.me, ask.news)
                self._ping(
                    helper,
                    self.machines.get(ask.target.address),
                    helper.swim.news_for(ask.target.name),
                    ask.patience_s,
                    lambda me: reply(lambda: machine.swim.helped(ask.probe, me)),
                    lambda: reply(lambda: machine.swim.helped(ask.probe, None)),
                )

            self._call(machine, self._peer(machine, ask.helper), ask.deadline_s, answer, lambda: None)

    def _peer(self, machine: Machine, name: str) -> Machine | None:
        return self.machines.get(machine.swim.others[name].address)

    def _ping(
        self,
        machine: Machine,
        peer: Machine | None,
        news: tuple[Member, ...],
        deadline_s: float,
        done: Callable[[Member], None],
        failed: Callable[[], None],
    ) -> None:
        sender = machine.swim.me

        def answer(receiver: Machine, reply: Callable[[Callable[[], None]], None]) -> None:
            receiver.swim.received(sender, news)
            me, back = receiver.swim.me, receiver.swim.news_for(sender.name, sender)

            def arrive() -> None:
                machine.swim.received(me, back)
                done(me)

            reply(arrive)

        self._call(machine, peer, deadline_s, answer, failed)

    def _exchange(self, machine: Machine, peer: Machine | None, seed: tuple[str, int] | None) -> None:
        sender, everything = machine.swim.me, machine.swim.everything()

        def answer(receiver: Machine, reply: Callable[[Callable[[], None]], None]) -> None:
            receiver.swim.exchanged(sender, everything)
            me, back = receiver.swim.me, receiver.swim.everything()

            def arrive() -> None:
                if me.store != machine.info.store:
                    machine.swim.exchanged(me, back)
                if seed:
                    machine.seeds.answered(seed, me.name, machine.swim.health.time)

            reply(arrive)

        def failed() -> None:
            if seed:
                machine.seeds.failed(seed, machine.swim.health.time)

        self._call(machine, peer, 1.0, answer, failed)

    def _call(
        self,
        machine: Machine,
        peer: Machine | None,
        deadline_s: float,
        answer: Callable[[Machine, Callable[[Callable[[], None]], None]], None],
        failed: Callable[[], None],
    ) -> None:
        """A call as the RPC layer makes it: lost, refused, late or answered."""
        self.calls += 1
        over = False

        def finish(action: Callable[[], None]) -> None:
            nonlocal over
            if not over and machine.up:
                over = True
                action()
                self._settle(machine)

        if peer is None or not peer.up:
            self.at(REFUSED_AFTER_S, lambda: self._deliver(machine, lambda: finish(failed)))
            return
        self.at(deadline_s, lambda: self._deliver(machine, lambda: finish(failed)))

        def reply(action: Callable[[], None]) -> None:
            self._travel(peer, machine, lambda: finish(action))

        def arrive() -> None:
            answer(peer, reply)
            self._settle(peer)

        self._travel(machine, peer, arrive)

    def _travel(self, source: Machine, target: Machine, action: Callable[[], None]) -> None:
        if self.random.random() >= self.loss and not self.cut(source, target) and not self.cut(target, source):
            self.at(self.random.expovariate(1 / self.delay_s), lambda: self._deliver(target, action))

    def _deliver(self, target: Machine, action: Callable[[], None]) -> None:
        if not target.up:
            return
        if target.frozen:
            target.mail.append(action)
        else:
            action()

    def thaw(self, machine: Machine) -> None:
        """What waited in its sockets and timers comes at once."""
        machine.frozen = False
        mail, machine.mail = machine.mail, []
        for action in mail:
            action()


def deaths(machines: list[Machine], since: float) -> list[tuple[float, str, str]]:
    return [
        (time, machine.name, notice.new.name)
        for machine in machines
        for time, notice in machine.notices
        if time >= since and isinstance(notice, Changed) and notice.new.state is State.DEAD
    ]


def notice_death(cluster: Cluster, victim: Machine) -> float:
    """Seconds until all others believe ``victim`` dead; fails after 5."""
    others = [machine for machine in cluster.machines.values() if machine.up and not machine.frozen]
    return cluster.run_until(lambda: all(machine.state_of(victim.name) is State.DEAD for machine in others), 5.0)


@pytest.mark.parametrize("count", [2, 3, 5, 20, 50])
@pytest.mark.parametrize("hung", [False, True], ids=["killed", "hung"])
def test_a_dead_node_is_noticed_by_all_others_within_5_s(count: int, hung: bool) -> None:
    for seed in range(20 // count + 1):
        cluster = Cluster(seed, loss=0.01)
        machines = cluster.start_all(count)
        for victim in dict.fromkeys((count // 2, count - 1)) if count > 3 else (count // 2,):
            cluster.run(cluster.random.uniform(1.0, 2.0))
            if hung:
                machines[victim].frozen = True
            else:
                machines[victim].up = False
            assert notice_death(cluster, machines[victim]) > 1.0, "a suspect was given no time to refute"


def test_a_dead_node_is_noticed_although_every_loop_is_late() -> None:
    """Two busy cores, five daemons: every tick is 0 to 400 ms late."""
    for seed in range(4):
        cluster = Cluster(seed)
        machines = cluster.start_all(5)
        for machine in machines:
            machine.late_s = lambda cluster=cluster: cluster.random.uniform(0.0, 0.4)  # type: ignore[misc]  # bound now
        cluster.run(3.0)
        machines[2].frozen = True
        notice_death(cluster, machines[2])


@pytest.mark.parametrize(("count", "loss", "minutes"), [(5, 0.1, 10), (20, 0.1, 2), (5, 0.3, 2)])
def test_loss_makes_suspects_that_refute_but_no_dead(count: int, loss: float, minutes: float) -> None:
    cluster = Cluster(1)
    machines = cluster.start_all(count)
    cluster.loss, since = loss, cluster.now
    cluster.run(60 * minutes)
    assert sum(machine.swim.counters.suspicions for machine in machines) > 0, "too little loss to show anything"
    assert deaths(machines, since) == []
    cluster.loss = 0.0
    cluster.run_until(lambda: cluster.agree(machines), 5.0)


def pause_now_and_then(cluster: Cluster, machine: Machine, shortest_s: float, longest_s: float, every_s: float) -> None:
    def pause() -> None:
        machine.frozen = True
        cluster.at(cluster.random.uniform(shortest_s, longest_s), resume)

    def resume() -> None:
        cluster.thaw(machine)
        cluster.at(cluster.random.expovariate(1 / every_s), pause)

    cluster.at(cluster.random.expovariate(1 / every_s), pause)


def test_overloaded_nodes_that_stand_still_half_of_the_time_are_not_declared_dead() -> None:
    cluster = Cluster(3)
    machines = cluster.start_all(5)
    for machine in machines:
        pause_now_and_then(cluster, machine, 0.2, 1.2, 1.0)
    since = cluster.now
    cluster.run(300.0)
    assert sum(machine.swim.counters.suspicions for machine in machines) > 0, "too little load to show anything"
    assert deaths(machines, since) == []


def test_one_slow_node_is_not_declared_dead() -> None:
    cluster = Cluster(4, loss=0.1)
    machines = cluster.start_all(5)
    pause_now_and_then(cluster, machines[1], 0.5, 1.5, 1.0)
    since = cluster.now
    cluster.run(300.0)
    assert deaths(machines, since) == []


def test_a_node_that_stood_still_accuses_nobody_when_it_wakes() -> None:
    cluster = Cluster(5)
    machines = cluster.start_all(5)
    sleeper = machines[2]
    cluster.run(2.2)
    sleeper.frozen = True
    cluster.run(60.0)
    assert all(machine.state_of(sleeper.name) is State.DEAD for machine in machines if machine is not sleeper)
    woke = cluster.now
    cluster.thaw(sleeper)
    assert cluster.run_until(lambda: cluster.agree(machines), 5.0) < 3.0
    cluster.run(20.0)
    assert deaths([sleeper], woke) == []
    assert sleeper.swim.counters.suspicions == 0
    assert sleeper.swim.counters.refutations > 0


def test_a_restarted_node_is_welcomed_at_once() -> None:
    cluster = Cluster(6)
    machines = cluster.start_all(5)
    for boot, noticed in ((2, True), (3, False)):
        machines[3].up = False
        if noticed:
            notice_death(cluster, machines[3])
        machines[3] = cluster.start(3, boot=boot)
        assert cluster.run_until(lambda: cluster.agree(machines), 5.0) < 1.0
        assert all(machine.swim.others["n003"].boot == boot for machine in machines if machine is not machines[3])


def test_a_wiped_node_takes_its_name_and_address_back_at_once() -> None:
    cluster = Cluster(7)
    machines = cluster.start_all(5)
    machines[3].up = False
    machines[3] = cluster.start(3, store=b"new-disk", boot=1)
    assert cluster.run_until(lambda: cluster.agree(machines), 5.0) < 1.0


def test_a_data_directory_put_back_from_an_old_copy_is_welcomed() -> None:
    cluster = Cluster(8)
    machines = cluster.start_all(4)
    machines[3] = cluster.start(3, boot=9, port=7003)
    cluster.run_until(lambda: cluster.agree(machines), 5.0)
    machines[3].up = False
    machines[3] = cluster.start(3, boot=2)
    assert cluster.run_until(lambda: cluster.agree(machines), 5.0) < 1.0


def test_the_first_of_two_nodes_with_one_name_keeps_it_while_it_lives() -> None:
    cluster = Cluster(9)
    machines = cluster.start_all(5)
    first, rest = machines[4], machines[:4]
    second = cluster.start(9, name=first.name, store=b"another!", boot=77)
    since = cluster.now
    cluster.run(30.0)
    assert second.swim.rival is not None
    assert second.swim.rival.store == first.info.store
    assert all(machine.swim.others[first.name] == first.swim.me for machine in rest)
    assert deaths(machines, since) == []
    assert any(
        isinstance(notice, Rivalry) and notice.claimant.store == b"another!"
        for machine in rest
        for _, notice in machine.notices
    ), "the others say nothing of the duplicate"
    assert not any(
        isinstance(notice, Changed) and notice.new.name == first.name and time >= since
        for machine in rest
        for time, notice in machine.notices
    ), "the first node flapped"
    first.up = False
    cluster.run_until(lambda: cluster.agree([*rest, second]), 8.0)


@pytest.mark.parametrize("same_store", [False, True], ids=["same address", "cloned disk"])
def test_two_nodes_that_cannot_be_told_from_earlier_lives_settle(same_store: bool) -> None:
    """One address in two network namespaces, or one data directory copied to two machines."""
    cluster = Cluster(10)
    machines = cluster.start_all(4)
    first = machines[3]
    if same_store:
        second = cluster.start(9, name=first.name, store=first.info.store, boot=1)
    else:
        second = cluster.start(9, name=first.name, store=b"another!")
        second.swim.me = Swim(
            MemberInfo(first.name, "10.0.0.1", 7003, b"another!", 1), SETTINGS, Random(1), cluster.now
        ).me
    cluster.run(30.0)
    assert (first.swim.rival is None) != (second.swim.rival is None), "both, or none, hold the name"
    incarnations = [first.swim.me.incarnation, second.swim.me.incarnation]
    cluster.run(30.0)
    assert [first.swim.me.incarnation, second.swim.me.incarnation] == incarnations, "they fight without end"


@pytest.mark.parametrize("count", [5, 20])
def test_a_split_cluster_meets_again(count: int) -> None:
    cluster = Cluster(11)
    machines = cluster.start_all(count)
    half = set(machines[: count // 2])
    cluster.cut = lambda one, other: (one in half) != (other in half)
    cluster.run(30.0)
    for machine in machines:
        assert all(
            (machine.state_of(other.name) is State.ALIVE) == ((machine in half) == (other in half))
            for other in machines
            if other is not machine
        )
    cluster.cut = lambda _one, _other: False
    assert cluster.run_until(lambda: cluster.agree(machines), 15.0) < 5.0


def test_a_broken_link_between_two_nodes_kills_neither() -> None:
    cluster = Cluster(12)
    machines = cluster.start_all(5)
    broken = {machines[1], machines[2]}
    cluster.cut = lambda one, other: {one, other} == broken
    since = cluster.now
    cluster.run(120.0)
    assert deaths(machines, since) == []


def test_leaving_is_told_and_returning_is_welcomed() -> None:
    cluster = Cluster(13)
    machines = cluster.start_all(5)
    machines[2].swim.leave()
    for peer in machines:
        if peer is not machines[2]:
            peer.swim.received(machines[2].swim.me, ())
    machines[2].up = False
    cluster.run(20.0)
    assert all(machine.state_of("n002") is State.LEFT for machine in machines if machine.up)
    machines[2] = cluster.start(2, boot=2)
    assert cluster.run_until(lambda: cluster.agree(machines), 5.0) < 1.0


@pytest.mark.parametrize("count", [5, 50])
def test_an_idle_cluster_costs_a_few_calls_a_second_and_is_quiet(count: int) -> None:
    cluster = Cluster(14)
    machines = cluster.start_all(count)
    cluster.run(20.0)
    pushes, calls = sum(machine.swim.counters.eager_pushes for machine in machines), cluster.calls
    cluster.run(20.0)
    assert (cluster.calls - calls) / 20.0 / count < 4.5
    assert sum(machine.swim.counters.eager_pushes for machine in machines) == pushes, "rumours don't die"


def test_an_update_reaches_everybody() -> None:
    cluster = Cluster(15)
    machines = cluster.start_all(20)
    machines[7].swim.update_me(layout_version=42)
    took = cluster.run_until(
        lambda: all(
            machine.swim.others["n007"].layout_version == 42 for machine in machines if machine is not machines[7]
        ),
        5.0,
    )
    assert took < 2.0


def test_a_seed_reproduces_a_run() -> None:
    def play() -> list[tuple[float, str]]:
        cluster = Cluster(16, loss=0.2)
        machines = cluster.start_all(5)
        cluster.run(30.0)
        return [(time, repr(notice)) for machine in machines for time, notice in machine.notices]

    assert play() == play()
