"""The API put together: every route, and the one path each request takes through routing, authorization, its handler and the
counting of what came out.

Built on aiohttp's low-level server rather than its Application: routing, 404 and 405 are problems of ours anyway, and leaving out the
dispatcher and middlewares halves the cost of a small request. Invariants: every request is answered with a response or its
connection is broken, never a short body that looks whole; an unexpected exception is logged under an id and tells the client
nothing but that id; a client that goes away is not an error.
"""

from __future__ import annotations

import asyncio
import secrets
import time

import structlog
from aiohttp import hdrs, web

from cluster.errors import Conflict, HoldfastError, NotReady
from node.api.auth import ApiHosts, BearerToken, check_not_cross_site
from node.api.cluster_routes import ClusterRoutes
from node.api.data_routes import SERVER, DataRoutes
from node.api.health import Health
from node.api.metrics import Metrics
from node.api.openapi import openapi_document
from node.api.ports import ClusterView, RepairView, Volumes
from node.api.problem import RefusalError, internal_response, problem_response, refusal_response
from node.api.repair_routes import RepairRoutes
from node.api.request import ApiRequest, BrokenAnswerError, ClientGoneError
from node.api.router import Route, Router
from node.api.volume_routes import VolumeRoutes

log = structlog.get_logger(__name__)

_HEADER_CONDITIONS = ("if-match", "if-none-match")

NOBODY_TO_ANSWER = 499
"""The status under which requests are counted whose client went away before the answer."""


class Api:
    """Everything behind the API port of one node. `handle` is what the server calls for each request."""

    def __init__(
        self,
        *,
        volumes: Volumes,
        cluster: ClusterView,
        repair: RepairView,
        metrics: Metrics,
        token: BearerToken | None,
        hosts: ApiHosts,
        release: str,
    ) -> None:
        self.router = Router()
        self.metrics = metrics
        self.draining = False
        """Set while the node stops: new requests are sent elsewhere with 503, those under way are finished."""
        self._counters = metrics.requests
        self._token = token
        self._hosts = hosts
        self._idle = asyncio.Event()
        self._idle.set()
        VolumeRoutes(volumes, repair.passes).add_to(self.router)
        DataRoutes(volumes, self._counters, repair.passes).add_to(self.router)
        ClusterRoutes(cluster).add_to(self.router)
        RepairRoutes(repair).add_to(self.router)
        Health(cluster, metrics, openapi_document(release)).add_to(self.router)

    async def wait_idle(self) -> None:
        """Return once no request is being answered."""
        await self._idle.wait()

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request. Raises BrokenAnswerError after cutting off an answer under way, ClientGoneError when there is nobody
        left to answer, CancelledError when the server stops."""
        assert isinstance(request, ApiRequest)
        counters = self._counters
        started = time.perf_counter()
        counters.in_flight += 1
        if counters.in_flight == 1:
            self._idle.clear()
        status = NOBODY_TO_ANSWER
        try:
            try:
                response = await self._answer(request)
            except BrokenAnswerError:
                status = 500
                raise
            except Exception as error:
                response = self._unexpected(request, error)
            if not response.prepared:
                response.headers["Server"] = SERVER
            content = request.content
            if self.draining or content.exception() is not None:
                response.force_close()
            if request.cut_short:
                self._note_client_gone(request)
            if not content.is_eof():
                request.leave_body_unread(response)
            status = response.status
            return response
        finally:
            counters.in_flight -= 1
            if counters.in_flight == 0:
                self._idle.set()
            counters.bytes_received += request.bytes_received
            counters.count((request.method, request.template, status), time.perf_counter() - started)

    async def _answer(self, request: ApiRequest) -> web.StreamResponse:
        """The route's answer, or the problem that came of it."""
        try:
            route = self._route(request)
            if self.draining and route.template != "/healthz":
                raise NotReady("This node is shutting down; ask another one")
            headers = request.headers
            # A page can't make a browser send a token along: then a proxy's ways with Host need not be known.
            origin = headers.get(hdrs.ORIGIN) if self._token is None else None
            check_not_cross_site(request.method, headers.get("Sec-Fetch-Site"), origin, headers.get(hdrs.HOST))
            if (expectation := headers.get(hdrs.EXPECT)) is not None:
                request.check_expectation(expectation)
            return await route.handler(request)
        except RefusalError as refusal:
            return refusal_response(refusal)
        except Conflict as error:
            # A failed If-Match or If-None-Match is 412; any other conflict (create of what exists) 409.
            return problem_response(error, 412 if error.details.get("condition") in _HEADER_CONDITIONS else 409)
        except HoldfastError as error:
            return problem_response(error)

    def _unexpected(self, request: ApiRequest, error: Exception) -> web.StreamResponse:
        """The answer to an exception that nobody foresaw. Raises ClientGoneError when it came of the client's going away."""
        if request.client_gone or isinstance(error, ClientGoneError):
            self._note_client_gone(request)
            raise ClientGoneError from error
        incident = secrets.token_hex(8)
        log.error("request_failed", id=incident, method=request.method, route=request.template, exc_info=error)
        response = internal_response(incident)
        response.force_close()
        return response

    def _note_client_gone(self, request: ApiRequest) -> None:
        """Not an error, and no more than a line at the level of other decisions."""
        self._counters.client_aborts += 1
        log.info("client_gone", method=request.method, route=request.template, received=request.bytes_received)

    def _route(self, request: ApiRequest) -> Route:
        """The route of a request that may take it. Raises Unauthorized, or RefusalError, before it tells which paths exist."""
        target = request.raw_path
        if not target.startswith("/"):  # absolute-form, as sent to proxies
            target = request.rel_url.raw_path_qs
        path, _, request.raw_query = target.partition("?")
        try:
            route, request.arguments = self.router.resolve(request.method, path)
        except (RefusalError, HoldfastError):
            self._authorize(request)
            raise
        if not route.public:
            self._authorize(request)
        request.template = route.template
        return route

    def _authorize(self, request: ApiRequest) -> None:
        if self._token is not None:
            self._token.check(request.headers.get(hdrs.AUTHORIZATION))
        else:
            self._hosts.check(request.headers.get(hdrs.HOST))
