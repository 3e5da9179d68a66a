"""What machines ask a node about itself: alive, ready, counters, and what the API looks like."""

from __future__ import annotations

import json
from typing import Any

from aiohttp import hdrs, web

from cluster.errors import NotReady
from node.api.metrics import Metrics
from node.api.ports import ClusterView
from node.api.request import ApiRequest
from node.api.router import Router


class Health:
    """``/healthz``: the process answers. ``/readyz``: it has joined and knows a layout, else 503 with the reason. Both need no token,
    so that an orchestrator can ask; ``/metrics`` and the OpenAPI document do."""

    def __init__(self, cluster: ClusterView, metrics: Metrics, document: dict[str, Any]) -> None:
        self._cluster = cluster
        self._metrics = metrics
        self._document = json.dumps(document).encode()

    def add_to(self, router: Router) -> None:
        router.add("GET", "/healthz", self.healthz, public=True)
        router.add("GET", "/readyz", self.readyz, public=True)
        router.add("GET", "/metrics", self.metrics)
        router.add("GET", "/v1/openapi.json", self.openapi)

    async def healthz(self, request: ApiRequest) -> web.Response:
        return json_answer({"alive": True})

    async def readyz(self, request: ApiRequest) -> web.Response:
        readiness = self._cluster.readiness()
        if not readiness.get("ready"):
            facts = {name: value for name, value in readiness.items() if name not in ("ready", "reason")}
            raise NotReady(str(readiness.get("reason") or "This node is not ready"), **facts)
        return json_answer(readiness)

    async def metrics(self, request: ApiRequest) -> web.Response:
        body, content_type = self._metrics.render(request.headers.get(hdrs.ACCEPT))
        return web.Response(body=body, headers={"Content-Type": content_type, "Cache-Control": "no-store"})

    async def openapi(self, request: ApiRequest) -> web.Response:
        return web.Response(body=self._document, headers={"Content-Type": "application/json"})


def json_answer(document: dict[str, Any], status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    """A JSON object as it is now: never to be kept by a cache."""
    all_headers = {"Content-Type": "application/json", "Cache-Control": "no-store"}
    if headers:
        all_headers.update(headers)
    return web.Response(status=status, body=json.dumps(document).encode(), headers=all_headers)
