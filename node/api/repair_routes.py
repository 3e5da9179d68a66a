"""Routes about repair: how it goes, telling it what to do, and on which nodes a volume's bytes lie."""

from __future__ import annotations

from aiohttp import web

from cluster.repair.status import PAUSE, RESUME, RUN, SCRUB
from cluster.volumes.names import MAX_VOLUME_BYTES
from node.api.fields import Fields
from node.api.health import json_answer
from node.api.ports import RepairView
from node.api.request import ApiRequest
from node.api.router import Router

WHERE_LIMIT = 1000
"""Pieces in one page of ``where``, at most: every node is asked about each of their chunks."""

WHERE_PAGE = 256
"""And how many come when none is asked for: 1 GiB of a volume with chunks of 4 MiB."""


class RepairRoutes:
    """The handlers; all knowledge is in the `RepairView`."""

    def __init__(self, view: RepairView) -> None:
        self._view = view

    def add_to(self, router: Router) -> None:
        router.add("GET", "/v1/repair", self.show)
        router.add("POST", "/v1/repair/run", self.run)
        router.add("POST", "/v1/repair/pause", self.pause)
        router.add("POST", "/v1/repair/resume", self.resume)
        router.add("GET", "/v1/volumes/{volume}/where", self.where)

    async def show(self, request: ApiRequest) -> web.Response:
        Fields.of_query(request.raw_query).finish()
        return json_answer(await self._view.repair())

    async def run(self, request: ApiRequest) -> web.Response:
        """``{"scrub": bool}``, or no body: compare with everybody now; ``scrub``: read and verify everything held, too."""
        Fields.of_query(request.raw_query).finish()
        fields = Fields.of_json(await request.json_object(required=False))
        scrub = fields.boolean("scrub") or False
        fields.finish()
        return json_answer(await self._view.control_repair(SCRUB if scrub else RUN))

    async def pause(self, request: ApiRequest) -> web.Response:
        return await self._control(request, PAUSE)

    async def resume(self, request: ApiRequest) -> web.Response:
        return await self._control(request, RESUME)

    async def _control(self, request: ApiRequest, action: str) -> web.Response:
        Fields.of_query(request.raw_query).finish()
        Fields.of_json(await request.json_object(required=False)).finish()
        return json_answer(await self._view.control_repair(action))

    async def where(self, request: ApiRequest) -> web.Response:
        """``?offset&length&limit``: a page of pieces; ``next`` is the next page's ``offset``, from which ``length`` counts anew."""
        fields = Fields.of_query(request.raw_query)
        offset = fields.integer("offset", minimum=0, maximum=MAX_VOLUME_BYTES) or 0
        length = fields.integer("length", minimum=1, maximum=MAX_VOLUME_BYTES)
        limit = fields.integer("limit", minimum=1, maximum=WHERE_LIMIT) or WHERE_PAGE
        fields.finish()
        return json_answer(await self._view.where(request.arguments[0], offset, length, limit))
