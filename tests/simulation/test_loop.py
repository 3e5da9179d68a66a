"""The simulator's loop: one seed is one run, on any hash seed; what asyncio promises about order holds; the real world is out of reach."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.simulated.loop import PROCESS, Scheduling, Stuck, VirtualTimeLoop, note, process_context, run_virtual
from tests.support.simulated.real_world import RealWorld
from tests.support.simulated.streams import Streams
from tests.support.simulated.trace import Trace
from tests.support.simulated.weather import WINDY
from tests.support.simulated.whole_cluster import WholeCluster, get, put


def order_of_ten(seed: int | None) -> list[int]:
    ran: list[int] = []

    async def work(number: int) -> None:
        await asyncio.sleep(0)
        ran.append(number)

    async def main() -> None:
        await asyncio.gather(*(work(number) for number in range(10)))

    run_virtual(main(), seed=seed)
    return ran


def test_without_a_seed_first_come_first_served() -> None:
    assert order_of_ten(None) == list(range(10))


def test_the_seed_is_the_order_of_tasks() -> None:
    orders = [order_of_ten(seed) for seed in range(20)]
    assert orders == [order_of_ten(seed) for seed in range(20)]
    assert len({tuple(order) for order in orders}) == 20
    assert all(sorted(order) == list(range(10)) for order in orders)


@pytest.mark.parametrize("seed", range(20))
def test_plain_callbacks_keep_their_order_and_effects_follow_causes(seed: int) -> None:
    events: list[str] = []

    async def task(name: str) -> None:
        for step in range(3):
            events.append(f"{name}{step}")
            asyncio.get_running_loop().call_soon(events.append, f"after {name}{step}")
            await asyncio.sleep(0)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        tasks = []
        for number in range(5):
            loop.call_soon(events.append, f"callback {number}")
            tasks.append(loop.create_task(task("abcde"[number])))
        for number in range(5):
            loop.call_later(1.0, events.append, f"timer {number}")
        await asyncio.wait(tasks)
        await asyncio.sleep(2)

    run_virtual(main(), seed=seed, scheduling=Scheduling(slow_chance=0.2))
    for kind in ("callback", "timer"):
        numbers = [event for event in events if event.startswith(kind)]
        assert numbers == sorted(numbers)
        assert len(numbers) == 5
    for name in "abcde":
        own = [event for event in events if event.endswith((f"{name}0", f"{name}1", f"{name}2"))]
        assert own == [f"{name}0", f"after {name}0", f"{name}1", f"after {name}1", f"{name}2", f"after {name}2"]


def test_the_error_of_a_task_that_nobody_looks_at_fails_the_run_though_somebody_holds_the_task() -> None:
    class Holder:
        async def fail(self) -> None:
            raise KeyError("nobody looks")

        async def run(self) -> None:
            self.task = asyncio.get_running_loop().create_task(self.fail())
            await asyncio.sleep(1)

    with pytest.raises(AssertionError, match="nobody looks"):
        run_virtual(Holder().run())


def test_sets_of_tasks_iterate_in_the_order_of_their_making() -> None:
    async def main() -> list[str]:
        tasks = {asyncio.create_task(asyncio.sleep(1), name=str(number)) for number in range(6)}
        junk = [object() for _ in range(1000)]
        done, _ = await asyncio.wait(tasks)
        assert junk
        return [task.get_name() for task in done]

    assert run_virtual(main()) == run_virtual(main()) == [str(number) for number in range(6)]


def test_time_passes_only_where_everybody_waits() -> None:
    async def main() -> float:
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(7200):
            await asyncio.sleep(3600)
        for _ in range(100):
            await asyncio.sleep(0)
        return loop.time()

    assert run_virtual(main()) == 3600.0


def test_a_held_process_does_nothing_and_then_everything_at_once_in_order() -> None:
    events: list[tuple[str, float]] = []

    def tick(name: str) -> None:
        events.append((name, asyncio.get_running_loop().time()))

    async def ticking(name: str) -> None:
        loop = asyncio.get_running_loop()
        for number in range(5):
            loop.call_later(number, tick, f"{name}{number}")
        await asyncio.sleep(10)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualTimeLoop)
        tasks = [loop.create_task(ticking(name), context=process_context(name)) for name in ("a", "b")]
        await asyncio.sleep(1.5)
        loop.hold("a")
        assert loop.is_held("a")
        await asyncio.sleep(2)
        loop.release("a")
        await asyncio.wait(tasks)

    run_virtual(main())
    assert [event for event in events if event[0][0] == "a"] == [
        ("a0", 0.0), ("a1", 1.0), ("a2", 3.5), ("a3", 3.5), ("a4", 4.0)
    ]  # fmt: skip
    assert [event for event in events if event[0][0] == "b"] == [(f"b{number}", float(number)) for number in range(5)]


def test_what_is_released_comes_before_what_is_ready_later() -> None:
    events: list[str] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualTimeLoop)
        context = process_context("a")
        loop.hold("a")
        loop.call_soon(events.append, "old", context=context)
        await asyncio.sleep(0)
        loop.call_soon(events.append, "younger", context=context)
        loop.release("a")
        loop.call_soon(events.append, "youngest", context=context)
        await asyncio.sleep(1)

    run_virtual(main())
    assert events == ["old", "younger", "youngest"]


def test_slow_processes_are_late_and_a_scenario_is_not() -> None:
    async def late() -> float:
        loop = asyncio.get_running_loop()
        worst = 0.0
        for _ in range(200):
            due = loop.time() + 0.01
            await asyncio.sleep(0.01)
            worst = max(worst, loop.time() - due)
        return worst

    async def main() -> tuple[float, float]:
        loop = asyncio.get_running_loop()
        return await loop.create_task(late(), context=process_context("a")), await late()

    inside, outside = run_virtual(main(), seed=1, scheduling=Scheduling(slow_chance=0.05))
    assert inside > 0.001
    assert outside < 1e-6


def test_nothing_to_wait_for_is_said() -> None:
    async def forever() -> None:
        await asyncio.get_running_loop().create_future()

    with pytest.raises(Stuck, match="nobody will do"):
        run_virtual(forever())

    events: list[str] = []

    async def spin() -> None:
        while not events:  # noqa: ASYNC110 - this is the livelock
            await asyncio.sleep(0)

    with pytest.raises(Stuck, match="no time passes"):
        run_virtual(spin())


async def connects() -> None:
    await asyncio.open_connection("127.0.0.1", 1)


async def serves() -> None:
    await asyncio.start_server(lambda _reader, _writer: None, "127.0.0.1", 0)


async def looks_up() -> None:
    await asyncio.get_running_loop().getaddrinfo("localhost", 1)


async def runs_a_process() -> None:
    await asyncio.create_subprocess_exec("true")


async def watches_a_file() -> None:
    asyncio.get_running_loop().add_reader(0, print)


async def uses_the_executor() -> None:
    await asyncio.get_running_loop().run_in_executor(None, print)


async def uses_to_thread() -> None:
    await asyncio.to_thread(print)


async def starts_a_thread() -> None:
    threading.Thread(target=print).start()


@pytest.mark.parametrize(
    "work",
    [connects, serves, looks_up, runs_a_process, watches_a_file, uses_the_executor, uses_to_thread, starts_a_thread],
)
def test_the_real_world_is_an_error(work: object) -> None:
    assert callable(work)
    before = threading.Thread.start
    with pytest.raises(RealWorld):
        run_virtual(work())
    assert threading.Thread.start is before
    threading.Thread(target=int).start()


def test_call_soon_threadsafe_is_call_soon_here() -> None:
    async def main() -> str:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[str] = loop.create_future()
        loop.call_soon_threadsafe(future.set_result, "done")
        return await future

    assert run_virtual(main()) == "done"


def test_errors_that_nobody_looked_at_fail_the_run() -> None:
    async def main() -> None:
        asyncio.get_running_loop().call_soon(lambda: 1 / 0)
        await asyncio.sleep(1)

    with pytest.raises(AssertionError, match="ZeroDivisionError"):
        run_virtual(main())


def test_generators_left_in_the_middle_are_closed() -> None:
    closed: list[int] = []

    async def numbers(name: int) -> AsyncIterator[int]:
        try:
            while True:
                yield 1
        finally:
            await asyncio.sleep(1)
            closed.append(name)

    kept = numbers(1)

    async def main() -> None:
        async for _ in numbers(2):
            break
        await anext(kept)
        await asyncio.sleep(5)
        assert closed == [2]

    run_virtual(main())
    assert closed == [2, 1]


def test_a_context_belongs_to_one_process() -> None:
    async def who() -> str:
        await asyncio.sleep(0)
        return await asyncio.create_task(nested())

    async def nested() -> str:
        return PROCESS.get()

    async def main() -> tuple[str, str]:
        return await asyncio.get_running_loop().create_task(who(), context=process_context("n1")), await who()

    assert run_virtual(main()) == ("n1", "")


def test_a_trace_is_bounded_and_shown_with_the_failure() -> None:
    async def main() -> None:
        for number in range(100):
            note("n1", "event", number)
            await asyncio.sleep(1)
        raise AssertionError("broken")

    trace = Trace(10)
    with pytest.raises(AssertionError, match="broken") as caught:
        run_virtual(main(), trace=trace)
    (shown,) = caught.value.__notes__
    assert "event 99" in shown
    assert "event 89" not in shown
    assert trace.noted == 100
    silent = Trace()
    with pytest.raises(AssertionError):
        run_virtual(main(), trace=silent)
    assert silent.lines() == []


def test_streams_do_not_share() -> None:
    one, other = Streams(7), Streams(7)
    [one.stream("network").random() for _ in range(100)]
    assert one.stream("workload").random() == other.stream("workload").random()
    assert one.stream("network") is one.stream("network")
    assert Streams(8).stream("workload").random() != Streams(7).stream("workload").random()


def cluster_run(seed: int) -> str:
    """What a whole cluster in windy weather did."""
    streams, trace = Streams(seed), Trace(20_000)

    async def main() -> None:
        cluster = WholeCluster(seed, 3, streams=streams, weather=WINDY, wild_clocks=True)
        await cluster.start()
        await asyncio.gather(*(put(cluster[f"n{at % 3 + 1}"], f"v{at}", bytes(9000)) for at in range(6)))
        cluster.network.freeze("n2")
        await asyncio.sleep(5)
        cluster.network.thaw("n2")
        await cluster.machines["n3"].kill()
        cluster.machines["n3"].start()
        await cluster.until(cluster.settled, "everybody back")
        assert await get(cluster["n3"], "v1") == bytes(9000)
        await cluster.close()

    run_virtual(main(), streams=streams, trace=trace)
    return f"{trace.noted} {trace.digest}"


def test_one_seed_is_one_run_of_a_whole_cluster_on_any_hash_seed() -> None:
    here = cluster_run(3)
    assert cluster_run(3) == here
    assert cluster_run(4) != here
    script = f"import runpy; print(runpy.run_path({__file__!r})['cluster_run'](3))"
    for hash_seed in ("1", "2"):
        there = subprocess.run(
            [sys.executable, "-c", script],
            env={**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(Path(__file__).parents[2])},
            capture_output=True,
            text=True,
            check=True,
        )
        assert there.stdout.splitlines()[-1] == here
