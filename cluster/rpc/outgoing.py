"""The asking side of a connection: sends requests, and matches replies to them by call id."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from itertools import count
from typing import Any

from cluster.errors import HoldfastError, Invalid, PeerLost, PeerUnavailable, error_from_wire
from cluster.rpc.buffer_pool import BufferPool
from cluster.rpc.caller import Reply
from cluster.rpc.codec import Codec, codec_of
from cluster.rpc.connection import Connection
from cluster.rpc.deadline import Deadlines, Expiring
from cluster.rpc.frame import CANCEL, FAILURE, PIECE, PING, REPLY, REQUEST, ProtocolError, pack_header, short_frame
from cluster.rpc.handshake import Handshake
from cluster.rpc.inbound_payload import InboundPayload
from cluster.rpc.limits import HEADER_LIMIT, PAYLOAD_LIMIT, PING_TIMEOUT_S, SEND_QUEUE_LIMIT, STREAMS_RECEIVED
from cluster.rpc.message import Payload
from cluster.rpc.quiet_log import QuietLog
from cluster.rpc.statistics import RpcStatistics


class Asked:
    """A call that waits for its reply."""

    __slots__ = ("call_id", "connection", "due", "future", "method", "payload", "reply_fields", "sent_at", "unpack")

    due: dict[Expiring, None]

    def __init__(
        self,
        call_id: int,
        connection: OutgoingConnection,
        future: asyncio.Future[Reply[Any]],
        method: str,
        unpack: Callable[[object], Any],
        sent_at: float,
    ) -> None:
        self.call_id = call_id
        self.connection = connection
        self.future = future
        self.method = method
        self.unpack = unpack
        self.sent_at = sent_at
        self.payload: InboundPayload | None = None
        self.reply_fields: object = None

    def expire(self) -> None:
        self.connection.expired(self)


class OutgoingConnection(Connection):
    """A connection that this node opened."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        handshake: Handshake,
        deadlines: Deadlines,
        statistics: RpcStatistics,
        log: QuietLog,
        pool: BufferPool,
        on_lost: Callable[[OutgoingConnection], None],
    ) -> None:
        super().__init__(loop, handshake, deadlines, statistics, log, pool)
        self.welcome: asyncio.Future[None] = loop.create_future()
        """Done when calls may be made; fails with the reason when they never will be."""
        self._on_lost = on_lost
        self._call_ids = count(1)
        """Never used twice on a connection, so no reply is taken for that to another call."""
        self._asked: dict[int, Asked] = {}
        self._streams = 0
        self._room: deque[tuple[asyncio.Future[None], int]] = deque()
        self._filling: Asked | None = None
        self._pinged = False

    # asking

    @property
    def is_full(self) -> bool:
        """Whether callers have to wait for `room` first."""
        return self._outbox.queued > SEND_QUEUE_LIMIT or bool(self._room)

    async def room(self, size: int) -> None:
        """Wait until the outbox takes a call of that `size`, first come, first served. The connection may be closed by then."""
        if not self.is_full:
            return
        turn = (self._loop.create_future(), size)
        self._room.append(turn)
        try:
            await turn[0]
        except asyncio.CancelledError:
            if turn in self._room:
                self._room.remove(turn)
            else:
                self.drained()  # the turn goes to the next one
            raise

    def ask(
        self, codec: Codec[Any], request: object, payload: Payload, size: int, deadline_s: float, layout_version: int
    ) -> Asked:
        """Put a request into the outbox. Raises Invalid when it cannot travel, PeerUnavailable when the connection is gone."""
        if self.closed:
            raise PeerUnavailable("the connection has just been closed")
        call_id = next(self._call_ids)
        assert codec.reply is not None
        try:
            header = pack_header(
                (REQUEST, call_id, codec.name, int(deadline_s * 1000) + 1, layout_version, codec.pack(request), size)
            )
        except (TypeError, ValueError, OverflowError) as error:
            raise Invalid(f"{codec.name}: this request cannot be packed: {error}") from error
        if len(header) > HEADER_LIMIT or size > PAYLOAD_LIMIT:
            raise Invalid(
                f"{codec.name}: {len(header)} bytes of fields and {size} of payload are too many;"
                f" the limits are {HEADER_LIMIT} and {PAYLOAD_LIMIT}"
            )
        future: asyncio.Future[Reply[Any]] = self._loop.create_future()
        asked = Asked(call_id, self, future, codec.name, codec_of(codec.reply).unpack, self._loop.time())
        self._asked[call_id] = asked
        self._deadlines.add(asked, deadline_s)
        self._outbox.add(call_id, header, payload, size)
        if not self._flush_planned:
            self._plan_flush()
        self._statistics.calls_sent += 1
        self._statistics.in_flight_out += 1
        return asked

    def abandon(self, asked: Asked) -> None:
        """The caller has gone away: stop sending, and tell the peer."""
        if self._asked.get(asked.call_id) is asked:
            self._forget(asked)
            self._cancel(asked.call_id)

    def expired(self, asked: Asked) -> None:
        """The deadline of a call has passed."""
        self._statistics.calls_expired += 1
        self._forget(asked)
        never_sent = self._cancel(asked.call_id)
        waited = f"{self._loop.time() - asked.sent_at:.1f} s"
        peer = self.peer.name if self.peer is not None else "?"
        error: HoldfastError
        if never_sent:
            error = PeerUnavailable(f"{asked.method} to {peer} could not be sent within {waited}", peer=peer)
        else:
            error = PeerLost(f"no answer to {asked.method} from {peer} within {waited}", peer=peer)
        if not asked.future.done():
            asked.future.set_exception(error)
        if self.last_heard < asked.sent_at and not self._pinged and not self.closed:
            # complete silence: is anybody there?
            self._pinged = True
            self.ping()
            self._loop.call_later(PING_TIMEOUT_S, self._check_life, self._loop.time())

    def _check_life(self, pinged_at: float) -> None:
        self._pinged = False
        if not self.closed and self.last_heard < pinged_at:
            self._log.warning("peer is silent: connection given up", address=self.address)
            self.abort()

    def _forget(self, asked: Asked) -> None:
        del self._asked[asked.call_id]
        asked.due.pop(asked, None)
        self._statistics.in_flight_out -= 1
        if asked.payload is not None:
            asked.payload = None
            self._streams -= 1

    def _cancel(self, call_id: int) -> bool:
        """Stop a call at both ends. True when the peer has never heard of it."""
        if self.closed:
            return False
        if self._outbox.drop(call_id):
            return True
        self._outbox.add_short(short_frame((CANCEL, call_id)))
        self._plan_flush()
        return False

    # what arrives

    def call_frame(self, header: tuple[Any, ...], payload: bytes) -> None:
        kind = header[0]
        if kind == REPLY:
            asked = self._asked.get(header[1])
            if asked is None:
                return  # late: the caller has gone
            fields, size = header[2], header[3]
            if size == len(payload):
                self._answered(asked, fields, payload)
            else:
                self._begin(asked, fields, size).append(payload)
        elif kind == PIECE:
            asked = self._asked.get(header[1])
            if asked is not None:
                if asked.payload is None:
                    raise ProtocolError("a piece of no payload")
                if asked.payload.append(payload):
                    self._complete(asked)
        elif kind == FAILURE:
            self._failed(*header[1:5])
        elif kind == PING:
            self.heard_ping()
        # anything else is of a newer release

    def call_payload_starts(self, header: tuple[Any, ...], length: int) -> memoryview | None:
        if header[0] not in {REPLY, PIECE}:
            return None
        asked = self._asked.get(header[1])
        if asked is None:
            return None
        if header[0] == REPLY:
            self._begin(asked, header[2], header[3])
        if asked.payload is None:
            raise ProtocolError("a piece of no payload")
        self._filling = asked
        return asked.payload.place(length)

    def call_payload_ends(self) -> None:
        asked, self._filling = self._filling, None
        # the caller may have gone while its payload arrived
        if asked is not None and asked.payload is not None and asked.payload.arrived():
            self._complete(asked)

    def _failed(self, call_id: object, code: object, text: object, details: object) -> None:
        if type(call_id) is not int or type(code) is not str or type(text) is not str or type(details) is not dict:
            raise ProtocolError("a malformed failure")
        asked = self._asked.get(call_id)
        if asked is not None:
            error = error_from_wire(code, text, details)
            self._forget(asked)
            if not asked.future.done():
                asked.future.set_exception(error)

    def _begin(self, asked: Asked, fields: object, size: object) -> InboundPayload:
        if asked.payload is not None:
            raise ProtocolError("two replies to one call")
        self._streams += 1
        asked.payload = InboundPayload(size, self._pool)
        asked.reply_fields = fields
        if self._streams > STREAMS_RECEIVED:
            raise ProtocolError(f"more than {STREAMS_RECEIVED} unfinished payloads")
        return asked.payload

    def _complete(self, asked: Asked) -> None:
        assert asked.payload is not None
        self._answered(asked, asked.reply_fields, asked.payload.buffer)

    def _answered(self, asked: Asked, fields: object, payload: bytes | bytearray) -> None:
        self._forget(asked)
        future = asked.future
        if future.done():
            return
        try:
            future.set_result(Reply(asked.unpack(fields), payload))
        except Invalid as error:
            # it was executed, but nobody here can tell how it went
            future.set_exception(PeerLost(f"the answer to {asked.method} cannot be read: {error}"))

    # what the connection reports

    def greeted(self) -> None:
        self._statistics.connections_out += 1
        if not self.welcome.done():
            self.welcome.set_result(None)

    def greeting_failed(self, error: HoldfastError) -> None:
        if not self.welcome.done():
            self.welcome.set_exception(error)
            self.welcome.exception()  # whoever waited may be gone: that is no error of its own

    def drained(self) -> None:
        # whoever is let in adds to the outbox only when it runs, so its size is counted here
        free = SEND_QUEUE_LIMIT - self._outbox.queued
        while self._room and free > 0:
            turn, size = self._room.popleft()
            if not turn.done():
                turn.set_result(None)
                free -= size + 1024

    def lost(self, error: Exception | None) -> None:
        if self.peer is not None:
            self._statistics.connections_out -= 1
        self._on_lost(self)
        peer = self.peer.name if self.peer is not None else "?"
        for asked in list(self._asked.values()):
            self._forget(asked)
            if not asked.future.done():
                reason = f": {error}" if error is not None else ""
                asked.future.set_exception(
                    PeerLost(f"the connection to {peer} broke before it answered {asked.method}{reason}", peer=peer)
                )
        while self._room:
            turn, _ = self._room.popleft()
            if not turn.done():
                turn.set_result(None)
