"""`GET /v1/cluster`: its health takes repair into account, and no node that hangs holds it up."""

from __future__ import annotations

import time
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from cluster.chunks.store import ChunkStore
from cluster.errors import NotReady
from cluster.governance.state import LayoutState
from cluster.layout.layout import LayoutNode
from cluster.layout.planner import plan_layout
from cluster.peer.core import PeerCore
from cluster.peer.jobs import JobState
from node import repair_view
from node.api.problem import status_of
from node.cluster_view import CoreView
from node.repair_view import CoreRepairView
from tests.unit.node.repair_port import WHOLE, FakePort, without

NAMES = ("n1", "n2", "n3")
STATE = LayoutState(
    b"c" * 16,
    1,
    b"w" * 8,
    plan_layout(
        None,
        [LayoutNode(name, name, 1 << 30, "127.0.0.1", 7482) for name in NAMES],
        replication_factor=3,
        partition_bits=4,
    ),
)
STORE = {
    "chunks": 1,
    "live_bytes": 2,
    "log_bytes": 3,
    "free_bytes": 4,
    "ballast_bytes": 5,
    "quarantined": 0,
    "failure": None,
}
JOBS = [JobState("copier", 5, "", ""), JobState("governor", 0, "no quorum", "")]


def view_of(port: FakePort | None, *, dead: tuple[str, ...] = (), **store: Any) -> CoreView:
    """The view of a node in a cluster of three, of which some are dead."""
    members = {
        name: SimpleNamespace(state=SimpleNamespace(value="dead" if name in dead else "alive")) for name in NAMES
    }
    core = SimpleNamespace(
        settings=SimpleNamespace(name="n1", release="1"),
        cluster_id=STATE.cluster_id,
        installed=SimpleNamespace(state=STATE, is_alive=lambda name: name not in dead, epoch=1),
        membership=SimpleNamespace(members=lambda: members),
        governor=SimpleNamespace(joiners=dict),
        acceptor=SimpleNamespace(standings=dict, votes=0, refusals=0),
        leader=counters("updates", "terms_begun"),
        registers=SimpleNamespace(reader=counters("reads", "settled")),
        chunks=counters("puts", "reads", "hedged_reads", "damaged_reads", "late_bytes"),
        jobs=lambda: iter(JOBS),
    )
    statistics = SimpleNamespace(**{**STORE, **store})
    return CoreView(
        lambda: cast("PeerCore", core),
        cast("ChunkStore", SimpleNamespace(statistics=lambda: statistics)),
        (SimpleNamespace(name="chunk-expiry", queue_length=2, last_error=None, waiting_for=None),),
        CoreRepairView(lambda: port, lambda: None),
    )


async def test_a_whole_cluster_is_healthy() -> None:
    status = await view_of(FakePort()).status()
    assert (status["health"], status["attention"]) == ("healthy", [])
    assert (status["repair"]["copies_missing"], status["repair"]["copies_due"]) == (0, 300)


async def test_missing_copies_make_it_degraded_and_are_explained() -> None:
    status = await view_of(FakePort(without(WHOLE, "n2", 100)), dead=("n2",)).status()
    assert status["health"] == "degraded"
    assert status["repair"]["copies_missing"] == 100
    assert status["attention"][0] == "node n2 is dead"
    assert status["attention"][1].startswith("100 of 300 copies are missing: n2 lacks 100")


@pytest.mark.parametrize(
    "change", [{"keys_diverged": 1}, {"chunks_diverged": 2}, {"handoffs": 3}, {"copies_missing": 4}]
)
async def test_whatever_is_not_whole_is_degraded(change: dict[str, Any]) -> None:
    status = await view_of(FakePort(replace(WHOLE, **change))).status()
    assert status["health"] == "degraded"
    assert len(status["attention"]) == 1
    for name, value in change.items():
        assert status["repair"][name] == value


async def test_a_node_that_hangs_holds_nothing_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repair_view, "OVERVIEW_DEADLINE_S", 0.05)
    began = time.monotonic()
    status = await view_of(FakePort(hangs=True)).status()
    assert time.monotonic() - began < 1.5
    assert (status["health"], status["repair"]) == ("degraded", None)
    assert status["attention"] == ["how repair goes is not known: the nodes did not say so in time"]


async def test_lost_quorums_outweigh_missing_copies() -> None:
    status = await view_of(FakePort(without(WHOLE, "n2", 100)), dead=("n2", "n3")).status()
    assert status["health"] == "unavailable"


async def test_a_place_set_aside_is_told_but_the_data_is_whole() -> None:
    status = await view_of(FakePort(), quarantined=1).status()
    assert status["health"] == "healthy"
    assert "1 damaged places" in status["attention"][0]


async def test_a_node_that_starts_sends_everybody_to_another_one() -> None:
    store = cast("ChunkStore", SimpleNamespace(statistics=lambda: SimpleNamespace(**STORE)))
    view = CoreView(lambda: None, store, (), CoreRepairView(lambda: None, lambda: None))
    calls = (view.status(), view.nodes(), view.layout(), view.jobs())
    for call in (*calls, view.plan_layout([]), view.apply_layout(1, None), view.abort_layout()):
        with pytest.raises(NotReady, match="ask another") as caught:
            await call
        assert (status_of(caught.value), caught.value.retryable) == (503, True)
    assert view.readiness()["ready"] is False


def counters(*names: str) -> SimpleNamespace:
    return SimpleNamespace(**dict.fromkeys(names, 0))


async def test_jobs_and_their_metrics() -> None:
    view = view_of(None, puts=0, reads=0, cached_reads=0, syncs=0, bytes_written=0)
    jobs = (await view.jobs())["jobs"]
    assert [job["name"] for job in jobs] == ["copier", "governor", "chunk-expiry"]
    assert jobs[1]["last_error"] == "no quorum"
    shown = {(sample.name, sample.labels.get("job")): sample.value for sample in view.samples()}
    assert [shown["job_queue", name] for name in ("copier", "governor", "chunk-expiry")] == [5, 0, 2]
    assert [shown["job_failed", name] for name in ("copier", "governor", "chunk-expiry")] == [0, 1, 0]
