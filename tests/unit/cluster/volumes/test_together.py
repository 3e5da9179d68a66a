"""Several things at once: all results, or the first error, or the caller's own end; and nothing left behind."""

from __future__ import annotations

import asyncio

import pytest

from cluster.errors import PeerLost, QuorumUnavailable
from cluster.volumes.together import together


class Works:
    def __init__(self) -> None:
        self.running = 0

    async def result(self, number: int) -> int:
        await asyncio.sleep(0.01 * (3 - number))
        return number

    async def fails(self, seconds: float, *, at_the_end: bool = True) -> int:
        """After so many seconds, and when it is cancelled with another error: as calls do when a node stops."""
        self.running += 1
        try:
            await asyncio.sleep(seconds)
        except asyncio.CancelledError:
            if at_the_end:
                raise PeerLost("the connection went, too") from None
            raise
        finally:
            self.running -= 1
        raise QuorumUnavailable(f"after {seconds}")


async def test_results_come_in_order() -> None:
    assert await together(Works().result(number) for number in range(4)) == [0, 1, 2, 3]
    assert await together(()) == []


@pytest.mark.parametrize("at_the_end", [True, False])
async def test_the_first_error_ends_the_others_and_is_raised(at_the_end: bool) -> None:
    works = Works()
    with pytest.raises(QuorumUnavailable, match=r"after 0\.01"):
        await together(works.fails(seconds, at_the_end=at_the_end) for seconds in (60, 0.01, 60))
    assert works.running == 0


async def test_a_cancellation_is_not_lost_to_an_error_that_came_with_it() -> None:
    works = Works()
    rounds = 0

    async def worker() -> None:
        nonlocal rounds
        while rounds < 100:
            rounds += 1
            try:
                await together(works.fails(60) for _ in range(3))
            except (QuorumUnavailable, PeerLost):
                await asyncio.sleep(0)

    task = asyncio.create_task(worker())
    await asyncio.sleep(0.01)
    task.cancel()
    done, _ = await asyncio.wait([task], timeout=5)
    assert done
    assert task.cancelled()
    assert rounds == 1
    assert works.running == 0


async def test_nor_is_a_time_out() -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await together([Works().fails(60)])
