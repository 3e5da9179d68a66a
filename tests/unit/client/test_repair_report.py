"""The words for repair, and when a wait for it is over."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from client.cli.durations import format_duration
from client.cli.repair_report import bar, diverged_line, missing_line, node_rows, report_rows
from client.cli.repair_wait import RepairWait, unfinished
from client.cli.where import parse_place, row
from tests.unit.client.repair_documents import repair_document


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0 s"),
        (0.25, "0.2 s"),
        (9.96, "10 s"),
        (59.6, "1 min"),
        (61, "1 min 1 s"),
        (3600, "1 h"),
        (3661, "1 h 1 min"),
        (3605, "1 h"),
        (90000, "1 d 1 h"),
        (-1, "0 s"),
    ],
)
def test_durations(seconds: float, words: str) -> None:
    assert format_duration(seconds) == words


def test_a_bar_is_full_only_at_the_end() -> None:
    assert bar(0, 10, 10) == "[----------]"
    assert bar(999, 1000, 10) == "[#########-]"
    assert bar(10, 10, 10) == "[##########]"
    assert bar(0, 0, 10) == "[##########]"


def test_missing_copies_in_words() -> None:
    assert missing_line({"copies_missing": 0, "copies_due": 30}) == "none of 30"
    line = missing_line(
        {"copies_missing": 3, "copies_due": 30, "rate_bytes_per_s": 1 << 20, "rate_chunks_per_s": 2.0, "eta_s": 90}
    )
    assert line == "[###########################---] 3 of 30 (10.0 %), 1 MiB/s, 2.0 chunks/s, 1 min 30 s left"
    assert missing_line({"copies_missing": 3, "copies_due": 30}).endswith("nothing moves now")
    assert diverged_line({"keys_diverged": 1, "chunks_diverged": 2, "oldest_divergence_s": 5}) == (
        "1 keys, 2 chunks, the oldest for 5 s"
    )


def test_the_report_names_what_is_not_as_it_should_be() -> None:
    document = repair_document(missing=12, silent=("n2",))
    document["paused"] = ["n1"]
    document["nodes"][0] |= {"paused": True}
    document["nodes"][2] |= {"last_error": "the disk is full"}
    words = "\n".join(" ".join(pair) for pair in report_rows(document))
    assert "degraded" in words
    assert "12 of 300" in words
    assert "n1 (`holdfast repair resume`)" in words
    assert [cells[-1] for cells in node_rows(document)] == ["paused", "no answer", "the disk is full"]
    assert len({len(cells) for cells in node_rows(document)}) == 1


def later(document: dict[str, Any], passes: int = 1, age: float | None = None) -> dict[str, Any]:
    document = copy.deepcopy(document)
    for node in document["nodes"]:
        if node["answered"]:
            node["passes"] += passes
            node["oldest_verification_s"] = node["oldest_verification_s"] if age is None else age
    return document


def over(wait: RepairWait, document: dict[str, Any], elapsed_s: float = 1.0) -> bool:
    return [wait.is_over(document, elapsed_s) for _ in range(3)][-1]


def test_a_wait_is_over_when_all_is_whole_and_everybody_has_compared_since() -> None:
    before = repair_document()
    assert not over(RepairWait(before, scrub=False), before)
    assert over(RepairWait(before, scrub=False), later(before))
    assert not over(RepairWait(before, scrub=False), later(repair_document(missing=1)))
    assert not over(RepairWait(before, scrub=False), later(repair_document(silent=("n2",))))
    partly = later(before)
    partly["nodes"][1]["passes"] -= 1
    assert not over(RepairWait(before, scrub=False), partly)
    restarted = later(before)
    restarted["nodes"][1]["passes"] = 0
    assert not over(RepairWait(before, scrub=False), restarted)
    restarted["nodes"][1]["passes"] = 1
    assert over(RepairWait(before, scrub=False), restarted)


def test_one_whole_look_may_be_a_moment_before_a_finding() -> None:
    before = repair_document()
    wait = RepairWait(before, scrub=False)
    assert not wait.is_over(later(before), 1.0)
    assert not wait.is_over(later(repair_document(missing=1)), 1.1)
    assert not wait.is_over(later(before), 1.2)
    assert wait.is_over(later(before), 1.3)


def test_a_scrub_is_over_when_everything_was_verified_since() -> None:
    before = repair_document()
    assert not over(RepairWait(before, scrub=True), later(before, age=105.0), 5.0)
    assert over(RepairWait(before, scrub=True), later(before, age=4.0), 5.0)


def test_a_scrub_that_was_under_way_is_waited_for_and_not_longer() -> None:
    """It began before the order, so what it verified first was verified before it, too."""
    before = repair_document()
    assert not over(RepairWait(before, scrub=True), later(before, age=105.0), 5.0)
    assert over(RepairWait(before, scrub=True), later(before, age=30.0), 5.0)
    unknown = copy.deepcopy(before)
    for node in unknown["nodes"]:
        node["oldest_verification_s"] = None
    silent = later(before)
    silent["nodes"][1]["oldest_verification_s"] = None
    assert not over(RepairWait(unknown, scrub=True), silent, 5.0)
    assert over(RepairWait(unknown, scrub=True), later(before, age=30.0), 5.0)


def test_a_single_node_has_nobody_to_compare_with() -> None:
    before = repair_document(names=("n1",))
    assert over(RepairWait(before, scrub=False), before)


def test_what_is_unfinished_is_said() -> None:
    assert unfinished(None) == "how repair goes is not known"
    assert unfinished(repair_document(missing=4)) == "4 of 300 copies are missing"
    assert unfinished(repair_document(silent=("n2",))) == "n2 does not answer"
    assert "verified" in unfinished(repair_document())
    assert "differ" in unfinished({**repair_document(), "health": "degraded"})


@pytest.mark.parametrize(
    ("text", "place"), [("disk", ("disk", 0)), ("disk:1MiB", ("disk", 1 << 20)), ("a.b-c:0", ("a.b-c", 0))]
)
def test_places(text: str, place: tuple[str, int]) -> None:
    assert parse_place(text) == place


@pytest.mark.parametrize("text", ["", ":5", "disk:", "disk:x", "disk:1:2"])
def test_what_is_no_place(text: str) -> None:
    with pytest.raises(ValueError, match=r"should be|is not a size"):
        parse_place(text)


def test_a_piece_in_a_row() -> None:
    piece = {
        "offset": 5,
        "length": 7,
        "chunk": "ab" * 32,
        "due": ["n3", "n1", "n2"],
        "held_by": ["n3", "n4"],
        "unknown": ["n2", "n5"],
        "elsewhere": ["n4"],
    }
    assert row(piece) == ["5", "7", "ab" * 8, "n3", "n1", "n2", "n4"]
