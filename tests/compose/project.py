"""The project's Compose file under a name, image and ports of its own, as a user would run it: with docker-compose and curl.

A `ComposeProject` takes everything down again whatever happens: a small process waits for the end of the tests, and runs
``down -v`` then, also when the tests were killed.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.harness import free_plans
from tests.compose.engine import POLL_S, Engine

ROOT = Path(__file__).parents[2]

NODES = ("n1", "n2", "n3", "n4", "n5")

ANSWER_DEADLINE_S = 20
"""For one request; curl's ``--max-time``."""

READY_DEADLINE_S = 40.0
"""For containers that were just started to form a cluster, or to find back into it."""

WHOLE_DEADLINE_S = 60.0
"""For all copies to be back where they belong, after a node was away or came back empty."""

DOWN_DEADLINE_S = 60.0


def until(condition: Callable[[], Any], what: str, deadline_s: float) -> None:
    """Returns when the condition is true. Fails when the deadline passes."""
    give_up = time.monotonic() + deadline_s
    while not condition():
        if time.monotonic() > give_up:
            pytest.fail(f"did not come true within {deadline_s:.0f} s: {what}")
        time.sleep(POLL_S)


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@dataclass(frozen=True)
class Answer:
    """``status`` 0: nobody answered."""

    status: int
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


class ComposeProject:
    """See the module. `remove` is always called, by the fixture."""

    def __init__(self, engine: Engine, base_image: str, directory: Path) -> None:
        self.engine = engine
        self.name = f"holdfast-test-{os.getpid()}-{secrets.token_hex(3)}"
        self.secret = secrets.token_hex(32)
        self.image = f"{self.name}:latest"
        self._answer = directory / "answer"
        self._answer.parent.mkdir(parents=True, exist_ok=True)
        self._ports = {node: plan.api_port for node, plan in zip(NODES, free_plans(len(NODES)), strict=True)}
        self._environment = {f"HOLDFAST_PORT_{node.upper()}": str(port) for node, port in self._ports.items()}
        self._environment |= {
            "HOLDFAST_IMAGE": self.image,
            "HOLDFAST_BASE_IMAGE": base_image,
            "HOLDFAST_SECRET": self.secret,
        }
        self._line = (*engine.compose, "--file", str(ROOT / "docker-compose.yml"), "--project-name", self.name)
        self._guard = subprocess.Popen(
            ["sh", "-c", 'cat >/dev/null; exec "$@"', "sh", *self._line, "down", "--volumes", "--timeout", "0"],
            env={**engine.environment, **self._environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    # what a user types

    def compose(self, *arguments: str) -> str:
        return self.engine.run(*self._line, *arguments, environment=self._environment)

    def docker(self, *arguments: str) -> str:
        return self.engine.run("docker", *arguments)

    def curl(self, node: str, path: str, *options: str) -> Answer:
        line = ["curl", "--silent", "--max-time", str(ANSWER_DEADLINE_S), "--output", str(self._answer)]
        line += ["--write-out", "%{http_code}", *options, f"http://127.0.0.1:{self._ports[node]}{path}"]
        self._answer.unlink(missing_ok=True)
        status = self.engine.run(*self.engine.inside, *line, check=False)
        return Answer(int(status or "0"), self._answer.read_bytes() if self._answer.exists() else b"")

    def create(self, node: str, volume: str, size: int, chunk_size: int) -> Answer:
        document = json.dumps({"name": volume, "size": size, "chunk_size": chunk_size})
        return self.curl(node, "/v1/volumes", "--header", "Content-Type: application/json", "--data", document)

    def put(self, node: str, volume: str, file: Path) -> Answer:
        return self.curl(node, f"/v1/volumes/{volume}/data", "--upload-file", str(file))

    def get(self, node: str, volume: str) -> Answer:
        return self.curl(node, f"/v1/volumes/{volume}/data")

    # what can be seen

    def container(self, node: str) -> str:
        """Its id; that of a stopped one too. Compose v1 and v2 name containers differently, but label them alike."""
        line = ("ps", "--all", "--quiet", "--no-trunc", "--filter", f"label=com.docker.compose.project={self.name}")
        return self.docker(*line, "--filter", f"label=com.docker.compose.service={node}").strip()

    def inspect(self, node: str) -> Any:
        return json.loads(self.docker("inspect", self.container(node)))[0]

    def volume(self, node: str) -> str:
        """The name of its named volume, as it is mounted."""
        (mount,) = self.inspect(node)["Mounts"]
        return str(mount["Name"])

    def logs(self, node: str) -> str:
        container = self.container(node)
        return self.engine.run("sh", "-c", 'docker logs "$1" 2>&1', "sh", container) if container else ""

    def jobs(self, node: str) -> dict[str, Any]:
        answer = self.curl(node, "/v1/jobs")
        return {job["name"]: job for job in answer.json()["jobs"]} if answer.status == 200 else {}

    def chunks(self, node: str) -> int:
        """How many that node holds."""
        return int(self.curl(node, "/v1/cluster").json()["store"]["chunks"])

    # what to wait for

    def wait_ready(self, *nodes: str) -> None:
        for node in nodes or NODES:
            until(partial(self.is_ready, node), f"{node} is ready", READY_DEADLINE_S)

    def wait_whole(self) -> None:
        """Every node finds that all copies are where they belong."""
        began = time.monotonic()
        for node in NODES:
            until(partial(self.is_whole, node), f"{node} finds full redundancy", WHOLE_DEADLINE_S)
        print(f"full redundancy after {time.monotonic() - began:.1f} s")

    def is_ready(self, node: str) -> bool:
        return self.curl(node, "/readyz").status == 200

    def is_healthy(self, node: str) -> bool:
        """As the engine finds."""
        return bool(self.inspect(node)["State"]["Health"]["Status"] == "healthy")

    def is_whole(self, node: str) -> bool:
        """By what repair counts, where the node tells; else healthy, with nothing left to copy."""
        cluster = self.curl(node, "/v1/cluster")
        if cluster.status != 200 or cluster.json()["health"] != "healthy":
            return False
        repair = self.curl(node, "/v1/repair")
        if repair.status == 200:
            counted = repair.json()
            differs = any(counted[name] for name in ("copies_missing", "chunks_diverged", "keys_diverged"))
            return not differs and counted.get("health", "healthy") == "healthy"
        jobs = self.jobs(node)
        return bool(jobs) and all(jobs[name]["queue_length"] == 0 for name in ("copier", "attestation"))

    # the end

    def left(self) -> list[str]:
        """What there still is of the project: containers, networks, volumes."""
        mine = ("--quiet", "--filter", f"label=com.docker.compose.project={self.name}")
        listed = [
            self.docker("ps", "--all", *mine),
            self.docker("network", "ls", *mine),
            self.docker("volume", "ls", *mine),
        ]
        return " ".join(listed).split()

    def remove(self) -> None:
        """Everything of it, its image too."""
        assert self._guard.stdin is not None
        self._guard.stdin.close()
        try:
            self._guard.wait(DOWN_DEADLINE_S)
        finally:
            self._guard.kill()
            self._guard.wait()
        if not self.engine.is_own:  # that one goes as a whole
            self.engine.run("docker", "image", "rm", "--force", self.image, check=False)
