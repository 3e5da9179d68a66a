"""What is measured, and how: each function gives the figures of one subject, over several runs.

A floor is measured in the same run as the figure it belongs to, right before it, since the machine's speed changes from minute to
minute.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack

from bench_rpc import measure_calls, measure_payloads

from benchmark import coordinator, floor, healing, in_step, large_load, small_load, tree_cost
from benchmark.coordinator import Rate
from benchmark.figure import Aim, Figure
from benchmark.large_load import Address, Copies, Get, Put
from benchmark.plan import MIB, Plan, delete_volumes, volume_path
from benchmark.process import in_process, serving
from benchmark.testbed import Testbed

COPIES = 3
MANY = 8
"""Large transfers at a time, beside single ones."""

SMALL_CONCURRENCY = 32
COORDINATOR_CONCURRENCY = 64
RANGE_VOLUME_BYTES = 64 * MIB
"""Of which 4 KiB ranges are read: more than a node's share of any cache in the daemon, less than the page cache."""

SETTLE_S = 3.0
"""Between the cluster's being ready and its being called idle."""

REWRITTEN_VOLUMES = 8
"""Names that each connection's small PUTs go round."""


async def idle(testbed: Testbed, plan: Plan) -> list[Figure]:
    memory = Figure("idle node: resident memory", "MiB", Aim(80, at_most=True))
    processor = Figure("idle node: CPU", "% of a core", Aim(2, at_most=True))
    await asyncio.sleep(SETTLE_S)
    for run in range(plan.runs):
        plan.note(f"idle nodes, run {run + 1}")
        resident, busy = await testbed.idle(plan.idle_s)
        memory.add(resident)
        processor.add(busy)
    return [memory, processor]


async def start(testbed: Testbed, plan: Plan) -> list[Figure]:
    figure = Figure("daemon start until ready", "s", Aim(1, at_most=True))
    for run in range(plan.runs):
        plan.note(f"daemon start, run {run + 1}")
        figure.add(await testbed.restart())
    return [figure]


async def rpc(testbed: Testbed, plan: Plan) -> list[Figure]:
    calls = Figure("RPC, no payload, 256 in flight", "calls/s")
    payloads = Figure("RPC, 4 MiB payloads, 8 in flight", "MB/s")
    for run in range(plan.runs):
        plan.note(f"RPC, run {run + 1}")
        calls.add((await measure_calls(256, seconds=plan.seconds)).calls_per_s)
        payloads.add((await measure_payloads(8, seconds=plan.seconds)).megabytes_per_s)
    return [calls, payloads]


async def put(testbed: Testbed, plan: Plan) -> list[Figure]:
    """PUTs of new volumes beside their floor. The receivers write into the same file system as the daemons."""
    figures = []
    async with AsyncExitStack() as stack:
        receivers = [
            Address(
                "127.0.0.1", await stack.enter_async_context(serving(floor.receive, str(plan.directory / f"floor{n}")))
            )
            for n in range(COPIES)
        ]
        for concurrency in (1, MANY):
            figure = Figure(
                f"PUT {plan.volume}, {concurrency} at a time",
                "MB/s",
                Aim(0.5, of_floor=True) if concurrency == MANY else None,
            )
            megabytes = concurrency * plan.volume_bytes / 1e6
            for run in range(plan.runs):
                plan.note(f"PUT, {concurrency} at a time, run {run + 1}: floor")
                copies = [Copies(tuple(receivers), plan.volume_bytes)] * concurrency
                least = await in_process(large_load.run, copies)
                await delete_volumes(testbed, [_name(n) for n in range(concurrency)])
                plan.note(f"PUT, {concurrency} at a time, run {run + 1}")
                figure.add(
                    megabytes / await in_process(large_load.run, _puts(testbed, plan, concurrency)), megabytes / least
                )
            figures.append(figure)
    for n in range(COPIES):
        shutil.rmtree(plan.directory / f"floor{n}")
    return figures


async def get(testbed: Testbed, plan: Plan) -> list[Figure]:
    """GETs of whole volumes, from the page cache as the floor's are."""
    figures = []
    plan.note("GET: volumes to read")
    await delete_volumes(testbed, [_name(n) for n in range(MANY)])
    await in_process(large_load.run, _puts(testbed, plan, MANY))
    async with serving(floor.stream, str(plan.directory / "floor-stream"), plan.volume_bytes) as port:
        for concurrency in (1, MANY):
            figure = Figure(
                f"GET {plan.volume}, {concurrency} at a time",
                "MB/s",
                Aim(0.6, of_floor=True) if concurrency == MANY else None,
            )
            megabytes = concurrency * plan.volume_bytes / 1e6
            for run in range(plan.runs):
                plan.note(f"GET, {concurrency} at a time, run {run + 1}: floor")
                least = await in_process(
                    large_load.run, [Get(Address("127.0.0.1", port), "/", plan.volume_bytes)] * concurrency
                )
                plan.note(f"GET, {concurrency} at a time, run {run + 1}")
                reads = [Get(testbed.gateway, volume_path(_name(n)), plan.volume_bytes) for n in range(concurrency)]
                figure.add(megabytes / await in_process(large_load.run, reads), megabytes / least)
            figures.append(figure)
    await delete_volumes(testbed, [_name(n) for n in range(MANY)])
    return figures


async def small_get(testbed: Testbed, plan: Plan) -> list[Figure]:
    figure = Figure(f"GET 4 KiB range, {SMALL_CONCURRENCY} at a time", "requests/s", Aim(4000))
    await delete_volumes(testbed, ["bench-ranges"])
    await in_process(large_load.run, [Put(testbed.gateway, volume_path("bench-ranges"), RANGE_VOLUME_BYTES)])
    for run in range(plan.runs):
        plan.note(f"4 KiB range GETs, run {run + 1}")
        figure.add(
            await in_process(
                small_load.gets,
                testbed.gateway,
                volume_path("bench-ranges"),
                RANGE_VOLUME_BYTES,
                SMALL_CONCURRENCY,
                plan.seconds,
            )
        )
    return [figure]


async def small_put(testbed: Testbed, plan: Plan) -> list[Figure]:
    figures = []
    for what, volumes in (("over an earlier one", REWRITTEN_VOLUMES), ("as a new volume", 0)):
        figure = Figure(f"PUT 4 KiB {what}, {SMALL_CONCURRENCY} at a time", "requests/s")
        for run in range(plan.runs):
            plan.note(f"4 KiB PUTs {what}, run {run + 1}")
            figure.add(
                await in_process(
                    small_load.puts, testbed.gateway, "bench-small", volumes, SMALL_CONCURRENCY, plan.seconds
                )
            )
        figures.append(figure)
    return figures


async def chunk(testbed: Testbed, plan: Plan) -> list[Figure]:
    figure = Figure(f"4 KiB chunk puts, {COORDINATOR_CONCURRENCY} at a time", "chunks/s", Aim(4000))
    return [await _coordinate(testbed, plan, figure, coordinator.chunk_puts)]


async def register(testbed: Testbed, plan: Plan) -> list[Figure]:
    figure = Figure(f"register updates, {COORDINATOR_CONCURRENCY} at a time", "updates/s", Aim(3000))
    return [await _coordinate(testbed, plan, figure, coordinator.register_updates)]


async def _coordinate(testbed: Testbed, plan: Plan, figure: Figure, measure: Callable[..., list[Rate]]) -> Figure:
    plan.note(f"{figure.name}: {plan.runs} runs")
    with testbed.place_for_member() as arguments:
        for rate in await in_process(measure, arguments, COORDINATOR_CONCURRENCY, plan.seconds, plan.runs):
            figure.add(rate.per_s)
    await testbed.wait_ready()
    return figure


Measurement = Callable[[Testbed, Plan], Awaitable[list[Figure]]]

MEASUREMENTS: Mapping[str, Measurement] = {
    "idle": idle,
    "start": start,
    "rpc": rpc,
    "chunk": chunk,
    "register": register,
    "small-get": small_get,
    "small-put": small_put,
    "put": put,
    "get": get,
    "trees": tree_cost.trees,
    "in-step": in_step.in_step,
    "refill": healing.refill,
}
"""By the name that ``--only`` takes, in the order in which they run: what is idle first, what fills disks last."""


def _name(number: int) -> str:
    return f"bench-{number}"


def _puts(testbed: Testbed, plan: Plan, concurrency: int) -> list[Put]:
    return [Put(testbed.gateway, volume_path(_name(n)), plan.volume_bytes) for n in range(concurrency)]
