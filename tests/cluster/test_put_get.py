"""Volumes through real daemons, while daemons die: nothing acknowledged is lost, no wrong byte is read."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from client import Holdfast
from client.errors import Conflict, ContentChanged, HoldfastError, Invalid, NotFound, RangeNotSatisfiable
from tests.cluster.conftest import MakeCluster
from tests.cluster.harness import ClusterProcess, eventually

MIB = 1 << 20


def content_of(seed: str, size: int) -> bytes:
    """Bytes that tell by themselves which version they belong to, and where in it."""
    blocks = -(-size // 64)
    return b"".join(hashlib.sha512(f"{seed} {index}".encode()).digest() for index in range(blocks))[:size]


async def pieces(*blocks: bytes) -> AsyncIterator[bytes]:
    for block in blocks:
        yield block


async def test_every_node_answers_for_all(cluster: ClusterProcess, tmp_path: Path) -> None:
    """The commands of a volume's life, each through another node than the one before."""
    data = os.urandom(9 * MIB + 4711)
    clients = [cluster.client(name) for name in cluster.names]
    async with clients[0] as c0, clients[1] as c1, clients[2] as c2, clients[3] as c3, clients[4] as c4:
        assert (await c0.create("disk", 4 * MIB)).size == 4 * MIB
        with pytest.raises(Conflict):
            await c1.create("disk", 4 * MIB)
        assert await c1.get("disk") == bytes(4 * MIB)
        first = await c2.put("disk", data)
        assert await c3.get("disk") == data
        assert (await c4.show("disk")).etag == first.etag
        assert await c4.get_range("disk", 4 * MIB - 10, 20) == data[4 * MIB - 10 : 4 * MIB + 10]
        second = await c0.put_range("disk", 5 * MIB + 1, b"patched")
        patched = data[: 5 * MIB + 1] + b"patched" + data[5 * MIB + 8 :]
        assert await c1.get("disk") == patched
        with pytest.raises(Conflict):
            await c2.put("disk", b"late", if_match=first.etag)
        grown = await c3.resize("disk", 10 * MIB, if_match=second.etag)
        assert await c4.get("disk") == patched + bytes(10 * MIB - len(patched))
        with pytest.raises(Invalid):
            await c0.resize("disk", 1)
        with pytest.raises(RangeNotSatisfiable):
            await c0.get_range("disk", 10 * MIB, 1)
        with pytest.raises(Conflict):
            await c1.delete("disk", if_match=first.etag)
        await c1.get_file("disk", tmp_path / "copy", if_match=grown.etag)
        assert (tmp_path / "copy").read_bytes()[: len(patched)] == patched
        await c2.delete("disk")
        for client in (c0, c1, c2, c3, c4):
            with pytest.raises(NotFound):
                await client.show("disk")
        await asyncio.gather(
            *(client.put(f"v{index}", b"x" * index) for index, client in enumerate([c0, c1, c2, c3, c4]))
        )
        assert [volume.name async for volume in c0.list(prefix="v")] == ["v0", "v1", "v2", "v3", "v4"]


async def test_put_that_is_given_up_changes_nothing(cluster: ClusterProcess) -> None:
    async def breaks_off() -> AsyncIterator[bytes]:
        yield b"n" * (6 * MIB)
        raise KeyError("enough")

    async with cluster.client() as holdfast:
        before = await holdfast.put("v", b"o" * MIB)
        with pytest.raises(KeyError, match="enough"):
            await holdfast.put("v", breaks_off())
        async with aiohttp.ClientSession() as session:
            # fewer bytes than announced: the client stalls, gives up and closes the connection
            with pytest.raises((aiohttp.ClientError, TimeoutError)):
                await session.put(
                    f"{cluster.urls()[0]}/v1/volumes/v/data",
                    data=pieces(b"s" * (MIB - 1)),
                    headers={"Content-Length": str(MIB)},
                    timeout=aiohttp.ClientTimeout(total=1),
                )
        assert (await holdfast.show("v")).etag == before.etag
        assert await holdfast.get("v") == b"o" * MIB


async def test_a_node_is_killed_under_load(cluster: ClusterProcess) -> None:
    """8 writers and 8 readers through all gateways; the gateway that dies takes requests with it, fail-over hides it."""
    size = 3 * MIB + 17
    writers = readers = 8
    acknowledged: dict[str, int] = {f"v{index}": 0 for index in range(writers)}
    stop = asyncio.Event()
    counts = {"put": 0, "get": 0}

    async with cluster.client() as holdfast:
        for name in acknowledged:
            await holdfast.put(name, content_of(f"{name} 0", size))

        async def write(name: str) -> None:
            while not stop.is_set():
                version = acknowledged[name] + 1
                await holdfast.put(name, content_of(f"{name} {version}", size))
                acknowledged[name] = version
                counts["put"] += 1

        async def read(name: str) -> None:
            while not stop.is_set():
                oldest = acknowledged[name]
                try:
                    data = await holdfast.get(name)
                except ContentChanged:
                    continue  # broken off, and overwritten before it could go on: an honest answer
                newest = acknowledged[name] + 1
                assert any(data == content_of(f"{name} {v}", size) for v in range(oldest, newest + 1)), (
                    name,
                    oldest,
                    newest,
                )
                counts["get"] += 1

        async with asyncio.TaskGroup() as group:
            for index in range(writers):
                group.create_task(write(f"v{index}"))
            for index in range(readers):
                group.create_task(read(f"v{index % writers}"))
            await eventually(lambda: min(counts.values()) >= writers, "load is under way", 60)
            before = dict(counts)
            cluster.kill("n3")
            await eventually(
                lambda: counts["put"] >= before["put"] + 3 * writers and counts["get"] >= before["get"] + 3 * readers,
                "reads and writes go on without the node",
                60,
            )
            stop.set()
        for name, version in acknowledged.items():
            assert await holdfast.get(name) == content_of(f"{name} {version}", size)
        await cluster.start("n3")
        async with cluster.client("n3") as returned:
            for name, version in acknowledged.items():
                assert await returned.get(name) == content_of(f"{name} {version}", size)


async def test_all_nodes_are_killed_under_load(make_cluster: MakeCluster) -> None:
    """What was acknowledged is there after everything died at once; what was not is old or new, never in between."""
    cluster = await make_cluster(5)
    size = MIB + 5
    acknowledged: dict[str, int] = {}
    tried: dict[str, int] = {}

    async def write(holdfast: Holdfast, name: str) -> None:
        for version in range(1000):
            tried[name] = version
            await holdfast.put(name, content_of(f"{name} {version}", size))
            acknowledged[name] = version

    async with cluster.client() as holdfast:
        names = [f"v{index}" for index in range(8)]
        writers = [asyncio.create_task(write(holdfast, name)) for name in names]
        await eventually(lambda: min(acknowledged.get(name, -1) for name in names) >= 1, "all have written twice", 60)
        cluster.kill()
        for writer in writers:
            writer.cancel()
        for outcome in await asyncio.gather(*writers, return_exceptions=True):
            assert isinstance(outcome, (asyncio.CancelledError, HoldfastError)), outcome
    await cluster.start()
    async with cluster.client() as holdfast:
        for name in names:
            data = await holdfast.get(name)
            possible = range(acknowledged[name], tried[name] + 1)
            assert any(data == content_of(f"{name} {version}", size) for version in possible), (name, possible)
