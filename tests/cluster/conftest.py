"""Fixtures for tests with real daemons; everything here is marked ``processes``."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.harness import ClusterProcess

HERE = Path(__file__).parent

MakeCluster = Callable[..., Awaitable[ClusterProcess]]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.processes)


@pytest.fixture
def make_cluster(tmp_path: Path) -> Iterator[MakeCluster]:
    """``await make_cluster(nodes, start=True, **ClusterProcess fields)``; every one is killed after the test."""
    clusters: list[ClusterProcess] = []

    async def make(nodes: int = 5, *, start: bool = True, **fields: Any) -> ClusterProcess:
        cluster = ClusterProcess(tmp_path / f"cluster-{len(clusters)}", nodes, **fields)
        clusters.append(cluster)
        if start:
            await cluster.start()
        return cluster

    try:
        yield make
    finally:
        for cluster in clusters:
            cluster.close()


@pytest.fixture
async def cluster(make_cluster: MakeCluster) -> ClusterProcess:
    """Five nodes, ready."""
    return await make_cluster(5)
