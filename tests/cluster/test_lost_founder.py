"""A node that may found a cluster loses what it knew of the one it founded: it never begins another over the data of the first."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable

import aiohttp
import pytest

from node.storage.register_store import DATABASE_NAME
from tests.cluster.conftest import MakeCluster
from tests.cluster.content import KIB, content
from tests.cluster.gateway import Gateway
from tests.cluster.harness import ClusterProcess, Daemon, eventually
from tests.cluster.healing import QUICK_REPAIR
from tests.cluster.test_amnesia import check_all, whole, write_all
from tests.cluster.test_damaged_registers import set_aside

QUICK_SWEEP = ["--sweep-age-s", "1", "--sweep-period-s", "1", "--chunk-grace-s", "1"]
WATCHED_S = 6.0
"""Some sweeps and graces: in so long all of it would be gone."""

ALONE_S = 2.0
"""A node that may found a cluster takes a fraction of that."""

NOTICE_DEADLINE_S = 20.0
SIZE = 600 * KIB


def flip_a_bit(daemon: Daemon) -> None:
    """In a row of a volume."""
    database = daemon.data / DATABASE_NAME
    content = bytearray(database.read_bytes())
    content[content.rindex(b"volumes/")] ^= 1
    database.write_bytes(content)


def lose_registers(daemon: Daemon) -> None:
    for companion in ("", "-wal", "-shm"):
        (daemon.data / f"{DATABASE_NAME}{companion}").unlink(missing_ok=True)


async def metric(gateway: Gateway, name: str) -> float:
    text = (await gateway.ask("GET", "/metrics")).body.decode()
    return next(float(line.split()[-1]) for line in text.splitlines() if line.startswith(f"{name} "))


async def cluster_id(gateway: Gateway) -> str:
    return str((await gateway.document("/v1/cluster"))["cluster_id"])


async def speaks(gateway: Gateway) -> bool:
    """Whether it answers and its core runs."""
    try:
        return (await gateway.ask("GET", "/v1/jobs")).status == 200
    except aiohttp.ClientError:
        return False


@pytest.mark.parametrize("harm", [flip_a_bit, lose_registers])
async def test_a_lone_node_that_has_lost_its_registers_keeps_its_chunks_and_says_so(
    make_cluster: MakeCluster, harm: Callable[[Daemon], None]
) -> None:
    cluster = await make_cluster(1, arguments=["--replication", "1", *QUICK_SWEEP])
    one = cluster["n1"]
    body = content("v", 1, SIZE)
    async with Gateway(one.url) as gateway:
        assert (await gateway.put("v", body)).status == 201
        before = await cluster_id(gateway)
        chunks = await metric(gateway, "holdfast_chunks")
    assert chunks > 0
    assert await one.stop() == 0
    good = (one.data / DATABASE_NAME).read_bytes()
    harm(one)
    one.start()
    async with Gateway(one.url) as gateway:
        await eventually(lambda: speaks(gateway), "it answers", NOTICE_DEADLINE_S)
        end = time.monotonic() + WATCHED_S
        while time.monotonic() < end:
            (await gateway.ask("GET", "/v1/volumes")).problem(503, "not-ready")
            (await gateway.put("w", b"new")).problem(503, "not-ready")
            answer = await gateway.ask("GET", "/readyz")
            assert "register database is lost" in answer.problem(503, "not-ready")["detail"]
            status = await gateway.document("/v1/cluster")
            assert status["health"] == "unavailable"
            assert any("put registers.db back" in line for line in status["attention"])
            assert status["cluster_id"] == before
            assert await metric(gateway, "holdfast_chunks") == chunks
            await asyncio.sleep(0.2)
    assert set_aside(one) == (1 if harm is flip_a_bit else 0)
    assert "registers_lost" in one.log_text()

    # also when it is started again, and with the backup it is what it was
    assert await one.stop() == 0
    one.start()
    await eventually(lambda: one.log_text().count("registers_lost") == 2, "it says so again", NOTICE_DEADLINE_S)
    assert await one.stop() == 0
    lose_registers(one)
    (one.data / DATABASE_NAME).write_bytes(good)
    await cluster.start("n1")
    async with Gateway(one.url) as gateway:
        assert (await gateway.get("v")).body == body
        assert await cluster_id(gateway) == before


def empty_disk(cluster: ClusterProcess) -> None:
    cluster.wipe("n1")


def damaged_registers(cluster: ClusterProcess) -> None:
    flip_a_bit(cluster["n1"])


def forgotten_cluster(cluster: ClusterProcess) -> None:
    """As after an upgrade from a release that remembered it in the registers alone."""
    flip_a_bit(cluster["n1"])
    marker = cluster["n1"].data / "node.json"
    document = json.loads(marker.read_text())
    document.pop("cluster", None)
    marker.write_text(json.dumps(document))


@pytest.mark.parametrize("harm", [damaged_registers, forgotten_cluster, empty_disk])
async def test_a_founder_finds_back_to_the_cluster_that_grew_from_it(
    make_cluster: MakeCluster, harm: Callable[[ClusterProcess], None]
) -> None:
    """It keeps the flags with which it once began alone; the others are started after it, as a runner does that starts all at once."""
    cluster = await make_cluster(1, arguments=QUICK_SWEEP, environment=QUICK_REPAIR, spare=2)
    one = cluster["n1"]
    etags: dict[str, str] = {}
    async with Gateway(one.url) as gateway:
        before = await cluster_id(gateway)
        two, three = await cluster.add(), await cluster.add()
        one.command += ["--join", two.plan.peer, "--join", three.plan.peer]

        async def grown() -> bool:
            status = await gateway.document("/v1/cluster")
            return bool(status["nodes"]["in_layout"] == 3 and status["layout"]["changing_to"] is None)

        await eventually(grown, "all three are in the layout", 40)
        await write_all(gateway, 0, etags)
    await whole(cluster)
    for daemon in (three, two, one):
        assert await daemon.stop() == 0
    harm(cluster)
    one.start()
    async with Gateway(one.url) as gateway:
        await eventually(lambda: speaks(gateway), "it answers", NOTICE_DEADLINE_S)
        end = time.monotonic() + ALONE_S
        while time.monotonic() < end:
            (await gateway.ask("GET", "/readyz")).problem(503, "not-ready")
            await asyncio.sleep(0.1)
    two.start()
    three.start()
    await cluster.wait_ready()
    await whole(cluster)
    for name in cluster.names:
        async with Gateway(cluster[name].url) as gateway:
            assert await cluster_id(gateway) == before
            await check_all(gateway, 0, etags)


async def test_registers_of_another_cluster_are_refused(make_cluster: MakeCluster) -> None:
    first, second = await make_cluster(1), await make_cluster(1)
    for cluster in (first, second):
        assert await cluster["n1"].stop() == 0
    (first["n1"].data / DATABASE_NAME).write_bytes((second["n1"].data / DATABASE_NAME).read_bytes())
    first["n1"].start()
    assert await first["n1"].exit_code() == 2
    assert "belongs to cluster" in first["n1"].log_text()
