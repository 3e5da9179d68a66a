"""What each node really holds and believes, asked over the peers' wire by somebody who knows the secret. Changes nothing."""

from __future__ import annotations

import random
import struct
from collections import defaultdict
from dataclasses import dataclass

from blake3 import blake3

from cluster.chunks.messages import ListChunks
from cluster.doors.clock import SystemClock
from cluster.doors.network import TcpNetwork
from cluster.errors import StaleLayout
from cluster.governance.messages import GetState
from cluster.governance.state import LayoutState
from cluster.layout.layout import Layout
from cluster.layout.ring import chunk_partition, partition_of
from cluster.register.view import META_PARTITION
from cluster.repair.comparison import unpack_sums
from cluster.repair.messages import CHUNK_TREE, REGISTER_TREE, GetNodeSums
from cluster.rpc.handshake import Hello
from cluster.rpc.node import RpcNode
from cluster.rpc.service import Handlers
from cluster.volumes.head import head_key
from tests.cluster.harness import ClusterProcess, eventually

CALL_DEADLINE_S = 10.0
PAGE = 2000


@dataclass(frozen=True)
class Holdings:
    """Every chunk that any of the nodes asked holds with a reference: its partition, the copies wanted, and who has it."""

    layout: Layout
    copies: dict[bytes, int]
    holders: dict[bytes, set[str]]

    def misplaced(self) -> list[str]:
        """What is not exactly where it belongs, in words. A chunk on less than a majority of its replicas is no acknowledged one but the
        remains of a write that was given up, or of a reference dropped while it was copied: it takes space, and the tests that read every
        volume would find it if it were more than that."""
        words = []
        for chunk, holders in self.holders.items():
            due = set(self.layout.placement(chunk_partition(chunk, self.layout.partition_bits), self.copies[chunk]))
            if holders != due and (holders - due or 2 * len(holders & due) > len(due)):
                words.append(f"{chunk.hex()[:12]}: on {sorted(holders)}, belongs on {sorted(due)}")
        return words

    def bytes_share(self, name: str) -> float:
        """The part of all copies that a node has."""
        mine = sum(name in holders for holders in self.holders.values())
        return mine / sum(len(holders) for holders in self.holders.values())


class Inspector:
    """Use ``async with``."""

    def __init__(self, cluster: ClusterProcess) -> None:
        self._cluster = cluster
        self._epoch = 0
        self._rpc = RpcNode(
            me=Hello("inspector", random.randbytes(8), 1),
            secret=cluster.secret_file.read_text().strip().encode(),
            handlers=Handlers(),
            network=TcpNetwork(),
            clock=SystemClock(),
            random=random.SystemRandom(),
            layout_version=lambda: self._epoch,
            check_hello=lambda _: None,
        )

    async def __aenter__(self) -> Inspector:
        await self._rpc.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._rpc.__aexit__(None, None, None)

    async def state(self, name: str) -> LayoutState:
        """The layout state that a node acts under."""
        plan = self._cluster[name].plan
        self._rpc.set_address(name, "127.0.0.1", plan.peer_port)
        reply = await self._rpc.call(name, GetState(), deadline_s=CALL_DEADLINE_S)
        return LayoutState.unpack(reply.message.state)

    async def holdings(self, *names: str) -> Holdings:
        """What the named nodes hold, under the layout in force."""
        state = await self.state(names[0])
        self._epoch = state.epoch
        copies: dict[bytes, int] = {}
        holders: dict[bytes, set[str]] = defaultdict(set)
        for name in names:
            await self.state(name)
            for partition in range(state.current.partitions):
                after, more = b"", True
                while more:
                    page = (
                        await self._rpc.call(name, ListChunks(partition, after, PAGE), deadline_s=CALL_DEADLINE_S)
                    ).message
                    for listed in page.chunks:
                        if listed.references:
                            wanted = max(reference.replicas for reference in listed.references)
                            copies[listed.chunk] = max(wanted, copies.get(listed.chunk, 0))
                            holders[listed.chunk].add(name)
                    more, after = page.more, page.chunks[-1].chunk if page.chunks else b""
        return Holdings(state.current, copies, dict(holders))

    async def differences(self, *names: str) -> list[str]:
        """Where the Merkle roots of the named nodes, all members of the layout, are not those of equal replicas; in words."""
        state = await self.state(names[0])
        self._epoch = state.epoch
        for name in names:
            await self.state(name)
        layout = state.current
        partitions = list(range(layout.partitions))
        words: list[str] = []
        for copies in range(1, len(layout.nodes) + 1):
            roots = {n: await self._sums(n, CHUNK_TREE, copies, layout.partition_bits, partitions) for n in names}
            for partition in partitions:
                due = layout.placement(partition, copies)
                held = {roots[name][partition] for name in due if name in names}
                foreign = [name for name in names if name not in due and roots[name][partition]]
                if len(held) > 1 or foreign:
                    words.append(f"chunks in {copies} copies of partition {partition}: {held}, on others: {foreign}")
        for partition in [META_PARTITION, *partitions]:
            members = names if partition == META_PARTITION else layout.replicas(partition)
            sums = {n: await self._sums(n, REGISTER_TREE, partition, 0, [0]) for n in members if n in names}
            if len({values[0] if values else 0 for values in sums.values()}) > 1:
                words.append(f"registers of partition {partition}: {sums}")
        return words

    async def _sums(self, name: str, tree: str, key: int, bits: int, prefixes: list[int]) -> tuple[int, ...]:
        payload = struct.pack(f">{len(prefixes)}I", *prefixes)
        reply = await self._rpc.call(name, GetNodeSums(tree, key, bits), payload, deadline_s=CALL_DEADLINE_S)
        return unpack_sums(reply.payload)

    async def all_in_place(self, *names: str, deadline_s: float) -> Holdings:
        """Wait until each chunk that is referenced is on just the nodes that should have it.

        The nodes are listed one after the other while references of replaced versions go, so a chunk counts as misplaced when two
        listings in a row find it on the same wrong nodes.
        """
        last: list[str] = []

        async def placed() -> Holdings | None:
            nonlocal last
            try:
                holdings = await self.holdings(*names)
            except StaleLayout:
                return None
            before, last = last, holdings.misplaced()
            if last and not before:
                return None
            return None if set(last) & set(before) else holdings

        try:
            found = await eventually(placed, "every chunk is where it belongs", deadline_s)
        except BaseException:
            print(f"{len(last)} chunks are not where they belong:", *last[:20], sep="\n")
            raise
        assert isinstance(found, Holdings)
        return found


def head_replicas(layout: Layout, volume: str) -> tuple[str, ...]:
    """The nodes whose quorum decides what a volume of this name is."""
    return layout.replicas(partition_of(head_key(volume).partition, layout.partition_bits))


def chunk_replicas(layout: Layout, data: bytes) -> tuple[str, ...]:
    """The nodes that keep a chunk of these bytes."""
    return layout.replicas(chunk_partition(blake3(data).digest(), layout.partition_bits))
