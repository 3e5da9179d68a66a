"""One request as the handlers see it: aiohttp's, with the route's parameters, the raw query and the body.

The body is read only when a handler asks for it, and ``100 Continue`` is sent at that moment and not before: a request that is
refused on its headers alone never makes its client send a body. Limits are enforced while reading, not after.
"""

from __future__ import annotations

import asyncio
import json
import select
from typing import Any, Protocol, cast

from aiohttp import hdrs, web
from aiohttp.http import HttpVersion11
from aiohttp.http_exceptions import HttpProcessingError

from cluster.errors import Busy, Invalid
from node.api.problem import RefusalError

JSON_BODY_LIMIT = 64 << 10
"""Bytes of a JSON body. The largest sensible one (staging a few hundred nodes) is a fraction of it."""

BODY_STALL_S = 60.0
"""A body of which no byte comes for so long is given up with 408, so that dead clients hold no memory or half-made writes."""


BODY_REST_LIMIT = 64 << 10
"""A refused body of which no more than this is still to come is read to its end, so that the connection can be used again."""


class ClientGoneError(ConnectionError):
    """The client closed or lost its connection before its request was whole, or while it was being answered.

    No error of this node: the request is abandoned and nothing of it takes effect.
    """


class BodyCutShortError(HttpProcessingError):
    """The client closed its side in the middle of a body; it may still read an answer, so it gets one."""

    message = "it ended before its declared length"


class BrokenAnswerError(ConnectionError):
    """The answer under way failed and its connection was broken, so that nobody takes the part sent for the whole."""


class Connection(Protocol):
    """The connection, as far as a request needs it."""

    def leave_body(self, *, hurry: bool) -> None:
        """The request is being answered before its body has come to its end. `hurry`: no more of it is expected."""


class ApiRequest(web.BaseRequest):
    """A request on its way through the API."""

    ATTRS = web.BaseRequest.ATTRS | frozenset(("template", "arguments", "raw_query", "bytes_received", "_continued"))

    template: str = "(none)"
    """The route's path template; what matches no route is counted together, so that scanners can't create series."""

    arguments: tuple[str, ...] = ()
    raw_query: str = ""
    bytes_received: int = 0
    _continued: bool = False

    def check_expectation(self, expectation: str) -> None:
        """Raises RefusalError with 417 for any Expect header but ``100-continue``."""
        if expectation.lower() != "100-continue":
            raise RefusalError(Invalid(f"The expectation {expectation[:100]!r} can't be met", field="Expect"), 417)

    @property
    def waits_for_continue(self) -> bool:
        """The client holds its body back until it is told to go on."""
        return hdrs.EXPECT in self.headers and not self._continued and self.version >= HttpVersion11

    @property
    def cut_short(self) -> bool:
        """The client ended the connection, or its half of it, before the body was whole."""
        return isinstance(self.content.exception(), BodyCutShortError)

    @property
    def client_gone(self) -> bool:
        """Nobody is there any more to be answered."""
        transport = self.transport
        return transport is None or transport.is_closing()

    def check_client(self) -> None:
        """Raises ClientGoneError when the client has broken the connection off (a reset; one that only has nothing more to send, and
        waits for the answer, has not)."""
        transport = self.transport
        if transport is None or transport.is_closing():
            raise ClientGoneError("the client has gone")
        socket = transport.get_extra_info("socket")
        if socket is not None and socket.fileno() >= 0:
            watch = select.poll()
            watch.register(socket.fileno(), 0)
            if watch.poll(0):  # nothing was asked for, so it tells of POLLERR and POLLHUP only
                raise ClientGoneError("the client has broken the connection off")

    def leave_body_unread(self, response: web.StreamResponse) -> None:
        """Arrange what happens to the connection after `response`, given before the body had come to its end.

        A client in the middle of sending only reads an answer if the connection stays open a while and its bytes are taken
        (the server lingers), then the connection closes. One that still waits for ``100 Continue`` sends nothing more. A small
        rest is read, and the connection kept.
        """
        declared = self.headers.get(hdrs.CONTENT_LENGTH)
        waiting = self.waits_for_continue or response.status == 408
        if waiting or declared is None or int(declared) - self.bytes_received > BODY_REST_LIMIT:
            response.force_close()
        cast("Connection", self.protocol).leave_body(hurry=waiting)

    @property
    def declared_length(self) -> int | None:
        """Content-Length, or None for a chunked body. Raises RefusalError with 411 when there is neither, with 501 for a body in any
        transfer coding besides (``gzip, chunked``): the parser undoes the chunks alone, and what is left is not the content.

        A request without either has no body by RFC 9112 section 6.3; taking a forgotten length for an empty content would
        empty a volume.
        """
        codings = self.headers.getall(hdrs.TRANSFER_ENCODING, ())
        if codings:
            coding = ", ".join(codings).strip()
            if coding.lower() == "chunked":
                return None
            raise RefusalError(
                Invalid(
                    f"Transfer-Encoding {coding[:50]!r} is not taken; send the bytes themselves, chunked or with a length",
                    field=hdrs.TRANSFER_ENCODING,
                ),
                501,
            )
        value = self.headers.get(hdrs.CONTENT_LENGTH)
        if value is not None:
            return int(value)
        raise RefusalError(
            Invalid("Send a Content-Length (0 for empty content) or a chunked body", field=hdrs.CONTENT_LENGTH), 411
        )

    def refuse_encoded_body(self) -> None:
        """Raises RefusalError with 415 when the body is compressed: content is stored as it comes, and never guessed about."""
        encoding = self.headers.get(hdrs.CONTENT_ENCODING)
        if encoding is not None and encoding.strip().lower() not in ("", "identity"):
            raise RefusalError(
                Invalid(
                    f"Content-Encoding {encoding[:50]!r} is not taken; send the bytes themselves",
                    field="Content-Encoding",
                ),
                415,
                {"Accept-Encoding": "identity"},
            )

    def body(self) -> RequestBody:
        """The body as it comes. One reader, once."""
        return RequestBody(self)

    async def json_object(self, *, required: bool = True) -> dict[str, Any]:
        """The body as a JSON object with each name at most once; ``{}`` for an empty body unless `required`.

        Raises RefusalError with 413 above JSON_BODY_LIMIT (before reading, where the length is declared) and 415 for another
        content type, Invalid for what is not a JSON object.
        """
        if not self.body_exists:
            if required:
                raise Invalid("This request needs a JSON object as its body", field="body")
            return {}
        self.refuse_encoded_body()
        if self.content_type != "application/json":
            # Not only tidiness: a browser sends other types across sites without asking, this one it doesn't.
            raise RefusalError(Invalid("Send the body with Content-Type: application/json", field="Content-Type"), 415)
        declared = self.declared_length  # present: there is a body
        if declared is not None and declared > JSON_BODY_LIMIT:
            raise _too_large()
        pieces = bytearray()
        async for piece in self.body():
            pieces += piece
            if len(pieces) > JSON_BODY_LIMIT:
                raise _too_large()
        if not required and not pieces.strip():
            return {}
        try:
            document = json.loads(pieces, object_pairs_hook=_unique_names, parse_constant=_no_constant)
        except RecursionError:
            raise Invalid("The JSON body is nested too deeply", field="body") from None
        except ValueError as error:
            raise Invalid(f"The body is not JSON: {_first_line(error)}", field="body") from None
        if not isinstance(document, dict):
            raise Invalid("The body must be a JSON object", field="body")
        return document

    def send_continue(self) -> None:
        """Tell a client that waits for it to send its body. Raises ClientGoneError."""
        if self.waits_for_continue and not self.content.is_eof():
            self._continued = True
            transport = self.transport
            if transport is None:
                raise ClientGoneError
            transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")


class RequestBody:
    """The bytes of a body, in pieces of any length up to the read buffer of the connection.

    A class rather than an async generator: one that is left half-way needs no closing.
    """

    __slots__ = ("_content", "_request", "_started")

    def __init__(self, request: ApiRequest) -> None:
        self._request = request
        self._content = request.content
        self._started = False

    def __aiter__(self) -> RequestBody:
        return self

    async def __anext__(self) -> bytes:
        """The next piece. Raises ClientGoneError when the connection breaks, Invalid when the body is malformed or ends early,
        RefusalError with 408 when nothing comes for BODY_STALL_S."""
        request, content = self._request, self._content
        if not self._started:
            self._started = True
            request.send_continue()
        try:
            data = content.read_nowait()
            if not data and not content.at_eof():
                async with asyncio.timeout(BODY_STALL_S):
                    data = await content.readany()
        except TimeoutError:
            raise RefusalError(
                Busy(f"No byte of the body came for {BODY_STALL_S:.0f} s", received=content.total_bytes), 408
            ) from None
        except HttpProcessingError as error:
            raise Invalid(f"The body is malformed: {error.message}", received=content.total_bytes) from None
        except (OSError, RuntimeError):
            if request.transport is None:
                raise ClientGoneError from None
            raise
        if not data:
            raise StopAsyncIteration
        request.bytes_received += len(data)
        return data


def _too_large() -> RefusalError:
    return RefusalError(Invalid(f"The JSON body is larger than {JSON_BODY_LIMIT} bytes", field="body"), 413)


def _unique_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice[:100]!r} appears twice")
    return document


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
