"""How fast the wire is: two processes over loopback, one event loop (uvloop) each.

    .venv/bin/python scripts/bench_rpc.py

`measure_calls` and `measure_payloads` are for other benchmarks to call; each starts and ends the answering process by itself.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import random
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection

import uvloop

from cluster.doors.clock import SystemClock
from cluster.doors.network import TcpNetwork
from cluster.rpc.handshake import Hello
from cluster.rpc.message import Buffer, Request, message
from cluster.rpc.node import RpcNode
from cluster.rpc.service import Handlers, IncomingCall


@message
@dataclass(frozen=True, slots=True)
class Measured:
    number: int


@message("bench.measure", reply=Measured)
@dataclass(frozen=True, slots=True)
class Measure(Request[Measured]):
    number: int
    key: bytes
    give_back: bool = False


@dataclass(frozen=True, slots=True)
class Result:
    calls_per_s: float
    megabytes_per_s: float
    """Payload bytes in one direction, in units of 10^6."""
    caller_us: float
    """CPU time of the calling process for one call."""


def answer(request: Measure, call: IncomingCall) -> Measured | tuple[Measured, Buffer]:
    return (Measured(request.number), call.payload) if request.give_back else Measured(request.number)


async def answer_in_task(request: Measure, call: IncomingCall) -> Measured:
    return Measured(request.number)


def make_node(name: str, handlers: Handlers) -> RpcNode:
    return RpcNode(
        me=Hello(name, name.encode().ljust(8), 1),
        secret=b"bench",
        handlers=handlers,
        network=TcpNetwork(),
        clock=SystemClock(),
        random=random.Random(),  # noqa: S311 - no secret of anybody hangs on a benchmark's nonces
        layout_version=lambda: 1,
        check_hello=lambda hello: None,
    )


def serve(port: Connection, in_task: bool) -> None:
    """The answering process."""

    async def main() -> None:
        handlers = Handlers()
        handlers.register(Measure, answer_in_task if in_task else answer)
        async with make_node("answerer", handlers) as node:
            await node.listen("127.0.0.1", 0)
            port.send(node.port)
            await asyncio.get_running_loop().create_future()

    uvloop.run(main())


async def measure_calls(
    concurrency: int = 256, payload_size: int = 0, *, seconds: float = 3, in_task: bool = False
) -> Result:
    """Calls with `payload_size` bytes each, so many at a time; `in_task`: the handler is a coroutine."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=serve, args=(there, in_task), daemon=True)
    process.start()
    try:
        port: int = await asyncio.to_thread(here.recv)
        async with make_node("caller", Handlers()) as node:
            node.set_address("answerer", "127.0.0.1", port)
            return await _measure(node, concurrency, bytes(payload_size), seconds)
    finally:
        process.terminate()
        process.join()


async def measure_payloads(concurrency: int = 8, payload_size: int = 4 * 1024 * 1024, *, seconds: float = 3) -> Result:
    """Large payloads to the other process."""
    return await measure_calls(concurrency, payload_size, seconds=seconds)


async def _measure(node: RpcNode, concurrency: int, payload: bytes, seconds: float) -> Result:
    calls = 0
    end = 0.0

    async def worker(number: int) -> None:
        nonlocal calls
        while time.perf_counter() < end:
            await node.call("answerer", Measure(number, b"0123456789abcdef"), payload, deadline_s=10)
            calls += 1

    await node.call("answerer", Measure(0, b""), payload, deadline_s=10)
    start, start_cpu = time.perf_counter(), time.process_time()
    end = start + seconds
    async with asyncio.TaskGroup() as workers:
        for number in range(concurrency):
            workers.create_task(worker(number))
    elapsed, cpu = time.perf_counter() - start, time.process_time() - start_cpu
    return Result(calls / elapsed, calls * len(payload) / elapsed / 1e6, cpu / calls * 1e6)


async def main() -> None:
    print(f"{'':40} {'calls/s':>10} {'MB/s':>10} {'caller us/call':>16}")
    for label, concurrency, size, in_task in (
        ("no payload, 256 in flight", 256, 0, False),
        ("no payload, 256 in flight, in a task", 256, 0, True),
        ("no payload, 1 in flight", 1, 0, False),
        ("4 KiB, 256 in flight", 256, 4096, False),
        ("4 KiB, 256 in flight, in a task", 256, 4096, True),
        ("256 KiB, 32 in flight", 32, 256 * 1024, False),
        ("4 MiB, 1 in flight", 1, 4 * 1024 * 1024, False),
        ("4 MiB, 8 in flight", 8, 4 * 1024 * 1024, False),
    ):
        result = await measure_calls(concurrency, size, in_task=in_task)
        print(f"{label:40} {result.calls_per_s:10,.0f} {result.megabytes_per_s:10,.0f} {result.caller_us:16.1f}")


if __name__ == "__main__":
    uvloop.run(main())
