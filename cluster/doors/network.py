"""Streams between nodes, as a door: asyncio's own Protocol/Transport pair, with who connects to whom passed in.

The real one is TCP on the running loop. A simulated one may connect two protocols in memory, with delay and loss of connections.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

P = TypeVar("P", bound=asyncio.BaseProtocol)


class Listener(Protocol):
    """An open listening socket."""

    @property
    def port(self) -> int:
        """The port it got (of interest when 0 was asked for)."""

    async def close(self) -> None:
        """Stop accepting; connections already made stay open."""


class Network(Protocol):
    """Makes and accepts byte streams."""

    async def connect(self, factory: Callable[[], P], host: str, port: int) -> P:
        """A connected protocol. Raises OSError when the peer can't be reached."""

    async def addresses(self, host: str) -> Sequence[str]:
        """All that ``host`` stands for, each to be given to `connect`: a name may be that of many machines. Raises OSError."""

    async def listen(self, factory: Callable[[], asyncio.BaseProtocol], host: str, port: int) -> Listener:
        """Accept connections on ``host:port``. Raises OSError when the address can't be bound."""


class TcpListener:
    def __init__(self, server: asyncio.Server) -> None:
        self._server = server

    @property
    def port(self) -> int:
        return int(self._server.sockets[0].getsockname()[1])

    async def close(self) -> None:
        self._server.close()


class Names(Protocol):
    """Turns names of hosts into addresses."""

    async def addresses(self, host: str) -> Sequence[str]:
        """One or more, the best first; of an address, itself. Raises OSError."""


class TcpNetwork:
    """TCP with Nagle off (asyncio's default). Without ``names`` the event loop looks names up, which can be neither shared nor given up."""

    def __init__(self, names: Names | None = None) -> None:
        self._names = names

    async def connect(self, factory: Callable[[], P], host: str, port: int) -> P:
        loop = asyncio.get_running_loop()
        failure = OSError(f"{host} has no address")
        for address in await self.addresses(host):
            try:
                _, protocol = await loop.create_connection(factory, address, port)
            except OSError as error:
                failure = error
            else:
                return protocol
        raise failure

    async def addresses(self, host: str) -> Sequence[str]:
        return (host,) if self._names is None else await self._names.addresses(host)

    async def listen(self, factory: Callable[[], asyncio.BaseProtocol], host: str, port: int) -> Listener:
        return TcpListener(await asyncio.get_running_loop().create_server(factory, host, port, backlog=512))
