"""How other commands reach the runner of a local cluster: one JSON line each way over ``DIR/control.sock``.

The request is ``{"do": "start" | "kill" | "wipe" | "stop" | "show", "node": NAME | null}``; the answer is the runner's object, or
``{"error": CODE, "message": TEXT}``. The socket belongs to the runner's user alone. A missing or dead socket means that no
cluster runs there.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

from client.errors import HoldfastError, Unavailable, error_of_code

SOCKET_NAME = "control.sock"

LINE_LIMIT = 1024 * 1024
"""Bytes of a request or answer; the longest is cluster.json with a hundred nodes."""

ANSWER_TIMEOUT_S = 120.0
"""Longest wait for the runner: starting a node includes waiting until it is ready."""

Handler = Callable[[str, str | None], Awaitable[dict[str, Any]]]


@contextmanager
def _short_path(directory: Path) -> Iterator[str]:
    """The socket's path through an open directory: Unix sockets allow 107 bytes, directories may lie deeper."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield (
            f"/proc/self/fd/{descriptor}/{SOCKET_NAME}"
            if os.path.isdir("/proc/self/fd")
            else str(directory / SOCKET_NAME)
        )
    finally:
        os.close(descriptor)


@asynccontextmanager
async def serve(directory: Path, handler: Handler) -> AsyncIterator[None]:
    """Answer commands while the block runs. The caller holds the directory's lock, so an old socket is nobody's."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            request = json.loads(await reader.readline())
            result = await handler(str(request["do"]), request.get("node"))
        except HoldfastError as error:
            result = {"error": error.problem, "message": error.message}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            result = {"error": "invalid", "message": f"not a command: {error!r}"}
        try:
            writer.write(json.dumps(result).encode() + b"\n")
            await writer.drain()
        except ConnectionError:
            pass  # whoever asked has gone; what was done is done
        finally:
            writer.close()

    (directory / SOCKET_NAME).unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with _short_path(directory) as path:
        listener.bind(path)
    (directory / SOCKET_NAME).chmod(0o600)  # before listen: nobody else gets in
    server = await asyncio.start_unix_server(answer, sock=listener, limit=LINE_LIMIT)
    try:
        yield
    finally:
        server.close()
        (directory / SOCKET_NAME).unlink(missing_ok=True)


def ask(directory: Path, do: str, node: str | None) -> dict[str, Any]:
    """The runner's answer. Raises `Unavailable` when none runs, and whatever error it answers."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(ANSWER_TIMEOUT_S)
        try:
            with _short_path(directory) as path:
                connection.connect(path)
        except (FileNotFoundError, ConnectionRefusedError, NotADirectoryError) as error:
            raise Unavailable(
                f"no cluster runs in {directory}; start it with `holdfast dev --data {directory}`"
            ) from error
        try:
            connection.sendall(json.dumps({"do": do, "node": node}).encode() + b"\n")
            with connection.makefile("rb") as answers:
                answer = json.loads(answers.readline(LINE_LIMIT))
        except TimeoutError as error:
            raise Unavailable(f"the runner of {directory} did not answer within {ANSWER_TIMEOUT_S:.0f} s") from error
        except (OSError, ValueError) as error:
            raise Unavailable(f"the runner of {directory} ended before it answered") from error
    if "error" in answer:
        raise error_of_code(str(answer["error"]), str(answer.get("message", "")))
    assert isinstance(answer, dict)
    return answer
