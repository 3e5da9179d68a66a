"""Daemons in network namespaces of their own, so that a test can cut them off from each other while clients reach them, or from all.

Each daemon has two cables: one for its API, one for its peers. They end in a namespace in the middle: in a switch for the APIs and in one
of two switches for peers. Nodes whose peer cables are in the same one reach each other. One more cable leads from the APIs' switch to
the test. Namespaces live as long as a process in them, and cables as long as their namespaces, so all of it goes with the test, however
that ends. Needs root and iproute2.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Collection
from dataclasses import dataclass

import pytest

from client.dev.daemon import dies_with_parent
from client.dev.plan import NodePlan
from tests.cluster.harness import ClusterProcess, require_tool

NAMESPACE_DEADLINE_S = 10.0


@dataclass(frozen=True, slots=True)
class PlacedPlan(NodePlan):
    """A node that listens elsewhere than on loopback."""

    api_host: str
    peer_host: str

    @property
    def api(self) -> str:
        return f"{self.api_host}:{self.api_port}"

    @property
    def peer(self) -> str:
        return f"{self.peer_host}:{self.peer_port}"


class SeparateNetworks:
    """Use ``with``. `place` the daemons of a cluster before they are started."""

    def __init__(self) -> None:
        self._holders: list[subprocess.Popen[bytes]] = []
        self._middle = 0
        self._number = os.getpid() % 250
        self._ports: dict[str, int] = {}

    def __enter__(self) -> SeparateNetworks:
        self._middle = self._namespace()
        for switch in ("api", "peers0", "peers1"):
            self._inside("ip", "link", "add", switch, "type", "bridge")
            self._inside("ip", "link", "set", switch, "up")
        outside = f"hf{self._middle}"
        _run("ip", "link", "add", outside, "type", "veth", "peer", "name", "test", "netns", str(self._middle))
        self._inside("ip", "link", "set", "test", "master", "api", "up")
        _run("ip", "address", "add", f"{self._api_host(254)}/24", "dev", outside)
        _run("ip", "link", "set", outside, "up")
        return self

    def __exit__(self, *_: object) -> None:
        for holder in self._holders:
            holder.kill()
            holder.wait()

    def place(self, cluster: ClusterProcess) -> None:
        """Give every daemon of a cluster that has not been started yet its own namespace and addresses."""
        nsenter = require_tool("nsenter")
        moved: dict[str, str] = {}
        for number, daemon in enumerate(cluster.daemons.values(), start=1):
            plan = daemon.plan
            placed = PlacedPlan(
                plan.name, plan.api_port, plan.peer_port, self._api_host(number), f"10.254.{self._number}.{number}"
            )
            moved |= {plan.api: placed.api, plan.peer: placed.peer}
            daemon.plan = placed
            holder = self._namespace()
            self._ports[daemon.name] = number
            for cable, host, switch in (("api", placed.api_host, "api"), ("peer", placed.peer_host, "peers0")):
                near, far = f"{cable}{number}", f"{cable}0"
                self._inside("ip", "link", "add", near, "type", "veth", "peer", "name", far, "netns", str(holder))
                self._inside("ip", "link", "set", near, "master", switch, "up")
                _within(holder, "ip", "address", "add", f"{host}/24", "dev", far)
                _within(holder, "ip", "link", "set", far, "up")
            _within(holder, "ip", "link", "set", "lo", "up")
            daemon.command = [nsenter, f"--net=/proc/{holder}/ns/net", *daemon.command, "--allow-anonymous"]
        for daemon in cluster.daemons.values():
            daemon.command = [moved.get(argument, argument) for argument in daemon.command]

    def part(self, some: Collection[str]) -> None:
        """These nodes reach each other and nobody else, and the others likewise; clients reach all."""
        for name, number in self._ports.items():
            self._inside("ip", "link", "set", f"peer{number}", "master", "peers1" if name in some else "peers0")

    def unplug(self, name: str) -> None:
        """Nobody reaches this node, neither peers nor clients."""
        for cable in ("api", "peer"):
            self._inside("ip", "link", "set", f"{cable}{self._ports[name]}", "down")

    def mend(self) -> None:
        """Everybody reaches everybody."""
        self.part(())
        for number in self._ports.values():
            for cable in ("api", "peer"):
                self._inside("ip", "link", "set", f"{cable}{number}", "up")

    def _api_host(self, number: int) -> str:
        return f"10.253.{self._number}.{number}"

    def _namespace(self) -> int:
        """The process that keeps a new namespace."""
        holder = subprocess.Popen(
            [require_tool("unshare"), "--net", "sleep", "infinity"],
            preexec_fn=dies_with_parent(),  # noqa: PLW1509 - one system call, no Python locks
        )
        self._holders.append(holder)
        here, give_up = os.readlink("/proc/self/ns/net"), time.monotonic() + NAMESPACE_DEADLINE_S
        while os.readlink(f"/proc/{holder.pid}/ns/net") == here:
            assert holder.poll() is None, "unshare has ended"
            assert time.monotonic() < give_up, "no network namespace was made"
            time.sleep(0.005)
        return holder.pid

    def _inside(self, *command: str) -> None:
        _within(self._middle, *command)


def can_separate() -> bool:
    """Whether this user may make network namespaces here. In CI it must be so."""
    if os.geteuid() == 0 and require_tool("ip"):
        tried = subprocess.run([require_tool("unshare"), "--net", "true"], capture_output=True, check=False)
        if tried.returncode == 0:
            return True
    if os.environ.get("CI"):
        pytest.fail("no network namespace can be made, and CI runs every test")
    return False


def _within(holder: int, *command: str) -> None:
    _run(require_tool("nsenter"), f"--net=/proc/{holder}/ns/net", *command)


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, check=False)
    assert done.returncode == 0, (command, done.stderr.decode(errors="replace"))
