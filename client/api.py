"""`Holdfast`: a cluster's volumes and state from Python.

Each method is one request of the HTTP API, made on whichever endpoint answers. A request whose first attempt got lost is
repeated where that is harmless; where the repetition's answer cannot tell what became of the first one (a conditional
PUT that now fails its condition, a create that now finds a volume, anything that meets a full disk or a wrong token) the caller
gets `OutcomeUnknown`, never a guess.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import quote

from client.content import Content, quoted_etag
from client.endpoints import endpoints_from_environment
from client.errors import Conflict, ContentChanged, HoldfastError, Invalid, NotFound, OutcomeUnknown
from client.file_sink import FileSink
from client.retry import RetryPolicy
from client.sources import Source, SourceLike, as_source
from client.transport import Call, Progress, Transport
from client.volume import Volume

TOKEN_VARIABLE = "HOLDFAST_API_TOKEN"  # noqa: S105 - the name of a variable, not a token

RESTARTS = 3
"""Times that a download into memory or a file begins anew because the volume changed under it while a gateway was lost."""

PAGE_LIMIT = 1000
"""Volumes asked for at once by `Holdfast.list`."""

DownloadProgress = Callable[[int, int], None]
"""Called with bytes so far and bytes in all."""


@dataclass(frozen=True, slots=True)
class VolumePage:
    """Some volumes in order of their names; ``next`` is the ``after`` of the following page, None at the end."""

    volumes: tuple[Volume, ...]
    next: str | None


class Holdfast:
    """One cluster, seen from outside. Use as an async context manager; any number of calls may run at once.

    ``endpoints`` default to ``HOLDFAST_ENDPOINTS`` (comma-separated) or http://127.0.0.1:7480, ``token`` to
    ``HOLDFAST_API_TOKEN``. ``tls`` is an SSL context for https endpoints whose certificates the system does not know.
    All methods raise the errors of `client.errors`.
    """

    def __init__(
        self,
        endpoints: Sequence[str] | str | None = None,
        *,
        token: str | None = None,
        policy: RetryPolicy | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        if isinstance(endpoints, str):
            endpoints = endpoints.split(",")
        self._transport = Transport(
            endpoints or endpoints_from_environment(),
            token=token if token is not None else os.environ.get(TOKEN_VARIABLE),
            policy=policy,
            tls=tls,
        )

    async def __aenter__(self) -> Holdfast:
        await self._transport.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._transport.__aexit__(kind, error, trace)

    @property
    def endpoints(self) -> tuple[str, ...]:
        return self._transport.endpoints.urls

    # volumes

    async def create(
        self,
        name: str,
        size: int,
        *,
        chunk_size: int | None = None,
        replicas: int | None = None,
        durability: str | None = None,
    ) -> Volume:
        """A new, empty volume of ``size`` bytes; it reads as zeroes and takes no space. `Conflict` when it exists.

        `OutcomeUnknown` when an attempt got lost and there now is a volume of that name, whatever it is like: it may be that
        attempt's, changed since.
        """
        asked = {
            key: value
            for key, value in {
                "name": name,
                "size": size,
                "chunk_size": chunk_size,
                "replicas": replicas,
                "durability": durability,
            }.items()
            if value is not None
        }
        answer = await self._transport.call(Call("POST", "/v1/volumes", document=asked, fresh_connection=True))
        if answer.doubtful and isinstance(answer.error, Conflict):
            raise OutcomeUnknown(
                f"whether this call created the volume {name!r} is unknown: an attempt got lost, and "
                + await self._found(name, asked),
                status=answer.error.status,
                details=answer.error.details,
            )
        return Volume.from_json(answer.document(f"this call created the volume {name!r}"))

    async def _found(self, name: str, asked: Mapping[str, Any]) -> str:
        """What there is where an attempt to create a volume got lost and the next one met a volume, in words."""
        try:
            found = await self.show(name)
        except NotFound:
            return "the volume that the next one met is gone again"
        except HoldfastError as error:
            return f"what there is now could not be found out: {error.message}"
        others = [f"{key} {found.raw.get(key)}" for key, value in asked.items() if found.raw.get(key) != value]
        if others:
            return f"the volume that there is now has {', '.join(others)}: it is somebody else's, or was changed since"
        return "it exists as asked for; if nobody else creates volumes of that name, this call did"

    async def show(self, name: str) -> Volume:
        return Volume.from_json((await self._transport.call(Call("GET", _path(name)))).document())

    async def list_page(self, *, prefix: str = "", after: str = "", limit: int = PAGE_LIMIT) -> VolumePage:
        """Up to ``limit`` volumes whose names begin with ``prefix`` and come after ``after``."""
        query = {"limit": str(limit), **({"prefix": prefix} if prefix else {}), **({"after": after} if after else {})}
        document = (await self._transport.call(Call("GET", "/v1/volumes", query=query))).document()
        return VolumePage(tuple(Volume.from_json(item) for item in document["volumes"]), document.get("next"))

    async def list(self, *, prefix: str = "") -> AsyncIterator[Volume]:
        """All volumes whose names begin with ``prefix``, in order, page by page."""
        after: str | None = ""
        while after is not None:
            page = await self.list_page(prefix=prefix, after=after)
            for volume in page.volumes:
                yield volume
            after = page.next

    async def resize(self, name: str, size: int, *, if_match: str | None = None) -> Volume:
        """Grow a volume to ``size`` bytes; the new part reads as zeroes. Volumes never shrink: `Invalid`."""
        call = Call(
            "PATCH",
            _path(name),
            document={"size": size},
            headers=_conditions(if_match, None),
            fresh_connection=if_match is not None,
        )
        answer = await self._transport.call(call)
        return Volume.from_json(answer.document(f"the volume {name!r} was resized"))

    async def delete(self, name: str, *, if_match: str | None = None) -> None:
        """Remove a volume. `NotFound` when there is none, unless an attempt of this call got lost and may have done it: then it is gone, as
        asked for. With ``if_match`` that is `OutcomeUnknown`: somebody else may have removed that very version."""
        headers = _conditions(if_match, None)
        answer = await self._transport.call(
            Call("DELETE", _path(name), headers=headers, fresh_connection=if_match is not None)
        )
        if answer.doubtful and isinstance(answer.error, NotFound) and if_match is None:
            return  # it was there or it wasn't; now it is gone, which is what was asked for
        answer.check(f"this call removed the volume {name!r}")

    # content

    async def put(
        self,
        name: str,
        content: SourceLike,
        *,
        length: int | None = None,
        if_match: str | None = None,
        if_none_match: str | None = None,
        chunk_size: int | None = None,
        replicas: int | None = None,
        on_progress: Progress | None = None,
    ) -> Volume:
        """Make ``content`` the whole content of a volume, which is created when absent; its size becomes the content's.

        ``content`` is bytes, a `pathlib.Path`, an open binary file or an async iterable; of the first three ``length`` bytes
        are taken when given, an iterable must give exactly that many. Readers see the old content or all of the new.
        A source that can be read again is sent to another endpoint when one breaks; an iterable only before its first
        block was taken. ``chunk_size`` and ``replicas`` count when the volume is created.
        """
        query = {} if chunk_size is None else {"chunk_size": str(chunk_size)}
        query |= {} if replicas is None else {"replicas": str(replicas)}
        source = as_source(content, length)
        return await self._put(name, source, _conditions(if_match, if_none_match), query, on_progress)

    async def put_range(
        self,
        name: str,
        offset: int,
        content: SourceLike,
        *,
        length: int | None = None,
        if_match: str | None = None,
        on_progress: Progress | None = None,
    ) -> Volume:
        """Write ``content`` at ``offset`` bytes into an existing volume, all or nothing. The range must lie inside it."""
        source = as_source(content, length)
        if source.length is None:
            raise Invalid("a range needs a known length: say how many bytes to write")
        if source.length < 1 or offset < 0:
            raise Invalid("a range begins at 0 or later and has at least one byte")
        headers = {
            **_conditions(if_match, None),
            "Content-Range": f"bytes {offset}-{offset + source.length - 1}/*",
        }
        return await self._put(name, source, headers, {}, on_progress)

    async def _put(
        self, name: str, source: Source, headers: Mapping[str, str], query: Mapping[str, str], progress: Progress | None
    ) -> Volume:
        call = Call(
            "PUT",
            _path(name, "/data"),
            query=query,
            headers=headers,
            body=source,
            on_progress=progress,
            fresh_connection=bool({"If-Match", "If-None-Match"} & headers.keys()) or not source.rewindable,
        )
        answer = await self._transport.call(call)
        return Volume.from_json(answer.document(f"the volume {name!r} was written"))

    def open(self, name: str, *, offset: int = 0, length: int | None = None, if_match: str | None = None) -> Content:
        """A stream of a volume's bytes from ``offset`` (``length`` of them, or to the end): see `Content`."""
        return Content(self._transport, _path(name, "/data"), offset=offset, length=length, if_match=if_match)

    async def get(self, name: str, *, if_match: str | None = None) -> bytes:
        """The whole content in memory."""
        return await self._get(name, 0, None, if_match)

    async def get_range(self, name: str, offset: int, length: int, *, if_match: str | None = None) -> bytes:
        """``length`` bytes from ``offset``, fewer where the volume ends. `RangeNotSatisfiable` from its end on."""
        return await self._get(name, offset, length, if_match)

    async def _get(self, name: str, offset: int, length: int | None, if_match: str | None) -> bytes:
        for restart in range(RESTARTS + 1):
            try:
                async with self.open(name, offset=offset, length=length, if_match=if_match) as content:
                    data = bytearray()
                    async for piece in content:
                        data += piece
                    return bytes(data)
            except ContentChanged:
                if restart == RESTARTS:
                    raise
        raise AssertionError("the last restart returns or raises")

    async def get_file(
        self,
        name: str,
        path: str | os.PathLike[str],
        *,
        offset: int = 0,
        length: int | None = None,
        if_match: str | None = None,
        on_progress: DownloadProgress | None = None,
    ) -> int:
        """Write a volume's content to a file, which appears when it is whole, and return its bytes. Zeroes become holes."""
        sink: FileSink | None = None
        try:
            for restart in range(RESTARTS + 1):
                try:
                    async with self.open(name, offset=offset, length=length, if_match=if_match) as content:
                        sink = sink or FileSink(Path(path))
                        async for piece in content:
                            await sink.write(piece)
                            if on_progress is not None:
                                on_progress(content.position, content.length)
                        await sink.commit()
                        return content.length
                except ContentChanged:
                    if restart == RESTARTS or sink is None or not sink.can_restart:
                        raise
                    await sink.restart()
        finally:
            if sink is not None:
                sink.discard()
        raise AssertionError("the last restart returns or raises")

    # the cluster

    async def status(self) -> dict[str, Any]:
        """``GET /v1/cluster``: what the answering node knows of the whole."""
        return await self._document("GET", "/v1/cluster")

    async def nodes(self) -> dict[str, Any]:
        return await self._document("GET", "/v1/nodes")

    async def jobs(self) -> dict[str, Any]:
        return await self._document("GET", "/v1/jobs")

    async def layout(self) -> dict[str, Any]:
        return await self._document("GET", "/v1/layout")

    async def plan_layout(self, changes: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Stage `changes`, if any, and tell what the next layout would be and move. Applies nothing."""
        return await self._document("POST", "/v1/layout/plan", dict(changes or {}))

    async def apply_layout(self, version: int, plan: str | None = None) -> dict[str, Any]:
        """Make the planned layout ``version`` the cluster's. ``plan``: the fingerprint that `plan_layout` gave, so that no other plan of
        this version is applied. `Conflict` when another is due."""
        return await self._once("/v1/layout/apply", {"version": version} | ({} if plan is None else {"plan": plan}))

    async def abort_layout(self) -> dict[str, Any]:
        """Drop what is staged, or the change under way where it can still be taken back."""
        return await self._once("/v1/layout/abort", {})

    # repair

    async def repair(self) -> dict[str, Any]:
        """``GET /v1/repair``: copies missing, what differs, rate and ETA, of the cluster and of each node."""
        return await self._document("GET", "/v1/repair")

    async def repair_run(self, *, scrub: bool = False) -> dict[str, Any]:
        """Make all nodes compare their copies now, and with ``scrub`` read and verify everything they hold, too. Returns at
        once; ``nodes`` in the answer says which of them heard it."""
        return await self._document("POST", "/v1/repair/run", {"scrub": scrub})

    async def repair_pause(self) -> dict[str, Any]:
        """Let repair and scrub rest on all nodes, also when they are started anew, until `repair_resume`."""
        return await self._document("POST", "/v1/repair/pause", {})

    async def repair_resume(self) -> dict[str, Any]:
        return await self._document("POST", "/v1/repair/resume", {})

    async def where_page(
        self, name: str, *, offset: int = 0, length: int | None = None, limit: int | None = None
    ) -> dict[str, Any]:
        """One page of `where`, with the volume's ``etag``; ``next`` is where the following one begins, None at the end."""
        query = {"offset": str(offset)}
        query |= {} if length is None else {"length": str(length)}
        query |= {} if limit is None else {"limit": str(limit)}
        answer = (await self._transport.call(Call("GET", _path(name, "/where"), query=query))).document()
        assert isinstance(answer, dict)
        return answer

    async def where(self, name: str, *, offset: int = 0, length: int | None = None) -> AsyncIterator[dict[str, Any]]:
        """Where the bytes of a volume lie, piece by piece: ``offset``, ``length``, ``chunk``, and the nodes that should hold it
        (``due``), do (``held_by``), or did not answer (``unknown``). Holes have no piece."""
        end = None if length is None else offset + length
        at: int | None = offset
        while at is not None:
            page = await self.where_page(name, offset=at, length=None if end is None else end - at)
            for piece in page["pieces"]:
                yield piece
            at = page.get("next")

    async def _document(self, method: str, path: str, document: Any = None) -> dict[str, Any]:
        answer = (await self._transport.call(Call(method, path, document=document))).document()
        return answer if isinstance(answer, dict) else {"items": answer}

    async def _once(self, path: str, document: Any) -> dict[str, Any]:
        answer = await self._transport.call(Call("POST", path, document=document, fresh_connection=True))
        what = "the layout was changed (`holdfast layout show` has it)"
        answer.check(what)
        parsed = answer.document(what) if answer.body else {}
        return parsed if isinstance(parsed, dict) else {"items": parsed}


def _path(name: str, rest: str = "") -> str:
    if not name:
        raise Invalid("a volume needs a name")
    return f"/v1/volumes/{quote(name, safe='')}{rest}"


def _conditions(if_match: str | None, if_none_match: str | None) -> dict[str, str]:
    """The headers; an ETag may be given with or without its quotes."""
    given = {"If-Match": if_match, "If-None-Match": if_none_match}
    return {name: quoted_etag(value) for name, value in given.items() if value is not None}
