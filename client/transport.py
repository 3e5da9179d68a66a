"""One call, on whichever node answers.

Owns the HTTP sessions and the knowledge which endpoints are healthy. A call is repeated on another endpoint after a refused
or broken connection, a stall, a gateway that hangs (see `client.liveness`), or a 503 that allows it; what the caller learns is
either one answer (of any status below 500 and some above) or an error. `Answer.doubtful` and `Failure.maybe_executed` say
whether an earlier attempt may have taken effect without our hearing of it: only the caller of this module knows what that means
for its request.

The HTTP library's own silent repetition is turned off, because it would hide exactly that.
"""

from __future__ import annotations

import asyncio
import errno
import json
import os
import random
import ssl
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import partial
from types import TracebackType
from typing import Any

import aiohttp
from yarl import URL

from client.endpoints import Endpoints
from client.errors import (
    PROBLEM_BODY_LIMIT,
    HoldfastError,
    OutcomeUnknown,
    ServerFailure,
    Unavailable,
    Unreachable,
    error_from_response,
)
from client.liveness import Liveness, Watch
from client.retry import Budget, Failure, RetryPolicy
from client.sources import Buffer, Source

DOCUMENT_LIMIT = 64 * 1024 * 1024
"""Bytes of a JSON answer at most: a page of a thousand volumes is well under one MiB, a layout of 1000 nodes too."""

RECEIVE_BUFFER = 1024 * 1024
"""Bytes of a download that wait for the reader before the connection is paused."""

EXPECT_CONTINUE_FROM = 1024 * 1024
"""Bodies of at least this many bytes (or of unknown length) ask before they are sent: a refusal then costs no transfer."""

_NOBODY_THERE = frozenset({errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN, errno.ETIMEDOUT})
"""What a network says in place of a machine that is gone; a refusal, on the other hand, comes from the machine itself."""

PROBE_PATH = "/healthz"
"""Answered by a node's event loop alone: without a token, a disk or another node."""

Progress = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Call:
    """One request, not yet bound to an endpoint. ``path`` is percent-encoded."""

    method: str
    path: str
    query: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    document: Any = None
    body: Source | None = None
    on_progress: Progress | None = None
    """Called with the bytes of ``body`` handed to the connection so far; starts anew with each attempt."""
    fresh_connection: bool = False
    """Never on a pooled connection: for requests whose outcome would be in doubt if that turned out to be stale."""

    @property
    def safe(self) -> bool:
        return self.method in {"GET", "HEAD"}


@dataclass(frozen=True, slots=True)
class Answer:
    """A server's last word. ``doubtful``: an earlier attempt of the same call may have been executed too."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    doubtful: bool = False

    @property
    def error(self) -> HoldfastError | None:
        return None if self.status < 300 else error_from_response(self.status, self.body, self.headers)

    def check(self, what: str = "the request took effect") -> None:
        """Raises the answer's error, or `OutcomeUnknown` in its place where an earlier attempt may have done what this one was
        refused: a full disk, a bad token or a failed condition then speak of the last attempt alone. ``what`` is in doubt."""
        if (error := self.error) is not None:
            raise self._told(error, what)

    def document(self, what: str = "the request took effect") -> Any:
        """The JSON body. Raises as `check` does, and `ServerFailure` when a good answer holds no JSON."""
        self.check(what)
        try:
            return json.loads(self.body)
        except ValueError as error:
            failure = ServerFailure("the server's answer is not JSON; is this a Holdfast API port?", status=self.status)
            raise self._told(failure, what) from error

    def _told(self, error: HoldfastError, what: str) -> HoldfastError:
        if not self.doubtful:
            return error
        return OutcomeUnknown(
            f"whether {what} is unknown: an attempt got lost, and the last one was answered: {error.message}; "
            "look before you repeat it",
            status=error.status,
            details=error.details,
        )


CLOSING_LOOK_S = 0.005
"""Between two looks whether the last read of a body that was given up has come to its end."""


class AttemptFailed(Exception):
    """Inside this package: one attempt gave no answer that could be handed on."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.error.message)
        self.failure = failure


class _ConnectionBroken(aiohttp.ClientError):
    """A broken connection in a shape that the HTTP library does not repeat by itself."""


class _Request(aiohttp.ClientRequest):
    """A request that tells its watch which connection it goes over."""

    watch: Watch | None = None

    async def send(self, conn: aiohttp.connector.Connection) -> aiohttp.ClientResponse:
        if self.watch is not None:
            self.watch.connected(conn.transport)
        return await super().send(conn)


async def _watched_and_once(
    watch: Watch,
    request: aiohttp.ClientRequest,
    handler: Callable[[aiohttp.ClientRequest], Awaitable[aiohttp.ClientResponse]],
) -> aiohttp.ClientResponse:
    """Without the HTTP library's hidden repetition."""
    assert isinstance(request, _Request)
    request.watch = watch
    try:
        return await handler(request)
    except aiohttp.ClientConnectorError:
        raise
    except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError) as error:
        raise _ConnectionBroken(str(error) or "the connection was closed") from error


class Transport:
    """Use as an async context manager. Safe for any number of calls at once, within one event loop."""

    def __init__(
        self,
        endpoints: Sequence[str],
        *,
        token: str | None = None,
        policy: RetryPolicy | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.endpoints = Endpoints(endpoints, now=time.monotonic)
        self.policy = policy or RetryPolicy()
        self._tls: ssl.SSLContext | bool = tls if tls is not None else True
        self._headers = {"Accept-Encoding": "identity", "User-Agent": "holdfast-client"}
        if token:
            self._headers["Authorization"] = f"Bearer {token}"
        self._random = random.Random()  # noqa: S311 - spreads retries, keeps no secret
        self._sessions: dict[bool, aiohttp.ClientSession] = {}
        self._liveness = Liveness(self._gives_a_sign, self.endpoints.hung)

    async def __aenter__(self) -> Transport:
        for fresh in (False, True):
            self._sessions[fresh] = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, force_close=fresh),
                headers=self._headers,
                timeout=aiohttp.ClientTimeout(
                    total=None, sock_connect=self.policy.connect_timeout_s, sock_read=self.policy.idle_timeout_s
                ),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                read_bufsize=RECEIVE_BUFFER,
                request_class=_Request,
            )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for session in self._sessions.values():
            await session.close()
        self._sessions.clear()

    def budget(self) -> Budget:
        return Budget(self.policy, len(self.endpoints), self._random, time.monotonic())

    async def call(self, call: Call) -> Answer:
        """The answer of the first node that gives one.

        Raises `Unavailable` when the budget is spent and certainly nothing was done, `OutcomeUnknown` when something may
        have been, and whatever the body's source raises before anything can have been.
        """
        budget = self.budget()
        doubtful = False
        while True:
            url = self.endpoints.choose(budget.tried)
            attempt = Attempt(call)
            try:
                answer = await self._attempt(url, attempt)
            except AttemptFailed as failed:
                failure = failed.failure
                doubtful = doubtful or (failure.maybe_executed and not call.safe)
                if call.body is not None and attempt.begun and not call.body.rewindable:
                    raise self._spent(
                        failure, doubtful, "its source cannot be read again, so send it again"
                    ) from failed
                await self.pause(budget, url, failure, doubtful=doubtful)
            except Exception as error:
                by_source = error is attempt.error
                if doubtful and (by_source or isinstance(error, HoldfastError)):
                    raise _in_doubt(error) from error
                if by_source and attempt.complete:
                    raise _in_doubt(error) from error  # raised behind the last byte: the receiver may hold all of it
                raise
            else:
                return Answer(answer.status, answer.headers, answer.body, doubtful)

    async def pause(self, budget: Budget, url: str, failure: Failure, *, doubtful: bool = False) -> None:
        """Wait until the next attempt is due. Raises when the budget is spent."""
        delay = budget.failed(url, failure, time.monotonic())
        if delay is None:
            raise self._spent(failure, doubtful, "")
        await asyncio.sleep(delay)

    def _spent(self, failure: Failure, doubtful: bool, advice: str) -> HoldfastError:
        message = failure.error.message + (f"; {advice}" if advice else "")
        if doubtful:
            return _in_doubt(failure.error, message)
        if not failure.reached:
            return Unreachable(
                f"no endpoint can be reached: tried {', '.join(self.endpoints.urls)} ({failure.error.message})"
            )
        return Unavailable(
            message, status=failure.error.status, details=failure.error.details, code=failure.error.problem
        )

    async def open(self, url: str, attempt: Attempt) -> aiohttp.ClientResponse:
        """Send the attempt's call to one endpoint and return its response, body unread, for the caller to read and close.

        The caller closes the attempt too, also when this raises. Raises `AttemptFailed` for everything that another endpoint
        may do better, an answer of 503 included.
        """
        call, idle = attempt.call, self.policy.idle_timeout_s
        headers = dict(call.headers)
        data: AsyncGenerator[Buffer, None] | bytes | None = None
        expect = False
        if call.document is not None:
            data = json.dumps(call.document).encode()
            headers["Content-Type"] = "application/json"
        elif call.body is not None:
            headers["Content-Type"] = "application/octet-stream"
            if call.body.length is not None:
                headers["Content-Length"] = str(call.body.length)
            expect = call.body.length is None or call.body.length >= EXPECT_CONTINUE_FROM or not call.body.rewindable
            data = attempt.send(idle) if call.body.length != 0 else b""
        if self.endpoints.is_hung(url):
            await self._await_sign(url)
        watch = attempt.watch = Watch(self._liveness, url, self.policy.stall_s)
        try:
            async with asyncio.timeout(idle) as attempt.idle_guard:
                response = await self._sessions[call.fresh_connection].request(
                    call.method,
                    URL(url + call.path, encoded=True).update_query(call.query),
                    headers=headers,
                    data=data,
                    expect100=expect,
                    ssl=self._tls,
                    allow_redirects=False,
                    middlewares=(partial(_watched_and_once, watch),),
                )
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            self.endpoints.failed(url)
            raise AttemptFailed(
                Failure(Unavailable(f"cannot connect to {url}: {_reason(error)}"), reached=False, maybe_executed=False)
            ) from error
        except aiohttp.InvalidURL as error:
            raise ServerFailure(f"{url} is not a usable endpoint") from error
        except (aiohttp.ClientError, TimeoutError) as error:
            if attempt.error is not None:
                raise attempt.error from error
            raise self._lost(url, error, attempt) from error
        finally:
            attempt.idle_guard = None
        if response.status in {429, 502, 503, 504}:
            body = await self._read(url, response, attempt, PROBLEM_BODY_LIMIT)
            refusal = error_from_response(response.status, body, response.headers)
            self.endpoints.succeeded(url)
            unknown = isinstance(refusal, OutcomeUnknown)
            raise AttemptFailed(
                Failure(refusal, reached=True, maybe_executed=unknown, retry_after_s=_retry_after(response.headers))
            )
        return response

    async def _attempt(self, url: str, attempt: Attempt) -> Answer:
        try:
            response = await self.open(url, attempt)
            body = await self._read(url, response, attempt, DOCUMENT_LIMIT)
        finally:
            await attempt.close()
        self.endpoints.succeeded(url)
        return Answer(response.status, response.headers, body)

    async def _read(self, url: str, response: aiohttp.ClientResponse, attempt: Attempt, limit: int) -> bytes:
        """The whole body, and the connection given back, or closed when our own body was not sent to its end."""
        body = bytearray()
        try:
            async for piece in response.content.iter_any():
                attempt.progress()
                body += piece
                if len(body) > limit:
                    raise ServerFailure(f"{url} answered with more than {limit} bytes", status=response.status)
        except (aiohttp.ClientError, TimeoutError) as error:
            raise self._lost(url, error, attempt) from error
        finally:
            if attempt.complete and response.content.at_eof():
                response.release()
            else:
                response.close()
        return bytes(body)

    async def _await_sign(self, url: str) -> None:
        """An endpoint that hung before gets a request only when it lives again. Raises `AttemptFailed`; nothing was sent."""
        if await self._liveness.is_hung(url, since=asyncio.get_running_loop().time(), probes=1):
            hangs = Unavailable(f"{url} hangs: it accepts connections and answers nothing")
            raise AttemptFailed(Failure(hangs, reached=True, maybe_executed=False))
        self.endpoints.succeeded(url)

    async def _gives_a_sign(self, url: str) -> bool:
        """One probe: whether anything at all comes back."""
        try:
            async with self._sessions[True].get(
                url + PROBE_PATH,
                ssl=self._tls,
                allow_redirects=False,
                timeout=aiohttp.ClientTimeout(total=self.policy.probe_timeout_s),
            ):
                return True
        except TimeoutError:
            return False
        except aiohttp.ClientConnectorError as error:
            return error.os_error.errno not in _NOBODY_THERE
        except aiohttp.ClientError:
            return True

    def lost(self, url: str, error: BaseException, attempt: Attempt) -> AttemptFailed:
        """A download's connection broke; nothing can have been changed by it."""
        return self._broken(url, f"lost the connection to {url}", error, attempt, maybe_executed=False)

    def _lost(self, url: str, error: BaseException, attempt: Attempt) -> AttemptFailed:
        text = f"lost the connection to {url} before it answered"
        return self._broken(url, text, error, attempt, maybe_executed=attempt.complete)

    def _broken(
        self, url: str, text: str, error: BaseException, attempt: Attempt, *, maybe_executed: bool
    ) -> AttemptFailed:
        reason = _reason(error)
        if attempt.watch is not None and attempt.watch.hung:
            reason = "it hangs"  # the endpoint is in quarantine already, once for all that waited for it
        else:
            self.endpoints.failed(url)
        attempt.cut()
        return AttemptFailed(Failure(Unavailable(f"{text}: {reason}"), reached=True, maybe_executed=maybe_executed))


class Attempt:
    """One sending of a call: how far it got with the body, and the guards against a receiver that takes no more or says nothing.

    The guards' clocks stand still while the source is read: a slow pipe is nobody's failure. Must be closed.
    """

    def __init__(self, call: Call) -> None:
        self.call = call
        self.begun = False
        self.complete = call.body is None or call.body.length == 0
        """The receiver may have all of the request."""
        self.error: BaseException | None = None
        """What the source raised."""
        self.idle_guard: asyncio.Timeout | None = None
        self.watch: Watch | None = None
        self._sending: AsyncGenerator[Buffer, None] | None = None

    def send(self, idle_timeout_s: float) -> AsyncGenerator[Buffer, None]:
        """The body, for the connection to take."""
        self._sending = self._blocks(idle_timeout_s)
        return self._sending

    async def _blocks(self, idle_timeout_s: float) -> AsyncGenerator[Buffer, None]:
        assert self.call.body is not None
        loop = asyncio.get_running_loop()
        sent = 0
        self.begun = True
        try:
            self._guard(None)
            async with aclosing(self.call.body.blocks()) as blocks:
                async for block in blocks:
                    sent += len(block)
                    # a receiver that holds the last byte may act on the request: from here on its outcome is open
                    self.complete = sent == self.call.body.length
                    self._guard(loop.time() + idle_timeout_s)
                    yield block
                    if self.call.on_progress is not None:
                        self.call.on_progress(sent)
                    self._guard(None)
            self.complete = True
            self._guard(loop.time() + idle_timeout_s)
        except Exception as error:
            self.error = error
            raise

    def _guard(self, when: float | None) -> None:
        if self.idle_guard is not None and not self.idle_guard.expired():
            self.idle_guard.reschedule(when)
        if when is None:
            self.rest()
        else:
            self.progress()

    def progress(self) -> None:
        """Bytes went out or came in, and now it is the endpoint's turn."""
        if self.watch is not None:
            self.watch.wait()

    def rest(self) -> None:
        """It is our own turn."""
        if self.watch is not None:
            self.watch.rest()

    def cut(self) -> None:
        if self.watch is not None:
            self.watch.cut()

    async def close(self) -> None:
        try:
            if self._sending is not None:
                await self._end_sending(self._sending)
        finally:
            if self.watch is not None:
                await self.watch.close()

    async def _end_sending(self, sending: AsyncGenerator[Buffer, None]) -> None:
        """Where the body is being read just now, the connection's end cancels that. Of one that can be read again the end of the read is
        waited for, or it would move the place from which the next attempt reads; a pipe may keep its reader for ever."""
        assert self.call.body is not None
        while True:
            try:
                await sending.aclose()
            except RuntimeError:
                if not self.call.body.rewindable:
                    return
                await asyncio.sleep(CLOSING_LOOK_S)
            except OSError:
                return  # a file that was only read can't lose anything by its closing
            else:
                return


def _in_doubt(error: Exception, message: str | None = None) -> OutcomeUnknown:
    """The outcome of a call that ended in ``error`` after it may have taken effect."""
    if message is None:
        message = str(error) or type(error).__name__
    told = error if isinstance(error, HoldfastError) else None
    return OutcomeUnknown(
        f"the request may or may not have taken effect ({message}); look at the volume before you repeat it",
        status=told.status if told else None,
        details=told.details if told else None,
    )


def _reason(error: BaseException) -> str:
    if isinstance(error, aiohttp.ClientConnectorError):
        return os.strerror(error.os_error.errno) if error.os_error.errno else str(error.os_error)
    if isinstance(error, TimeoutError):
        return "no answer in time"
    return str(error) or type(error).__name__


def _retry_after(headers: Mapping[str, str]) -> float:
    value = headers.get("Retry-After", "")
    return float(value) if value.isdecimal() else 0.0
