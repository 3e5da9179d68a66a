"""Connections by name: every address of a host is tried, in order."""

from __future__ import annotations

import asyncio

import pytest

from cluster.doors.network import TcpNetwork


class Addresses:
    """One host's."""

    def __init__(self, *addresses: str) -> None:
        self._addresses = addresses

    async def addresses(self, host: str) -> tuple[str, ...]:
        assert host == "n1"
        return self._addresses


async def test_the_next_address_is_tried_when_one_refuses() -> None:
    listener = await TcpNetwork().listen(asyncio.Protocol, "127.0.0.1", 0)
    connected: list[asyncio.BaseTransport] = []

    class Caller(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            connected.append(transport)

    try:
        # nobody listens on that port of the second loopback address
        network = TcpNetwork(Addresses("127.0.0.2", "127.0.0.1"))
        await network.connect(Caller, "n1", listener.port)
        assert [transport.get_extra_info("peername")[0] for transport in connected] == ["127.0.0.1"]
    finally:
        for transport in connected:
            transport.close()
        await listener.close()


async def test_no_address_answers() -> None:
    listener = await TcpNetwork().listen(asyncio.Protocol, "127.0.0.1", 0)
    port = listener.port
    await listener.close()
    with pytest.raises(ConnectionRefusedError):
        await TcpNetwork(Addresses("127.0.0.2", "127.0.0.1")).connect(asyncio.Protocol, "n1", port)
    with pytest.raises(OSError, match="n1 has no address"):
        await TcpNetwork(Addresses()).connect(asyncio.Protocol, "n1", port)
