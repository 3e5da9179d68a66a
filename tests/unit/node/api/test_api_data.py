"""GET, HEAD and PUT of a volume's content: ranges, conditions, streaming, bodies of every kind."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from typing import TYPE_CHECKING

import pytest

from cluster.errors import Corrupt, Invalid, NoSpace, QuorumUnavailable
from node.api import data_routes
from node.api import request as request_module
from node.api.request import ClientGoneError

if TYPE_CHECKING:
    from tests.unit.node.api.conftest import Harness

BIG = os.urandom(1_000_000)
SMALL = bytes(range(256)) * 4
DATA = "/v1/volumes/v/data"


async def test_get_of_a_small_volume(http: Harness) -> None:
    volume = http.volumes.put("v", SMALL)
    answer = await http.request("GET", DATA)
    assert (answer.status, answer.body) == (200, SMALL)
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["content-length"] == "1024"
    assert answer.headers["etag"] == f'"{volume.etag}"'
    assert answer.headers["accept-ranges"] == "bytes"
    assert answer.headers["last-modified"] == "Tue, 14 Nov 2023 22:13:20 GMT"
    assert "content-range" not in answer.headers
    assert "transfer-encoding" not in answer.headers
    assert answer.headers["server"] == "Holdfast"


async def test_get_of_a_large_volume_streams_on_one_connection(http: Harness) -> None:
    http.volumes.put("v", BIG)
    connection = await http.connect()
    for _ in range(2):
        answer = await http.request("GET", DATA, on=connection)
        assert (answer.status, answer.body == BIG) == (200, True)
        assert answer.headers["content-length"] == str(len(BIG))
        assert answer.headers["server"] == "Holdfast"
    await http.until(lambda: http.volumes.open_reads == 0)
    assert http.metrics.requests.bytes_sent == 2 * len(BIG)


async def test_get_of_an_empty_volume(http: Harness) -> None:
    http.volumes.put("v", b"")
    answer = await http.request("GET", DATA)
    assert (answer.status, answer.body, answer.headers["content-length"]) == (200, b"", "0")
    answer = await http.request("GET", DATA, Range="bytes=0-")
    assert (answer.status, answer.headers["content-range"]) == (416, "bytes */0")


async def test_last_modified_is_never_in_the_future(http: Harness) -> None:
    http.volumes.clock = 4e9
    http.volumes.put("v", SMALL)
    answer = await http.request("GET", DATA)
    assert answer.headers["last-modified"] == answer.headers["date"]


@pytest.mark.parametrize(
    ("header", "start", "stop"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=100-199", 100, 200),
        ("bytes=1000-", 1000, 1024),
        ("bytes=-24", 1000, 1024),
        ("bytes=1023-99999", 1023, 1024),
        ("bytes=-99999", 0, 1024),
    ],
)
async def test_one_range_is_206(http: Harness, header: str, start: int, stop: int) -> None:
    http.volumes.put("v", SMALL)
    answer = await http.request("GET", DATA, Range=header)
    assert (answer.status, answer.body) == (206, SMALL[start:stop])
    assert answer.headers["content-range"] == f"bytes {start}-{stop - 1}/1024"
    assert answer.headers["content-length"] == str(stop - start)


async def test_a_large_range_streams(http: Harness) -> None:
    http.volumes.put("v", BIG)
    answer = await http.request("GET", DATA, Range="bytes=12345-912344")
    assert (answer.status, answer.body == BIG[12345:912345]) == (206, True)
    assert answer.headers["content-range"] == "bytes 12345-912344/1000000"


@pytest.mark.parametrize(
    "header", ["bytes=0-9,20-29", "bytes=0-9,5-14", "bytes=9-0", "bytes=--1", "lines=1-2", "bytes=x", ""]
)
async def test_ranges_that_are_not_understood_are_answered_with_the_whole(http: Harness, header: str) -> None:
    http.volumes.put("v", SMALL)
    answer = await http.request("GET", DATA, Range=header)
    assert (answer.status, answer.body) == (200, SMALL)
    assert "content-range" not in answer.headers


@pytest.mark.parametrize("header", ["bytes=1024-", "bytes=5000-6000", "bytes=-0", "bytes=99999999999999999999999999-"])
async def test_a_range_beyond_the_end_is_416(http: Harness, header: str) -> None:
    http.volumes.put("v", SMALL)
    answer = await http.request("GET", DATA, Range=header)
    assert (answer.status, answer.headers["content-range"]) == (416, "bytes */1024")
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json["size"] == 1024


async def test_if_range(http: Harness) -> None:
    volume = http.volumes.put("v", SMALL)
    for condition, status in ((f'"{volume.etag}"', 206), ('"other"', 200), (f'W/"{volume.etag}"', 200)):
        answer = await http.request("GET", DATA, Range="bytes=0-9", If_Range=condition)
        assert (answer.status, answer.body) == (status, SMALL[:10] if status == 206 else SMALL)
    # A Range that doesn't count isn't judged either.
    assert (await http.request("GET", DATA, Range="bytes=5000-", If_Range='"other"')).status == 200


async def test_conditions_of_reads(http: Harness) -> None:
    volume = http.volumes.put("v", SMALL)
    connection = await http.connect()
    answer = await http.request("GET", DATA, on=connection, If_None_Match=f'"x", W/"{volume.etag}"')
    assert (answer.status, answer.body, answer.headers["etag"]) == (304, b"", f'"{volume.etag}"')
    assert "content-length" not in answer.headers
    answer = await http.request("HEAD", DATA, on=connection, If_None_Match="*")
    assert answer.status == 304
    answer = await http.request("GET", DATA, on=connection, If_Match='"x"', Range="bytes=5000-")
    assert (answer.status, answer.json["type"]) == (412, "https://holdfast.dev/problems/conflict")
    answer = await http.request("GET", DATA, on=connection, If_None_Match="unquoted")
    assert (answer.status, answer.json["field"]) == (400, "If-None-Match")
    # The connection has survived all of it.
    assert (await http.request("GET", DATA, on=connection, If_Match=f'"{volume.etag}"')).body == SMALL


async def test_conditions_of_absent_volumes_are_not_evaluated(http: Harness) -> None:
    for header in ({"If_Match": "*"}, {"If_None_Match": "*"}):
        assert (await http.request("GET", DATA, given=header)).status == 404


async def test_head(http: Harness) -> None:
    volume = http.volumes.put("v", BIG)
    connection = await http.connect()
    answer = await http.request("HEAD", DATA, on=connection)
    assert (answer.status, answer.headers["content-length"]) == (200, "1000000")
    assert answer.headers["etag"] == f'"{volume.etag}"'
    answer = await http.request("HEAD", DATA, on=connection, Range="bytes=0-9")
    assert (answer.status, answer.headers["content-length"]) == (200, "1000000")
    answer = await http.request("HEAD", "/v1/volumes/absent/data", on=connection)
    assert answer.status == 404
    assert (await http.request("GET", DATA, on=connection, Range="bytes=0-9")).body == BIG[:10]


async def test_get_takes_no_query(http: Harness) -> None:
    http.volumes.put("v", SMALL)
    answer = await http.request("GET", DATA + "?range=1")
    assert (answer.status, answer.json["field"]) == (400, "range")


async def test_a_failure_before_the_first_byte_is_a_problem(http: Harness) -> None:
    for content in (SMALL, BIG):
        http.volumes.put("v", content)
        http.volumes.fail_read_after = 0
        http.volumes.read_error = QuorumUnavailable("two of three replicas are silent", retry_after_s=2.5)
        answer = await http.request("GET", DATA)
        assert (answer.status, answer.headers["retry-after"]) == (503, "3")
        http.volumes.read_error = Corrupt("no good copy is left")
        answer = await http.request("GET", DATA)
        assert (answer.status, answer.json["type"]) == (500, "https://holdfast.dev/problems/corrupt")


@pytest.mark.parametrize("error", [Corrupt("no good copy is left"), ZeroDivisionError("a defect")])
async def test_a_failure_in_mid_stream_breaks_the_connection(http: Harness, error: Exception) -> None:
    http.volumes.put("v", BIG)
    http.volumes.fail_read_after = 300_000
    http.volumes.read_error = error
    with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
        await http.request("GET", DATA)
    assert http.metrics.requests.broken_answers == 1
    assert http.metrics.requests.client_aborts == 0
    await http.until(lambda: http.volumes.open_reads == 0 and http.metrics.requests.in_flight == 0)
    assert http.metrics.requests.answered(("GET", "/v1/volumes/{volume}/data", 500)) == 1


async def test_a_short_read_breaks_the_connection(http: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    volume = http.volumes.put("v", BIG)
    http.volumes.contents["v"] = (volume, BIG[:-1])
    with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
        await http.request("GET", DATA)
    assert http.metrics.requests.broken_answers == 1


async def test_a_reader_that_leaves_is_no_error(http: Harness) -> None:
    http.volumes.put("v", BIG * 40)
    connection = await http.connect()
    await connection.send(f"GET {DATA} HTTP/1.1\r\nHost: n\r\n\r\n")
    await connection.reader.readuntil(b"\r\n\r\n")
    connection.writer.transport.abort()
    await http.until(lambda: http.metrics.requests.client_aborts == 1)
    assert http.metrics.requests.broken_answers == 0
    await http.until(lambda: http.volumes.open_reads == 0)


async def test_a_reader_that_takes_nothing_holds_the_stream_and_is_cut_off(
    http: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    http.volumes.put("v", BIG * 40)
    monkeypatch.setattr(data_routes, "SEND_STALL_S", 0.2)
    connection = await http.connect()
    await connection.send(f"GET {DATA} HTTP/1.1\r\nHost: n\r\n\r\n")
    await connection.reader.readuntil(b"\r\n\r\n")
    await http.until(lambda: http.metrics.requests.client_aborts == 1)
    assert http.metrics.requests.bytes_sent < 20_000_000
    assert http.volumes.open_reads == 0


async def test_put_creates_then_replaces(http: Harness) -> None:
    connection = await http.connect()
    answer = await http.request("PUT", DATA + "?chunk_size=65536&replicas=2", SMALL, on=connection)
    assert (answer.status, answer.headers["location"]) == (201, "/v1/volumes/v")
    assert (answer.json["size"], answer.json["chunk_size"], answer.json["replicas"]) == (1024, 65536, 2)
    first = answer.headers["etag"]
    answer = await http.request("PUT", DATA, BIG, on=connection)
    assert (answer.status, answer.json["size"]) == (200, 1_000_000)
    assert "location" not in answer.headers
    assert answer.headers["etag"] == f'"{answer.json["etag"]}"' != first
    assert http.volumes.contents["v"][1] == BIG
    assert http.metrics.requests.bytes_received == 1_001_024


async def test_put_of_nothing(http: Harness) -> None:
    http.volumes.put("v", SMALL)
    answer = await http.request("PUT", DATA, b"")
    assert (answer.status, answer.json["size"]) == (200, 0)
    assert http.volumes.contents["v"][1] == b""


async def test_put_chunked(http: Harness) -> None:
    connection = await http.connect()
    await connection.send(f"PUT {DATA} HTTP/1.1\r\nHost: n\r\nTransfer-Encoding: chunked\r\n\r\n")
    for piece in (b"a", b"b" * 70_000, b"c" * 3):
        await connection.send(f"{len(piece):x};note=1\r\n".encode() + piece + b"\r\n")
    await connection.send("0\r\nTrailer: x\r\n\r\n")
    assert (await connection.receive()).status == 201
    assert http.volumes.contents["v"][1] == b"a" + b"b" * 70_000 + b"ccc"
    assert (await http.request("GET", DATA, on=connection, Range="bytes=-3")).body == b"ccc"


@pytest.mark.parametrize(
    "coding",
    [
        "gzip, chunked",
        "GZIP,Chunked",
        "deflate, gzip, chunked",
        "identity, chunked",
    ],
)
@pytest.mark.parametrize("path", [DATA, "/v1/volumes"])
async def test_a_body_in_a_transfer_coding_but_chunked_is_501(http: Harness, path: str, coding: str) -> None:
    """Its bytes are not the content: kept as they come they would be stored compressed, and nobody would ever know."""
    http.volumes.put("v", SMALL)
    connection = await http.connect()
    method = "PUT" if path == DATA else "POST"
    head = (
        f"{method} {path} HTTP/1.1\r\nHost: n\r\nTransfer-Encoding: {coding}\r\nContent-Type: application/json\r\n\r\n"
    )
    await connection.send(head.encode() + b"3\r\n\x1f\x8b\x08\r\n0\r\n\r\n")
    answer = await connection.receive()
    assert (answer.status, answer.json["field"]) == (501, "Transfer-Encoding")
    assert list(http.volumes.contents) == ["v"]
    assert http.volumes.contents["v"][1] == SMALL
    assert http.volumes.bodies_begun == 0


async def test_a_transfer_coding_in_a_header_of_its_own_is_not_overlooked(http: Harness) -> None:
    connection = await http.connect()
    codings = "Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked"
    await connection.send(f"PUT {DATA} HTTP/1.1\r\nHost: n\r\n{codings}\r\n\r\n1\r\na\r\n0\r\n\r\n")
    assert (await connection.receive()).status == 400  # by the parser
    assert not http.volumes.contents


async def test_a_body_that_waits_is_not_asked_for_in_another_transfer_coding(http: Harness) -> None:
    connection = await http.connect()
    await connection.send(
        f"PUT {DATA} HTTP/1.1\r\nHost: n\r\nTransfer-Encoding: gzip, chunked\r\nExpect: 100-continue\r\n\r\n"
    )
    assert (await connection.receive()).status == 501


@pytest.mark.parametrize("coding", ["chunked", "Chunked", " chunked "])
async def test_chunked_is_chunked_however_it_is_written(http: Harness, coding: str) -> None:
    connection = await http.connect()
    await connection.send(f"PUT {DATA} HTTP/1.1\r\nHost: n\r\nTransfer-Encoding:{coding}\r\n\r\n1\r\na\r\n0\r\n\r\n")
    assert (await connection.receive()).status == 201


async def test_put_without_a_length_is_411(http: Harness) -> None:
    http.volumes.put("v", SMALL)
    answer = await http.request("PUT", DATA)
    assert (answer.status, answer.json["field"]) == (411, "Content-Length")
    assert http.volumes.contents["v"][1] == SMALL


async def test_put_of_compressed_content_is_415(http: Harness) -> None:
    answer = await http.request("PUT", DATA, b"\x1f\x8b", Content_Encoding="gzip")
    assert (answer.status, answer.json["field"]) == (415, "Content-Encoding")
    assert not http.volumes.contents
    assert (await http.request("PUT", DATA, b"x", Content_Encoding="identity")).status == 201


async def test_conditions_of_whole_puts(http: Harness) -> None:
    assert (await http.request("PUT", DATA, b"1", If_Match="*")).status == 412
    answer = await http.request("PUT", DATA, b"1", If_None_Match="*")
    assert answer.status == 201
    etag = answer.headers["etag"]
    answer = await http.request("PUT", DATA, b"2", If_None_Match="*")
    assert (answer.status, answer.json["condition"]) == (412, "if-none-match")
    assert (await http.request("PUT", DATA, b"3", If_Match='"other"')).status == 412
    assert (await http.request("PUT", DATA, b"3", If_Match=f"W/{etag}")).status == 412
    assert (await http.request("PUT", DATA, b"3", If_Match="other")).status == 400
    assert http.volumes.contents["v"][1] == b"1"
    assert (await http.request("PUT", DATA, b"3", If_Match=etag)).status == 200
    answer = await http.request("PUT", DATA, b"4", If_Unmodified_Since="Tue, 14 Nov 2023 22:13:20 GMT")
    assert (answer.status, answer.json["field"]) == (400, "If-Unmodified-Since")
    assert http.volumes.contents["v"][1] == b"3"


async def test_put_refuses_unknown_and_bad_parameters(http: Harness) -> None:
    for query, field in (
        ("replica=2", "replica"),
        ("replicas=two", "replicas"),
        ("replicas=0", "replicas"),
        ("replicas=-1", "replicas"),
        ("replicas=2&replicas=3", "replicas"),
        ("chunk_size=", "chunk_size"),
        ("chunk_size=%31", None),
        ("replicas=%zz", "replicas"),
        ("=1", ""),
        ("replicas", "query"),
    ):
        answer = await http.request("PUT", f"{DATA}?{query}", b"x")
        if field is None:
            assert answer.status == 201
        else:
            assert (answer.status, answer.json["field"]) == (400, field), query


async def test_ranged_put(http: Harness) -> None:
    http.volumes.put("v", SMALL)
    answer = await http.request("PUT", DATA, b"X" * 10, Content_Range="bytes 5-14/1024")
    assert (answer.status, answer.json["size"], answer.json["generation"]) == (200, 1024, 2)
    assert http.volumes.contents["v"][1] == SMALL[:5] + b"X" * 10 + SMALL[15:]
    answer = await http.request("PUT", DATA, b"Y", Content_Range="bytes 1023-1023/*")
    assert answer.status == 200
    assert http.volumes.contents["v"][1][-1:] == b"Y"


@pytest.mark.parametrize(
    ("content_range", "status"),
    [
        ("bytes 0-9/20", 416),  # the volume has 1024 bytes, not 20
        ("bytes 0-9/99999", 416),
        ("bytes 1020-1029/*", 416),
        ("bytes 5000-5009/*", 416),
        ("bytes 0-8/*", 400),  # the body has 10 bytes
        ("bytes 0-10/*", 400),
        ("bytes 9-0/*", 400),
        ("bytes */1024", 400),
        ("bytes 0-9", 400),
        ("chars 0-9/1024", 400),
        ("0-9/1024", 400),
        ("", 400),
    ],
)
async def test_ranged_puts_that_are_refused_change_nothing(http: Harness, content_range: str, status: int) -> None:
    http.volumes.put("v", SMALL)
    answer = await http.request("PUT", DATA, b"X" * 10, Content_Range=content_range)
    assert answer.status == status
    if status == 416:
        assert answer.headers["content-range"] == "bytes */1024"
    assert http.volumes.contents["v"][1] == SMALL
    assert http.volumes.bodies_begun == 0


async def test_ranged_put_of_an_absent_volume_is_404(http: Harness) -> None:
    assert (await http.request("PUT", DATA, b"X", Content_Range="bytes 0-0/*")).status == 404


async def test_ranged_put_with_two_content_ranges_is_refused(http: Harness) -> None:
    http.volumes.put("v", SMALL)
    connection = await http.connect()
    await connection.send(
        f"PUT {DATA} HTTP/1.1\r\nHost: n\r\nContent-Length: 1\r\n"
        "Content-Range: bytes 0-0/*\r\nContent-Range: bytes 1-1/*\r\n\r\nX"
    )
    assert (await connection.receive()).status == 400
    assert http.volumes.contents["v"][1] == SMALL


async def test_conditions_of_ranged_puts(http: Harness) -> None:
    volume = http.volumes.put("v", SMALL)
    answer = await http.request("PUT", DATA, b"X", Content_Range="bytes 0-0/*", If_Match='"x"')
    assert (answer.status, answer.json["etag"]) == (412, volume.etag)
    answer = await http.request("PUT", DATA, b"X", Content_Range="bytes 0-0/*", If_Match=f'"{volume.etag}"')
    assert answer.status == 200


async def test_ranged_put_chunked_with_another_length_is_refused(http: Harness) -> None:
    http.volumes.put("v", SMALL)
    connection = await http.connect()
    await connection.send(
        f"PUT {DATA} HTTP/1.1\r\nHost: n\r\nTransfer-Encoding: chunked\r\nContent-Range: bytes 0-9/*\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
    )
    assert (await connection.receive()).status == 400
    assert http.volumes.contents["v"][1] == SMALL


EXPECT = "Expect: 100-continue\r\n"


async def test_expect_continue_is_sent_when_the_body_is_wanted(http: Harness) -> None:
    connection = await http.connect()
    await connection.send(f"PUT {DATA} HTTP/1.1\r\nHost: n\r\nContent-Length: 3\r\n{EXPECT}\r\n")
    assert (await connection.receive()).status == 100
    assert await connection.silent()
    await connection.send("abc")
    assert (await connection.receive()).status == 201
    assert http.volumes.contents["v"][1] == b"abc"
    assert (await http.request("GET", DATA, on=connection)).body == b"abc"


@pytest.mark.parametrize(
    ("target", "headers", "status"),
    [
        (DATA, 'Content-Length: 9\r\nIf-Match: "x"\r\n', 412),
        (DATA, "Content-Length: 9\r\nIf-None-Match: *\r\n", 412),
        (DATA, "Content-Length: 9\r\nContent-Range: bytes 0-8/9\r\n", 416),
        (DATA, "Content-Length: 9\r\nContent-Range: bytes 1020-1028/*\r\n", 416),
        (DATA, "Content-Length: 9\r\nContent-Range: bytes 0-5/*\r\n", 400),
        (DATA, "Content-Length: 9\r\nContent-Encoding: br\r\n", 415),
        (DATA + "?x=1", "Content-Length: 9\r\n", 400),
        ("/v1/volumes/w/data", "Content-Length: 9\r\nContent-Range: bytes 0-8/*\r\n", 404),
        ("/nowhere", "Content-Length: 9\r\n", 404),
        ("/v1/volumes", "Content-Length: 9\r\n", 405),
    ],
)
async def test_a_refused_body_is_never_asked_for(http: Harness, target: str, headers: str, status: int) -> None:
    http.volumes.put("v", SMALL)
    connection = await http.connect()
    await connection.send(f"PUT {target} HTTP/1.1\r\nHost: n\r\n{headers}{EXPECT}\r\n")
    answer = await connection.receive()
    assert (answer.status, answer.headers["connection"]) == (status, "close")
    assert await connection.at_eof()
    assert http.volumes.bodies_begun == 0
    assert http.volumes.contents["v"][1] == SMALL


async def test_a_chunked_body_is_not_asked_for_either(http: Harness) -> None:
    http.volumes.put("v", SMALL)
    connection = await http.connect()
    await connection.send(
        f"PUT {DATA} HTTP/1.1\r\nHost: n\r\nTransfer-Encoding: chunked\r\nIf-None-Match: *\r\n{EXPECT}\r\n"
    )
    assert (await connection.receive()).status == 412
    assert await connection.at_eof()


async def test_no_space_is_507(http: Harness) -> None:
    http.volumes.error = NoSpace("the disks are full")
    connection = await http.connect()
    await connection.send(f"PUT {DATA} HTTP/1.1\r\nHost: n\r\nContent-Length: 9\r\n{EXPECT}\r\n")
    answer = await connection.receive()
    assert (answer.status, answer.json["type"]) == (507, "https://holdfast.dev/problems/no-space")


async def test_other_expectations_are_417(http: Harness) -> None:
    answer = await http.request("PUT", DATA, b"abc", Expect="the-unexpected")
    assert answer.status == 417
    assert not http.volumes.contents


async def test_a_refusal_in_mid_body_reaches_a_client_that_is_still_sending(http: Harness) -> None:
    http.volumes.fail_body_after = 100_000
    http.volumes.read_error = NoSpace("the disks are full")
    connection = await http.connect()
    total = 64_000_000
    await connection.send(f"PUT {DATA} HTTP/1.1\r\nHost: n\r\nContent-Length: {total}\r\n\r\n")

    async def send_all() -> None:
        try:
            for _ in range(total // 1_000_000):
                await connection.send(BIG)
        except ConnectionError:
            pass  # it may close before all of it is sent

    async with asyncio.TaskGroup() as group:
        group.create_task(send_all())
        answer = await connection.receive()
    assert (answer.status, answer.headers["connection"]) == (507, "close")
    assert not http.volumes.contents


@pytest.mark.parametrize("rest", ["half-close", "garbage", "close"])
async def test_what_becomes_of_a_refused_body_is_no_error(
    http: Harness, rest: str, caplog: pytest.LogCaptureFixture
) -> None:
    http.volumes.put("v", SMALL)
    connection = await http.connect()
    await connection.send(f"PUT {DATA} HTTP/1.1\r\nHost: n\r\nTransfer-Encoding: chunked\r\nIf-None-Match: *\r\n\r\n")
    assert (await connection.receive()).status == 412
    if rest == "half-close":
        connection.writer.write_eof()
    elif rest == "garbage":
        await connection.send("zz\r\n")
    else:
        connection.close()
    if rest != "close":
        assert await connection.at_eof()
    await http.until(lambda: not http.server.connections)
    assert not caplog.records


async def test_a_small_refused_body_does_not_cost_the_connection(http: Harness) -> None:
    connection = await http.connect()
    for _ in range(2):
        assert (await http.request("PUT", DATA, SMALL, on=connection, If_Match="*")).status == 412
    assert (await http.request("PUT", DATA, SMALL, on=connection)).status == 201


@pytest.mark.parametrize("reset", [False, True])
async def test_a_client_that_goes_away_in_mid_body_changes_nothing(http: Harness, reset: bool) -> None:
    http.volumes.put("v", SMALL)
    connection = await http.connect()
    await connection.send(f"PUT {DATA} HTTP/1.1\r\nHost: n\r\nContent-Length: 1000000\r\n\r\n".encode() + BIG[:500_000])
    await http.until(lambda: http.volumes.bodies_begun == 1)
    if reset:
        tcp = connection.writer.get_extra_info("socket")
        tcp.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.writer.transport.abort()
    await http.until(lambda: http.metrics.requests.client_aborts == 1)
    assert isinstance(http.volumes.body_ended_with, ClientGoneError if reset else Invalid)
    assert http.volumes.contents["v"][1] == SMALL
    await http.until(lambda: http.metrics.requests.in_flight == 0)


async def test_a_client_that_ends_its_body_early_is_told_so(http: Harness) -> None:
    http.volumes.put("v", SMALL)
    for framing, body in (("Content-Length: 1000", b"x" * 500), ("Transfer-Encoding: chunked", b"5\r\nabc")):
        connection = await http.connect()
        await connection.send(f"PUT {DATA} HTTP/1.1\r\nHost: n\r\n{framing}\r\n\r\n".encode() + body)
        connection.writer.write_eof()
        answer = await connection.receive()
        assert (answer.status, answer.json["type"]) == (400, "https://holdfast.dev/problems/invalid")
        assert answer.json["received"] == (500 if body.startswith(b"x") else 3)
        assert await connection.at_eof()
    assert http.volumes.contents["v"][1] == SMALL
    assert http.metrics.requests.client_aborts == 2


async def test_a_half_closed_client_still_gets_its_answer(http: Harness) -> None:
    http.volumes.put("v", SMALL)
    http.volumes.hold = asyncio.Event()
    connection = await http.connect()
    await connection.send(f"GET {DATA} HTTP/1.1\r\nHost: n\r\n\r\n")
    connection.writer.write_eof()
    await http.until(lambda: http.metrics.requests.in_flight == 1)
    await asyncio.sleep(0.05)
    http.volumes.hold.set()
    assert (await connection.receive()).body == SMALL
    assert await connection.at_eof()


@pytest.mark.parametrize("garbage", [b"zz\r\nabc\r\n", b"3\r\nabcdef\r\n", b"-3\r\nabc\r\n"])
async def test_a_malformed_chunk_is_refused_and_nothing_changes(http: Harness, garbage: bytes) -> None:
    http.volumes.put("v", SMALL)
    connection = await http.connect()
    await connection.send(f"PUT {DATA} HTTP/1.1\r\nHost: n\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
    await http.until(lambda: http.volumes.bodies_begun == 1)
    await connection.send(garbage)
    answer = await connection.receive()
    assert (answer.status, answer.json["type"]) == (400, "https://holdfast.dev/problems/invalid")
    assert await connection.at_eof()
    assert http.volumes.contents["v"][1] == SMALL


async def test_more_than_the_declared_length_is_no_part_of_the_content(http: Harness) -> None:
    connection = await http.connect()
    await connection.send(f"PUT {DATA} HTTP/1.1\r\nHost: n\r\nContent-Length: 3\r\n\r\nabc")
    assert (await connection.receive()).status == 201
    await connection.send("def\r\n\r\n")
    assert (await connection.receive()).status == 400
    assert await connection.at_eof()
    assert http.volumes.contents["v"][1] == b"abc"
    # In one packet the parser may see what follows first: then the PUT is refused as a whole.
    connection = await http.connect()
    await connection.send(f"PUT {DATA} HTTP/1.1\r\nHost: n\r\nContent-Length: 3\r\n\r\nxyzdef\r\n\r\n")
    first = await connection.receive()
    assert http.volumes.contents["v"][1] == (b"xyz" if first.status == 200 else b"abc")
    assert first.status == 400 or (await connection.receive()).status == 400


async def test_a_body_that_stalls_is_given_up(http: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_module, "BODY_STALL_S", 0.1)
    connection = await http.connect()
    await connection.send(f"PUT {DATA} HTTP/1.1\r\nHost: n\r\nContent-Length: 1000\r\n\r\nabc")
    answer = await connection.receive()
    assert (answer.status, answer.headers["connection"], answer.json["received"]) == (408, "close", 3)
    assert await connection.at_eof()
    assert not http.volumes.contents
