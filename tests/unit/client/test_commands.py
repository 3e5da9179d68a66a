"""The command line against a fake cluster: what it prints, what it does to files, how it exits."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from client.cli.app import app
from tests.unit.client.fake_cluster import FakeCluster, Hook, StoredVolume, drop, refuse

Run = Callable[..., Result]

HOLDFAST = str(Path(sys.executable).parent / "holdfast")


@pytest.fixture
def served() -> Iterator[FakeCluster]:
    """A fake cluster in a thread of its own: commands bring their own event loop."""
    cluster = FakeCluster(2)
    started, stop = threading.Event(), asyncio.Event()
    loops: list[asyncio.AbstractEventLoop] = []

    async def serve() -> None:
        await cluster.start()
        loops.append(asyncio.get_running_loop())
        started.set()
        await stop.wait()
        await cluster.stop()

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    assert started.wait(10)
    try:
        yield cluster
    finally:
        loops[0].call_soon_threadsafe(stop.set)
        thread.join()


@pytest.fixture
def run(served: FakeCluster, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("HOLDFAST_ENDPOINTS", ",".join(served.urls))
    monkeypatch.delenv("HOLDFAST_API_TOKEN", raising=False)

    def invoke(*arguments: str, input: bytes | None = None) -> Result:  # noqa: A002 - the runner's own word
        return CliRunner().invoke(app, list(arguments), input=input)

    return invoke


def test_a_volumes_life(run: Run, served: FakeCluster, tmp_path: Path) -> None:
    source, copy = tmp_path / "source", tmp_path / "copy"
    source.write_bytes(os.urandom(100_000))
    made = run("volume", "create", "disk", "4KiB", "--json")
    assert made.exit_code == 0
    assert json.loads(made.stdout)["size"] == 4096
    assert run("volume", "put", "disk", str(source)).exit_code == 0
    assert served.volumes["disk"].data == source.read_bytes()
    got = run("volume", "get", "disk", str(copy))
    assert got.exit_code == 0
    assert "97.7 KiB" in got.stdout
    assert copy.read_bytes() == source.read_bytes()
    assert (
        run("volume", "get", "disk", "-", "--offset", "1K", "--length", "2K").stdout_bytes
        == source.read_bytes()[1024:3072]
    )
    assert run("volume", "put", "disk", str(source), "--offset", "10", "--length", "5").exit_code == 0
    assert served.volumes["disk"].data[10:15] == source.read_bytes()[:5]
    assert json.loads(run("volume", "resize", "disk", "1M", "--json").stdout)["size"] == 1 << 20
    assert "disk" in run("volume", "ls").stdout
    assert [v["name"] for v in json.loads(run("volume", "ls", "--json").stdout)["volumes"]] == ["disk"]
    assert "sharding" in run("volume", "show", "disk").stdout
    assert run("volume", "rm", "disk").exit_code == 0
    assert run("volume", "show", "disk").exit_code == 3


def test_json_reports_of_transfers(run: Run, served: FakeCluster, tmp_path: Path) -> None:
    served.volumes["v"] = StoredVolume("v", b"12345")
    got = run("volume", "get", "v", str(tmp_path / "copy"), "--json")
    assert json.loads(got.stdout)["bytes"] == 5
    streamed = run("volume", "get", "v", "-", "--json")
    assert streamed.stdout == "12345"
    assert json.loads(streamed.stderr)["bytes"] == 5
    (tmp_path / "new").write_bytes(b"678")
    stored = run("volume", "put", "v", str(tmp_path / "new"), "--json")
    assert json.loads(stored.stdout)["etag"] == served.volumes["v"].etag.strip('"')
    assert run("volume", "put", "v", str(tmp_path / "new"), "--quiet").output == ""


@pytest.mark.parametrize(
    ("hook", "code"),
    [
        (refuse(400, "invalid"), 2),
        (refuse(404, "not-found"), 3),
        (refuse(409, "conflict"), 4),
        (refuse(503, "quorum-unavailable"), 5),
        (refuse(503, "outcome-unknown"), 6),
        (drop, 6),
        (refuse(401, "unauthorized"), 7),
        (refuse(507, "no-space"), 8),
        (refuse(500, "corrupt"), 9),
        (refuse(500, "internal"), 1),
    ],
)
def test_exit_codes(run: Run, served: FakeCluster, hook: Hook, code: int) -> None:
    for gateway in served.gateways:
        gateway.before = [hook] * 1000
    failed = run("volume", "create", "v", "1M", "--timeout", "0.2")
    assert failed.exit_code == code
    assert failed.stdout == ""
    assert failed.stderr.startswith("holdfast: ")
    failed = run("volume", "create", "v", "1M", "--timeout", "0.2", "--json")
    assert json.loads(failed.stderr)["exit_code"] == code


@pytest.mark.parametrize(
    "arguments",
    [
        ["volume", "create", "v", "ten"],
        ["volume", "create", "v"],
        ["volume", "get", "v", "-", "--length", "0"],
        ["volume", "put", "v", "/nonexistent"],
        ["volume", "put", "v", "/"],
        ["volume", "put", "v", "-", "--offset", "0"],
        ["volume", "put", "v", "x", "--offset", "0", "--if-none-match", "*"],
        ["volume", "get", "v", "/nonexistent/file"],
        ["status", "--endpoint", "ftp://x"],
        ["status", "--token-file", "/nonexistent"],
        ["layout", "plan", "--capacity", "n1"],
        ["layout", "plan", "--capacity", "n1=0"],
        ["layout", "plan", "--capacity", "n1=lots"],
        ["nonsense"],
    ],
)
def test_wrong_usage(run: Run, served: FakeCluster, arguments: list[str], tmp_path: Path) -> None:
    served.volumes["v"] = StoredVolume("v", b"12345")
    if "-" in arguments and "--offset" in arguments:
        done = subprocess.run([HOLDFAST, *arguments], capture_output=True, check=False, input=b"x")
        assert done.returncode == 2, done
        assert b"known length" in done.stderr
        return
    assert run(*arguments).exit_code == 2


def test_pipes(served: FakeCluster, run: Run, tmp_path: Path) -> None:
    """Real processes: standard input as a pipe, as a file, and as nothing; standard output as a pipe that closes."""
    data = os.urandom(3_000_000)
    (tmp_path / "file").write_bytes(data)
    subprocess.run([HOLDFAST, "volume", "put", "piped", "-"], input=data, check=True, capture_output=True)
    assert served.volumes["piped"].data == data
    subprocess.run(
        [HOLDFAST, "volume", "put", "part", "-", "--length", "1M"], input=data, check=True, capture_output=True
    )
    assert served.volumes["part"].data == data[: 1 << 20]
    with (tmp_path / "file").open("rb") as file:
        subprocess.run([HOLDFAST, "volume", "put", "filed", "-"], stdin=file, check=True, capture_output=True)
    assert served.volumes["filed"].data == data
    subprocess.run([HOLDFAST, "volume", "put", "none", "-"], stdin=subprocess.DEVNULL, check=True, capture_output=True)
    assert served.volumes["none"].data == b""
    got = subprocess.run([HOLDFAST, "volume", "get", "piped", "-"], check=True, capture_output=True)
    assert got.stdout == data
    assert got.stderr == b""  # no bar where nobody watches
    closed = subprocess.run(
        ["/bin/sh", "-c", f"{HOLDFAST} volume get piped - | head -c 1000 | wc -c"], check=True, capture_output=True
    )
    assert closed.stdout.strip() == b"1000"
    assert closed.stderr == b""


def test_an_interrupted_get_leaves_nothing(served: FakeCluster, run: Run, tmp_path: Path) -> None:
    import signal
    import time

    async def endless(request: object) -> None:
        await asyncio.sleep(30)

    served.volumes["v"] = StoredVolume("v", bytes(1000))
    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        for gateway in served.gateways:
            gateway.before = [endless]
            gateway.requests.clear()
        with subprocess.Popen(
            [HOLDFAST, "volume", "get", "v", str(tmp_path / "copy")], stderr=subprocess.PIPE
        ) as process:
            deadline = time.monotonic() + 10
            while not any(gateway.requests for gateway in served.gateways):
                assert time.monotonic() < deadline
                time.sleep(0.01)
            process.send_signal(number)
            _, errors = process.communicate(timeout=10)
        assert process.returncode == code
        assert errors == b""
        assert list(tmp_path.iterdir()) == []


def test_fail_over(run: Run, served: FakeCluster) -> None:
    served.volumes["v"] = StoredVolume("v", b"12345")
    served.gateways[0].before = [drop]
    got = run("volume", "get", "v", "-")
    assert (got.exit_code, got.stdout) == (0, "12345")
    explicit = run("volume", "get", "v", "-", "-e", "http://127.0.0.1:1", "-e", served.gateways[1].url)
    assert (explicit.exit_code, explicit.stdout) == (0, "12345")
    nobody = run("status", "-e", "127.0.0.1:1", "--timeout", "0.1")
    assert nobody.exit_code == 5
    assert "is the cluster running" in nobody.stderr


def test_token_file(run: Run, served: FakeCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    served.token = "open sesame"
    (tmp_path / "token").write_text("open sesame\n")
    assert run("volume", "ls").exit_code == 7
    assert run("volume", "ls", "--token-file", str(tmp_path / "token")).exit_code == 0
    monkeypatch.setenv("HOLDFAST_API_TOKEN", "open sesame")
    assert run("volume", "ls").exit_code == 0


def test_cluster_and_layout(run: Run, served: FakeCluster) -> None:
    served.documents = {
        "/v1/cluster": {"cluster": "c0ffee", "ready": True, "layout_version": 3, "needs": []},
        "/v1/nodes": {
            "nodes": [
                {"name": "n1", "state": "alive", "capacity": 500 << 30, "free_bytes": 1 << 40},
                {"name": "n2", "state": "dead"},
            ]
        },
        "/v1/layout": {
            "current": {"version": 3, "nodes": [{"name": "n1", "capacity": 500 << 30, "partitions": 7}]},
            "staged": None,
        },
        "/v1/layout/plan": {"version": 4, "plan": "c0ffee00", "lines": ["n6 joins", "17 % of the data moves"]},
        "/v1/layout/apply": {"version": 4},
        "/v1/layout/abort": {},
    }
    assert "layout version" in run("status").stdout
    table = run("nodes").stdout.splitlines()
    assert table[-2].split() == ["n1", "alive", "500", "GiB", "1", "TiB"]
    assert table[-1].split() == ["n2", "dead", "-", "-"]
    for command, path in (("status", "/v1/cluster"), ("nodes", "/v1/nodes")):
        assert json.loads(run(command, "--json").stdout) == served.documents[path]
    shown = run("layout", "show").stdout
    assert "version  3" in shown
    assert shown.splitlines()[-1].split() == ["n1", "500", "GiB", "7"]
    plan = run("layout", "plan", "--remove", "n3", "--capacity", "n1=500GiB", "--zone", "n1=z")
    assert plan.stdout.splitlines() == [
        "n6 joins",
        "17 % of the data moves",
        "",
        "apply it with: holdfast layout apply 4-c0ffee00",
    ]
    staged = [{"name": "n3", "remove": True}, {"name": "n1", "capacity": 500 << 30, "zone": "z"}]
    assert served.posted == [("/v1/layout/plan", {"stage": staged})]
    for wanted in ("x", "4c", "4-", "-c0ffee00"):
        assert run("layout", "apply", "--", wanted).exit_code == 2
    assert len(served.posted) == 1
    assert run("layout", "apply", "4").exit_code == 0
    assert served.posted[-1] == ("/v1/layout/apply", {"version": 4})
    assert run("layout", "apply", "4-c0ffee01").exit_code == 0
    assert served.posted[-1] == ("/v1/layout/apply", {"version": 4, "plan": "c0ffee01"})
    assert run("layout", "apply").exit_code == 2  # nobody to ask
    assert run("layout", "apply", "--yes", "--json").exit_code == 0
    assert served.posted[-1] == ("/v1/layout/apply", {"version": 4, "plan": "c0ffee00"})
    assert run("layout", "abort", "--json").exit_code == 0
    served.documents["/v1/layout/plan"] = {}
    assert run("layout", "apply", "--yes").exit_code == 2
