"""How fast repair is and what users feel of it: a refill beside a plain copy, users beside a refill."""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from pathlib import Path
from typing import Any

from benchmark import large_load, small_load
from benchmark.figure import Aim, Figure
from benchmark.large_load import Put
from benchmark.plan import MIB, Plan, delete_volumes, volume_path
from benchmark.process import in_process
from benchmark.testbed import Testbed
from client.errors import HoldfastError

FILLERS = 4
"""Volumes that are stored before a node is emptied."""

POLL_S = 0.1
WHOLE_DEADLINE_S = 600.0
COPY_BYTES = MIB


async def refill(testbed: Testbed, plan: Plan) -> list[Figure]:
    """A node's disk is emptied; how fast its copies come back, beside a plain copy of as many bytes with fdatasync, and what users
    feel meanwhile beside what they felt before."""
    speed = Figure("refill of an emptied node", "MB/s", Aim(0.3, of_floor=True))
    felt = Figure("users' p99 while a node is refilled", "ms", Aim(2, of_floor=True, at_most=True))
    names = [f"bench-fill-{n}" for n in range(FILLERS)]
    await delete_volumes(testbed, [*names, "bench-felt"])
    await in_process(large_load.run, [Put(testbed.gateway, volume_path(name), plan.volume_bytes) for name in names])
    await in_process(large_load.run, [Put(testbed.gateway, volume_path("bench-felt"), 16 * MIB)])
    for run in range(plan.runs):
        plan.note(f"refill, run {run + 1}")
        await _whole(testbed)
        log_bytes = testbed.log_bytes()
        megabytes = log_bytes / 1e6
        floor = megabytes / await asyncio.to_thread(_copy, testbed.newest_logs(), plan.directory / "floor-copy")
        await testbed.empty()
        start = time.perf_counter()
        await _whole(testbed)
        speed.add(testbed.log_bytes() / 1e6 / (time.perf_counter() - start), floor)
        plan.note(f"refill with users beside it, run {run + 1}")
        load = ("bench-felt", 16 * MIB, "bench-felt-small", plan.seconds)
        before = await in_process(small_load.slowest_hundredth, testbed.gateway, volume_path(load[0]), *load[1:])
        await testbed.empty()
        during = await in_process(small_load.slowest_hundredth, testbed.gateway, volume_path(load[0]), *load[1:])
        felt.add(during, before)
        await _whole(testbed)
    await delete_volumes(testbed, [*names, "bench-felt"])
    return [speed, felt]


async def _whole(testbed: Testbed) -> None:
    end = time.monotonic() + WHOLE_DEADLINE_S
    async with testbed.cluster.client() as client:
        while True:
            try:
                document: dict[str, Any] = await client.repair()
            except HoldfastError:
                document = {}
            if (
                document
                and not document["copies_missing"]
                and not any(n["refilling_partitions"] for n in document["nodes"])
            ):
                return
            if time.monotonic() > end:
                raise RuntimeError(f"the cluster is not whole after {WHOLE_DEADLINE_S:.0f} s: {document}")
            await asyncio.sleep(POLL_S)


def _copy(sources: list[Path], target: Path) -> float:
    """Seconds to copy files with plain reads and writes, each synced at its end."""
    target.mkdir()
    start = time.perf_counter()
    for number, source in enumerate(sources):
        with source.open("rb") as reading, (target / str(number)).open("wb") as writing:
            while piece := reading.read(COPY_BYTES):
                writing.write(piece)
            writing.flush()
            os.fdatasync(writing.fileno())
    took = time.perf_counter() - start
    shutil.rmtree(target)
    return took
