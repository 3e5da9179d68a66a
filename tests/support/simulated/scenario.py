"""One seeded run: nodes, clients, trouble; and the history that the clients saw."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Coroutine
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from cluster.errors import Busy, NotReady, OutcomeUnknown, QuorumUnavailable, StaleLayout
from cluster.register.key import RegisterKey
from cluster.register.quorum import majority
from cluster.register.store import FRESH, LEARNER
from tests.support.history.linearizability import is_linearizable
from tests.support.history.operation import CAS, NEVER, PUT, READ, Operation
from tests.support.simulated.fabric import Fabric, Weather
from tests.support.simulated.layouts import Script
from tests.support.simulated.loop import own_garbage, run_virtual
from tests.support.simulated.memory_store import tombstones_of
from tests.support.simulated.node import Life, Machine, Parts
from tests.support.simulated.streams import Streams

NAMES = ("a", "b", "c", "d", "e", "f", "g")
TABLE = "t"
PARTITION_KEYS = (b"p", b"q")
SORT_KEYS = (b"k0", b"k1", b"k2", b"k3")
KINDS = ("read", "put", "cas", "blind", "delete", "scan")
AT_ONCE_S = 0.01
"""A process that is back so soon is not missed by anybody."""
PIVOT_LIFE_S = 0.1
"""From one restart to the next, while everything hangs on one node."""
LONE_S = 0.2
"""How long a node is still thought dead when it is back."""
UNFAIR_SHARE = 0.5
"""Of the seeds: those in which ready tasks run in a drawn order and processes are slow now and then. Some faults show best when nothing but
messages is late."""
MENDING = 8.0
CALM_LIMIT_S = 40.0
"""When all trouble is over, everything must work again within so long."""


@dataclass(frozen=True)
class Plan:
    """What kind of run. ``trouble`` names what may happen: any of crash, cut, freeze, slow, wipe, layout, restart, pivot, lone, shrink."""

    replicas: int = 3
    nodes: int = 3
    clients: int = 5
    seconds: float = 8.0
    trouble: tuple[str, ...] = ("crash", "cut", "freeze", "slow")
    weather: Weather = field(default_factory=lambda: Weather(loss=0.01, late=0.02, duplicate=0.03))
    keys: int = len(SORT_KEYS)
    purging: bool = False
    """Whether the nodes purge tombstones and mend registers, and the clients delete and create more than usual."""
    two_at_once: bool = False
    """Whether more than a minority may be in trouble at a time."""
    mending: float = 0.0
    """How often in a second a node mends some registers for no reason; at least `MENDING` times with purging."""
    sync_s: float = 0.001
    """What a disk takes for a sync, when nothing is the matter with it."""
    pace: float = 1.5
    """How many troubles begin in a second, as long as one may."""
    weights: tuple[int, ...] = ()
    """Of the kinds of clients' operations, in the order of `KINDS`; as usual when empty."""
    guesses: float = 0.0
    """Of the clients' operations, how many expect a value that is gone: a leader answers those from memory, or learns what to remember."""
    fewer: bool = False
    """Whether it is made for one moment in which a fault would hurt, and little else: tests run fewer seeds of it."""
    certain: bool = False
    """Whether failures are noticed at once, and nobody is thought dead who is not: leaders stay until something happens."""


@dataclass
class Run:
    seed: int
    histories: dict[RegisterKey, list[Operation]]
    counts: dict[str, int]
    """Of operations by their end (`ENDS`), and of trouble."""
    answered_in_trouble: int
    """Of the operations: those that went well before all trouble was over."""
    virtual_s: float = 0.0

    @cached_property
    def bad(self) -> list[RegisterKey]:
        """The registers whose history can't be explained."""
        return [key for key, history in self.histories.items() if not is_linearizable(history)]


def simulate(seed: int, plan: Plan, parts: Parts | None = None) -> Run:
    """Raises AssertionError when something hung, leaked or failed otherwise than it may."""
    unfair = random.Random(f"{seed}/scheduling").random() < UNFAIR_SHARE
    try:
        with own_garbage():
            return run_virtual(
                _Simulation(seed, plan, parts or Parts()).run(), streams=Streams(seed) if unfair else None
            )
    except BaseException as error:
        error.add_note(f"seed {seed}, {plan}")
        raise


class _Simulation:
    def __init__(self, seed: int, plan: Plan, parts: Parts) -> None:
        self.seed = seed
        self.plan = plan
        self.rng = random.Random(f"{seed}/scenario")
        self.names = list(NAMES[: plan.nodes])
        self.fabric = Fabric(random.Random(f"{seed}/fabric"))
        self.fabric.resets = plan.certain
        self.script = Script(tuple(self.names[: plan.replicas]))
        self.machines = {
            name: Machine(name, self.names, self.fabric, self.script, parts, random.Random(f"{seed}/{name}"))
            for name in self.names
        }
        for machine in self.machines.values():
            machine.peers = self.machines
            machine.purging = plan.purging
            machine.mending = max(plan.mending, MENDING if plan.purging else 0.0)
            machine.sync_s = plan.sync_s
        self.keys = [RegisterKey(TABLE, p, s) for p in PARTITION_KEYS for s in SORT_KEYS[: plan.keys]]
        self.histories: dict[RegisterKey, list[Operation]] = {key: [] for key in self.keys}
        self.counts: dict[str, int] = {}
        self.values = 0
        self.over = False

    def count(self, what: str) -> None:
        self.counts[what] = self.counts.get(what, 0) + 1

    async def run(self) -> Run:
        for machine in self.machines.values():
            await machine.start()
        self.fabric.weather = self.plan.weather
        loop = asyncio.get_running_loop()
        async with asyncio.TaskGroup() as group:
            for number in range(self.plan.clients):
                group.create_task(self._client(number))
            troubles = [group.create_task(self._trouble())]
            if "layout" in self.plan.trouble:
                troubles.append(group.create_task(self._change_layouts()))
            await asyncio.sleep(self.plan.seconds)
            self.over = True
        assert all(task.done() for task in troubles)
        answered = self.counts.get("ok", 0)
        await self._calm(loop)
        return Run(self.seed, self.histories, self.counts, answered, loop.time())

    async def _calm(self, loop: asyncio.AbstractEventLoop) -> None:
        """Without trouble everything works, everybody agrees, and nothing is left in hand."""
        self.fabric.heal()
        self.fabric.weather = Weather()
        for machine in self.machines.values():
            if machine.life is None:
                await machine.start()
            assert machine.life is not None
            if machine.life.process.frozen:
                machine.life.process.thaw()
            machine.sync_s = 0.001
        limit = loop.time() + CALM_LIMIT_S
        while any(self._unwell(machine) for machine in self.machines.values()):
            assert loop.time() < limit, "somebody is still learning long after all trouble was over"
            await asyncio.sleep(0.1)
            for machine in self.machines.values():
                assert machine.life is not None
                await machine.life.view.install(self.script.last)
            if (
                self.script.last.coming is not None
                and not self._finish_layout()
                and loop.time() > limit - CALM_LIMIT_S / 2
            ):
                self._give_layout_up()
        lives = [machine.life for machine in self.machines.values() if machine.life is not None]
        wanted = [(key, kind) for key in self.keys for kind in ("read", "cas")] + [(self.keys[0], "scan")]
        async with asyncio.timeout(limit - loop.time()):
            for life in lives:
                for key, kind in wanted:
                    while not await self._act(life, key, kind, "calm"):
                        pass
        while self.plan.purging and any(tombstones_of(machine.disk) for machine in self.machines.values()):
            assert loop.time() < limit, "tombstones are left long after all trouble was over"
            await asyncio.sleep(0.1)
        for life in lives:
            life.end_background()
        await asyncio.sleep(8.0)
        for life in lives:
            self.counts["purged"] = self.counts.get("purged", 0) + life.purger.purged
            life.idle()

    def _unwell(self, machine: Machine) -> bool:
        assert machine.life is not None
        standings = {record.standing for record in machine.life.acceptor.standings().values()}
        late = machine.life.view.epoch != self.script.last.epoch or self.script.last.coming is not None
        return late or bool(standings & {FRESH, LEARNER})

    # Clients

    async def _client(self, number: int) -> None:
        rng = random.Random(f"{self.seed}/client/{number}")
        while not self.over:
            await asyncio.sleep(rng.expovariate(30))
            lives = [machine.life for machine in self.machines.values() if machine.life is not None]
            if not lives:
                continue
            life = rng.choice(lives)
            key = rng.choice(self.keys)
            weights = self.plan.weights or ((25, 3, 15, 25, 28, 4) if self.plan.purging else (35, 12, 33, 6, 8, 6))
            kind = rng.choices(KINDS, weights)[0]
            if self.plan.guesses and rng.random() < self.plan.guesses:
                kind = "guess"
            await self._act(life, key, kind, f"client {number}", give_up=rng.random() < 0.04, rng=rng)

    async def _act(
        self,
        life: Life,
        key: RegisterKey,
        kind: str,
        who: str,
        *,
        give_up: bool = False,
        rng: random.Random | None = None,
    ) -> bool:
        """One user's operation, recorded; whether it was answered."""
        rng = rng or self.rng
        if kind == "scan":
            return await self._scan(life, key, who, rng)
        if kind in {"cas", "delete"}:
            answered, current = await self._read(life, key, who)
            if not answered:
                return False
            if rng.random() < 0.3:
                await asyncio.sleep(rng.random() * 0.05)
            return await self._cas(life, key, current, None if kind == "delete" else self._value(), who, give_up, rng)
        if kind == "blind":
            return await self._cas(life, key, None, self._value(), who, give_up, rng)
        if kind == "guess":
            return await self._cas(life, key, b"gone", self._value(), who, give_up, rng)
        if kind == "put":
            return await self._put(life, key, who, give_up, rng)
        return (await self._read(life, key, who))[0]

    def _value(self) -> bytes:
        self.values += 1
        return b"v%d" % self.values

    async def _ask(
        self, life: Life, work: Coroutine[Any, Any, Any], give_up: bool = False, rng: random.Random | None = None
    ) -> tuple[str, Any]:
        """Run as part of the node's process: how it ended (ok, no, unknown), and with what."""
        if not life.process.up:
            work.close()
            return "no", None
        task = life.process.spawn(work)
        limit = rng.random() * 0.02 if give_up and rng is not None else None
        _, waiting = await asyncio.wait([task], timeout=limit)
        if waiting:
            task.cancel()
            await asyncio.wait([task])
        if task.cancelled():
            self.count("died")
            return "unknown", None
        error = task.exception()
        if error is None:
            self.count("ok")
            return "ok", task.result()
        if isinstance(error, OutcomeUnknown):
            self.count("unknown")
            return "unknown", None
        if isinstance(error, QuorumUnavailable | Busy | NotReady | StaleLayout):
            self.count("no")
            return "no", None
        raise error

    async def _read(self, life: Life, key: RegisterKey, who: str) -> tuple[bool, bytes | None]:
        now = asyncio.get_running_loop().time
        call = now()
        end, value = await self._ask(life, life.registers.read(key))
        if end != "ok":
            return False, None
        self.histories[key].append(Operation(READ, call, now(), value, who=who))
        return True, value

    async def _put(self, life: Life, key: RegisterKey, who: str, give_up: bool, rng: random.Random) -> bool:
        now = asyncio.get_running_loop().time
        call, value = now(), self._value()
        end, _ = await self._ask(life, life.registers.put(key, value), give_up, rng)
        if end != "no":
            ret = now() if end == "ok" else NEVER
            self.histories[key].append(Operation(PUT, call, ret, value, who=who))
        return end == "ok"

    async def _cas(
        self,
        life: Life,
        key: RegisterKey,
        expected: bytes | None,
        value: bytes | None,
        who: str,
        give_up: bool,
        rng: random.Random,
    ) -> bool:
        now = asyncio.get_running_loop().time
        call = now()
        end, outcome = await self._ask(life, life.registers.compare_and_set(key, expected, value), give_up, rng)
        if expected is None and value is None:
            if end == "ok":
                self.histories[key].append(Operation(READ, call, now(), outcome.current, who=who))
            return end == "ok"
        if end == "unknown":
            self.histories[key].append(Operation(CAS, call, NEVER, value, expected, who=who))
        elif end == "ok":
            self.histories[key].append(
                Operation(CAS, call, now(), value, expected, outcome.applied, outcome.current, who)
                if not outcome.applied
                else Operation(CAS, call, now(), value, expected, who=who)
            )
        return end == "ok"

    async def _scan(self, life: Life, key: RegisterKey, who: str, rng: random.Random) -> bool:
        """A listing is a read of every register in its range."""
        now = asyncio.get_running_loop().time
        after, limit = b"", rng.choice([1, 2, 10])
        start = now()
        while True:
            end, page = await self._ask(life, life.registers.scan(TABLE, key.partition, after, b"k", limit))
            if end != "ok":
                return False
            listed = dict(page.entries)
            assert [k for k, _ in page.entries] == sorted(listed)
            assert len(page.entries) <= limit
            for other in self.keys:
                covered = other.sort > after and (page.resume is None or other.sort <= page.resume)
                if other.partition == key.partition and covered:
                    self.histories[other].append(
                        Operation(READ, start, now(), listed.get(other.sort), who=f"{who} scan")
                    )
                else:
                    assert other.partition != key.partition or other.sort not in listed
            if page.resume is None:
                return True
            assert page.resume > after
            after = page.resume
            start = now()

    # Trouble

    def _limit(self) -> int:
        if self.plan.two_at_once:
            return self.plan.nodes
        return (self.plan.replicas - 1) // 2

    async def _trouble(self) -> None:
        kinds = [kind for kind in self.plan.trouble if kind != "layout"]
        if not kinds:
            return
        rng = random.Random(f"{self.seed}/trouble")
        busy: set[str] = set()
        async with asyncio.TaskGroup() as group:
            while not self.over:
                await asyncio.sleep(rng.expovariate(self.plan.pace))
                free = [name for name in self.names if name not in busy]
                if len(busy) >= self._limit() or not free or self.over:
                    continue
                name, kind = rng.choice(free), rng.choice(kinds)
                if kind in {"pivot", "shrink"}:
                    name = free[-1]  # whom nobody asks first to lead
                elif kind == "lone":
                    name = free[0]  # who mostly leads
                if kind == "wipe" and name in self.script.last.current and len(self.script.last.current) < 3:
                    continue  # that would be the only copy
                busy.add(name)
                self.count(kind)
                group.create_task(self._one_trouble(name, kind, rng, busy))

    async def _one_trouble(self, name: str, kind: str, rng: random.Random, busy: set[str]) -> None:
        machine = self.machines[name]
        lasts = min(rng.expovariate(1.0) + 0.05, 4.0)
        others = set(self.names) - {name}
        if kind == "cut":
            some = set(rng.sample(sorted(others), rng.randint(1, len(others))))
            self.fabric.cut({name}, some, both_ways=rng.random() < 0.7)
            await asyncio.sleep(lasts)
            self.fabric.cuts = {pair for pair in self.fabric.cuts if name not in pair}
        elif kind == "freeze":
            assert machine.life is not None
            machine.life.process.frozen = True
            await asyncio.sleep(lasts)
            machine.life.process.thaw()
        elif kind == "slow":
            machine.sync_s = rng.choice([0.02, 0.2, 1.0])
            life = machine.life
            assert life is not None
            life.store.sync_s = machine.sync_s
            await asyncio.sleep(lasts)
            machine.sync_s = life.store.sync_s = self.plan.sync_s
        elif kind == "crash":
            await machine.crash()
            await asyncio.sleep(lasts if rng.random() < 0.7 else 0.01)
            await machine.start()
        elif kind == "restart":
            await machine.crash()
            await asyncio.sleep(AT_ONCE_S)
            await machine.start()
        elif kind == "pivot":
            await self._pivot(machine, lasts, rng)
        elif kind == "lone":
            await self._lone(machine, others, rng)
        elif kind == "shrink":
            await self._shrink(machine, others, rng)
        elif kind == "wipe":
            await machine.crash()
            await asyncio.sleep(min(lasts, 0.3))
            machine.wipe()
            await machine.start()
            # The next one comes only when this one has relearned: amnesia of a quorum is data loss.
            while not self.over and self._learning(machine):  # noqa: ASYNC110 # polling costs nothing in virtual time
                await asyncio.sleep(0.02)
        busy.discard(name)

    async def _pivot(self, machine: Machine, lasts: float, rng: random.Random) -> None:
        """The others don't reach each other, and each of them believes that it leads: whoever this one votes for does. Again and again
        it loses what is not on its disk yet, and is back at once."""
        others = [name for name in self.names if name != machine.name]
        for name in others:
            apart = set(others) - {name}
            self.fabric.cut({name}, apart)
            self.machines[name].unreachable = apart
        end = asyncio.get_running_loop().time() + lasts
        while asyncio.get_running_loop().time() < end:
            await asyncio.sleep(rng.expovariate(1 / PIVOT_LIFE_S))
            if rng.random() < 0.5:
                await self._promising(machine, rng)
            await machine.crash()
            await asyncio.sleep(AT_ONCE_S)
            await machine.start()
        self.fabric.heal()
        for name in others:
            self.machines[name].unreachable = set()

    async def _lone(self, machine: Machine, others: set[str], rng: random.Random) -> None:
        """A leader is cut off with what it accepts from itself. Another one takes over, learns what there is without it, and stays when the
        first is back, which holds what the other has never heard of."""
        await self._everywhere(machine, "put", rng)
        self.fabric.cut({machine.name}, others)
        machine.unreachable = set(others)
        for name in others:
            self.machines[name].unreachable = {machine.name}
        await self._everywhere(machine, "put", rng, give_up=True)
        await self._everywhere(self.machines[min(others)], "guess", rng)
        self.fabric.heal()
        machine.unreachable = {machine.name}
        await asyncio.sleep(LONE_S)
        for name in self.names:
            self.machines[name].unreachable = set()

    async def _shrink(self, machine: Machine, others: set[str], rng: random.Random) -> None:
        """A leader is cut off with what it accepts from itself, as in `_lone`. The group shrinks to another one, which leads, learns what
        there is without the first, and then copies from it. Afterwards the group is as it was."""
        whole = self.script.last.current
        one = self.machines[min(others)]
        machine.unreachable = set(others)
        await self._everywhere(machine, "put", rng)
        self.fabric.cut({machine.name}, others)
        await self._everywhere(machine, "put", rng, give_up=True)
        machine.unreachable = set()
        await self._agree_on(whole, (one.name,))
        await self._everywhere(one, "guess", rng)
        self.fabric.heal()
        await asyncio.sleep(rng.random() * LONE_S)
        await self._everywhere(machine, "read", rng)
        await self._everywhere(one, "guess", rng)
        for coming in (whole, None):
            async with asyncio.timeout(CALM_LIMIT_S):
                while not self._finish_layout():  # noqa: ASYNC110 # costs nothing in virtual time
                    await asyncio.sleep(0.02)
            await self._agree_on(self.script.last.current, coming)

    async def _agree_on(self, current: tuple[str, ...], coming: tuple[str, ...] | None) -> None:
        """A state of the layout that everybody has heard of at once."""
        if (self.script.last.current, self.script.last.coming) != (current, coming):
            self.script.follow(current, coming)
        for machine in self.machines.values():
            if machine.life is not None:
                await asyncio.wait([machine.life.process.spawn(machine.life.view.install(self.script.last))])

    async def _everywhere(self, machine: Machine, kind: str, rng: random.Random, *, give_up: bool = False) -> None:
        """Somebody does it to every register, at this gateway."""
        assert machine.life is not None
        async with asyncio.TaskGroup() as group:
            for key in self.keys:
                group.create_task(self._act(machine.life, key, kind, kind, give_up=give_up, rng=rng))

    async def _promising(self, machine: Machine, rng: random.Random) -> None:
        """Until it has a promise that is not on its disk yet, if that comes soon, and a little longer."""
        assert machine.life is not None
        store = machine.life.store
        end = asyncio.get_running_loop().time() + PIVOT_LIFE_S
        while asyncio.get_running_loop().time() < end and not store.is_promising():  # noqa: ASYNC110 # costs nothing in virtual time
            await asyncio.sleep(0.0005)
        await asyncio.sleep(rng.random() * store.sync_s)

    def _learning(self, machine: Machine) -> bool:
        assert machine.life is not None
        return any(record.standing == LEARNER for record in machine.life.acceptor.standings().values())

    # Layout changes

    async def _change_layouts(self) -> None:
        rng = random.Random(f"{self.seed}/layouts")
        while not self.over:
            await asyncio.sleep(rng.expovariate(2))
            state = self.script.last
            if state.coming is None:
                size = rng.choice([size for size in (1, 3, 3, 5) if size <= len(self.names)])
                coming = tuple(rng.sample(self.names, size))
                await self._spread(state.current, coming, rng)
            elif rng.random() < 0.05:
                self.count("aborted")
                await self._spread(state.current, None, rng)
            elif self._finish_layout():
                await self._tell(rng)

    def _give_layout_up(self) -> None:
        """As an operator does: a change to so few that one of them is a majority can't go on when that one loses its disk meanwhile, and
        a register must be settled before it may vote again."""
        state = self.script.last
        assert state.coming is not None
        lives = [self.machines[name].life for name in state.coming]
        voting = sum(life is not None and not life._standing(LEARNER) for life in lives)
        assert voting < majority(len(state.coming)), "a change does not come to its end although enough can vote"
        self.count("given up")
        self.script.follow(state.current, None)

    def _finish_layout(self) -> bool:
        state = self.script.last
        assert state.coming is not None
        for name in state.coming:
            life = self.machines[name].life
            if life is None or life.copied_in != state.epoch or life.view.epoch != state.epoch:
                return False
        self.count("moved")
        self.script.follow(state.coming, None)
        return True

    async def _spread(self, current: tuple[str, ...], coming: tuple[str, ...] | None, rng: random.Random) -> None:
        self.script.follow(current, coming)
        await self._tell(rng)

    async def _tell(self, rng: random.Random) -> None:
        """A few hear of it at once; the others when they meet one of those."""
        state = self.script.last
        for machine in rng.sample(list(self.machines.values()), rng.randint(1, len(self.machines))):
            if machine.life is not None and not machine.life.process.frozen:
                life = machine.life
                task = life.process.spawn(life.view.install(state))
                await asyncio.wait([task])
                if rng.random() < 0.3:
                    await asyncio.sleep(rng.random() * 0.05)
