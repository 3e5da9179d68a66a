"""Chunks in a cluster whose replicas fail, hang, fill up and rot, one by one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, cast

import crc32c
import pytest
from blake3 import blake3

from cluster.chunks import chunks as module
from cluster.chunks.chunks import ClusterChunks
from cluster.chunks.hedge import HEDGE_MOST_S
from cluster.chunks.messages import ChunkBytes, Dropped, DropReference, PutChunk, ReadChunk, ReadSmall
from cluster.chunks.store import ChunkStore
from cluster.doors.offload import Inline
from cluster.errors import Busy, Corrupt, NoSpace, NotFound, PeerLost, PeerUnavailable, QuorumUnavailable, StaleLayout
from cluster.register.quorum import QuorumRule
from cluster.rpc.caller import Reply
from cluster.rpc.message import Buffer, Done, Payload, Request, payload_joined
from tests.support.simulated.clock import VirtualClock
from tests.support.simulated.loop import run_virtual

NAMES = ("a", "b", "c")
Trouble = Callable[[], Awaitable[None]]


class View:
    epoch = 1
    partition_bits = 10

    def __init__(self) -> None:
        self.groups: tuple[tuple[str, ...], ...] = (NAMES,)
        self.dead: set[str] = set()
        self.refreshed: list[str] = []

    def check(self, epoch: int) -> bool:
        return epoch == self.epoch

    async def agree(self, epoch: int, peer: str) -> None: ...

    async def refresh(self, peer: str) -> None:
        self.refreshed.append(peer)

    def chunk_rule(self, chunk: bytes, copies: int) -> QuorumRule:
        return QuorumRule(self.groups)

    def chunk_order(self, chunk: bytes) -> tuple[str, ...]:
        return ("a", "b", "c", "d", "e")

    def is_alive(self, name: str) -> bool:
        return name not in self.dead


class Peers:
    """Replicas in memory; ``trouble`` is awaited before a peer does anything."""

    def __init__(self) -> None:
        self.held: dict[str, dict[bytes, bytes]] = {name: {} for name in "abcde"}
        self.trouble: dict[str, Trouble] = {}
        self.asked: list[str] = []

    async def call(self, peer: str, request: Request[Any], payload: Payload = b"", *, deadline_s: float) -> Reply[Any]:
        self.asked.append(peer)
        await asyncio.sleep(0.001)
        if peer in self.trouble:
            await self.trouble[peer]()
        mine = self.held[peer]
        if isinstance(request, PutChunk):
            mine[request.chunk] = bytes(payload_joined(payload))
            return Reply(Done())
        if isinstance(request, DropReference):
            return Reply(Dropped(mine.pop(request.chunk, None) is not None))
        assert isinstance(request, ReadChunk | ReadSmall)
        if request.chunk not in mine:
            raise NotFound("not here")
        data = mine[request.chunk][request.offset : request.offset + request.length]
        return Reply(ChunkBytes(crc32c.crc32c(data)), data)


def fails(error: Exception) -> Trouble:
    async def trouble() -> None:
        raise error

    return trouble


def hangs(seconds: float) -> Trouble:
    async def trouble() -> None:
        await asyncio.sleep(seconds)

    return trouble


class Store:
    def read_cached(self, chunk: bytes, offset: int, length: int) -> bytes | None:
        return None


class World:
    def __init__(self) -> None:
        self.peers = Peers()
        self.view = View()
        self.chunks = ClusterChunks(
            "gateway", cast("ChunkStore", Store()), cast("Any", self.peers), self.view, VirtualClock(), Inline()
        )

    @asynccontextmanager
    async def running(self) -> AsyncIterator[World]:
        task = asyncio.get_running_loop().create_task(self.chunks.run())
        await asyncio.sleep(0)
        try:
            yield self
        finally:
            task.cancel()
            await asyncio.wait([task])

    async def put(self, payload: bytes = b"bytes") -> bytes:
        return await self.chunks.put(payload, referrer=bytes(16), replicas=3)

    async def read(self, chunk: bytes, offset: int = 0, length: int = 5) -> Buffer:
        return await self.chunks.read(chunk, offset, length, replicas=3)


def play(scenario: Callable[[World], Awaitable[None]]) -> None:
    async def main() -> None:
        async with World().running() as world:
            await scenario(world)

    run_virtual(main())


def now() -> float:
    return asyncio.get_running_loop().time()


def test_a_put_goes_to_all_and_names_what_it_stored() -> None:
    async def scenario(world: World) -> None:
        chunk = await world.put()
        assert chunk == blake3(b"bytes").digest()
        await asyncio.sleep(1)
        assert [name for name in "abcde" if chunk in world.peers.held[name]] == ["a", "b", "c"]
        assert await world.read(chunk, 1, 3) == b"yte"

    play(scenario)


@pytest.mark.parametrize("broken", [["a"], ["b"], ["c"]])
def test_one_replica_may_fail(broken: Sequence[str]) -> None:
    async def scenario(world: World) -> None:
        for name in broken:
            world.peers.trouble[name] = fails(PeerUnavailable("gone"))
        chunk = await world.put()
        assert await world.read(chunk) == b"bytes"

    play(scenario)


def test_two_failures_are_no_quorum_and_are_named() -> None:
    async def scenario(world: World) -> None:
        world.peers.trouble = {name: fails(PeerUnavailable("gone")) for name in "abde"}
        with pytest.raises(QuorumUnavailable, match="a: peer-unavailable, b: peer-unavailable"):
            await world.put()

    play(scenario)


def test_a_full_quorum_is_told_as_no_space() -> None:
    async def scenario(world: World) -> None:
        world.peers.trouble = {name: fails(NoSpace("full")) for name in "abde"}
        with pytest.raises(NoSpace):
            await world.put()

    play(scenario)


def placed(world: World, chunk: bytes) -> list[str]:
    return [name for name in "abcde" if chunk in world.peers.held[name]]


def test_for_a_dead_replica_another_node_stands_in() -> None:
    async def scenario(world: World) -> None:
        world.view.dead = {"a", "d"}
        chunk = await world.put()
        await asyncio.sleep(1)
        assert placed(world, chunk) == ["b", "c", "e"]
        assert "a" not in world.peers.asked
        assert world.chunks.handoffs == 1
        assert await world.read(chunk) == b"bytes"

    play(scenario)


def test_stand_ins_make_a_quorum_of_as_many_copies_and_no_more() -> None:
    """Two of three places by stand-ins is a quorum; one stand-in for two dead replicas fills one place, not two."""

    async def scenario(world: World) -> None:
        world.peers.trouble = {"a": fails(PeerUnavailable("gone")), "b": fails(PeerUnavailable("gone"))}
        chunk = await world.put()
        await asyncio.sleep(1)
        assert placed(world, chunk) == ["c", "d", "e"]
        world.peers.trouble = {name: fails(PeerUnavailable("gone")) for name in "abce"}
        with pytest.raises(QuorumUnavailable):
            await world.put(b"other")
        await asyncio.sleep(1)
        assert placed(world, blake3(b"other").digest()) == ["d"]

    play(scenario)


def test_a_full_node_is_left_alone_for_a_while() -> None:
    async def scenario(world: World) -> None:
        world.peers.trouble = {"b": fails(NoSpace("full"))}
        for payload in (b"one", b"two"):
            chunk = await world.put(payload)
            await asyncio.sleep(0.5)
            assert placed(world, chunk) == ["a", "c", "d"]
        assert world.peers.asked.count("b") == 1
        del world.peers.trouble["b"]
        await asyncio.sleep(module.FULL_S)
        chunk = await world.put(b"three")
        await asyncio.sleep(0.5)
        assert placed(world, chunk) == ["a", "b", "c"]

    play(scenario)


def test_a_replica_that_hangs_gets_a_stand_in_behind_the_answer() -> None:
    async def scenario(world: World) -> None:
        async def hang() -> None:
            await asyncio.sleep(module.PUT_DEADLINE_S)
            raise PeerLost("no answer")

        world.peers.trouble = {"b": hang}
        began = now()
        chunk = await world.put()
        assert now() - began < 1
        await asyncio.sleep(module.PUT_DEADLINE_S + 1)
        assert placed(world, chunk) == ["a", "c", "d"]

    play(scenario)


def test_a_chunk_that_a_dead_stand_in_may_hold_is_not_called_lost() -> None:
    async def scenario(world: World) -> None:
        missing = blake3(b"never stored").digest()
        with pytest.raises(NotFound):
            await world.read(missing)
        world.view.dead = {"e"}
        with pytest.raises(QuorumUnavailable, match="e may"):
            await world.read(missing)

    play(scenario)


def test_bad_copies_met_by_a_read_are_told() -> None:
    async def scenario(world: World) -> None:
        told: list[tuple[bytes, list[str]]] = []
        world.chunks.on_bad_copy = lambda chunk, names: told.append((chunk, list(names)))
        chunk = await world.put()
        await asyncio.sleep(1)
        assert await world.read(chunk) == b"bytes"
        assert not told
        world.peers.held["a"].clear()
        world.peers.trouble = {"b": fails(Corrupt("rotten"))}
        assert await world.read(chunk) == b"bytes"
        assert told == [(chunk, ["a", "b"])]
        world.peers.trouble = {"b": fails(PeerUnavailable("gone"))}
        assert await world.read(chunk) == b"bytes"
        assert told[1:] == [(chunk, ["a"])]

    play(scenario)


def test_while_a_layout_changes_both_majorities_are_needed() -> None:
    async def scenario(world: World) -> None:
        world.view.groups = (("a", "b", "c"), ("c", "d", "e"))
        world.peers.trouble = {"d": fails(PeerUnavailable("gone")), "e": fails(PeerUnavailable("gone"))}
        with pytest.raises(QuorumUnavailable):
            await world.put()
        del world.peers.trouble["e"]
        chunk = await world.put()
        assert chunk in world.peers.held["c"] or chunk in world.peers.held["e"]

    play(scenario)


def test_an_answer_of_an_earlier_layout_does_not_count() -> None:
    async def scenario(world: World) -> None:
        async def change() -> None:
            world.view.epoch += 1

        world.peers.trouble = dict.fromkeys("abc", change)
        with pytest.raises(QuorumUnavailable, match="stale-layout"):
            await world.put()

    play(scenario)


def test_a_stale_layout_is_refreshed_and_the_put_repeated() -> None:
    async def scenario(world: World) -> None:
        once = iter([StaleLayout("old", version=2)] * 3)

        async def trouble() -> None:
            for error in once:
                raise error

        world.peers.trouble = dict.fromkeys("abc", trouble)
        await world.put()
        assert world.view.refreshed

    play(scenario)


def test_a_hung_replica_holds_up_no_put_and_a_read_only_by_the_hedge() -> None:
    async def scenario(world: World) -> None:
        chunk = await world.put()
        await asyncio.sleep(1)
        world.peers.trouble["a"] = hangs(100)
        start = now()
        await world.put(b"other")
        assert now() - start < 0.1
        for _ in range(10):
            start = now()
            assert await world.read(chunk) == b"bytes"
            assert now() - start < HEDGE_MOST_S + 0.1

    play(scenario)


def test_a_replica_that_cannot_look_is_passed_over_and_its_copy_is_not_called_bad() -> None:
    async def scenario(world: World) -> None:
        told: list[tuple[bytes, Sequence[str]]] = []
        world.chunks.on_bad_copy = lambda chunk, names: told.append((chunk, names))
        chunk = await world.put()
        await asyncio.sleep(1)
        busy = fails(Busy("too many open files"))
        world.peers.trouble = {"a": busy, "b": busy}
        assert await world.read(chunk) == b"bytes"
        world.peers.trouble["c"] = busy
        with pytest.raises(QuorumUnavailable, match="a: busy, b: busy, c: busy"):
            await world.read(chunk)
        assert told == []
        assert world.chunks.damaged_reads == 0

    play(scenario)


def test_a_damaged_copy_is_passed_over() -> None:
    async def scenario(world: World) -> None:
        chunk = await world.put()
        await asyncio.sleep(1)
        world.peers.trouble = {"a": fails(Corrupt("rotten")), "b": fails(Corrupt("rotten"))}
        assert await world.read(chunk) == b"bytes"
        world.peers.trouble["c"] = fails(Corrupt("rotten"))
        with pytest.raises(Corrupt):
            await world.read(chunk)
        world.view.dead.add("e")
        with pytest.raises(QuorumUnavailable, match=r"c: corrupt.*; e may"):
            await world.read(chunk)
        world.view.dead.clear()
        world.peers.trouble["c"] = fails(PeerUnavailable("gone"))
        with pytest.raises(QuorumUnavailable):
            await world.read(chunk)
        world.peers.trouble = {}
        with pytest.raises(NotFound):
            await world.read(bytes(32))

    play(scenario)


def test_a_copy_that_is_elsewhere_is_still_found() -> None:
    async def scenario(world: World) -> None:
        chunk = blake3(b"bytes").digest()
        world.peers.held["e"][chunk] = b"bytes"
        assert await world.read(chunk) == b"bytes"

    play(scenario)


def test_slow_replicas_slow_their_writers_down_instead_of_filling_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LATE_LIMIT_BYTES", 10_000)

    async def scenario(world: World) -> None:
        world.peers.trouble["c"] = hangs(3)
        peak = 0
        start = now()
        for number in range(40):
            await world.put(bytes([number]) * 1000)
            peak = max(peak, world.chunks.late_bytes)
        assert peak <= 11_000
        assert now() - start > 3
        await asyncio.sleep(10)
        assert world.chunks.late_bytes == 0

    play(scenario)


def test_a_reference_is_dropped_everywhere_or_it_is_said() -> None:
    async def scenario(world: World) -> None:
        chunk = await world.put()
        await asyncio.sleep(1)
        world.peers.trouble["b"] = fails(PeerUnavailable("gone"))
        with pytest.raises(QuorumUnavailable, match="b could not"):
            await world.chunks.drop_reference(chunk, bytes(16), 3)
        world.peers.trouble = {}
        await world.chunks.drop_reference(chunk, bytes(16), 3)
        assert not any(world.peers.held.values())

    play(scenario)
