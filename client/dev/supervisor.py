"""The runner of a local cluster: owns the daemons' processes from start to end, and ``cluster.json``.

A node that dies stays dead until somebody asks for it through `control`. Stopping sends SIGTERM to all, then SIGKILL to
those that take too long. Nothing else starts or signals these daemons; when the runner itself is killed, the kernel kills them.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from client.dev import control
from client.dev.cluster_file import ClusterFile, NodeEntry, write_cluster_file
from client.dev.daemon import daemon_arguments, daemon_environment, dies_with_parent, require_free_ports
from client.dev.directory import LOGS_NAME, empty, ensure_secret
from client.dev.plan import LOOPBACK, NodePlan
from client.errors import Conflict, HoldfastError, Invalid, NotFound, Unavailable

STOP_DEADLINE_S = 10.0
"""Seconds between SIGTERM and SIGKILL: a daemon has flushed and said goodbye well before."""

READY_DEADLINE_S = 60.0
"""Seconds in which a started node must say that it is ready."""

READY_POLL_S = 0.05
"""Pause between two looks at a starting node."""

READY_ANSWER_S = 2.0
"""Seconds for one such look: a node that hangs while it starts is asked again."""

LOG_TAIL_LINES = 8

Announce = Callable[[str], None]


class NodeProcess:
    """One node's daemon: at most one process at a time, and what is known about the last one."""

    def __init__(self, plan: NodePlan, data: Path, log: Path, command: Sequence[str]) -> None:
        self.plan = plan
        self.data = data
        self.log = log
        self._command = list(command)
        self._process: asyncio.subprocess.Process | None = None
        self._log_start = 0
        self._changing = asyncio.Lock()
        self.expected_to_end = False

    @property
    def name(self) -> str:
        return self.plan.name

    @property
    def pid(self) -> int | None:
        """None when it does not run."""
        running = self._process is not None and self._process.returncode is None
        return self._process.pid if running and self._process is not None else None

    @property
    def ended(self) -> str:
        """How the last process ended, in words."""
        code = None if self._process is None else self._process.returncode
        if code is None:
            return "has not ended"
        if code < 0:
            return f"was killed by {signal.Signals(-code).name}"
        return f"ended with exit code {code}"

    async def start(self, unless: asyncio.Event) -> None:
        """Start the process. Raises `Unavailable` when ``unless`` is set: whoever set it is ending all processes."""
        async with self._changing:
            if unless.is_set():
                raise Unavailable("the cluster is being stopped")
            await self._spawn()

    async def _spawn(self) -> None:
        assert self.pid is None
        self.expected_to_end = False
        self.data.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self._log_start = log.tell()
            self._process = await asyncio.create_subprocess_exec(
                *self._command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=daemon_environment(os.environ),
                start_new_session=True,  # Ctrl-C goes to the runner, which stops its nodes in order
                preexec_fn=dies_with_parent(),
            )

    def signal(self, number: signal.Signals) -> None:
        if self.pid is not None:
            assert self._process is not None
            self.expected_to_end = True
            self._process.send_signal(number)

    async def wait(self) -> None:
        if self._process is not None:
            await self._process.wait()

    async def stop(self) -> None:
        """SIGTERM, and SIGKILL when that is not heard in time."""
        async with self._changing:
            self.signal(signal.SIGTERM)
            try:
                async with asyncio.timeout(STOP_DEADLINE_S):
                    await self.wait()
            except TimeoutError:
                self.signal(signal.SIGKILL)
                await self.wait()

    async def wait_ready(self, deadline_s: float) -> None:
        """Until /readyz says yes. Raises `Unavailable` when the process ends or the deadline passes."""
        give_up = time.monotonic() + deadline_s
        while True:
            if self.pid is None:
                raise Unavailable(f"{self.name} {self.ended} while it was starting:\n{self.log_tail()}")
            status = await http_status(self.plan.api_port, "/readyz")
            if status == 200:
                return
            if time.monotonic() > give_up:
                said = "does not answer" if status is None else f"answers {status}"
                raise Unavailable(
                    f"{self.name} was not ready within {deadline_s:.0f} s (/readyz {said}); its log is {self.log}"
                )
            await asyncio.sleep(READY_POLL_S)

    def log_tail(self) -> str:
        """The last lines that this start wrote."""
        with self.log.open("rb") as log:
            log.seek(self._log_start)
            lines = log.read().decode(errors="replace").splitlines()
        return "\n".join(f"  {line}" for line in lines[-LOG_TAIL_LINES:]) or f"  (nothing in {self.log})"


class Supervisor:
    """All nodes of one directory, whose lock the caller holds. `run` once."""

    def __init__(
        self,
        directory: Path,
        plans: Sequence[NodePlan],
        *,
        previous: ClusterFile | None,
        port_base: int,
        daemon: Sequence[str],
        announce: Announce,
        extra_arguments: Sequence[str] = (),
    ) -> None:
        self._directory = directory
        self._announce = announce
        self._fresh = previous is None
        self._ready = False
        self._stopping = asyncio.Event()
        self._busy: set[str] = set()
        founders = len(plans) if previous is None else previous.bootstrap_expect
        secret_file = ensure_secret(directory)
        seeds = [plan.peer for plan in plans]
        self._nodes: dict[str, NodeProcess] = {}
        for index, plan in enumerate(plans):
            data = directory / plan.name
            arguments = daemon_arguments(
                plan,
                data=data,
                secret_file=secret_file,
                seeds=seeds,
                bootstrap_expect=founders if index < founders else None,
                extra=extra_arguments,
            )
            log = directory / LOGS_NAME / f"{plan.name}.log"
            self._nodes[plan.name] = NodeProcess(plan, data, log, [*daemon, *arguments])
        self._cluster = ClusterFile(
            port_base=port_base,
            bootstrap_expect=founders,
            runner=None,
            nodes=tuple(
                NodeEntry(node.name, None, str(node.data), node.plan.api, node.plan.peer, str(node.log))
                for node in self._nodes.values()
            ),
        )

    @property
    def cluster(self) -> ClusterFile:
        """The present state, as it stands in cluster.json."""
        return self._cluster

    def stop(self) -> None:
        """Begin the clean stop. Said a second time, it kills instead of waiting."""
        if self._stopping.is_set():
            for node in self._nodes.values():
                node.signal(signal.SIGKILL)
        self._stopping.set()

    async def run(self, on_ready: Callable[[], None]) -> None:
        """Start all nodes, call ``on_ready`` once they are, then watch until `stop`; all processes have ended after it.

        Raises `Unavailable` when a new cluster does not come up, or not one node of an old one does.
        """
        require_free_ports([node.plan for node in self._nodes.values()])
        self._write()
        try:
            async with control.serve(self._directory, self._command), asyncio.TaskGroup() as watchers:
                self._watchers = watchers
                try:
                    await self._until_stopped(self._start_all())
                    if not self._stopping.is_set():
                        self._ready = True
                        on_ready()
                        await self._stopping.wait()
                finally:
                    await self._stop_all()
        except ExceptionGroup as group:
            raise _first(group) from None  # one reason is what a person can act on; the others follow from it
        finally:
            self._write(runner=None)

    async def _until_stopped(self, work: Any) -> None:
        """``work``, or until somebody asks us to stop."""
        async with asyncio.TaskGroup() as group:
            task = group.create_task(work)
            stop = group.create_task(self._stopping.wait())
            await asyncio.wait([task, stop], return_when=asyncio.FIRST_COMPLETED)
            task.cancel()
            stop.cancel()

    async def _start_all(self) -> None:
        """Start every node and wait until all are ready, or (of an old cluster) until it is known which are not."""
        for node in self._nodes.values():
            await self._start(node)
        began = time.monotonic()
        ready = 0
        failures: list[Unavailable] = []

        async def one(node: NodeProcess) -> None:
            nonlocal ready
            try:
                await node.wait_ready(READY_DEADLINE_S)
            except Unavailable as failure:
                if self._fresh:
                    raise
                failures.append(failure)
                self._announce(failure.message)
            else:
                ready += 1
                self._announce(
                    f"{node.name} is ready after {time.monotonic() - began:.1f} s ({ready} of {len(self._nodes)})"
                )

        async with asyncio.TaskGroup() as group:
            for node in self._nodes.values():
                group.create_task(one(node))
        if failures and not ready:
            raise failures[0]

    async def _start(self, node: NodeProcess) -> None:
        await node.start(self._stopping)
        self._watchers.create_task(self._watch(node))
        self._write()

    async def _watch(self, node: NodeProcess) -> None:
        await node.wait()
        self._write()
        if not node.expected_to_end and not self._stopping.is_set() and self._ready:
            self._announce(
                f"{node.name} {node.ended}; it stays down until `holdfast dev start {node.name} --data {self._directory}`"
            )

    async def _stop_all(self) -> None:
        async with asyncio.TaskGroup() as group:
            for node in self._nodes.values():
                group.create_task(node.stop())

    def _write(self, runner: int | None = -1) -> None:
        pids = {name: node.pid for name, node in self._nodes.items()}
        self._cluster = self._cluster.with_pids(pids, os.getpid() if runner == -1 else runner)
        write_cluster_file(self._directory, self._cluster)

    async def _command(self, do: str, name: str | None) -> dict[str, Any]:
        """One request through the control socket; requests for one node come one after the other or are refused."""
        if do == "show":
            return self._cluster.to_json()
        if do == "stop" and name is None:
            self._announce("asked to stop")
            self.stop()
            return {"stopping": True}
        if name is None or name not in self._nodes:
            raise NotFound(f"there is no node {name!r}; the nodes are {', '.join(self._nodes)}")
        action = {"start": self._do_start, "kill": self._do_kill, "stop": self._do_stop, "wipe": self._do_wipe}.get(do)
        if action is None:
            raise Invalid(f"unknown command {do!r}")
        if self._stopping.is_set():
            raise Unavailable("the cluster is being stopped")
        if name in self._busy:
            raise Conflict(f"another command for {name} is under way; try again when it is done")
        self._busy.add(name)
        try:
            return {"node": name, **await action(self._nodes[name])}
        finally:
            self._busy.discard(name)

    async def _do_start(self, node: NodeProcess) -> dict[str, Any]:
        if node.pid is not None:
            raise Conflict(f"{node.name} runs already, as process {node.pid}")
        require_free_ports([node.plan])
        await self._start(node)
        self._announce(f"{node.name} was started as process {node.pid}")
        await node.wait_ready(READY_DEADLINE_S)
        return {"pid": node.pid, "ready": True}

    async def _do_kill(self, node: NodeProcess) -> dict[str, Any]:
        return await self._end(node, "was killed", signal.SIGKILL)

    async def _do_stop(self, node: NodeProcess) -> dict[str, Any]:
        return await self._end(node, "was stopped", signal.SIGTERM)

    async def _do_wipe(self, node: NodeProcess) -> dict[str, Any]:
        ended = await self._end(node, "was stopped", signal.SIGTERM)
        try:
            await asyncio.to_thread(empty, node.data)
        except OSError as error:
            raise HoldfastError(f"cannot empty {node.data}: {error}") from error
        self._announce(f"{node.name} was emptied")
        return {**ended, "emptied": str(node.data)}

    async def _end(self, node: NodeProcess, words: str, number: signal.Signals) -> dict[str, Any]:
        pid = node.pid
        if pid is not None:
            if number is signal.SIGKILL:
                node.signal(number)
                await node.wait()
            else:
                await node.stop()
            self._write()
            self._announce(f"{node.name} {words}")
        return {"was_running": pid is not None, "pid": pid}


def _first(error: Exception) -> Exception:
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return error


async def http_status(port: int, path: str) -> int | None:
    """The status of a GET on loopback, None when nobody answers with one. No HTTP library: it is one line each way."""
    try:
        async with asyncio.timeout(READY_ANSWER_S):
            reader, writer = await asyncio.open_connection(LOOPBACK, port)
            try:
                writer.write(f"GET {path} HTTP/1.1\r\nHost: {LOOPBACK}\r\nConnection: close\r\n\r\n".encode())
                fields = (await reader.readline()).split()
            finally:
                writer.close()
    except (OSError, TimeoutError, ValueError):
        return None
    return int(fields[1]) if len(fields) >= 2 and fields[1].isdigit() else None
