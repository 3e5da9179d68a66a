"""Bytes to frames and back, without I/O.

A frame is ``u32 header length | u32 payload length | header | payload``, big-endian; the header is a msgpack array whose first item says
what it is. `FrameReader` owns the buffers that a connection receives into: short frames are cut out of a staging buffer, the payload
of a long one is received straight into the buffer where it will stay. It holds at most one unfinished frame, and never allocates
more than the limits allow, whatever the lengths claim.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, Protocol

import msgpack

from cluster.rpc.limits import (
    GREETING_HEADER_LIMIT,
    HEADER_LIMIT,
    INLINE_PAYLOAD,
    PIECE_SIZE,
    STAGING_SIZE,
    STAGING_SIZE_BETWEEN_PIECES,
    STAGING_SIZE_GREETING,
)
from cluster.rpc.message import Buffer

PREFIX = struct.Struct(">II")

# What a frame is: the first item of its header. The comment shows the items after it.
REQUEST = 1  # call id, method, deadline in ms, layout version, fields, payload bytes in all
REPLY = 2  # call id, fields, payload bytes in all
FAILURE = 3  # call id, code, message, details
CANCEL = 4  # call id
PIECE = 5  # call id
PING = 6
PONG = 7
CALLER_HELLO = 16  # magic, version, oldest version, nonce, hello
ANSWERER_HELLO = 17  # the same
CALLER_PROOF = 18  # proof
WELCOME = 19  # proof
REFUSED = 20  # code, message, details

pack_header: Callable[[object], bytes] = msgpack.Packer(autoreset=True).pack
"""One packer for all: it is only ever used between two awaits."""


class ProtocolError(Exception):
    """The peer sent what no correct peer sends. The connection is of no use any more."""


def short_frame(header: tuple[object, ...]) -> bytes:
    """A whole frame without a payload."""
    packed = pack_header(header)
    return PREFIX.pack(len(packed), 0) + packed


class FrameSink(Protocol):
    """What a `FrameReader` reports to."""

    def frame_received(self, header: tuple[Any, ...], payload: bytes) -> None:
        """A whole frame."""

    def payload_starts(self, header: tuple[Any, ...], length: int) -> memoryview | None:
        """A frame whose payload follows: where its `length` bytes are to go. None to drop them."""

    def payload_ends(self) -> None:
        """All of them are there."""


class FrameReader:
    """Turns received bytes into calls of a sink. Raises ProtocolError out of `received`, after which it is of no use."""

    def __init__(self, sink: FrameSink) -> None:
        self._sink = sink
        self._capacity = STAGING_SIZE_GREETING
        self._header_limit = GREETING_HEADER_LIMIT
        self._payload_limit = 0
        self._staging = bytearray(self._capacity)
        self._view = memoryview(self._staging)
        self._end = 0
        # the payload being received: where it goes, and how much of it is to come
        self._target: memoryview | None = None
        self._missing = 0
        self._between_pieces = False
        self.stopped = False
        """Set by the sink when nothing further shall be reported."""
        self.header_length = 0
        """Bytes of the header that was reported last."""

    def open_up(self) -> None:
        """From now on take frames of any lawful size: the peer has proved itself."""
        self._capacity = STAGING_SIZE
        self._header_limit = HEADER_LIMIT
        self._payload_limit = PIECE_SIZE

    def buffer(self) -> memoryview:
        """Where the next bytes are to be received; never empty."""
        if self._missing:
            if self._target is not None:
                return self._target[-self._missing :]
            return self._view[: self._missing]
        if self._between_pieces and self._end < STAGING_SIZE_BETWEEN_PIECES:
            return self._view[self._end : STAGING_SIZE_BETWEEN_PIECES]
        return self._view[self._end :]

    def received(self, count: int) -> None:
        """So many bytes have been put into `buffer()`."""
        if self._missing:
            self._missing -= count
            if not self._missing:
                self._target = None
                self._sink.payload_ends()
            return
        self._end += count
        self._parse()

    def _parse(self) -> None:
        staging, view, end, sink = self._staging, self._view, self._end, self._sink
        start = 0
        needed = PREFIX.size
        while end - start >= PREFIX.size and not self.stopped:
            header_length, payload_length = PREFIX.unpack_from(staging, start)
            if header_length > self._header_limit or payload_length > self._payload_limit:
                raise ProtocolError(f"a frame of {header_length} + {payload_length} bytes")
            header_at = start + PREFIX.size
            payload_at = header_at + header_length
            frame_end = payload_at + payload_length
            self.header_length = header_length
            if frame_end <= end:
                header = unpack_header(view[header_at:payload_at])
                if payload_length:
                    sink.frame_received(header, bytes(view[payload_at:frame_end]))
                else:
                    sink.frame_received(header, b"")
                start = frame_end
                self._between_pieces = False
                continue
            if payload_length <= INLINE_PAYLOAD:
                needed = frame_end - start
            elif payload_at > end:
                needed = payload_at - start
            else:
                self._start_payload(view[header_at:payload_at], view[payload_at:end], payload_length)
                return
            break
        self._keep(start, needed)

    def _start_payload(self, header: memoryview, begun: memoryview, length: int) -> None:
        self._target = self._sink.payload_starts(unpack_header(header), length)
        if self._target is not None:
            self._target[: len(begun)] = begun
        self._missing = length - len(begun)
        self._end = 0
        self._between_pieces = True
        self._fit(0)

    def _keep(self, start: int, needed: int) -> None:
        """Move what is left of the staging buffer to its front, and see to it that `needed` bytes fit."""
        left = self._end - start
        rest = bytes(self._view[start : self._end]) if left else b""
        self._fit(needed)
        if start or len(self._staging) != self._end:
            self._view[:left] = rest
        self._end = left

    def _fit(self, needed: int) -> None:
        size = max(needed, self._capacity)
        if size != len(self._staging):
            self._staging = bytearray(size)
            self._view = memoryview(self._staging)


def unpack_header(packed: Buffer) -> tuple[Any, ...]:
    """The items of a header. Raises ProtocolError when it is none."""
    try:
        header = msgpack.unpackb(packed, use_list=False)
    except (ValueError, TypeError, OverflowError) as error:
        raise ProtocolError("a header that is not msgpack") from error
    if type(header) is not tuple or not header:
        raise ProtocolError("a header that is not an array")
    return header
