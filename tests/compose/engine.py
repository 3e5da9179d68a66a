"""A Docker engine for tests: the one that runs already, or one of their own that leaves nothing behind.

One's own engine lives in namespaces of its own (network, processes, mounts), so its bridges, packet rules, containers and mounts
meet nobody else's, and the kernel takes all of them away when the first process in there ends, which is tied to the test process.
What remains is its directory and empty control groups; both are removed by `close`, or by pytest and the next engine when the tests
themselves were killed.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Self

from client.dev.daemon import dies_with_parent

START_DEADLINE_S = 30.0
"""Seconds in which an engine must answer; it usually takes one."""

END_DEADLINE_S = 20.0
"""Seconds in which the kernel must have ended everything in the engine's namespaces."""

POLL_S = 0.25
"""Between looks; each look starts a process or two."""

CONTROL_GROUPS = Path("/sys/fs/cgroup")
CONTROL_GROUP_PREFIX = "holdfast-engine-"

LOG_TAIL = 2000
"""Characters of a failed engine's log that are shown."""


class NoEngineError(Exception):
    """There is no engine, and none can be started; says why."""


class CommandError(AssertionError):
    """A command that had to succeed did not."""


def isolated(command: Sequence[str], *, network: bool) -> list[str]:
    """The command as the first process of namespaces of its own: nothing that it starts or mounts outlives it, nor it its parent."""
    line = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    return [*line, "--net", *command] if network else [*line, *command]


def run_isolated(command: Sequence[str], log: IO[bytes], *, network: bool = False) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        isolated(command, network=network),
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        start_new_session=True,
        preexec_fn=dies_with_parent(),  # noqa: PLW1509 - one system call, no Python locks
    )


@dataclass
class Engine:
    """An engine that answers. `run` talks to it; `close` is always called, by the fixture."""

    environment: dict[str, str]
    """For everything that talks to it."""
    inside: tuple[str, ...] = ()
    """Put before a command that is to reach published ports: how to enter the engine's network."""
    _stop: Callable[[], None] | None = None
    compose: tuple[str, ...] = field(init=False)
    """Compose v2 where it is installed, else v1."""

    def __post_init__(self) -> None:
        if _succeeds(["docker", "compose", "version"], self.environment):
            self.compose = ("docker", "compose")
        elif shutil.which("docker-compose"):
            self.compose = ("docker-compose",)
        else:
            self.close()
            raise NoEngineError("Docker Compose is not installed (neither `docker compose` nor docker-compose)")

    @classmethod
    def find(cls, directory: Path) -> Self:
        """The running engine, else a new one with its data in the directory. Raises NoEngineError."""
        if shutil.which("docker") is None:
            raise NoEngineError("docker is not installed")
        environment = dict(os.environ)
        asked = subprocess.run(_ASK, env=environment, capture_output=True, text=True, check=False)
        if asked.returncode == 0:
            return cls(environment)
        if os.geteuid() != 0:
            raise NoEngineError(f"no usable Docker engine, and only root can start one: {asked.stderr.strip()}")
        for program in ("dockerd", "unshare", "nsenter", "ip"):
            if shutil.which(program) is None:
                raise NoEngineError(f"no Docker engine runs, and {program}, which starting one takes, is not installed")
        own = OwnEngine(directory)
        try:
            own.start()
            return cls(own.environment, own.inside, own.stop)
        except BaseException:
            own.stop()
            raise

    @property
    def is_own(self) -> bool:
        return self._stop is not None

    def run(self, *command: str, environment: Mapping[str, str] | None = None, check: bool = True) -> str:
        """Standard output of a command that talks to this engine. Raises CommandError with all that it said."""
        ended = subprocess.run(
            command,
            env={**self.environment, **(environment or {})},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
        if check and ended.returncode != 0:
            said = f"{ended.stdout[-LOG_TAIL:]}\n{ended.stderr[-LOG_TAIL:]}".strip()
            raise CommandError(f"{' '.join(command)} ended with {ended.returncode}:\n{said}")
        return ended.stdout

    def close(self) -> None:
        """Take away one's own engine with everything in it; leave another's alone."""
        if self._stop is not None:
            self._stop()


class OwnEngine:
    """``dockerd`` in namespaces of its own. Root only."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._log = directory / "dockerd.log"
        self._group = f"{CONTROL_GROUP_PREFIX}{os.getpid()}"
        self._process: subprocess.Popen[bytes] | None = None
        self.environment = {**os.environ, "DOCKER_HOST": f"unix://{directory}/docker.sock"}
        for name in ("DOCKER_CONTEXT", "DOCKER_TLS_VERIFY", "DOCKER_CERT_PATH"):
            self.environment.pop(name, None)
        self.inside: tuple[str, ...] = ()

    def start(self) -> None:
        """Returns when it answers. Raises NoEngineError."""
        remove_control_groups()
        self._directory.mkdir(parents=True, exist_ok=True)
        place = str(self._directory)
        # /run is its own too: the engine and containerd keep sockets there whatever they are told
        prepare = 'mount -t tmpfs tmpfs /run && ip link set lo up && exec "$@"'
        daemon = [
            "dockerd",
            *("--data-root", f"{place}/data"),
            *("--exec-root", f"{place}/exec"),
            *("--pidfile", f"{place}/pid"),
            *("--host", f"unix://{place}/docker.sock"),
            *("--cgroup-parent", f"/{self._group}"),
            *("--exec-opt", "native.cgroupdriver=cgroupfs"),
        ]
        with self._log.open("ab") as log:
            self._process = run_isolated(["sh", "-c", prepare, "sh", *daemon], log, network=True)
        give_up = time.monotonic() + START_DEADLINE_S
        while not _succeeds(_ASK, self.environment):
            if self._process.poll() is not None or time.monotonic() > give_up:
                said = self._log.read_text(errors="replace")[-LOG_TAIL:]
                raise NoEngineError(f"a Docker engine can't be started here:\n{said}")
            time.sleep(POLL_S)
        first = _children(self._process.pid)
        assert len(first) == 1, first
        self.inside = ("nsenter", f"--net=/proc/{first[0]}/ns/net", "--")

    def stop(self) -> None:
        """End everything in there; returns when it is gone."""
        if self._process is not None:
            # unshare ends after its child, and that is gone only when all other processes of its namespace are
            for child in _children(self._process.pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)
            try:
                self._process.wait(END_DEADLINE_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                raise
            self._process = None
        remove_control_groups()
        for name in ("data", "exec"):
            if (self._directory / name).exists():
                shutil.rmtree(self._directory / name)


def remove_control_groups() -> None:
    """Those of this process, and those left by processes that have been killed."""
    for pattern in (f"{CONTROL_GROUP_PREFIX}*", f"*/{CONTROL_GROUP_PREFIX}*"):
        for top in CONTROL_GROUPS.glob(pattern):
            owner = top.name.removeprefix(CONTROL_GROUP_PREFIX)
            if owner != str(os.getpid()) and Path("/proc", owner).exists():
                continue
            for directory, _, _ in os.walk(top, topdown=False):
                with contextlib.suppress(OSError):  # the kernel refuses to remove one that has processes in it
                    os.rmdir(directory)


_ASK = ("docker", "version", "--format", "{{.Server.Version}}")


def _children(process: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def _succeeds(command: Sequence[str], environment: Mapping[str, str]) -> bool:
    return subprocess.run(command, env=environment, capture_output=True, check=False).returncode == 0
