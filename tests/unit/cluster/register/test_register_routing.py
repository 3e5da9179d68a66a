"""What a gateway and a leader make of the answers that they get: never a false yes or no."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any, TypeVar

import pytest

from cluster.errors import HoldfastError, NotReady, OutcomeUnknown, PeerLost, QuorumUnavailable
from cluster.register.ballot import NO_BALLOT, NO_VERSION
from cluster.register.change import Change, replacement
from cluster.register.key import RegisterKey
from cluster.register.leader import Leader
from cluster.register.messages import Accept, Learn, Learned, Prepare, Promise, Update, Updated
from cluster.register.quorum import QuorumRule
from cluster.register.registers import Registers
from cluster.register.scatter import Scatter
from cluster.rpc.caller import Reply
from cluster.rpc.message import Payload, Request
from tests.support.simulated.loop import run_virtual

R = TypeVar("R")
KEY = RegisterKey("t", b"p", b"k")


class Peers:
    """Answers by a function; the loop's clock."""

    def __init__(self, answer: Callable[[str, Any], Any]) -> None:
        self._answer = answer
        self.asked: list[tuple[str, Any]] = []

    async def call(self, peer: str, request: Request[R], payload: Payload = b"", *, deadline_s: float) -> Reply[R]:
        self.asked.append((peer, request))
        answer = self._answer(peer, request)
        if answer is None:
            await asyncio.sleep(deadline_s)
            raise PeerLost("no answer")
        if isinstance(answer, HoldfastError):
            raise answer
        return Reply(answer)

    def monotonic(self) -> float:
        return asyncio.get_running_loop().time()

    def wall(self) -> float:
        return self.monotonic()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class View:
    epoch = 1
    gone = False

    def check(self, epoch: int) -> bool:
        return epoch == self.epoch

    def stores(self, partition: int) -> bytes:
        return b"s"

    def partition_of(self, partition_key: bytes) -> int:
        return 0

    def rule(self, partition: int) -> QuorumRule:
        return QuorumRule((("x", "y", "z"),)) if self.gone else QuorumRule((("a", "b", "c"),))

    def is_alive(self, name: str) -> bool:
        return True

    async def agree(self, epoch: int, peer: str) -> None:
        """Always agreed."""

    async def refresh(self, peer: str) -> None:
        """Nothing newer."""


def registers(answer: Callable[[str, Any], Any]) -> tuple[Registers, Peers]:
    peers = Peers(answer)
    return Registers("a", peers, Scatter(peers), View(), peers, random.Random(1)), peers


def test_an_unconditional_write_is_never_asked_for_twice() -> None:
    async def main() -> None:
        gateway, peers = registers(lambda peer, request: None)
        with pytest.raises(OutcomeUnknown):
            await gateway.put(KEY, b"v")
        assert len(peers.asked) == 1

    run_virtual(main())


@pytest.mark.parametrize("fault", [HoldfastError("a fault over there"), OutcomeUnknown("it says so itself")])
def test_a_fault_of_the_leader_is_no_answer(fault: HoldfastError) -> None:
    async def main() -> None:
        gateway, _ = registers(lambda peer, request: fault)
        with pytest.raises(OutcomeUnknown):
            await gateway.put(KEY, b"v")
        with pytest.raises(OutcomeUnknown):
            await gateway.compare_and_set(KEY, b"old", b"v")

    run_virtual(main())


def test_the_second_leader_finds_the_first_ones_work_done() -> None:
    async def main() -> None:
        gateway, _ = registers(lambda peer, request: None if peer == "a" else Updated(False, b"v", *NO_VERSION))
        assert (await gateway.compare_and_set(KEY, b"old", b"v")).applied

    run_virtual(main())


@pytest.mark.parametrize(("value", "current"), [(b"v", b"third"), (None, None)])
def test_a_condition_that_failed_while_in_doubt_stays_in_doubt(value: bytes | None, current: bytes | None) -> None:
    async def main() -> None:
        gateway, _ = registers(lambda peer, request: None if peer == "a" else Updated(False, current, *NO_VERSION))
        with pytest.raises(OutcomeUnknown):
            await gateway.compare_and_set(KEY, b"old", value)

    run_virtual(main())


def test_refusals_are_a_definite_no_within_patience() -> None:
    async def main() -> None:
        gateway, peers = registers(lambda peer, request: NotReady("starting"))
        with pytest.raises(QuorumUnavailable):
            await gateway.put(KEY, b"v")
        assert {peer for peer, _ in peers.asked} == {"a", "b", "c"}
        assert peers.monotonic() < 4

    run_virtual(main())


def test_a_dead_cluster_is_waited_for_no_longer_than_promised() -> None:
    async def main() -> None:
        gateway, peers = registers(lambda peer, request: None)
        with pytest.raises(OutcomeUnknown):
            await gateway.compare_and_set(KEY, b"old", b"v")
        assert peers.monotonic() < 9

    run_virtual(main())


def leader_over(answer: Callable[[str, Any], Any], view: View, work: Change) -> Any:
    async def main() -> Any:
        peers = Peers(answer)
        scatter = Scatter(peers)
        holder = asyncio.ensure_future(scatter.run())
        await asyncio.sleep(0)
        leader = Leader("a", "a/1/1", scatter, view, peers, random.Random(1), lambda partition: NO_BALLOT)
        try:
            return await leader.update(0, KEY, work, peers.monotonic() + 5)
        finally:
            assert leader.in_hand == 0
            assert not leader._turns
            holder.cancel()
            await asyncio.gather(holder, return_exceptions=True)

    return run_virtual(main())


def test_a_leader_that_loses_its_place_in_doubt_says_unknown() -> None:
    """Its Accepts vanish, and meanwhile the partition moves away: being no replica any more must not look like a refusal."""
    view = View()

    def answer(peer: str, request: Any) -> Any:
        if isinstance(request, Prepare):
            return Promise(request.round, request.proposer, b"s")
        if isinstance(request, Learn):
            return Learned(request.round, request.proposer, b"s", 0, "", 0, None)
        assert isinstance(request, Accept)
        view.gone = True
        return None

    with pytest.raises(OutcomeUnknown):
        leader_over(answer, view, Change("any", b"v"))


def test_a_leader_without_promises_says_that_nothing_was_written() -> None:
    with pytest.raises(QuorumUnavailable):
        leader_over(lambda peer, request: None, View(), Change("any", b"v"))


def test_a_failed_condition_is_confirmed_when_it_is_answered_from_memory() -> None:
    """Rule (a): the second answer asks the replicas again, and finds that another leader was promised."""
    learns = 0

    def answer(peer: str, request: Any) -> Any:
        nonlocal learns
        if isinstance(request, Prepare):
            return Promise(request.round, request.proposer, b"s")
        assert isinstance(request, Learn)
        learns += 1
        return Learned(request.round, request.proposer, b"s", 1, "x", 1, b"there")

    async def main() -> None:
        peers = Peers(answer)
        scatter = Scatter(peers)
        holder = asyncio.ensure_future(scatter.run())
        await asyncio.sleep(0)
        leader = Leader("a", "a/1/1", scatter, View(), peers, random.Random(1), lambda partition: NO_BALLOT)
        for expected in (3, 6):
            outcome = await leader.update(0, KEY, replacement(b"other", b"v"), peers.monotonic() + 5)
            assert not outcome.applied
            assert outcome.current == b"there"
            assert learns == expected
        holder.cancel()
        await asyncio.gather(holder, return_exceptions=True)

    run_virtual(main())


def test_whoever_waits_for_answers_is_told_when_the_node_stops() -> None:
    async def main() -> None:
        peers = Peers(lambda peer, request: None)
        scatter = Scatter(peers)
        holder = asyncio.ensure_future(scatter.run())
        await asyncio.sleep(0)
        answers = scatter.send(["a", "b"], Update(0, "t", b"", b"", "settle", None, b""), deadline_s=100)
        waiting = asyncio.ensure_future(anext(answers))
        await asyncio.sleep(0.1)
        holder.cancel()
        _, answer = await asyncio.wait_for(waiting, 1)
        assert isinstance(answer, PeerLost)
        await asyncio.gather(holder, return_exceptions=True)
        _, answer = await anext(scatter.send(["a"], Update(0, "t", b"", b"", "settle", None, b""), deadline_s=1))
        assert isinstance(answer, HoldfastError)

    run_virtual(main())
