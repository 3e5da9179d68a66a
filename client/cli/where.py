"""`holdfast where`: on which nodes the bytes of a volume lie."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from client.cli.options import DEFAULT_TIMEOUT_S, Endpoint, Json, Length, Timeout, TokenFile
from client.cli.output import print_json, print_lines, print_note, print_table
from client.cli.session import Session, fail
from client.cli.sizes import parse_size
from client.errors import Invalid

if TYPE_CHECKING:
    from client.api import Holdfast

COLUMNS = ("OFFSET", "LENGTH", "CHUNK", "HELD BY", "MISSING", "UNKNOWN", "ELSEWHERE")

CHUNK_DIGITS = 16
"""Of a chunk's 64 digits: enough to tell chunks apart; ``--json`` has them all."""


def where(
    place: Annotated[
        str,
        typer.Argument(
            metavar="VOLUME[:OFFSET]", help="A volume, or a byte of it such as disk:1MiB.", show_default=False
        ),
    ],
    length: Length = None,
    endpoint: Endpoint = None,
    token_file: TokenFile = None,
    timeout: Timeout = DEFAULT_TIMEOUT_S,
    as_json: Json = False,
) -> None:
    """Which nodes hold the bytes of a volume, asked of every node now.

    One line a piece: a run of bytes that lie in one chunk. HELD BY has the nodes that should hold it and do; MISSING those
    that should and do not; UNKNOWN those that should and did not answer; ELSEWHERE others that hold it, as handoffs for absent
    nodes or because a layout change has not given it up yet. What was never written is a hole and has no line. With an
    OFFSET and no --length: the piece at that byte.

    \b
    Examples:
      holdfast where disk
      holdfast where disk:1MiB
      holdfast where disk:1GiB --length 64MiB --json
    """
    try:
        name, offset = parse_place(place)
    except ValueError as error:
        fail(Invalid(str(error)), as_json=as_json)
    if length == 0:
        fail(Invalid("--length must be at least 1"), as_json=as_json)
    wanted = 1 if length is None and ":" in place else length

    async def work(holdfast: Holdfast) -> list[dict[str, Any]]:
        return [piece async for piece in holdfast.where(name, offset=offset, length=wanted)]

    pieces = Session(endpoint, token_file, timeout, as_json).run(work)
    if as_json:
        print_json({"volume": name, "pieces": pieces})
    elif pieces:
        rows = [row(piece) for piece in pieces]
        print_table(COLUMNS, rows)
        short = sum(cells[COLUMNS.index("MISSING")] != "-" for cells in rows)
        if short:
            print_note(
                f"{short} of {len(pieces)} pieces lack copies; `holdfast repair show` says how their repair goes"
            )
    else:
        print_lines(f"{name} has no bytes there: it is a hole, which takes no space and reads as zeroes")


def parse_place(text: str) -> tuple[str, int]:
    """``disk:1MiB`` as name and bytes. Raises `ValueError` with a sentence for people."""
    name, colon, offset = text.partition(":")
    if not name or (colon and not offset):
        raise ValueError(f"{text!r} should be VOLUME or VOLUME:OFFSET, such as disk:1MiB")
    return name, parse_size(offset) if offset else 0


def row(piece: dict[str, Any]) -> list[str]:
    """One line, under COLUMNS."""
    due, held, unknown = piece["due"], set(piece["held_by"]), set(piece["unknown"])
    groups = (
        [name for name in due if name in held],
        [name for name in due if name not in held and name not in unknown],
        [name for name in due if name in unknown],
        piece["elsewhere"],
    )
    numbers = [str(piece["offset"]), str(piece["length"]), piece["chunk"][:CHUNK_DIGITS]]
    return numbers + [",".join(group) or "-" for group in groups]
