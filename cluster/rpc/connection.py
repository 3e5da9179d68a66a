"""One connection: frames, handshake and outbox put onto one asyncio transport. `outgoing` and `incoming` say what its frames mean.

Writes made during one turn of the event loop leave as one. The transport never gets more than its high-water mark plus one piece;
the rest stays in the outbox, where short frames overtake long ones.
"""

from __future__ import annotations

import asyncio
from typing import Any, cast

from cluster.errors import HoldfastError, PeerUnavailable
from cluster.rpc.buffer_pool import BufferPool
from cluster.rpc.deadline import Deadlines
from cluster.rpc.frame import PING, PONG, PREFIX, FrameReader, ProtocolError, short_frame
from cluster.rpc.handshake import Handshake, HandshakeError, Hello
from cluster.rpc.limits import FLUSH_SIZE, HANDSHAKE_TIMEOUT_S, WRITE_BUFFER_HIGH
from cluster.rpc.outbox import Outbox
from cluster.rpc.quiet_log import QuietLog
from cluster.rpc.statistics import RpcStatistics


class Connection(asyncio.BufferedProtocol):
    """What both directions have in common. Frames of the calls themselves go to `call_frame` and its kin."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        handshake: Handshake,
        deadlines: Deadlines,
        statistics: RpcStatistics,
        log: QuietLog,
        pool: BufferPool,
    ) -> None:
        self.peer: Hello | None = None
        """Who is there, once it is proved."""
        self.closed = False
        self.last_heard = loop.time()
        """When bytes last arrived, in the loop's time."""
        self._loop = loop
        self._handshake: Handshake | None = handshake
        self._deadlines = deadlines
        self._statistics = statistics
        self._log = log
        self._pool = pool
        self._reader = FrameReader(self)
        self._outbox = Outbox()
        self._transport: asyncio.Transport | None = None
        self._writing_paused = False
        self._flush_planned = False
        self._receiving = False
        self._greeting_timer: asyncio.TimerHandle | None = None

    # asyncio calls these

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        if self._reader.stopped:
            self._transport.abort()
            return
        self._transport.set_write_buffer_limits(high=WRITE_BUFFER_HIGH)
        self._greeting_timer = self._loop.call_later(HANDSHAKE_TIMEOUT_S, self._greeting_late)
        assert self._handshake is not None
        first = self._handshake.start()
        if first is not None:
            self._send_header(first)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._reader.buffer()

    def buffer_updated(self, nbytes: int) -> None:
        self._statistics.bytes_received += nbytes
        self.last_heard = self._loop.time()
        self._receiving = True
        try:
            self._reader.received(nbytes)
        except ProtocolError as error:
            self._break(str(error))
        finally:
            self._receiving = False
        if self._outbox and not self._flush_planned:
            self._flush()

    def eof_received(self) -> bool:
        return False

    def pause_writing(self) -> None:
        self._writing_paused = True

    def resume_writing(self) -> None:
        self._writing_paused = False
        self._flush()

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        self._reader.stopped = True
        if self._greeting_timer is not None:
            self._greeting_timer.cancel()
        self._outbox.clear()
        if self.peer is None:
            self.greeting_failed(PeerUnavailable("the connection was closed during the handshake"))
        self.lost(exc)

    # the frame reader calls these

    def frame_received(self, header: tuple[Any, ...], payload: bytes) -> None:
        if self._handshake is not None:
            self._greet(header)
            return
        try:
            self.call_frame(header, payload)
        except (ValueError, IndexError, TypeError) as error:
            # unpacking the header's items found too few of them
            raise ProtocolError(f"a malformed frame of kind {header[0]!r}") from error

    def payload_starts(self, header: tuple[Any, ...], length: int) -> memoryview | None:
        try:
            return self.call_payload_starts(header, length)
        except (ValueError, IndexError, TypeError) as error:
            raise ProtocolError(f"a malformed frame of kind {header[0]!r}") from error

    def payload_ends(self) -> None:
        self.call_payload_ends()

    # for the two directions to fill in

    def call_frame(self, header: tuple[Any, ...], payload: bytes) -> None:
        """A whole frame after the handshake."""
        raise NotImplementedError

    def call_payload_starts(self, header: tuple[Any, ...], length: int) -> memoryview | None:
        """See `FrameSink.payload_starts`."""
        raise NotImplementedError

    def call_payload_ends(self) -> None:
        """See `FrameSink.payload_ends`."""
        raise NotImplementedError

    def greeted(self) -> None:
        """The peer has been proved."""
        raise NotImplementedError

    def greeting_failed(self, error: HoldfastError) -> None:
        """It has not, and won't be. May come more than once."""
        raise NotImplementedError

    def drained(self) -> None:
        """The outbox has become shorter."""
        raise NotImplementedError

    def lost(self, error: Exception | None) -> None:
        """The connection is gone."""
        raise NotImplementedError

    # for everybody

    @property
    def queued(self) -> int:
        """Bytes that wait to be sent."""
        return self._outbox.queued

    @property
    def address(self) -> str:
        """The far end, for logs."""
        peername = self._transport.get_extra_info("peername") if self._transport is not None else None
        return f"{peername[0]}:{peername[1]}" if isinstance(peername, tuple) else str(peername)

    def abort(self) -> None:
        """Close without waiting for anything to be sent."""
        self._reader.stopped = True
        if self._transport is not None:
            self._transport.abort()

    def ping(self) -> None:
        """Ask for a sign of life."""
        self._outbox.add_short(short_frame((PING,)))
        self._plan_flush()

    def heard_ping(self) -> None:
        self._outbox.add_short(short_frame((PONG,)))
        self._plan_flush()

    def _plan_flush(self) -> None:
        if not self._flush_planned and not self._receiving:
            self._flush_planned = True
            self._loop.call_soon(self._flush_as_planned)

    def _flush_as_planned(self) -> None:
        self._flush_planned = False
        self._flush()

    def _flush(self) -> None:
        """Hand frames to the transport until it is full; then let other work have its turn."""
        transport, outbox = self._transport, self._outbox
        if transport is None or self.closed:
            outbox.clear()
            return
        left = FLUSH_SIZE
        while outbox and not self._writing_paused and left > 0:
            before = outbox.queued
            frames = outbox.take()
            if len(frames) == 1:
                transport.write(frames[0])
            else:
                transport.writelines(frames)
            left -= before - outbox.queued
            self._statistics.bytes_sent += before - outbox.queued
        if outbox and not self._writing_paused:
            self._plan_flush()
        self.drained()

    # the handshake

    def _greet(self, header: tuple[Any, ...]) -> None:
        handshake = self._handshake
        assert handshake is not None
        try:
            answer = handshake.receive(header)
        except HandshakeError as refusal:
            self._refuse(refusal)
            return
        if answer is not None:
            self._send_header(answer)
        if handshake.peer is not None:
            self._handshake = None
            self.peer = handshake.peer
            if self._greeting_timer is not None:
                self._greeting_timer.cancel()
            self._reader.open_up()
            self.greeted()

    def _refuse(self, refusal: HandshakeError) -> None:
        self._statistics.refused += 1
        self._log.warning(
            "peer refused" if refusal.header is not None else "refused by peer",
            address=self.address,
            code=refusal.error.code,
            reason=str(refusal.error),
        )
        self._reader.stopped = True
        self.greeting_failed(refusal.error)
        if refusal.header is not None:
            self._send_header(refusal.header)
        if self._transport is not None:
            self._transport.close()

    def _greeting_late(self) -> None:
        self._log.warning("handshake not finished in time", address=self.address, timeout_s=HANDSHAKE_TIMEOUT_S)
        self.greeting_failed(PeerUnavailable(f"the handshake was not finished within {HANDSHAKE_TIMEOUT_S:g} s"))
        self.abort()

    def _send_header(self, header: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(PREFIX.pack(len(header), 0) + header)

    def _break(self, reason: str) -> None:
        self._statistics.broken += 1
        self._log.warning("connection closed: not the protocol", address=self.address, reason=reason)
        self.greeting_failed(PeerUnavailable(f"what answers at {self.address} does not speak the protocol"))
        self.abort()
