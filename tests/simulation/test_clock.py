"""The clocks of simulated nodes, and a cluster whose wall clocks are wild: nothing that matters depends on them."""

from __future__ import annotations

import asyncio
import random

import pytest

from tests.support.simulated.clock import DRIFT_MAX, JUMP_MAX_S, VirtualClock, disturb
from tests.support.simulated.loop import run_virtual
from tests.support.simulated.streams import Streams
from tests.support.simulated.whole_cluster import WholeCluster, get, put


def test_without_settings_it_is_the_time_of_the_loop() -> None:
    async def main() -> None:
        clock = VirtualClock()
        start = clock.wall()
        await clock.sleep(10)
        assert clock.monotonic() == 10.0
        assert clock.wall() == start + 10

    run_virtual(main())


@pytest.mark.parametrize("seed", range(10))
def test_monotonic_never_goes_back_and_drifts_within_its_bound(seed: int) -> None:
    async def main() -> None:
        rng = random.Random(seed)
        loop = asyncio.get_running_loop()
        clock = VirtualClock.wild(rng)
        trouble = asyncio.create_task(disturb([clock], rng, mean_s=0.5))
        walls = []
        for _ in range(300):
            before, when = clock.monotonic(), loop.time()
            await asyncio.sleep(rng.expovariate(2))
            passed, really = clock.monotonic() - before, loop.time() - when
            assert (1 - DRIFT_MAX) * really - 1e-6 <= passed <= (1 + DRIFT_MAX) * really + 1e-6
            walls.append(clock.wall() - loop.time())
        assert max(walls) - min(walls) > 3600
        trouble.cancel()

    run_virtual(main())


@pytest.mark.parametrize("rate", [1 - DRIFT_MAX, 1.0, 1 + DRIFT_MAX])
def test_sleep_is_by_the_clock_of_the_node(rate: float) -> None:
    async def main() -> None:
        clock = VirtualClock(rate=rate, start_s=1000)
        assert clock.monotonic() == 1000
        await clock.sleep(100)
        assert clock.monotonic() == pytest.approx(1100)
        assert asyncio.get_running_loop().time() == pytest.approx(100 / rate)

    run_virtual(main())


def test_the_wall_clock_jumps_both_ways_and_the_monotonic_one_does_not() -> None:
    async def main() -> None:
        clock = VirtualClock()
        wall = clock.wall()
        clock.jump(-7200)
        assert clock.wall() == wall - 7200
        clock.jump(10_000)
        assert clock.wall() == wall + 2800
        assert clock.monotonic() == 0.0
        with pytest.raises(AssertionError):
            clock.drift(2.0)

    run_virtual(main())


@pytest.mark.parametrize("seed", [1, 2])
def test_a_cluster_with_wild_wall_clocks_serves_heals_and_cleans_up(seed: int) -> None:
    """Each clock is hours off and jumps by hours every few seconds, under overwrites and deletions and the death of a node."""
    streams = Streams(seed)

    async def main() -> None:
        cluster = WholeCluster(seed, 5, streams=streams, wild_clocks=True)
        rng = streams.stream("workload")
        clocks = [machine.clock for machine in cluster.machines.values()]
        await cluster.start()
        trouble = asyncio.create_task(disturb(clocks, streams.stream("clocks"), mean_s=1.0))
        data = {}
        for number in range(40):
            name = f"v{number % 8}"
            data[name] = rng.randbytes(rng.randrange(1, 9000))
            await put(cluster[f"n{number % 4 + 1}"], name, data[name])
            assert await get(cluster[f"n{(number + 1) % 4 + 1}"], name) == data[name]
            if number == 10:
                await cluster.machines["n5"].kill()
            if number == 30:
                cluster.machines["n5"].start()
            clocks[number % 5].jump(JUMP_MAX_S * (-1) ** number)
        await cluster["n1"].volumes.delete("v0")
        del data["v0"]
        await cluster.until(cluster.settled, "n5 back")
        await cluster.until_clean()
        for machine in cluster.machines:
            for name, value in data.items():
                assert await get(cluster[machine], name) == value
        trouble.cancel()
        await cluster.close()

    run_virtual(main(), streams=streams)
