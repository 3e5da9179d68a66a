"""The OpenAPI document and the routes say the same, and every reference in it leads somewhere."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from node.api.openapi import openapi_document

if TYPE_CHECKING:
    from tests.unit.node.api.conftest import Harness


def operations(document: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    return {
        (method.upper(), path): operation
        for path, item in document["paths"].items()
        for method, operation in item.items()
        if method != "parameters"
    }


async def test_every_route_is_documented_and_the_other_way_round(http: Harness) -> None:
    documented = set(operations(openapi_document("1")))
    # HEAD follows from GET; it is written down where it says something of its own.
    routes = {(route.method, route.template) for route in http.api.router.routes}
    assert {key for key in documented if key[0] != "HEAD"} == routes
    assert {("GET", path) for method, path in documented if method == "HEAD"} <= routes


async def test_only_public_routes_are_documented_as_open(http: Harness) -> None:
    open_routes = {
        key for key, operation in operations(openapi_document("1")).items() if operation.get("security") == []
    }
    assert open_routes == {(route.method, route.template) for route in http.api.router.routes if route.public}
    assert open_routes == {("GET", "/healthz"), ("GET", "/readyz")}


async def test_it_is_served(http: Harness) -> None:
    answer = await http.request("GET", "/v1/openapi.json")
    assert (answer.status, answer.headers["content-type"]) == (200, "application/json")
    assert answer.json == json.loads(json.dumps(openapi_document("0.0.test")))
    assert answer.json["info"]["version"] == "0.0.test"


def test_references_lead_somewhere_and_names_are_unique() -> None:
    document = openapi_document("1")
    text = json.dumps(document)
    used = set(re.findall(r'"#/components/schemas/(\w+)"', text))
    assert used == set(document["components"]["schemas"])
    ids = [operation["operationId"] for operation in operations(document).values()]
    assert len(ids) == len(set(ids))


def test_every_operation_is_complete() -> None:
    document = openapi_document("1")
    for (method, path), operation in operations(document).items():
        assert operation["summary"], path
        assert any(status.startswith("2") for status in operation["responses"]), path
        if operation.get("security") != []:
            assert "401" in operation["responses"], path
        declared = {entry["name"] for entry in document["paths"][path].get("parameters", [])}
        assert declared == set(re.findall(r"{(\w+)}", path))
        if method in ("PATCH", "PUT"):
            assert operation["requestBody"]["required"], path


async def test_the_volume_schema_is_what_is_sent(http: Harness) -> None:
    schema = openapi_document("1")["components"]["schemas"]["Volume"]
    http.volumes.put("v", b"abc")
    document = (await http.request("GET", "/v1/volumes/v")).json
    assert set(document) == set(schema["required"]) == set(schema["properties"])
    kinds: dict[str, type | tuple[type, ...]] = {"integer": int, "string": str, "object": dict}
    for name, value in document.items():
        assert isinstance(value, kinds[schema["properties"][name]["type"]]), name
        if isinstance(value, dict):
            assert set(value) == set(schema["properties"][name]["required"])


async def test_the_problem_schema_is_what_is_sent(http: Harness) -> None:
    schema = openapi_document("1")["components"]["schemas"]["Problem"]
    document = (await http.json("POST", "/v1/volumes", {"size": 1})).json
    assert set(schema["required"]) <= set(document) <= set(schema["properties"])
