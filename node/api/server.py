"""The listening side: connections, their limits and time-outs, and an orderly end.

aiohttp parses and frames; what it leaves open is decided here: malformed or oversized requests are answered with problems, a
request head or a connection that takes too long is given up, a client that half-closes its side in the middle of a body is told
so, connections are bounded in number, and a stop lets running requests finish within a grace time while new ones get 503.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import secrets
from http import HTTPStatus
from typing import Any

import structlog
from aiohttp import web
from aiohttp.http import RawRequestMessage
from aiohttp.http_exceptions import BadHttpMethod, HttpProcessingError, LineTooLong, TransferEncodingError
from aiohttp.streams import EMPTY_PAYLOAD, StreamReader

from cluster.errors import Busy, HoldfastError, Invalid
from node.api.app import Api
from node.api.metrics import RequestCounters
from node.api.problem import PROBLEM_CONTENT_TYPE, internal_response, problem_document, problem_response
from node.api.request import ApiRequest, BodyCutShortError, BrokenAnswerError

log = structlog.get_logger(__name__)

MAX_CONNECTIONS = 2048
"""Open connections to one node's API, at most; more are answered with 503 and closed. Bounds the memory of read buffers and heads. Where
the system allows few open files it is fewer: `node.open_files`."""

MAX_REQUEST_LINE = 8190
"""Bytes of method and target together; longer ones get 414."""

MAX_HEADER_FIELD = 8192
"""Bytes of one header line; longer ones get 431. (Unlike MAX_REQUEST_LINE so that the parser's error tells which it was.)"""

MAX_HEADER_FIELDS = 128
"""Header lines of a request; more get 431."""

READ_BUFFER = 256 << 10
"""Bytes of a body held for a handler that is busy; at twice this reading stops until it catches up."""

KEEP_ALIVE_S = 75.0
"""An idle connection is closed after this; longer than clients commonly keep theirs, so that they close first."""

REQUEST_HEAD_S = 15.0
"""From the first byte of a request to the end of its header, else 408: somebody sends a byte now and then to hold connections."""

LINGER_S = 10.0
"""After a refusal in the middle of a body the rest is taken and dropped so long, so that the client gets to reading the answer."""

HURRIED_LINGER_S = 0.25
"""The same for a client from which no body is expected any more, but which may just have started."""

CUT_OFF_S = 1.0
"""How long handlers have to end after they were cancelled at a stop."""

BACKLOG = 512
"""Connections the kernel holds before they are accepted; bursts of clients that fail over come at once."""


class ApiConnection(web.RequestHandler):
    """One connection: aiohttp's protocol, with bounds on a slow head, a word for half-closed bodies, and problems for garbage."""

    __slots__ = ("_body_left", "_counters", "_head_timer", "_limit", "body")

    def __init__(self, server: ApiHttpServer, counters: RequestCounters, limit: int, **settings: Any) -> None:
        """``limit``: connections of the server, with this one."""
        super().__init__(server, **settings)
        self._counters = counters
        self._limit = limit
        self._head_timer: asyncio.TimerHandle | None = None
        self.body: StreamReader = EMPTY_PAYLOAD
        """The body of the newest request taken up."""
        self._body_left = False
        """That request is answered, and nobody reads the rest of its body."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        assert self._manager is not None
        if len(self._manager.connections) > self._limit:
            self._counters.connections_refused += 1
            self._last_words(503, Busy(f"This node's API has its limit of {self._limit} open connections"))

    def connection_lost(self, exc: BaseException | None) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None
        super().connection_lost(exc)
        if self._body_left and not self.body.is_eof():
            self.body.feed_eof()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._messages:
            if self._head_timer is not None:
                self._head_timer.cancel()
                self._head_timer = None
            if not isinstance(self._messages[-1][0], RawRequestMessage) and not self.body.is_eof():
                # The parser has given up in the middle of a body; its reader would wait for ever.
                self._end_body(self.body, TransferEncodingError("a chunk of the chunked body is malformed"))
        elif self._head_timer is None and self._waiter is not None and not self._waiter.done():
            self._head_timer = self._loop.call_later(REQUEST_HEAD_S, self._head_too_slow)

    def eof_received(self) -> bool | None:  # type: ignore[override]  # asyncio reads the result; aiohttp always answers None
        """The client sends nothing more: what it is owed still goes out, and an unfinished body is over."""
        body = self._messages[-1][1] if self._messages else self.body
        if not body.is_eof():
            self._end_body(body, BodyCutShortError())
            return True
        idle = self._waiter is not None and not self._waiter.done()
        if self._messages or (self._request_count and not idle):
            self.close()  # after the answer
            return True
        return None

    def leave_body(self, *, hurry: bool) -> None:
        self._body_left = True
        if hurry:
            self._lingering_time = HURRIED_LINGER_S

    def take_up(self, body: StreamReader) -> None:
        """A new request with this body."""
        self.body = body
        self._body_left = False

    def _end_body(self, body: StreamReader, error: Exception) -> None:
        """The rest of a body will never come: its reader gets the error, and what only waits for its end is released."""
        if not (self._body_left and body is self.body):
            body.set_exception(error)
        body.feed_eof()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """The answer to what isn't HTTP, and to whatever escapes `Api.handle`."""
        if isinstance(exc, ConnectionError):
            raise exc
        if request.writer.output_size > 0:
            raise BrokenAnswerError
        if isinstance(exc, HttpProcessingError):
            self._counters.malformed_requests += 1
            log.debug("malformed_request", peer=str(self.peername), error=str(exc)[:200])
            response = problem_response(*parse_problem(exc))
        else:
            incident = secrets.token_hex(8)
            log.error("connection_failed", id=incident, exc_info=exc)
            response = internal_response(incident)
        response.force_close()
        return response

    def _head_too_slow(self) -> None:
        self._head_timer = None
        if self._waiter is not None and not self._waiter.done():
            self._last_words(408, Busy(f"The header of a request took longer than {REQUEST_HEAD_S:.0f} s"))

    def _last_words(self, status: int, error: HoldfastError) -> None:
        """Answer outside any request, and close."""
        transport = self.transport
        if transport is not None:
            body = json.dumps(problem_document(error, status)).encode()
            transport.write(
                f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\nContent-Type: {PROBLEM_CONTENT_TYPE}\r\n"
                f"Content-Length: {len(body)}\r\nRetry-After: 1\r\nConnection: close\r\n\r\n".encode()
                + body
            )
        self.force_close()


_UNKNOWN_METHOD = re.compile(r"b'[A-Za-z]+ \S+ HTTP/1\.[01]'")
"""The parser's words about a request line that is right but for a method it never heard of."""


def parse_problem(error: HttpProcessingError) -> tuple[HoldfastError, int]:
    """What to say about a request that the parser refused, with the status."""
    if isinstance(error, LineTooLong):
        if error.args[1] == MAX_REQUEST_LINE:
            return Invalid(f"The request's target is longer than {MAX_REQUEST_LINE} bytes"), 414
        return Invalid(f"A header line is longer than {MAX_HEADER_FIELD} bytes"), 431
    if isinstance(error, BadHttpMethod) and _UNKNOWN_METHOD.search(error.message):
        return Invalid("This method is not known here"), 501
    if "Too many headers" in error.message:
        return Invalid(f"The request has more than {MAX_HEADER_FIELDS} header lines"), 431
    reason = (error.message.strip().splitlines() or ["malformed"])[0][:200]
    return Invalid(f"This is not a request of HTTP/1.1: {reason}"), 400


class ApiHttpServer(web.Server):
    """aiohttp's server, making connections and requests of our kinds."""

    def __init__(self, api: Api, max_connections: int, *, loop: asyncio.AbstractEventLoop) -> None:
        # Handlers are not cancelled when their client goes away: a half-made change would leave its outcome unknown to everybody.
        # Reading the body or writing the answer fails instead, and every wait in between has a deadline of its own.
        super().__init__(api.handle, request_factory=_make_request, handler_cancellation=False, loop=loop)
        self._counters = api.metrics.requests
        self._max_connections = max_connections

    def __call__(self) -> ApiConnection:
        return ApiConnection(
            self,
            self._counters,
            self._max_connections,
            loop=self._loop,
            access_log=None,
            keepalive_timeout=KEEP_ALIVE_S,
            lingering_time=LINGER_S,
            max_line_size=MAX_REQUEST_LINE,
            max_field_size=MAX_HEADER_FIELD,
            max_headers=MAX_HEADER_FIELDS,
            read_bufsize=READ_BUFFER,
            auto_decompress=False,  # bodies are stored as they come
        )


def _make_request(message: Any, payload: Any, protocol: Any, writer: Any, task: Any) -> ApiRequest:
    protocol.take_up(payload)
    return ApiRequest(message, payload, protocol, writer, task, task.get_loop())


class ApiServer:
    """The API of one node on one address. `run` until cancelled, or `start` and `close`."""

    def __init__(self, api: Api, max_connections: int = MAX_CONNECTIONS) -> None:
        self._api = api
        self._max_connections = max_connections
        self._http: ApiHttpServer | None = None
        self._listener: asyncio.AbstractServer | None = None
        self.port = 0
        """The port listened on, once started (of interest when 0 was asked for)."""

    @property
    def connections(self) -> list[web.RequestHandler]:
        """The open connections."""
        return self._http.connections if self._http is not None else []

    async def start(self, host: str, port: int) -> None:
        """Listen. Raises Invalid (field ``api_port``) when the address can't be had. Whether `host` may be listened on without a
        token is the configuration's business: `auth.check_listen_address`."""
        assert self._http is None, "started twice"
        loop = asyncio.get_running_loop()
        http = ApiHttpServer(self._api, self._max_connections, loop=loop)
        try:
            self._listener = listener = await loop.create_server(http, host, port, backlog=BACKLOG)
        except (OSError, OverflowError) as error:
            raise Invalid(f"The API can't listen on {host}:{port}: {error}", field="api_port") from error
        self._http = http
        self.port = int(listener.sockets[0].getsockname()[1])

    async def close(self, grace_s: float) -> None:
        """Stop: requests under way get `grace_s` seconds to finish while new ones get 503, then they are cancelled.

        Returns when no handler runs any more, or CUT_OFF_S after cancelling. Safe to call again.
        """
        http, listener = self._http, self._listener
        if http is None or listener is None:
            return
        self._http = self._listener = None
        self._api.draining = True
        try:
            async with asyncio.timeout(grace_s):
                await self._api.wait_idle()
        except TimeoutError:
            log.warning("requests_cut_off", requests=self._api.metrics.requests.in_flight, grace_s=grace_s)
        listener.close()
        http.pre_shutdown()
        await http.shutdown(CUT_OFF_S / 4)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CUT_OFF_S):
                await self._api.wait_idle()
        if self._api.metrics.requests.in_flight:
            log.error("requests_not_ending", requests=self._api.metrics.requests.in_flight)

    async def run(self, host: str, port: int, *, grace_s: float) -> None:
        """Serve until cancelled, then close. Raises Invalid as `start` does."""
        await self.start(host, port)
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            await self.close(grace_s)
