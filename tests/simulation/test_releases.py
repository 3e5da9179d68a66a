"""Two releases in one cluster: nodes whose wire says more, and names a later version, work with present ones; too new ones are told so."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace

import pytest

from tests.support.simulated.loop import run_virtual
from tests.support.simulated.release import LATER, PRESENT, TalkativeTransport
from tests.support.simulated.streams import Streams
from tests.support.simulated.weather import WINDY
from tests.support.simulated.whole_cluster import WholeCluster, get, put


@pytest.mark.parametrize("seed", [1, 2])
def test_a_cluster_of_two_releases_works_and_can_be_upgraded_node_by_node(seed: int) -> None:
    streams = Streams(seed)

    async def main() -> None:
        cluster = WholeCluster(seed, 5, streams=streams, weather=WINDY)
        rng = random.Random(seed)
        for name in ("n2", "n4"):
            cluster.machines[name].release = LATER
        await cluster.start()
        await cluster.until(cluster.settled, "a settled cluster")
        said = TalkativeTransport.said
        data = {}

        async def use() -> None:
            for number in range(12):
                name = f"v{number % 6}"
                data[name] = rng.randbytes(rng.choice([100, 5000, 200_000]))
                await put(cluster[f"n{number % 5 + 1}"], name, data[name], chunk_size=rng.choice([4096, 1 << 18]))
            for machine in cluster.machines.values():
                for name, value in data.items():
                    assert await get(machine.running, name) == value

        await use()
        assert TalkativeTransport.said - said > 100
        for name, release in (("n1", LATER), ("n3", LATER), ("n2", PRESENT), ("n5", LATER)):  # n2 goes back
            await cluster.machines[name].kill()
            cluster.machines[name].release = release
            cluster.machines[name].start()
            await cluster.until(cluster.settled, f"{name} restarted", 120)
        await use()
        members = {name: member.release for name, member in cluster["n2"].membership.members().items()}
        assert members == {"n1": "99.0", "n2": "", "n3": "99.0", "n4": "99.0", "n5": "99.0"}
        await cluster.until_clean()
        await cluster.close()

    run_virtual(main(), streams=streams)


@pytest.mark.parametrize(("version", "version_min"), [(2, 2), (0, 0)])
def test_without_a_common_version_a_node_stays_outside_and_the_others_work(version: int, version_min: int) -> None:
    async def main() -> None:
        cluster = WholeCluster(1, 3)
        await cluster.start()
        stranger = cluster.add("n4")
        stranger.release = replace(LATER, version=version, version_min=version_min)
        stranger.start()
        await asyncio.sleep(20)
        assert not stranger.has_layout()
        assert len(cluster["n1"].installed.require().current.nodes) == 3
        assert cluster["n1"].rpc.statistics.refused > 0
        await put(cluster["n1"], "v", b"content")
        assert await get(cluster["n2"], "v") == b"content"
        await stranger.kill()
        stranger.release = LATER
        stranger.start()
        await cluster.until(lambda: stranger.has_layout() and cluster.settled(), "it speaks a common version", 120)
        assert await get(stranger.running, "v") == b"content"
        await cluster.close()

    run_virtual(main(), seed=1)
