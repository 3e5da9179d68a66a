"""What happens to the cluster: drawn up front as a list of events, so that a run can be repeated without some of them.

An event says what it wants; whether it may happen is decided when its time comes, since that depends on what else is the matter then:

* never more than a minority of the nodes in trouble at once (a blackout takes all, and gives them back as they were);
* a disk is lost for good, or rots, only while everybody else is there and has relearned, and every chunk that an earlier loss took a copy
  of has two again.
"""

from __future__ import annotations

import asyncio
import errno
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cluster.chunks.store import StoreFailed
from cluster.errors import HoldfastError
from cluster.governance.state import StagedChange
from cluster.peer.core import PeerCore
from cluster.register.key import RegisterKey
from cluster.register.store import LEARNER
from tests.simulation.campaign_cluster import CampaignCluster, production
from tests.simulation.register_users import RegisterUsers
from tests.simulation.scenario import (
    ABORT,
    AWAY,
    BLACKOUT,
    CRASH,
    CUT,
    EIO,
    ENOSPC,
    FREEZE,
    FULL,
    JOIN,
    LONE_COPY,
    LONE_LEADER,
    LOSSES,
    OLD_COPY,
    PLANNED,
    POWER,
    REMOVE,
    REPLACE,
    RESIZE,
    ROT,
    SLOW,
    UPGRADE,
    WIPE,
    Scenario,
)
from tests.simulation.trace import Trace
from tests.support.simulated.disk import Failure
from tests.support.simulated.production_stores import ProductionStores
from tests.support.simulated.release import LATER, PRESENT
from tests.support.simulated.whole_cluster import Machine

SLOT_S = 2.0
"""Users act in bursts, at the beginning of every slot; most trouble comes then too, since the interesting moments are those under load."""

BURST_S = 1.2
"""After so long most of what users do in a slot has come to its end."""

LONE_WRITE_S = 0.2
"""How long somebody waits for a leader that reaches nobody."""

MENDED_S = 0.3
"""Enough for anti-entropy to mend a few registers."""

PATIENCE_S = 12.0
"""How long an event waits until it may happen; then it is left out."""

WRITING_LOOK_S, WRITING_LOOKS = 0.0005, 4000
"""How often is looked whether chunks are being written, and how many times at most."""

WHOLE_AGAIN_S = 300.0
"""After the end of what was the matter the cluster must be whole within so long."""

LEAST_MEMBERS = 3

COMMIT = "commit"
"""Of registers; the other calls are those of `Disk`."""

CALLS = (
    "pwritev",
    "pwritev",
    "fdatasync",
    "fdatasync",
    "pread",
    "pread",
    "create",
    "truncate",
    "unlink",
    "open",
    "fsync_directory",
)
FAILURES = {EIO: (errno.EIO, (*CALLS, COMMIT, COMMIT)), ENOSPC: (errno.ENOSPC, ("pwritev", COMMIT, "create"))}
"""Error number, and the calls that may fail with it."""

AT_STARTS = ("open", "truncate")
"""Calls that a running node hardly ever makes."""


@dataclass(frozen=True, slots=True)
class Event:
    """``node`` and ``extra`` are any numbers: what they choose from depends on who is there."""

    at: float
    kind: str
    node: int
    lasts: float
    extra: int


def draw(seed: int, scenario: Scenario) -> tuple[Event, ...]:
    """The events of a run, in order of time."""
    rng = random.Random(f"trouble {seed}")
    kinds, weights = list(scenario.troubles), list(scenario.troubles.values())
    events: list[Event] = []
    for _ in range(scenario.events):
        slot = rng.randrange(max(1, int(scenario.active_s / SLOT_S)))
        at = slot * SLOT_S + rng.choice([rng.random() * 0.06, rng.random() * SLOT_S])
        kind = rng.choices(kinds, weights)[0]
        lasts = {AWAY: 14.0}.get(kind, rng.choice([0.05, 0.5, 1.5, 4.0, 8.0]))
        events.append(Event(at, kind, rng.randrange(1 << 16), lasts, rng.randrange(1 << 16)))
    return tuple(sorted(events, key=lambda event: (event.at, event.node)))


class Trouble:
    """Makes the events happen. ``planned``: how many changes of the layout are under way now."""

    def __init__(self, cluster: CampaignCluster, users: RegisterUsers, trace: Trace) -> None:
        self._cluster = cluster
        self._users = users
        self._trace = trace
        self._busy: set[str] = set()
        self._changing = asyncio.Lock()
        self._at_risk: frozenset[bytes] = frozenset()
        self._loss_under_way = False
        self.counts: Counter[str] = Counter()
        self.planned = 0
        self.over = False
        self._start = 0.0

    async def run(self, events: Sequence[Event]) -> None:
        """All of them, to the end of their consequences."""
        start = self._start = asyncio.get_running_loop().time()
        async with asyncio.TaskGroup() as group:
            for event in events:
                await asyncio.sleep(max(0.0, start + event.at - asyncio.get_running_loop().time()))
                group.create_task(self._one(event))
        self.over = True

    async def _one(self, event: Event) -> None:
        if event.kind in PLANNED:
            async with self._changing:
                self.planned += 1
                try:
                    await self._change_layout(event)
                finally:
                    self.planned -= 1
            return
        end = asyncio.get_running_loop().time() + (PATIENCE_S if event.kind in {*LOSSES, BLACKOUT, UPGRADE} else 0.5)
        while (machine := self._victim(event)) is None:
            if asyncio.get_running_loop().time() >= end:
                self.counts[f"{event.kind} left out"] += 1
                return
            await asyncio.sleep(0.25)
        names = list(self._cluster.machines) if event.kind == BLACKOUT else [machine.name]
        self._busy.update(names)
        self._loss_under_way |= event.kind in LOSSES
        self.counts[event.kind] += 1
        self._trace.note(f"! {event.kind} of {', '.join(names)} for {event.lasts} s")
        try:
            await self._happen(event, machine)
        finally:
            self._busy.difference_update(names)
            self._loss_under_way &= event.kind not in LOSSES
        self._trace.note(f"! {event.kind} of {', '.join(names)} is over")

    def _victim(self, event: Event) -> Machine | None:
        """Who is hit, if it may be now."""
        machines = list(self._cluster.machines.values())
        if event.kind == BLACKOUT or event.kind in LOSSES:
            if self._busy or self._loss_under_way:
                return None
        elif len(self._busy) + 1 > (LEAST_MEMBERS - 1) // 2 and not self._many_may(machines):
            return None
        free = [m for m in machines if m.name not in self._busy and m.core is not None and m.has_layout()]
        if event.kind == LONE_LEADER:
            free = [m for m in free if self._led_by(m)]
        if event.kind == UPGRADE:  # first those that have not got it yet
            free = [m for m in free if m.release is not LATER] or free
        if not free:
            return None
        machine = free[event.node % len(free)]
        if event.kind in LOSSES and not self._may_lose(machine):
            return None
        return machine

    def _many_may(self, machines: Sequence[Machine]) -> bool:
        """Whether one more may be in trouble: with three replicas of each partition two could be a majority of one, which stops it and
        loses nothing. Only large clusters get so far, and at most a minority of them."""
        return (len(self._busy) + 1) * 2 < len(machines)

    def _may_lose(self, machine: Machine) -> bool:
        cluster = self._cluster
        if not cluster.settled():
            return False
        members = [m for m in cluster.machines.values() if m.core is not None]
        if any(r.standing == LEARNER for m in members for r in m.running.acceptor.standings().values()):
            return False
        for chunk in self._at_risk:
            copies = sum(bool(m.stores.references_on_disk(chunk)) for m in cluster.machines.values())
            if copies == 1:
                return False
        return True

    async def _happen(self, event: Event, machine: Machine) -> None:
        cluster = self._cluster
        if event.kind in {CRASH, AWAY}:
            await self._writing(machine)
            await cluster.kill(machine)
            await asyncio.sleep(event.lasts)
            machine.start()
        elif event.kind == BLACKOUT:
            killed = [m for m in cluster.machines.values() if m.core is not None]
            for other in killed:
                await cluster.kill(other)
            await asyncio.sleep(min(event.lasts, 1.5))
            for other in killed:
                other.start()
            await asyncio.sleep(1.0)
        elif event.kind == POWER:
            await self._writing(machine)
            for _ in range(1 + event.extra % 3):
                await cluster.kill(machine, power=True)
                await asyncio.sleep(min(event.lasts, 1.5))
                machine.start()
                await asyncio.sleep(event.extra % 89 / 1000)  # it may fail again while the node starts
        elif event.kind == FREEZE:
            cluster.network.freeze(machine.host)
            await asyncio.sleep(event.lasts)
            cluster.network.thaw(machine.host)
        elif event.kind == CUT:
            others = self._hosts_but(machine)
            count = 1 + event.extra % len(others)
            chosen = random.Random(event.extra).sample(others, count)
            one_way, refuse = event.extra % 5 == 0, event.extra % 3 == 0
            cluster.cuts.cut(machine.host, chosen, one_way=one_way, refuse=refuse)
            await asyncio.sleep(event.lasts)
            cluster.cuts.mend(machine.host, chosen, one_way=one_way)
        elif event.kind == SLOW:
            cluster.slow(machine, (0.02, 0.1, 0.5)[event.extra % 3])
            await asyncio.sleep(event.lasts)
            cluster.slow(machine, None)
        elif event.kind == FULL:
            machine.stores.fill(event.extra % 8192)
            await asyncio.sleep(event.lasts)
            machine.stores.fill(None)
        elif event.kind == LONE_LEADER:
            await self._cut_off_a_leader(machine)
        elif event.kind in FAILURES:
            await self._fail(event, machine)
        elif event.kind == UPGRADE:
            await (cluster.kill(machine) if event.extra % 3 == 0 else cluster.stop(machine))
            back = machine.release is LATER and event.extra % 2 == 0
            machine.release = PRESENT if back else LATER
            self._trace.note(f"! {machine.name} gets {'the present' if back else 'a later'} release")
            await asyncio.sleep(min(event.lasts, 1.5))
            machine.start()
            await cluster.until(machine.has_layout, f"{machine.name} is back", WHOLE_AGAIN_S)
        elif event.kind == ROT:
            await self._rot(event, machine)
        elif event.kind == REPLACE:
            await self._replace(event, machine)
        else:
            await self._lose(event, machine)

    def _hosts_but(self, machine: Machine) -> list[str]:
        return [other.host for other in self._cluster.machines.values() if other is not machine]

    def _led_by(self, machine: Machine) -> list[RegisterKey]:
        """The users' registers that this machine leads when nothing is the matter."""
        view = machine.running.installed
        keys = self._users.keys
        return [key for key in keys if view.rule(view.partition_of(key.partition)).members[0] == machine.name]

    async def _cut_off_a_leader(self, machine: Machine) -> None:
        """It accepts from itself what nobody else hears of. Another takes over and learns what there is without it. Then the two reach each
        other again and anti-entropy finds that they differ, while the third still asks the other alone."""
        view, users, led = machine.running.installed, self._users, self._led_by(machine)
        partition = view.partition_of(led[0].partition)
        keys = [key for key in led if view.partition_of(key.partition) == partition]
        other, third = (self._cluster.machines[name] for name in view.rule(partition).members[1:3])
        cuts = self._cluster.cuts
        await asyncio.gather(*(users.put(machine, key, None) for key in keys))
        cuts.cut(machine.host, [other.host, third.host], one_way=False, refuse=True)
        await asyncio.gather(*(users.put(machine, key, LONE_WRITE_S) for key in keys))
        await asyncio.gather(*(users.guess(other, key) for key in keys))
        cuts.mend(machine.host, [other.host], one_way=False)
        other.running.repair.keys.note(partition, keys)
        await asyncio.sleep(MENDED_S)
        await asyncio.gather(*(users.read(other, key) for key in keys))
        await asyncio.gather(*(users.read(third, key) for key in keys))
        cuts.mend(machine.host, [third.host], one_way=False)

    @staticmethod
    async def _writing(machine: Machine) -> None:
        """Wait for a moment in which chunks are being written. In memory there is none."""
        if isinstance(machine.stores, ProductionStores):
            for _ in range(WRITING_LOOKS):
                if machine.stores.is_writing():
                    return
                await asyncio.sleep(WRITING_LOOK_S)

    async def _rot(self, event: Event, machine: Machine) -> None:
        """Bits flip: in the chunk log while it is used, in registers while they are not, since all of them are looked at when they are
        opened."""
        cluster, stores = self._cluster, production(machine)
        chance = random.Random(f"rot {event.extra}")
        cluster.losses += 1
        if event.extra % 3 == 0:
            await cluster.kill(machine)
            stores.register_files.rot(chance, chance.choice([1, 3, 10, 100]))
            machine.start()
            await cluster.until(lambda: machine.core and cluster.settled(), f"{machine.name} relearned", WHOLE_AGAIN_S)
            return
        self._at_risk = frozenset(stores.chunks_on_disk())
        for _ in range(1 + event.extra % 5):
            self._trace.note(f"! {machine.name} has a flipped bit in {stores.disk.rot(chance)}")
        await asyncio.sleep(event.lasts)
        if event.extra % 2 == 0:
            await cluster.kill(machine)
            machine.start()

    async def _fail(self, event: Event, machine: Machine) -> None:
        """The disk fails at some call that comes, once, a few times or for a while. Who has ended, or says that nothing can be written any
        more, is started again when the disk works again."""
        cluster, stores = self._cluster, production(machine)
        number, calls = FAILURES[event.kind]
        call = calls[event.extra % len(calls)]
        after, times = event.extra // 7 % 6, (1, 3, None)[event.extra // 42 % 3]
        if (call, number) == ("pwritev", errno.ENOSPC) and times is not None:
            times += 1  # the first writes what fits, as real ones do
        if event.kind in LOSSES:  # what can't be read counts as damaged
            cluster.losses += 1
            self._at_risk = frozenset(stores.chunks_on_disk())
        before = stores.register_files.faults.met if call == COMMIT else stores.disk.met
        if call == COMMIT:
            stores.register_files.faults.fail(number, after=after, times=times, kept=event.extra % 2 == 0)
        else:
            stores.disk.failures.append(Failure(call, number, after, times))
        self._trace.note(f"! {machine.name} fails at {call}, after {after}, {times or 'all'} times")
        if call in AT_STARTS:
            await cluster.kill(machine, power=False)
            machine.start()
        await asyncio.sleep(max(event.lasts, SLOT_S))
        met = stores.register_files.faults.met if call == COMMIT else stores.disk.met
        self.counts[f"{event.kind} met"] += met > before
        stores.heal()
        if machine.core is None or not _takes_more(machine.running):
            self._trace.note(f"! {machine.name} is started again")
            await cluster.kill(machine, power=False)
            machine.start()

    async def _lose(self, event: Event, machine: Machine) -> None:
        cluster = self._cluster
        if event.kind == OLD_COPY:
            saved = machine.copy_disk()
            await asyncio.sleep(event.lasts)
            await cluster.kill(machine)
            machine.start()
            await cluster.until(lambda: machine.core and cluster.settled(), "a second boot", WHOLE_AGAIN_S)
        if event.kind == LONE_COPY:
            saved = await self._leave_a_lone_copy(event, machine)
        await cluster.kill(machine)
        self._at_risk = frozenset(machine.stores.chunks_on_disk())
        cluster.losses += 1
        if event.kind == WIPE:
            machine.wipe()
            await asyncio.sleep(event.lasts)
        else:
            machine.put_back(saved)
        machine.start()
        await cluster.until(lambda: machine.core and cluster.settled(), f"{machine.name} relearned", WHOLE_AGAIN_S)

    async def _replace(self, event: Event, machine: Machine) -> None:
        """A node out of reach is given up, and started anew elsewhere with empty disks. Then the old one is back and runs on for a
        while, with users who ask it, until somebody switches it off."""
        cluster, others = self._cluster, self._hosts_but(machine)
        with_one, frozen, refuse = event.extra % 2 == 0, event.extra % 4 == 1, event.extra % 3 == 0
        cluster.losses += 1
        self._at_risk = frozenset(machine.stores.chunks_on_disk())
        if frozen:
            cluster.network.freeze(machine.host)
        else:
            cluster.cuts.cut(machine.host, others, one_way=False, refuse=refuse)
        new = cluster.replace(machine)
        await asyncio.sleep(event.extra // 12 % 5)
        new.start()
        self._trace.note(f"! {new.name} is started anew at {new.host}")
        if with_one:
            await self._meet_one(event, machine, new)
        else:
            await asyncio.sleep(event.lasts)
        if frozen:
            cluster.network.thaw(machine.host)
        else:
            cluster.cuts.mend(machine.host, others, one_way=False)
        self._trace.note(f"! {machine.name} is back at {machine.host} as well")
        await asyncio.sleep(1.0 + event.extra // 60 % 5)
        self._at_risk |= frozenset(machine.stores.chunks_on_disk())
        await cluster.give_up(machine)
        self._trace.note(f"! {machine.name} at {machine.host} is switched off")
        await cluster.until(lambda: new.core and cluster.settled(), f"{new.host} relearned", WHOLE_AGAIN_S)

    async def _meet_one(self, event: Event, old: Machine, new: Machine) -> None:
        """When the new one has taken the old one's place, another misses a burst, and then meets nobody but the old one: the two are as
        many as a quorum, and neither knows what was written."""
        cluster, users, cuts = self._cluster, self._users, self._cluster.cuts
        cuts.cut(old.host, [new.host], one_way=False, refuse=True)
        await cluster.until(lambda: new.core and cluster.settled(), f"{new.host} relearned", WHOLE_AGAIN_S)
        rest = [machine for machine in cluster.machines.values() if machine is not new]
        third = rest.pop(event.extra // 12 % len(rest))
        apart = [new.host, *(machine.host for machine in rest)]
        self._trace.note(f"! {third.name} is cut off with the old {old.name}")
        cuts.cut(third.host, apart, one_way=False, refuse=True)
        await asyncio.gather(*(users.put(new, key, None) for key in users.keys))
        await asyncio.sleep(SLOT_S)
        cuts.mend(old.host, [third.host], one_way=False)
        await asyncio.sleep(SLOT_S)
        await asyncio.gather(*(users.read(one, key) for key in users.keys for one in (old, third) if one.has_layout()))
        cuts.cut(old.host, [third.host], one_way=False, refuse=True)
        cuts.mend(third.host, apart, one_way=False)
        cuts.mend(old.host, [new.host], one_way=False)

    async def _leave_a_lone_copy(self, event: Event, machine: Machine) -> Any:
        """The machine's disks as they were before another was cut off and users wrote a burst: when they are put back, and the cut is
        mended, whatever was written has one copy less than a quorum."""
        cluster = self._cluster
        saved = machine.copy_disk()
        await cluster.kill(machine)
        machine.start()
        await cluster.until(lambda: machine.core and cluster.settled(), "a second boot", WHOLE_AGAIN_S)
        others = self._hosts_but(machine)
        missing = others.pop(event.extra % len(others))
        since = asyncio.get_running_loop().time() - self._start
        await asyncio.sleep(SLOT_S - since % SLOT_S)
        self._trace.note(f"! {missing} misses a burst")
        cluster.cuts.cut(missing, [machine.host, *others], one_way=False, refuse=True)
        await asyncio.sleep(BURST_S)
        cluster.cuts.mend(missing, [machine.host, *others], one_way=False)
        return saved

    async def _change_layout(self, event: Event) -> None:
        cluster = self._cluster
        if event.kind == JOIN:
            if len(cluster.machines) >= 9:
                return
            name = f"n{len(cluster.machines) + 1}"
            self.counts[JOIN] += 1
            self._trace.note(f"! {name} joins")
            cluster.add(name).start()
            await asyncio.sleep(4.0)
        elif not await self._operate(event):
            self.counts[f"{event.kind} left out"] += 1
            return
        await cluster.until(cluster.settled, f"settled after {event.kind}", WHOLE_AGAIN_S)
        self._trace.note(f"! {event.kind} is over")

    async def _operate(self, event: Event) -> bool:
        """What an operator asks for; whether it was done."""
        up = [m for m in self._cluster.machines.values() if m.has_layout()]
        if not up:
            return False
        operator = up[event.extra % len(up)]
        current = operator.running.installed.require().current
        names = [node.name for node in current.nodes]
        name = names[event.node % len(names)]
        if event.kind in {REMOVE, ABORT} and len(names) <= LEAST_MEMBERS:
            return False
        change = (
            StagedChange(name, capacity=(1 + event.extra % 4) * current.nodes[0].capacity)
            if event.kind == RESIZE
            else StagedChange(name, remove=True)
        )
        task = self._cluster.request(operator, self._ask_for(event, change, operator))
        await asyncio.wait([task])
        if task.cancelled():
            self._trace.note(f"! {operator.name} died over {event.kind} of {name}")
            return True
        error = task.exception()
        if error is not None and not isinstance(error, HoldfastError):
            raise error
        if error is not None:
            self._trace.note(f"! {event.kind} of {name} refused: {error}")
        return error is None

    async def _ask_for(self, event: Event, change: StagedChange, operator: Machine) -> None:
        governor = operator.running.governor
        await governor.stage([change])
        _, plan = await governor.plan()
        await governor.apply(plan.version)
        self.counts[event.kind] += 1
        self._trace.note(f"! {event.kind} of {change.name}, asked of {operator.name}")
        if event.kind == ABORT:
            await asyncio.sleep(event.lasts / 4)
            await governor.abort()


def _takes_more(core: PeerCore) -> bool:
    """Whether its chunk log does; not when the process is just ending and has closed it."""
    try:
        return core._doors.chunks.statistics().failure is None
    except StoreFailed:
        return False
