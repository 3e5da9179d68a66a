"""What a node answers its peers about repair: its sums, its leaves, what it holds; and what a nudge sets going. Owns no state."""

from __future__ import annotations

import struct
from collections.abc import Callable

from cluster.chunks.listing import fitted
from cluster.chunks.messages import ListedChunk
from cluster.chunks.store import ChunkStore
from cluster.errors import Invalid
from cluster.governance.installed import InstalledLayout
from cluster.merkle.bits import bit_set
from cluster.merkle.digest_tree import DigestTree
from cluster.register.store import RegisterStore
from cluster.repair.chunk_mender import ChunkMender
from cluster.repair.comparison import EMPTY_BITS, leaf_chunks, pack_sums, unpack_sums
from cluster.repair.messages import (
    CHUNK_TREE,
    REGISTER_TREE,
    ComparedRoots,
    CompareRoots,
    Describe,
    Described,
    GetLeafChunks,
    GetLeafVersions,
    GetNodeSums,
    KeyVersion,
    LeafChunks,
    LeafVersions,
    NodeSums,
    Nudge,
    NudgeKeys,
)
from cluster.repair.register_queue import RegisterQueue
from cluster.repair.sharing import Sharing
from cluster.rpc.message import Buffer, Done
from cluster.rpc.service import Handlers, IncomingCall

LEAVES_LIMIT_BYTES = 256 * 1024
"""Of listed items in one answer, by a rough count; an answer for a single leaf is cut only in its references."""

CHUNK_COST, REFERENCE_COST, VERSION_COST = 48, 24, 64


class RepairAnswers:
    """See the module."""

    def __init__(
        self,
        installed: InstalledLayout,
        registers: RegisterStore,
        chunks: ChunkStore,
        sharing: Sharing,
        voting: Callable[[int], bool],
        mender: ChunkMender,
        keys: RegisterQueue,
    ) -> None:
        self._installed = installed
        self._registers = registers
        self._chunks = chunks
        self._sharing = sharing
        self._voting = voting
        self._mender = mender
        self._keys = keys

    def register(self, handlers: Handlers) -> None:
        handlers.register(CompareRoots, self.compare_roots)
        handlers.register(GetNodeSums, self.node_sums)
        handlers.register(GetLeafChunks, self.leaf_chunks)
        handlers.register(GetLeafVersions, self.leaf_versions)
        handlers.register(Describe, self.describe)
        handlers.register(Nudge, self.nudge)
        handlers.register(NudgeKeys, self.nudge_keys)

    async def compare_roots(self, request: CompareRoots, call: IncomingCall) -> ComparedRoots:
        await self._agree(call)
        layout = self._installed.require().current
        trees = self._chunks.trees()
        theirs = unpack_sums(call.payload)
        shared = [
            (copies, partition)
            for copies in request.copies
            for partition in self._sharing.chunks(layout, call.peer, copies)
        ]
        partitions = self._sharing.registers(layout, call.peer)
        if len(theirs) != len(shared) + len(partitions):
            raise Invalid("the sums are not those of what both nodes hold under this layout")
        bits = layout.partition_bits
        chunks = [
            position
            for position, (copies, partition) in enumerate(shared)
            if (trees[copies].sum(bits, partition) if copies in trees else 0) != theirs[position]
        ]
        own = self._registers.trees()
        registers: list[int] = []
        skipped: list[int] = []
        for position, partition in enumerate(partitions):
            if not self._voting(partition):
                skipped.append(position)
            elif (own[partition].sum(0, 0) if partition in own else 0) != theirs[len(shared) + position]:
                registers.append(position)
        extra = tuple(copies for copies in sorted(trees) if copies not in request.copies and trees[copies].total)
        return ComparedRoots(
            bit_set(chunks, len(shared)), bit_set(registers, len(partitions)), extra, bit_set(skipped, len(partitions))
        )

    def node_sums(self, request: GetNodeSums, call: IncomingCall) -> tuple[NodeSums, Buffer]:
        tree = self._tree(request.tree, request.key)
        count = len(call.payload) // 4
        prefixes = struct.unpack(f">{count}I", call.payload[: 4 * count])
        if tree is None:
            return (NodeSums(0), b"") if request.tree == REGISTER_TREE else (NodeSums(request.bits), bytes(8 * count))
        if request.bits > tree.bits:
            return NodeSums(tree.bits), b""
        if any(prefix >> request.bits for prefix in prefixes):
            raise Invalid("there is no such node in a tree")
        return NodeSums(tree.bits), pack_sums(tree.sums(request.bits, prefixes))

    def _tree(self, kind: str, key: int) -> DigestTree | None:
        if kind == CHUNK_TREE:
            return self._chunks.trees().get(key)
        if kind == REGISTER_TREE:
            return self._registers.trees().get(key)
        raise Invalid(f"there are no trees of {kind!r}")

    async def leaf_chunks(self, request: GetLeafChunks, call: IncomingCall) -> LeafChunks:
        found: list[ListedChunk] = []
        cost = 0
        for leaf in request.leaves:
            for listed in (await leaf_chunks(self._chunks, request.copies, [leaf])).values():
                found.append(listed)
                cost += CHUNK_COST + REFERENCE_COST * len(listed.references)
            if cost > LEAVES_LIMIT_BYTES and len(request.leaves) > 1:
                return LeafChunks((), True)
        return LeafChunks(fitted(found), False)

    async def leaf_versions(self, request: GetLeafVersions, call: IncomingCall) -> LeafVersions:
        held = await self._registers.versions(request.partition, request.bits, request.prefixes)
        cost = sum(VERSION_COST + len(key.table) + len(key.partition) + len(key.sort) for key, _, _ in held)
        if cost > LEAVES_LIMIT_BYTES and len(request.prefixes) > 1:
            return LeafVersions((), True)
        return LeafVersions(
            tuple(KeyVersion(key.table, key.partition, key.sort, *version) for key, version, _ in held), False
        )

    async def describe(self, request: Describe, call: IncomingCall) -> Described:
        entries = await self._chunks.describe(request.chunks)
        held = iter(fitted(ListedChunk.of(entry) for entry in entries if entry is not None))
        return Described(tuple(None if entry is None else next(held) for entry in entries))

    def nudge(self, request: Nudge, call: IncomingCall) -> Done:
        self._mender.note(request.chunks)
        return Done()

    def nudge_keys(self, request: NudgeKeys, call: IncomingCall) -> Done:
        self._keys.note(request.partition, [key.key for key in request.keys])
        return Done()

    async def _agree(self, call: IncomingCall) -> None:
        if not self._installed.check(call.layout_version):
            await self._installed.agree(call.layout_version, call.peer)


assert (
    EMPTY_BITS > 0
)  # a register tree that isn't there answers with depth 0: its peer then lists everything that differs
