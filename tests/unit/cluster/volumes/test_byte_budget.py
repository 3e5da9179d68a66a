"""The byte budget: never exceeded, first come first served, nothing lost by cancellations."""

from __future__ import annotations

import asyncio
import random

import pytest

from cluster.volumes.byte_budget import ByteBudget


@pytest.mark.parametrize("seed", range(40))
async def test_it_is_never_exceeded_and_all_comes_back(seed: int) -> None:
    rng = random.Random(seed)
    budget = ByteBudget(100)
    used = 0

    async def user() -> None:
        nonlocal used
        amount = rng.randrange(101)
        await asyncio.sleep(0)
        await budget.take(amount)
        try:
            used += amount
            assert used <= 100
            for _ in range(rng.randrange(4)):
                await asyncio.sleep(0)
            used -= amount
        except asyncio.CancelledError:
            used -= amount
            raise
        finally:
            budget.give(amount)

    tasks = [asyncio.create_task(user()) for _ in range(60)]
    for _ in range(30):
        await asyncio.sleep(0)
        rng.choice(tasks).cancel()
    async with asyncio.timeout(5):
        await asyncio.gather(*tasks, return_exceptions=True)
    assert budget.held == 0
    assert budget.waiting == 0


async def test_first_come_first_served() -> None:
    budget = ByteBudget(10)
    await budget.take(8)
    order: list[str] = []

    async def user(name: str, amount: int) -> None:
        await budget.take(amount)
        order.append(name)

    large = asyncio.create_task(user("large", 10))
    await asyncio.sleep(0)
    small = asyncio.create_task(user("small", 1))
    await asyncio.sleep(0)
    assert not budget.take_now(1)
    budget.give(8)
    await large
    budget.give(10)
    await small
    assert order == ["large", "small"]


async def test_the_queue_moves_on_when_its_head_gives_up() -> None:
    budget = ByteBudget(10)
    await budget.take(8)
    large = asyncio.create_task(budget.take(10))
    await asyncio.sleep(0)
    small = asyncio.create_task(budget.take(2))
    await asyncio.sleep(0)
    large.cancel()
    async with asyncio.timeout(1):
        await small
    assert budget.held == 10
    await asyncio.gather(large, return_exceptions=True)
