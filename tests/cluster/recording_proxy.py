"""A TCP proxy that keeps everything that passes, both ways: what somebody on the network between two nodes would see."""

from __future__ import annotations

import asyncio


class RecordingProxy:
    """Forwards to one port on loopback. Use ``async with``; listens on `port`."""

    def __init__(self, target_port: int) -> None:
        self._target_port = target_port
        self._server: asyncio.Server | None = None
        self._under_way: set[asyncio.Task[None]] = set()
        self.connections = 0
        self.recorded = bytearray()
        """All bytes in the order in which they passed."""

    async def __aenter__(self) -> RecordingProxy:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._under_way:
            task.cancel()
        await asyncio.gather(*self._under_way, return_exceptions=True)

    @property
    def port(self) -> int:
        assert self._server is not None
        return int(self._server.sockets[0].getsockname()[1])

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._under_way.add(task)
        self.connections += 1
        try:
            there = await asyncio.open_connection("127.0.0.1", self._target_port)
            try:
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._forward(reader, there[1]))
                    group.create_task(self._forward(there[0], writer))
            finally:
                there[1].close()
        except* OSError:
            pass  # one side is gone, and so is the other now
        finally:
            writer.close()
            self._under_way.discard(task)

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            self.recorded += data
            writer.write(data)
            await writer.drain()
        writer.write_eof()
