"""Whole cores on the daemon's own stores, on virtual time: what was acknowledged outlives the loss of power everywhere at once.

And the test of the test: stores that break a promise on purpose are caught by it.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import random
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from cluster.errors import HoldfastError, NoSpace, NotFound
from node.storage.chunk_recovery import ChunkRecovery
from node.storage.register_store import SqliteRegisterStore
from tests.support.simulated.disk import Failure, SimulatedDisk
from tests.support.simulated.loop import run_virtual
from tests.support.simulated.production_stores import ProductionStores
from tests.support.simulated.stores import StoresFactory
from tests.support.simulated.stream import SimulatedTransport
from tests.support.simulated.whole_cluster import WholeCluster, get, put

SEEDS = [int(os.environ["HOLDFAST_SEED"])] if "HOLDFAST_SEED" in os.environ else [1, 2, 3]
"""HOLDFAST_SEED=N replays one."""

VOLUMES = 4
ROUNDS = 3
CAUGHT_WITHIN = 6
"""Seeds after which a wrong store must have been caught."""


def stores_of(machine: str, cluster: WholeCluster) -> ProductionStores:
    stores = cluster.machines[machine].stores
    assert isinstance(stores, ProductionStores)
    return stores


class Outages:
    """Writers whose volumes tell their version, and losses of power of all machines while they write."""

    def __init__(self, seed: int, stores: StoresFactory, rounds: int) -> None:
        self.rounds = rounds
        self.chance = random.Random(f"outages {seed}")
        self.cluster = WholeCluster(seed, 3, stores=stores)
        self.begun = [0] * VOLUMES
        self.acknowledged = [0] * VOLUMES
        self.log: list[tuple[float, int, int]] = []
        """When which version of which volume was acknowledged."""

    async def write(self, volume: int) -> None:
        while True:
            self.begun[volume] += 1
            number = self.begun[volume]
            machine = self.chance.choice(list(self.cluster.machines.values()))
            try:
                await put(machine.running, f"v{volume}", b"%d." % number * (1 + number * 37 % 700))
            except HoldfastError:
                continue
            self.acknowledged[volume] = number
            self.log.append((asyncio.get_running_loop().time(), volume, number))

    async def check(self) -> None:
        for volume in range(VOLUMES):
            machine = self.chance.choice(list(self.cluster.machines.values()))
            try:
                data = await get(machine.running, f"v{volume}")
            except NotFound:
                data = b"0."
            number = int(data.partition(b".")[0])
            assert data == b"%d." % number * (1 + number * 37 % 700) or not number
            assert self.acknowledged[volume] <= number <= self.begun[volume], (volume, number)

    async def main(self) -> None:
        cluster = self.cluster
        try:
            await cluster.start()
            for _ in range(self.rounds):
                writers = [asyncio.ensure_future(self.write(volume)) for volume in range(VOLUMES)]
                await asyncio.sleep(self.chance.uniform(0.2, 0.7))
                for writer in writers:
                    writer.cancel()
                for machine in cluster.machines.values():
                    await machine.kill()
                await asyncio.wait(writers)
                for machine in cluster.machines.values():
                    machine.start()
                await cluster.until(cluster.settled, "a settled cluster", 60)
                async with asyncio.timeout(60):
                    await self.check()
        finally:
            await cluster.close()


def outages(seed: int, stores: StoresFactory = ProductionStores, rounds: int = ROUNDS) -> Outages:
    async def main() -> Outages:
        run = Outages(seed, stores, rounds)
        await run.main()
        return run

    return run_virtual(main())


@pytest.mark.parametrize("seed", SEEDS)
def test_what_was_acknowledged_outlives_the_loss_of_all_power(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_threads(_thread: threading.Thread) -> None:
        raise AssertionError("a thread in a simulation")

    monkeypatch.setattr(threading.Thread, "start", no_threads)
    assert sum(outages(seed).acknowledged) > 20


# The test of the test


class SyncsNothing(SimulatedDisk):
    """Answers before it has done what it was asked."""

    def fdatasync(self, descriptor: int) -> None:
        assert descriptor in self._descriptors


class AnswersEarly(SqliteRegisterStore):
    """Acknowledges what is not committed yet."""

    def commit(self, writes: Any) -> asyncio.Future[None]:
        late = super().commit(writes)
        late.add_done_callback(lambda done: done.cancelled() or done.exception())
        early: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        early.set_result(None)
        return early


def caught(stores: StoresFactory) -> int:
    """After how many seeds."""
    for seed in range(1, CAUGHT_WITHIN + 1):
        try:
            outages(seed, stores)
        except (AssertionError, TimeoutError, HoldfastError, ExceptionGroup):
            return seed
    pytest.fail(f"not caught by {CAUGHT_WITHIN} seeds")


def test_a_store_that_answers_before_its_sync_is_caught() -> None:
    caught(partial(ProductionStores, make_disk=SyncsNothing))


def test_a_store_that_answers_before_its_commit_is_caught() -> None:
    caught(partial(ProductionStores, open_registers=AnswersEarly.open))


def test_a_store_that_trusts_its_index_after_a_crash_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    real = ChunkRecovery._replay

    def trusting(recovery: ChunkRecovery) -> None:
        catalog = recovery._catalog
        if catalog.end_file and catalog.end_file in recovery._sizes:
            catalog.end_file = max(recovery._sizes)
            catalog.end_offset = recovery._sizes[catalog.end_file]
        real(recovery)

    monkeypatch.setattr(ChunkRecovery, "_replay", trusting)
    caught(ProductionStores)


# Replays


def trace(seed: int) -> str:
    """A digest of everything that was sent, when and where, and of every acknowledgement."""
    seen = hashlib.blake2b(digest_size=16)
    real = SimulatedTransport.write

    def write(transport: SimulatedTransport, data: bytes | bytearray | memoryview[Any]) -> None:
        seen.update(f"{asyncio.get_running_loop().time()!r} {transport.here} {transport.there} {len(data)}".encode())
        seen.update(data)
        real(transport, data)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SimulatedTransport, "write", write)
        run = outages(seed, rounds=1)
    seen.update(repr(run.log).encode())
    return seen.hexdigest()


def test_a_seed_replays_exactly_whatever_the_hash_seed() -> None:
    other = subprocess.run(
        [sys.executable, "-c", f"from {__name__} import trace; print(trace(5))"],
        cwd=Path(__file__).parents[4],
        env={**os.environ, "PYTHONHASHSEED": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert trace(5) == other.stdout.splitlines()[-1]
    assert trace(6) != trace(5)


# Failures of the disk


def play(seed: int, scenario: Any) -> None:
    async def main() -> None:
        cluster = WholeCluster(seed, 3, stores=ProductionStores)
        try:
            await cluster.start()
            await scenario(cluster)
        finally:
            await cluster.close()

    run_virtual(main())


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
def test_a_node_whose_registers_fail_ends_and_comes_back(number: int) -> None:
    async def scenario(cluster: WholeCluster) -> None:
        await put(cluster["n1"], "v", b"before")
        machine = cluster.machines["n2"]
        stores_of("n2", cluster).register_files.faults.fail(number, after=1)
        for version in range(4):
            await put(cluster["n1"], "v", b"version %d" % version)
        await cluster.until(lambda: machine.failures and machine.core and cluster.settled(), "n2 again", 60)
        assert [type(error) for error in machine.failures] == [NoSpace if number == errno.ENOSPC else HoldfastError]
        await cluster.until_clean()
        assert await get(machine.running, "v") == b"version 3"

    play(1, scenario)


def test_a_node_whose_log_fails_is_of_no_use_until_it_is_started_again() -> None:
    async def scenario(cluster: WholeCluster) -> None:
        machine, stores = cluster.machines["n2"], stores_of("n2", cluster)
        stores.disk.failures.append(Failure("fdatasync", errno.EIO))
        for version in range(4):
            await put(cluster["n1"], "v", b"version %d" % version)
        assert machine.running._doors.chunks.statistics().failure is not None
        await machine.kill()
        machine.start()
        await cluster.until_clean()
        assert machine.running._doors.chunks.statistics().failure is None
        assert await get(machine.running, "v") == b"version 3"

    play(2, scenario)


def test_a_slow_disk_stops_nobody() -> None:
    async def scenario(cluster: WholeCluster) -> None:
        stores_of("n3", cluster).slow_down(500)
        loop = asyncio.get_running_loop()
        start = loop.time()
        for version in range(3):
            await put(cluster["n1"], "v", b"version %d" % version)
        assert loop.time() - start < 10
        stores_of("n3", cluster).slow_down(1)
        await cluster.until_clean()

    play(3, scenario)


def test_rot_is_found_and_mended() -> None:
    async def scenario(cluster: WholeCluster) -> None:
        chance = random.Random(4)
        for volume in range(8):
            await put(cluster["n1"], f"v{volume}", bytes([volume]) * 9000)
        stores = stores_of("n2", cluster)
        for _ in range(5):
            assert stores.disk.rot(chance)
        await cluster.until(lambda: stores.damages, "the scrub finds it", 600, step_s=5)
        await cluster.until_clean()
        for volume in range(8):
            assert await get(cluster["n2"], f"v{volume}") == bytes([volume]) * 9000

    play(4, scenario)


def test_damaged_registers_are_replaced_at_a_start() -> None:
    async def scenario(cluster: WholeCluster) -> None:
        chance = random.Random(5)
        await put(cluster["n1"], "v", b"kept")
        machine, stores = cluster.machines["n2"], stores_of("n2", cluster)
        await machine.stop()
        stores.register_files.rot(chance, 100)
        machine.start()
        await cluster.until(lambda: machine.core and cluster.settled(), "n2 has relearned", 120)
        assert list(stores.register_files.directory.glob("*.damaged-1"))
        await cluster.until_clean()
        assert await get(machine.running, "v") == b"kept"

    play(5, scenario)


def test_a_clean_stop_leaves_nothing_to_replay_and_an_old_copy_is_noticed() -> None:
    async def scenario(cluster: WholeCluster) -> None:
        machine, stores = cluster.machines["n2"], stores_of("n2", cluster)
        await put(cluster["n1"], "v", b"old")
        old = machine.copy_disk()
        await put(cluster["n1"], "v", b"new")
        await machine.stop()
        assert ".seal" in stores.index.save()
        machine.start()
        await cluster.until(lambda: machine.core and cluster.settled(), "n2 is back", 60)
        lives = machine.lives
        await machine.stop()
        machine.put_back(old)
        machine.start()
        await cluster.until(
            lambda: machine.lives == lives + 2 and cluster.settled(), "n2 has noticed and relearned", 120
        )
        await cluster.until_clean()
        assert await get(machine.running, "v") == b"new"
        await machine.kill()
        machine.wipe()
        machine.start()
        await cluster.until(lambda: machine.core and cluster.settled(), "n2 is filled again", 240)
        await cluster.until_clean()

    play(6, scenario)
