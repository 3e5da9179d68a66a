"""The content of volumes: GET and HEAD (whole or one range), PUT (whole, or one range named by Content-Range).

Reads: a Range that can't be understood, and several ranges, are answered with the whole (200); one beyond the end with 416. Short
answers go out in one piece; long ones stream, and one that fails half-way breaks the connection, so that no client takes a short
body for a whole one. An error before the first byte is still an ordinary problem.

Writes: a Content-Range whose total is not the volume's size is refused with 416 like one beyond the end: the client thinks of
another volume than there is. A body's length must be known (411) or chunked, and must be that of the range.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import aclosing

import structlog
from aiohttp import hdrs, web

from cluster.errors import HoldfastError, Invalid
from cluster.rpc.message import Buffer
from cluster.volumes.volume import Volume
from node.api.conditions import Verdict, evaluate_read, range_applies
from node.api.fields import Fields
from node.api.metrics import RequestCounters
from node.api.ports import OpenVolume, Volumes
from node.api.problem import RefusalError
from node.api.ranges import UnsatisfiableRangeError, parse_content_range, parse_range
from node.api.request import ApiRequest, BrokenAnswerError, ClientGoneError
from node.api.router import Router
from node.api.volume_json import last_modified, quoted_etag
from node.api.volume_routes import condition_of, unmet_answer, volume_answer, volume_shape

log = structlog.get_logger(__name__)

SERVER = "Holdfast"
"""The Server header: neither release nor libraries, which only help to find holes."""

SMALL_ANSWER = 64 << 10
"""Bytes up to which an answer is collected and sent with its header in one write."""

SEND_PIECE = 256 << 10
"""Bytes handed to the socket at a time; what a client must take within SEND_STALL_S."""

SEND_STALL_S = 120.0
"""A client that takes less than SEND_PIECE in so long is cut off: it holds chunks in memory. Slower than 2 KiB/s is no client."""


class _StalledError(Exception):
    """The client takes nothing."""


class DataRoutes:
    """The handlers of ``/v1/volumes/{volume}/data``."""

    def __init__(self, volumes: Volumes, counters: RequestCounters, passes: Callable[[], int]) -> None:
        self._volumes = volumes
        self._counters = counters
        self._passes = passes

    def add_to(self, router: Router) -> None:
        router.add("GET", "/v1/volumes/{volume}/data", self.get)
        router.add("PUT", "/v1/volumes/{volume}/data", self.put)

    async def get(self, request: ApiRequest) -> web.StreamResponse:
        if request.raw_query:
            Fields.of_query(request.raw_query).finish()
        opened = await self._volumes.open(request.arguments[0])
        volume, headers = opened.volume, request.headers
        verdict = evaluate_read(headers, volume.etag, volume.modified_at)
        if verdict is not Verdict.PROCEED:
            return unmet_answer(verdict, volume)
        size = volume.size
        start, stop, status = 0, size, 200
        etag = quoted_etag(volume)
        answer_headers = {
            "Content-Type": "application/octet-stream",
            "ETag": etag,
            "Last-Modified": last_modified(volume, time.time()),
            "Accept-Ranges": "bytes",
        }
        if request.method != "GET":  # Range is defined for GET alone (RFC 9110 section 14.2)
            answer_headers["Content-Length"] = str(size)
            return web.Response(headers=answer_headers)
        range_header = headers.get(hdrs.RANGE)
        if range_header is not None and range_applies(headers.get(hdrs.IF_RANGE), volume.etag):
            try:
                wanted = parse_range(range_header, size)
            except UnsatisfiableRangeError:
                error = Invalid(f"The range {range_header[:100]!r} begins beyond the end of {size} bytes", size=size)
                raise _unsatisfiable(error) from None
            if wanted is not None:
                start, stop = wanted
                status = 206
                answer_headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
        length = stop - start
        if length <= SMALL_ANSWER:
            body = await opened.read_small(start, stop) if length else b""
            assert len(body) == length, "a read gave another length than was asked for"
            self._counters.bytes_sent += length
            return web.Response(
                status=status, headers=answer_headers, body=bytes(body) if isinstance(body, memoryview) else body
            )
        answer_headers["Content-Length"] = str(length)
        answer_headers["Server"] = SERVER
        response = web.StreamResponse(status=status, headers=answer_headers)
        await self._stream(request, response, opened, start, stop)
        return response

    async def _stream(
        self, request: ApiRequest, response: web.StreamResponse, opened: OpenVolume, start: int, stop: int
    ) -> None:
        """Send [start, stop). Raises what the first read raises as it is; after the header is out, BrokenAnswerError or ClientGoneError."""
        async with aclosing(opened.read(start, stop)) as pieces:
            first = await anext(pieces)
            try:
                await response.prepare(request)
                await self._send(response, first)
                sent = len(first)
                async for piece in pieces:
                    await self._send(response, piece)
                    sent += len(piece)
                assert sent == stop - start, f"a read of {stop - start} bytes gave {sent}"
            except BaseException as error:
                gone = request.client_gone or isinstance(error, _StalledError)
                if request.transport is not None:
                    request.transport.abort()
                if not isinstance(error, Exception):
                    raise  # cancelled: the server stops
                if gone:
                    raise ClientGoneError from error
                self._counters.broken_answers += 1
                self._log_broken(opened.volume, start, stop, error)
                raise BrokenAnswerError from error

    def _log_broken(self, volume: Volume, start: int, stop: int, error: Exception) -> None:
        defect = None if isinstance(error, HoldfastError) else error
        log.error("answer_broken", volume=volume.name, start=start, stop=stop, error=str(error), exc_info=defect)

    async def _send(self, response: web.StreamResponse, piece: Buffer) -> None:
        """Hand one piece of content to the socket, no faster than the client takes it. Raises _StalledError, ConnectionError."""
        view = memoryview(piece)
        for offset in range(0, len(view), SEND_PIECE):
            part = view[offset : offset + SEND_PIECE]
            try:
                async with asyncio.timeout(SEND_STALL_S):
                    await response.write(part)
            except TimeoutError:
                raise _StalledError from None
            self._counters.bytes_sent += len(part)

    async def put(self, request: ApiRequest) -> web.Response:
        request.refuse_encoded_body()
        headers, name = request.headers, request.arguments[0]
        length = request.declared_length
        condition = condition_of(request)
        fields = Fields.of_query(request.raw_query)
        places = headers.getall(hdrs.CONTENT_RANGE, ())
        if not places:
            shape = volume_shape(fields)
            fields.finish()
            volume, created = await self._volumes.replace(name, request.body(), length, condition, **shape)
            return volume_answer(volume, 201 if created else 200, self._passes())
        fields.finish()
        if len(places) > 1:
            raise Invalid("Content-Range is given twice", field=hdrs.CONTENT_RANGE)
        place = parse_content_range(places[0])
        if length is not None and length != place.length:
            raise Invalid(f"Content-Range names {place.length} bytes, the body has {length}", field=hdrs.CONTENT_RANGE)
        try:
            volume = await self._volumes.write_range(
                name, place.start, request.body(), place.length, condition, size=place.total
            )
        except Invalid as error:
            if error.details.get("field") == "range":
                raise _unsatisfiable(error) from None
            raise
        return volume_answer(volume, 200, self._passes())


def _unsatisfiable(error: Invalid) -> RefusalError:
    """416; ``size`` in the details of `error` is the volume's."""
    return RefusalError(error, 416, {"Content-Range": f"bytes */{error.details['size']}"})
