"""What must hold is looked at: each invariant here is broken once, on purpose."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast
from unittest import mock

import pytest

from node.storage.chunk_expiry import ChunkExpiry
from node.storage.chunk_writer import ChunkWriter
from tests.simulation import invariants
from tests.simulation.campaign_cluster import CampaignCluster
from tests.simulation.invariants import CopiesWatch
from tests.simulation.result import Result
from tests.simulation.run import Cut, simulate
from tests.simulation.users import Users

CALM = Cut(operations=60, events=())


def failing_at(number: int, error: Exception, honest: Callable[..., Any]) -> Callable[..., Any]:
    """Once."""
    calls = 0

    def call(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == number:
            raise error
        return honest(*arguments)

    return call


def ended(result: Result) -> str:
    assert result.broken is not None
    assert result.broken.invariant == "no process ends by itself"
    return result.broken.detail


def test_a_process_that_ends_of_a_mistake_is_noticed_though_it_is_started_again() -> None:
    broken = failing_at(20, OSError("a mistake"), ChunkExpiry.run_once)
    with mock.patch.object(ChunkExpiry, "run_once", broken):
        result = simulate("disks", 1, cut=CALM)
    assert "a mistake" in ended(result)
    assert any("ends by itself" in line.text for line in result.trace)


def test_a_log_that_a_mistake_has_poisoned_is_noticed() -> None:
    broken = failing_at(30, AssertionError("a mistake"), ChunkWriter._append)
    with mock.patch.object(ChunkWriter, "_append", broken):
        assert "a mistake" in ended(simulate("disks", 1, cut=CALM))


def test_who_is_hardly_answered_is_noticed() -> None:
    with mock.patch.object(Users, "gateway", return_value=None):
        result = simulate("steady", 1)
    assert result.broken is not None
    assert result.broken.invariant == "users are answered"
    assert result.answered_in_trouble < 24


def cluster_of(members: str, holders: str, **more: Any) -> CampaignCluster:
    """Machines a to e, all of which have the layout of ``members``; ``holders`` have the one chunk there is."""
    state = SimpleNamespace(epoch=1, members=tuple(members), excluded=(), outed=())
    installed = SimpleNamespace(state=state, require=lambda: state)
    core = SimpleNamespace(installed=installed)
    machines = {
        name: SimpleNamespace(
            core=core,
            running=core,
            stores=SimpleNamespace(
                references_on_disk=lambda _, name=name: {b"root": 3} if name in holders else {},
                held_chunks=lambda name=name: {b"chunk": (b"", {b"root": 3} if name in holders else {})},
            ),
        )
        for name in "abcde"
    }
    return cast("CampaignCluster", SimpleNamespace(machines=machines, removed=set(), **more))


@pytest.mark.parametrize(("members", "copies"), [("abcd", 3), ("abc", 2), ("cde", 1)])
def test_a_copy_on_a_node_outside_the_layout_counts_for_nothing(members: str, copies: int) -> None:
    watch = CopiesWatch(cluster_of(members, "abd"))
    watch._references = frozenset({(b"chunk", b"root")})
    assert watch._least() == copies


def test_what_a_node_outside_the_layout_keeps_is_noticed() -> None:
    assert invariants._left_behind(cluster_of("abc", holders="abcd")) == ["d"]
    assert not invariants._left_behind(cluster_of("abc", holders="abc"))


def test_a_layout_that_lacks_a_joiner_or_keeps_who_was_removed_is_noticed() -> None:
    cluster = cluster_of("abcde", "")
    assert not invariants.not_as_asked(cluster)
    cluster.removed.add("b")
    assert invariants.not_as_asked(cluster) == "b is in the layout, and was removed"
    assert invariants.not_as_asked(cluster_of("abcd", "")) == "e is not in the layout"
