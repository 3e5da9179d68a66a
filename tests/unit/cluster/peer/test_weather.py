"""The chaos of test_chaos under bad weather, wild wall clocks and tasks in a drawn order: nothing acknowledged is lost, nothing wrong
is read.

While the storm lasts only safety is asked for. Hosts are cut off, slowed, frozen and killed meanwhile. Then the weather clears, and all
must become whole, within a bound of virtual time.
"""

from __future__ import annotations

import asyncio
import os

import pytest

from cluster.errors import HoldfastError, NotFound
from tests.support.simulated.clock import disturb
from tests.support.simulated.loop import Scheduling, run_virtual
from tests.support.simulated.streams import Streams
from tests.support.simulated.trace import Trace
from tests.support.simulated.weather import CALM, STORM, WINDY
from tests.support.simulated.whole_cluster import Machine, WholeCluster, get, put

SEEDS = [int(os.environ["HOLDFAST_SEED"])] if "HOLDFAST_SEED" in os.environ else [1, 2]
"""HOLDFAST_SEED=N replays one, with a trace."""

ROUNDS = 5
OPERATION_S = 30.0
LIVE_S = 60.0
"""Within so many virtual seconds after the last fault every operation must succeed."""


class Storm:
    def __init__(self, streams: Streams) -> None:
        self.rng = streams.stream("faults")
        self.workload = streams.stream("workload")
        self.clocks_rng = streams.stream("clocks")
        self.cluster = WholeCluster(streams.seed, 5, streams=streams, wild_clocks=True)
        self.begun = {f"v{index}": 0 for index in range(5)}
        self.acknowledged = dict.fromkeys(self.begun, 0)
        self.writes = self.reads = self.failures = 0
        self.stopping = False

    def gateway(self) -> Machine | None:
        up = [m for m in self.cluster.machines.values() if m.core is not None and m.core.installed.epoch]
        return self.workload.choice(up) if up else None

    def content(self, name: str, version: int) -> bytes:
        return f"{name}:{version};".encode() * (1 + version * 37 % 900) + f"#{version}".encode()

    async def write(self, machine: Machine, name: str) -> None:
        number = self.begun[name] = self.begun[name] + 1
        async with asyncio.timeout(OPERATION_S):
            await put(machine.running, name, self.content(name, number))
        self.acknowledged[name] = number
        self.writes += 1

    async def read(self, machine: Machine, name: str) -> None:
        least = self.acknowledged[name]
        try:
            async with asyncio.timeout(OPERATION_S):
                data = await get(machine.running, name)
        except NotFound:
            data = b"#0"
        version = int(data.rpartition(b"#")[2])
        assert version == 0 or data == self.content(name, version)
        assert least <= version <= self.begun[name], (name, least, version, self.begun[name])
        self.reads += 1

    async def client(self, name: str, *, writes: bool) -> None:
        while not self.stopping:
            machine = self.gateway()
            if machine is not None:
                try:
                    await (self.write(machine, name) if writes else self.read(machine, name))
                except (HoldfastError, TimeoutError):
                    self.failures += 1
                except asyncio.CancelledError:
                    if machine.core is not None:
                        raise
                    self.failures += 1  # the gateway was killed
            await asyncio.sleep(self.workload.expovariate(5))

    async def break_something(self) -> None:
        network, rng = self.cluster.network, self.rng
        names = list(self.cluster.machines)
        name = rng.choice(names)
        machine = self.cluster.machines[name]
        pause = rng.choice([0.5, 3.0, 12.0])
        kind = rng.choice(["kill", "freeze", "isolate", "one way", "partition", "slow", "refuse"])
        if kind == "kill":
            await machine.kill()
            await asyncio.sleep(pause)
            machine.start()
        elif kind == "freeze":
            network.freeze(name)
            await asyncio.sleep(pause)
            network.thaw(name)
        elif kind in {"isolate", "refuse"}:
            network.isolate(name, refuse=kind == "refuse")
            await asyncio.sleep(pause)
            network.heal(name)
        elif kind == "one way":
            network.cut(name, rng.sample([other for other in names if other != name], 2), one_way=True)
            await asyncio.sleep(pause)
            network.heal()
        elif kind == "partition":
            side = rng.sample(names, 2)
            network.cut(side, [other for other in names if other not in side])
            await asyncio.sleep(pause)
            network.heal()
        else:
            network.slow(name, bytes_per_s=20_000, latency_s=rng.choice([0.05, 1.0]))
            await asyncio.sleep(pause)
            network.slow(name)

    async def main(self) -> None:
        cluster = self.cluster
        try:
            await cluster.start()
            clocks = asyncio.create_task(disturb([m.clock for m in cluster.machines.values()], self.clocks_rng))
            cluster.network.set_weather(self.rng.choice([WINDY, STORM]))
            async with asyncio.TaskGroup() as group:
                for name in self.begun:
                    group.create_task(self.client(name, writes=True))
                    group.create_task(self.client(name, writes=False))
                for _ in range(ROUNDS):
                    await asyncio.sleep(2)
                    await self.break_something()
                cluster.network.set_weather(CALM)
                self.stopping = True
            await self.everything_works()
            await cluster.until(cluster.settled, "settled at the end", 240)
            await cluster.until_clean()
            for machine in cluster.machines.values():
                for name in self.begun:
                    await self.read(machine, name)
            clocks.cancel()
        finally:
            await cluster.close()

    async def everything_works(self) -> None:
        """From some moment soon, through every gateway."""
        loop = asyncio.get_running_loop()
        end = loop.time() + LIVE_S
        for machine in self.cluster.machines.values():
            for name in self.begun:
                while True:
                    try:
                        await self.write(machine, name)
                        await self.read(machine, name)
                        break
                    except (HoldfastError, TimeoutError) as error:
                        if loop.time() > end:
                            raise AssertionError(f"{machine.name} does not serve {name}") from error
                        await asyncio.sleep(0.2)


def play(seed: int) -> Storm:
    streams = Streams(seed)

    async def main() -> Storm:
        storm = Storm(streams)
        await storm.main()
        return storm

    return run_virtual(main(), streams=streams, scheduling=Scheduling(slow_chance=0.001), trace=Trace(4000))


@pytest.mark.parametrize("seed", SEEDS)
def test_safe_in_the_storm_and_whole_after_it(seed: int) -> None:
    storm = play(seed)
    assert storm.writes > 40
    assert storm.reads > 40
