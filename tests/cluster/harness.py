"""Real daemons for tests: started in a temporary directory on free ports, killed whatever happens.

A `ClusterProcess` starts N `holdfastd`, and can kill, stop, freeze, thaw, empty and add them, one at a time. Every daemon is
tied to the test process by the kernel, so that none is left behind even when the tests are killed. All methods belong in
the main thread: a daemon ends with the thread that started it.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import pytest

from client import Holdfast, RetryPolicy
from client.dev.daemon import daemon_arguments, daemon_environment, dies_with_parent, find_daemon, require_free_ports
from client.dev.directory import empty
from client.dev.plan import PORTS_PER_NODE, NodePlan, plan_nodes
from client.dev.supervisor import http_status
from client.errors import Invalid

READY_DEADLINE_S = 30.0
"""Seconds in which a started cluster must be ready; it usually takes one or two."""

STOP_DEADLINE_S = 15.0
"""Seconds in which a daemon must have stopped after SIGTERM."""

POLL_S = 0.02
LOG_TAIL_LINES = 15

_port_blocks = itertools.count()


def free_plans(count: int) -> tuple[NodePlan, ...]:
    """Addresses of ``count`` nodes whose ports nobody uses.

    Below the range that the kernel gives to outgoing connections, apart for each test worker, never the same twice in a row.
    """
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw") or 0)
    random = Random(f"{os.getpid()} {worker} {next(_port_blocks)}")
    for _ in range(200):
        base = 10_000 + PORTS_PER_NODE * random.randrange((32_000 - 10_000) // PORTS_PER_NODE - count)
        plans = plan_nodes(count, base)
        try:
            require_free_ports(plans)
        except Invalid:
            continue
        return plans
    raise AssertionError("no free ports")


async def eventually(condition: Callable[[], Any], what: str, deadline_s: float = 20.0, poll_s: float = POLL_S) -> Any:
    """The first true value of ``condition`` (a function, or one that returns an awaitable). Fails when the deadline passes."""
    give_up = time.monotonic() + deadline_s
    while True:
        value = condition()
        if asyncio.iscoroutine(value):
            value = await value
        if value:
            return value
        if time.monotonic() > give_up:
            pytest.fail(f"did not come true within {deadline_s:.0f} s: {what}")
        await asyncio.sleep(poll_s)


def require_tool(name: str) -> str:
    """The path of a program that a test needs. Without it the test is skipped, or fails where CI is set."""
    found = shutil.which(name)
    if found is None:
        if os.environ.get("CI"):
            pytest.fail(f"{name} is not installed, and CI runs every test")
        pytest.skip(f"{name} is not installed")
    return found


@dataclass
class Daemon:
    """One node: its place, its command line, and its process while it runs."""

    plan: NodePlan
    data: Path
    log: Path
    command: list[str]
    environment: dict[str, str]
    process: subprocess.Popen[bytes] | None = None

    @property
    def name(self) -> str:
        return self.plan.name

    @property
    def url(self) -> str:
        return f"http://{self.plan.api}"

    @property
    def pid(self) -> int:
        assert self.is_running, f"{self.name} does not run"
        assert self.process is not None
        return self.process.pid

    @property
    def is_running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def start(self) -> None:
        assert not self.is_running, f"{self.name} runs already"
        self.data.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self.environment,
                start_new_session=True,
                preexec_fn=dies_with_parent(),  # noqa: PLW1509 - one system call, no Python locks
            )

    def kill(self) -> None:
        """SIGKILL, also for one that is frozen; returns when it is gone."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def freeze(self) -> None:
        os.kill(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    async def stop(self, deadline_s: float = STOP_DEADLINE_S) -> int:
        """SIGTERM; the exit code."""
        process = self.process
        assert process is not None
        process.terminate()
        await eventually(lambda: process.poll() is not None, f"{self.name} has stopped", deadline_s)
        return process.returncode

    async def exit_code(self, deadline_s: float = STOP_DEADLINE_S) -> int:
        """Of one that is expected to end by itself."""
        process = self.process
        assert process is not None
        await eventually(lambda: process.poll() is not None, f"{self.name} has ended", deadline_s)
        return process.returncode

    def log_text(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""


@dataclass
class ClusterProcess:
    """N daemons of one cluster. `start` them; `close` is always called, by the fixture."""

    directory: Path
    size: int = 5
    arguments: Sequence[str] = ()
    """Given to every daemon, after the usual ones."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Settings (HOLDFAST_...) for every daemon."""
    spare: int = 1
    """Addresses kept for nodes that are added later."""
    auto_layout: bool = True
    """Nodes that join are taken in without asking."""
    daemons: dict[str, Daemon] = field(init=False, default_factory=dict)
    secret_file: Path = field(init=False)

    def __post_init__(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        self.secret_file = self.directory / "secret"
        self.secret_file.write_text(secrets.token_hex(32))
        self.secret_file.chmod(0o600)
        self._plans = free_plans(self.size + self.spare)
        for plan in self._plans[: self.size]:
            self._define(plan, bootstrap_expect=self.size)

    def _define(
        self,
        plan: NodePlan,
        *,
        bootstrap_expect: int | None,
        secret_file: Path | None = None,
        arguments: Sequence[str] = (),
    ) -> Daemon:
        line = daemon_arguments(
            plan,
            data=self.directory / plan.name,
            secret_file=secret_file or self.secret_file,
            seeds=[other.peer for other in self._plans[: self.size]],
            bootstrap_expect=bootstrap_expect,
            extra=[*self.arguments, *arguments],
        )
        if not self.auto_layout:
            line.remove("--auto-layout")
        self.daemons[plan.name] = Daemon(
            plan=plan,
            data=self.directory / plan.name,
            log=self.directory / f"{plan.name}.log",
            command=[*find_daemon(), *line],
            environment={**daemon_environment(os.environ), **self.environment},
        )
        return self.daemons[plan.name]

    def __getitem__(self, name: str) -> Daemon:
        return self.daemons[name]

    @property
    def names(self) -> list[str]:
        return list(self.daemons)

    def urls(self, *names: str, without: Iterable[str] = ()) -> list[str]:
        """API addresses of the named nodes (all), except some."""
        excluded = set(without)
        return [self.daemons[name].url for name in names or self.names if name not in excluded]

    def client(self, *names: str, without: Iterable[str] = (), policy: RetryPolicy | None = None) -> Holdfast:
        """A client of these nodes; use ``async with``."""
        return Holdfast(self.urls(*names, without=without), token="", policy=policy)

    async def start(self, *names: str, ready: bool = True) -> None:
        """Start the named nodes (all), and wait until they are ready."""
        for name in names or self.names:
            self.daemons[name].start()
        if ready:
            await self.wait_ready(*names)

    async def wait_ready(self, *names: str, deadline_s: float = READY_DEADLINE_S) -> None:
        give_up = time.monotonic() + deadline_s
        for name in names or self.names:
            daemon = self.daemons[name]
            while (status := await http_status(daemon.plan.api_port, "/readyz")) != 200:
                if not daemon.is_running or time.monotonic() > give_up:
                    state = "runs" if daemon.is_running else f"ended ({daemon.process and daemon.process.returncode})"
                    pytest.fail(f"{name} is not ready: /readyz {status}, it {state}\n{daemon.log_text()[-4000:]}")
                await asyncio.sleep(POLL_S)

    async def add(
        self, *, secret_file: Path | None = None, arguments: Sequence[str] = (), ready: bool = True
    ) -> Daemon:
        """One more node, which joins the cluster."""
        plan = self._plans[len(self.daemons)]
        daemon = self._define(plan, bootstrap_expect=None, secret_file=secret_file, arguments=arguments)
        await self.start(plan.name, ready=ready)
        return daemon

    def kill(self, *names: str) -> None:
        """SIGKILL to all the named ones (all) at once, then wait for each."""
        chosen = [self.daemons[name] for name in names or self.names]
        for daemon in chosen:
            if daemon.process is not None:
                daemon.process.kill()
        for daemon in chosen:
            daemon.kill()

    def wipe(self, name: str) -> None:
        """Kill it and empty its data directory."""
        self.daemons[name].kill()
        empty(self.daemons[name].data)

    def close(self) -> None:
        """Kill everything and show the ends of the logs, which pytest prints when the test has failed."""
        self.kill()
        for daemon in self.daemons.values():
            lines = daemon.log_text().splitlines()[-LOG_TAIL_LINES:]
            print(f"--- {daemon.name} ({daemon.log})", *lines, sep="\n")
