"""The cluster that is measured: five daemons on loopback, and what the kernel says about their processes."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmark.large_load import Address
from client.dev.plan import LOOPBACK
from client.dev.supervisor import http_status
from tests.cluster.harness import ClusterProcess, Daemon

NODES = 5
START_POLL_S = 0.005
CHUNK_GRACE_S = 5
"""Deleted volumes give their space back soon, so that runs do not fill the disk."""

_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


class Testbed:
    """``async with Testbed(directory) as testbed``: a cluster that is ready; its daemons are killed at the end."""

    def __init__(self, directory: Path) -> None:
        self.cluster = ClusterProcess(
            directory, NODES, ["--log-level", "warning", "--chunk-grace-s", str(CHUNK_GRACE_S)], spare=0
        )

    async def __aenter__(self) -> Testbed:
        await self.cluster.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.cluster.kill()

    @property
    def gateway(self) -> Address:
        return Address(LOOPBACK, self._first.plan.api_port)

    @property
    def _first(self) -> Daemon:
        return next(iter(self.cluster.daemons.values()))

    @property
    def _last(self) -> Daemon:
        return list(self.cluster.daemons.values())[-1]

    @contextmanager
    def place_for_member(self) -> Iterator[list[str]]:
        """Stop one daemon and lend its place: the command line of the member that takes it until the block ends."""
        daemon = self._last
        daemon.kill()
        yield daemon.command[1:]
        daemon.start()

    async def empty(self) -> None:
        """Kill a daemon, empty its disk, start it again and wait until it is ready."""
        daemon = self._last
        self.cluster.wipe(daemon.name)
        await self.cluster.start(daemon.name)

    def newest_logs(self) -> list[Path]:
        """The chunk logs of the daemon that `empty` empties."""
        return sorted((self._last.data / "chunks").glob("chunks-*.log"))

    def log_bytes(self) -> int:
        """Bytes in them."""
        return sum(log.stat().st_size for log in self.newest_logs())

    async def wait_ready(self) -> None:
        await self.cluster.wait_ready()

    def running_pids(self) -> list[int]:
        return [daemon.pid for daemon in self.cluster.daemons.values() if daemon.is_running]

    async def restart(self) -> float:
        """Stop a daemon, start it again; the seconds from its start until it says that it is ready."""
        daemon = self._last
        await daemon.stop()
        start = time.perf_counter()
        daemon.start()
        while await http_status(daemon.plan.api_port, "/readyz") != 200:
            if not daemon.is_running or time.perf_counter() - start > 30:
                raise RuntimeError(f"{daemon.name} did not start:\n{daemon.log_text()[-2000:]}")
            await asyncio.sleep(START_POLL_S)
        return time.perf_counter() - start

    async def idle(self, seconds: float) -> tuple[float, float]:
        """Resident MiB of a daemon, and the per cent of a core that it uses, on average over the daemons."""
        pids = [daemon.pid for daemon in self.cluster.daemons.values()]
        before, start = sum(map(cpu_s, pids)), time.perf_counter()
        await asyncio.sleep(seconds)
        cpu = (sum(map(cpu_s, pids)) - before) / (time.perf_counter() - start)
        return sum(map(_resident_mib, pids)) / len(pids), 100 * cpu / len(pids)


def cpu_s(pid: int) -> float:
    """Processor seconds that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def _resident_mib(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE / (1 << 20)
