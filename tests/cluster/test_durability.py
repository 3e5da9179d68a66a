"""What was acknowledged was on the disks before: the order of system calls, and the death of everything at once."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from blake3 import blake3

from tests.cluster.conftest import MakeCluster
from tests.cluster.content import KIB
from tests.cluster.gateway import Gateway
from tests.cluster.harness import require_tool
from tests.cluster.load import Load
from tests.cluster.system_calls import SystemCall, system_calls, trace

ROUNDS = int(os.environ.get("HOLDFAST_TEST_ROUNDS", "2"))
"""How often everything is killed; a campaign takes a hundred."""

QUORUM = 2


def synced(calls: Sequence[SystemCall], wrote: Callable[[SystemCall], bool]) -> float | None:
    """When what some call wrote was synced first, None when it was not."""
    moments = [
        sync.left
        for write in calls
        if wrote(write)
        for sync in calls
        if sync.name in {"fdatasync", "fsync"} and sync.path == write.path and sync.entered >= write.left
    ]
    return min(moments, default=None)


async def test_the_answer_comes_after_fdatasync(make_cluster: MakeCluster, tmp_path: Path) -> None:
    """All system calls of all three replicas: when 201 goes to the client, the bytes and the head are synced on two of them."""
    require_tool("strace")
    cluster = await make_cluster(3, start=False)
    records = {name: tmp_path / f"{name}.strace" for name in cluster.names}
    for name, record in records.items():
        trace(cluster[name], record)
    await cluster.start()
    volumes = [f"traced-{index}" for index in range(8)]
    blocks = {name: os.urandom(20 * KIB) for name in volumes}
    async with Gateway(cluster["n2"].url) as gateway:
        # alone first, then together: a commit that several share answers none of them early
        assert (await gateway.put(volumes[0], blocks[volumes[0]])).status == 201
        answers = await asyncio.gather(*(gateway.put(name, blocks[name]) for name in volumes[1:]))
        assert [answer.status for answer in answers] == [201] * len(answers)
    for name in cluster.names:
        assert await cluster[name].stop() == 0
    calls = {name: list(system_calls(record)) for name, record in records.items()}

    def moments(what: str, volume: str, wrote: Callable[[SystemCall], bool]) -> list[float]:
        found = [moment for name in calls if (moment := synced(calls[name], wrote)) is not None]
        assert len(found) >= QUORUM, f"{what} of {volume} was synced on {len(found)} replicas"
        return sorted(found)

    for volume in volumes:
        written = volume.encode()
        [answered] = [call.entered for call in calls["n2"] if call.carries(b"HTTP/1.1 201") and call.carries(written)]
        start = blocks[volume][:64]
        chunk = moments("the chunk", volume, lambda call: "/chunks/" in call.path and call.carries(start))  # noqa: B023
        hashed = blake3(
            blocks[volume]
        ).digest()  # of the chunk: the head that claims the volume's name before does not know it
        head = moments("the head", volume, lambda call: "registers.db" in call.path and call.carries(hashed))  # noqa: B023
        assert chunk[QUORUM - 1] < answered, f"{volume}: answered {answered}, chunk synced at {chunk}"
        assert head[QUORUM - 1] < answered, f"{volume}: answered {answered}, head synced at {head}"
        # and the head only points to what is there already
        assert chunk[QUORUM - 1] < head[QUORUM - 1]


async def test_all_nodes_are_killed_again_and_again(make_cluster: MakeCluster) -> None:
    """kill -9 of all five at once in the middle of writing, several times: everything acknowledged is there each time."""
    cluster = await make_cluster(5)
    for number in range(ROUNDS):
        async with cluster.client() as holdfast:
            load = Load([holdfast], writers=8, readers=2, size=300 * KIB, outages=True, prefix=f"round{number}-")

            try:
                async with load.running():
                    await load.goes_on(40 + 7 * number)
                    cluster.kill()
                    raise KilledError  # noqa: TRY301 - ends the load at once
            except* KilledError:
                pass
        await cluster.start()
        async with cluster.client() as holdfast:
            await load.check(holdfast)


class KilledError(Exception):
    """Everything was killed on purpose."""
