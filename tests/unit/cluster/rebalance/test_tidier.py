"""The tidier of one node, against peers that answer as told."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from blake3 import blake3

from cluster.chunks.messages import HoldChunks, ListedChunk, ListedReference, PutChunk
from cluster.errors import HoldfastError, NoSpace, StaleLayout
from cluster.governance.state import LayoutState
from cluster.layout.layout import Layout, LayoutNode
from cluster.layout.planner import plan_layout
from cluster.layout.ring import chunk_partition
from cluster.rebalance.tidier import Tidier
from cluster.repair.budget import RepairBudget
from cluster.repair.judge import Verdict
from cluster.repair.messages import Described
from cluster.rpc.caller import Reply
from cluster.rpc.message import Done
from tests.support.simulated.clock import VirtualClock
from tests.support.simulated.loop import run_virtual
from tests.support.simulated.memory_chunks import ChunkDisk, MemoryChunkStore

BITS = 4
REFERRER = bytes(16)


class Peers:
    """What other nodes hold. ``full``: those that take nothing."""

    def __init__(self) -> None:
        self.held: dict[str, set[bytes]] = {}
        self.full: set[str] = set()
        self.on_put: Callable[[], None] = lambda: None

    async def call(self, peer: str, request: Any, payload: bytes = b"", *, deadline_s: float) -> Reply[Any]:
        held = self.held.setdefault(peer, set())
        if isinstance(request, PutChunk):
            if peer in self.full:
                raise NoSpace("full")
            held.add(request.chunk)
            self.on_put()
            return Reply(Done(), b"")
        assert not isinstance(request, HoldChunks)
        references = (ListedReference(REFERRER, 1),)
        listed = [ListedChunk(chunk, 1, references) if chunk in held else None for chunk in request.chunks]
        return Reply(Described(tuple(listed)), b"")


class Judge:
    async def judge(self, references: Sequence[tuple[bytes, bytes]]) -> list[Verdict]:
        return [Verdict.LIVE] * len(references)

    async def judge_each(self, references: Sequence[tuple[bytes, bytes]]) -> Sequence[Verdict | HoldfastError]:
        return await self.judge(references)


class Installed:
    def __init__(self, layout: Layout) -> None:
        self.state = LayoutState(bytes(16), 1, bytes(8), layout)
        self.epoch = 1
        self.dead: set[str] = set()

    def on_install(self, listener: object) -> None: ...

    def check(self, epoch: int) -> bool:
        return epoch == self.epoch

    def is_alive(self, name: str) -> bool:
        return name not in self.dead


class Bench:
    """n1 tidies; it holds one copy of each of many chunks that belong somewhere else, in one copy and in three."""

    def __init__(self) -> None:
        nodes = [LayoutNode(f"n{i}", f"n{i}", 1, "h", 1) for i in range(1, 6)]
        self.layout = plan_layout(None, nodes, replication_factor=3, partition_bits=BITS)
        self.installed = Installed(self.layout)
        self.peers = Peers()
        self.disk = ChunkDisk()
        rng = random.Random(1)
        clock = VirtualClock()
        store = MemoryChunkStore(self.disk, rng)
        budget = RepairBudget(clock, 0, lambda: 0)
        self.tidier = Tidier("n1", self.peers, store, self.installed, Judge(), budget, clock, retired_grace_s=60)  # type: ignore[arg-type]

    def hold(self, copies: int, count: int = 200) -> None:
        for index in range(count):
            data = f"{copies} {index}".encode()
            chunk = blake3(data).digest()
            if "n1" not in self.due(chunk, copies):
                self.disk.refer(chunk, data, REFERRER, copies)

    def due(self, chunk: bytes, copies: int) -> tuple[str, ...]:
        return self.layout.placement(chunk_partition(chunk, BITS), copies)

    def left(self) -> set[str]:
        """Who the chunks that are still here belong to."""
        return {
            name for chunk, (_, references) in self.disk.items() for name in self.due(chunk, max(references.values()))
        }

    async def tidy(self) -> bool:
        return await self.tidier._tidy(self.installed.state, self.tidier._foreign_partitions(self.installed.state))


def test_everything_foreign_goes_home() -> None:
    async def main() -> None:
        bench = Bench()
        bench.hold(1)
        assert await bench.tidy()
        assert not bench.disk
        assert set(bench.peers.held) == {"n2", "n3", "n4", "n5"}

    run_virtual(main())


def test_a_node_that_is_full_holds_up_only_what_is_its_own() -> None:
    async def main() -> None:
        bench = Bench()
        bench.hold(1)
        bench.peers.full.add("n3")
        assert not await bench.tidy()
        assert bench.left() == {"n3"}
        assert "full" in bench.tidier.last_error

    run_virtual(main())


def test_a_node_that_is_dead_holds_up_only_what_is_its_own() -> None:
    async def main() -> None:
        bench = Bench()
        bench.hold(1)
        bench.hold(3)
        bench.installed.dead.add("n3")
        assert not await bench.tidy()
        assert all("n3" in bench.due(chunk, max(refs.values())) for chunk, (_, refs) in bench.disk.items())

    run_virtual(main())


def test_nothing_is_dropped_once_the_layout_is_another_one() -> None:
    """By the newer one this node may be a holder, and others have given up theirs because it has a copy."""

    async def main() -> None:
        bench = Bench()
        bench.hold(1)
        before = set(bench.disk)

        def change() -> None:
            bench.installed.epoch = 2

        bench.peers.on_put = change
        with pytest.raises(StaleLayout):
            await bench.tidy()
        assert set(bench.disk) == before

    run_virtual(main())
