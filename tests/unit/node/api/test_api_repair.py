"""The routes of repair: what reaches the view, what is refused, and m of the Volume JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from cluster.errors import NotFound, NotReady

if TYPE_CHECKING:
    from tests.unit.node.api.conftest import Harness


async def test_how_it_goes(http: Harness) -> None:
    answer = await http.request("GET", "/v1/repair")
    assert (answer.status, answer.json) == (200, http.repair.document)
    assert answer.headers["cache-control"] == "no-store"
    assert (await http.request("GET", "/v1/repair?x=1")).status == 400


async def test_what_it_is_told(http: Harness) -> None:
    assert (await http.request("POST", "/v1/repair/run")).json == {"action": "run", "nodes": []}
    assert (await http.json("POST", "/v1/repair/run", {"scrub": False})).status == 200
    assert (await http.json("POST", "/v1/repair/run", {"scrub": True})).json["action"] == "scrub"
    assert (await http.request("POST", "/v1/repair/pause")).status == 200
    assert (await http.json("POST", "/v1/repair/resume", {})).status == 200
    assert http.repair.calls == ["run", "run", "scrub", "pause", "resume"]


@pytest.mark.parametrize(
    ("action", "document", "field"),
    [("run", {"scrub": 1}, "scrub"), ("run", {"all": True}, "all"), ("pause", {"node": "n1"}, "node")],
)
async def test_wrong_orders_are_refused(http: Harness, action: str, document: object, field: str) -> None:
    answer = await http.json("POST", f"/v1/repair/{action}", document)
    assert (answer.status, answer.json["field"]) == (400, field)
    assert http.repair.calls == []


async def test_pages_of_other_sites_start_nothing(http: Harness) -> None:
    for action in ("run", "pause", "resume"):
        assert (await http.request("POST", f"/v1/repair/{action}", Sec_Fetch_Site="cross-site")).status == 401
    assert http.repair.calls == []


async def test_where_takes_a_range_and_a_limit(http: Harness) -> None:
    assert (await http.request("GET", "/v1/volumes/v/where")).json["volume"] == "v"
    assert (await http.request("GET", "/v1/volumes/v/where?offset=5&length=7&limit=9")).status == 200
    assert http.repair.calls == [("v", 0, None, 256), ("v", 5, 7, 9)]
    for query, field in (
        ("offset=-1", "offset"),
        ("offset=1MiB", "offset"),
        ("length=0", "length"),
        ("limit=0", "limit"),
        ("limit=1001", "limit"),
        ("start=1", "start"),
    ):
        answer = await http.request("GET", f"/v1/volumes/v/where?{query}")
        assert (answer.status, answer.json["field"]) == (400, field)
    http.repair.error = NotFound("there is no volume 'v'")
    answer = await http.request("GET", "/v1/volumes/v/where")
    assert (answer.status, answer.headers["content-type"]) == (404, "application/problem+json")


async def test_a_node_that_starts_says_so(http: Harness) -> None:
    http.repair.error = NotReady("this node is starting")
    for method, path in (("GET", "/v1/repair"), ("POST", "/v1/repair/run"), ("GET", "/v1/volumes/v/where")):
        answer = await http.request(method, path)
        assert (answer.status, answer.json["type"]) == (503, "https://holdfast.dev/problems/not-ready")


async def test_passes_are_the_m_of_volumes(http: Harness) -> None:
    http.volumes.put("v", b"x" * 10, chunk_size=4096)
    http.repair.made = 7
    for answer in (
        (await http.request("GET", "/v1/volumes/v")).json,
        (await http.request("GET", "/v1/volumes")).json["volumes"][0],
        (await http.request("PUT", "/v1/volumes/v/data", b"y" * 5)).json,
    ):
        assert answer["synchronisation"] == {"m": 7, "T": 7 * answer["sharding"]["P"]}
