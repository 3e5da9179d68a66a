"""The options that every command takes, declared once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypeAlias

import typer

from client.cli.sizes import parse_size


def size_argument(text: str) -> int:
    """A typer parser for sizes."""
    try:
        return parse_size(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


Endpoint: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--endpoint",
        "-e",
        metavar="URL",
        help="A node's API, http://host:port; give it several times to name several nodes. Default: $HOLDFAST_ENDPOINTS.",
        show_default=False,
    ),
]
TokenFile: TypeAlias = Annotated[
    Path | None,
    typer.Option("--token-file", metavar="FILE", help="Read the API token from a file. Default: $HOLDFAST_API_TOKEN."),
]
Timeout: TypeAlias = Annotated[
    float,
    typer.Option(
        "--timeout",
        min=0,
        metavar="SECONDS",
        help="Keep trying this long while no node can do it (default 30).",
        show_default=False,
    ),
]
Json: TypeAlias = Annotated[bool, typer.Option("--json", help="Print JSON, also for errors (on standard error).")]
IfMatch: TypeAlias = Annotated[
    str | None, typer.Option("--if-match", metavar="ETAG", help="Only if this is still the volume's version.")
]
Offset: TypeAlias = Annotated[
    int | None,
    typer.Option(
        "--offset", parser=size_argument, metavar="SIZE", help="Begin at this byte of the volume.", show_default=False
    ),
]
Length: TypeAlias = Annotated[
    int | None,
    typer.Option("--length", parser=size_argument, metavar="SIZE", help="This many bytes.", show_default=False),
]

DEFAULT_TIMEOUT_S = 30.0
