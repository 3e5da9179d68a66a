"""What the machine itself can do with the same bytes and the same client: the floors that large transfers are held against.

For a PUT: plain processes that receive over loopback TCP, write to a file and fdatasync it before they answer. For a GET: an aiohttp
handler that streams from the page cache.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import socket
import threading
from multiprocessing.connection import Connection
from pathlib import Path

import uvloop
from aiohttp import web

RECEIVE_BYTES = 1024 * 1024
STREAM_BYTES = 1024 * 1024
"""Read and written at a time by the GET floor; smaller and larger pieces were slower."""


def receive(ready: Connection, directory: str) -> None:
    """Serves `benchmark.large_load.Copies`; sends its port. Each transfer makes a new file, and none is removed: memory that the page
    cache has just got back from a removed file is many times cheaper to write to than fresh memory, which is what a growing log gets."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=64)
    Path(directory).mkdir(parents=True, exist_ok=True)

    def serve(connection: socket.socket, number: int) -> None:
        file = os.open(f"{directory}/{number}", os.O_CREAT | os.O_WRONLY | os.O_EXCL, 0o600)
        with connection:
            buffer = memoryview(bytearray(RECEIVE_BYTES))
            connection.recv_into(buffer, 8, socket.MSG_WAITALL)
            left = int.from_bytes(buffer[:8], "big")
            while left:
                got = connection.recv_into(buffer, min(left, RECEIVE_BYTES))
                if not got:
                    raise ConnectionError("the sender went away")
                os.write(file, buffer[:got])
                left -= got
            os.fdatasync(file)
            os.close(file)
            connection.sendall(b"+")

    ready.send(listener.getsockname()[1])
    for number in itertools.count():
        connection, _ = listener.accept()
        threading.Thread(target=serve, args=(connection, number), daemon=True).start()


def stream(ready: Connection, path: str, size: int) -> None:
    """Answers every GET with ``size`` bytes of a file it makes at ``path``; sends its port."""
    with Path(path).open("wb") as file:
        for _ in range(0, size, STREAM_BYTES):
            file.write(os.urandom(STREAM_BYTES))
    source = os.open(path, os.O_RDONLY)

    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/octet-stream"})
        response.content_length = size
        await response.prepare(request)
        for offset in range(0, size, STREAM_BYTES):
            await response.write(os.pread(source, min(STREAM_BYTES, size - offset), offset))
        await response.write_eof()
        return response

    async def main() -> None:
        app = web.Application()
        app.router.add_get("/{name:.*}", handler)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        ready.send(runner.addresses[0][1])
        await asyncio.get_running_loop().create_future()

    uvloop.run(main())
