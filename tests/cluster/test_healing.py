"""Real daemons return to full redundancy by themselves, from whatever happened to them, and show that they do."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
from pathlib import Path

from client.errors import NotFound
from tests.cluster.conftest import MakeCluster
from tests.cluster.content import KIB, MIB, content
from tests.cluster.gateway import Gateway
from tests.cluster.harness import ClusterProcess, eventually
from tests.cluster.healing import QUICK_REPAIR, wait_equal, wait_whole
from tests.cluster.inspector import Inspector

VOLUMES = int(os.environ.get("HOLDFAST_TEST_VOLUMES", "1000"))
AT_ONCE = 32


async def in_parallel(jobs: list[tuple[str, int]], work: object) -> None:
    assert callable(work)
    gate = asyncio.Semaphore(AT_ONCE)

    async def one(name: str, version: int) -> None:
        async with gate:
            await work(name, version)

    async with asyncio.TaskGroup() as group:
        for name, version in jobs:
            group.create_task(one(name, version))


async def test_a_node_that_was_away_for_a_thousand_volumes_comes_back_equal(make_cluster: MakeCluster) -> None:
    """Written, overwritten and deleted while it was away: the roots of all replicas agree, nothing deleted returns."""
    cluster = await make_cluster(5, environment=QUICK_REPAIR)
    names = [f"v{index}" for index in range(VOLUMES)]
    async with cluster.client(without=["n3"]) as holdfast:

        async def put(name: str, version: int) -> None:
            await holdfast.put(name, content(name, version, 3 * KIB + version))

        async def delete(name: str, _: int) -> None:
            await holdfast.delete(name)

        await in_parallel([(name, 0) for name in names[: VOLUMES // 2]], put)
        cluster.kill("n3")
        await in_parallel([(name, 0) for name in names[VOLUMES // 2 :]], put)
        await in_parallel([(name, 1) for name in names], put)
        gone = names[::3]
        await in_parallel([(name, 0) for name in gone], delete)
        await cluster.start("n3")
        await wait_whole(cluster, 180)
        await wait_equal(cluster)
    async with cluster.client("n3") as returned:
        listed = [volume.name async for volume in returned.list()]
        assert sorted(listed) == sorted(set(names) - set(gone))
        for name in random.Random(1).sample(listed, 50):
            assert await returned.get(name) == content(name, 1, 3 * KIB + 1)
        for name in random.Random(2).sample(gone, 20):
            try:
                await returned.get(name)
            except NotFound:
                continue
            raise AssertionError(f"{name} is back")
    await space_is_back(cluster, len(set(names) - set(gone)))


async def space_is_back(cluster: ClusterProcess, volumes: int) -> None:
    """One chunk a volume on three nodes, and nothing else, once the graces are over."""

    async def chunks() -> bool:
        held = 0
        for name in cluster.names:
            async with Gateway(cluster[name].url) as gateway:
                held += (await gateway.document("/v1/cluster"))["store"]["chunks"]
        return held == 3 * volumes

    await eventually(chunks, "only what is needed is kept", 90)


async def test_replicas_are_away_in_turn_and_redundancy_is_back_before_the_next_goes(make_cluster: MakeCluster) -> None:
    cluster = await make_cluster(3, environment=QUICK_REPAIR)
    names = [f"v{index}" for index in range(60)]
    for version, away in enumerate(("n1", "n2", "n3", "n1")):
        cluster.kill(away)
        async with cluster.client(without=[away]) as holdfast:
            for name in names:
                await holdfast.put(name, content(name, version, 20 * KIB))
        await cluster.start(away)
        await wait_whole(cluster)
    async with cluster.client() as holdfast:
        for name in names:
            assert await holdfast.get(name) == content(name, 3, 20 * KIB)


async def test_flipped_bytes_are_found_by_reads_and_scrub_never_served_and_healed(make_cluster: MakeCluster) -> None:
    cluster = await make_cluster(5, environment=QUICK_REPAIR)
    names = [f"v{index}" for index in range(24)]
    async with cluster.client() as holdfast:
        for name in names:
            await holdfast.put(name, content(name, 0, MIB), chunk_size=256 * KIB)
    await wait_whole(cluster)
    victim = cluster["n2"]
    cluster.kill("n2")
    flipped = flip_bytes(victim.data, 40)
    assert flipped
    await cluster.start("n2")
    async with cluster.client("n2") as holdfast:
        for name in names[:6]:
            assert await holdfast.get(name) == content(name, 0, MIB)
        await holdfast.repair_run(scrub=True)

        async def found() -> bool:
            async with Gateway(victim.url) as gateway:
                document = await gateway.document("/v1/repair")
            mine = next(node for node in document["nodes"] if node["name"] == "n2")
            return bool(mine["damaged_chunks"])

        await eventually(found, "the scrub has come upon damage", 60)
        await wait_whole(cluster)
        for name in names:
            assert await holdfast.get(name) == content(name, 0, MIB)
    await wait_equal(cluster)
    cluster.kill("n1", "n3")
    async with Gateway(victim.url) as gateway:
        answers = await asyncio.gather(*(gateway.get(name) for name in names))
    right = [
        answer.body == content(name, 0, MIB)
        for name, answer in zip(names, answers, strict=True)
        if answer.status == 200
    ]
    assert all(right)
    assert right
    assert {answer.status for answer in answers} <= {200, 503}


def flip_bytes(data: Path, count: int) -> int:
    """Change single bytes at random places of a stopped node's chunk logs, past the file headers; how many."""
    rng = random.Random(7)
    logs = sorted((data / "chunks").glob("chunks-*.log"))
    sizes = [log.stat().st_size for log in logs]
    for _ in range(count):
        log, size = rng.choices(list(zip(logs, sizes, strict=True)), weights=sizes)[0]
        place = rng.randrange(64, size)
        with log.open("r+b") as file:
            file.seek(place)
            byte = file.read(1)
            file.seek(place)
            file.write(bytes((byte[0] ^ 0x40,)))
    return count


async def test_a_deleted_and_a_truncated_index_are_rebuilt_while_the_cluster_serves(make_cluster: MakeCluster) -> None:
    cluster = await make_cluster(5, environment=QUICK_REPAIR)
    names = [f"v{index}" for index in range(30)]
    async with cluster.client() as holdfast:
        for name in names:
            await holdfast.put(name, content(name, 0, 50 * KIB))
    await wait_whole(cluster)
    for victim, harm in (("n4", "delete"), ("n5", "truncate")):
        cluster.kill(victim)
        index = cluster[victim].data / "chunks" / "chunks.sqlite"
        if harm == "delete":
            for file in index.parent.glob("chunks.sqlite*"):
                file.unlink()
        else:
            os.truncate(index, index.stat().st_size // 2)
        async with cluster.client(without=[victim]) as holdfast:
            for name in names[:10]:
                assert await holdfast.get(name) == content(name, 0, 50 * KIB)
            await cluster.start(victim)
        async with cluster.client(victim) as holdfast:
            for name in names:
                assert await holdfast.get(name) == content(name, 0, 50 * KIB)
        await wait_whole(cluster)
    await wait_equal(cluster)


async def test_a_dead_node_is_moved_out_after_a_while_and_taken_in_again(make_cluster: MakeCluster) -> None:
    cluster = await make_cluster(5, environment={**QUICK_REPAIR, "HOLDFAST_DOWN_OUT_S": "4"})
    names = [f"v{index}" for index in range(40)]
    async with cluster.client() as holdfast:
        for name in names:
            await holdfast.put(name, content(name, 0, 40 * KIB))
    cluster.kill("n5")
    living = ["n1", "n2", "n3", "n4"]
    async with Inspector(cluster) as inspector:

        async def out() -> bool:
            state = await inspector.state("n1")
            return state.next is None and state.current.node("n5") is None

        await eventually(out, "n5 is moved out", 60)
        await inspector.all_in_place(*living, deadline_s=60)
        async with cluster.client(*living) as holdfast:
            for name in names:
                assert await holdfast.get(name) == content(name, 0, 40 * KIB)
        await cluster.start("n5")

        async def back() -> bool:
            state = await inspector.state("n1")
            return state.next is None and state.current.node("n5") is not None

        await eventually(back, "n5 is taken in again", 60)
    await wait_whole(cluster)
    await wait_equal(cluster)


async def test_an_emptied_node_is_refilled_without_being_asked(make_cluster: MakeCluster) -> None:
    cluster = await make_cluster(5, environment=QUICK_REPAIR)
    names = [f"v{index}" for index in range(16)]
    async with cluster.client() as holdfast:
        for name in names:
            await holdfast.put(name, content(name, 0, 2 * MIB), chunk_size=512 * KIB)
    await wait_whole(cluster)
    cluster.kill("n2")
    shutil.rmtree(cluster["n2"].data)

    async def missed() -> bool:
        async with Gateway(cluster["n1"].url) as gateway:
            return bool((await gateway.document("/v1/repair"))["copies_missing"] > 0)

    await eventually(missed, "n2's copies are called missing", 20)
    await cluster.start("n2")
    await wait_whole(cluster)
    await wait_equal(cluster)
