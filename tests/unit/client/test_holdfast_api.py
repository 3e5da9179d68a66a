"""The client library against gateways that die, refuse, stall and lie."""

from __future__ import annotations

import asyncio
import io
import os
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from io import FileIO
from pathlib import Path

import pytest
from aiohttp import web

from client import Holdfast, transport
from client.errors import (
    Conflict,
    ContentChanged,
    Corrupt,
    Invalid,
    NoSpace,
    NotFound,
    OutcomeUnknown,
    RangeNotSatisfiable,
    ServerFailure,
    Unauthorized,
    Unavailable,
    Unreachable,
)
from client.sources import BLOCK_SIZE, FileSource
from client.transport import Attempt, Call
from tests.unit.client.conftest import QUICK
from tests.unit.client.fake_cluster import FakeCluster, StoredVolume, break_connection, drop, refuse

BIG = os.urandom(3 * BLOCK_SIZE + 12345)


async def pieces(*blocks: bytes) -> AsyncIterator[bytes]:
    for block in blocks:
        yield block


def requests(cluster: FakeCluster) -> list[str]:
    return [line for gateway in cluster.gateways for line in gateway.requests]


async def test_volumes_from_creation_to_removal(holdfast: Holdfast, fake_cluster: FakeCluster) -> None:
    made = await holdfast.create("disk", 4096, replicas=3)
    assert (made.name, made.size, made.replicas) == ("disk", 4096, 3)
    assert (await holdfast.resize("disk", 8192)).size == 8192
    assert (await holdfast.show("disk")).size == 8192
    for name in "abcde":
        await holdfast.put(name, b"x")
    assert [volume.name async for volume in holdfast.list()] == sorted([*"abcde", "disk"])
    assert [volume.name async for volume in holdfast.list(prefix="di")] == ["disk"]
    await holdfast.delete("disk")
    with pytest.raises(NotFound):
        await holdfast.show("disk")
    with pytest.raises(NotFound):
        await holdfast.delete("disk")


async def test_names_are_quoted(holdfast: Holdfast, fake_cluster: FakeCluster) -> None:
    name = "a/../b?c#d%41"
    await holdfast.put(name, b"x")
    assert list(fake_cluster.volumes) == [name]
    assert await holdfast.get(name) == b"x"
    await holdfast.delete(name)
    with pytest.raises(Invalid, match="name"):
        await holdfast.show("")


@pytest.mark.parametrize("kind", ["bytes", "path", "handle", "bytesio", "stream", "stream-with-length"])
async def test_put_accepts_every_kind_of_source(
    holdfast: Holdfast, fake_cluster: FakeCluster, tmp_path: Path, kind: str
) -> None:
    path = tmp_path / "content"
    path.write_bytes(BIG)
    seen: list[int] = []
    with path.open("rb") as handle:
        content = {
            "bytes": BIG,
            "path": path,
            "handle": handle,
            "bytesio": io.BytesIO(BIG),
            "stream": pieces(BIG[:10], BIG[10:]),
            "stream-with-length": pieces(BIG[:10], b"", BIG[10:]),
        }[kind]
        length = len(BIG) if kind == "stream-with-length" else None
        volume = await holdfast.put("v", content, length=length, on_progress=seen.append)  # type: ignore[arg-type]
    assert volume.size == len(BIG)
    assert fake_cluster.volumes["v"].data == BIG
    assert seen[-1] == len(BIG)
    assert fake_cluster.continued == 1
    assert await holdfast.get("v") == BIG


async def test_empty_content(holdfast: Holdfast, fake_cluster: FakeCluster, tmp_path: Path) -> None:
    await holdfast.put("v", b"")
    assert await holdfast.get("v") == b""
    await holdfast.put("w", pieces())
    assert fake_cluster.volumes["w"].data == b""
    assert await holdfast.get_file("w", tmp_path / "w") == 0
    assert (tmp_path / "w").read_bytes() == b""


async def test_ranges(holdfast: Holdfast, fake_cluster: FakeCluster) -> None:
    await holdfast.put("v", b"0123456789")
    assert await holdfast.get_range("v", 2, 3) == b"234"
    assert await holdfast.get_range("v", 8, 100) == b"89"
    with pytest.raises(RangeNotSatisfiable) as outside:
        await holdfast.get_range("v", 10, 1)
    assert outside.value.details["size"] == 10
    await holdfast.put_range("v", 4, b"xy")
    assert await holdfast.get("v") == b"0123xy6789"
    with pytest.raises(RangeNotSatisfiable, match="resize"):
        await holdfast.put_range("v", 9, b"xy")
    with pytest.raises(Invalid, match="known length"):
        await holdfast.put_range("v", 0, pieces(b"x"))
    with pytest.raises(NotFound):
        await holdfast.put_range("absent", 0, b"x")


async def test_conditions(holdfast: Holdfast) -> None:
    first = await holdfast.put("v", b"1", if_none_match="*")
    with pytest.raises(Conflict):
        await holdfast.put("v", b"2", if_none_match="*")
    second = await holdfast.put("v", b"2", if_match=first.etag)
    with pytest.raises(Conflict):
        await holdfast.put("v", b"3", if_match=f'"{first.etag}"')
    with pytest.raises(Conflict):
        await holdfast.delete("v", if_match=first.etag)
    with pytest.raises(Conflict):
        await holdfast.get("v", if_match=first.etag)
    assert await holdfast.get("v", if_match=second.etag) == b"2"


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (400, "invalid", Invalid),
        (401, "unauthorized", Unauthorized),
        (404, "not-found", NotFound),
        (409, "conflict", Conflict),
        (500, "corrupt", Corrupt),
        (500, "internal", ServerFailure),
        (507, "no-space", NoSpace),
        (418, "never-heard-of", Invalid),
    ],
)
async def test_refusals_are_errors_at_once(
    holdfast: Holdfast, fake_cluster: FakeCluster, status: int, code: str, kind: type[Exception]
) -> None:
    fake_cluster.gateways[0].before.append(refuse(status, code, hint="look"))
    with pytest.raises(kind) as refused:
        await holdfast.show("v")
    assert refused.value.details["hint"] == "look"  # type: ignore[attr-defined]
    assert len(requests(fake_cluster)) == 1


async def test_an_answer_that_is_no_problem_document(holdfast: Holdfast, fake_cluster: FakeCluster) -> None:
    async def page(request: web.Request) -> web.StreamResponse:
        return web.Response(status=404, text="<html>not here</html>")

    async def nonsense(request: web.Request) -> web.StreamResponse:
        return web.Response(text="hello")

    fake_cluster.gateways[0].before.append(page)
    fake_cluster.gateways[1].before.append(nonsense)
    with pytest.raises(NotFound, match="HTTP 404"):
        await holdfast.show("v")
    with pytest.raises(ServerFailure, match="not JSON"):
        await holdfast.show("v")


async def test_token(fake_cluster: FakeCluster) -> None:
    fake_cluster.token = "open sesame"
    fake_cluster.volumes["v"] = StoredVolume("v", b"x")
    async with Holdfast(fake_cluster.urls, token="wrong", policy=QUICK) as holdfast:
        with pytest.raises(Unauthorized):
            await holdfast.get("v")
    async with Holdfast(fake_cluster.urls, token="open sesame", policy=QUICK) as holdfast:
        assert await holdfast.get("v") == b"x"


async def test_requests_rotate_and_dead_gateways_are_left_alone(holdfast: Holdfast, fake_cluster: FakeCluster) -> None:
    fake_cluster.volumes["v"] = StoredVolume("v", b"x")
    await fake_cluster.gateways[1].stop()
    for _ in range(10):
        await holdfast.show("v")
    first, _dead, last = (len(gateway.requests) for gateway in fake_cluster.gateways)
    assert first + last == 10
    assert min(first, last) >= 4


async def test_nobody_listens(fake_cluster: FakeCluster) -> None:
    await fake_cluster.stop()
    async with Holdfast(fake_cluster.urls, policy=QUICK) as holdfast:
        with pytest.raises(Unreachable, match="no endpoint can be reached"):
            await holdfast.show("v")


async def test_all_but_the_last_are_dead(fake_cluster: FakeCluster) -> None:
    fake_cluster.volumes["v"] = StoredVolume("v", b"x")
    await fake_cluster.gateways[0].stop()
    await fake_cluster.gateways[1].stop()
    async with Holdfast(fake_cluster.urls, policy=QUICK) as holdfast:
        assert await holdfast.get("v") == b"x"


async def test_unavailable_moves_on_and_gives_up_in_time(holdfast: Holdfast, fake_cluster: FakeCluster) -> None:
    fake_cluster.volumes["v"] = StoredVolume("v", b"x")
    fake_cluster.gateways[0].before.append(refuse(503, "quorum-unavailable", retryable=True))
    fake_cluster.gateways[1].before.append(refuse(503, "not-ready", retryable=True))
    assert (await holdfast.show("v")).name == "v"
    for gateway in fake_cluster.gateways:
        gateway.before = [refuse(503, "quorum-unavailable", retryable=True)] * 1000
    began = asyncio.get_running_loop().time()
    with pytest.raises(Unavailable, match="quorum-unavailable"):
        await holdfast.show("v")
    assert asyncio.get_running_loop().time() - began < QUICK.deadline_s + 1


async def test_put_is_sent_again_to_another_gateway(
    holdfast: Holdfast, fake_cluster: FakeCluster, tmp_path: Path
) -> None:
    path = tmp_path / "content"
    path.write_bytes(BIG)

    async def dies_midway(request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        await request.content.readexactly(BLOCK_SIZE // 2)
        return break_connection(request)

    fake_cluster.gateways[0].before.append(dies_midway)
    fake_cluster.gateways[1].before.append(refuse(503, "busy", retryable=True))
    await holdfast.put("v", path)
    assert fake_cluster.volumes["v"].data == BIG
    fake_cluster.gateways[0].after.append(drop)  # done, and the answer lost
    await holdfast.put("v", BIG[::-1])
    assert fake_cluster.volumes["v"].data == BIG[::-1]


@pytest.mark.parametrize("slow", ["open", "read"])
async def test_a_file_that_is_given_up_is_closed_and_nobody_reads_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slow: str
) -> None:
    path = tmp_path / "content"
    path.write_bytes(BIG)
    source = FileSource(path)

    class Slow(FileIO):
        reading = False

        def read(self, size: int | None = -1, /) -> bytes:
            self.reading = True
            time.sleep(0.1 if slow == "read" else 0.0)
            data = super().read(size)
            self.reading = False
            return data

    opened: list[Slow] = []

    def open_slowly(self: Path, mode: str) -> FileIO:
        time.sleep(0.1 if slow == "open" else 0.0)
        opened.append(Slow(self, mode))
        return opened[0]

    monkeypatch.setattr(Path, "open", open_slowly)
    blocks = source.blocks()
    first = asyncio.create_task(anext(blocks))
    await asyncio.sleep(0.05)
    first.cancel()
    await asyncio.wait([first])
    assert first.cancelled()
    await blocks.aclose()
    assert [(file.closed, file.reading) for file in opened] == [(True, False)]


async def test_what_reads_on_for_an_attempt_that_is_over_is_waited_for(tmp_path: Path) -> None:
    """Its last read would move the place from which the next attempt reads."""
    path = tmp_path / "content"
    path.write_bytes(BIG)

    class Slow(FileIO):
        def read(self, size: int | None = -1, /) -> bytes:
            time.sleep(0.1)
            return super().read(size)

    with Slow(path) as file:
        call = Call("PUT", "/", body=FileSource(file, BLOCK_SIZE + 1))
        attempt = Attempt(call)
        reading = asyncio.create_task(anext(attempt.send(60.0)))
        await asyncio.sleep(0.05)
        await attempt.close()
        assert reading.done()
        assert call.body is not None
        following = [block async for block in call.body.blocks()]
    assert b"".join(following) == BIG[: BLOCK_SIZE + 1]


async def test_stream_moves_on_only_before_its_first_byte(holdfast: Holdfast, fake_cluster: FakeCluster) -> None:
    async def dies_midway(request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        await request.content.readany()
        return break_connection(request)

    fake_cluster.gateways[0].before.append(refuse(503, "not-ready", retryable=True))
    fake_cluster.gateways[1].before.append(drop)
    await holdfast.put("v", pieces(b"once"))
    assert fake_cluster.volumes["v"].data == b"once"

    fake_cluster.gateways[0].before.append(dies_midway)
    with pytest.raises(Unavailable, match="cannot be read again"):
        await holdfast.put("v", pieces(BIG, BIG))
    assert fake_cluster.volumes["v"].data == b"once"


async def test_stream_whose_answer_is_lost_is_unknown(fake_cluster: FakeCluster) -> None:
    async with Holdfast(fake_cluster.urls[:1], policy=QUICK) as holdfast:
        fake_cluster.gateways[0].after.append(drop)
        with pytest.raises(OutcomeUnknown):
            await holdfast.put("v", pieces(b"once"))


async def test_lost_answers_of_conditional_writes_are_unknown(holdfast: Holdfast, fake_cluster: FakeCluster) -> None:
    first = await holdfast.put("v", b"1")
    for gateway in fake_cluster.gateways[1:2]:
        gateway.after.append(drop)
    with pytest.raises(OutcomeUnknown):
        await holdfast.put("v", b"2", if_match=first.etag)
    assert fake_cluster.volumes["v"].data == b"2"

    for gateway in fake_cluster.gateways:  # lost before anything was done: the repetition tells
        gateway.before, gateway.after = [], []
    now = await holdfast.show("v")
    fake_cluster.gateways[0].before.append(drop)
    fake_cluster.gateways[1].before.append(drop)
    assert (await holdfast.put("v", b"3", if_match=now.etag)).size == 1


async def test_unknown_outcome_of_a_plain_put_is_settled_by_repeating(
    holdfast: Holdfast, fake_cluster: FakeCluster
) -> None:
    fake_cluster.gateways[0].before.append(refuse(503, "outcome-unknown", retryable=True))
    assert (await holdfast.put("v", b"x")).size == 1
    for gateway in fake_cluster.gateways:
        gateway.before = [refuse(503, "outcome-unknown", retryable=True)] * 1000
    with pytest.raises(OutcomeUnknown):
        await holdfast.put("v", b"y")


async def test_lost_answers_of_create_and_delete(holdfast: Holdfast, fake_cluster: FakeCluster) -> None:
    fake_cluster.gateways[0].after.append(drop)
    with pytest.raises(OutcomeUnknown, match="exists as asked for"):
        await holdfast.create("v", 4096)
    fake_cluster.volumes["w"] = StoredVolume("w", b"other")
    for gateway in fake_cluster.gateways:
        gateway.before = [drop]
    with pytest.raises(OutcomeUnknown, match="has size 5: it is somebody else's, or was changed since"):
        await holdfast.create("w", 4096)
    for gateway in fake_cluster.gateways:
        gateway.before, gateway.after = [], [drop]
    await holdfast.delete("v")
    assert "v" not in fake_cluster.volumes
    for gateway in fake_cluster.gateways:
        gateway.after = [drop]
    etag = fake_cluster.volumes["w"].etag
    with pytest.raises(
        OutcomeUnknown, match="whether this call removed"
    ):  # somebody else may have removed that version
        await holdfast.delete("w", if_match=etag)
    assert "w" not in fake_cluster.volumes


@pytest.mark.parametrize("kept", [True, False])
async def test_a_volume_that_cannot_be_looked_at_leaves_its_creation_unknown(
    holdfast: Holdfast, fake_cluster: FakeCluster, *, kept: bool
) -> None:
    async def then_look(request: web.Request) -> web.StreamResponse | None:
        if kept:
            for gateway in fake_cluster.gateways:
                gateway.before.append(refuse(401, "unauthorized"))
        else:
            fake_cluster.volumes.clear()
        return None

    fake_cluster.gateways[0].after.append(drop)
    fake_cluster.gateways[1].after.append(then_look)
    with pytest.raises(OutcomeUnknown, match="refused: unauthorized" if kept else "gone again"):
        await holdfast.create("v", 4096)


REFUSALS = {
    507: "no-space",
    400: "invalid",
    401: "unauthorized",
    416: "range-not-satisfiable",
    409: "conflict",
    404: "not-found",
    500: "internal",
}
CHANGES = ("create", "put", "put_range", "resize", "delete", "apply_layout", "repair_pause")
SETTLED = {("create", 409), ("delete", 404)}
"""What is there is looked at; gone is gone: `test_lost_answers_of_create_and_delete`."""


@pytest.mark.parametrize(
    ("what", "status"),
    [(what, status) for what in CHANGES for status in REFUSALS if (what, status) not in SETTLED],
)
async def test_a_refusal_behind_a_lost_attempt_is_no_definite_no(
    holdfast: Holdfast, fake_cluster: FakeCluster, what: str, status: int
) -> None:
    """The first gateway does what it is asked and dies; what the next one says of itself says nothing about that."""
    code = REFUSALS[status]
    fake_cluster.documents = {"/v1/layout/apply": {}, "/v1/repair/pause": {}}
    if what != "create":
        fake_cluster.volumes["v"] = StoredVolume("v", b"old content")
    calls: dict[str, Callable[[], Awaitable[object]]] = {
        "create": lambda: holdfast.create("v", 4096),
        "put": lambda: holdfast.put("v", BIG),
        "put_range": lambda: holdfast.put_range("v", 4, b"new"),
        "resize": lambda: holdfast.resize("v", 8192),
        "delete": lambda: holdfast.delete("v"),
        "apply_layout": lambda: holdfast.apply_layout(7),
        "repair_pause": holdfast.repair_pause,
    }
    fake_cluster.gateways[0].after.append(drop)
    fake_cluster.gateways[1].before.append(refuse(status, code))
    with pytest.raises(OutcomeUnknown, match=f"is unknown: .*refused: {code}") as caught:
        await calls[what]()
    assert caught.value.status == status
    assert len(requests(fake_cluster)) == 2


async def test_a_lost_attempt_that_took_effect_is_no_full_disk(holdfast: Holdfast, fake_cluster: FakeCluster) -> None:
    async def swallows(request: web.Request) -> web.StreamResponse | None:
        assert request.transport is not None
        request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        fake_cluster.volumes["v"] = StoredVolume("v", await request.read())
        return break_connection(request)

    fake_cluster.gateways[0].before.append(swallows)
    fake_cluster.gateways[1].before.append(refuse(507, "no-space"))
    with pytest.raises(OutcomeUnknown, match="refused: no-space"):
        await holdfast.put("v", BIG)
    assert fake_cluster.volumes["v"].data == BIG
    for gateway in fake_cluster.gateways:  # without a lost attempt it stays what it is
        gateway.before = [refuse(507, "no-space")]
    with pytest.raises(NoSpace):
        await holdfast.put("v", BIG)


async def test_a_source_that_breaks_behind_a_lost_attempt_leaves_the_outcome_unknown(
    holdfast: Holdfast, fake_cluster: FakeCluster, tmp_path: Path
) -> None:
    path = tmp_path / "shrinking"
    path.write_bytes(BIG)

    async def shrink_and_drop(request: web.Request) -> web.StreamResponse | None:
        os.truncate(path, BLOCK_SIZE)
        return break_connection(request)

    fake_cluster.gateways[0].after.append(shrink_and_drop)
    with pytest.raises(OutcomeUnknown, match="was it cut while it was read"):
        await holdfast.put("v", path)
    assert fake_cluster.volumes["v"].data == BIG


async def test_a_stream_that_goes_on_behind_its_length_may_have_been_stored(
    holdfast: Holdfast, fake_cluster: FakeCluster
) -> None:
    stored = asyncio.Event()

    async def tell(request: web.Request) -> web.StreamResponse | None:
        stored.set()
        await asyncio.sleep(3600)  # the answer never gets there
        return None

    async def too_long() -> AsyncIterator[bytes]:
        yield b"12345"
        await stored.wait()
        yield b"6"

    fake_cluster.gateways[0].after.append(tell)
    with pytest.raises(OutcomeUnknown, match="more than the 5 bytes"):
        await holdfast.put("v", too_long(), length=5)
    assert fake_cluster.volumes["v"].data == b"12345"


async def test_an_answer_of_another_server_behind_a_lost_attempt_leaves_the_outcome_unknown(
    fake_cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def page(request: web.Request) -> web.StreamResponse | None:
        return web.Response(body=b"<html>" * 1000)

    for limit, words in ((1000, "more than 1000 bytes"), (10_000, "is not JSON")):
        monkeypatch.setattr(transport, "DOCUMENT_LIMIT", limit)
        for gateway in fake_cluster.gateways:
            gateway.before, gateway.after = [], []
        async with Holdfast(fake_cluster.urls, policy=QUICK) as holdfast:
            fake_cluster.gateways[0].after = [drop]
            fake_cluster.gateways[1].before = [page]
            with pytest.raises(OutcomeUnknown, match=words):
                await holdfast.put("v", b"x")


async def test_sources_that_change_are_not_stored(
    holdfast: Holdfast, fake_cluster: FakeCluster, tmp_path: Path
) -> None:
    with pytest.raises(Invalid, match="ended after"):
        await holdfast.put("v", pieces(b"123"), length=5)
    with pytest.raises(Invalid, match="more than"):
        await holdfast.put("v", pieces(b"123", b"456"), length=5)
    path = tmp_path / "shrinking"
    path.write_bytes(BIG)

    def shrink(done: int) -> None:
        os.truncate(path, BLOCK_SIZE)

    with pytest.raises(Invalid, match="was it cut"):
        await holdfast.put("v", path, on_progress=shrink)
    with pytest.raises(Invalid, match="fewer than"):
        await holdfast.put("v", path, length=BLOCK_SIZE + 1)
    with pytest.raises(Invalid, match="directory"):
        await holdfast.put("v", tmp_path)
    with pytest.raises(Invalid, match="No such file"):
        await holdfast.put("v", tmp_path / "absent")
    with pytest.raises(TypeError):
        await holdfast.put("v", "text")  # type: ignore[arg-type]
    assert "v" not in fake_cluster.volumes


async def test_source_that_raises_is_the_callers_own_error(holdfast: Holdfast, fake_cluster: FakeCluster) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield b"some"
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        await holdfast.put("v", broken())
    assert "v" not in fake_cluster.volumes


@pytest.mark.parametrize("cut", [0, 1, 65536, len(BIG) - 1])
async def test_get_goes_on_where_it_broke(
    holdfast: Holdfast, fake_cluster: FakeCluster, tmp_path: Path, cut: int
) -> None:
    fake_cluster.volumes["v"] = StoredVolume("v", BIG)
    for gateway in fake_cluster.gateways[:2]:
        gateway.cut_get_after = cut
    assert await holdfast.get("v") == BIG
    assert len(requests(fake_cluster)) >= 2
    for gateway in fake_cluster.gateways[:2]:
        gateway.cut_get_after = cut
    assert await holdfast.get_file("v", tmp_path / "copy", offset=1) == len(BIG) - 1
    assert (tmp_path / "copy").read_bytes() == BIG[1:]


async def test_get_never_mixes_versions(holdfast: Holdfast, fake_cluster: FakeCluster, tmp_path: Path) -> None:
    old, new = bytes(200_000), b"n" * 300_000
    fake_cluster.volumes["v"] = StoredVolume("v", old)
    fake_cluster.gateways[0].cut_get_after = 100_000
    received = bytearray()

    async def read() -> None:
        async with holdfast.open("v") as content:
            fake_cluster.volumes["v"] = StoredVolume("v", new, generation=2)
            async for piece in content:
                received.extend(piece)

    with pytest.raises(ContentChanged, match="read it again"):
        await read()
    assert received == old[: len(received)]

    fake_cluster.volumes["v"] = StoredVolume("v", old)
    for gateway in fake_cluster.gateways:
        gateway.cut_get_after = 100_000

    def replace(done: int, total: int) -> None:
        fake_cluster.volumes["v"] = StoredVolume("v", new, generation=2)

    await holdfast.get_file("v", tmp_path / "copy", on_progress=replace)  # starts again by itself
    assert (tmp_path / "copy").read_bytes() == new


async def test_get_refuses_answers_about_something_else(holdfast: Holdfast, fake_cluster: FakeCluster) -> None:
    async def whole(request: web.Request) -> web.StreamResponse:
        return web.Response(body=b"0123456789", headers={"ETag": '"1"'})

    async def no_etag(request: web.Request) -> web.StreamResponse:
        return web.Response(body=b"0123456789")

    async def shifted(request: web.Request) -> web.StreamResponse:
        return web.Response(status=206, body=b"12", headers={"ETag": '"1"', "Content-Range": "bytes 1-2/10"})

    for answer, offset, length in ((whole, 2, 3), (no_etag, 0, None), (shifted, 2, 2)):
        for gateway in fake_cluster.gateways:
            gateway.before = [answer]
        with pytest.raises(ServerFailure):
            async with holdfast.open("v", offset=offset, length=length):
                pass


async def test_a_stalled_gateway_is_left(holdfast: Holdfast, fake_cluster: FakeCluster) -> None:
    released = asyncio.Event()

    async def stall(request: web.Request) -> web.StreamResponse | None:
        await released.wait()
        return None

    fake_cluster.volumes["v"] = StoredVolume("v", b"x")
    for gateway in fake_cluster.gateways[:2]:
        gateway.before.append(stall)
    try:
        assert await holdfast.get("v") == b"x"
        await holdfast.put("w", BIG)
        assert fake_cluster.volumes["w"].data == BIG
    finally:
        released.set()


async def test_a_receiver_that_takes_nothing_more_is_left_but_a_slow_source_is_not() -> None:
    """A plain socket that reads the request's head and then never again: the kernel's buffers fill up."""
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"

    async def slow() -> AsyncIterator[bytes]:
        await asyncio.sleep(1.5 * QUICK.idle_timeout_s)
        yield b"late"

    try:
        async with Holdfast([url], policy=QUICK) as holdfast:
            with pytest.raises(Unavailable):
                await holdfast.put("v", b"x" * (16 << 20))
    finally:
        listener.close()
    cluster = FakeCluster(1)
    await cluster.start()
    try:
        async with Holdfast(cluster.urls, policy=QUICK) as holdfast:
            await holdfast.put("v", slow())
            assert cluster.volumes["v"].data == b"late"
    finally:
        await cluster.stop()


async def test_get_file_appears_whole_or_not_at_all(
    holdfast: Holdfast, fake_cluster: FakeCluster, tmp_path: Path
) -> None:
    target = tmp_path / "copy"
    target.write_bytes(b"before")
    target.chmod(0o640)
    with pytest.raises(NotFound):
        await holdfast.get_file("v", target)
    fake_cluster.volumes["v"] = StoredVolume("v", BIG)

    def look(done: int, total: int) -> None:
        assert target.read_bytes() == b"before"
        assert total == len(BIG)

    await holdfast.get_file("v", target, on_progress=look)
    assert target.read_bytes() == BIG
    assert target.stat().st_mode & 0o777 == 0o640

    def interrupt(done: int, total: int) -> None:
        raise KeyError("stop")

    with pytest.raises(KeyError):
        await holdfast.get_file("v", target, on_progress=interrupt)
    assert os.listdir(tmp_path) == ["copy"]


async def test_zeroes_become_holes(holdfast: Holdfast, fake_cluster: FakeCluster, tmp_path: Path) -> None:
    data = bytes(2 * BLOCK_SIZE) + b"end" + bytes(4 * BLOCK_SIZE)
    fake_cluster.volumes["v"] = StoredVolume("v", data)
    await holdfast.get_file("v", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == data
    assert (tmp_path / "copy").stat().st_blocks * 512 <= 2 * BLOCK_SIZE


async def test_get_into_a_pipe(holdfast: Holdfast, fake_cluster: FakeCluster, tmp_path: Path) -> None:
    fake_cluster.volumes["v"] = StoredVolume("v", b"through a pipe")
    os.mkfifo(tmp_path / "pipe")
    reading = asyncio.create_task(asyncio.to_thread((tmp_path / "pipe").read_bytes))
    await holdfast.get_file("v", tmp_path / "pipe")
    assert await reading == b"through a pipe"


async def test_a_node_that_starts_is_passed_over(holdfast: Holdfast, fake_cluster: FakeCluster) -> None:
    fake_cluster.documents = {"/v1/cluster": {"health": "healthy"}}
    fake_cluster.gateways[0].before.append(refuse(503, "not-ready"))
    assert await holdfast.status() == {"health": "healthy"}
    for gateway in fake_cluster.gateways:
        gateway.before = [refuse(503, "not-ready")] * 1000
    with pytest.raises(Unavailable) as caught:
        await holdfast.status()
    assert caught.value.retryable  # so `holdfast status --watch` goes on


async def test_the_clusters_documents(holdfast: Holdfast, fake_cluster: FakeCluster) -> None:
    paths = (
        "/v1/cluster",
        "/v1/nodes",
        "/v1/layout",
        "/v1/jobs",
        "/v1/layout/plan",
        "/v1/layout/apply",
        "/v1/layout/abort",
    )
    fake_cluster.documents = {path: {"path": path} for path in paths}
    calls = (holdfast.status, holdfast.nodes, holdfast.layout, holdfast.jobs, holdfast.plan_layout)
    for path, call in zip(paths, calls, strict=False):
        assert await call() == {"path": path}
    assert await holdfast.apply_layout(7) == {"path": "/v1/layout/apply"}
    assert await holdfast.abort_layout() == {"path": "/v1/layout/abort"}
    assert fake_cluster.posted[1] == ("/v1/layout/apply", {"version": 7})
