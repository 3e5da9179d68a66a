"""A whole API on a real socket over volumes in memory, and a client that shows every byte of what comes back."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from cluster.errors import Conflict, HoldfastError, Invalid, NotFound
from cluster.volumes.volume import UNCONDITIONAL, Condition, Volume, VolumePage
from node.api.app import Api
from node.api.auth import ApiHosts, BearerToken
from node.api.metrics import Metrics
from node.api.ports import JsonObject, StagedNode
from node.api.server import MAX_CONNECTIONS, ApiServer

DEADLINE_S = 10.0


class FakeOpen:
    def __init__(self, volumes: FakeVolumes, volume: Volume, content: bytes) -> None:
        self.volume = volume
        self._volumes = volumes
        self._content = content

    async def read(self, start: int, stop: int) -> AsyncGenerator[bytes | memoryview, None]:
        self._volumes.open_reads += 1
        try:
            sent = 0
            for offset in range(start, stop, self._volumes.piece):
                if self._volumes.fail_read_after is not None and sent >= self._volumes.fail_read_after:
                    raise self._volumes.read_error
                piece = memoryview(self._content)[offset : min(offset + self._volumes.piece, stop)]
                yield piece
                sent += len(piece)
        finally:
            self._volumes.open_reads -= 1

    async def read_small(self, start: int, stop: int) -> bytes | memoryview:
        if self._volumes.fail_read_after is not None:
            raise self._volumes.read_error
        return memoryview(self._content)[start:stop]


class FakeVolumes:
    """Volumes in memory; PUTs are all or nothing, as the real ones are."""

    def __init__(self) -> None:
        self.contents: dict[str, tuple[Volume, bytes]] = {}
        self.piece = 100_000
        self.open_reads = 0
        self.fail_read_after: int | None = None
        self.read_error: Exception = HoldfastError("no good copy")
        self.error: Exception | None = None
        self.hold: asyncio.Event | None = None
        self.body_ended_with: BaseException | None = None
        self.bodies_begun = 0
        self.fail_body_after: int | None = None
        self.clock = 1_700_000_000.0

    async def _enter(self) -> None:
        if self.hold is not None:
            await self.hold.wait()
        if self.error is not None:
            raise self.error

    def _get(self, name: str) -> tuple[Volume, bytes]:
        if name not in self.contents:
            raise NotFound(f"There is no volume {name!r}")
        return self.contents[name]

    def put(self, name: str, content: bytes, **properties: Any) -> Volume:
        old = self.contents.get(name)
        if old is None:
            volume = Volume(
                name=name,
                id=name.encode().ljust(16, b"\0")[:16],
                generation=1,
                size=len(content),
                chunk_size=properties.get("chunk_size") or 4 << 20,
                replicas=properties.get("replicas") or 3,
                durability="fsync",
                created_at=self.clock,
                modified_at=self.clock,
                map_inline=True,
            )
        else:
            volume = dataclasses.replace(
                old[0], generation=old[0].generation + 1, size=len(content), modified_at=self.clock
            )
        self.contents[name] = (volume, content)
        return volume

    async def create(
        self,
        name: str,
        size: int,
        condition: Condition = UNCONDITIONAL,
        *,
        chunk_size: int = 0,
        replicas: int | None = None,
        durability: str = "fsync",
    ) -> Volume:
        await self._enter()
        condition.check(None)
        if name in self.contents:
            raise Conflict(f"There is already a volume {name!r}")
        return self.put(name, bytes(size), chunk_size=chunk_size, replicas=replicas)

    async def show(self, name: str) -> Volume:
        await self._enter()
        return self._get(name)[0]

    async def list(self, *, prefix: str = "", after: str = "", limit: int = 1000) -> VolumePage:
        await self._enter()
        names = sorted(name for name in self.contents if name.startswith(prefix) and name > after)
        page = names[:limit]
        return VolumePage(tuple(self.contents[name][0] for name in page), page[-1] if len(names) > limit else None)

    async def resize(self, name: str, size: int, condition: Condition = UNCONDITIONAL) -> Volume:
        await self._enter()
        volume, content = self._get(name)
        condition.check(volume)
        if size < volume.size:
            raise Invalid("A volume only grows", field="size")
        return self.put(name, content.ljust(size, b"\0"))

    async def delete(self, name: str, condition: Condition = UNCONDITIONAL) -> None:
        await self._enter()
        condition.check(self._get(name)[0])
        del self.contents[name]

    async def open(self, name: str) -> FakeOpen:
        await self._enter()
        return FakeOpen(self, *self._get(name))

    async def replace(
        self,
        name: str,
        body: AsyncIterator[bytes],
        length: int | None,
        condition: Condition = UNCONDITIONAL,
        *,
        chunk_size: int | None = None,
        replicas: int | None = None,
        durability: str | None = None,
    ) -> tuple[Volume, bool]:
        await self._enter()
        old = self.contents.get(name)
        condition.check(old[0] if old else None)
        content = await self._collect(body, length)
        return self.put(name, content, chunk_size=chunk_size, replicas=replicas), old is None

    async def write_range(
        self,
        name: str,
        offset: int,
        body: AsyncIterator[bytes],
        length: int | None,
        condition: Condition = UNCONDITIONAL,
        *,
        size: int | None = None,
    ) -> Volume:
        await self._enter()
        volume, old = self._get(name)
        condition.check(volume)
        if offset + (length or 0) > volume.size or size not in {None, volume.size}:
            raise Invalid("That is not inside the volume: resize it first", field="range", size=volume.size)
        content = await self._collect(body, length)
        return self.put(name, old[:offset] + content + old[offset + len(content) :])

    async def _collect(self, body: AsyncIterator[bytes], length: int | None) -> bytes:
        self.bodies_begun += 1
        content = bytearray()
        try:
            async for piece in body:
                content += piece
                if self.fail_body_after is not None and len(content) > self.fail_body_after:
                    raise self.read_error  # noqa: TRY301  # it has to be seen by the clause below, as any other is
        except BaseException as error:
            self.body_ended_with = error
            raise
        if length is not None and len(content) != length:
            raise Invalid(f"The body has {len(content)} bytes, {length} were announced")
        return bytes(content)


class FakeCluster:
    def __init__(self) -> None:
        self.ready: JsonObject = {"ready": True, "reason": None}
        self.calls: list[Any] = []

    async def status(self) -> JsonObject:
        return {"id": "c1"}

    async def nodes(self) -> JsonObject:
        return {"nodes": []}

    async def layout(self) -> JsonObject:
        return {"current": None, "staged": None}

    async def jobs(self) -> JsonObject:
        return {"jobs": []}

    async def plan_layout(self, stage: Sequence[StagedNode]) -> JsonObject:
        self.calls.append(list(stage))
        return {"version": 2}

    async def apply_layout(self, version: int, plan: str | None) -> JsonObject:
        self.calls.append((version, plan))
        return {"version": version}

    async def abort_layout(self) -> JsonObject:
        self.calls.append("abort")
        return {}

    def readiness(self) -> JsonObject:
        return self.ready


class FakeRepair:
    """The view of repair: what was asked, and answers that a test puts in."""

    def __init__(self) -> None:
        self.calls: list[Any] = []
        self.error: Exception | None = None
        self.document: JsonObject = {"health": "healthy", "copies_missing": 0}
        self.made = 0

    def passes(self) -> int:
        return self.made

    def _enter(self, call: Any) -> None:
        if self.error is not None:
            raise self.error
        self.calls.append(call)

    async def repair(self) -> JsonObject:
        self._enter("repair")
        return self.document

    async def control_repair(self, action: str) -> JsonObject:
        self._enter(action)
        return {"action": action, "nodes": []}

    async def where(self, name: str, offset: int, length: int | None, limit: int) -> JsonObject:
        self._enter((name, offset, length, limit))
        return {"volume": name, "pieces": [], "next": None}


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    """Names in lower case."""
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Connection:
    """A connection whose every byte is ours."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, data: bytes | str) -> None:
        self.writer.write(data.encode() if isinstance(data, str) else data)
        await self.writer.drain()

    async def receive(self, *, head_only: bool = False) -> Answer:
        """One answer; ConnectionError or IncompleteReadError when it doesn't come whole."""
        async with asyncio.timeout(DEADLINE_S):
            lines = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            status = int(lines[0].split(" ")[1])
            headers: dict[str, str] = {}
            for line in lines[1:-2]:
                name, _, value = line.partition(": ")
                assert name.lower() not in headers, f"{name} twice"
                headers[name.lower()] = value
            length = 0 if head_only or status in (100, 204, 304) else int(headers["content-length"])
            return Answer(status, headers, await self.reader.readexactly(length))

    async def at_eof(self) -> bool:
        """Whether the server closes now, sending nothing more."""
        async with asyncio.timeout(DEADLINE_S):
            try:
                return await self.reader.read(1) == b""
            except ConnectionError:
                return True

    async def silent(self, seconds: float = 0.15) -> bool:
        """Whether nothing comes for so long."""
        try:
            async with asyncio.timeout(seconds):
                await self.reader.read(1)
        except TimeoutError:
            return True
        return False

    def close(self) -> None:
        self.writer.close()


@dataclass
class Harness:
    volumes: FakeVolumes
    cluster: FakeCluster
    repair: FakeRepair
    metrics: Metrics
    api: Api
    server: ApiServer
    connections: list[Connection] = field(default_factory=list)

    async def connect(self) -> Connection:
        connection = Connection(*await asyncio.open_connection("127.0.0.1", self.server.port, limit=1 << 20))
        self.connections.append(connection)
        return connection

    async def request(
        self,
        method: str,
        target: str,
        body: bytes | None = None,
        *,
        on: Connection | None = None,
        given: Mapping[str, str] | None = None,
        **headers: str,
    ) -> Answer:
        """One request with exact headers (underscores in their names stand for hyphens)."""
        headers.update(given or {})
        connection = on or await self.connect()
        lines = [f"{method} {target} HTTP/1.1", f"Host: {headers.pop('Host', 'node')}"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        if body is not None:
            lines.append(f"Content-Length: {len(body)}")
        await connection.send("\r\n".join(lines) + "\r\n\r\n")
        if body:
            await connection.send(body)
        return await connection.receive(head_only=method == "HEAD")

    async def json(self, method: str, target: str, document: object, **headers: str) -> Answer:
        headers["Content_Type"] = "application/json"
        return await self.request(method, target, json.dumps(document).encode(), given=headers)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait for something to become true, or fail at the deadline."""
        async with asyncio.timeout(DEADLINE_S):
            while not condition():  # noqa: ASYNC110  # what is waited for is state of the server, which has no event for tests
                await asyncio.sleep(0.005)


async def start(token: str | None, max_connections: int = MAX_CONNECTIONS) -> Harness:
    volumes, cluster, repair, metrics = FakeVolumes(), FakeCluster(), FakeRepair(), Metrics()
    api = Api(
        volumes=volumes,
        cluster=cluster,
        repair=repair,
        metrics=metrics,
        token=BearerToken(token) if token is not None else None,
        hosts=ApiHosts(("n1.example.org",)),
        release="0.0.test",
    )
    server = ApiServer(api, max_connections)
    await server.start("127.0.0.1", 0)
    return Harness(volumes, cluster, repair, metrics, api, server)


async def stop(harness: Harness) -> None:
    for connection in harness.connections:
        connection.close()
    await harness.server.close(1.0)
    for connection in harness.connections:
        with contextlib.suppress(OSError):  # the server broke it, as the test wanted
            await connection.writer.wait_closed()


@pytest.fixture
async def http() -> AsyncIterator[Harness]:
    """An API without a token."""
    harness = await start(None)
    yield harness
    await stop(harness)


@pytest.fixture
async def guarded() -> AsyncIterator[Harness]:
    """An API whose token is ``s3cret``."""
    harness = await start("s3cret")
    yield harness
    await stop(harness)


@pytest.fixture
async def narrow() -> AsyncIterator[Harness]:
    """An API that takes three connections."""
    harness = await start(None, max_connections=3)
    yield harness
    await stop(harness)
