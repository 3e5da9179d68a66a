"""What people read about repair: lines and tables made of the documents of `/v1/repair` and `/v1/cluster`. Pure, but for the printing.

A member that an older or newer server lacks is left out, never an error.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from client.cli.durations import format_duration
from client.cli.sizes import format_size

BAR_WIDTH = 30

Document = Mapping[str, Any]


def bar(done: float, total: float, width: int = BAR_WIDTH) -> str:
    """``[#####-----]``: full only when it is done."""
    filled = width if done >= total else int(width * max(0.0, done) / total)
    return f"[{'#' * filled}{'-' * (width - filled)}]"


def movement(totals: Document) -> str:
    """``35.2 MiB/s, 12 s left``; says so when nothing moves."""
    rate = totals.get("rate_bytes_per_s") or 0
    chunks = totals.get("rate_chunks_per_s") or 0
    eta = totals.get("eta_s")
    if not rate and not chunks:
        return "nothing moves now"
    words = f"{format_size(rate)}/s, {chunks:.1f} chunks/s"
    return words if eta is None else f"{words}, {format_duration(eta)} left"


def missing_line(totals: Document) -> str:
    """``120 of 1500 copies, 8 %, ...`` with a bar of those that are there; one word when none is missing."""
    missing, due = totals.get("copies_missing") or 0, totals.get("copies_due") or 0
    if not missing:
        return f"none of {due}"
    total = max(due, missing)
    return f"{bar(total - missing, total)} {missing} of {due} ({100 * missing / total:.1f} %), {movement(totals)}"


def diverged_line(totals: Document) -> str:
    keys, chunks = totals.get("keys_diverged") or 0, totals.get("chunks_diverged") or 0
    if not keys and not chunks:
        return "nothing"
    oldest = totals.get("oldest_divergence_s")
    return f"{keys} keys, {chunks} chunks" + ("" if oldest is None else f", the oldest for {format_duration(oldest)}")


def totals_rows(totals: Document) -> list[tuple[str, str]]:
    """The cluster's sums, as names and words."""
    return [
        ("copies missing", missing_line(totals)),
        ("diverged", diverged_line(totals)),
        ("handoffs", f"{totals.get('handoffs') or 0}"),
    ]


def report_rows(document: Document) -> list[tuple[str, str]]:
    """``GET /v1/repair`` but for its nodes."""
    rows = [("health", str(document.get("health", "unknown"))), *totals_rows(document)]
    if not document.get("copies_missing") and document.get("rate_bytes_per_s"):
        rows.append(("rate", movement(document)))
    rows.append(("passes", f"{document.get('passes', 0)} full comparisons by every node since its start"))
    if isinstance(scrub := document.get("scrub"), Mapping):
        age = scrub.get("oldest_verification_s")
        words = (
            "when everything was last verified is not known yet"
            if age is None
            else f"nothing was last verified longer than {format_duration(age)} ago"
        )
        counts = f"{scrub.get('verified_chunks', 0)} chunks verified, {scrub.get('damaged_chunks', 0)} found damaged"
        rows.append(("scrub", f"{words}; {counts} since the nodes' start"))
    if paused := document.get("paused"):
        rows.append(("paused", f"{', '.join(paused)} (`holdfast repair resume`)"))
    return rows


NODE_COLUMNS = (
    *("NODE", "DUE", "MISSING", "HANDOFFS", "DIVERGED", "QUEUE"),
    *("COPIED", "RATE", "PASSES", "VERIFIED", "DAMAGED", "STATE"),
)


def node_rows(document: Document) -> list[list[str]]:
    """One row a node, under NODE_COLUMNS."""
    return [_node_row(node) for node in document.get("nodes", [])]


def _node_row(node: Document) -> list[str]:
    known = [str(node.get("name")), str(node.get("copies_due", "-")), str(node.get("copies_missing", "-"))]
    if not node.get("answered"):
        return [*known, *["-"] * (len(NODE_COLUMNS) - 4), "no answer"]
    state = str(node.get("last_error") or "") or ("paused" if node.get("paused") else "-")
    age = node.get("oldest_verification_s")
    return [
        *known,
        str(node.get("handoffs", "-")),
        str((node.get("keys_diverged") or 0) + (node.get("chunks_diverged") or 0)),
        str(node.get("queue", "-")),
        format_size(node.get("copied_bytes") or 0),
        f"{format_size(node.get('rate_bytes_per_s') or 0)}/s",
        str(node.get("passes", "-")),
        "-" if age is None else f"{format_duration(age)} ago",
        str(node.get("damaged_chunks", "-")),
        state,
    ]


def aligned(rows: list[tuple[str, str]], *, indent: str = "") -> list[str]:
    """Names and words in two columns."""
    width = max((len(name) for name, _ in rows), default=0)
    return [f"{indent}{name.ljust(width)}  {words}" for name, words in rows]
