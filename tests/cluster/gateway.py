"""One node's API as it is: requests without fail-over and without repetition, and the answer with all its headers."""

from __future__ import annotations

import json
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import aiohttp

REQUEST_DEADLINE_S = 30.0
"""A request that takes longer fails the test that made it."""

PROBLEM = "application/problem+json"


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    """By lower-case name."""
    body: bytes
    seconds: float
    """From the start of the request to the last byte of the answer."""

    def json(self) -> Any:
        return json.loads(self.body)

    def problem(self, status: int, code: str) -> dict[str, Any]:
        """The problem document, which must be one of this status and kind, and say something."""
        assert self.status == status, (self.status, self.body[:500])
        assert self.headers["content-type"].startswith(PROBLEM), self.headers
        document = self.json()
        assert document["type"].endswith(f"/{code}"), document
        assert document["status"] == status
        assert len(document["detail"]) > 10
        assert isinstance(document, dict)
        return document


class ConnectionBrokenError(aiohttp.ClientError):
    """The request may have been executed."""


async def _once(
    request: aiohttp.ClientRequest, handler: Callable[[aiohttp.ClientRequest], Awaitable[aiohttp.ClientResponse]]
) -> aiohttp.ClientResponse:
    """aiohttp sends a PUT or DELETE again by itself when its connection breaks; and when nobody listens by then, it says that it could
    not connect, as if nothing had been sent."""
    try:
        return await handler(request)
    except aiohttp.ClientConnectorError:
        raise
    except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError) as error:
        raise ConnectionBrokenError(str(error) or "the connection was closed") from error


class Gateway:
    """Requests to one address. Use ``async with``."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Gateway:
        timeout = aiohttp.ClientTimeout(total=REQUEST_DEADLINE_S)
        connector = aiohttp.TCPConnector(limit=0, force_close=True)
        self._session = aiohttp.ClientSession(
            timeout=timeout, connector=connector, auto_decompress=False, middlewares=(_once,)
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._session is not None
        await self._session.close()

    async def ask(self, method: str, path: str, **arguments: Any) -> Answer:
        """Arguments as aiohttp's. Raises aiohttp.ClientError and TimeoutError."""
        assert self._session is not None
        began = time.monotonic()
        async with self._session.request(method, self._url + path, **arguments) as response:
            body = await response.read()
            headers = {name.lower(): value for name, value in response.headers.items()}
            return Answer(response.status, headers, body, time.monotonic() - began)

    async def put(self, name: str, content: bytes, **arguments: Any) -> Answer:
        return await self.ask("PUT", f"/v1/volumes/{name}/data", data=content, **arguments)

    async def get(self, name: str, **arguments: Any) -> Answer:
        return await self.ask("GET", f"/v1/volumes/{name}/data", **arguments)

    async def document(self, path: str) -> Any:
        answer = await self.ask("GET", path)
        assert answer.status == 200, answer
        return answer.json()
