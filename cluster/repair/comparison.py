"""One comparison of this node with one peer, from roots to items: what each side lacks. Asks; changes nothing.

The roots of everything that both share travel in one message. Where they differ, sums of deeper nodes are asked for, a level a
round trip (`Descent`), and at the leaves the items: references of chunks, versions of registers. At most `DIFFERENCES_LIMIT` items
are listed in one comparison; the rest differs again in the next.
"""

from __future__ import annotations

import struct
from array import array
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

from cluster.chunks.listing import whole
from cluster.chunks.messages import ListedChunk
from cluster.chunks.store import ChunkStore
from cluster.errors import Invalid
from cluster.governance.installed import InstalledLayout
from cluster.governance.state import LayoutState
from cluster.merkle.bits import set_bits
from cluster.merkle.descent import Descent
from cluster.merkle.digest_tree import DigestTree
from cluster.merkle.identity import CHUNK_LEAF_BITS
from cluster.register.ballot import NO_VERSION, Version
from cluster.register.key import RegisterKey
from cluster.register.store import RegisterStore
from cluster.repair.messages import (
    CHUNK_TREE,
    REGISTER_TREE,
    CompareRoots,
    GetLeafChunks,
    GetLeafVersions,
    GetNodeSums,
)
from cluster.repair.sharing import Sharing
from cluster.rpc.caller import Caller
from cluster.rpc.message import Buffer

T = TypeVar("T")

CALL_DEADLINE_S = 10.0

DIFFERENCES_LIMIT = 20_000
"""Items listed in one comparison, of each kind: bounds memory and time when a node has been away for long."""

LEAVES_AT_ONCE = 128
"""Leaves listed in one message; halved when the answer does not fit."""

EMPTY_BITS = 6
_EMPTY_REGISTERS = DigestTree(EMPTY_BITS)
_EMPTY_CHUNKS = DigestTree(CHUNK_LEAF_BITS)


class ReferenceDifference(NamedTuple):
    """A reference that one side has, of a chunk in ``copies`` copies. ``mine``: this node has it and the peer lacks it."""

    chunk: bytes
    referrer: bytes
    copies: int
    mine: bool


class KeyDifference(NamedTuple):
    """A register of which one side holds an older version, or nothing. ``mine``: the newer one is here."""

    partition: int
    key: RegisterKey
    mine: bool


@dataclass(slots=True)
class Differences:
    """What a comparison found. ``complete``: nothing was left out; otherwise ``stopped`` is where to go on, a share of all places.
    ``compared``: chunks that the compared sums stand for."""

    references: list[ReferenceDifference] = field(default_factory=list)
    keys: list[KeyDifference] = field(default_factory=list)
    complete: bool = True
    stopped: float = 0.0
    compared: int = 0


class Comparison:
    """``voting(partition)``: whether this node's registers of a partition are a full replica's."""

    def __init__(
        self,
        me: str,
        caller: Caller,
        installed: InstalledLayout,
        registers: RegisterStore,
        chunks: ChunkStore,
        sharing: Sharing,
        voting: Callable[[int], bool],
    ) -> None:
        self._me = me
        self._caller = caller
        self._installed = installed
        self._registers = registers
        self._chunks = chunks
        self._sharing = sharing
        self._voting = voting

    async def with_peer(self, peer: str, start: float = 0.0) -> Differences:
        """Compare everything shared with ``peer``, listing differences from the share ``start`` of all places on, and round. Raises
        HoldfastError when it doesn't answer, or under another layout."""
        state = self._installed.require()
        layout = state.current
        trees = self._chunks.trees()
        classes = tuple(sorted(trees))
        sections = [(copies, self._sharing.chunks(layout, peer, copies)) for copies in classes]
        partitions = self._sharing.registers(layout, peer)
        sums = array("Q")
        for copies, shared in sections:
            sums += trees[copies].sums(layout.partition_bits, shared)
        chunk_sums = len(sums)
        own = self._registers.trees()
        sums += array("Q", [own.get(partition, _EMPTY_REGISTERS).sum(0, 0) for partition in partitions])
        reply = await self._caller.call(peer, CompareRoots(classes), pack_sums(sums), deadline_s=CALL_DEADLINE_S)
        found = Differences()
        found.compared = sum(
            trees[copies].count(layout.partition_bits, partition) for copies, shared in sections for partition in shared
        )
        differing: dict[int, list[int]] = {}
        flat = [(copies, partition) for copies, shared in sections for partition in shared]
        assert len(flat) == chunk_sums
        for position in set_bits(reply.message.chunks, chunk_sums):
            copies, partition = flat[position]
            differing.setdefault(copies, []).append(partition)
        for copies in reply.message.copies:
            if copies not in trees:
                differing[copies] = list(self._sharing.chunks(layout, peer, copies))
        places: list[tuple[int, int]] = []
        for copies, where in differing.items():
            places += [(leaf, copies) for leaf in await self._differing_leaves(peer, state, copies, where)]
        places.sort()
        voting = [p for p in set_bits(reply.message.registers, len(partitions)) if self._voting(partitions[p])]
        stops = [
            await self._compare_chunks(peer, _from(places, start, lambda place: _share(place[0])), found),
            await self._compare_keys(peer, _from(voting, start, lambda p: p / len(partitions)), partitions, found),
        ]
        reached = [stop for stop in stops if stop is not None]
        if reached:
            # where the listing that got less far has stopped, so that neither kind is passed over for the other's sake
            found.complete, found.stopped = False, min(reached, key=lambda stop: (stop - start) % 1.0)
        return found

    # Chunks

    async def _differing_leaves(
        self, peer: str, state: LayoutState, copies: int, partitions: Sequence[int]
    ) -> Sequence[int]:
        mine = self._chunks.trees().get(copies, _EMPTY_CHUNKS)
        walk = Descent(mine, bits=state.current.partition_bits, differing=partitions, deepest=CHUNK_LEAF_BITS)
        while (question := walk.question()) is not None:
            sums = await self._node_sums(peer, CHUNK_TREE, copies, question.bits, question.prefixes)
            if not sums:
                raise Invalid(f"the trees of {peer} are not as deep as this node's: is it of another release?")
            walk.answer(sums)
        return walk.differing

    async def _compare_chunks(self, peer: str, places: Sequence[tuple[int, int]], found: Differences) -> float | None:
        """List the leaves, given as ``(leaf, copies)``; where that stopped, None if nowhere. All classes of a leaf, or none: many
        differences of one class hide none of another."""
        width = LEAVES_AT_ONCE
        listed = -1
        while places:
            if len(found.references) >= DIFFERENCES_LIMIT and places[0][0] != listed:
                return _share(places[0][0])
            part = places[:width]
            here: list[ReferenceDifference] = []
            for copies in sorted({copies for _, copies in part}):
                leaves = tuple(leaf for leaf, of in part if of == copies)
                request = GetLeafChunks(copies, leaves)
                reply = (await self._caller.call(peer, request, deadline_s=CALL_DEADLINE_S)).message
                if reply.more and width > 1:
                    width = max(1, width // 2)
                    break
                theirs = {entry.chunk: await whole(self._caller, peer, entry) for entry in reply.chunks}
                here += _reference_differences(copies, await leaf_chunks(self._chunks, copies, leaves), theirs)
            else:
                found.references += here
                listed = part[-1][0]
                places = places[width:]
        return None

    async def _node_sums(self, peer: str, tree: str, key: int, bits: int, prefixes: Sequence[int]) -> Sequence[int]:
        """The peer's sums; none when its tree is not so deep."""
        payload = struct.pack(f">{len(prefixes)}I", *prefixes)
        reply = await self._caller.call(peer, GetNodeSums(tree, key, bits), payload, deadline_s=CALL_DEADLINE_S)
        sums = unpack_sums(reply.payload)
        if len(sums) not in {0, len(prefixes)}:
            raise Invalid(f"{peer} answered with {len(sums)} sums of {len(prefixes)} nodes")
        return sums

    # Registers

    async def _compare_keys(
        self, peer: str, positions: Sequence[int], partitions: Sequence[int], found: Differences
    ) -> float | None:
        """List the differing of the partitions shared; where that stopped, None if nowhere."""
        for position in positions:
            if len(found.keys) >= DIFFERENCES_LIMIT:
                return position / len(partitions)
            await self._compare_registers(peer, partitions[position], found)
        return None

    async def _compare_registers(self, peer: str, partition: int, found: Differences) -> None:
        mine = self._registers.trees().get(partition, _EMPTY_REGISTERS)
        bits, prefixes = await self._differing_places(peer, partition, mine)
        width = LEAVES_AT_ONCE
        while prefixes:
            part = prefixes[:width]
            request = GetLeafVersions(partition, bits, tuple(part))
            reply = (await self._caller.call(peer, request, deadline_s=CALL_DEADLINE_S)).message
            if reply.more and width > 1:
                width = max(1, width // 2)
                continue
            prefixes = prefixes[width:]
            theirs = {
                RegisterKey(v.table, v.partition_key, v.sort_key): Version(v.round, v.proposer, v.seq)
                for v in reply.versions
            }
            own = {key: version for key, version, _ in await self._registers.versions(partition, bits, part)}
            for key in sorted(own.keys() | theirs.keys()):
                here, there = own.get(key, NO_VERSION), theirs.get(key, NO_VERSION)
                if here != there:
                    found.keys.append(KeyDifference(partition, key, here > there))

    async def _differing_places(self, peer: str, partition: int, mine: DigestTree) -> tuple[int, list[int]]:
        """As deep as both trees go: the bits, and the prefixes in which they differ."""
        deepest = mine.bits
        walk = Descent(mine, bits=0, differing=[0], deepest=deepest)
        while (question := walk.question()) is not None:
            before = walk.reached
            sums = await self._node_sums(peer, REGISTER_TREE, partition, question.bits, question.prefixes)
            if len(sums) < len(
                question.prefixes
            ):  # the peer's tree ends above: what is known to differ there is the answer
                return before
            walk.answer(sums)
        return walk.bits, walk.differing


def _share(leaf: int) -> float:
    """Where a leaf of chunks is, of all places."""
    return leaf / (1 << CHUNK_LEAF_BITS)


def _from(ordered: Sequence[T], start: float, share: Callable[[T], float]) -> list[T]:
    """From the first whose share is ``start`` or more on, and round."""
    first = bisect_left(ordered, start, key=share)
    return [*ordered[first:], *ordered[:first]]


async def leaf_chunks(store: ChunkStore, copies: int, leaves: Sequence[int]) -> dict[bytes, ListedChunk]:
    """What a store holds with references in these leaves of its tree of ``copies``."""
    found: dict[bytes, ListedChunk] = {}
    for leaf in leaves:
        after: bytes | None = None
        while True:
            entries = await store.list_partition(leaf, CHUNK_LEAF_BITS, after, LEAF_PAGE)
            for entry in entries:
                if entry.references and max(reference.replicas for reference in entry.references) == copies:
                    found[entry.chunk] = ListedChunk.of(entry)
            if len(entries) < LEAF_PAGE:
                break
            after = entries[-1].chunk
    return found


LEAF_PAGE = 256
"""Chunks of a leaf read from the store at once."""


def _reference_differences(
    copies: int, mine: Mapping[bytes, ListedChunk], theirs: Mapping[bytes, ListedChunk]
) -> list[ReferenceDifference]:
    found: list[ReferenceDifference] = []
    for chunk in sorted(mine.keys() | theirs.keys()):
        here = {(r.referrer, r.replicas) for r in mine[chunk].references} if chunk in mine else set()
        there = {(r.referrer, r.replicas) for r in theirs[chunk].references} if chunk in theirs else set()
        found += [ReferenceDifference(chunk, referrer, copies, mine=True) for referrer, _ in sorted(here - there)]
        found += [ReferenceDifference(chunk, referrer, copies, mine=False) for referrer, _ in sorted(there - here)]
    return found


def pack_sums(sums: Sequence[int]) -> bytes:
    return struct.pack(f">{len(sums)}Q", *sums)


def unpack_sums(payload: Buffer) -> tuple[int, ...]:
    return struct.unpack(f">{len(payload) // 8}Q", payload)
