"""Routes about the cluster: its state, its nodes, its layout and how that is changed, its background jobs."""

from __future__ import annotations

from aiohttp import web

from node.api.fields import Fields
from node.api.health import json_answer
from node.api.ports import ClusterView, StagedNode
from node.api.request import ApiRequest
from node.api.router import Router

LARGEST_CAPACITY = 1 << 62
"""Weights of nodes are in any unit, usually bytes; more than four exbibytes is a slip."""

LARGEST_VERSION = (1 << 63) - 1


class ClusterRoutes:
    """The handlers; all knowledge is in the `ClusterView`."""

    def __init__(self, cluster: ClusterView) -> None:
        self._cluster = cluster

    def add_to(self, router: Router) -> None:
        router.add("GET", "/v1/cluster", self.status)
        router.add("GET", "/v1/nodes", self.nodes)
        router.add("GET", "/v1/layout", self.layout)
        router.add("GET", "/v1/jobs", self.jobs)
        router.add("POST", "/v1/layout/plan", self.plan)
        router.add("POST", "/v1/layout/apply", self.apply)
        router.add("POST", "/v1/layout/abort", self.abort)

    async def status(self, request: ApiRequest) -> web.Response:
        Fields.of_query(request.raw_query).finish()
        return json_answer(await self._cluster.status())

    async def nodes(self, request: ApiRequest) -> web.Response:
        Fields.of_query(request.raw_query).finish()
        return json_answer(await self._cluster.nodes())

    async def layout(self, request: ApiRequest) -> web.Response:
        Fields.of_query(request.raw_query).finish()
        return json_answer(await self._cluster.layout())

    async def jobs(self, request: ApiRequest) -> web.Response:
        Fields.of_query(request.raw_query).finish()
        return json_answer(await self._cluster.jobs())

    async def plan(self, request: ApiRequest) -> web.Response:
        """``{"stage": [{"name", "zone"?, "capacity"?, "remove"?}]}``, or no body to plan what is staged already."""
        Fields.of_query(request.raw_query).finish()
        fields = Fields.of_json(await request.json_object(required=False))
        staged = [_staged_node(entry) for entry in fields.objects("stage")]
        fields.finish()
        return json_answer(await self._cluster.plan_layout(staged))

    async def apply(self, request: ApiRequest) -> web.Response:
        """``{"version": N, "plan"?: FINGERPRINT}``, both as the plan that was read has them, so that no other is applied by mistake."""
        Fields.of_query(request.raw_query).finish()
        fields = Fields.of_json(await request.json_object())
        version = fields.required_integer("version", minimum=1, maximum=LARGEST_VERSION)
        plan = fields.string("plan")
        fields.finish()
        return json_answer(await self._cluster.apply_layout(version, plan))

    async def abort(self, request: ApiRequest) -> web.Response:
        Fields.of_query(request.raw_query).finish()
        Fields.of_json(await request.json_object(required=False)).finish()
        return json_answer(await self._cluster.abort_layout())


def _staged_node(fields: Fields) -> StagedNode:
    node = StagedNode(
        name=fields.required_string("name"),
        zone=fields.string("zone"),
        capacity=fields.integer("capacity", minimum=1, maximum=LARGEST_CAPACITY),
        remove=fields.boolean("remove") or False,
    )
    fields.finish()
    return node
