"""Which places are filled, and by whom."""

from __future__ import annotations

import asyncio

from cluster.chunks.spread import Spread
from cluster.errors import PeerUnavailable
from cluster.register.quorum import QuorumRule
from tests.support.simulated.loop import run_virtual


def test_a_stand_in_is_used_once_and_only_if_usable() -> None:
    async def main() -> None:
        spread = Spread(QuorumRule((("a", "b", "c"),)), 1, ["d", "e", "f"], lambda name: name != "e")
        assert [spread.next_stand_in() for _ in range(3)] == ["d", "f", None]

    run_virtual(main())


def test_a_place_counts_once_whoever_fills_it() -> None:
    async def main() -> None:
        spread = Spread(QuorumRule((("a", "b", "c"),)), 1, [], lambda name: True)
        spread.fill("a")
        spread.fill("a")
        assert not spread.verdict.done()
        spread.give_up("b", PeerUnavailable("gone"))
        assert not spread.verdict.done()
        spread.fill("c")
        assert await spread.verdict

    run_virtual(main())


def test_the_verdict_is_no_as_soon_as_it_can_be_no_other() -> None:
    async def main() -> None:
        spread = Spread(QuorumRule((("a", "b", "c"), ("c", "d", "e"))), 1, [], lambda name: True)
        spread.fill("a")
        spread.fill("b")
        spread.give_up("d", PeerUnavailable("gone"))
        assert not spread.verdict.done()
        spread.give_up("e", PeerUnavailable("gone"))
        assert not await spread.verdict

    run_virtual(main())


def test_work_that_ends_without_a_word_is_a_no() -> None:
    async def main() -> None:
        spread = Spread(QuorumRule((("a", "b", "c"),)), 1, [], lambda name: True)
        spread.fill("a")
        for _ in range(3):
            spread.close()
        assert not await spread.verdict
        assert asyncio.get_running_loop().time() == 0

    run_virtual(main())
