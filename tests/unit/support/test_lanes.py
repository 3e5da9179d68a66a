"""Lanes: the same promises by threads and on virtual time; and what a crash makes of simulated ones."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Awaitable, Callable

import pytest

from node.storage.lanes import THREADS, Lanes
from tests.support.simulated.disk import SimulatedDisk
from tests.support.simulated.lanes import READ_S, SYNC_S, SimulatedLanes
from tests.support.simulated.loop import run_virtual

Contract = Callable[[Lanes], Awaitable[None]]


@pytest.fixture(params=["threads", "simulated"])
def keep(request: pytest.FixtureRequest) -> Callable[[Contract], None]:
    """Runs a test on both kinds."""

    def run(contract: Contract) -> None:
        async def main() -> None:
            await contract(THREADS if request.param == "threads" else SimulatedLanes(random.Random(1)))

        if request.param == "threads":
            asyncio.run(main())
        else:
            before = threading.active_count()
            run_virtual(main())
            assert threading.active_count() == before

    return run


def test_a_lane_keeps_the_order_and_gives_the_outcome(keep: Callable[[Contract], None]) -> None:
    async def contract(lanes: Lanes) -> None:
        lane = lanes.open("some")
        done: list[int] = []

        def job(number: int) -> int:
            done.append(number)
            return -number

        outcomes = [lane.run(job, number) if number % 2 else lane.submit(job, number) for number in range(20)]
        failing = lane.run(int, "no number")
        await lane.close()
        assert done == list(range(20))
        assert [await outcome for outcome in outcomes if isinstance(outcome, asyncio.Future)] == [*range(-1, -20, -2)]
        with pytest.raises(ValueError, match="no number"):
            await failing
        with pytest.raises(RuntimeError):
            lane.submit(job, 21)

    keep(contract)


def test_a_job_may_wait_for_another_lanes_job_and_give_itself_more_to_do(keep: Callable[[Contract], None]) -> None:
    async def contract(lanes: Lanes) -> None:
        here, there = lanes.open("here"), lanes.open("there")
        done: list[str] = []

        def first() -> None:
            there.submit(done.append, "before")
            assert there.submit(lambda: 7).result() == 7
            done.append("first")
            here.submit(done.append, "second")

        await here.run(first)
        await here.run(done.append, "third")
        await there.close()
        await here.close()
        assert done[:2] == ["before", "first"]
        assert sorted(done[2:]) == ["second", "third"]

    keep(contract)


def test_closing_an_idle_lane_waits_for_nothing(keep: Callable[[Contract], None]) -> None:
    async def contract(lanes: Lanes) -> None:
        lane = lanes.open("idle", 3)
        await lane.run(int)
        await lane.close()
        await lanes.open("never used").close()

    keep(contract)


def interleaved(seed: int) -> tuple[str, float]:
    """In which order the jobs of three lanes are done, and how long it takes."""

    async def main() -> tuple[str, float]:
        lanes = SimulatedLanes(random.Random(seed))
        done: list[str] = []
        opened = [lanes.open(name) for name in ("registers-write", "chunk-writer", "chunk-indexer")]
        for _ in range(5):
            for name, lane in zip("abc", opened, strict=True):
                lane.submit(done.append, name)
        for lane in opened:
            await lane.close()
        return "".join(done), asyncio.get_running_loop().time()

    return run_virtual(main())


def test_a_seed_fixes_how_lanes_interleave() -> None:
    orders = {interleaved(seed)[0] for seed in range(20)}
    assert len(orders) > 15
    assert all(order.count(name) == 5 for order in orders for name in "abc")
    assert interleaved(3) == interleaved(3)


def test_a_slow_disk_takes_its_time_and_many_readers_share_it() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        lanes = SimulatedLanes(random.Random(1))

        async def time_of(name: str, width: int, slowness: float) -> float:
            lanes.slowness = slowness
            lane = lanes.open(name, width)
            start = loop.time()
            await asyncio.gather(*[lane.run(int) for _ in range(200)])
            return loop.time() - start

        writing = await time_of("chunk-writer", 1, 1)
        assert 0.5 * SYNC_S < writing / 200 < 2 * SYNC_S
        assert await time_of("chunk-writer", 1, 100) > 50 * writing
        assert 0.5 * READ_S < await time_of("chunk-reader", 4, 1) * 4 / 200 < 2 * READ_S

    run_virtual(main())


def crashed(seed: int) -> tuple[list[str], list[str]]:
    """What was done of two lanes' jobs by the time of a crash, and in the crash."""

    async def main() -> tuple[list[str], list[str]]:
        disk = SimulatedDisk()
        descriptor = disk.create("/f")
        lanes = SimulatedLanes(random.Random(seed))
        lane, other = lanes.open("chunk-writer"), lanes.open("chunk-reader", 2)
        done: list[str] = []

        def write(number: int) -> None:
            disk.pwritev(descriptor, [b"x"], number)
            done.append(f"written {number}")
            for _ in range(5):
                disk.fdatasync(descriptor)
            done.append(f"synced {number}")

        waiting = [lane.run(write, number) for number in range(10)]
        reads = [other.run(done.append, f"read {number}") for number in range(3)]
        await waiting[2]
        before = list(done)
        lanes.crash(disk)
        in_crash = done[len(before) :]
        disk.crash(random.Random(seed))
        lane.submit(done.append, "afterwards")
        assert not lane.run(done.append, "afterwards").done()
        await asyncio.sleep(100)
        await lane.close()
        assert done == before + in_crash
        assert not any(future.done() for future in waiting[4:])
        del reads
        return before, in_crash

    return run_virtual(main())


def test_a_crash_takes_what_has_not_begun_and_may_cut_off_what_has() -> None:
    fates = set()
    for seed in range(60):
        before, in_crash = crashed(seed)
        assert [one for one in before if one.startswith("synced")] == ["synced 0", "synced 1", "synced 2"]
        fates.add(tuple(one for one in in_crash if not one.startswith("read")))
    assert fates == {(), ("written 3",), ("written 3", "synced 3")}
    assert crashed(5) == crashed(5)
