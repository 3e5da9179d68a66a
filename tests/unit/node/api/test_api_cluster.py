"""The cluster's routes, and what machines ask a node about itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from node.api.ports import StagedNode

if TYPE_CHECKING:
    from tests.unit.node.api.conftest import Harness


@pytest.mark.parametrize(
    ("path", "member"), [("/v1/cluster", "id"), ("/v1/nodes", "nodes"), ("/v1/layout", "current"), ("/v1/jobs", "jobs")]
)
async def test_views(http: Harness, path: str, member: str) -> None:
    answer = await http.request("GET", path)
    assert answer.status == 200
    assert member in answer.json
    assert answer.headers["cache-control"] == "no-store"
    assert (await http.request("GET", path + "?x=1")).status == 400


async def test_plan_apply_abort(http: Harness) -> None:
    assert (await http.request("POST", "/v1/layout/plan")).status == 200
    assert (await http.json("POST", "/v1/layout/plan", {})).status == 200
    stage = [{"name": "n1", "zone": "z", "capacity": 10}, {"name": "n2", "remove": True}]
    assert (await http.json("POST", "/v1/layout/plan", {"stage": stage})).json == {"version": 2}
    assert (await http.json("POST", "/v1/layout/apply", {"version": 2})).json == {"version": 2}
    assert (await http.json("POST", "/v1/layout/apply", {"version": 2, "plan": "c0ffee00"})).status == 200
    assert (await http.request("POST", "/v1/layout/abort")).status == 200
    assert http.cluster.calls == [
        [],
        [],
        [StagedNode("n1", "z", 10), StagedNode("n2", remove=True)],
        (2, None),
        (2, "c0ffee00"),
        "abort",
    ]


@pytest.mark.parametrize(
    ("path", "document", "field"),
    [
        ("plan", {"stage": {}}, "stage"),
        ("plan", {"stage": ["n1"]}, "stage"),
        ("plan", {"stage": [{}]}, "name"),
        ("plan", {"stage": [{"name": "n", "capacity": 0}]}, "capacity"),
        ("plan", {"stage": [{"name": "n", "remove": 1}]}, "remove"),
        ("plan", {"stage": [{"name": "n", "weight": 1}]}, "weight"),
        ("plan", {"stages": []}, "stages"),
        ("apply", {}, "version"),
        ("apply", {"version": 0}, "version"),
        ("apply", {"version": "2"}, "version"),
        ("apply", {"version": 2, "plan": 1}, "plan"),
        ("abort", {"version": 2}, "version"),
    ],
)
async def test_wrong_layout_requests_are_refused(http: Harness, path: str, document: object, field: str) -> None:
    answer = await http.json("POST", "/v1/layout/" + path, document)
    assert (answer.status, answer.json["field"]) == (400, field)
    assert http.cluster.calls == []


async def test_apply_needs_a_body(http: Harness) -> None:
    assert (await http.request("POST", "/v1/layout/apply")).status == 400


async def test_health_and_readiness(http: Harness) -> None:
    assert (await http.request("GET", "/healthz")).json == {"alive": True}
    assert (await http.request("GET", "/readyz")).status == 200
    http.cluster.ready = {"ready": False, "reason": "waiting for 2 more nodes", "missing": 2}
    answer = await http.request("GET", "/readyz")
    assert (answer.status, answer.json["detail"], answer.json["missing"]) == (503, "waiting for 2 more nodes", 2)
    assert answer.json["type"] == "https://holdfast.dev/problems/not-ready"
    assert "retry-after" in answer.headers
    assert (await http.request("GET", "/healthz")).status == 200


async def test_the_token_guards_all_but_health(guarded: Harness) -> None:
    guarded.volumes.put("v", b"abc")
    for path in ("/healthz", "/readyz"):
        assert (await guarded.request("GET", path)).status == 200
    closed = [route for route in guarded.api.router.routes if not route.public]
    targets = {(route.method, route.template.replace("{volume}", "v")) for route in closed}
    targets |= {("GET", "/nowhere"), ("POST", "/healthz"), ("HEAD", "/v1/volumes/v/data"), ("LOCK", "/v1/volumes")}
    for method, path in sorted(targets):
        for headers in ({}, {"Authorization": "Bearer wrong"}):
            answer = await guarded.request(method, path, given=headers)
            assert answer.status == 401, (method, path)
            assert answer.headers["www-authenticate"] == 'Bearer realm="holdfast"'
    assert guarded.volumes.contents["v"][1] == b"abc"
    for method, path in sorted(targets):
        answer = await guarded.request(method, path, Authorization="Bearer s3cret")
        assert answer.status != 401, (method, path)


async def test_an_unauthorized_body_is_never_asked_for(guarded: Harness) -> None:
    connection = await guarded.connect()
    await connection.send(
        "PUT /v1/volumes/v/data HTTP/1.1\r\nHost: n\r\nContent-Length: 9\r\nExpect: 100-continue\r\n\r\n"
    )
    answer = await connection.receive()
    assert (answer.status, answer.headers["connection"]) == (401, "close")
    assert await connection.at_eof()


async def test_pages_of_other_sites_change_nothing(http: Harness) -> None:
    http.volumes.put("v", b"abc")
    answer = await http.request("DELETE", "/v1/volumes/v", Sec_Fetch_Site="cross-site")
    assert answer.status == 401
    assert (await http.request("POST", "/v1/layout/abort", Sec_Fetch_Site="cross-site")).status == 401
    assert "v" in http.volumes.contents
    assert http.cluster.calls == []
