"""`holdfast repair`: how the copies of everything are kept whole, and telling it what to do."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from client.cli.durations import format_duration
from client.cli.exit_codes import EPILOG
from client.cli.options import DEFAULT_TIMEOUT_S, Endpoint, Json, Timeout, TokenFile
from client.cli.output import print_json, print_lines, print_note, print_table
from client.cli.progress import repair_progress
from client.cli.repair_report import NODE_COLUMNS, aligned, node_rows, report_rows
from client.cli.repair_wait import RepairWait, unfinished
from client.cli.session import Session, fail
from client.errors import Unavailable

if TYPE_CHECKING:
    from client.api import Holdfast

app = typer.Typer(
    help="Show and steer repair: replicas are compared all the time, and what a node lacks is copied to it.",
    no_args_is_help=True,
    rich_markup_mode=None,
    epilog=EPILOG,
)

POLL_S = 0.5
"""Between two looks of `run --wait`."""

DEFAULT_WAIT_S = 3600.0


@app.command(epilog=EPILOG)
def show(
    endpoint: Endpoint = None, token_file: TokenFile = None, timeout: Timeout = DEFAULT_TIMEOUT_S, as_json: Json = False
) -> None:
    """How repair goes: copies missing, replicas that differ, rate and time left, and what each node does.

    A copy is missing while a node that should hold it does not: because it is down, or its disk was replaced or damaged.
    All of that mends itself once the node is back; nothing is lost while one good copy exists.

    \b
    Examples:
      holdfast repair show
      holdfast repair show --json
    """
    document = Session(endpoint, token_file, timeout, as_json).run(lambda holdfast: holdfast.repair())
    if as_json:
        print_json(document)
    else:
        print_lines(*aligned(report_rows(document)), "")
        print_table(NODE_COLUMNS, node_rows(document))


@app.command(epilog=EPILOG)
def run(
    scrub: Annotated[
        bool, typer.Option("--scrub", help="Read and verify every stored chunk on every node, too.")
    ] = False,
    wait: Annotated[
        bool, typer.Option("--wait/--no-wait", help="Wait until everything is whole (the default).")
    ] = True,
    wait_s: Annotated[
        float,
        typer.Option(
            "--timeout",
            min=0,
            metavar="SECONDS",
            help=f"Wait no longer than this (default {DEFAULT_WAIT_S:.0f}); then exit with 5, while repair goes on.",
            show_default=False,
        ),
    ] = DEFAULT_WAIT_S,
    endpoint: Endpoint = None,
    token_file: TokenFile = None,
    as_json: Json = False,
) -> None:
    """Compare all replicas now, copy what is missing, and wait until everything is whole.

    Repair runs by itself; this makes it look at once. A scrub finds what the disk has damaged unnoticed. It takes as long as
    reading all stored data does.

    \b
    Examples:
      holdfast repair run
      holdfast repair run --scrub --timeout 7200
      holdfast repair run --no-wait
    """
    session = Session(endpoint, token_file, min(wait_s, DEFAULT_TIMEOUT_S), as_json)
    began = time.monotonic()

    async def work(holdfast: Holdfast) -> tuple[dict[str, Any], dict[str, Any] | None, int]:
        before = await holdfast.repair() if wait else {"nodes": []}
        asked = time.monotonic()
        told = await holdfast.repair_run(scrub=scrub)
        _note_failures(told)
        if not wait:
            return told, None, 0
        document = await _until_whole(holdfast, RepairWait(before, scrub=scrub), asked, wait_s, quiet=as_json)
        return told, document, max(0, document["scrub"]["damaged_chunks"] - before["scrub"]["damaged_chunks"])

    told, document, damaged = session.run(work)
    seconds = time.monotonic() - began
    if as_json:
        whole = {} if document is None else {"whole": True, "seconds": round(seconds, 3), "repair": document}
        print_json({**told, **whole})
    elif document is None:
        print_lines(f"{_heard(told)} look now; follow it with `holdfast repair show`")
    else:
        print_lines(f"whole after {format_duration(seconds)}: all {document['copies_due']} copies are in their places")
        if scrub:
            found = f"{damaged} were found damaged, and are good again" if damaged else "none was found damaged"
            print_lines(f"every chunk was read and verified; {found}")


@app.command(epilog=EPILOG)
def pause(
    endpoint: Endpoint = None, token_file: TokenFile = None, timeout: Timeout = DEFAULT_TIMEOUT_S, as_json: Json = False
) -> None:
    """Let repair and scrub rest on all nodes, until `holdfast repair resume`.

    Missing copies stay missing meanwhile: for a rush hour, not for ever. A node that is down does not hear it, which is an error
    (exit code 5); those that heard it rest all the same, also when they are started anew.

    \b
    Example:
      holdfast repair pause
    """
    told = Session(endpoint, token_file, timeout, as_json).run(lambda holdfast: holdfast.repair_pause())
    _report(told, "let repair rest", as_json=as_json)


@app.command(epilog=EPILOG)
def resume(
    endpoint: Endpoint = None, token_file: TokenFile = None, timeout: Timeout = DEFAULT_TIMEOUT_S, as_json: Json = False
) -> None:
    """Let repair and scrub go on.

    \b
    Example:
      holdfast repair resume
    """
    told = Session(endpoint, token_file, timeout, as_json).run(lambda holdfast: holdfast.repair_resume())
    _report(told, "go on with repair", as_json=as_json)


async def _until_whole(
    holdfast: Holdfast, wait: RepairWait, asked: float, wait_s: float, *, quiet: bool
) -> dict[str, Any]:
    """The first document that shows everything whole. Raises Unavailable when that takes too long."""
    document: dict[str, Any] | None = None
    try:
        async with asyncio.timeout(wait_s):
            with repair_progress(quiet=quiet) as advance:
                while True:
                    document = await holdfast.repair()
                    advance(document)
                    if wait.is_over(document, time.monotonic() - asked):
                        return document
                    await asyncio.sleep(POLL_S)
    except TimeoutError as error:
        raise Unavailable(
            f"not whole after {format_duration(wait_s)}: {unfinished(document)}. Repair goes on by itself; "
            "see `holdfast repair show`"
        ) from error


def _report(told: dict[str, Any], words: str, *, as_json: bool) -> None:
    """What became of an order; a node that did not follow it makes the command fail."""
    if as_json:
        print_json(told)
    else:
        print_lines(f"{_heard(told)} {words}")
    if failed := _failures(told):
        fail(Unavailable(f"not done everywhere: {failed}; try again"), as_json=as_json)


def _note_failures(told: dict[str, Any]) -> None:
    if failed := _failures(told):
        print_note(f"not everywhere: {failed}")


def _failures(told: dict[str, Any]) -> str:
    return "; ".join(f"{node['name']}: {node['error']}" for node in told["nodes"] if not node["done"])


def _heard(told: dict[str, Any]) -> str:
    return ", ".join(node["name"] for node in told["nodes"] if node["done"]) or "no nodes"
