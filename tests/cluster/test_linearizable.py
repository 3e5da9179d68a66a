"""Five real daemons under trouble, clients that record every answer, and a checker that says whether some order explains them all.

Nodes are killed (SIGKILL), stopped (SIGSTOP), and, where network namespaces can be made, parted from each other or from everybody. The
checker is that of the simulations (`tests.support.history`). Choices follow the seed; what comes of them follows the machine.

    HOLDFAST_TEST_SECONDS=180 HOLDFAST_SEED=7 pytest -s tests/cluster/test_linearizable.py

With HOLDFAST_TEST_WRONG=1 the daemons are wrong on purpose (`wrong_daemon.py`), and the test is that this is noticed.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import AsyncExitStack, ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import aiohttp
import pytest

from tests.cluster.conftest import MakeCluster
from tests.cluster.gateway import ConnectionBrokenError, Gateway
from tests.cluster.harness import ClusterProcess, Daemon, eventually
from tests.cluster.healing import QUICK_REPAIR
from tests.cluster.histories import Client, Recorder
from tests.cluster.networks import SeparateNetworks, can_separate
from tests.support.history.operation import CAS, NEVER, READ, Operation

SECONDS = float(os.environ.get("HOLDFAST_TEST_SECONDS", "25"))
SEED = int(os.environ.get("HOLDFAST_SEED", "1"))
WRONG = os.environ.get("HOLDFAST_TEST_WRONG") == "1"
WRONG_DAEMON = Path(__file__).with_name("wrong_daemon.py")
CLIENTS = 10
NAMES = [f"v{index}" for index in range(6)]
READY_DEADLINE_S = 120.0
CALM_DEADLINE_S = 180.0
"""In which every gateway must answer for every volume again once the trouble is over."""

LONGEST_TROUBLE_S = 6.0


class Trouble:
    """Does to the nodes, one thing at a time, sometimes two, what machines and networks do to them; undoes all at the end."""

    def __init__(self, cluster: ClusterProcess, networks: SeparateNetworks | None, rng: random.Random) -> None:
        self._cluster = cluster
        self._networks = networks
        self._rng = rng
        self._away: set[str] = set()
        self.counts: Counter[str] = Counter()

    async def run(self, seconds: float) -> None:
        kinds = ["kill", "kill", "stop", "stop"] + (["part", "part", "unplug"] if self._networks else [])
        give_up = time.monotonic() + seconds
        network_free = asyncio.Lock()
        async with asyncio.TaskGroup() as group:
            while time.monotonic() < give_up:
                kind = self._rng.choice(kinds)
                lasts = min(LONGEST_TROUBLE_S, self._rng.choice((0.3, 1.0, 3.0, 6.0)) * self._rng.uniform(0.5, 1.5))
                free = [name for name in self._cluster.names if name not in self._away]
                limit = 2 if self._rng.random() < 0.3 else 1  # two of five now and then: some volumes lose their quorum
                if len(self._away) < limit:
                    if kind in ("kill", "stop"):
                        victim = self._rng.choice(free)
                        self._away.add(victim)
                        group.create_task(self._hit(kind, victim, lasts))
                    elif not network_free.locked():
                        await network_free.acquire()
                        group.create_task(
                            self._cut(kind, self._rng.sample(free, 1 + (limit == 2)), lasts, network_free)
                        )
                await asyncio.sleep(self._rng.uniform(0.2, 1.5))

    async def _hit(self, kind: str, name: str, lasts: float) -> None:
        self.counts[kind] += 1
        daemon = self._cluster[name]
        try:
            if kind == "kill":
                daemon.kill()
                await asyncio.sleep(lasts)
                daemon.start()
                await eventually(partial(self._listens, daemon), f"{name} listens again", READY_DEADLINE_S)
            else:
                daemon.freeze()
                await asyncio.sleep(lasts)
                daemon.thaw()
        finally:
            self._away.discard(name)

    async def _listens(self, daemon: Daemon) -> bool:
        """On a busy machine a start takes a while; until then the node counts as away, or soon all would be."""
        try:
            async with Gateway(daemon.url) as gateway, asyncio.timeout(2):
                return (await gateway.ask("GET", "/healthz")).status == 200
        except (aiohttp.ClientError, TimeoutError, OSError):
            return False

    async def _cut(self, kind: str, names: list[str], lasts: float, network_free: asyncio.Lock) -> None:
        self.counts[kind] += 1
        assert self._networks is not None
        try:
            if kind == "part":
                self._networks.part(names)
            else:
                self._networks.unplug(names[0])
            await asyncio.sleep(lasts)
            self._networks.mend()
        finally:
            network_free.release()


@contextmanager
def separate_networks() -> Iterator[SeparateNetworks | None]:
    """Where they can be made."""
    with ExitStack() as stack:
        if can_separate():
            yield stack.enter_context(SeparateNetworks())
        else:
            print("no network namespaces can be made here: no node is cut off")
            yield None


async def all_answer(cluster: ClusterProcess, what: str, deadline_s: float) -> None:
    """Wait until every gateway can read every name's volume, or say that there is none."""

    async def by(name: str) -> None:
        async with Gateway(cluster[name].url) as gateway:

            async def answers() -> bool:
                assert cluster[name].is_running, cluster[name].log_text()[-2000:]
                try:
                    async with asyncio.timeout(5):
                        if (await gateway.ask("GET", "/readyz")).status != 200:
                            return False
                        return all([(await gateway.get(volume)).status in (200, 404) for volume in NAMES])
                except (aiohttp.ClientError, TimeoutError, OSError):
                    return False

            await eventually(answers, f"{name} {what}", deadline_s)

    await asyncio.gather(*(by(name) for name in cluster.names))


async def who_does_not_answer(cluster: ClusterProcess) -> str:
    """Empty when all do. What has been recorded is judged first, whatever else is wrong."""
    try:
        await all_answer(cluster, "answers again after all trouble", CALM_DEADLINE_S)
    except pytest.fail.Exception as failed:
        return str(failed)
    return ""


async def test_a_request_is_sent_once() -> None:
    """Else a write that was done could count as one that was never sent."""
    received: list[bytes] = []

    async def breaks_off(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        received.append(await reader.readexactly(5))
        server.close()
        writer.transport.abort()

    server = await asyncio.start_server(breaks_off, "127.0.0.1", 0)
    async with Gateway(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}") as gateway:
        with pytest.raises(ConnectionBrokenError):
            await gateway.put("v", b"bytes")
    assert received == [b"bytes"]


async def test_every_history_is_linearizable(make_cluster: MakeCluster) -> None:
    with separate_networks() as networks:
        cluster = await make_cluster(5, start=False, environment=QUICK_REPAIR)
        if networks is not None:
            networks.place(cluster)
        for daemon in cluster.daemons.values():
            if WRONG:
                daemon.command = [word for part in daemon.command for word in wrong(part)]
            daemon.start()
        await all_answer(cluster, "is ready", READY_DEADLINE_S)
        recorder, trouble = Recorder(NAMES), Trouble(cluster, networks, random.Random(f"{SEED} trouble"))
        began = time.monotonic()
        async with AsyncExitStack() as stack:
            gateways = [await stack.enter_async_context(Gateway(url)) for url in cluster.urls()]
            clients = [Client(n, gateways, recorder, random.Random(f"{SEED} {n}")) for n in range(CLIENTS)]
            stop = asyncio.Event()
            async with asyncio.TaskGroup() as group:
                for client in clients:
                    group.create_task(client.run(stop))
                await trouble.run(SECONDS)
                silent = await who_does_not_answer(cluster)
                stop.set()
            # and once more in peace: nothing may have been lost, nor come back
            for name in NAMES:
                for gateway in gateways:
                    await Client(CLIENTS, [gateway], recorder, random.Random(0)).act("read", name)
            await clients[0].act("list", "")
        took = time.monotonic() - began
        history = recorder.history()
        judged = time.monotonic()
        problems = history.problems()
        operations = sum(len(history.of(name)) for name in history.names)
        print(
            f"seed {SEED}, {took:.0f} s: {operations} operations on {len(NAMES)} volumes (listings as reads of each), "
            f"{dict(recorder.counts)}; trouble {dict(trouble.counts)}; judged in {time.monotonic() - judged:.1f} s"
        )
        if WRONG:
            assert problems, "daemons that are wrong were taken for right ones"
            print("\n".join(problems))
            return
        assert not problems, "\n".join(problems)
        assert not silent, silent
        # far below what a machine with nothing else to do gets through; a run with less shows too little
        assert recorder.counts[READ] > SECONDS / 2, recorder.counts
        assert recorder.counts[CAS] > SECONDS / 4, recorder.counts
        assert sum(trouble.counts.values()) >= SECONDS / 10, trouble.counts
        check_that_it_can_fail(recorder)


def wrong(word: str) -> list[str]:
    """A word of a daemon's command line, of the wrong one's."""
    return [sys.executable, str(WRONG_DAEMON)] if Path(word).name == "holdfastd" else [word]


def check_that_it_can_fail(recorder: Recorder) -> None:
    """What a leader that answers alone would have said: the last reader of each volume is given the version before the last."""
    blamed = 0
    for name in recorder.names:
        history = recorder.history()
        operations = history.of(name.encode())
        writes = [o for o in operations if o.kind == CAS and o.applied and o.ret != NEVER and o.value is not None]
        if len(writes) < 2:
            continue
        stale = Operation(
            READ, operations[-1].call + 60, operations[-1].call + 61, writes[-2].value, who="a stale reader"
        )
        history.add(name.encode(), replace(stale))
        blamed += any("a stale reader" in problem for problem in history.problems())
    assert blamed, "a stale read was not noticed"
