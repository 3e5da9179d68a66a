"""A download that survives its gateway and never mixes versions.

`Content` asks for a volume's bytes once; when the connection breaks midway it goes on from the byte it has reached, on another
endpoint, with ``Range`` and ``If-Match`` on the version it began with. If that version is gone it raises `ContentChanged`
instead of carrying on with other bytes. It never gives fewer bytes than announced without raising.
"""

from __future__ import annotations

import re
import time
from collections.abc import AsyncIterator
from types import TracebackType

import aiohttp

from client.errors import (
    PROBLEM_BODY_LIMIT,
    Conflict,
    ContentChanged,
    HoldfastError,
    NotFound,
    RangeNotSatisfiable,
    ServerFailure,
    error_from_response,
)
from client.retry import Budget
from client.transport import Attempt, AttemptFailed, Call, Transport

_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")


def quoted_etag(etag: str) -> str:
    """As HTTP writes it: volumes show their ETag without the quotes."""
    return etag if etag == "*" or '"' in etag else f'"{etag}"'


class Content:
    """Bytes ``offset`` to ``offset + length`` of one version of a volume. Use ``async with``, then iterate once.

    Inside the block: ``etag``, ``size`` (of the whole volume), ``offset``, ``length`` (less than asked for when the volume
    ends before) and ``position``, the bytes given so far.
    """

    def __init__(
        self,
        transport: Transport,
        path: str,
        *,
        offset: int = 0,
        length: int | None = None,
        if_match: str | None = None,
    ) -> None:
        if offset < 0 or (length is not None and length < 1):
            raise ValueError("offset must be 0 or more, length 1 or more")
        self._transport = transport
        self._path = path
        self._wanted = length
        self._if_match = if_match
        self._attempt: Attempt | None = None
        self._response: aiohttp.ClientResponse | None = None
        self._url = ""
        self.offset = offset
        self.etag = ""
        self.size = 0
        self.length = 0
        self.position = 0

    async def __aenter__(self) -> Content:
        await self._open(self._transport.budget())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._hang_up()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """The bytes in order, in pieces as they arrive.

        Raises `ContentChanged` when the version cannot be had any more, `Unavailable` when no node gives the rest.
        """
        budget = self._transport.budget()
        while self.position < self.length:
            try:
                if self._response is None:
                    await self._open(budget)
                assert self._response is not None
                assert self._attempt is not None
                self._attempt.progress()
                async for piece in self._response.content.iter_any():
                    if not piece:
                        continue
                    if self.position + len(piece) > self.length:
                        raise ServerFailure(f"{self._url} sent more bytes than it announced")
                    self.position += len(piece)
                    budget.progress(time.monotonic())
                    self._attempt.rest()  # until our caller asks for more
                    yield piece
                    self._attempt.progress()
                if self.position < self.length:
                    raise self._lost(EOFError("the answer ended too early"))
            except (aiohttp.ClientError, TimeoutError) as error:
                failed = self._lost(error)
                await self._hang_up()
                await self._transport.pause(budget, self._url, failed.failure)
            except AttemptFailed as failed:
                await self._hang_up()
                await self._transport.pause(budget, self._url, failed.failure)
        await self._hang_up()

    def _lost(self, error: BaseException) -> AttemptFailed:
        assert self._attempt is not None
        return self._transport.lost(self._url, error, self._attempt)

    async def _hang_up(self) -> None:
        response, self._response = self._response, None
        attempt, self._attempt = self._attempt, None
        if response is not None:
            if response.content.at_eof():
                response.release()
            else:
                response.close()
        if attempt is not None:
            await attempt.close()

    async def _open(self, budget: Budget) -> None:
        while True:
            self._url = self._transport.endpoints.choose(budget.tried)
            self._attempt = Attempt(self._call())
            try:
                self._response = await self._transport.open(self._url, self._attempt)
                await self._check(self._response)
            except AttemptFailed as failed:
                await self._hang_up()
                await self._transport.pause(budget, self._url, failed.failure)
                continue
            except BaseException:
                await self._hang_up()
                raise
            self._attempt.rest()
            self._transport.endpoints.succeeded(self._url)
            return

    def _call(self) -> Call:
        headers = {}
        first = self.offset + self.position
        if self.etag:
            headers["If-Match"] = self.etag
            headers["Range"] = f"bytes={first}-{self.offset + self.length - 1}"
        else:
            if self._if_match is not None:
                headers["If-Match"] = quoted_etag(self._if_match)
            if self._wanted is not None:
                headers["Range"] = f"bytes={first}-{first + self._wanted - 1}"
            elif first:
                headers["Range"] = f"bytes={first}-"
        return Call("GET", self._path, headers=headers)

    async def _refusal(self, response: aiohttp.ClientResponse) -> HoldfastError:
        try:
            body = await response.content.read(PROBLEM_BODY_LIMIT)
        except (aiohttp.ClientError, TimeoutError) as error:
            body = b""  # the status alone says enough to choose the class
            del error
        refusal = error_from_response(response.status, body, response.headers)
        if self.etag and isinstance(refusal, (NotFound, Conflict, RangeNotSatisfiable)):
            return ContentChanged(
                f"the volume changed after {self.position} of {self.length} bytes had been read, and the connection broke: "
                "the rest of that version cannot be had; read it again from the start",
                status=response.status,
            )
        return refusal

    async def _check(self, response: aiohttp.ClientResponse) -> None:
        """Learn the version from the first answer. Raises unless the answer is about the bytes and version we want."""
        if response.status >= 300:
            raise await self._refusal(response)
        first = self.offset + self.position
        etag = response.headers.get("ETag", "")
        length = response.content_length
        ranged = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
        if not etag or length is None:
            raise ServerFailure(f"{self._url} sent content without an ETag or length; is this a Holdfast API port?")
        if response.status == 206 and ranged is not None:
            start, last, size = (int(group) for group in ranged.groups())
            fits = start == first and last - start + 1 == length and length <= (self._wanted or size)
        else:
            size = length
            fits = response.status == 200 and first == 0 and self._wanted is None and not self.position
        if self.etag:
            fits = fits and etag == self.etag and size == self.size and length == self.length - self.position
        if not fits:
            raise ServerFailure(f"{self._url} answered with another range or version than the one asked for")
        if not self.etag:
            self.etag, self.size, self.length = etag, size, length
