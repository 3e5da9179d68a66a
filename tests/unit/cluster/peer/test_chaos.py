"""Random deaths, freezes, lost disks, joins and removals under writers and readers: nothing acknowledged is lost, nothing wrong is read.

Every writer owns a volume and writes versions of it that tell their number. A reader must find a version that is not older than the
last one acknowledged before it began, and not newer than the last one begun before it ended. One thing is broken at a time. In the end
all replicas are equal and hold exactly what the volumes need.
"""

from __future__ import annotations

import asyncio
import os
import random
from dataclasses import dataclass, field

import pytest

from cluster.errors import HoldfastError, NotFound
from cluster.governance.state import StagedChange
from tests.support.simulated.loop import run_virtual
from tests.support.simulated.production_stores import ProductionStores
from tests.support.simulated.stores import MemoryStores, StoresFactory
from tests.support.simulated.whole_cluster import Machine, WholeCluster, get, put

SEEDS = [int(os.environ["HOLDFAST_SEED"])] if "HOLDFAST_SEED" in os.environ else [1]
"""HOLDFAST_SEED=N replays one. More kinds of trouble, and many seeds: tests/simulation."""

ROUNDS = 4
ROUNDS_ON_DISKS = 2
"""The daemon's own stores take seven times as long."""

OPERATION_S = 30.0
"""No operation takes longer, whatever happens."""


def content(name: str, version: int) -> bytes:
    size = random.Random(f"{name} {version}").randrange(1, 9000)
    return (f"{name}:{version};".encode() * (size // 4 + 1))[:size] + f"#{version}".encode()


def version_of(data: bytes) -> int:
    return int(data.rpartition(b"#")[2])


@dataclass
class Volume:
    name: str
    begun: int = 0
    acknowledged: int = 0


@dataclass
class Chaos:
    seed: int
    stores: StoresFactory = MemoryStores
    rounds: int = ROUNDS
    cluster: WholeCluster = field(init=False)
    volumes: list[Volume] = field(init=False)
    writes: int = 0
    reads: int = 0
    failures: int = 0
    stopping: bool = False

    def __post_init__(self) -> None:
        self.rng = random.Random(f"chaos {self.seed}")
        self.cluster = WholeCluster(self.seed, 5, stores=self.stores)
        self.volumes = [Volume(f"v{index}") for index in range(6)]

    def gateway(self) -> Machine | None:
        up = [m for m in self.cluster.machines.values() if m.core is not None and m.core.installed.epoch]
        return self.rng.choice(up) if up else None

    async def writer(self, volume: Volume) -> None:
        while not self.stopping:
            machine = self.gateway()
            if machine is not None:
                number = volume.begun = volume.begun + 1
                try:
                    async with asyncio.timeout(OPERATION_S):
                        await put(machine.running, volume.name, content(volume.name, number))
                    volume.acknowledged = number
                    self.writes += 1
                except (HoldfastError, TimeoutError, asyncio.CancelledError) as error:
                    if isinstance(error, asyncio.CancelledError) and machine.core is not None:
                        raise
                    self.failures += 1
            await asyncio.sleep(self.rng.expovariate(20))

    async def reader(self) -> None:
        while not self.stopping:
            machine = self.gateway()
            if machine is not None:
                await self.read(machine, self.rng.choice(self.volumes))
            await asyncio.sleep(self.rng.expovariate(20))

    async def read(self, machine: Machine, volume: Volume, *, must: bool = False) -> None:
        least = volume.acknowledged
        try:
            async with asyncio.timeout(OPERATION_S):
                data = await get(machine.running, volume.name)
        except NotFound:
            data = b"#0"
        except (HoldfastError, TimeoutError):
            assert not must
            self.failures += 1
            return
        version = version_of(data)
        assert version == 0 or data == content(volume.name, version)
        assert least <= version <= volume.begun, (volume.name, least, version, volume.begun)
        self.reads += 1

    async def break_something(self, number: int) -> None:
        """One fault, and its mending."""
        cluster, rng = self.cluster, self.rng
        members = [m for m in cluster.machines.values() if m.core is not None]
        machine = rng.choice(members)
        kind = rng.choice(["kill", "kill", "freeze", "wipe", "old copy", "all", "join", "remove"])
        pause = rng.choice([0.1, 1.0, 6.0])
        if kind == "kill":
            await machine.kill()
            await asyncio.sleep(pause)
            machine.start()
        elif kind == "freeze":
            cluster.network.freeze(machine.name)
            await asyncio.sleep(pause)
            cluster.network.thaw(machine.name)
        elif kind == "wipe":
            await machine.kill()
            machine.wipe()
            await asyncio.sleep(pause)
            machine.start()
        elif kind == "old copy":
            old = machine.copy_disk()
            await asyncio.sleep(pause)
            await machine.kill()
            machine.start()
            await cluster.until(lambda: machine.core and cluster.settled(), "a second boot", 120)
            await machine.kill()
            machine.put_back(old)
            machine.start()
        elif kind == "all":
            for other in members:
                await other.kill()
            await asyncio.sleep(pause)
            for other in members:
                other.start()
        elif kind == "join":
            cluster.add(f"n{len(cluster.machines) + 1}").start()
            await asyncio.sleep(5 + pause)
        elif len(members) > 4:
            try:
                governor = members[0].running.governor
                await governor.stage([StagedChange(machine.name, remove=True)])
                _, plan = await governor.plan()
                await governor.apply(plan.version)
            except HoldfastError:
                return
            await cluster.until(cluster.settled, f"{machine.name} removed", 240)
        await cluster.until(cluster.settled, f"whole again after {kind} of {machine.name} in round {number}", 240)

    async def main(self) -> None:
        try:
            await self.cluster.start()
            async with asyncio.TaskGroup() as group:
                for volume in self.volumes:
                    group.create_task(self.writer(volume))
                for _ in range(3):
                    group.create_task(self.reader())
                for number in range(self.rounds):
                    await asyncio.sleep(1)
                    await self.break_something(number)
                self.stopping = True
            await self.cluster.until(self.cluster.settled, "whole at the end", 240)
            await self.cluster.until_clean()
            for machine in self.cluster.machines.values():
                for volume in self.volumes:
                    await self.read(machine, volume, must=True)
        finally:
            await self.cluster.close()


def play(seed: int, stores: StoresFactory, rounds: int) -> None:
    async def main() -> Chaos:
        chaos = Chaos(seed, stores, rounds)
        await chaos.main()
        return chaos

    chaos = run_virtual(main())
    assert chaos.writes > 50
    assert chaos.reads > 50


@pytest.mark.parametrize("seed", SEEDS)
def test_one_thing_broken_at_a_time(seed: int) -> None:
    play(seed, MemoryStores, ROUNDS)


@pytest.mark.parametrize("seed", SEEDS)
def test_one_thing_broken_at_a_time_on_the_daemons_own_stores(seed: int) -> None:
    play(seed, ProductionStores, ROUNDS_ON_DISKS)
