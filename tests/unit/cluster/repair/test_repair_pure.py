"""The pure parts of repair: what persists, what is missing, what is shared, how fast."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.errors import HoldfastError, QuorumUnavailable
from cluster.layout.layout import Layout, LayoutNode
from cluster.layout.planner import plan_layout
from cluster.merkle.bits import bit_set, set_bits
from cluster.register.view import META_PARTITION
from cluster.repair import budget as budget_module
from cluster.repair.budget import RepairBudget
from cluster.repair.judge import Verdict, no_longer_live
from cluster.repair.messages import NodeRepair
from cluster.repair.sharing import Sharing
from cluster.repair.status import pack_counts, summarise
from cluster.repair.suspicion import ACT_AGAIN_LIMIT_S, ACT_AGAIN_S, Suspicions
from tests.support.simulated.clock import VirtualClock
from tests.support.simulated.loop import run_virtual


def layout_of(count: int, bits: int = 4) -> Layout:
    nodes = [LayoutNode(f"n{i}", f"n{i}", 1, "host", 1 + i) for i in range(count)]
    return plan_layout(None, nodes, replication_factor=3, partition_bits=bits)


def repair_of(counts: dict[int, dict[int, int]], partitions: int, **fields: object) -> NodeRepair:
    classes, packed = pack_counts(counts, partitions)
    values: dict[str, object] = dict.fromkeys(NodeRepair.__dataclass_fields__, 0)
    values |= {"classes": classes, "counts": packed, "oldest_s": -1.0, "paused": False, "last_error": ""} | fields
    return NodeRepair(**values)  # type: ignore[arg-type]  # by name, of their own types


def test_what_was_live_and_is_not_has_to_go() -> None:
    """A verdict that can't be had now is no reason to drop anything."""
    verdicts: list[Verdict | HoldfastError] = [
        Verdict.LIVE,
        Verdict.RETIRED,
        Verdict.UNNAMED,
        QuorumUnavailable("away", retry_after_s=1),
    ]

    class Roots:
        async def judge_each(self, references: Sequence[tuple[bytes, bytes]]) -> Sequence[Verdict | HoldfastError]:
            return verdicts[: len(references)]

        async def judge(self, references: Sequence[tuple[bytes, bytes]]) -> list[Verdict]:
            raise AssertionError("asked for all or nothing")

    pairs = [(bytes([index]), b"r") for index in range(4)]
    assert asyncio.run(no_longer_live(Roots(), pairs)) == pairs[1:3]


# Suspicions


def test_what_is_found_once_is_not_acted_on() -> None:
    suspicions: Suspicions[str] = Suspicions(2.0)
    assert suspicions.compared(0.0, ["a"]) == []
    assert suspicions.unconfirmed
    assert suspicions.compared(2.5, []) == []
    assert suspicions.compared(5.0, ["a"]) == []
    assert suspicions.persisting() == []
    assert suspicions.oldest is None


def test_what_is_found_twice_is_acted_on_and_again_after_growing_pauses() -> None:
    suspicions: Suspicions[str] = Suspicions(2.0)
    acted: list[float] = []
    now = 0.0
    while now < 2000:
        if suspicions.compared(now, ["a", f"passing {now}"]) == ["a"]:
            acted.append(now)
        now += 0.5
    assert acted[0] == 2.0
    pauses = [later - earlier for earlier, later in itertools.pairwise(acted)]
    assert pauses[0] == ACT_AGAIN_S
    assert pauses == sorted(pauses)
    assert max(pauses) == ACT_AGAIN_LIMIT_S
    assert suspicions.persisting() == ["a"]
    assert suspicions.oldest == 0.0


def test_two_comparisons_too_close_together_confirm_nothing() -> None:
    suspicions: Suspicions[str] = Suspicions(2.0)
    suspicions.compared(0.0, ["a"])
    assert suspicions.compared(1.9, ["a"]) == []
    assert suspicions.compared(2.0, ["a"]) == ["a"]
    suspicions.forget()
    assert suspicions.compared(4.0, ["a"]) == []


# Sharing


@given(st.integers(1, 7), st.integers(1, 7))
def test_both_sides_list_the_same(count: int, copies: int) -> None:
    layout = layout_of(count)
    names = [node.name for node in layout.nodes]
    for one in names:
        for other in names:
            if one != other:
                mine = Sharing(one).chunks(layout, other, copies)
                assert mine == Sharing(other).chunks(layout, one, copies)
                assert list(mine) == [
                    p for p in range(layout.partitions) if {one, other} <= set(layout.placement(p, copies))
                ]
                assert Sharing(one).registers(layout, other)[0] == META_PARTITION
    assert Sharing("n0").registers(layout, "stranger") == ()


# The summary


def whole(layout: Layout, per_partition: int) -> dict[str, NodeRepair]:
    return {
        node.name: repair_of({3: dict.fromkeys(layout.partitions_of(node.name), per_partition)}, layout.partitions)
        for node in layout.nodes
    }


def test_a_whole_cluster_lacks_nothing() -> None:
    layout = layout_of(5)
    summary = summarise(layout, whole(layout, 7))
    assert summary.whole
    assert summary.copies_due == 3 * 7 * layout.partitions
    assert (summary.copies_missing, summary.eta_s, summary.oldest_s) == (0, None, None)


def test_what_a_dead_or_an_empty_node_should_hold_is_missing() -> None:
    layout = layout_of(5)
    answers: dict[str, NodeRepair | None] = dict(whole(layout, 7))
    share = 7 * len(layout.partitions_of("n2"))
    answers["n2"] = None
    dead = summarise(layout, answers)
    assert dead.copies_missing == share
    assert not dead.whole
    assert {node.name: node.missing for node in dead.nodes} == {
        name: share if name == "n2" else 0 for name in ("n0", "n1", "n2", "n3", "n4")
    }
    answers["n2"] = repair_of({}, layout.partitions, chunk_rate=2.0)
    empty = summarise(layout, answers)
    assert empty.copies_missing == share
    assert empty.eta_s == share / 2.0


def test_equal_counts_of_different_chunks_show_in_what_is_known_to_lack() -> None:
    layout = layout_of(3)
    answers = whole(layout, 7)
    mine = {3: dict.fromkeys(layout.partitions_of("n1"), 7)}
    answers["n1"] = repair_of(mine, layout.partitions, lacking=4, chunks_diverged=4, oldest_s=9.0)
    summary = summarise(layout, answers)
    assert summary.copies_missing == 4
    assert summary.oldest_s == 9.0
    assert not summary.whole


def test_copies_kept_elsewhere_make_no_copy_at_home() -> None:
    layout = layout_of(5)
    answers = whole(layout, 7)
    foreign = next(p for p in range(layout.partitions) if "n4" not in layout.replicas(p))
    held = {3: {**dict.fromkeys(layout.partitions_of("n4"), 7), foreign: 7}}
    answers["n4"] = repair_of(held, layout.partitions, handoffs=7)
    summary = summarise(layout, answers)
    assert summary.copies_missing == 0
    assert summary.handoffs == 7
    assert not summary.whole


@given(st.randoms())
def test_missing_is_what_the_fullest_holder_has_and_the_others_have_not(rng: random.Random) -> None:
    layout = layout_of(5)
    held = {
        node.name: {copies: {p: rng.randrange(3) for p in range(layout.partitions)} for copies in (2, 3)}
        for node in layout.nodes
    }
    answers = {name: repair_of(counts, layout.partitions) for name, counts in held.items()}
    expected = 0
    for copies in (2, 3):
        for p in range(layout.partitions):
            counts = [held[name][copies][p] for name in layout.placement(p, copies)]
            expected += sum(max(counts) - count for count in counts)
    assert summarise(layout, answers).copies_missing == expected


def test_what_is_missing_in_one_look_only_is_a_write_on_its_way() -> None:
    layout = layout_of(3)
    earlier, later = whole(layout, 7), whole(layout, 7)
    held = dict.fromkeys(layout.partitions_of("n1"), 7)
    earlier["n1"] = repair_of({3: {**held, 0: 6, 1: 5}}, layout.partitions)
    later["n1"] = repair_of({3: {**held, 1: 6, 2: 3}}, layout.partitions)
    assert summarise(layout, earlier).copies_missing == 3
    assert summarise(layout, later).copies_missing == 5
    assert summarise(layout, earlier, later).copies_missing == 1


def test_handoffs_of_a_node_that_was_removed_are_seen() -> None:
    layout = layout_of(3)
    answers = {**whole(layout, 7), "gone": repair_of({3: {0: 2}}, layout.partitions, handoffs=2)}
    summary = summarise(layout, answers)
    assert not summary.whole
    assert [(node.name, node.due) for node in summary.nodes][-1] == ("gone", 0)


@given(st.sets(st.integers(0, 99)))
def test_positions_travel_as_bits(positions: set[int]) -> None:
    packed = bit_set(sorted(positions), 100)
    assert len(packed) == 13
    assert set_bits(packed, 100) == sorted(positions)
    assert set_bits(packed, 50) == sorted(position for position in positions if position < 50)


# The budget


def test_a_rate_is_kept() -> None:
    async def main() -> float:
        budget = RepairBudget(VirtualClock(), 1000, lambda: 0)

        async def copy() -> None:
            async with budget.turn(500):
                budget.note(500)

        await asyncio.gather(*(copy() for _ in range(40)))
        return asyncio.get_running_loop().time()

    assert run_virtual(main()) == pytest.approx(40 * 500 / 1000, abs=1.0)


@pytest.mark.parametrize("busy", [False, True])
def test_users_at_work_leave_repair_a_quarter(busy: bool) -> None:
    async def main() -> float:
        loop = asyncio.get_running_loop()
        budget = RepairBudget(VirtualClock(), 0, lambda: int(loop.time() * 1000) if busy else 0)

        async def worker() -> None:
            for _ in range(100):
                async with budget.turn(1):
                    await asyncio.sleep(0.02)

        await asyncio.gather(*(worker() for _ in range(budget_module.AT_ONCE)))
        return loop.time()

    took = run_virtual(main())
    assert took == pytest.approx(2.0 * (1 + budget_module.BUSY_REST if busy else 1), rel=0.15)


@pytest.mark.parametrize("busy", [False, True])
def test_what_is_looked_through_for_repair_rests_too_while_users_are_active(busy: bool) -> None:
    async def main() -> float:
        loop = asyncio.get_running_loop()
        budget = RepairBudget(VirtualClock(), 0, lambda: int(loop.time() * 1000) if busy else 0)
        budget.pause()  # which is about bytes

        async def look() -> None:
            async with budget.yielding():
                await asyncio.sleep(0.1)

        for _ in range(20):
            await look()
        return loop.time()

    took = run_virtual(main())
    assert took == pytest.approx(2.0 * (1 + budget_module.BUSY_REST if busy else 1), rel=0.15)


def test_a_pause_holds_everything_until_it_ends() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        budget = RepairBudget(VirtualClock(), 0, lambda: 0)
        budget.pause()
        loop.call_later(5, budget.resume)
        async with budget.turn(1):
            assert loop.time() == 5
        assert not budget.paused

    run_virtual(main())


def test_rates_are_of_late() -> None:
    async def main() -> None:
        budget = RepairBudget(VirtualClock(), 0, lambda: 0)
        assert budget.rates == (0.0, 0.0)
        for _ in range(50):
            budget.note(100)
            await asyncio.sleep(0.1)
        chunks, size = budget.rates
        assert chunks == pytest.approx(10, rel=0.3)
        assert size == pytest.approx(1000, rel=0.3)
        await asyncio.sleep(30)
        assert budget.rates == (0.0, 0.0)

    run_virtual(main())
