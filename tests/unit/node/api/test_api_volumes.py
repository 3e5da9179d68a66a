"""Volumes as things: create, list, show, resize, delete, and the JSON they are told in."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from cluster.errors import OutcomeUnknown, QuorumUnavailable

if TYPE_CHECKING:
    from tests.unit.node.api.conftest import Harness


async def test_create_and_show(http: Harness) -> None:
    answer = await http.json(
        "POST",
        "/v1/volumes",
        {"name": "v", "size": 10_000_000, "chunk_size": 1 << 20, "replicas": 2, "durability": "fsync"},
    )
    assert (answer.status, answer.headers["location"]) == (201, "/v1/volumes/v")
    assert answer.headers["content-type"] == "application/json"
    document = answer.json
    assert document == {
        "name": "v",
        "id": b"v".ljust(16, b"\0").hex(),
        "size": 10_000_000,
        "chunk_size": 1 << 20,
        "replicas": 2,
        "durability": "fsync",
        "etag": document["etag"],
        "generation": 1,
        "created_at": "2023-11-14T22:13:20.000Z",
        "modified_at": "2023-11-14T22:13:20.000Z",
        "map": {"inline": True},
        "sharding": {"D": 10_000_000, "S": 1 << 20, "P": 10},
        "replication": {"n": 2, "R": 20},
        "synchronisation": {"m": 0, "T": 0},
    }
    assert answer.headers["etag"] == f'"{document["etag"]}"'
    shown = await http.request("GET", "/v1/volumes/v")
    assert (shown.status, shown.json) == (200, document)
    assert shown.headers["etag"] == answer.headers["etag"]
    head = await http.request("HEAD", "/v1/volumes/v")
    assert (head.status, head.headers["content-length"]) == (200, str(len(shown.body)))
    assert (await http.request("GET", "/v1/volumes/v", If_None_Match=shown.headers["etag"])).status == 304
    assert (await http.request("GET", "/v1/volumes/v", If_Match='"x"')).status == 412


async def test_create_of_what_exists_is_409(http: Harness) -> None:
    http.volumes.put("v", b"abc")
    answer = await http.json("POST", "/v1/volumes", {"name": "v", "size": 1})
    assert (answer.status, answer.json["type"]) == (409, "https://holdfast.dev/problems/conflict")
    assert http.volumes.contents["v"][1] == b"abc"


@pytest.mark.parametrize(
    ("document", "field"),
    [
        ({"size": 1}, "name"),
        ({"name": "v"}, "size"),
        ({"name": 7, "size": 1}, "name"),
        ({"name": None, "size": 1}, "name"),
        ({"name": "v", "size": "1"}, "size"),
        ({"name": "v", "size": 1.0}, "size"),
        ({"name": "v", "size": True}, "size"),
        ({"name": "v", "size": None}, "size"),
        ({"name": "v", "size": -1}, "size"),
        ({"name": "v", "size": 10**30}, "size"),
        ({"name": "v", "size": 1, "replicas": 0}, "replicas"),
        ({"name": "v", "size": 1, "replicas": [3]}, "replicas"),
        ({"name": "v", "size": 1, "chunk_size": "4MiB"}, "chunk_size"),
        ({"name": "v", "size": 1, "durability": 1}, "durability"),
        ({"name": "v", "size": 1, "replica": 3}, "replica"),
    ],
)
async def test_wrong_fields_are_named(http: Harness, document: object, field: str) -> None:
    answer = await http.json("POST", "/v1/volumes", document)
    assert (answer.status, answer.json["field"]) == (400, field)
    assert answer.json["type"] == "https://holdfast.dev/problems/invalid"
    assert field in answer.json["detail"]
    assert not http.volumes.contents


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" ",
        b"{",
        b"[]",
        b"7",
        b'"name"',
        b"null",
        b'{"name": "v", "size": 1} x',
        b'{"name": "v", "name": "w", "size": 1}',
        b'{"name": "v", "size": NaN}',
        b'{"name": "v", "size": 1, "x": Infinity}',
        b'{"name": "\xff", "size": 1}',
        b"[" * 60_000,
        b'{"size": ' + b"9" * 6000 + b"}",
        b"name=v&size=1",
    ],
)
async def test_malformed_json_is_400(http: Harness, body: bytes) -> None:
    connection = await http.connect()
    answer = await http.request("POST", "/v1/volumes", body, on=connection, Content_Type="application/json")
    assert (answer.status, answer.json["type"]) == (400, "https://holdfast.dev/problems/invalid")
    assert "Traceback" not in answer.body.decode()
    assert (await http.request("GET", "/v1/volumes", on=connection)).json == {"volumes": [], "next": None}


async def test_a_large_json_body_is_413(http: Harness) -> None:
    exact = b'{"name": "v", "size": 1}'.ljust(65536)
    assert (await http.request("POST", "/v1/volumes", exact, Content_Type="application/json")).status == 201
    answer = await http.request("POST", "/v1/volumes", exact + b" ", Content_Type="application/json")
    assert answer.status == 413
    # Chunked, the length shows only while reading.
    connection = await http.connect()
    await connection.send(
        "POST /v1/volumes HTTP/1.1\r\nHost: n\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
        f"{70_000:x}\r\n" + " " * 70_000 + "\r\n"
    )
    assert (await connection.receive()).status == 413
    # And with Expect it isn't even asked for.
    connection = await http.connect()
    await connection.send(
        "POST /v1/volumes HTTP/1.1\r\nHost: n\r\nContent-Type: application/json\r\n"
        "Content-Length: 70000\r\nExpect: 100-continue\r\n\r\n"
    )
    assert (await connection.receive()).status == 413
    assert await connection.at_eof()


async def test_json_needs_its_content_type(http: Harness) -> None:
    for headers in ({}, {"Content_Type": "text/plain"}, {"Content_Type": "application/x-www-form-urlencoded"}):
        answer = await http.request("POST", "/v1/volumes", b'{"name": "v", "size": 1}', given=headers)
        assert (answer.status, answer.json["field"]) == (415, "Content-Type")
    answer = await http.request(
        "POST", "/v1/volumes", b'{"name": "v", "size": 1}', Content_Type="application/json; charset=utf-8"
    )
    assert answer.status == 201


async def test_list_in_pages(http: Harness) -> None:
    for name in ("b1", "a1", "b3", "b2", "c"):
        http.volumes.put(name, b"x")
    answer = await http.request("GET", "/v1/volumes")
    assert [volume["name"] for volume in answer.json["volumes"]] == ["a1", "b1", "b2", "b3", "c"]
    assert answer.json["next"] is None
    answer = await http.request("GET", "/v1/volumes?prefix=b&limit=2")
    assert [volume["name"] for volume in answer.json["volumes"]] == ["b1", "b2"]
    assert answer.json["next"] == "b2"
    answer = await http.request("GET", f"/v1/volumes?prefix=b&limit=2&after={answer.json['next']}")
    assert [volume["name"] for volume in answer.json["volumes"]] == ["b3"]
    assert answer.json["next"] is None


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("limit=0", "limit"),
        ("limit=1001", "limit"),
        ("limit=ten", "limit"),
        ("limit=%D9%A1", "limit"),
        ("limit=1&limit=2", "limit"),
        ("offset=3", "offset"),
        ("prefix=%ff", "query"),
        ("&".join(f"p{number}=1" for number in range(40)), "query"),
    ],
)
async def test_wrong_queries_are_named(http: Harness, query: str, field: str) -> None:
    answer = await http.request("GET", "/v1/volumes?" + query)
    assert (answer.status, answer.json["field"]) == (400, field)


async def test_resize(http: Harness) -> None:
    etag = f'"{http.volumes.put("v", b"abc").etag}"'
    answer = await http.json("PATCH", "/v1/volumes/v", {"size": 5}, If_Match='"x"')
    assert answer.status == 412
    answer = await http.json("PATCH", "/v1/volumes/v", {"size": 5}, If_Match=etag)
    assert (answer.status, answer.json["size"], answer.json["generation"]) == (200, 5, 2)
    assert answer.headers["etag"] != etag
    for document, field in (({"size": 4}, "size"), ({}, "size"), ({"size": 9, "name": "w"}, "name")):
        answer = await http.json("PATCH", "/v1/volumes/v", document)
        assert (answer.status, answer.json["field"]) == (400, field)
    assert (await http.json("PATCH", "/v1/volumes/absent", {"size": 5})).status == 404


async def test_delete(http: Harness) -> None:
    etag = f'"{http.volumes.put("v", b"abc").etag}"'
    connection = await http.connect()
    assert (await http.request("DELETE", "/v1/volumes/v", on=connection, If_Match='"x"')).status == 412
    answer = await http.request("DELETE", "/v1/volumes/v", on=connection, If_Match=etag)
    assert (answer.status, answer.body) == (204, b"")
    assert "content-length" not in answer.headers
    answer = await http.request("DELETE", "/v1/volumes/v", on=connection)
    assert (answer.status, answer.json["type"]) == (404, "https://holdfast.dev/problems/not-found")


async def test_names_are_decoded_once_and_never_split(http: Harness) -> None:
    for raw, name in (
        ("a%2Fb", "a/b"),
        ("a%252Fb", "a%2Fb"),
        ("caf%C3%A9", "café"),
        ("a+b", "a+b"),
        ("%2e%2e", ".."),
        ("data", "data"),
    ):
        http.volumes.put(name, b"")
        answer = await http.request("GET", f"/v1/volumes/{raw}")
        assert (answer.status, answer.json["name"]) == (200, name)
        assert (await http.request("GET", f"/v1/volumes/{raw}/data")).status == 200
    answer = await http.request("GET", "/v1/volumes/%ff")
    assert (answer.status, answer.json["field"]) == (400, "path")
    answer = await http.json("POST", "/v1/volumes", {"name": "ä b", "size": 0})
    assert answer.headers["location"] == "/v1/volumes/%C3%A4%20b"


async def test_unavailable_is_503_with_retry_after(http: Harness) -> None:
    http.volumes.error = QuorumUnavailable("2 of 3 replicas do not answer", partition=17, nodes=["a", "b"])
    answer = await http.request("GET", "/v1/volumes/v")
    assert (answer.status, answer.headers["retry-after"]) == (503, "1")
    assert answer.json == {
        "type": "https://holdfast.dev/problems/quorum-unavailable",
        "title": "Too few replicas answer",
        "status": 503,
        "detail": "2 of 3 replicas do not answer",
        "retryable": True,
        "partition": 17,
        "nodes": ["a", "b"],
    }
    http.volumes.error = OutcomeUnknown("the leader died in between", retry_after_s=7)
    answer = await http.json("POST", "/v1/volumes", {"name": "v", "size": 1})
    assert (answer.status, answer.headers["retry-after"]) == (503, "7")
    assert answer.json["type"] == "https://holdfast.dev/problems/outcome-unknown"
