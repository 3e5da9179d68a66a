"""Repair as JSON, as sentences and as metrics; where a volume's bytes lie."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from cluster.errors import Invalid, NotFound, NotReady
from cluster.repair.messages import NodeRepair
from cluster.repair.status import NodeSummary
from cluster.volumes.volume import Volume
from node import repair_view
from node.api.openapi import openapi_document
from node.repair_view import CoreRepairView, attention, is_healthy, repair_json
from tests.unit.node.repair_port import IDLE, WHOLE, Cut, FakePieces, FakePort, without

ALIVE = {"n1", "n2", "n3"}
SCHEMAS = openapi_document("1")["components"]["schemas"]

VOLUME = Volume("v", b"i" * 16, 4, 100, 4096, 3, "fsync", 0.0, 0.0, map_inline=True)
CUTS = [Cut(0, 10, b"a" * 32, 0), Cut(10, 10, b"b" * 32, 5), Cut(40, 10, b"a" * 32, 2), Cut(60, 40, b"c" * 32, 0)]


def view_of(port: FakePort, pieces: FakePieces | None = None) -> CoreRepairView:
    return CoreRepairView(lambda: port, lambda: pieces)


def test_the_document_is_what_the_schema_says() -> None:
    schema = SCHEMAS["Repair"]
    document = repair_json(without(WHOLE, "n2", 100))
    assert set(document) == set(schema["required"])
    assert set(document["scrub"]) == set(schema["properties"]["scrub"]["required"])
    for node in document["nodes"]:
        assert set(node) == set(schema["properties"]["nodes"]["items"]["required"])
    n1, n2, _ = document["nodes"]
    assert (n1["answered"], n1["passes"], n1["oldest_divergence_s"], n1["last_error"]) == (True, 3, None, None)
    assert (n2["answered"], n2["copies_missing"], n2["passes"], n2["paused"]) == (False, 100, None, None)


def test_the_numbers_are_the_summarys() -> None:
    busy = replace(
        IDLE, oldest_s=4.0, refilling=5, queue=6, copied_chunks=7, copied_bytes=8, byte_rate=9.0, last_error="cut off"
    )
    summary = replace(
        WHOLE,
        copies_missing=12,
        keys_diverged=2,
        chunks_diverged=3,
        oldest_s=4.0,
        handoffs=1,
        chunk_rate=6.0,
        byte_rate=9.0,
        eta_s=2.0,
        paused=("n3",),
        nodes=(NodeSummary("n1", 100, 12, busy), NodeSummary("n2", 100, 0, replace(IDLE, damaged_chunks=2))),
    )
    document = repair_json(summary)
    sums = (
        "copies_missing",
        "copies_due",
        "keys_diverged",
        "chunks_diverged",
        "oldest_divergence_s",
        "handoffs",
        "eta_s",
    )
    assert [document[name] for name in sums] == [12, 300, 2, 3, 4.0, 1, 2.0]
    assert (document["health"], document["rate_bytes_per_s"], document["rate_chunks_per_s"]) == ("degraded", 9.0, 6.0)
    assert (document["passes"], document["paused"]) == (3, ["n3"])
    assert document["scrub"] == {"oldest_verification_s": 60.0, "verified_chunks": 20, "damaged_chunks": 2}
    names = ("refilling_partitions", "queue", "copied_chunks", "copied_bytes", "rate_bytes_per_s", "last_error")
    assert [document["nodes"][0][name] for name in names] == [5, 6, 7, 8, 9.0, "cut off"]


@pytest.mark.parametrize(
    "change",
    [{"copies_missing": 1}, {"keys_diverged": 1}, {"chunks_diverged": 1}, {"handoffs": 1}],
    ids=lambda change: next(iter(change)),
)
def test_what_is_not_whole_is_never_healthy_and_is_said(change: dict[str, int]) -> None:
    summary = replace(WHOLE, **change)  # type: ignore[arg-type]  # counts
    assert not is_healthy(summary)
    assert attention(summary, ALIVE)
    assert repair_json(summary)["health"] == "degraded"


def test_a_whole_cluster_needs_nothing() -> None:
    assert is_healthy(WHOLE)
    assert attention(WHOLE, ALIVE) == []


def test_a_node_that_says_nothing_is_not_taken_for_a_healthy_one() -> None:
    silent = without(WHOLE, "n2", 0)
    assert silent.whole
    assert not is_healthy(silent)
    assert any("n2 said nothing" in line for line in attention(silent, ALIVE))


def test_sentences_say_who_lacks_what_and_what_to_do() -> None:
    (line,) = attention(without(WHOLE, "n2", 100), {"n1", "n3"})
    assert line.startswith("100 of 300 copies are missing: n2 lacks 100;")
    assert "start n2 again" in line
    assert "layout plan --remove n2" in line
    refilled = replace(
        WHOLE,
        copies_missing=7,
        nodes=(NodeSummary("n1", 100, 7, IDLE), *WHOLE.nodes[1:]),
    )
    (line,) = attention(refilled, ALIVE)
    assert "repair is copying them" in line
    assert "start" not in line
    diverged = replace(WHOLE, keys_diverged=2, chunks_diverged=3, oldest_s=41.0)
    assert "2 keys and 3 chunks differ between replicas, the oldest for 41 s" in attention(diverged, ALIVE)[0]
    (line,) = attention(replace(WHOLE, paused=("n1", "n2")), ALIVE)
    assert "paused on n1, n2" in line
    assert "holdfast repair resume" in line


def test_sentences_stay_short() -> None:
    many = tuple(NodeSummary(f"n{index}", 10, 10, None) for index in range(50))
    line = attention(replace(WHOLE, copies_missing=500, nodes=many), ())[0]
    assert "and 45 more" in line
    assert len(line) < 400


async def test_orders_tell_what_became_of_them() -> None:
    port = FakePort(failures={"n2": "it does not answer"})
    document = await view_of(port).control_repair("pause")
    assert port.orders == ["pause"]
    assert document == {
        "action": "pause",
        "nodes": [
            {"name": "n1", "done": True, "error": None},
            {"name": "n2", "done": False, "error": "it does not answer"},
            {"name": "n3", "done": True, "error": None},
        ],
    }
    assert set(document) == set(SCHEMAS["RepairControl"]["required"])


async def test_a_summary_is_not_waited_for_longer_than_its_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repair_view, "OVERVIEW_DEADLINE_S", 0.05)
    began = time.monotonic()
    with pytest.raises(TimeoutError):
        await view_of(FakePort(hangs=True)).summary()
    assert time.monotonic() - began < 1.5


async def test_without_a_core_there_is_nothing_to_say() -> None:
    view = CoreRepairView(lambda: None, lambda: None)
    assert await view.summary() is None
    assert view.passes() == 0
    assert list(view.samples()) == []
    for work in (view.repair(), view.control_repair("run"), view.where("v", 0, None, 10)):
        with pytest.raises(NotReady):
            await work


def pieces() -> tuple[FakePort, CoreRepairView]:
    port = FakePort(
        held={
            b"a" * 32: {"n1": True, "n2": True, "n3": True},
            b"b" * 32: {"n1": True, "n2": None, "n3": False},
            b"c" * 32: {"n1": True, "n2": True, "n3": False, "n4": True},
        }
    )
    return port, view_of(port, FakePieces(VOLUME, CUTS))


async def test_where_says_who_holds_each_piece() -> None:
    port, view = pieces()
    document = await view.where("v", 0, None, 10)
    assert set(document) == set(SCHEMAS["PiecePage"]["required"])
    assert set(document["pieces"][0]) == set(SCHEMAS["PiecePage"]["properties"]["pieces"]["items"]["required"])
    assert (document["etag"], document["size"], document["next"]) == (VOLUME.etag, 100, None)
    a, b, again, c = document["pieces"]
    assert (a["offset"], a["length"], a["chunk"], a["due"]) == (0, 10, "61" * 32, ["n1", "n2", "n3"])
    assert (a["held_by"], a["unknown"], a["elsewhere"]) == (["n1", "n2", "n3"], [], [])
    assert (b["chunk_offset"], b["held_by"], b["unknown"], b["elsewhere"]) == (5, ["n1"], ["n2"], [])
    assert (again["chunk"], again["held_by"]) == (a["chunk"], a["held_by"])
    assert (c["held_by"], c["elsewhere"]) == (["n1", "n2", "n4"], ["n4"])
    assert port.asked == [b"a" * 32, b"b" * 32, b"c" * 32]  # each once, however often it is used


async def test_where_gives_pages() -> None:
    _, view = pieces()
    seen = []
    at: int | None = 0
    while at is not None:
        page = await view.where("v", at, None, 1)
        seen += [piece["offset"] for piece in page["pieces"]]
        at = page["next"]
    assert seen == [0, 10, 40, 60]


@pytest.mark.parametrize(
    ("offset", "length", "expected"),
    [
        (0, 10, [0]),
        (5, 10, [0, 10]),
        (20, 20, []),
        (20, 21, [40]),
        (99, None, [60]),
        (100, None, []),
        (0, 10**9, [0, 10, 40, 60]),
    ],
)
async def test_where_keeps_to_its_range(offset: int, length: int | None, expected: list[int]) -> None:
    _, view = pieces()
    page = await view.where("v", offset, length, 10)
    assert [piece["offset"] for piece in page["pieces"]] == expected
    assert page["next"] is None


async def test_where_refuses_what_is_not_there() -> None:
    _, view = pieces()
    with pytest.raises(NotFound):
        await view.where("w", 0, None, 10)
    with pytest.raises(Invalid) as caught:
        await view.where("v", 101, None, 10)
    assert caught.value.details["field"] == "offset"


def samples(own: NodeRepair) -> dict[str, float]:
    return {sample.name: sample.value for sample in view_of(FakePort(own=own)).samples()}


def test_metrics_are_this_nodes_own() -> None:
    shown = samples(
        replace(
            IDLE,
            lacking=1,
            keys_diverged=2,
            chunks_diverged=3,
            oldest_s=4.5,
            handoffs=5,
            copied_chunks=6,
            copied_bytes=7,
            compared_chunks=8,
            passes=9,
            paused=True,
            oldest_verification_s=10.0,
            damaged_chunks=11,
            verified_chunks=12,
            last_error="no route",
        )
    )
    assert shown == {
        "repair_copies_lacking": 1,
        "repair_keys_diverged": 2,
        "repair_chunks_diverged": 3,
        "repair_oldest_divergence_seconds": 4.5,
        "repair_handoffs": 5,
        "repair_refilling_partitions": 0,
        "repair_queue": 0,
        "repair_copied_chunks": 6,
        "repair_copied_bytes": 7,
        "repair_compared_chunks": 8,
        "repair_passes": 9,
        "repair_paused": 1,
        "repair_failed": 1,
        "scrub_oldest_verification_seconds": 10.0,
        "scrub_damaged_chunks": 11,
        "scrub_verified_chunks": 12,
    }
    assert samples(IDLE)["repair_oldest_divergence_seconds"] == 0


def test_what_was_never_verified_is_not_said_to_have_been() -> None:
    """A negative age: a pass has to end first."""
    unknown = replace(IDLE, oldest_verification_s=-1.0)
    assert "scrub_oldest_verification_seconds" not in samples(unknown)
    document = repair_json(replace(WHOLE, nodes=(NodeSummary("n1", 100, 0, unknown), *WHOLE.nodes[1:])))
    assert document["scrub"]["oldest_verification_s"] is None
    assert [node["oldest_verification_s"] for node in document["nodes"]] == [None, 60.0, 60.0]


def test_a_node_without_a_layout_has_no_figures() -> None:
    port = FakePort(error=NotReady("no layout"), own=replace(IDLE, passes=4))
    assert list(view_of(port).samples()) == []
    assert view_of(port).passes() == 4


def test_passes_are_this_nodes() -> None:
    assert view_of(FakePort(own=replace(IDLE, passes=4))).passes() == 4
