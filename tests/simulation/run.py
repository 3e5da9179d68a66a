"""One run: a scenario and a seed, and what came of it. The same two always give the same run.

First a calm start; then users and trouble side by side; then all trouble is over, and everything must work, agree and be clean within
bounds of virtual time. `Cut` takes parts of a run away, which is how a failing one is made small.
"""

from __future__ import annotations

import asyncio
import gc
import hashlib
import random
import traceback
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial

from cluster.register.key import RegisterKey
from tests.simulation import invariants
from tests.simulation.campaign_cluster import CampaignCluster
from tests.simulation.faults import HONEST, Fault
from tests.simulation.register_users import RegisterUsers
from tests.simulation.result import BrokenError, Result
from tests.simulation.scenario import AWAY, SCENARIOS, STORES, Scenario
from tests.simulation.trace import Trace
from tests.simulation.trouble import SLOT_S, Event, Trouble, draw
from tests.simulation.users import Users
from tests.simulation.volume_users import NAMES, VolumeUsers
from tests.support.simulated.clock import disturb
from tests.support.simulated.loop import Stuck, VirtualTimeLoop, own_garbage
from tests.support.simulated.release import LATER
from tests.support.simulated.streams import Streams
from tests.support.simulated.weather import CALM
from tests.support.simulated.whole_cluster import Machine

ACTIVE_LIMIT_S = 1500.0
"""Every wait of users and of trouble has an end of its own, well before this one."""

CALM_TRIES_S = 8.0
"""With everybody there, an operation succeeds within so long, tried again where it was told to."""


LEAST_ANSWERED = 0.3
"""So many operations are done before all trouble is over, as a share of those that are asked for (some ask more than once). Three fifths
are the least that was seen, on full disks."""


@dataclass(frozen=True, slots=True)
class Cut:
    """What to leave away. ``events``: the places of those that happen, None for all."""

    nodes: int | None = None
    operations: int | None = None
    clients: int | None = None
    events: tuple[int, ...] | None = None

    def of(self, scenario: Scenario) -> Scenario:
        return replace(
            scenario,
            nodes=scenario.nodes if self.nodes is None else (self.nodes,),
            operations=scenario.operations if self.operations is None else self.operations,
            clients=scenario.clients if self.clients is None else self.clients,
        )

    def chosen(self, events: Collection[Event]) -> list[Event]:
        return [event for place, event in enumerate(events) if self.events is None or place in self.events]


WHOLE = Cut()


def simulate(name: str, seed: int, *, cut: Cut = WHOLE, fault: Fault = HONEST) -> Result:
    """Never raises for what goes wrong inside: that is in the result."""
    with own_garbage():
        return _simulated(name, seed, cut, fault)


def _simulated(name: str, seed: int, cut: Cut, fault: Fault) -> Result:
    scenario = cut.of(SCENARIOS[name])
    streams = Streams(seed)
    loop = VirtualTimeLoop(streams.stream("scheduling"))
    trace = Trace(loop.time)
    result = Result(name, seed, trace=trace.lines)
    run = _Run(streams, scenario, cut, fault, trace, result)
    try:
        with trace.logs(), fault.patched():
            try:
                loop.run_to_the_end(run.main())
            except BaseException as error:
                result.broken = _cause(error).bare()
                if isinstance(error, KeyboardInterrupt):
                    raise
            run.count()
            del run
            gc.collect()  # what only the cluster held: errors of tasks that nobody looked at are told now
        if result.broken is None and loop.faults:
            faults, kinds = "; ".join(loop.faults), loop.fault_types
            result.broken = BrokenError("nothing fails otherwise than it may", faults, kind=kinds[0])
    finally:
        result.virtual_s = loop.time()
        loop.close()
    return result


def fingerprint(result: Result) -> str:
    """Equal for equal runs."""
    digest = hashlib.sha256()
    for at, text in result.trace:
        digest.update(f"{at!r} {text}\n".encode())
    return digest.hexdigest()


class _Run:
    def __init__(
        self, streams: Streams, scenario: Scenario, cut: Cut, fault: Fault, trace: Trace, result: Result
    ) -> None:
        self._seed = seed = streams.seed
        self._scenario = scenario
        self._trace = trace
        self._result = result
        self._events = cut.chosen(draw(seed, scenario))
        self._clients_left = scenario.clients
        size = random.Random(f"size {seed}").choice(scenario.nodes)
        self._cluster = CampaignCluster(
            streams,
            size,
            down_out_s=scenario.down_out_s,
            interval_s=scenario.interval_s,
            wild_clocks=scenario.wild_clocks,
            stores=STORES[scenario.stores],
            fault=fault,
            note=trace.note,
        )
        chance = random.Random(f"releases {seed}")
        for machine in self._cluster.machines.values():
            if chance.random() < scenario.later_share:
                machine.release = LATER
        self._users = Users(seed, self._cluster, trace)
        self._registers = RegisterUsers(self._users, scenario.deletes)
        self._volumes = VolumeUsers(self._users, scenario.deletes, scenario.slow_readers)
        self._trouble = Trouble(self._cluster, self._registers, trace)

    def count(self) -> None:
        self._result.operations = self._users.counts
        self._result.troubles = self._trouble.counts

    async def main(self) -> None:
        cluster = self._cluster
        try:
            await cluster.start()
            self._trace.note(f"{len(cluster.machines)} nodes have a layout")
            watch = invariants.CopiesWatch(cluster)
            await watch.begin()
            cluster.network.set_weather(self._scenario.weather)
            loop = asyncio.get_running_loop()
            endless = [loop.create_task(watch.run())]
            if self._scenario.wild_clocks:
                clocks = [machine.clock for machine in cluster.machines.values()]
                endless.append(loop.create_task(disturb(clocks, random.Random(f"clocks {self._seed}"))))
            try:
                async with asyncio.timeout(ACTIVE_LIMIT_S), asyncio.TaskGroup() as group:
                    group.create_task(self._trouble.run(self._events))
                    share, more = divmod(self._scenario.operations, self._scenario.clients)
                    for number in range(self._scenario.clients):
                        group.create_task(self._client(number, share + (number < more)))
                    group.create_task(self._watch_over(endless))
            except TimeoutError:
                raise BrokenError("nothing hangs", f"users and trouble go on after {ACTIVE_LIMIT_S:.0f} s") from None
            finally:
                for task in endless:
                    task.cancel()
            await self._calm(watch)
        finally:
            await cluster.close()
        self._registers.check()
        self._volumes.check()

    async def _watch_over(self, endless: Sequence[asyncio.Task[None]]) -> None:
        """Have the failure of one of them end the run. Until users and trouble are at their end."""
        while not any(task.done() for task in endless):
            if self._clients_left == 0 and self._trouble.over:
                return
            await asyncio.sleep(0.2)
        for task in endless:
            if task.done():
                task.result()

    async def _client(self, number: int, operations: int) -> None:
        rng = random.Random(f"client {number} {self._seed}")
        slots = max(1, int(self._scenario.active_s / SLOT_S))
        start = asyncio.get_running_loop().time()
        done = 0
        try:
            for slot in range(slots):
                await asyncio.sleep(max(0.0, start + slot * SLOT_S - asyncio.get_running_loop().time()))
                while done * slots < operations * (slot + 1):
                    done += 1
                    await asyncio.sleep(rng.expovariate(40))
                    machine = self._users.gateway(rng)
                    if machine is None:
                        continue
                    of_volumes = rng.random() < self._scenario.volume_share
                    await (self._volumes if of_volumes else self._registers).act(machine, rng)
        finally:
            self._clients_left -= 1

    async def _calm(self, watch: invariants.CopiesWatch) -> None:
        """All trouble is over."""
        self._trace.note("! all trouble is over")
        self._result.in_trouble = Counter(self._users.counts)
        self._enough_were_answered()
        if (
            self._scenario.down_out_s
            and self._trouble.counts[AWAY]
            and len(self._cluster.machines) > 3
            and not watch.outed
        ):
            raise BrokenError("the layout is what was asked for", "a node was away for long and was not moved out")
        self._users.calm = True
        self._cluster.network.set_weather(CALM)
        await invariants.settle(self._cluster)
        self._trace.note("everybody has recovered")
        await invariants.whole(self._cluster)
        rng = random.Random(f"calm {self._seed}")
        machines = list(self._cluster.machines.values())
        for place, machine in enumerate(machines):
            for key in self._registers.keys:
                await self._must(f"read at {machine.name}", partial(self._read, machine, key))
            for name in NAMES:
                await self._must(f"get at {machine.name}", partial(self._get, machine, name))
            key = self._registers.keys[place % len(self._registers.keys)]
            await self._must(f"write at {machine.name}", partial(self._registers.write, machine, key))
        machine = rng.choice(machines)
        await self._must("put", lambda: self._volumes.write(machine, NAMES[0], rng))
        await self._must("list", lambda: self._volumes.list_all(machine))
        await self._must("scan", lambda: self._registers.scan(machine, b"p", 10))
        await watch.read_everywhere()
        await invariants.clean(self._cluster)
        self._trace.note("everything is clean")
        for place, name in enumerate(NAMES):
            machine = machines[place % len(machines)]
            await self._must(f"get at {machine.name}", partial(self._get, machine, name))
        for key in self._registers.keys:
            await self._must("read", partial(self._read, machines[0], key))
        self._cluster.check_processes()

    def _enough_were_answered(self) -> None:
        """Of a run that is cut, nothing is asked: ten operations may all meet the same trouble."""
        asked, answered = self._scenario.operations, self._result.answered_in_trouble
        if asked >= SCENARIOS[self._result.scenario].operations and answered < asked * LEAST_ANSWERED:
            raise BrokenError("users are answered", f"{answered} of {asked} operations were done: {self._users.counts}")

    async def _read(self, machine: Machine, key: RegisterKey) -> bool:
        return (await self._registers.read(machine, key))[0]

    async def _get(self, machine: Machine, name: str) -> bool:
        return await self._volumes.read(machine, name) is not None

    async def _must(self, what: str, work: Callable[[], object]) -> None:
        if not await invariants.tried(work, CALM_TRIES_S):
            raise BrokenError("with everybody there everything works", f"{what} did not within {CALM_TRIES_S:.0f} s")


def _cause(error: BaseException) -> BrokenError:
    """The first thing that went wrong in all that was raised."""
    leaves = _leaves(error)
    for leaf in leaves:
        if isinstance(leaf, BrokenError):
            return leaf
    leaf = leaves[0]
    where = "".join(traceback.format_exception(leaf)[-6:])
    if isinstance(leaf, Stuck):
        return BrokenError("nothing hangs", f"{leaf}")
    kind = type(leaf).__name__
    return BrokenError("nothing fails otherwise than it may", f"{kind}: {leaf}\n{where}", kind=kind)


def _leaves(error: BaseException) -> list[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        return [leaf for part in error.exceptions for leaf in _leaves(part)]
    return [error]
