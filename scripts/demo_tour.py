"""The guided tour of `scripts/demo`: what Holdfast does when machines and disks fail, shown on a real file and real processes.

Each step does something, says why it matters, and checks what came of it; the first thing that is not as it should be ends the tour
with exit code 1. The cluster is `holdfast dev` with a directory of its own; it and the directory are gone at the end, however it comes.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

from client import Holdfast
from client.cli.durations import format_duration
from client.cli.repair_report import missing_line
from client.cli.repair_wait import QUIET_LOOKS, RepairWait, unfinished
from client.cli.sizes import format_size, parse_size
from client.dev import control
from client.dev.daemon import dies_with_parent, require_free_ports
from client.dev.plan import PORTS_PER_NODE, plan_nodes
from client.errors import HoldfastError, Invalid

NODES = ("n1", "n2", "n3", "n4", "n5")
KILLED, WIPED = "n2", "n4"

DEFAULT_SIZE = 208 << 20
SECOND_PART = 8
"""What is written while a node is dead is an eighth of the first file."""

FLIPS = 24
"""Bytes turned over on a disk: some may hit what nothing refers to, most hit data."""

LOG_HEADER = 64
"""Bytes at the start of a chunk log that are the same for any content: damage there is another story."""

BLOCK = 1 << 20
START_S, WHOLE_S, STOP_S = 60.0, 120.0, 20.0
"""Seconds in which the cluster must be up, be whole again, and have stopped."""

POLL_S = 0.25
LOG_LINES = 4


class WrongError(Exception):
    """Something is not as it should be; the message says what."""


class Narrator:
    """What people read: steps with numbers, facts with times, and a bar that is redrawn where somebody watches."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._step = 0
        self._drawn = False

    def step(self, title: str, why: str) -> None:
        self._step += 1
        print(f"\n{self._step}. {title}   [{format_duration(time.monotonic() - self._began)}]")
        print(f"   {why}", flush=True)

    def fact(self, text: str) -> None:
        self._end_bar()
        print(f"   - {text}", flush=True)

    def bar(self, text: str) -> None:
        if sys.stdout.isatty():
            print(f"\r\x1b[K     {text}", end="", flush=True)
            self._drawn = True
        else:
            print(f"     {text}", flush=True)

    def end(self) -> None:
        self._end_bar()
        print(f"\nAll of it held, in {format_duration(time.monotonic() - self._began)}.", flush=True)

    def _end_bar(self) -> None:
        if self._drawn:
            print()
        self._drawn = False


class Cluster:
    """`holdfast dev` on a directory, and clients of its nodes."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.plans = {plan.name: plan for plan in _free_plans()}

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """The cluster, from before its start to after its end."""
        first = self.plans[NODES[0]]
        command = [str(Path(sys.executable).parent / "holdfast"), "dev", "--nodes", str(len(NODES)), "--json"]
        command += ["--data", str(self.directory), "--port-base", str(first.api_port)]
        with (self.directory.parent / "dev.log").open("wb") as log:
            process = subprocess.Popen(
                command,
                stdout=subprocess.PIPE,
                stderr=log,
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is ours; we stop it in good order
                preexec_fn=dies_with_parent(),  # noqa: PLW1509 - one system call, no Python locks
            )
        try:
            self._process = process
            yield
        finally:
            process.terminate()
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            if process.stdout is not None:
                process.stdout.close()

    async def wait_ready(self) -> None:
        """`holdfast dev --json` prints one line when all nodes are ready."""
        assert self._process.stdout is not None
        reader = asyncio.StreamReader()
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), self._process.stdout
        )
        try:
            async with asyncio.timeout(START_S):
                if not await reader.readline():
                    raise WrongError("the cluster did not start")
        except TimeoutError:
            raise WrongError(f"the cluster was not ready within {START_S:.0f} s") from None
        finally:
            transport.close()

    def client(self, *names: str) -> Holdfast:
        return Holdfast([f"http://{self.plans[name].api}" for name in names or NODES], token="")

    async def ask(self, do: str, node: str) -> dict[str, Any]:
        return await asyncio.to_thread(control.ask, self.directory, do, node)

    def last_words(self) -> Iterator[str]:
        """The ends of the logs, for whoever has to find out what went wrong."""
        for path in [self.directory.parent / "dev.log", *sorted(self.directory.glob("logs/*.log"))]:
            if path.exists():
                yield from (
                    f"{path.name}: {line}" for line in path.read_text(errors="replace").splitlines()[-LOG_LINES:]
                )


class Tour:
    def __init__(self, cluster: Cluster, narrator: Narrator, size: int) -> None:
        self.cluster = cluster
        self.tell = narrator
        self.size = size
        self.digests: dict[str, str] = {}

    async def run(self) -> None:
        await self.store()
        await self.kill()
        await self.write_more()
        await self.wipe()
        await self.mend()
        await self.damage()

    async def store(self) -> None:
        self.tell.step("Store a file", "Any node takes it; every chunk goes to three of the five nodes' disks.")
        began = time.monotonic()
        await self.cluster.wait_ready()
        self.tell.fact(f"five daemons are up after {format_duration(time.monotonic() - began)}, each with its own disk")
        await self.put("film", self.size, through="n1")

    async def kill(self) -> None:
        self.tell.step(
            f"kill -9 {KILLED}, and read the file through every other node",
            "No leader, no fail-over, nothing to wait for: any majority of a chunk's three nodes is enough.",
        )
        await self.cluster.ask("kill", KILLED)
        await self.compare_through(*(name for name in NODES if name != KILLED))

    async def write_more(self) -> None:
        self.tell.step(
            "Write while it is dead",
            "Copies meant for the dead node go to the next one, which hands them over later.",
        )
        await self.put("diary", max(1, self.size // SECOND_PART), through="n1")

    async def wipe(self) -> None:
        self.tell.step(
            f"Lose the whole disk of {WIPED}, then start both nodes again",
            "One comes back with an old state, the other with nothing: neither may answer from what it has forgotten.",
        )
        await self.cluster.ask("wipe", WIPED)
        async with self.cluster.client() as client:
            missing = (await client.repair())["copies_missing"]
        if not missing:
            raise WrongError(f"{KILLED} is dead and {WIPED} lost its disk, but no copy is reported missing")
        self.tell.fact(f"{WIPED} has an empty disk now; with {KILLED} dead, {missing} copies are missing")
        for name in (KILLED, WIPED):
            began = time.monotonic()
            await self.cluster.ask("start", name)
            self.tell.fact(f"{name} is ready after {format_duration(time.monotonic() - began)}")

    async def mend(self) -> None:
        self.tell.step(
            "Watch the missing copies come back",
            "Nodes compare what they hold by Merkle trees, and fetch what they lack, without being told.",
        )
        began = time.monotonic()
        looks = 0
        async with self.cluster.client() as client:
            async for document in self.looks(client):
                looks = looks + 1 if document["health"] == "healthy" else 0
                if looks == QUIET_LOOKS:
                    break
        self.tell.fact(
            f"all {document['copies_due']} copies are in their places, "
            f"{format_duration(time.monotonic() - began)} after the nodes were back"
        )
        await self.compare_through(KILLED, WIPED)

    async def damage(self) -> None:
        name = await asyncio.to_thread(self._fullest_of_the_untouched)
        self.tell.step(
            f"Turn over {FLIPS} bytes on the disk of {name}, behind its back, and scrub",
            "Disks do that, and say nothing. Every read is checked; a scrub reads what nobody asks for.",
        )
        hit = await asyncio.to_thread(flip_bytes, self.cluster.directory / name / "chunks")
        self.tell.fact(f"damaged {hit} on {name}")
        async with self.cluster.client() as client:
            before = await client.repair()
            began = time.monotonic()
            told = await client.repair_run(scrub=True)
            if failed := [node["name"] for node in told["nodes"] if not node["done"]]:
                raise WrongError(f"{', '.join(failed)} did not begin to scrub: {told}")
            wait = RepairWait(before, scrub=True)
            async for document in self.looks(client):
                if wait.is_over(document, time.monotonic() - began):
                    break
        found = damaged_on(document, name) - damaged_on(before, name)
        if found < 1:
            raise WrongError(f"bytes on {name} were turned over, but the scrub found nothing")
        self.tell.fact(
            f"the scrub found {found} damaged chunks, and fetched good copies from other nodes, "
            f"in {format_duration(time.monotonic() - began)}"
        )
        await self.compare_through(*NODES)

    def _fullest_of_the_untouched(self) -> str:
        """Of the nodes that nothing has happened to: chunks lie where their names hash to, so any one of them may hold none of a small
        file, but together they hold a copy of each."""
        chunks = {name: self.cluster.directory / name / "chunks" for name in NODES if name not in {KILLED, WIPED}}
        return max(chunks, key=lambda name: sum(log.stat().st_size for log in chunks[name].glob("chunks-*.log")))

    async def looks(self, client: Holdfast) -> AsyncIterator[dict[str, Any]]:
        """One document of `/v1/repair` after the other, drawn, until whoever asked has seen enough. Raises WrongError when that takes
        too long."""
        give_up = time.monotonic() + WHOLE_S
        last = ""
        while True:
            document = await client.repair()
            line = f"missing copies: {missing_line(document)}"
            if line != last:
                self.tell.bar(line)
            last = line
            yield document
            if time.monotonic() > give_up:
                raise WrongError(f"the cluster is not whole after {WHOLE_S:.0f} s: {unfinished(document)}")
            await asyncio.sleep(POLL_S)

    async def put(self, name: str, size: int, *, through: str) -> None:
        path = self.cluster.directory.parent / name
        self.digests[name] = await asyncio.to_thread(make_file, path, size)
        began = time.monotonic()
        async with self.cluster.client(through) as client:
            volume = await client.put(name, path)
        seconds = time.monotonic() - began
        path.unlink()
        if volume.size != size:
            raise WrongError(f"{name} has {volume.size} bytes in the cluster, not {size}")
        self.tell.fact(
            f"{name}, {format_size(size)}, is on a majority of its disks after {format_duration(seconds)} "
            f"({format_size(size / seconds)}/s), SHA-256 {self.digests[name][:16]}..."
        )

    async def compare_through(self, *names: str) -> None:
        """Read everything through each of the nodes alone."""
        for name in names:
            began = time.monotonic()
            read = 0
            async with self.cluster.client(name) as client:
                for volume, expected in self.digests.items():
                    digest = hashlib.sha256()
                    async with client.open(volume) as content:
                        async for piece in content:
                            digest.update(piece)
                            read += len(piece)
                    if digest.hexdigest() != expected:
                        raise WrongError(f"{volume} read through {name} is not what was stored")
            seconds = time.monotonic() - began
            self.tell.fact(f"through {name}: {format_size(read)}, the same bytes ({format_size(read / seconds)}/s)")


def make_file(path: Path, size: int) -> str:
    """Random bytes, which nothing can fake or compress; their SHA-256."""
    digest = hashlib.sha256()
    with path.open("wb") as file:
        left = size
        while left:
            block = os.urandom(min(BLOCK, left))
            digest.update(block)
            file.write(block)
            left -= len(block)
    return digest.hexdigest()


def flip_bytes(chunks: Path) -> str:
    """Turn over bytes at random places of a node's chunk log, under the running daemon; what was done, in words."""
    log = max(chunks.glob("chunks-*.log"), key=lambda path: path.stat().st_size)
    size = log.stat().st_size
    if size <= LOG_HEADER:
        raise WrongError(f"{log} holds nothing that could be damaged")
    with log.open("r+b") as file:
        for place in random.sample(range(LOG_HEADER, size), min(FLIPS, size - LOG_HEADER)):
            file.seek(place)
            byte = file.read(1)
            file.seek(place)
            file.write(bytes([byte[0] ^ 0xFF]))
    return f"{FLIPS} bytes of {log.name} ({format_size(size)})"


def damaged_on(document: dict[str, Any], name: str) -> int:
    return next(node["damaged_chunks"] or 0 for node in document["nodes"] if node["name"] == name)


def _free_plans() -> Any:
    """Addresses whose ports nobody uses now, below those that the kernel gives to outgoing connections."""
    for _ in range(200):
        block = random.randrange((32_000 - 10_000) // PORTS_PER_NODE - len(NODES))  # noqa: S311 - no secret
        base = 10_000 + PORTS_PER_NODE * block
        plans = plan_nodes(len(NODES), base)
        with contextlib.suppress(Invalid):
            require_free_ports(plans)
            return plans
    raise WrongError("no free ports on this machine")


async def tour(directory: Path, size: int) -> int:
    """The exit code."""
    cluster, narrator = Cluster(directory), Narrator()
    task = asyncio.current_task()
    assert task is not None
    terminated = False

    def terminate() -> None:
        nonlocal terminated
        terminated = True
        task.cancel()

    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, terminate)
    with cluster.running():
        try:
            await Tour(cluster, narrator, size).run()
        except (WrongError, HoldfastError) as error:
            print(f"\nWRONG: {error}", file=sys.stderr)
            print("What the nodes said last:", *cluster.last_words(), sep="\n  ", file=sys.stderr, flush=True)
            return 1
        except asyncio.CancelledError:
            if terminated:
                return 128 + signal.SIGTERM
            raise
        narrator.end()
    return 0


def _size(text: str) -> int:
    try:
        size = parse_size(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    if size < 1:
        raise argparse.ArgumentTypeError("the file has at least one byte")
    return size


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/demo", description="A guided tour of what happens when things fail.")
    parser.add_argument("--size", type=_size, default=DEFAULT_SIZE, help="of the file that is stored (default 208MiB)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="holdfast-demo-") as temporary:
        directory = Path(temporary) / "cluster"
        directory.mkdir()
        try:
            return asyncio.run(tour(directory, arguments.size))
        except KeyboardInterrupt:
            print("\nInterrupted; everything is cleaned up.", file=sys.stderr)
            return 128 + signal.SIGINT


if __name__ == "__main__":
    sys.exit(main())
