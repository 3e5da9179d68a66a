"""Chunk puts and register updates through one coordinator that is a member of the cluster: a whole daemon inside this process.

`chunk_puts` and `register_updates` are to be called in a process of its own, while the daemon of that name is stopped.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

import uvloop

from benchmark.testbed import cpu_s
from cluster.errors import HoldfastError
from cluster.peer.core import PeerCore
from cluster.register.key import RegisterKey
from node import logs
from node.config import load
from node.daemon import Daemon

CHUNK_BYTES = 4096
VALUE_BYTES = 256
"""About a volume's head with its map inside."""

KEYS_PER_WORKER = 16
"""Registers that each worker goes round; 64 workers then touch most partitions."""

REPLICAS = 3
READY_DEADLINE_S = 30.0


@dataclass(frozen=True, slots=True)
class Rate:
    """Operations a second, and the processor seconds that other processes spent for one."""

    per_s: float
    elsewhere_cpu_s: float


Work = Callable[[], Awaitable[object]]
"""One operation of one worker, different each time."""


def chunk_puts(
    arguments: Sequence[str], concurrency: int, seconds: float, runs: int, elsewhere: Sequence[int] = ()
) -> list[Rate]:
    """Chunks of 4 KiB stored, for each run; ``elsewhere``: the other daemons' processes."""
    base = os.urandom(CHUNK_BYTES - 24)

    def work(core: PeerCore, worker: int) -> Work:
        run = os.urandom(8)
        numbers = itertools.count()

        async def put() -> None:
            content = b"".join((run, worker.to_bytes(8, "big"), next(numbers).to_bytes(8, "big"), base))
            await core.chunks.put(content, referrer=run * 2, replicas=REPLICAS)

        return put

    return uvloop.run(_measure(arguments, work, concurrency, seconds, runs, elsewhere))


def register_updates(
    arguments: Sequence[str], concurrency: int, seconds: float, runs: int, elsewhere: Sequence[int] = ()
) -> list[Rate]:
    """Registers set, for each run."""

    def work(core: PeerCore, worker: int) -> Work:
        value = os.urandom(VALUE_BYTES - 8)
        numbers = itertools.count()

        async def update() -> None:
            number = next(numbers)
            name = f"{worker}/{number % KEYS_PER_WORKER}".encode()
            await core.registers.put(RegisterKey("bench", name, b""), number.to_bytes(8, "big") + value)

        return update

    return uvloop.run(_measure(arguments, work, concurrency, seconds, runs, elsewhere))


async def _measure(
    arguments: Sequence[str],
    work: Callable[[PeerCore, int], Work],
    concurrency: int,
    seconds: float,
    runs: int,
    elsewhere: Sequence[int],
) -> list[Rate]:
    logs.set_up("error", "console")
    environment: Mapping[str, str] = {}
    daemon = Daemon(load(arguments, environment))
    running = asyncio.create_task(daemon.run())
    try:
        core = await _ready(daemon, running)
        works = [work(core, worker) for worker in range(concurrency)]
        # What each worker goes round is there before the clock starts, and every partition has its leader.
        await _until_done(works, KEYS_PER_WORKER, None)
        rates: list[Rate] = []
        for _ in range(runs):
            spent, start = sum(map(cpu_s, elsewhere)), time.perf_counter()
            done = await _until_done(works, None, start + seconds)
            per_s = done / (time.perf_counter() - start)
            rates.append(Rate(per_s, (sum(map(cpu_s, elsewhere)) - spent) / done))
    finally:
        daemon.stop()
        await running
    return rates


async def _ready(daemon: Daemon, running: asyncio.Task[None]) -> PeerCore:
    """The core once it takes writes."""
    deadline = time.monotonic() + READY_DEADLINE_S
    while not running.done():
        core = daemon.core
        if core is not None and core.installed.state is not None:
            try:
                for number in range(64):
                    await core.registers.put(RegisterKey("bench", f"ready/{number}".encode(), b""), b"")
            except HoldfastError:
                if time.monotonic() > deadline:
                    raise
            else:
                return core
        await asyncio.sleep(0.05)
    await running
    raise AssertionError("the coordinator has stopped")


async def _until_done(works: Sequence[Work], times: int | None, end: float | None) -> int:
    """Run all at once, each so many times or until the end; how often they ran."""
    done = 0

    async def worker(work: Work) -> None:
        nonlocal done
        number = 0
        while (times is None or number < times) and (end is None or time.perf_counter() < end):
            await work()
            number += 1
            done += 1

    async with asyncio.TaskGroup() as group:
        for work in works:
            group.create_task(worker(work))
    return done
