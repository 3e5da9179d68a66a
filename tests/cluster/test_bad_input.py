"""Bad input gets a clear error, and nothing is lost by it: at the start of a daemon, on its ports, in requests."""

from __future__ import annotations

import asyncio
import os
import random
import secrets
import socket
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from cluster.volumes.names import MAX_VOLUME_BYTES
from tests.cluster.conftest import MakeCluster
from tests.cluster.content import KIB, MIB, content
from tests.cluster.gateway import Gateway
from tests.cluster.harness import ClusterProcess, Daemon, eventually
from tests.cluster.process_usage import resident
from tests.cluster.recording_proxy import RecordingProxy

EXIT_CONFIGURATION = 2
REFUSED_DEADLINE_S = 20.0

GARBAGE_CONNECTIONS = 400
HALF_OPEN_CONNECTIONS = 200
MOST_GARBAGE_GROWTH = 48 * MIB

LARGEST_BODY_READ = 1 * MIB


# Daemons that must not start


def with_flag(daemon: Daemon, flag: str, value: str) -> Daemon:
    """The same daemon started with one flag differently; its log is its own."""
    command = list(daemon.command)
    command[command.index(flag) + 1] = value
    log = daemon.log.with_name(f"{daemon.log.stem}-{flag.strip('-')}.log")
    return replace(daemon, command=command, process=None, log=log)


async def refusal(daemon: Daemon, start: bool = True) -> str:
    """What a daemon says that ends by itself because something is wrong with how it was started."""
    if start:
        daemon.start()
    try:
        code = await daemon.exit_code(REFUSED_DEADLINE_S)
    finally:
        daemon.kill()
    text = daemon.log_text()
    assert code == EXIT_CONFIGURATION, text
    assert "Traceback" not in text
    return text


async def serves(cluster: ClusterProcess, *names: str) -> None:
    """Everybody sees the same living members as before, and reads and writes work through each node."""
    for name in names or cluster.names:
        async with Gateway(cluster[name].url) as gateway:
            data = content(f"check-{name}", 0, 50 * KIB)
            assert (await gateway.put("check", data)).status in {200, 201}
            assert (await gateway.get("check")).body == data


async def test_daemons_that_must_not_start(make_cluster: MakeCluster, tmp_path: Path) -> None:
    cluster = await make_cluster(3, spare=3)
    one = cluster["n1"]
    async with Gateway(one.url) as gateway:
        members = (await gateway.document("/v1/nodes"))["nodes"]

        # a wrong secret
        wrong = tmp_path / "wrong-secret"
        wrong.write_text(secrets.token_hex(32))
        joiner = await cluster.add(secret_file=wrong, ready=False)
        said = await refusal(joiner, start=False)
        assert "secret" in said
        assert wrong.read_text() not in said
        assert cluster.secret_file.read_text() not in said + one.log_text()
        joiner = cluster.daemons.pop(joiner.name)

        # no secret, too short a secret, an empty one
        short = tmp_path / "short-secret"
        for text, words in (("tooshort", "16 or more"), ("", "empty")):
            short.write_text(text)
            assert words in await refusal(with_flag(joiner, "--secret-file", str(short)))
        assert "can't be read" in await refusal(with_flag(joiner, "--secret-file", str(tmp_path / "absent")))

        # another node's directory; a second daemon on the same one; foreign content
        assert "belongs to node 'n2'" in await refusal(stopped_twin(cluster["n2"], tmp_path, name="n9"))
        assert "in use by another daemon" in await refusal(with_flag(one, "--api", "127.0.0.1:0"))
        foreign = tmp_path / "foreign"
        foreign.mkdir()
        (foreign / "thesis.tex").write_text("irreplaceable")
        said = await refusal(
            with_flag(with_flag(joiner, "--secret-file", str(cluster.secret_file)), "--data", str(foreign))
        )
        assert "thesis.tex" in said
        assert [entry.name for entry in foreign.iterdir() if entry.name != "lock"] == ["thesis.tex"]

        # ports in use
        good = with_flag(joiner, "--secret-file", str(cluster.secret_file))
        for flag, taken in (("--api", one.plan.api), ("--peer", one.plan.peer)):
            assert taken.rpartition(":")[2] in await refusal(with_flag(good, flag, taken)), flag

        # the directory of another cluster that has the same secret
        lonely = with_flag(joiner, "--secret-file", str(cluster.secret_file))
        lonely.command = [*without_flag(lonely.command, "--join"), "--bootstrap-expect", "1"]
        lonely.start()
        async with Gateway(lonely.url) as other:
            await eventually(lambda: is_ready(other), "a cluster of its own is ready")
            assert (await other.put("mine", b"kept")).status == 201
        assert await lonely.stop() == 0
        said = await refusal(with_flag(joiner, "--secret-file", str(cluster.secret_file)))
        assert "belongs to cluster" in said
        lonely.start()
        async with Gateway(lonely.url) as other:
            await eventually(lambda: is_ready(other), "its own cluster is unharmed")
            assert (await other.get("mine")).body == b"kept"
        lonely.kill()

        # nobody came to harm
        assert (await gateway.document("/v1/nodes"))["nodes"] == members
        await serves(cluster)


async def is_ready(gateway: Gateway) -> bool:
    try:
        return (await gateway.ask("GET", "/readyz")).status == 200
    except aiohttp.ClientError:
        return False


def without_flag(command: list[str], flag: str) -> list[str]:
    """A command line without any use of a flag that takes a value."""
    kept: list[str] = []
    skip = False
    for word in command:
        if not skip and word != flag:
            kept.append(word)
        skip = word == flag
    return kept


def stopped_twin(daemon: Daemon, tmp_path: Path, *, name: str) -> Daemon:
    """A daemon of another name on a copy of a daemon's marker."""
    data = tmp_path / f"{name}-data"
    data.mkdir()
    (data / "node.json").write_bytes((daemon.data / "node.json").read_bytes())
    twin = with_flag(with_flag(daemon, "--name", name), "--data", str(data))
    return replace(twin, data=data)


async def test_the_secret_is_never_on_the_wire(make_cluster: MakeCluster) -> None:
    """A node joins through a proxy that records all: neither the secret nor a part of it passes."""
    cluster = await make_cluster(1)
    secret = cluster.secret_file.read_text()
    async with RecordingProxy(cluster["n1"].plan.peer_port) as proxy:
        joiner = await cluster.add(ready=False)
        joiner.kill()
        at = joiner.command.index("--join")
        joiner.command[at + 1] = f"127.0.0.1:{proxy.port}"
        joiner.start()
        await cluster.wait_ready()
        assert proxy.connections > 0
        seen = bytes(proxy.recorded)
    assert joiner.name.encode() in seen, "the proxy has not seen the handshake"
    raw = bytes.fromhex(secret)
    for form in (secret.encode(), secret.encode()[:16], secret.encode()[-16:], raw, raw[:8], secret.upper().encode()):
        assert form not in seen


# Strangers on the ports


@pytest.fixture
async def single(make_cluster: MakeCluster) -> AsyncIterator[tuple[ClusterProcess, Gateway]]:
    """A cluster of one node, and its API."""
    cluster = await make_cluster(1)
    async with Gateway(cluster["n1"].url) as gateway:
        yield cluster, gateway


def garbage(rng: random.Random, number: int) -> bytes:
    """Bytes that mean nothing, or something else, or begin well and go wrong."""
    kinds = [
        rng.randbytes(rng.randrange(1, 4000)),
        bytes(64),
        b"\xff" * 64,
        (0x7FFFFFFF).to_bytes(4, "big") + (0x7FFFFFFF).to_bytes(4, "big") + bytes(100),
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /" + b"a" * 100_000,
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + rng.randbytes(500),
        b"PUT /v1/volumes/v/data HTTP/1.1\r\nContent-Length: 99999999999999999999999\r\n\r\n",
        b"POST /v1/volumes HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nZZZ\r\n",
        b"GET / HTTP/1.1\r\n" + b"".join(b"X-%d: y\r\n" % i for i in range(3000)),
    ]
    return kinds[number % len(kinds)]


async def throw(port: int, data: bytes, *, whole: bool) -> None:
    """Send it, take what comes for a moment, leave: properly or not."""
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return
    try:
        writer.write(data)
        if whole:
            writer.write_eof()
        async with asyncio.timeout(0.2):
            await reader.read(-1)
    except (OSError, TimeoutError):
        pass
    finally:
        writer.transport.abort()


async def test_garbage_on_every_port(single: tuple[ClusterProcess, Gateway]) -> None:
    cluster, gateway = single
    daemon = cluster["n1"]
    data = content("v", 0, MIB)
    assert (await gateway.put("v", data)).status == 201
    rng = random.Random(7)

    async def round_of_garbage(connections: int) -> None:
        for first in range(0, connections, 50):
            async with asyncio.TaskGroup() as group:
                for number in range(first, first + 50):
                    for port in (daemon.plan.api_port, daemon.plan.peer_port):
                        group.create_task(throw(port, garbage(rng, number), whole=number % 3 == 0))
            assert (await gateway.get("v")).body == data

    await round_of_garbage(100)  # what is allocated once
    before = resident(daemon.pid)
    await round_of_garbage(GARBAGE_CONNECTIONS)
    # half-open and silent ones stay; a slow one sends its header byte by byte
    silent: list[socket.socket] = []
    try:
        for number in range(HALF_OPEN_CONNECTIONS):
            for port in (daemon.plan.api_port, daemon.plan.peer_port):
                connection = socket.create_connection(("127.0.0.1", port))
                connection.setblocking(False)
                connection.send(b"GET /v1/vol"[: number % 11])
                silent.append(connection)
        async with Gateway(daemon.url) as another:
            assert (await another.get("v")).body == data
            assert (await another.put("v", data)).status == 200
    finally:
        for connection in silent:
            connection.close()
    grown = resident(daemon.pid) - before
    print(
        f"{grown / MIB:.1f} MiB more after {2 * (GARBAGE_CONNECTIONS + HALF_OPEN_CONNECTIONS)} connections of garbage"
    )
    assert grown < MOST_GARBAGE_GROWTH
    assert len(daemon.log_text().splitlines()) < 100, "garbage fills the log"
    assert "Traceback" not in daemon.log_text()
    open_files = len(os.listdir(f"/proc/{daemon.pid}/fd"))
    await eventually(
        lambda: len(os.listdir(f"/proc/{daemon.pid}/fd")) < 100, f"its {open_files} descriptors are given back", 20
    )


# Requests


async def raw(daemon: Daemon, request: bytes, *, end: bool = True) -> tuple[int, bytes]:
    """Send these bytes, half-close, and give status and body of the (first) answer; status 0 when there is none."""
    reader, writer = await asyncio.open_connection("127.0.0.1", daemon.plan.api_port)
    try:
        async with asyncio.timeout(15):
            writer.write(request)
            if end:
                writer.write_eof()
            answer = await reader.read(LARGEST_BODY_READ)
            while answer and (more := await reader.read(LARGEST_BODY_READ)):
                answer += more
    except ConnectionError:
        return 0, b""
    finally:
        writer.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    return (int(head.split()[1]) if head else 0), body


async def test_requests_that_are_not_right(single: tuple[ClusterProcess, Gateway]) -> None:
    """Each is refused with words, and the volume is what it was."""
    cluster, gateway = single
    daemon = cluster["n1"]
    size = 100 * KIB
    data = content("v", 0, size)
    assert (await gateway.put("v", data)).status == 201
    path = "/v1/volumes/v/data"

    async def unharmed() -> None:
        assert (await gateway.get("v")).body == data

    # ranges that can't be, or are not understood
    for value in (f"bytes={size}-", f"bytes={size + 5}-{size + 9}", "bytes=-0"):
        answer = await gateway.get("v", headers={"Range": value})
        answer.problem(416, "invalid")
        assert answer.headers["content-range"] == f"bytes */{size}"
    for value in ("bytes=5-2", "bytes=-5-9", "bytes=--1", "bytes=0-9,5-14", "bytes=0-1,-1", "lines=1-2", "bytes=a-b"):
        answer = await gateway.get("v", headers={"Range": value})
        assert (answer.status, answer.body) == (200, data), value
    for value in (
        "bytes 5-2/*",
        "bytes -5-9/*",
        "bytes 0-9,5-14/*",
        "bytes */100",
        "bytes 0-9",
        "bytes a-b/*",
        "lines 0-9/*",
        "bytes 0-9/5",
    ):
        (await gateway.put("v", b"x" * 10, headers={"Content-Range": value})).problem(400, "invalid")
    for value in (f"bytes {size - 5}-{size + 4}/*", f"bytes {size}-{size + 9}/*", f"bytes 0-9/{size + 1}"):
        (await gateway.put("v", b"x" * 10, headers={"Content-Range": value})).problem(416, "invalid")
    for length in (9, 11):
        (await gateway.put("v", b"x" * length, headers={"Content-Range": "bytes 0-9/*"})).problem(400, "invalid")
    await unharmed()

    # bodies that are not as long as declared
    head = f"PUT {path} HTTP/1.1\r\nHost: x\r\n".encode()
    status, body = await raw(daemon, head + b"Content-Length: 1000\r\n\r\n" + b"x" * 999)
    assert status == 400, (status, body)
    assert b"invalid" in body
    status, body = await raw(daemon, head + b"Transfer-Encoding: chunked\r\n\r\n3e8\r\n" + b"x" * 500)
    assert status == 400, (status, body)
    await unharmed()
    for extra in (b"Content-Length: -1", b"Content-Length: 10, 20", b"Content-Length: 1e3", b"Content-Length: 0x10"):
        status, body = await raw(daemon, head + extra + b"\r\n\r\n" + b"x" * 16)
        assert status == 400, (extra, status, body)
    status, body = await raw(daemon, head + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n")
    assert status == 400, (status, body)
    status, body = await raw(daemon, head + b"\r\n")
    assert status == 411, (status, body)
    await unharmed()
    # what follows a body of the declared length would be another request and isn't one: either it comes with the body and all is
    # refused, or it comes later and the first request has been answered
    other = f"PUT /v1/volumes/w/data HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\n{'y' * 40}".encode()
    status, body = await raw(daemon, other)
    if status == 201:
        assert (await gateway.get("w")).body == b"yyyy"
    else:
        assert status == 400, (status, body)
        assert (await gateway.get("w")).status == 404

    # too much of everything
    assert (await raw(daemon, f"GET /{'a' * 70_000} HTTP/1.1\r\nHost: x\r\n\r\n".encode()))[0] == 414
    assert (await raw(daemon, f"GET {path} HTTP/1.1\r\nHost: x\r\nX: {'a' * 70_000}\r\n\r\n".encode()))[0] == 431
    many = "".join(f"X-{number}: y\r\n" for number in range(2000))
    assert (await raw(daemon, f"GET {path} HTTP/1.1\r\nHost: x\r\n{many}\r\n".encode()))[0] == 431
    large = await gateway.ask("POST", "/v1/volumes", data=b" " * MIB, headers={"Content-Type": "application/json"})
    large.problem(413, "invalid")

    # names and sizes
    for name in ("UPPER", "-dash", "dash-", "a%2Fb", "%00", "%C3%A9", "a" * 129, "a%20b", "..", "%2E%2E%2Fetc"):
        answer = await gateway.ask("PUT", f"/v1/volumes/{name}/data", data=b"x")
        assert answer.status in {400, 404}, (name, answer)
        answer.problem(answer.status, "invalid" if answer.status == 400 else "not-found")
    good: dict[str, Any] = {"name": "new", "size": MIB}
    for wrong in (
        {"size": -1},
        {"size": MAX_VOLUME_BYTES + 1},
        {"size": 1.5},
        {"size": "1"},
        {"size": True},
        {"size": None},
        {"size": 10**30},
        {"name": ""},
        {"name": 5},
        {"name": "a/b"},
        {"chunk_size": 5000},
        {"chunk_size": 1},
        {"chunk_size": 1 << 40},
        {"replicas": 0},
        {"replicas": 4},
        {"replicas": -3},
        {"durability": "hope"},
        {"colour": "red"},
    ):
        answer = await gateway.ask("POST", "/v1/volumes", json={**good, **wrong})
        problem = answer.problem(400, "invalid")
        assert next(iter(wrong)) in (problem.get("field"), *problem["detail"].split()), (wrong, problem)
    for text in (b"", b"{", b"[]", b"null", b'{"name": "new", "name": "new2", "size": 1}', b"\xff\xfe", b"[" * 60_000):
        answer = await gateway.ask("POST", "/v1/volumes", data=text, headers={"Content-Type": "application/json"})
        answer.problem(400, "invalid")
    (await gateway.ask("GET", "/v1/volumes/new")).problem(404, "not-found")
    for size_wanted in (-1, 10, "big"):
        answer = await gateway.ask("PATCH", "/v1/volumes/v", json={"size": size_wanted})
        answer.problem(400, "invalid")
    (await gateway.ask("GET", "/v1/volumes?limit=0")).problem(400, "invalid")
    (await gateway.ask("GET", "/v1/volumes?limit=5&limit=6")).problem(400, "invalid")
    (await gateway.ask("DELETE", "/v1/volumes")).problem(405, "invalid")
    (await gateway.ask("GET", "/v2/volumes")).problem(404, "not-found")

    # layouts
    for version, status, code in (
        (7, 409, "conflict"),
        (0, 400, "invalid"),
        (-1, 400, "invalid"),
        ("2", 400, "invalid"),
    ):
        (await gateway.ask("POST", "/v1/layout/apply", json={"version": version})).problem(status, code)
    stage = {"stage": [{"name": "nobody", "remove": True}]}
    assert "nobody" in (await gateway.ask("POST", "/v1/layout/plan", json=stage)).problem(400, "invalid")["detail"]
    last = {"stage": [{"name": "n1", "remove": True}]}
    (await gateway.ask("POST", "/v1/layout/plan", json=last)).problem(400, "invalid")
    await unharmed()
    assert "Traceback" not in daemon.log_text()
