"""Who is set mending, by what comparisons find."""

from __future__ import annotations

import asyncio
import random
from typing import Any, cast

from cluster.layout.layout import LayoutNode
from cluster.layout.planner import plan_layout
from cluster.register.key import RegisterKey
from cluster.repair.anti_entropy import AntiEntropy
from cluster.repair.chunk_mender import ChunkMender
from cluster.repair.comparison import Comparison, Differences, KeyDifference
from cluster.repair.messages import NudgeKeys
from cluster.repair.register_queue import RegisterQueue
from cluster.repair.settings import RepairSettings
from tests.support.simulated.clock import VirtualClock
from tests.support.simulated.loop import run_virtual

KEY = RegisterKey("t", b"p", b"k")


class NoChunks:
    """A mender of chunks that has nothing to do."""

    def note(self, chunks: dict[bytes, None]) -> None:
        assert not chunks


class Bench:
    """One node, and a peer with which it always finds the same differences."""

    def __init__(self, *differences: KeyDifference) -> None:
        self.differences = list(differences)
        self.nudged: list[float] = []
        self.noted: list[float] = []
        nodes = [LayoutNode(name=name, zone=name, capacity=1 << 30, host=name, port=7482) for name in ("a", "b")]
        layout = plan_layout(None, nodes, replication_factor=2, partition_bits=4)
        self.state = type("State", (), {"current": layout})

    # comparison, installed layout, caller, queue of registers

    async def with_peer(self, _name: str, _start: float) -> Differences:
        return Differences(keys=list(self.differences))

    def is_alive(self, _name: str) -> bool:
        return True

    async def call(self, _name: str, request: Any, *, deadline_s: float) -> None:
        assert isinstance(request, NudgeKeys)
        self.nudged.append(asyncio.get_running_loop().time())

    def note(self, _partition: int, _keys: list[RegisterKey]) -> None:
        self.noted.append(asyncio.get_running_loop().time())

    async def run(self, seconds: float) -> None:
        me: Any = self
        anti_entropy = AntiEntropy(
            "a",
            RepairSettings(interval_s=4.0, persist_s=1.0, retry_s=0.5),
            cast("Comparison", me),
            me,
            me,
            cast("ChunkMender", NoChunks()),
            cast("RegisterQueue", me),
            VirtualClock(),
            random.Random(1),
        )
        task = asyncio.get_running_loop().create_task(anti_entropy.run())
        await asyncio.sleep(seconds)
        task.cancel()
        await asyncio.wait([task])


def test_what_is_older_here_is_mended_here() -> None:
    bench = Bench(KeyDifference(3, KEY, mine=False))
    run_virtual(bench.run(5.0))
    assert bench.noted
    assert not bench.nudged


def test_what_stays_newer_here_for_all_nudging_is_mended_here_too() -> None:
    """It may have been accepted by this node alone, and be decided otherwise by the rest, who can't write it over."""
    bench = Bench(KeyDifference(3, KEY, mine=True))
    run_virtual(bench.run(4.0))
    assert len(bench.nudged) == 1
    assert not bench.noted, "mostly the peer lags, and comes round"
    bench = Bench(KeyDifference(3, KEY, mine=True))
    run_virtual(bench.run(12.0))
    assert len(bench.nudged) >= 2
    assert bench.noted
    assert bench.noted[0] > bench.nudged[0]
