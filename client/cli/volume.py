"""`holdfast volume`: volumes and their content."""

from __future__ import annotations

import asyncio
import os
import stat
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from client.cli.exit_codes import EPILOG
from client.cli.options import (
    DEFAULT_TIMEOUT_S,
    Endpoint,
    IfMatch,
    Json,
    Length,
    Offset,
    Timeout,
    TokenFile,
    size_argument,
)
from client.cli.output import print_document, print_json, print_lines, print_note, print_table
from client.cli.progress import transfer_progress
from client.cli.session import Session, fail
from client.cli.sizes import format_size
from client.errors import Invalid

if TYPE_CHECKING:
    from client.api import Holdfast
    from client.sources import Source
    from client.volume import Volume

app = typer.Typer(
    help="Create, list, write, read and remove volumes.", no_args_is_help=True, rich_markup_mode=None, epilog=EPILOG
)

STANDARD_STREAM = "-"

Name = Annotated[str, typer.Argument(metavar="NAME", help="The volume's name.", show_default=False)]
ChunkSize = Annotated[
    int | None,
    typer.Option(
        "--chunk-size", parser=size_argument, metavar="SIZE", help="A power of two, 4KiB to 4MiB.", show_default=False
    ),
]
Replicas = Annotated[
    int | None, typer.Option("--replicas", min=1, metavar="N", help="Copies of each chunk.", show_default=False)
]


@app.command(epilog=EPILOG)
def create(
    name: Name,
    size: Annotated[
        int,
        typer.Argument(parser=size_argument, metavar="SIZE", help="Bytes, or such as 512M, 10GiB.", show_default=False),
    ],
    chunk_size: ChunkSize = None,
    replicas: Replicas = None,
    durability: Annotated[
        str | None, typer.Option("--durability", help="fsync, the only one offered.", show_default=False)
    ] = None,
    endpoint: Endpoint = None,
    token_file: TokenFile = None,
    timeout: Timeout = DEFAULT_TIMEOUT_S,
    as_json: Json = False,
) -> None:
    """Create an empty volume. It reads as zeroes and takes no space until it is written.

    \b
    Examples:
      holdfast volume create disk 10GiB
      holdfast volume create scratch 512M --replicas 2
    """
    volume = Session(endpoint, token_file, timeout, as_json).run(
        lambda holdfast: holdfast.create(name, size, chunk_size=chunk_size, replicas=replicas, durability=durability)
    )
    _print_volume(volume, f"created {volume.name}: {format_size(volume.size)}", as_json=as_json)


@app.command("ls", epilog=EPILOG)
def list_volumes(
    prefix: Annotated[str, typer.Argument(metavar="[PREFIX]", help="Only names that begin with this.")] = "",
    endpoint: Endpoint = None,
    token_file: TokenFile = None,
    timeout: Timeout = DEFAULT_TIMEOUT_S,
    as_json: Json = False,
) -> None:
    """List volumes in order of their names.

    \b
    Examples:
      holdfast volume ls
      holdfast volume ls backup- --json
    """

    async def work(holdfast: Holdfast) -> list[Volume]:
        return [volume async for volume in holdfast.list(prefix=prefix)]

    volumes = Session(endpoint, token_file, timeout, as_json).run(work)
    if as_json:
        print_json({"volumes": [dict(volume.raw) for volume in volumes]})
    else:
        rows = [
            [item.name, format_size(item.size), str(item.replicas), format_size(item.chunk_size), item.modified_at]
            for item in volumes
        ]
        print_table(["NAME", "SIZE", "REPLICAS", "CHUNK", "MODIFIED"], rows)


@app.command(epilog=EPILOG)
def show(
    name: Name,
    endpoint: Endpoint = None,
    token_file: TokenFile = None,
    timeout: Timeout = DEFAULT_TIMEOUT_S,
    as_json: Json = False,
) -> None:
    """Show one volume: size, version (ETag), and how many chunks and replicas it makes.

    \b
    Example:
      holdfast volume show disk
    """
    volume = Session(endpoint, token_file, timeout, as_json).run(lambda holdfast: holdfast.show(name))
    (print_json if as_json else print_document)(dict(volume.raw))


@app.command(epilog=EPILOG)
def put(
    name: Name,
    file: Annotated[str, typer.Argument(metavar="FILE", help="A file, or - for standard input.", show_default=False)],
    offset: Offset = None,
    length: Length = None,
    if_match: IfMatch = None,
    if_none_match: Annotated[
        str | None, typer.Option("--if-none-match", metavar="ETAG", help="Use '*': only if there is no such volume.")
    ] = None,
    chunk_size: ChunkSize = None,
    replicas: Replicas = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar, no summary.")] = False,
    endpoint: Endpoint = None,
    token_file: TokenFile = None,
    timeout: Timeout = DEFAULT_TIMEOUT_S,
    as_json: Json = False,
) -> None:
    """Make a file the content of a volume, which is created when there is none.

    Readers see the old content or all of the new. With --offset only that range of an existing volume is written.

    \b
    Examples:
      holdfast volume put disk image.raw
      pg_dump db | holdfast volume put db-backup -
      holdfast volume put disk block.bin --offset 1MiB
      holdfast volume put lock mine.txt --if-none-match '*'
    """
    if offset is not None and (if_none_match or chunk_size or replicas):
        fail(
            Invalid(
                "--offset writes into an existing volume: --if-none-match, --chunk-size and --replicas do not apply"
            ),
            as_json=as_json,
        )
    began = time.monotonic()

    async def work(holdfast: Holdfast) -> Volume:
        source = await open_source(file, length)
        with transfer_progress(name, source.length, quiet=quiet or as_json) as advance:
            if offset is not None:
                return await holdfast.put_range(
                    name, offset, source, if_match=if_match, on_progress=lambda done: advance(done, None)
                )
            return await holdfast.put(
                name,
                source,
                if_match=if_match,
                if_none_match=if_none_match,
                chunk_size=chunk_size,
                replicas=replicas,
                on_progress=lambda done: advance(done, None),
            )

    volume = Session(endpoint, token_file, timeout, as_json).run(work)
    if not quiet or as_json:
        text = (
            f"stored {volume.name}: {format_size(volume.size)} in {time.monotonic() - began:.1f} s, ETag {volume.etag}"
        )
        _print_volume(volume, text, as_json=as_json)


@app.command(epilog=EPILOG)
def get(
    name: Name,
    file: Annotated[str, typer.Argument(metavar="FILE", help="A file, or - for standard output.", show_default=False)],
    offset: Offset = None,
    length: Length = None,
    if_match: IfMatch = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar, no summary.")] = False,
    endpoint: Endpoint = None,
    token_file: TokenFile = None,
    timeout: Timeout = DEFAULT_TIMEOUT_S,
    as_json: Json = False,
) -> None:
    """Write a volume's content to a file, which appears under its name when it is whole.

    All bytes are of one version, also when a node dies underway. With FILE "-", --json prints on standard error.

    \b
    Examples:
      holdfast volume get disk image.raw
      holdfast volume get db-backup - | psql db
      holdfast volume get disk first.bin --length 4KiB
    """
    if length == 0:
        fail(Invalid("--length must be at least 1"), as_json=as_json)
    began = time.monotonic()
    start = offset or 0

    async def work(holdfast: Holdfast) -> int:
        with transfer_progress(name, length, quiet=quiet or as_json) as advance:
            if file != STANDARD_STREAM:
                return await holdfast.get_file(
                    name, file, offset=start, length=length, if_match=if_match, on_progress=advance
                )
            async with holdfast.open(name, offset=start, length=length, if_match=if_match) as content:
                async for piece in content:
                    await asyncio.to_thread(sys.stdout.buffer.write, piece)
                    advance(content.position, content.length)
                sys.stdout.buffer.flush()
                return content.length

    received = Session(endpoint, token_file, timeout, as_json).run(work)
    if as_json:
        document = {"name": name, "file": file, "bytes": received, "seconds": round(time.monotonic() - began, 3)}
        if file == STANDARD_STREAM:
            import json

            print_note(json.dumps(document))
        else:
            print_json(document)
    elif not quiet and file != STANDARD_STREAM:
        print_lines(f"wrote {file}: {format_size(received)} in {time.monotonic() - began:.1f} s")


@app.command(epilog=EPILOG)
def resize(
    name: Name,
    size: Annotated[
        int,
        typer.Argument(
            parser=size_argument, metavar="SIZE", help="The new size, not below the old.", show_default=False
        ),
    ],
    if_match: IfMatch = None,
    endpoint: Endpoint = None,
    token_file: TokenFile = None,
    timeout: Timeout = DEFAULT_TIMEOUT_S,
    as_json: Json = False,
) -> None:
    """Grow a volume. The new part reads as zeroes.

    \b
    Example:
      holdfast volume resize disk 20GiB
    """
    volume = Session(endpoint, token_file, timeout, as_json).run(
        lambda holdfast: holdfast.resize(name, size, if_match=if_match)
    )
    _print_volume(volume, f"resized {volume.name}: {format_size(volume.size)}", as_json=as_json)


@app.command("rm", epilog=EPILOG)
def remove(
    name: Name,
    if_match: IfMatch = None,
    endpoint: Endpoint = None,
    token_file: TokenFile = None,
    timeout: Timeout = DEFAULT_TIMEOUT_S,
    as_json: Json = False,
) -> None:
    """Remove a volume and its content.

    \b
    Examples:
      holdfast volume rm disk
      holdfast volume rm disk --if-match "$ETAG"
    """
    Session(endpoint, token_file, timeout, as_json).run(lambda holdfast: holdfast.delete(name, if_match=if_match))
    if as_json:
        print_json({"name": name, "removed": True})
    else:
        print_lines(f"removed {name}")


def _print_volume(volume: Volume, text: str, *, as_json: bool) -> None:
    if as_json:
        document: dict[str, Any] = dict(volume.raw)
        print_json(document)
    else:
        print_lines(text)


async def open_source(file: str, length: int | None) -> Source:
    """The file to send. A pipe is read by the event loop and not in a thread, so that an interrupt is heard at once.

    A terminal is not: the loop would make it non-blocking for the shell and everybody else who has it open.
    """
    from client.sources import FileSource, StreamSource

    if file != STANDARD_STREAM:
        return FileSource(Path(file), length)
    mode = os.fstat(sys.stdin.fileno()).st_mode
    if stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode):
        return StreamSource(_pipe_blocks(length), length)
    return FileSource(sys.stdin.buffer, length)


async def _pipe_blocks(length: int | None) -> AsyncIterator[bytes]:
    """What comes through standard input, up to ``length`` bytes."""
    from client.sources import BLOCK_SIZE

    reader = asyncio.StreamReader(limit=BLOCK_SIZE)
    pipe = os.fdopen(os.dup(sys.stdin.fileno()), "rb", buffering=0)
    transport, _protocol = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), pipe
    )
    try:
        left = length
        while left is None or left > 0:
            block = await reader.read(BLOCK_SIZE if left is None else min(BLOCK_SIZE, left))
            if not block:
                return
            left = left if left is None else left - len(block)
            yield block
    finally:
        transport.close()
