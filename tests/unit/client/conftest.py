from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from client import Holdfast, RetryPolicy
from tests.unit.client.fake_cluster import FakeCluster

QUICK = RetryPolicy(deadline_s=2.0, unreachable_s=0.5, backoff_s=0.01, backoff_limit_s=0.05, idle_timeout_s=1.0)


@pytest.fixture
async def fake_cluster() -> AsyncIterator[FakeCluster]:
    cluster = FakeCluster(3)
    await cluster.start()
    try:
        yield cluster
    finally:
        await cluster.stop()


@pytest.fixture
async def holdfast(fake_cluster: FakeCluster) -> AsyncIterator[Holdfast]:
    async with Holdfast(fake_cluster.urls, policy=QUICK) as holdfast:
        yield holdfast
