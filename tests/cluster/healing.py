"""Waiting until a cluster of daemons is whole again, and looking at whether replicas are really equal."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from tests.cluster.gateway import Gateway
from tests.cluster.harness import ClusterProcess, eventually
from tests.cluster.inspector import Inspector

QUICK_REPAIR = {
    "HOLDFAST_REPAIR_INTERVAL_S": "3",
    "HOLDFAST_REPAIR_PERSIST_S": "0.5",
    "HOLDFAST_CHUNK_GRACE_S": "1",
    "HOLDFAST_RETIRED_GRACE_S": "5",
    "HOLDFAST_TOMBSTONE_GRACE_S": "2",
    "HOLDFAST_SWEEP_AGE_S": "20",
    "HOLDFAST_SWEEP_PERIOD_S": "30",
}
"""Settings under which what takes minutes or hours in earnest takes seconds."""


AMOUNTS = ("copies_missing", "keys_diverged", "chunks_diverged", "handoffs")

REDUNDANT = ("copies_missing", "keys_diverged", "refilling")
"""What has to be nothing before another node may be lost: copies in the wrong place hurt nobody."""

LOOK_S = 0.25
"""An answer to how repair goes costs each node some milliseconds."""


async def wait_redundant(cluster: ClusterProcess, deadline_s: float) -> None:
    """Wait until every node says that no copy is missing, no register is behind and nobody is being refilled."""

    async def is_redundant(document: dict[str, Any], gateway: Gateway) -> bool:
        document["refilling"] = sum(node["refilling_partitions"] or 0 for node in document["nodes"])
        return all(node["answered"] for node in document["nodes"]) and not any(document[amount] for amount in REDUNDANT)

    await _all_say(cluster, "all copies are there", is_redundant, deadline_s)


async def wait_whole(cluster: ClusterProcess, deadline_s: float = 90.0) -> dict[str, Any]:
    """Wait until every node says that the cluster is healthy and nothing is missing, diverged or kept elsewhere; the last answer."""

    async def is_whole(document: dict[str, Any], gateway: Gateway) -> bool:
        health = (await gateway.document("/v1/cluster"))["health"]
        return health == "healthy" and not any(document[amount] for amount in AMOUNTS)

    return await _all_say(cluster, "the cluster is whole", is_whole, deadline_s)


async def _all_say(
    cluster: ClusterProcess,
    what: str,
    is_so: Callable[[dict[str, Any], Gateway], Awaitable[bool]],
    deadline_s: float,
) -> dict[str, Any]:
    """Wait until ``is_so`` of what each node says of repair; what the first of them said last."""

    async def by(name: str) -> dict[str, Any]:
        last: dict[str, Any] = {}

        async def said() -> bool:
            nonlocal last
            async with Gateway(cluster[name].url) as gateway:
                answer = await gateway.ask("GET", "/v1/repair")
                if answer.status != 200:
                    return False
                last = answer.json()
                return await is_so(last, gateway)

        try:
            await eventually(said, f"{what}, says {name}", deadline_s, LOOK_S)
        except BaseException:
            print(name, last)
            raise
        return last

    return (await asyncio.gather(*(by(name) for name in cluster.names)))[0]


async def wait_equal(cluster: ClusterProcess, deadline_s: float = 90.0) -> None:
    """Wait until the Merkle roots of all replicas agree, in all partitions, and nobody holds what belongs elsewhere."""
    async with Inspector(cluster) as inspector:
        last: list[str] = []

        async def equal() -> bool:
            nonlocal last
            last = await inspector.differences(*cluster.names)
            return not last

        try:
            await eventually(equal, "all replicas have equal roots", deadline_s)
        except BaseException:
            print(f"{len(last)} differences:", *last[:20], sep="\n")
            raise
