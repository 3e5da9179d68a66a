"""The command tree, and the commands that look at the cluster as a whole."""

from __future__ import annotations

from typing import Annotated

import typer

from client.cli import dev, layout, repair, status, volume, where
from client.cli.exit_codes import EPILOG
from client.cli.options import DEFAULT_TIMEOUT_S, Endpoint, Json, Timeout, TokenFile
from client.cli.output import print_document, print_json
from client.cli.session import Session

app = typer.Typer(
    name="holdfast",
    help="Volumes that stay alive while machines die: the command line of a Holdfast cluster.",
    epilog=EPILOG,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
app.add_typer(volume.app, name="volume")
app.add_typer(layout.app, name="layout")
app.add_typer(repair.app, name="repair")
app.add_typer(dev.app, name="dev")


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(version("holdfast"))
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the release and stop.")
    ] = False,
) -> None:
    """Volumes that stay alive while machines die: the command line of a Holdfast cluster."""


app.command(epilog=EPILOG)(status.status)
app.command(epilog=EPILOG)(where.where)


@app.command(epilog=EPILOG)
def nodes(
    endpoint: Endpoint = None, token_file: TokenFile = None, timeout: Timeout = DEFAULT_TIMEOUT_S, as_json: Json = False
) -> None:
    """The nodes, and which of them are alive.

    \b
    Example:
      holdfast nodes
    """
    document = Session(endpoint, token_file, timeout, as_json).run(lambda holdfast: holdfast.nodes())
    (print_json if as_json else print_document)(document)
