"""`holdfast layout`: which node holds which share of the data, and how that is changed."""

from __future__ import annotations

import sys
from typing import Annotated, Any, NamedTuple

import typer

from client.cli.exit_codes import EPILOG
from client.cli.options import DEFAULT_TIMEOUT_S, Endpoint, Json, Timeout, TokenFile
from client.cli.output import print_document, print_json, print_lines, print_note
from client.cli.session import Session, fail
from client.cli.sizes import parse_size
from client.errors import Invalid

app = typer.Typer(
    help="Show and change which node holds which share of the data.",
    no_args_is_help=True,
    rich_markup_mode=None,
    epilog=EPILOG,
)


@app.command(epilog=EPILOG)
def show(
    endpoint: Endpoint = None, token_file: TokenFile = None, timeout: Timeout = DEFAULT_TIMEOUT_S, as_json: Json = False
) -> None:
    """The layout in force, and the change that is staged or under way.

    \b
    Example:
      holdfast layout show
    """
    document = Session(endpoint, token_file, timeout, as_json).run(lambda holdfast: holdfast.layout())
    _show(document, as_json=as_json)


@app.command(epilog=EPILOG)
def plan(
    remove: Annotated[
        list[str] | None, typer.Option("--remove", metavar="NODE", help="Move everything away from this node.")
    ] = None,
    capacity: Annotated[
        list[str] | None,
        typer.Option(
            "--capacity",
            metavar="NODE=SIZE",
            help="Bytes it offers, such as 500GiB: its share is in proportion; `holdfast nodes` shows the others'.",
        ),
    ] = None,
    zone: Annotated[
        list[str] | None, typer.Option("--zone", metavar="NODE=ZONE", help="Copies go to different zones first.")
    ] = None,
    endpoint: Endpoint = None,
    token_file: TokenFile = None,
    timeout: Timeout = DEFAULT_TIMEOUT_S,
    as_json: Json = False,
) -> None:
    """What the next layout would look like and which bytes would move. Applies nothing.

    Changes given here are staged together with nodes that wait to join.

    \b
    Examples:
      holdfast layout plan
      holdfast layout plan --remove n3
      holdfast layout plan --capacity n1=500GiB --zone n1=rack-2
    """
    changes = _changes(remove or [], capacity or [], zone or [], as_json=as_json)
    document = Session(endpoint, token_file, timeout, as_json).run(lambda holdfast: holdfast.plan_layout(changes))
    _show(document, as_json=as_json)
    if not as_json and (planned := planned_in(document)) is not None:
        print_lines("", f"apply it with: holdfast layout apply {planned}")


@app.command("apply", epilog=EPILOG)
def apply_plan(
    wanted: Annotated[
        str | None,
        typer.Argument(
            metavar="[PLAN]",
            help="As `holdfast layout plan` names it: 7-0c9f21ab. A version alone, such as 7, is whatever plan has that version now. "
            "Without it, the plan is shown first.",
        ),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    endpoint: Endpoint = None,
    token_file: TokenFile = None,
    timeout: Timeout = DEFAULT_TIMEOUT_S,
    as_json: Json = False,
) -> None:
    """Make the staged plan the layout; data moves in the background while everything stays readable and writable.

    A plan that has changed since it was shown, by another joiner or operator, is not applied.

    \b
    Examples:
      holdfast layout apply 7-0c9f21ab
      holdfast layout apply --yes
    """
    session = Session(endpoint, token_file, timeout, as_json)
    if wanted is not None:
        plan = _plan(wanted, as_json=as_json)
    else:
        document = session.run(lambda holdfast: holdfast.plan_layout())
        found = planned_in(document)
        if found is None:
            fail(Invalid("there is nothing to apply: no change is staged"), as_json=as_json)
        plan = found
        if not yes:
            if as_json or not sys.stdin.isatty():
                fail(Invalid(f"say which plan: `holdfast layout apply {plan}`, or --yes"), as_json=as_json)
            _show(document, as_json=False)
            typer.confirm(f"Apply layout {plan.version}?", abort=True, err=True)
    document = session.run(lambda holdfast: holdfast.apply_layout(plan.version, plan.fingerprint))
    _show(document, as_json=as_json)
    if not as_json:
        print_note(f"layout {plan.version} is applied; follow it with `holdfast layout show`")


@app.command(epilog=EPILOG)
def abort(
    endpoint: Endpoint = None, token_file: TokenFile = None, timeout: Timeout = DEFAULT_TIMEOUT_S, as_json: Json = False
) -> None:
    """Drop what is staged, or stop a change that is under way.

    \b
    Example:
      holdfast layout abort
    """
    document = Session(endpoint, token_file, timeout, as_json).run(lambda holdfast: holdfast.abort_layout())
    _show(document, as_json=as_json)


class Planned(NamedTuple):
    """Which plan: the version it would get, and its fingerprint; any plan of that version without one."""

    version: int
    fingerprint: str | None

    def __str__(self) -> str:
        return f"{self.version}-{self.fingerprint}" if self.fingerprint else str(self.version)


def planned_in(document: dict[str, Any]) -> Planned | None:
    """The plan in the server's answer, None when there is nothing to change."""
    version, fingerprint = document.get("version"), document.get("plan")
    if not isinstance(version, int):
        return None
    return Planned(version, fingerprint if isinstance(fingerprint, str) else None)


def _plan(text: str, *, as_json: bool) -> Planned:
    """The plan of that name, as a user types it."""
    version, dash, fingerprint = text.partition("-")
    if not (version.isascii() and version.isdigit()) or (dash and not fingerprint):
        fail(Invalid(f"{text!r} is no plan: `holdfast layout plan` names it, such as 7-0c9f21ab"), as_json=as_json)
    return Planned(int(version), fingerprint or None)


def _show(document: dict[str, Any], *, as_json: bool) -> None:
    """The server's own words where it gives some (``lines``), else the document by its shape."""
    if as_json:
        print_json(document)
    elif isinstance(lines := document.get("lines"), list) and lines:
        print_lines(*(str(line) for line in lines))
    else:
        print_document(document)


def _changes(removed: list[str], capacities: list[str], zones: list[str], *, as_json: bool) -> dict[str, Any]:
    """The options as the API's ``stage``: one entry a node."""
    staged: dict[str, dict[str, Any]] = {name: {"name": name, "remove": True} for name in removed}
    try:
        for name, value in map(_pair, capacities):
            staged.setdefault(name, {"name": name})["capacity"] = _capacity(value)
        for name, value in map(_pair, zones):
            staged.setdefault(name, {"name": name})["zone"] = value
    except ValueError as error:
        fail(Invalid(str(error)), as_json=as_json)
    return {"stage": list(staged.values())} if staged else {}


def _pair(text: str) -> tuple[str, str]:
    name, separator, value = text.partition("=")
    if not (name and separator and value):
        raise ValueError(f"{text!r} should be NODE=VALUE")
    return name, value


def _capacity(text: str) -> int:
    """Bytes. Raises `ValueError` with a sentence for people."""
    capacity = parse_size(text)
    if capacity < 1:
        raise ValueError("a capacity is at least one byte; use --remove to move everything away from a node")
    return capacity
