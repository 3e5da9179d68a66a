"""Two nodes' stores and what compares them, with a wire between that packs every message and counts what travels.

`Side` is one node: real `Comparison` and `RepairAnswers` over any stores. `CountedWire` carries calls between sides in one process, each
as the frames that a connection would carry, and remembers how many, how many bytes, and how many listed items they held. Used by the
tests of comparing and by the benchmark of it.
"""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable
from typing import Any, TypeVar, cast

import msgpack

from cluster.chunks.store import ChunkStore
from cluster.doors.offload import Inline
from cluster.governance.installed import LAYOUT_META, InstalledLayout
from cluster.governance.state import LayoutState
from cluster.governance.stores import StoreRegistry, new_store_id
from cluster.layout.layout import LayoutNode
from cluster.layout.planner import plan_layout
from cluster.register.store import MetaWrite, RegisterStore
from cluster.repair.answers import RepairAnswers
from cluster.repair.chunk_mender import ChunkMender
from cluster.repair.comparison import Comparison, Differences
from cluster.repair.messages import LeafChunks, LeafVersions
from cluster.repair.register_queue import RegisterQueue
from cluster.repair.sharing import Sharing
from cluster.rpc.caller import Reply
from cluster.rpc.codec import codec_of
from cluster.rpc.frame import PREFIX, REPLY, REQUEST, pack_header
from cluster.rpc.limits import HEADER_LIMIT
from cluster.rpc.message import Payload, Request, payload_joined
from cluster.rpc.service import Handlers, IncomingCall
from tests.support.simulated.belonging import MemoryBelonging

R = TypeVar("R")

COPIES = 3
CLUSTER_ID = b"compared-cluster"


class CountedWire:
    """Counts what travels between sides, and knows who answers."""

    def __init__(self) -> None:
        self.handlers: dict[str, Handlers] = {}
        self.calls = 0
        self.bytes = 0
        """Of frames, both ways: prefixes, headers and payloads."""
        self.listed = 0
        """References and registers in the listings that travelled."""

    def reset(self) -> None:
        self.calls = self.bytes = self.listed = 0

    def frame(self, header: tuple[object, ...], payload: Payload) -> tuple[tuple[Any, ...], bytes]:
        """What the other end makes of it."""
        packed = pack_header(header)
        assert len(packed) <= HEADER_LIMIT
        whole = bytes(payload_joined(payload))
        self.bytes += PREFIX.size + len(packed) + len(whole)
        return msgpack.unpackb(packed, use_list=False), whole


class WireCaller:
    """`Caller` for one node."""

    def __init__(self, me: str, wire: CountedWire, epoch: Callable[[], int]) -> None:
        self._me = me
        self._wire = wire
        self._epoch = epoch

    async def call(self, peer: str, request: Request[R], payload: Payload = b"", *, deadline_s: float) -> Reply[R]:
        wire = self._wire
        wire.calls += 1
        codec = codec_of(type(request))
        header = (REQUEST, wire.calls, codec.name, int(deadline_s * 1000), self._epoch(), codec.pack(request), 0)
        asked, content = wire.frame(header, payload)
        handler = wire.handlers[peer].find(asked[2])
        answer = handler.function(handler.unpack(asked[5]), IncomingCall(self._me, asked[4], content, deadline_s))
        if inspect.isawaitable(answer):
            answer = await answer
        message, beside = answer if isinstance(answer, tuple) else (answer, b"")
        if isinstance(message, LeafChunks):
            wire.listed += sum(len(chunk.references) for chunk in message.chunks)
        elif isinstance(message, LeafVersions):
            wire.listed += len(message.versions)
        replied, beside = wire.frame((REPLY, wire.calls, handler.pack_reply(message), 0), beside)
        reply: R = codec_of(request.reply_type()).unpack(replied[2])
        return Reply(reply, beside)


class Side:
    """One node of the layout. ``skipped``: partitions of which it can't speak now. Made by `open`."""

    def __init__(self, me: str, wire: CountedWire, registers: RegisterStore, chunks: ChunkStore) -> None:
        caller = WireCaller(me, wire, lambda: self.installed.epoch)
        store_id = new_store_id(random.Random(me))
        self.installed = InstalledLayout(
            me, caller, registers, MemoryBelonging(), StoreRegistry(), lambda _: True, lambda: store_id, Inline()
        )
        self.registers = registers
        self.chunks = chunks
        self.skipped: set[int] = set()
        sharing = Sharing(me)
        self.comparison = Comparison(me, caller, self.installed, registers, chunks, sharing, self._voting)
        # comparing reaches neither mender nor queue: only nudges do
        mender, queue = cast("ChunkMender", None), cast("RegisterQueue", None)
        answers = RepairAnswers(self.installed, registers, chunks, sharing, self._voting, mender, queue)
        wire.handlers[me] = Handlers()
        answers.register(wire.handlers[me])

    @classmethod
    async def open(
        cls, me: str, wire: CountedWire, registers: RegisterStore, chunks: ChunkStore, state: LayoutState
    ) -> Side:
        side = cls(me, wire, registers, chunks)
        await registers.commit([MetaWrite(LAYOUT_META, state.pack())])
        await side.installed.open()
        return side

    def _voting(self, partition: int) -> bool:
        return partition not in self.skipped

    async def compare(self, peer: str, start: float = 0.0) -> Differences:
        return await self.comparison.with_peer(peer, start)


def state_of(nodes: int, partition_bits: int = 10) -> LayoutState:
    """A quiet cluster of nodes ``n0``, ``n1``, ..."""
    members = [LayoutNode(f"n{n}", f"n{n}", 1, "host", 1 + n) for n in range(nodes)]
    layout = plan_layout(None, members, replication_factor=COPIES, partition_bits=partition_bits)
    return LayoutState(CLUSTER_ID, 1, b"compared", layout)
