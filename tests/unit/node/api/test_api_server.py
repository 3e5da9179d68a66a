"""Connections: what isn't HTTP, what is too large or too slow, defects, and an orderly end."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
import structlog

from cluster.errors import Invalid
from node.api import server as server_module
from node.api.server import ApiServer

if TYPE_CHECKING:
    from tests.unit.node.api.conftest import Harness

DATA = "/v1/volumes/v/data"


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 50, 400),
        (b"hello\r\n\r\n", 400),
        (b"BREW /v1/volumes HTTP/1.1\r\nHost: n\r\n\r\n", 501),
        (b"GET / HTTP/9.9\r\nHost: n\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: n\r\nBad Header: x\r\n\r\n", 400),
        (b"PUT /v1/volumes/v/data HTTP/1.1\r\nHost: n\r\nContent-Length: -1\r\n\r\n", 400),
        (b"PUT /v1/volumes/v/data HTTP/1.1\r\nHost: n\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab", 400),
        (b"PUT /v1/volumes/v/data HTTP/1.1\r\nHost: n\r\nContent-Length: x\r\n\r\n", 400),
        (
            b"PUT /v1/volumes/v/data HTTP/1.1\r\nHost: n\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            400,
        ),
        (b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\nHost: n\r\n\r\n", 414),
        (b"GET / HTTP/1.1\r\nHost: n\r\nX-Big: " + b"a" * 9000 + b"\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: n\r\n" + b"".join(b"X-%d: y\r\n" % n for n in range(200)) + b"\r\n", 431),
    ],
)
async def test_what_is_not_http_is_a_problem(http: Harness, request_bytes: bytes, status: int) -> None:
    connection = await http.connect()
    await connection.send(request_bytes)
    answer = await connection.receive()
    assert (answer.status, answer.headers["content-type"]) == (status, "application/problem+json")
    assert answer.json["status"] == status
    assert await connection.at_eof()
    assert http.metrics.requests.malformed_requests == 1
    assert not http.volumes.contents


async def test_unknown_paths_are_404_problems(http: Harness) -> None:
    connection = await http.connect()
    for path in (
        "/",
        "/v1",
        "/v1/volumes/",
        "/v1/volumes/v/",
        "/v1/volumes/v/data/",
        "/v1/volumes//data",
        "/v2/volumes",
        "/V1/volumes",
    ):
        answer = await http.request("GET", path, on=connection)
        assert (answer.status, answer.json["type"]) == (404, "https://holdfast.dev/problems/not-found"), path


@pytest.mark.parametrize(
    ("path", "allow"),
    [
        (DATA, "GET, HEAD, PUT"),
        ("/v1/volumes/v", "DELETE, GET, HEAD, PATCH"),
        ("/v1/volumes", "GET, HEAD, POST"),
        ("/v1/layout/apply", "POST"),
        ("/healthz", "GET, HEAD"),
    ],
)
async def test_other_methods_are_405_with_allow(http: Harness, path: str, allow: str) -> None:
    for method in ("OPTIONS", "TRACE", "COPY", "LOCK", "MKCOL"):
        answer = await http.request(method, path)
        assert (answer.status, answer.headers["allow"]) == (405, allow)
        assert answer.json["status"] == 405


async def test_absolute_targets_and_http_1_0(http: Harness) -> None:
    http.volumes.put("v", b"abc")
    answer = await http.request("GET", "http://elsewhere:1" + DATA, Range="bytes=1-1")
    assert (answer.status, answer.body) == (206, b"b")
    connection = await http.connect()
    await connection.send(f"GET {DATA} HTTP/1.0\r\n\r\n")
    assert (await connection.receive()).body == b"abc"
    assert await connection.at_eof()


async def test_pipelined_requests_are_answered_in_order(http: Harness) -> None:
    http.volumes.put("v", bytes(range(100)))
    connection = await http.connect()
    await connection.send(
        "".join(f"GET {DATA} HTTP/1.1\r\nHost: n\r\nRange: bytes={n}-{n}\r\n\r\n" for n in range(100))
    )
    for n in range(100):
        assert (await connection.receive()).body == bytes([n])


async def test_a_defect_is_500_with_an_id_that_the_log_has(http: Harness) -> None:
    http.volumes.error = ZeroDivisionError("secret inner workings")
    with structlog.testing.capture_logs() as logs:
        answer = await http.request("GET", "/v1/volumes/v")
    assert (answer.status, answer.json["type"]) == (500, "https://holdfast.dev/problems/internal")
    text = answer.body.decode()
    assert "secret" not in text
    assert "Traceback" not in text
    entry = next(entry for entry in logs if entry["event"] == "request_failed")
    assert entry["id"] == answer.json["id"]
    assert entry["exc_info"] is http.volumes.error
    assert answer.headers["connection"] == "close"


async def test_a_head_that_takes_too_long_is_408(http: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "REQUEST_HEAD_S", 0.2)
    connection = await http.connect()
    for _ in range(2):  # also on a connection that has already served
        await connection.send("GET /healthz HTTP/1.1\r\nHo")
        await connection.send("st: n\r\n\r\n")
        assert (await connection.receive()).status == 200
    await connection.send("GET /healthz HTTP/1.1\r\nHost")
    await asyncio.sleep(0.05)
    await connection.send(": n")
    answer = await connection.receive()
    assert (answer.status, answer.json["retryable"]) == (408, True)
    assert await connection.at_eof()


async def test_an_idle_connection_is_closed(monkeypatch: pytest.MonkeyPatch, http: Harness) -> None:
    monkeypatch.setattr(server_module, "KEEP_ALIVE_S", 0.1)
    silent = await http.connect()
    assert await silent.at_eof()
    connection = await http.connect()
    assert (await http.request("GET", "/healthz", on=connection)).status == 200
    assert await connection.at_eof()


async def test_connections_are_bounded(narrow: Harness) -> None:
    connections = [await narrow.connect() for _ in range(3)]
    for connection in connections:
        assert (await narrow.request("GET", "/healthz", on=connection)).status == 200
    refused = await narrow.connect()
    assert (await refused.receive()).status == 503
    assert await refused.at_eof()
    assert narrow.metrics.requests.connections_refused == 1
    connections[0].close()
    await narrow.until(lambda: len(narrow.server.connections) < 3)
    assert (await narrow.request("GET", "/healthz")).status == 200


async def test_a_port_in_use_is_said_so(http: Harness) -> None:
    with pytest.raises(Invalid, match=str(http.server.port)) as caught:
        await ApiServer(http.api).start("127.0.0.1", http.server.port)
    assert caught.value.details["field"] == "api_port"


async def test_close_lets_requests_finish_and_refuses_new_ones(http: Harness) -> None:
    http.volumes.put("v", b"abc")
    http.volumes.hold = asyncio.Event()
    busy, kept = await http.connect(), await http.connect()
    assert (await http.request("GET", "/healthz", on=kept)).status == 200
    await busy.send(f"GET {DATA} HTTP/1.1\r\nHost: n\r\n\r\n")
    await http.until(lambda: http.metrics.requests.in_flight == 1)
    async with asyncio.TaskGroup() as group:
        closing = group.create_task(http.server.close(10.0))
        await http.until(lambda: http.api.draining)
        for connection, path in ((kept, DATA), (await http.connect(), "/readyz")):
            answer = await http.request("GET", path, on=connection)
            assert (answer.status, answer.headers["connection"]) == (503, "close")
            assert answer.headers["retry-after"] == "1"
            assert await connection.at_eof()
        assert not closing.done()
        http.volumes.hold.set()
        answer = await busy.receive()
    assert (answer.body, answer.headers["connection"]) == (b"abc", "close")
    with pytest.raises(ConnectionError):
        await http.connect()


async def test_close_cuts_off_what_takes_longer_than_the_grace(http: Harness) -> None:
    http.volumes.hold = asyncio.Event()
    connection = await http.connect()
    await connection.send(f"GET {DATA} HTTP/1.1\r\nHost: n\r\n\r\n")
    await http.until(lambda: http.metrics.requests.in_flight == 1)
    async with asyncio.timeout(5):
        await http.server.close(0.05)
    assert http.metrics.requests.in_flight == 0
    assert await connection.at_eof()


async def test_run_serves_until_cancelled(http: Harness) -> None:
    server = ApiServer(http.api)
    task = asyncio.create_task(server.run("127.0.0.1", 0, grace_s=1.0))
    await http.until(lambda: server.port != 0)
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(b"GET /healthz HTTP/1.1\r\nHost: n\r\nConnection: close\r\n\r\n")
    assert b"200 OK" in await reader.read()
    writer.close()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert http.api.draining
