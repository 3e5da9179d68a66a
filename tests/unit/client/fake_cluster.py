"""Some gateways over one set of volumes, in this process, that fail in the ways that real ones do."""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

Hook = Callable[[web.Request], Awaitable[web.StreamResponse | None]]


@dataclass
class StoredVolume:
    name: str
    data: bytes
    generation: int = 1

    @property
    def etag(self) -> str:
        return f'"{self.generation}-{hashlib.sha256(self.data).hexdigest()[:8]}"'

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "size": len(self.data),
            "etag": self.etag.strip('"'),  # as a real node: quotes belong to the header
            "chunk_size": 4194304,
            "replicas": 3,
            "durability": "fsync",
            "generation": self.generation,
            "created_at": "2026-01-01T00:00:00Z",
            "modified_at": "2026-01-01T00:00:00Z",
            "sharding": {"D": len(self.data), "S": 4194304, "P": 1},
        }


def problem(status: int, code: str, detail: str, headers: dict[str, str] | None = None, **more: Any) -> web.Response:
    document = {
        "type": f"https://holdfast.dev/problems/{code}",
        "title": code,
        "status": status,
        "detail": detail,
        **more,
    }
    return web.json_response(document, status=status, headers=headers, content_type="application/problem+json")


@dataclass
class Gateway:
    """One endpoint. ``before`` hooks run once each, in order, before a request is handled; an answer from one is final."""

    cluster: FakeCluster
    port: int = 0
    requests: list[str] = field(default_factory=list)
    before: list[Hook] = field(default_factory=list)
    after: list[Hook] = field(default_factory=list)
    cut_get_after: int | None = None
    runner: web.AppRunner | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def start(self) -> None:
        app = web.Application(client_max_size=1 << 30)
        app.router.add_route("*", "/{path:.*}", self._handle, expect_handler=self._expect)
        self.runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self.runner.setup()
        site = web.TCPSite(self.runner, "127.0.0.1", self.port)
        await site.start()
        assert site._server is not None
        self.port = site._server.sockets[0].getsockname()[1]  # type: ignore[attr-defined]

    async def stop(self) -> None:
        if self.runner is not None:
            await self.runner.cleanup()
            self.runner = None

    async def _expect(self, request: web.Request) -> None:
        """100 is sent when a handler wants the body, not before."""

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(f"{request.method} {request.path}")
        if self.before and (answer := await self.before.pop(0)(request)) is not None:
            return answer
        if self.cluster.token and request.headers.get("Authorization") != f"Bearer {self.cluster.token}":
            return problem(401, "unauthorized", "a token is needed", {"WWW-Authenticate": "Bearer"})
        answer = await self._route(request)
        if self.after and (other := await self.after.pop(0)(request)) is not None:
            return other
        return answer

    async def _route(self, request: web.Request) -> web.StreamResponse:
        volumes = self.cluster.volumes
        if request.path in self.cluster.documents:
            if request.method == "POST":
                self.cluster.posted.append((request.path, await request.json()))
            return web.json_response(self.cluster.documents[request.path])
        if request.path == "/v1/volumes" and request.method == "POST":
            document = await request.json()
            if document["name"] in volumes:
                return problem(409, "conflict", f"the volume {document['name']} exists")
            volumes[document["name"]] = StoredVolume(document["name"], bytes(document["size"]))
            return web.json_response(volumes[document["name"]].to_json(), status=201)
        if request.path == "/v1/volumes":
            limit, after = int(request.query.get("limit", "2")), request.query.get("after", "")
            names = sorted(n for n in volumes if n > after and n.startswith(request.query.get("prefix", "")))
            page = names[: min(limit, 2)]
            following = page[-1] if len(names) > len(page) else None
            return web.json_response({"volumes": [volumes[name].to_json() for name in page], "next": following})
        match = re.fullmatch(r"/v1/volumes/(.+?)(/data)?", request.path)
        assert match is not None, request.path
        name, data = match.groups()
        volume = volumes.get(name)
        if data and request.method == "PUT":
            return await self._put(request, name, volume)
        if volume is None:
            return problem(404, "not-found", f"there is no volume {name!r}")
        if (wanted := request.headers.get("If-Match")) not in {None, "*", volume.etag}:
            return problem(412, "conflict", f"the volume is at {volume.etag}, not {wanted}")
        if data:
            return await self._get(request, volume)
        if request.method == "PATCH":
            size = (await request.json())["size"]
            volume.data += bytes(size - len(volume.data))
        if request.method == "DELETE":
            del volumes[name]
            return web.Response(status=204)
        return web.json_response(volume.to_json())

    async def _put(self, request: web.Request, name: str, volume: StoredVolume | None) -> web.StreamResponse:
        if request.headers.get("If-None-Match") == "*" and volume is not None:
            return problem(412, "conflict", "it exists")
        if (wanted := request.headers.get("If-Match")) is not None and (volume is None or wanted != volume.etag):
            return problem(412, "conflict", "another version")
        if request.headers.get("Expect"):
            self.cluster.continued += 1
            assert request.transport is not None
            request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = await request.read()
        ranged = re.fullmatch(r"bytes (\d+)-(\d+)/\*", request.headers.get("Content-Range", ""))
        if ranged is not None:
            first, last = int(ranged[1]), int(ranged[2])
            if volume is None:
                return problem(404, "not-found", "no such volume")
            if last >= len(volume.data):
                return problem(416, "invalid", "resize first", {"Content-Range": f"bytes */{len(volume.data)}"})
            body = volume.data[:first] + body + volume.data[last + 1 :]
        generation = 1 if volume is None else volume.generation + 1
        self.cluster.volumes[name] = StoredVolume(name, body, generation)
        return web.json_response(self.cluster.volumes[name].to_json(), status=201 if volume is None else 200)

    async def _get(self, request: web.Request, volume: StoredVolume) -> web.StreamResponse:
        data, status, headers = volume.data, 200, {"ETag": volume.etag}
        if (wanted := re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("Range", ""))) is not None:
            first, last = int(wanted[1]), min(int(wanted[2] or len(data) - 1), len(data) - 1)
            if first > last:
                return problem(416, "invalid", "outside", {"Content-Range": f"bytes */{len(data)}"})
            headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
            data, status = data[first : last + 1], 206
        response = web.StreamResponse(status=status, headers={**headers, "Content-Length": str(len(data))})
        await response.prepare(request)
        if self.cut_get_after is not None:
            cut, self.cut_get_after = self.cut_get_after, None
            await response.write(data[:cut])
            await asyncio.sleep(0)
            return break_connection(request, response)
        for start in range(0, len(data), 65536):
            await response.write(data[start : start + 65536])
        return response


class FakeCluster:
    """Gateways with the same volumes."""

    def __init__(self, gateways: int) -> None:
        self.volumes: dict[str, StoredVolume] = {}
        self.documents: dict[str, Any] = {}
        self.posted: list[tuple[str, Any]] = []
        self.token = ""
        self.continued = 0
        self.gateways = [Gateway(self) for _ in range(gateways)]

    @property
    def urls(self) -> list[str]:
        return [gateway.url for gateway in self.gateways]

    async def start(self) -> None:
        for gateway in self.gateways:
            await gateway.start()

    async def stop(self) -> None:
        for gateway in self.gateways:
            await gateway.stop()


def break_connection(request: web.Request, response: web.StreamResponse | None = None) -> web.StreamResponse:
    """Close the connection under the request, as a killed gateway's kernel does."""
    assert request.transport is not None
    request.transport.close() if response is not None else request.transport.abort()
    return response if response is not None else web.Response()


async def drop(request: web.Request) -> web.StreamResponse | None:
    """A hook: the gateway dies."""
    return break_connection(request)


def refuse(status: int, code: str, **more: Any) -> Hook:
    """A hook: the gateway says no."""

    async def hook(request: web.Request) -> web.StreamResponse | None:
        return problem(status, code, f"refused: {code}", **more)

    return hook
