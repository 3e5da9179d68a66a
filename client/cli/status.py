"""`holdfast status`: how the cluster is, on one screen."""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from client.cli.options import DEFAULT_TIMEOUT_S, Endpoint, Json, Timeout, TokenFile
from client.cli.output import print_document, print_json, print_lines, table_lines
from client.cli.repair_report import aligned, movement, totals_rows
from client.cli.session import Session
from client.cli.sizes import format_size
from client.errors import HoldfastError

if TYPE_CHECKING:
    from client.api import Holdfast

WATCH_INTERVAL_S = 1.0
"""Between two screens of ``--watch``."""

WATCH_PATIENCE_S = 5.0
"""For one screen of ``--watch``: then it says what is wrong, and tries again."""

_CLEAR = "\x1b[H\x1b[J"


def status(
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Draw it anew every second, until Ctrl-C.")] = False,
    endpoint: Endpoint = None,
    token_file: TokenFile = None,
    timeout: Timeout = DEFAULT_TIMEOUT_S,
    as_json: Json = False,
) -> None:
    """How the cluster is: its health and what needs attention, nodes, missing copies and their repair, jobs.

    "healthy" means that every copy of everything is known to be where it belongs. "degraded": everything can be read and
    written, but something is missing, differs, or does not answer. "unavailable": parts can't be written now.

    \b
    Examples:
      holdfast status
      holdfast status --watch
      holdfast status --endpoint http://10.0.0.1:7480 --endpoint http://10.0.0.2:7480 --json
    """
    session = Session(endpoint, token_file, min(timeout, WATCH_PATIENCE_S) if watch else timeout, as_json)
    if watch:
        session.run(lambda holdfast: _watch(holdfast, as_json=as_json))
    elif as_json:
        print_json(session.run(lambda holdfast: holdfast.status()))
    else:
        document, nodes, jobs = session.run(_gather)
        if "health" in document:
            print_lines(*screen(document, nodes, jobs))
        else:
            print_document(document)


async def _gather(holdfast: Holdfast) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Three documents. A server of another kind than we know is asked for the first only."""
    document = await holdfast.status()
    if "health" not in document:
        return document, {}, {}
    nodes, jobs = await asyncio.gather(holdfast.nodes(), holdfast.jobs())
    return document, nodes, jobs


async def _watch(holdfast: Holdfast, *, as_json: bool) -> None:
    """For ever. With JSON one document a line; on a terminal each screen takes the place of the one before."""
    clear = _CLEAR if sys.stdout.isatty() and not as_json else ""
    while True:
        try:
            words = json.dumps(await holdfast.status()) if as_json else "\n".join(screen(*await _gather(holdfast)))
            text = f"{clear}{words}\n"
        except HoldfastError as error:
            if not error.retryable:
                raise
            text = "" if as_json else f"{clear}holdfast: {error.message}\n"
        await asyncio.to_thread(
            sys.stdout.write, text if as_json or clear else f"{text}\n"
        )  # a blank line between screens
        await asyncio.to_thread(sys.stdout.flush)
        await asyncio.sleep(WATCH_INTERVAL_S)


def screen(document: Mapping[str, Any], nodes: Mapping[str, Any], jobs: Mapping[str, Any]) -> list[str]:
    """The lines for people."""
    attention = document.get("attention") or []
    lines = [str(document.get("health")) + (":" if attention else ": every copy of everything is in its place")]
    lines += [f"  {line}" for line in attention]
    lines += ["", *aligned(_rows(document))]
    if listed := nodes.get("nodes"):
        lines += ["", *_node_lines(listed)]
    busy = [job for job in jobs.get("jobs", []) if job.get("queue_length") or job.get("last_error")]
    if busy:
        rows = [
            [job["name"], str(job.get("queue_length", 0)), job.get("last_error") or "-", job.get("waiting_for") or "-"]
            for job in busy
        ]
        title = f"jobs of {jobs['node']}" if "node" in jobs else "jobs of the answering node"
        lines += [
            "",
            f"{title} that have work or an error:",
            *table_lines(["JOB", "QUEUE", "ERROR", "WAITS FOR"], rows),
        ]
    return lines


def _rows(document: Mapping[str, Any]) -> list[tuple[str, str]]:
    layout, store, counts = document.get("layout") or {}, document.get("store") or {}, document.get("nodes") or {}
    rows = [("cluster", str(document.get("cluster_id") or "not formed yet"))]
    words = f"version {layout.get('version')}, {counts.get('in_layout')} nodes, {layout.get('partitions')} partitions"
    words += f", {layout.get('replication_factor')} copies of everything"
    if layout.get("changing_to") is not None:
        words += f"; version {layout['changing_to']} is being filled"
    rows.append(("layout", words))
    if (repair := document.get("repair")) is not None:
        rows += totals_rows(repair)
        if repair.get("copies_missing") == 0 and repair.get("rate_bytes_per_s"):
            rows.append(("repair", movement(repair)))
    else:
        rows.append(("repair", "unknown"))
    used = f"{format_size(store.get('live_bytes') or 0)} in {store.get('chunks')} chunks"
    rows.append((f"disk of {document.get('node')}", f"{used}, {format_size(store.get('free_bytes') or 0)} free"))
    return rows


def _node_lines(nodes: list[Mapping[str, Any]]) -> list[str]:
    states = Counter(str(node.get("state")) for node in nodes)
    rows = [
        [
            str(node.get("name")),
            str(node.get("state")),
            str(node.get("layout") or "-"),
            str(node.get("zone") or "-"),
            "-" if node.get("capacity") is None else format_size(node["capacity"]),
            str(node.get("partitions", "-")),
            str(node.get("api") or "-"),
        ]
        for node in nodes
    ]
    title = ", ".join(f"{count} {state}" for state, count in sorted(states.items()))
    return [
        f"nodes: {title}",
        *table_lines(["NODE", "STATE", "LAYOUT", "ZONE", "CAPACITY", "PARTITIONS", "API"], rows),
    ]
