"""One node's repair, put together: the budget, the menders, anti-entropy, read repair; and the cluster's repair as seen from here.

`Repair` owns the lives of these parts, the pause (durable), and what is told of it all: `local` for this node, `overview` for everybody.
Above it in the stack, the copier and the tidier take their turns from the same budget.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Protocol

from cluster.chunks.chunks import ClusterChunks
from cluster.chunks.messages import HoldChunks, ListedChunk
from cluster.chunks.replica import ChunkReplica
from cluster.chunks.store import ChunkStore
from cluster.doors.clock import Clock
from cluster.doors.offload import Offload
from cluster.errors import HoldfastError, Invalid
from cluster.governance.installed import InstalledLayout
from cluster.register.store import MetaWrite, RegisterStore
from cluster.repair.answers import RepairAnswers
from cluster.repair.anti_entropy import AntiEntropy
from cluster.repair.budget import RepairBudget
from cluster.repair.chunk_mender import ChunkMender
from cluster.repair.comparison import Comparison
from cluster.repair.judge import Judge
from cluster.repair.messages import ControlRepair, GetRepair, NodeRepair
from cluster.repair.nudger import Nudger
from cluster.repair.register_queue import Mender, RegisterQueue
from cluster.repair.settings import RepairSettings
from cluster.repair.sharing import Sharing
from cluster.repair.status import (
    ACTIONS,
    PAUSE,
    RESUME,
    RUN,
    SCRUB,
    RepairSummary,
    pack_counts,
    summarise,
)
from cluster.rpc.caller import Caller
from cluster.rpc.message import Buffer, Done
from cluster.rpc.service import Handlers, IncomingCall

OVERVIEW_DEADLINE_S = 1.0
"""For a node to say how its repair goes; whoever takes longer counts as not answering."""

CONFIRM_AFTER_S = 0.4
"""Between two looks at what is missing, when the first finds something: a write on its way is on one replica before it is on the other."""

CONFIRM_DEADLINE_S = 0.5

HOLDERS_DEADLINE_S = 3.0

PAUSED_META = "repair_paused"


class Scrub(Protocol):
    """The re-reading of everything held, as far as repair shows and starts it (`node.storage.scrub`)."""

    chunks_verified: int
    damaged_found: int

    @property
    def oldest_verification_s(self) -> float | None:
        """Nothing held was last verified longer ago; None while that isn't known."""

    def start_now(self) -> None:
        """Verify everything now."""


class Repair:
    """See the module. ``voting(partition)``: whether this node's registers there are a full replica's."""

    def __init__(
        self,
        me: str,
        settings: RepairSettings,
        caller: Caller,
        installed: InstalledLayout,
        registers: RegisterStore,
        store: ChunkStore,
        chunks: ClusterChunks,
        replica: ChunkReplica,
        register_mender: Mender,
        judge: Judge,
        scrub: Scrub | None,
        voting: Callable[[int], bool],
        clock: Clock,
        rng: random.Random,
        offload: Offload,
    ) -> None:
        self._me = me
        self._caller = caller
        self._installed = installed
        self._registers = registers
        self._store = store
        self._scrub = scrub
        self._clock = clock
        self.others: Callable[[], Collection[str]] = tuple
        """Living nodes, those outside the layout too: one that was removed may still hold what has not moved home."""
        self.refilling: Callable[[], int] = lambda: 0
        """Partitions that the copier still has to fill here."""
        self.budget = RepairBudget(clock, settings.rate_bytes, lambda: replica.served + chunks.local_reads)
        self.mender = ChunkMender(me, store, caller, installed, judge, self.budget, clock, rng, offload)
        self.keys = RegisterQueue(register_mender, self.budget, clock)
        self.nudger = Nudger(me, caller, self.mender)
        sharing = Sharing(me)
        comparison = Comparison(me, caller, installed, registers, store, sharing, voting)
        self.anti_entropy = AntiEntropy(me, settings, comparison, caller, installed, self.mender, self.keys, clock, rng)
        self._answers = RepairAnswers(installed, registers, store, sharing, voting, self.mender, self.keys)
        chunks.on_bad_copy = self.nudger.bad_copy

    def register(self, handlers: Handlers) -> None:
        self._answers.register(handlers)
        handlers.register(GetRepair, self._answer_get)
        handlers.register(ControlRepair, self._answer_control)

    async def open(self) -> None:
        """Stay paused if it was."""
        if await self._registers.meta(PAUSED_META):
            self.budget.pause()

    async def run(self) -> None:
        """All parts until cancelled."""
        async with asyncio.TaskGroup() as group:
            for part in (self.anti_entropy, self.mender, self.keys, self.nudger):
                group.create_task(part.run())

    # This node

    @property
    def passes(self) -> int:
        """Comparisons with all living peers that this node has made. Costs nothing."""
        return self.anti_entropy.passes

    def due_at(self, chunk: bytes, copies: int) -> tuple[str, ...]:
        """The nodes that should hold a chunk in so many copies."""
        return self._installed.chunk_rule(chunk, copies).members

    def local(self) -> NodeRepair:
        """How this node's repair goes. Raises NotReady without a layout."""
        state = self._installed.require()
        layouts = state.layouts()
        bits = state.current.partition_bits
        counts: dict[int, dict[int, int]] = {}
        handoffs = 0
        for copies, tree in sorted(self._store.trees().items()):
            held = counts.setdefault(copies, {})
            for partition in range(state.current.partitions):
                count = tree.count(bits, partition)
                if count:
                    held[partition] = count
                    if not any(self._me in layout.placement(partition, copies) for layout in layouts):
                        handoffs += count
        classes, packed = pack_counts({c: held for c, held in counts.items() if held}, state.current.partitions)
        chunks_diverged, keys_diverged, oldest_s = self.anti_entropy.diverged()
        chunk_rate, byte_rate = self.budget.rates
        scrub = self._scrub
        verified_s = None if scrub is None else scrub.oldest_verification_s
        return NodeRepair(
            classes=classes,
            counts=packed,
            lacking=self.mender.lacking,
            keys_diverged=keys_diverged,
            chunks_diverged=chunks_diverged,
            oldest_s=oldest_s,
            handoffs=handoffs,
            refilling=self.refilling(),
            queue=self.mender.queue_length + self.keys.queue_length,
            copied_chunks=self.budget.chunks,
            copied_bytes=self.budget.size,
            chunk_rate=chunk_rate,
            byte_rate=byte_rate,
            passes=self.anti_entropy.passes,
            paused=self.budget.paused,
            last_error=self.mender.last_error or self.keys.last_error or self.anti_entropy.last_error,
            oldest_verification_s=-1.0 if verified_s is None else verified_s,
            verified_chunks=0 if scrub is None else scrub.chunks_verified,
            damaged_chunks=0 if scrub is None else scrub.damaged_found,
            compared_chunks=self.anti_entropy.compared_chunks,
        )

    # Everybody

    async def overview(self) -> RepairSummary:
        """What all nodes of the layout say, within two seconds. Raises NotReady without a layout."""
        layout = self._installed.require().current
        names = [node.name for node in layout.nodes]
        names += sorted(name for name in self.others() if layout.node(name) is None)
        first = await self._ask_all(names, OVERVIEW_DEADLINE_S)
        found = summarise(layout, first)
        if not found.copies_missing:
            return found
        await self._clock.sleep(CONFIRM_AFTER_S)
        second = await self._ask_all([name for name in names if first[name] is not None], CONFIRM_DEADLINE_S)
        return summarise(layout, first, {name: second.get(name) or first[name] for name in names})

    async def _ask_all(self, names: Sequence[str], deadline_s: float) -> dict[str, NodeRepair | None]:
        found = await asyncio.gather(*(self._ask(name, deadline_s) for name in names))
        return dict(zip(names, found, strict=True))

    async def _ask(self, name: str, deadline_s: float) -> NodeRepair | None:
        if name == self._me:
            return self.local()
        if not self._installed.is_alive(name):
            return None
        try:
            reply = await self._caller.call(name, GetRepair(), deadline_s=deadline_s)
        except HoldfastError:
            return None
        return replace(reply.message, counts=bytes(reply.payload))

    async def holders(self, chunks: Sequence[bytes]) -> dict[bytes, dict[str, bool | None]]:
        """For each chunk and each node of the layout: whether it holds the chunk; None when it doesn't answer."""
        names = [node.name for node in self._installed.require().current.nodes]
        asked = tuple(dict.fromkeys(chunks))
        question = tuple(ListedChunk(chunk, 0, ()) for chunk in asked)

        async def ask(name: str) -> list[bool | None]:
            try:
                reply = await self._caller.call(name, HoldChunks(question), deadline_s=HOLDERS_DEADLINE_S)
            except HoldfastError:
                return [None] * len(asked)
            return list(reply.message.held)

        answers = dict(zip(names, await asyncio.gather(*map(ask, names)), strict=True))
        return {chunk: {name: answers[name][position] for name in names} for position, chunk in enumerate(asked)}

    async def control(self, action: str) -> dict[str, str]:
        """Have all nodes of the layout do it; for each why it could not be told, or empty. Raises Invalid for an unknown action."""
        check_action(action)
        names = [node.name for node in self._installed.require().current.nodes]

        async def tell(name: str) -> str:
            try:
                await self._caller.call(name, ControlRepair(action), deadline_s=HOLDERS_DEADLINE_S)
            except HoldfastError as error:
                return error.message
            return ""

        return dict(zip(names, await asyncio.gather(*map(tell, names)), strict=True))

    # Answers

    def _answer_get(self, request: GetRepair, call: IncomingCall) -> tuple[NodeRepair, Buffer]:
        local = self.local()
        return replace(local, counts=b""), local.counts

    async def _answer_control(self, request: ControlRepair, call: IncomingCall) -> Done:
        action = check_action(request.action)
        if action in {PAUSE, RESUME}:
            mark = b"1" if action == PAUSE else b""
            await asyncio.shield(self._registers.commit([MetaWrite(PAUSED_META, mark)]))
            (self.budget.pause if action == PAUSE else self.budget.resume)()
        if action in {RUN, SCRUB}:
            self.anti_entropy.hurry()
        if action == SCRUB and self._scrub is not None:
            self._scrub.start_now()
        return Done()


def check_action(action: str) -> str:
    """The action, if there is such a one. Raises Invalid."""
    if action not in ACTIONS:
        raise Invalid(f"repair can be told to {', '.join(ACTIONS)}; not to {action[:32]!r}", field="action")
    return action
