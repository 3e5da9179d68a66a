"""A node of another release: its wire says more than the present one understands, and names other protocol versions.

Put around a node from outside: what it writes is taken apart into frames and put together with unknown items at the end of headers and
fields, and with frames of unknown kinds between them; its handshakes carry other versions. What docs/formats/wire.md promises is that
present nodes do not mind. What arrives at it is left alone: to a later release, the present one is one that says less.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar, cast

import msgpack

from cluster.doors.network import Listener, Network
from cluster.peer.core import PeerCore
from cluster.rpc.frame import PREFIX, REPLY, REQUEST, pack_header
from cluster.rpc.handshake import Hello, Identity
from cluster.rpc.limits import PROTOCOL_VERSION, PROTOCOL_VERSION_MIN

P = TypeVar("P", bound=asyncio.BaseProtocol)

UNKNOWN_KIND = 77
FIELDS_AT = {REQUEST: 5, REPLY: 2}
"""Where a header has the message's fields."""


@dataclass(frozen=True, slots=True)
class Release:
    name: str = "99.0"
    version: int = 2
    version_min: int = 1
    talkative: bool = True
    """Whether it says things that the present release does not know."""

    def network(self, network: Network) -> Network:
        return _TalkativeNetwork(network) if self.talkative else network

    def dress(self, core: PeerCore) -> PeerCore:
        """Its handshakes name this release's versions."""
        rpc = core.rpc
        present = rpc._identity

        def identity(check_hello: Callable[[Hello], None]) -> Identity:
            return replace(present(check_hello), version=self.version, version_min=self.version_min)

        rpc._identity = identity  # type: ignore[method-assign]
        return core


PRESENT = Release("", PROTOCOL_VERSION, PROTOCOL_VERSION_MIN, talkative=False)
LATER = Release()


class _TalkativeNetwork:
    def __init__(self, network: Network) -> None:
        self._network = network

    async def connect(self, factory: Callable[[], P], host: str, port: int) -> P:
        return await self._network.connect(lambda: _talkative(factory()), host, port)

    async def addresses(self, host: str) -> Sequence[str]:
        return await self._network.addresses(host)

    async def listen(self, factory: Callable[[], asyncio.BaseProtocol], host: str, port: int) -> Listener:
        return await self._network.listen(lambda: _talkative(factory()), host, port)


def _talkative(protocol: P) -> P:
    made = protocol.connection_made

    def connection_made(transport: asyncio.BaseTransport) -> None:
        made(TalkativeTransport(cast("asyncio.Transport", transport)))

    protocol.connection_made = connection_made  # type: ignore[method-assign]
    return protocol


class TalkativeTransport(asyncio.Transport):
    """What is written begins at a frame or goes on with the payload of the last one; a header is never split."""

    said = 0
    """Frames that had something added, in all."""

    def __init__(self, transport: asyncio.Transport) -> None:
        super().__init__()
        self._transport = transport
        self._payload_left = 0
        self._said = 0

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self._transport.write(self._more(data))

    def writelines(self, list_of_data: Iterable[Any]) -> None:
        self._transport.writelines([self._more(data) for data in list_of_data])

    def _more(self, data: bytes | bytearray | memoryview) -> bytes:
        said = []
        at = 0
        while at < len(data):
            if self._payload_left:
                part = bytes(data[at : at + self._payload_left])
                said.append(part)
                self._payload_left -= len(part)
                at += len(part)
                continue
            header_length, self._payload_left = PREFIX.unpack_from(data, at)
            at += PREFIX.size
            said.append(self._frame(bytes(data[at : at + header_length])))
            at += header_length
        return b"".join(said)

    def _frame(self, packed: bytes) -> bytes:
        header = list(msgpack.unpackb(packed, use_list=False))
        before = b""
        if header[0] < 16:  # not of the handshake: its frames are proved as they were made
            fields_at = FIELDS_AT.get(header[0])
            if fields_at is not None:
                header[fields_at] = (*header[fields_at], "of a later release", {"nested": [1, b"2"]})
            header += [None, "of a later release"]
            packed = pack_header(header)
            TalkativeTransport.said += 1
            self._said += 1
            if self._said % 3 == 0:
                unknown = pack_header((UNKNOWN_KIND, "what", 1))
                before = PREFIX.pack(len(unknown), 5) + unknown + b"bytes"
        return before + PREFIX.pack(len(packed), self._payload_left) + packed

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._transport.set_write_buffer_limits(high, low)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._transport.get_extra_info(name, default)

    def pause_reading(self) -> None:
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        self._transport.resume_reading()

    def is_closing(self) -> bool:
        return self._transport.is_closing()

    def close(self) -> None:
        self._transport.close()

    def abort(self) -> None:
        self._transport.abort()
