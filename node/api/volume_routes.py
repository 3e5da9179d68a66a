"""Routes about volumes as things: list, create, show, resize, delete. Their content is in `data_routes`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from aiohttp import hdrs, web
from multidict import MultiMapping

from cluster.errors import Conflict, Invalid
from cluster.volumes.names import DEFAULT_CHUNK_BYTES, DEFAULT_DURABILITY, MAX_VOLUME_BYTES
from cluster.volumes.volume import Condition, Volume
from node.api.conditions import Verdict, entity_tags_of, evaluate_read, strong_values, weak_values
from node.api.fields import Fields
from node.api.health import json_answer
from node.api.ports import Volumes
from node.api.problem import RefusalError
from node.api.request import ApiRequest
from node.api.router import Router
from node.api.volume_json import location, quoted_etag, volume_json

LIST_LIMIT = 1000
"""Volumes in one page of a listing, and how many come when none is asked for."""

MAX_COPIES = 255
MAX_CHUNK_SIZE = 1 << 30
"""Bounds that only keep numbers sane on entry; what a volume may really have is for `cluster.volumes.names` to say."""


class VolumeRoutes:
    """The handlers; what a volume may be called and how it may be shaped is judged by the service. ``passes``: see `volume_json`."""

    def __init__(self, volumes: Volumes, passes: Callable[[], int]) -> None:
        self._volumes = volumes
        self._passes = passes

    def add_to(self, router: Router) -> None:
        router.add("GET", "/v1/volumes", self.list)
        router.add("POST", "/v1/volumes", self.create)
        router.add("GET", "/v1/volumes/{volume}", self.show)
        router.add("PATCH", "/v1/volumes/{volume}", self.resize)
        router.add("DELETE", "/v1/volumes/{volume}", self.delete)

    async def list(self, request: ApiRequest) -> web.Response:
        """``?prefix&after&limit``: a page in the order of names; ``next`` goes into the next request's ``after``."""
        fields = Fields.of_query(request.raw_query)
        prefix = fields.string("prefix") or ""
        after = fields.string("after") or ""
        limit = fields.integer("limit", minimum=1, maximum=LIST_LIMIT) or LIST_LIMIT
        fields.finish()
        page = await self._volumes.list(prefix=prefix, after=after, limit=limit)
        passes = self._passes()
        return json_answer(
            {"volumes": [volume_json(volume, passes) for volume in page.volumes], "next": page.next_after}
        )

    async def create(self, request: ApiRequest) -> web.Response:
        """``{name, size, chunk_size?, replicas?, durability?}`` -> 201; 409 when the volume exists."""
        Fields.of_query(request.raw_query).finish()
        fields = Fields.of_json(await request.json_object())
        name = fields.required_string("name")
        size = fields.required_integer("size", minimum=0, maximum=MAX_VOLUME_BYTES)
        shape = volume_shape(fields)
        fields.finish()
        volume = await self._volumes.create(
            name,
            size,
            Condition(still_wanted=request.check_client),
            chunk_size=shape["chunk_size"] or DEFAULT_CHUNK_BYTES,
            replicas=shape["replicas"],
            durability=shape["durability"] or DEFAULT_DURABILITY,
        )
        return volume_answer(volume, 201, self._passes())

    async def show(self, request: ApiRequest) -> web.Response:
        Fields.of_query(request.raw_query).finish()
        volume = await self._volumes.show(request.arguments[0])
        verdict = evaluate_read(request.headers, volume.etag, volume.modified_at)
        if verdict is not Verdict.PROCEED:
            return unmet_answer(verdict, volume)
        return volume_answer(volume, 200, self._passes())

    async def resize(self, request: ApiRequest) -> web.Response:
        """``{size}``: up only. If-Match makes it conditional."""
        Fields.of_query(request.raw_query).finish()
        condition = condition_of(request)
        fields = Fields.of_json(await request.json_object())
        size = fields.required_integer("size", minimum=0, maximum=MAX_VOLUME_BYTES)
        fields.finish()
        return volume_answer(await self._volumes.resize(request.arguments[0], size, condition), 200, self._passes())

    async def delete(self, request: ApiRequest) -> web.Response:
        Fields.of_query(request.raw_query).finish()
        await self._volumes.delete(request.arguments[0], condition_of(request))
        return web.Response(status=204)


def volume_shape(fields: Fields) -> dict[str, Any]:
    """The optional properties of a new volume: ``chunk_size``, ``replicas``, ``durability``; None = the default."""
    return {
        "chunk_size": fields.integer("chunk_size", minimum=1, maximum=MAX_CHUNK_SIZE),
        "replicas": fields.integer("replicas", minimum=1, maximum=MAX_COPIES),
        "durability": fields.string("durability"),
    }


def volume_answer(volume: Volume, status: int, passes: int) -> web.Response:
    """The volume's JSON; with its place when it is new (201)."""
    headers = {"ETag": quoted_etag(volume)}
    if status == 201:
        headers["Location"] = location(volume)
    return json_answer(volume_json(volume, passes), status, headers)


def unmet_answer(verdict: Verdict, volume: Volume) -> web.Response:
    """The answer to a read whose preconditions don't let it proceed: 304 without a body. Raises RefusalError for 412."""
    if verdict is Verdict.NOT_MODIFIED:
        return web.Response(status=304, headers={"ETag": quoted_etag(volume)})
    raise RefusalError(
        Conflict("The volume is not the version that the request asks for", etag=volume.etag),
        412,
        {"ETag": quoted_etag(volume)},
    )


def condition_of(request: ApiRequest) -> Condition:
    """The precondition of a change (`write_condition`), and that its client still waits for it."""
    return replace(write_condition(request.headers), still_wanted=request.check_client)


def write_condition(headers: MultiMapping[str]) -> Condition:
    """The precondition of a change. Raises Invalid for a malformed one, and for a date: a volume may change twice in a second
    and on nodes whose clocks differ, so a date protects nothing."""
    if hdrs.IF_UNMODIFIED_SINCE in headers:
        raise Invalid(
            "Changes can't depend on a date; use If-Match with the volume's ETag", field=hdrs.IF_UNMODIFIED_SINCE
        )
    return Condition(
        if_match=strong_values(entity_tags_of(headers, hdrs.IF_MATCH)),
        if_none_match=weak_values(entity_tags_of(headers, hdrs.IF_NONE_MATCH)),
    )
