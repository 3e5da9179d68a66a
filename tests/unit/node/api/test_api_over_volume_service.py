"""The routes over the real VolumeService, its registers and chunks in memory."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import socket
import struct
from bisect import insort
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from cluster.doors.clock import SystemClock
from cluster.errors import NotFound
from cluster.register.change import Absence
from cluster.register.key import RegisterKey
from cluster.rpc.message import Buffer
from cluster.volumes.service import VolumeService
from node.api.app import Api
from node.api.auth import ApiHosts
from node.api.metrics import Metrics
from node.api.ports import Volumes
from node.api.server import ApiServer

if TYPE_CHECKING:
    from tests.unit.node.api.conftest import Harness

KIB = 1024


@dataclass(frozen=True)
class Cas:
    applied: bool
    current: bytes | None


@dataclass(frozen=True)
class Page:
    entries: Sequence[tuple[bytes, bytes]]
    resume: bytes | None


class MemoryRegisters:
    def __init__(self) -> None:
        self.values: dict[RegisterKey, bytes] = {}
        self.keys: list[RegisterKey] = []

    async def read(self, key: RegisterKey) -> bytes | None:
        await asyncio.sleep(0)
        return self.values.get(key)

    async def compare_and_set(
        self, key: RegisterKey, expected: bytes | None, value: bytes | None, *, absence: Absence | None = None
    ) -> Cas:
        await asyncio.sleep(0)
        current = self.values.get(key)
        if current != expected:
            return Cas(current == value, current)
        if current is None and value is not None:
            insort(self.keys, key)
        if value is None:
            self.values.pop(key, None)
            if key in self.keys:
                self.keys.remove(key)
        else:
            self.values[key] = value
        return Cas(True, value)

    async def scan(self, table: str, partition_key: bytes, after: bytes, prefix: bytes, limit: int) -> Page:
        await asyncio.sleep(0)
        found = [
            (key.sort, self.values[key])
            for key in self.keys
            if (key.table, key.partition) == (table, partition_key) and key.sort > after and key.sort.startswith(prefix)
        ]
        return Page(found[:limit], found[limit - 1][0] if len(found) > limit else None)


class MemoryChunks:
    def __init__(self) -> None:
        self.payloads: dict[bytes, bytes] = {}

    async def put(self, payload: Buffer, *, referrer: bytes, replicas: int) -> bytes:
        stored = bytes(payload)
        chunk = hashlib.blake2b(stored, digest_size=32).digest()
        await asyncio.sleep(0)
        self.payloads[chunk] = stored
        return chunk

    async def read(self, chunk: bytes, offset: int, length: int, *, replicas: int) -> Buffer:
        await asyncio.sleep(0)
        if chunk not in self.payloads:
            raise NotFound("no such chunk")
        return memoryview(self.payloads[chunk])[offset : offset + length]

    async def drop_reference(self, chunk: bytes, referrer: bytes, replicas: int) -> None:
        await asyncio.sleep(0)


async def served(volumes: Volumes, http: Harness) -> ApiServer:
    """A server over these volumes, and the harness's doubles of everything else."""
    api = Api(
        volumes=volumes,
        cluster=http.cluster,
        repair=http.repair,
        metrics=Metrics(),
        token=None,
        hosts=ApiHosts(()),
        release="1",
    )
    server = ApiServer(api)
    await server.start("127.0.0.1", 0)
    return server


@pytest.fixture
async def real(http: Harness) -> AsyncIterator[Harness]:
    """The harness, its server replaced by one over a real service."""
    service = VolumeService(MemoryRegisters(), MemoryChunks(), SystemClock(), random.Random(1), node_count=lambda: 5)
    volumes: Volumes = service  # the type checker's word that the service meets the port
    server = await served(volumes, http)
    fake, http.server = http.server, server
    yield http
    await server.close(1.0)
    http.server = fake


async def test_content_survives_every_kind_of_write(real: Harness) -> None:
    model = bytearray(os.urandom(300 * KIB))
    data = "/v1/volumes/v/data"
    connection = await real.connect()
    answer = await real.request("PUT", data + "?chunk_size=16384&replicas=2", bytes(model), on=connection)
    assert (answer.status, answer.json["chunk_size"], answer.json["replicas"]) == (201, 16384, 2)
    rng = random.Random(7)
    for _ in range(40):
        start = rng.randrange(len(model))
        body = rng.randbytes(rng.randrange(1, min(50_000, len(model) - start) + 1))
        model[start : start + len(body)] = body
        place = f"bytes {start}-{start + len(body) - 1}/{rng.choice(('*', len(model)))}"
        answer = await real.request("PUT", data, body, on=connection, Content_Range=place)
        assert answer.status == 200
        start = rng.randrange(len(model))
        stop = rng.randrange(start + 1, len(model) + 1)
        answer = await real.request("GET", data, on=connection, Range=f"bytes={start}-{stop - 1}")
        assert (answer.status, answer.body == model[start:stop]) == (206, True)
    whole = await real.request("GET", data, on=connection)
    assert (whole.status, whole.body == model) == (200, True)
    assert whole.headers["etag"] == answer.headers["etag"]


async def test_the_whole_life_of_a_volume(real: Harness) -> None:
    answer = await real.json("POST", "/v1/volumes", {"name": "disk", "size": 100_000_000})
    assert answer.status == 201
    etag = answer.headers["etag"]
    assert (await real.json("POST", "/v1/volumes", {"name": "disk", "size": 1})).status == 409
    answer = await real.request("GET", "/v1/volumes/disk/data", Range="bytes=50000000-50099999")
    assert (answer.status, answer.body == bytes(100_000)) == (206, True)
    answer = await real.json("PATCH", "/v1/volumes/disk", {"size": 200_000_000}, If_Match=etag)
    assert (answer.status, answer.json["size"], answer.json["sharding"]["P"]) == (200, 200_000_000, 48)
    assert (await real.json("PATCH", "/v1/volumes/disk", {"size": 300_000_000}, If_Match=etag)).status == 412
    assert (await real.json("PATCH", "/v1/volumes/disk", {"size": 1})).status == 400
    answer = await real.request(
        "PUT", "/v1/volumes/disk/data", b"tail", Content_Range="bytes 199999996-199999999/200000000"
    )
    assert answer.status == 200
    answer = await real.request("GET", "/v1/volumes/disk/data", Range="bytes=-6")
    assert answer.body == b"\0\0tail"
    listed = (await real.request("GET", "/v1/volumes?prefix=di")).json
    assert [volume["name"] for volume in listed["volumes"]] == ["disk"]
    answer = await real.request("PUT", "/v1/volumes/disk/data", b"")
    assert (answer.status, answer.json["size"]) == (200, 0)
    assert (await real.request("DELETE", "/v1/volumes/disk")).status == 204
    for method in ("GET", "HEAD", "DELETE"):
        assert (await real.request(method, "/v1/volumes/disk")).status == 404


@pytest.mark.parametrize(
    ("target", "headers", "status", "field"),
    [
        ("/v1/volumes/UPPER/data", "", 400, "name"),
        ("/v1/volumes/a%2Fb/data", "", 400, "name"),
        ("/v1/volumes/%2e%2e/data", "", 400, "name"),
        ("/v1/volumes/w/data?chunk_size=5000", "", 400, "chunk_size"),
        ("/v1/volumes/w/data?replicas=6", "", 400, "replicas"),
        ("/v1/volumes/w/data?durability=hope", "", 400, "durability"),
        ("/v1/volumes/w/data", "If-Match: *\r\n", 412, None),
        ("/v1/volumes/v/data", "If-None-Match: *\r\n", 412, None),
        ("/v1/volumes/w/data", "Content-Range: bytes 0-8/*\r\n", 404, None),
        ("/v1/volumes/v/data", "Content-Range: bytes 0-8/*\r\n", 416, "range"),
        ("/v1/volumes/v/data", "Content-Range: bytes 0-8/9\r\n", 416, "range"),
    ],
)
async def test_the_service_refuses_before_the_body_is_asked_for(
    real: Harness, target: str, headers: str, status: int, field: str | None
) -> None:
    assert (await real.request("PUT", "/v1/volumes/v/data", b"12345")).status == 201
    connection = await real.connect()
    await connection.send(
        f"PUT {target} HTTP/1.1\r\nHost: n\r\nContent-Length: 9\r\nExpect: 100-continue\r\n{headers}\r\n"
    )
    answer = await connection.receive()
    assert (answer.status, answer.json.get("field")) == (status, field)
    if status == 416:
        assert answer.headers["content-range"] == "bytes */5"
    assert await connection.at_eof()
    assert (await real.request("GET", "/v1/volumes/v/data")).body == b"12345"


@pytest.mark.parametrize("size", [10, 100_000, 3_000_000])
async def test_short_bodies_change_nothing(real: Harness, size: int) -> None:
    assert (await real.request("PUT", "/v1/volumes/v/data?chunk_size=65536", b"12345")).status == 201
    body = os.urandom(size // 2)
    for framing, place in (
        (f"Content-Length: {size}", ""),
        ("Transfer-Encoding: chunked", ""),
        ("Content-Length: 5", "bytes 0-4/5"),
    ):
        connection = await real.connect()
        sent = body[:3] if place else body if framing.startswith("Content") else f"{size:x}\r\n".encode() + body
        extra = f"Content-Range: {place}\r\n" if place else ""
        await connection.send(f"PUT /v1/volumes/v/data HTTP/1.1\r\nHost: n\r\n{framing}\r\n{extra}\r\n".encode() + sent)
        connection.writer.write_eof()
        assert (await connection.receive()).status == 400
    assert (await real.request("GET", "/v1/volumes/v/data")).body == b"12345"


async def test_a_reader_keeps_its_version_while_it_is_replaced(real: Harness) -> None:
    old, new = os.urandom(30_000_000), os.urandom(1000)
    assert (await real.request("PUT", "/v1/volumes/v/data", old)).status == 201
    connection = await real.connect()
    await connection.send("GET /v1/volumes/v/data HTTP/1.1\r\nHost: n\r\n\r\n")
    head = await connection.reader.readuntil(b"\r\n\r\n")
    assert b"Content-Length: 30000000" in head
    assert (await real.request("PUT", "/v1/volumes/v/data", new)).status == 200
    assert (await connection.reader.readexactly(len(old))) == old
    assert (await real.request("GET", "/v1/volumes/v/data", on=connection)).body == new


async def test_concurrent_conditional_puts_have_one_winner(real: Harness) -> None:
    answers = await asyncio.gather(
        *(real.request("PUT", "/v1/volumes/v/data", b"%d" % n, If_None_Match="*") for n in range(8))
    )
    assert sorted(answer.status for answer in answers) == [201] + [412] * 7
    winner = next(n for n, answer in enumerate(answers) if answer.status == 201)
    assert (await real.request("GET", "/v1/volumes/v/data")).body == b"%d" % winner


PUT = b"PUT /v1/volumes/v/data HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nbytes"
CREATE = (
    b"POST /v1/volumes HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 22\r\n\r\n"
    b'{"name":"v","size":10}'
)


@pytest.mark.parametrize("request_bytes", [PUT, CREATE], ids=["put", "create"])
@pytest.mark.parametrize("breaks_off", [True, False])
async def test_a_change_whose_client_broke_off_is_not_made(
    http: Harness, breaks_off: bool, request_bytes: bytes
) -> None:
    """As after a freeze: the request is whole in hand, and its client has reset the connection and gone elsewhere. A client that
    only ends its half of the connection still waits for the answer."""
    registers, chunks = MemoryRegisters(), MemoryChunks()
    held, reached = asyncio.Event(), asyncio.Event()
    service = VolumeService(registers, chunks, SystemClock(), random.Random(1), node_count=lambda: 5)
    condition_checked = asyncio.Event()
    change = service._change

    async def watched(*arguments: Any) -> Any:
        reached.set()  # the place where the gateway is held
        await held.wait()
        try:
            return await change(*arguments)
        finally:
            condition_checked.set()

    service._change = watched  # type: ignore[method-assign, assignment]  # to know when it is over
    server = await served(service, http)
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(request_bytes)
    async with asyncio.timeout(10):
        await reached.wait()
        if breaks_off:
            linger = struct.pack("ii", 1, 0)
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            writer.transport.abort()
        else:
            writer.write_eof()
        held.set()
        await condition_checked.wait()
    assert bool((await service.list()).volumes) is not breaks_off
    if not breaks_off:
        assert (await reader.readline()).startswith(b"HTTP/1.1 201")
    writer.close()
    await server.close(1.0)
