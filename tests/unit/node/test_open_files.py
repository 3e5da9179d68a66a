"""How many files a node may open, and who gets how many of them."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest

from cluster.errors import Invalid
from node import open_files
from node.api.server import MAX_CONNECTIONS
from node.open_files import LEAST_CONNECTIONS, LEAST_OPEN_FILES, RESERVED, connections_within
from node.storage.chunk_log import OPEN_FILES_LIMIT


@pytest.mark.parametrize(
    ("limit", "connections"),
    [
        (None, MAX_CONNECTIONS),
        (1 << 20, MAX_CONNECTIONS),
        (RESERVED + MAX_CONNECTIONS, MAX_CONNECTIONS),
        (RESERVED + MAX_CONNECTIONS - 1, MAX_CONNECTIONS - 1),
        (1024, 1024 - RESERVED),
        (LEAST_OPEN_FILES, LEAST_CONNECTIONS),
    ],
)
def test_connections_get_what_the_limit_leaves(limit: int | None, connections: int) -> None:
    assert connections_within(limit) == connections
    assert RESERVED > 2 * OPEN_FILES_LIMIT


@pytest.mark.parametrize("limit", [0, 256, LEAST_OPEN_FILES - 1])
def test_a_node_that_could_not_serve_anybody_is_not_started(limit: int) -> None:
    with pytest.raises(Invalid, match="raise the hard limit"):
        connections_within(limit)


def test_the_manual_says_the_same() -> None:
    manual = (Path(__file__).parents[3] / "docs" / "operations.md").read_text()
    assert f"{RESERVED} are kept for the node itself, the rest is for the API, at most {MAX_CONNECTIONS}" in manual
    assert f"hard limit below {LEAST_OPEN_FILES} the daemon does not start" in manual


class System:
    """Limits of a process."""

    def __init__(self, soft: int, hard: int, *, refuses: bool = False) -> None:
        self.limits = soft, hard
        self.refuses = refuses

    def getrlimit(self, which: int) -> tuple[int, int]:
        assert which == resource.RLIMIT_NOFILE
        return self.limits

    def setrlimit(self, which: int, limits: tuple[int, int]) -> None:
        assert which == resource.RLIMIT_NOFILE
        if self.refuses:
            raise ValueError("not allowed to raise maximum limit")
        self.limits = limits


@pytest.mark.parametrize(
    ("system", "limit"),
    [
        (System(1024, 524288), 524288),
        (System(4096, 4096), 4096),
        (System(1024, resource.RLIM_INFINITY), None),
        (System(1024, 524288, refuses=True), 1024),
    ],
)
def test_the_soft_limit_is_raised_to_the_hard_one(
    monkeypatch: pytest.MonkeyPatch, system: System, limit: int | None
) -> None:
    monkeypatch.setattr(resource, "getrlimit", system.getrlimit)
    monkeypatch.setattr(resource, "setrlimit", system.setrlimit)
    assert open_files.raise_limit() == limit
    assert open_files.set_up() == connections_within(limit)
