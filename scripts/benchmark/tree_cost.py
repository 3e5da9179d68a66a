"""What Merkle trees cost a small write: the store's put with them and without, and the whole put of a daemon that is a replica."""

from __future__ import annotations

import asyncio
import os
import shutil
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from random import Random
from unittest.mock import patch

import uvloop
from blake3 import blake3

from benchmark import coordinator
from benchmark.figure import Aim, Figure
from benchmark.in_step import make_store, reference_to
from benchmark.plan import Plan
from benchmark.process import in_process
from benchmark.testbed import NODES, Testbed
from cluster.merkle.digest_tree import DigestTree
from cluster.merkle.identity import CHUNK_LEAF_BITS, chunk_leaf, reference_digest
from node import memory
from node.storage import chunk_state

UPDATES = 200_000
PUTS_AT_ONCE = 64
WRITE_BYTES = 4096
WRITES = 20_000
"""Small writes to each store whose trees are on or off; enough for the index to be written, too."""

ROUNDS = 5
"""Stores of each kind, in turns, so that a machine that gets slower slows both."""


async def trees(testbed: Testbed, plan: Plan) -> list[Figure]:
    """Updates of a Merkle tree alone; their share of a replica's whole 4 KiB put (frame, checks, log, index, answer), and of what the
    store does of it."""
    updates = Figure("Merkle tree updates", "updates/s")
    whole = Figure("Merkle trees' share of a replica's 4 KiB put, CPU", "%", Aim(10, at_most=True))
    alone = Figure("Merkle trees' share of the store's part of it, CPU", "%")
    for run in range(plan.runs):
        plan.note(f"Merkle tree updates, run {run + 1}")
        updates.add(await in_process(update_rate))
        plan.note(f"writes with and without trees, run {run + 1}")
        directory = plan.directory / f"trees-{run}"
        directory.mkdir()
        kept, without = await in_process(costs, str(directory))
        shutil.rmtree(directory)
        alone.add(100 * (1 - without / kept))
        with testbed.place_for_member() as arguments:
            (rate,) = await in_process(
                coordinator.chunk_puts, arguments, PUTS_AT_ONCE, plan.seconds, 1, testbed.running_pids()
            )
        await testbed.wait_ready()
        # The member holds its share of the copies itself: what the other daemons spent is for theirs.
        copies = coordinator.REPLICAS * (NODES - 1) / NODES
        whole.add(100 * (kept - without) / (rate.elsewhere_cpu_s / copies))
    return [updates, whole, alone]


# In processes of their own


def update_rate() -> float:
    rng = Random(1)  # noqa: S311 - any ids will do
    references = [(rng.randbytes(32), rng.randbytes(16)) for _ in range(UPDATES)]
    tree = DigestTree(CHUNK_LEAF_BITS)
    start = time.perf_counter()
    for chunk, referrer in references:
        tree.change(chunk_leaf(chunk), reference_digest(chunk, referrer, 3), 1)
    return UPDATES / (time.perf_counter() - start)


def costs(directory: str) -> tuple[float, float]:
    """Processor seconds of a put into a store that keeps trees, and into one that does not: the store's part alone, without RPC. For a
    process of its own."""
    memory.set_up()
    payloads = [number.to_bytes(8) + os.urandom(WRITE_BYTES - 8) for number in range(WRITES)]
    chunks = [(blake3(payload).digest(), payload) for payload in payloads]
    spent: dict[bool, list[float]] = {True: [], False: []}
    for number, kept in enumerate((True, False) * ROUNDS):
        place = Path(directory) / f"trees-{number}"
        with nullcontext() if kept else _without_trees():
            spent[kept].append(uvloop.run(_put(place, chunks, kept=kept)))
        shutil.rmtree(place)
    return statistics.median(spent[True]) / WRITES, statistics.median(spent[False]) / WRITES


async def _put(place: Path, chunks: Sequence[tuple[bytes, bytes]], *, kept: bool) -> float:
    """Processor seconds to store the chunks, in groups, so that each store syncs equally often, and to write the index."""
    store = make_store(place)
    await store.open()
    start = time.process_time()
    try:
        for first in range(0, len(chunks), PUTS_AT_ONCE):
            some = chunks[first : first + PUTS_AT_ONCE]
            await asyncio.gather(*(store.put(chunk, payload, reference_to(chunk)) for chunk, payload in some))
        if bool(store.trees()) is not kept:
            raise RuntimeError("the trees are on where they should be off, or the other way round")
    finally:
        await store.close()
    return time.process_time() - start


@contextmanager
def _without_trees() -> Iterator[None]:
    """Stores that are opened meanwhile note no change of a leaf, and make no digest; nothing then reaches their trees or rows of them."""
    with (
        patch.object(chunk_state.Change, "_leaf", lambda *_: None),
        patch.object(chunk_state, "reference_digest", lambda *_: 0),
    ):
        yield
