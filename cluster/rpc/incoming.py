"""The answering side of a connection: hands requests to their handlers, and sends what they return.

What handlers work on is bounded in bytes, per connection and per node (`Intake`): past the bound a connection is not
read until some of it is done. Only complete requests count, so a connection is never stopped in the middle of what it
would need to go on; unfinished payloads are bounded by their number.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from cluster.doors.clock import Clock
from cluster.errors import HoldfastError, error_to_wire
from cluster.rpc.buffer_pool import BufferPool
from cluster.rpc.connection import Connection
from cluster.rpc.deadline import Deadlines, Expiring
from cluster.rpc.frame import CANCEL, FAILURE, PIECE, PING, REPLY, REQUEST, ProtocolError, pack_header
from cluster.rpc.handshake import Handshake
from cluster.rpc.inbound_payload import InboundPayload
from cluster.rpc.limits import (
    DEADLINE_MAX_S,
    HEADER_LIMIT,
    HELD_LIMIT_CONNECTION,
    HELD_LIMIT_NODE,
    PAYLOAD_LIMIT,
    SEND_QUEUE_LIMIT,
    STOPPED_PING_S,
    STREAMS_RECEIVED,
)
from cluster.rpc.message import Payload, payload_size
from cluster.rpc.quiet_log import QuietLog
from cluster.rpc.service import Handler, Handlers, IncomingCall
from cluster.rpc.statistics import RpcStatistics

CALL_OVERHEAD = 1024
"""Bytes counted for a running call beside its request: the task and what it stands on."""


class Intake:
    """What the handlers of one node work on, over all its connections."""

    def __init__(self, statistics: RpcStatistics) -> None:
        self._statistics = statistics
        self.stopped: dict[IncomingConnection, None] = {}
        """Connections that are not read now."""

    @property
    def is_full(self) -> bool:
        return self._statistics.held_bytes > HELD_LIMIT_NODE

    def take(self, size: int) -> None:
        self._statistics.held_bytes += size
        self._statistics.in_flight_in += 1

    def release(self, size: int) -> None:
        self._statistics.held_bytes -= size
        self._statistics.in_flight_in -= 1
        if self.stopped and not self.is_full:
            for connection in list(self.stopped):
                connection.review_reading()


class Running:
    """A request that a handler works on."""

    __slots__ = ("answer", "call_id", "connection", "due", "given_up", "handler", "held", "work")

    due: dict[Expiring, None]

    def __init__(self, connection: IncomingConnection, call_id: int, handler: Handler, held: int) -> None:
        self.connection = connection
        self.call_id = call_id
        self.handler = handler
        self.held = held
        self.work: asyncio.Future[Any] | None = None
        self.answer: Coroutine[Any, Any, Any] | None = None
        self.given_up = False

    def expire(self) -> None:
        """Its caller has stopped waiting."""
        self.given_up = True
        if self.work is not None:
            self.work.cancel()

    def finished(self, work: asyncio.Future[Any]) -> None:
        """The handler is done: answer, unless it was cancelled."""
        self.connection.finished(self, work)


class Arriving:
    """A request whose payload is not complete."""

    __slots__ = ("header", "header_length", "payload")

    def __init__(self, header: tuple[Any, ...], header_length: int, payload: InboundPayload) -> None:
        self.header = header
        self.header_length = header_length
        self.payload = payload


class IncomingConnection(Connection):
    """A connection that a peer opened."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        handshake: Handshake,
        deadlines: Deadlines,
        statistics: RpcStatistics,
        log: QuietLog,
        pool: BufferPool,
        *,
        handlers: Handlers,
        clock: Clock,
        intake: Intake,
        spawn: Callable[[Coroutine[Any, Any, Any]], asyncio.Task[Any]],
        on_greeting_over: Callable[[IncomingConnection], None],
        on_lost: Callable[[IncomingConnection], None],
    ) -> None:
        super().__init__(loop, handshake, deadlines, statistics, log, pool)
        self._handlers = handlers
        self._clock = clock
        self._intake = intake
        self._spawn = spawn
        self._on_greeting_over = on_greeting_over
        self._on_lost = on_lost
        self._peer_name = ""
        self._running: dict[int, Running] = {}
        self._arriving: dict[int, Arriving] = {}
        self._filling: Arriving | None = None
        self._held = 0
        self._now = 0.0

    # what arrives

    def buffer_updated(self, nbytes: int) -> None:
        self._now = self._clock.monotonic()  # once for all requests of this batch
        super().buffer_updated(nbytes)

    def call_frame(self, header: tuple[Any, ...], payload: bytes) -> None:
        kind = header[0]
        if kind == REQUEST:
            if header[6] == len(payload):
                self._serve(header, payload, self._reader.header_length)
            else:
                self._begin(header).payload.append(payload)
        elif kind == PIECE:
            arriving = self._arriving.get(header[1])
            # a piece may cross with the answer to its request, or with nothing at all when that was refused
            if arriving is not None and arriving.payload.append(payload):
                self._arrived(arriving)
        elif kind == CANCEL:
            self._arriving.pop(header[1], None)
            self._outbox.drop(header[1])
            running = self._running.get(header[1])
            if running is not None:
                running.expire()
        elif kind == PING:
            self.heard_ping()
        # anything else is of a newer release

    def call_payload_starts(self, header: tuple[Any, ...], length: int) -> memoryview | None:
        if header[0] == REQUEST:
            arriving = self._begin(header)
        elif header[0] == PIECE and header[1] in self._arriving:
            arriving = self._arriving[header[1]]
        else:
            return None
        self._filling = arriving
        return arriving.payload.place(length)

    def call_payload_ends(self) -> None:
        arriving, self._filling = self._filling, None
        if arriving is not None and arriving.payload.arrived():
            self._arrived(arriving)

    def _begin(self, header: tuple[Any, ...]) -> Arriving:
        call_id = header[1]
        if call_id in self._arriving or call_id in self._running:
            raise ProtocolError("a call id used twice")
        if len(self._arriving) >= STREAMS_RECEIVED:
            raise ProtocolError(f"more than {STREAMS_RECEIVED} unfinished payloads")
        arriving = Arriving(header, self._reader.header_length, InboundPayload(header[6], self._pool))
        self._arriving[call_id] = arriving
        return arriving

    def _arrived(self, arriving: Arriving) -> None:
        if self._arriving.pop(arriving.header[1], None) is not None:
            self._serve(arriving.header, arriving.payload.buffer, arriving.header_length)

    # answering

    def _serve(self, header: tuple[Any, ...], payload: bytes | bytearray, header_length: int) -> None:
        _, call_id, name, deadline_ms, layout_version, fields, _ = header if len(header) == 7 else header[:7]
        if type(call_id) is not int or type(deadline_ms) is not int or type(layout_version) is not int:
            raise ProtocolError("a malformed request")
        self._statistics.calls_served += 1
        handler: Handler | None = None
        try:
            handler = self._handlers.find(name)
            handler.calls += 1
            deadline_s = min(deadline_ms / 1000, DEADLINE_MAX_S)
            call = IncomingCall(self._peer_name, layout_version, payload, self._now + deadline_s)
            answer = handler.function(handler.unpack(fields), call)
        except Exception as error:
            self._fail(call_id, handler, error)
            return
        if type(answer) is handler.reply:
            self._reply(call_id, handler, answer, b"")
        elif type(answer) is tuple:
            self._reply(call_id, handler, answer[0], answer[1])
        else:
            self._run(call_id, handler, answer, len(payload) + header_length + CALL_OVERHEAD, deadline_s)

    def _run(self, call_id: int, handler: Handler, answer: Awaitable[Any], held: int, deadline_s: float) -> None:
        if call_id in self._running:
            raise ProtocolError("a call id used twice")
        running = Running(self, call_id, handler, held)
        if isinstance(answer, asyncio.Future):
            running.work = answer
        else:
            running.work = self._spawn(_outcome(answer))
            running.answer = answer if isinstance(answer, Coroutine) else None
        running.work.add_done_callback(running.finished)
        self._running[call_id] = running
        self._deadlines.add(running, deadline_s)
        self._held += held
        self._intake.take(held)
        if self._held > HELD_LIMIT_CONNECTION or self._intake.is_full:
            self.review_reading()

    def finished(self, running: Running, work: asyncio.Future[Any]) -> None:
        """A handler has come to its end."""
        del self._running[running.call_id]
        running.due.pop(running, None)
        self._held -= running.held
        self._intake.release(running.held)
        if work.cancelled() and running.answer is not None:
            running.answer.close()  # a task cancelled before its first step never got to awaiting it
        error = HoldfastError("the work was given up at the peer") if work.cancelled() else work.exception()
        if self.closed or (running.given_up and work.cancelled()):
            return  # nobody waits for the answer
        if error is not None:
            self._fail(running.call_id, running.handler, error)
            return
        answer = work.result()
        if type(answer) is _Failed:
            self._fail(running.call_id, running.handler, answer.error)
        elif type(answer) is tuple:
            self._reply(running.call_id, running.handler, answer[0], answer[1])
        else:
            self._reply(running.call_id, running.handler, answer, b"")

    def _reply(self, call_id: int, handler: Handler, reply: Any, payload: Payload) -> None:
        try:
            if type(reply) is not handler.reply:
                raise TypeError(f"the handler of {handler.name} returned {type(reply).__name__}")  # noqa: TRY301
            size = len(payload) if type(payload) is bytes else payload_size(payload)
            header = pack_header((REPLY, call_id, handler.pack_reply(reply), size))
            if len(header) > HEADER_LIMIT or size > PAYLOAD_LIMIT:
                raise ValueError(f"a reply of {len(header)} + {size} bytes to {handler.name}")  # noqa: TRY301
        except (TypeError, ValueError, OverflowError) as error:
            self._fail(call_id, handler, error)
            return
        self._outbox.add(call_id, header, payload, size)
        self._sending()

    def _fail(self, call_id: int, handler: Handler | None, error: BaseException) -> None:
        name = handler.name if handler is not None else "?"
        if handler is not None:
            handler.errors += 1
        if not isinstance(error, HoldfastError):
            self._log.failure("handler failed", error, method=name, peer=self._peer_name)
            error = HoldfastError(f"{name} failed at the peer: {type(error).__name__}; see its log")
        code, text, details = error_to_wire(error)
        try:
            header = pack_header((FAILURE, call_id, code, text, details))
        except (TypeError, ValueError, OverflowError):
            header = pack_header((FAILURE, call_id, code, text, {}))
        self._outbox.add(call_id, header, b"", 0)
        self._sending()

    def _sending(self) -> None:
        if not self._receiving:
            self._plan_flush()
        if self._outbox.queued > SEND_QUEUE_LIMIT:
            self.review_reading()

    def review_reading(self) -> None:
        """Stop or go on reading, by what is held and what waits to be sent."""
        transport = self._transport
        if transport is None or self.closed or transport.is_closing():
            self._intake.stopped.pop(self, None)
            return
        full = self._held > HELD_LIMIT_CONNECTION or (self._held > 0 and self._intake.is_full)
        if full or self._outbox.queued > SEND_QUEUE_LIMIT:
            if self not in self._intake.stopped:
                self._intake.stopped[self] = None
                transport.pause_reading()
                self._loop.call_later(STOPPED_PING_S, self._show_life)
        elif self in self._intake.stopped:
            self._intake.stopped.pop(self, None)
            transport.resume_reading()

    def _show_life(self) -> None:
        """Its pings are not read now either, so let the caller know that somebody is still there."""
        if self.is_stopped and not self.closed:
            self.ping()
            self._loop.call_later(STOPPED_PING_S, self._show_life)

    @property
    def is_stopped(self) -> bool:
        """Whether it is not read now, so that its silence says nothing."""
        return self in self._intake.stopped

    # what the connection reports

    def greeted(self) -> None:
        assert self.peer is not None
        self._peer_name = self.peer.name
        self._statistics.connections_in += 1
        self._on_greeting_over(self)

    def greeting_failed(self, error: HoldfastError) -> None:
        self._on_greeting_over(self)

    def drained(self) -> None:
        if self._intake.stopped:
            self.review_reading()

    def lost(self, error: Exception | None) -> None:
        self._intake.stopped.pop(self, None)
        if self.peer is not None:
            self._statistics.connections_in -= 1
        self._arriving.clear()
        for running in list(self._running.values()):
            running.expire()
        self._on_lost(self)


class _Failed:
    """What a handler's task returns when the handler raised: a task that fails would take the node's task group with it."""

    __slots__ = ("error",)

    def __init__(self, error: Exception) -> None:
        self.error = error


async def _outcome(answer: Awaitable[Any]) -> Any:
    try:
        return await answer
    except Exception as error:  # whatever it is becomes the caller's answer
        return _Failed(error)
