"""Nodes that lose their memory: emptied one after the other, or put back from an old copy. Nothing acknowledged is lost or undone."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

from tests.cluster.conftest import MakeCluster
from tests.cluster.content import KIB, content
from tests.cluster.gateway import Gateway
from tests.cluster.harness import ClusterProcess, eventually
from tests.cluster.healing import QUICK_REPAIR
from tests.cluster.inspector import Inspector

SIZE = 40 * KIB
VOLUMES = [f"v{index}" for index in range(16)]
WHOLE_DEADLINE_S = 40.0
"""For an emptied node to relearn its registers and fetch its chunks."""


async def whole(cluster: ClusterProcess, deadline_s: float = WHOLE_DEADLINE_S) -> None:
    """Wait until every node calls the cluster healthy and has nothing left to copy."""

    async def healthy(name: str) -> None:
        async with Gateway(cluster[name].url) as gateway:

            async def is_whole() -> bool:
                answer = await gateway.ask("GET", "/v1/cluster")
                if answer.status != 200 or answer.json()["health"] != "healthy":
                    return False
                jobs = {job["name"]: job for job in (await gateway.document("/v1/jobs"))["jobs"]}
                return bool(jobs["copier"]["queue_length"] == 0 and jobs["attestation"]["queue_length"] == 0)

            await eventually(is_whole, f"{name} is whole and finds the cluster healthy", deadline_s)

    await asyncio.gather(*(healthy(name) for name in cluster.names))


async def write_all(gateway: Gateway, version: int, etags: dict[str, str]) -> None:
    """Overwrite each volume if it still is the one known here."""
    for name in VOLUMES:
        condition = {"If-Match": etags[name]} if name in etags else {"If-None-Match": "*"}
        answer = await gateway.put(name, content(name, version, SIZE), headers=condition)
        assert answer.status == (200 if name in etags else 201), answer
        etags[name] = answer.headers["etag"]


async def check_all(gateway: Gateway, version: int, etags: dict[str, str]) -> None:
    """Every volume is that version, and a write under another condition is refused."""
    for name in VOLUMES:
        answer = await gateway.get(name)
        assert answer.status == 200, answer
        assert answer.headers["etag"] == etags[name]
        assert answer.body == content(name, version, SIZE), f"{name} is not at version {version}"
    refused = await gateway.put(VOLUMES[0], b"late", headers={"If-Match": '"0123456789abcdef"'})
    refused.problem(412, "conflict")
    refused = await gateway.put(VOLUMES[1], b"late", headers={"If-None-Match": "*"})
    refused.problem(412, "conflict")


async def test_every_node_is_emptied_in_turn(make_cluster: MakeCluster) -> None:
    """After the last one no disk of the beginning is left, and everything is still there, in three copies."""
    cluster = await make_cluster(5, environment=QUICK_REPAIR)
    etags: dict[str, str] = {}
    async with Gateway(cluster["n1"].url) as gateway:
        await write_all(gateway, 0, etags)
    for version, victim in enumerate(cluster.names, start=1):
        other = cluster.names[version % len(cluster.names)]
        cluster.wipe(victim)
        async with Gateway(cluster[other].url) as gateway, Gateway(cluster[victim].url) as emptied:
            await write_all(gateway, version, etags)  # while it is away
            await cluster.start(victim)
            await check_all(emptied, version, etags)  # while it relearns
            await whole(cluster)
            await check_all(emptied, version, etags)
    async with Inspector(cluster) as inspector:
        await inspector.all_in_place(*cluster.names, deadline_s=20)


async def test_a_data_directory_is_put_back_from_an_old_copy(make_cluster: MakeCluster, tmp_path: Path) -> None:
    """Each of three replicas in turn goes back in time: it notices, and relearns before it votes again."""
    cluster = await make_cluster(3, environment=QUICK_REPAIR)
    etags: dict[str, str] = {}
    async with Gateway(cluster["n1"].url) as gateway:
        await write_all(gateway, 0, etags)
    copies = tmp_path / "copies"
    assert await cluster["n2"].stop() == 0
    assert await cluster["n3"].stop() == 0
    for name in ("n2", "n3"):
        shutil.copytree(cluster[name].data, copies / name)
    await cluster.start("n2", "n3")
    for version, (victim, other) in enumerate((("n2", "n3"), ("n3", "n1"), ("n2", "n3")), start=1):
        async with Gateway(cluster[other].url) as gateway, Gateway(cluster[victim].url) as returned:
            # written by a quorum that the returning node is part of, then without the third replica's help
            await write_all(gateway, 2 * version, etags)
            cluster.wipe(victim)
            shutil.copytree(copies / victim, cluster[victim].data, dirs_exist_ok=True)
            await write_all(gateway, 2 * version + 1, etags)
            known = cluster[victim].log_text().count("store_had_forgotten")
            await cluster.start(victim)
            assert cluster[victim].log_text().count("store_had_forgotten") == known + 1
            await check_all(returned, 2 * version + 1, etags)
            await whole(cluster)
            # the others can rely on its memory again: one of them goes
            cluster.kill(other)
            await check_all(returned, 2 * version + 1, etags)
            await cluster.start(other)
            await whole(cluster)
