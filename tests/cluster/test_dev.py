"""`holdfast dev` and the two commands of the README, with real daemons."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from client.dev.cluster_file import read_cluster_file
from tests.cluster.harness import free_plans

HOLDFAST = str(Path(sys.executable).parent / "holdfast")
READY_DEADLINE_S = 60


class Dev:
    """One `holdfast dev` at a time, on one directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.base = free_plans(7)[0].api_port
        self.process: subprocess.Popen[str] | None = None

    def up(self, *arguments: str) -> dict[str, Any]:
        self.process = subprocess.Popen(
            [HOLDFAST, "dev", "--data", str(self.directory), "--port-base", str(self.base), "--json", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, (self.process.communicate(), self.logs())
        document = json.loads(line)
        assert isinstance(document, dict)
        return document

    def down(self, number: signal.Signals = signal.SIGTERM) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        self.process.communicate(timeout=40)
        return self.process.returncode

    def urls(self) -> list[str]:
        cluster = read_cluster_file(self.directory)
        assert cluster is not None
        return [f"http://{node.api}" for node in cluster.nodes]

    def run(self, *arguments: str, code: int = 0, data: bytes | None = None) -> bytes:
        """A `holdfast` command against all nodes; its output."""
        environment = {**os.environ, "HOLDFAST_ENDPOINTS": ",".join(self.urls())}
        done = subprocess.run([HOLDFAST, *arguments], input=data, capture_output=True, env=environment, check=False)
        assert done.returncode == code, (done, self.logs())
        return done.stdout

    def dev(self, *arguments: str, code: int = 0) -> Any:
        return json.loads(self.run("dev", *arguments, "--data", str(self.directory), "--json", code=code) or b"null")

    def logs(self) -> str:
        logs = sorted((self.directory / "logs").glob("*.log"))
        return "\n".join(f"--- {log.name}\n{log.read_text(errors='replace')[-1500:]}" for log in logs)


@pytest.fixture
def dev(tmp_path: Path) -> Iterator[Dev]:
    dev = Dev(tmp_path / "holdfast-data")
    yield dev
    if dev.process is not None:
        with dev.process:
            dev.process.kill()


def test_the_readme(dev: Dev, tmp_path: Path) -> None:
    """Five nodes; store, kill any, read the same from another; start it again; all as one who has just cloned would."""
    document = dev.up("--nodes", "5")
    apis = {node["name"]: node["api"] for node in document["nodes"]}
    assert list(apis) == ["n1", "n2", "n3", "n4", "n5"]
    assert document["nodes"][4]["peer"] == f"127.0.0.1:{dev.base + 42}"
    data = os.urandom(5_000_000)
    (tmp_path / "FILE").write_bytes(data)
    stored = subprocess.run(
        ["curl", "-sSf", "-T", str(tmp_path / "FILE"), f"http://{apis['n1']}/v1/volumes/v/data"],
        capture_output=True,
        check=True,
    )
    assert json.loads(stored.stdout)["size"] == len(data)
    for victim, other in (("n1", "n5"), ("n3", "n1")):
        assert dev.dev("kill", victim)["was_running"] is True
        got = subprocess.run(
            ["curl", "-sSf", f"http://{apis[other]}/v1/volumes/v/data"], capture_output=True, check=True
        )
        assert got.stdout == data
        assert dev.run("volume", "get", "v", "-") == data
        assert dev.dev("start", victim)["ready"] is True
    assert dev.run("volume", "put", "w", "-", data=b"through a pipe")
    assert b"w " in dev.run("volume", "ls")
    assert dev.down(signal.SIGINT) == 0


def test_it_comes_back_with_its_data_and_grows(dev: Dev, tmp_path: Path) -> None:
    dev.up("--nodes", "3")
    data = os.urandom(1_000_000)
    dev.run("volume", "put", "v", "-", data=data)
    assert dev.down() == 0
    assert b"running" not in dev.run("volume", "show", "v", "--timeout", "0.5", code=5)
    dev.up()
    assert dev.run("volume", "get", "v", "-") == data
    dev.down(signal.SIGKILL)
    document = dev.up("--nodes", "4")
    assert len(document["nodes"]) == 4
    assert dev.run("volume", "get", "v", "-", "--endpoint", dev.urls()[3]) == data
    give_up = time.monotonic() + READY_DEADLINE_S
    while "n4" not in json.dumps(json.loads(dev.run("layout", "show", "--json"))["current"]):
        assert time.monotonic() < give_up, "the new node never got into the layout"
        time.sleep(0.1)
    assert dev.down() == 0


def test_a_wiped_node_comes_back_empty_and_catches_up(dev: Dev) -> None:
    dev.up("--nodes", "3")
    data = os.urandom(1_000_000)
    dev.run("volume", "put", "v", "-", data=data)
    assert dev.dev("wipe", "n2")["was_running"] is True
    assert list((dev.directory / "n2").iterdir()) == []
    assert dev.run("volume", "get", "v", "-") == data
    assert dev.dev("start", "n2")["ready"] is True
    assert dev.run("volume", "get", "v", "-", "--endpoint", dev.urls()[1]) == data
    assert dev.down() == 0


def test_status_nodes_and_layout_read_well(dev: Dev) -> None:
    dev.up("--nodes", "3")
    for command in (["status"], ["nodes"], ["layout", "show"]):
        words = dev.run(*command).decode()
        assert "n3" in words or command == ["status"]
        assert "{" not in words, words
        assert json.loads(dev.run(*command, "--json"))
    assert dev.down() == 0
