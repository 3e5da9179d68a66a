"""This node's copy of the agreed layout state: what it acts under. The `LayoutView` of everything else.

It owns the installed state and each partition's standing that follows from it. Invariants: the epoch only grows; a state is taken up
together with the standings it implies, in one synchronous step, and is durable before anything decided under it is (the register
store commits in order); a node votes only where the state and its own memory allow it; all states are of the one cluster that the
node belongs to, which is remembered outside the register store before the first of them takes effect. The preference lists of a layout
are worked out before it is taken up, off the event loop: listeners look at all of them at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace

from cluster.doors.offload import Offload
from cluster.errors import HoldfastError, NotReady, StaleLayout, WrongCluster
from cluster.governance.belonging import Belonging
from cluster.governance.messages import GetState, Install, Installed, State
from cluster.governance.state import META_KEY, LayoutState
from cluster.governance.stores import StoreRegistry
from cluster.layout.layout import Layout
from cluster.layout.ring import chunk_partition, partition_of
from cluster.register.acceptor import Acceptor
from cluster.register.ballot import BOOTSTRAP_VERSION
from cluster.register.quorum import QuorumRule
from cluster.register.record import Record
from cluster.register.store import AWAY, FRESH, LEARNER, VOTER, MetaWrite, PartitionRecord, RegisterStore, RegisterWrite
from cluster.register.view import META_PARTITION
from cluster.rpc.caller import Caller
from cluster.rpc.service import Handlers, IncomingCall

FETCH_DEADLINE_S = 2.0
"""For fetching a newer state from the peer that has it."""

PREPARED_AT_ONCE = 1 << 14
"""Entries of preference lists that are worked out in one go: some 50 ms, in which one of the threads for hashing does nothing else."""

LAYOUT_META = "layout"
"""The name under which the installed state is kept in the register store."""


class InstalledLayout:
    """See the module. ``store_id`` is this node's own, called anew each time since relearning may replace it."""

    def __init__(
        self,
        me: str,
        caller: Caller,
        store: RegisterStore,
        belonging: Belonging,
        registry: StoreRegistry,
        is_alive: Callable[[str], bool],
        store_id: Callable[[], bytes],
        offload: Offload,
    ) -> None:
        self._me = me
        self._caller = caller
        self._store = store
        self._belonging = belonging
        self._registry = registry
        self._is_alive = is_alive
        self._store_id = store_id
        self._offload = offload
        self._preparing = asyncio.Lock()
        self._prepared: tuple[Layout, ...] = ()
        """The layouts of the newest state that was to be installed. Most states have the layouts of the one before."""
        self._acceptor: Acceptor | None = None
        self._state: LayoutState | None = None
        self._epoch = 0
        self._rules: dict[int, QuorumRule] = {}
        self._stores: dict[int, bytes] = {}
        self._stores_version = -1
        self._listeners: list[Callable[[LayoutState], None]] = []

    def bind(self, acceptor: Acceptor) -> None:
        """The acceptor whose standings follow the state. Once, before `open`."""
        self._acceptor = acceptor

    def on_install(self, listener: Callable[[LayoutState], None]) -> None:
        """Called after each new state, synchronously."""
        self._listeners.append(listener)

    def register(self, handlers: Handlers) -> None:
        handlers.register(GetState, self._answer_get_state)
        handlers.register(Install, self._answer_install)

    async def open(self) -> None:
        """Take up the state that was installed last. Raises WrongCluster when the register store is of another cluster."""
        packed = await self._store.meta(LAYOUT_META)
        if packed is not None:
            state = LayoutState.unpack(packed)
            await self._belong(state)
            self._take(await self._prepare(state))

    @property
    def state(self) -> LayoutState | None:
        return self._state

    def require(self) -> LayoutState:
        """The installed state. Raises NotReady when there is none."""
        if self._state is None:
            if self._belonging.cluster_id:
                raise NotReady(
                    f"this node knows no layout any more: it waits for its cluster {self._belonging.cluster_id.hex()[:8]}; "
                    "/readyz says what happened, and what to do",
                    retry_after_s=2,
                )
            raise NotReady(
                "this node has no layout yet: it waits for the cluster to form, or to be let in", retry_after_s=2
            )
        return self._state

    # LayoutView

    @property
    def epoch(self) -> int:
        return self._epoch

    @property
    def partition_bits(self) -> int:
        return self.require().current.partition_bits

    def check(self, epoch: int) -> bool:
        return epoch == self._epoch and epoch > 0

    def partition_of(self, partition_key: bytes) -> int:
        return partition_of(partition_key, self.require().current.partition_bits)

    def rule(self, partition: int) -> QuorumRule:
        rule = self._rules.get(partition)
        if rule is None:
            state = self.require()
            rule = state.meta_rule() if partition == META_PARTITION else state.rule(partition)
            self._rules[partition] = rule
        return rule

    def chunk_rule(self, chunk: bytes, copies: int) -> QuorumRule:
        state = self.require()
        partition = chunk_partition(chunk, state.current.partition_bits)
        if copies == state.current.replicas_per_partition and state.next is None:
            return self.rule(partition)
        groups = tuple(layout.placement(partition, copies) for layout in state.layouts())
        return QuorumRule(tuple(dict.fromkeys(groups)))

    def chunk_order(self, chunk: bytes) -> tuple[str, ...]:
        layout = self.require().current
        return layout.preference(chunk_partition(chunk, layout.partition_bits))

    def is_alive(self, name: str) -> bool:
        return name == self._me or self._is_alive(name)

    def stores(self, partition: int) -> bytes:
        if self._stores_version != self._registry.version:
            self._stores.clear()
            self._stores_version = self._registry.version
        known = self._stores.get(partition)
        if known is None:
            known = self._stores[partition] = self._registry.stores(sorted(self.rule(partition).members))
        return known

    async def agree(self, epoch: int, peer: str) -> None:
        if epoch > self._epoch:
            await self.refresh(peer)
        if epoch != self._epoch:
            raise StaleLayout(
                f"the request was made under layout epoch {epoch}; this node is at {self._epoch}", version=self._epoch
            )
        self.require()

    async def refresh(self, peer: str) -> None:
        if peer == self._me:
            return
        try:
            reply = await self._caller.call(peer, GetState(), deadline_s=FETCH_DEADLINE_S)
            if reply.message.state:
                await self.install(LayoutState.unpack(reply.message.state))
        except HoldfastError:
            return

    # Installing

    async def install(self, state: LayoutState) -> None:
        """Take up a state that is known to be decided; an older one than the installed is ignored. Durable on return. Raises WrongCluster
        for another cluster's, StoreFailed."""
        if state.epoch <= self._epoch:
            return
        await self._belong(state)
        async with self._preparing:
            if state.epoch <= self._epoch:
                return
            state = await self._prepare(state)
        if state.epoch <= self._epoch:
            return
        acceptor = self._acceptor
        assert acceptor is not None
        founding = state.epoch == 1 and dict(state.founders).get(self._me) == self._store_id()
        standings, clear = self._standings(state, acceptor, founding=founding)
        registers: list[RegisterWrite] = []
        if founding:
            registers.append(RegisterWrite(META_PARTITION, META_KEY, Record(BOOTSTRAP_VERSION, state.pack())))
        # No await from here until everything is queued.
        self._take(state)
        await acceptor.set_standings(standings, clear, [MetaWrite(LAYOUT_META, state.pack())], registers)

    async def _belong(self, state: LayoutState) -> None:
        """Remember the cluster if this is the node's first."""
        if not self._belonging.cluster_id:
            await self._belonging.join(state.cluster_id)
        if self._belonging.cluster_id != state.cluster_id:
            raise WrongCluster(
                f"a layout of cluster {state.cluster_id.hex()[:8]} was found, but node {self._me} belongs to cluster "
                f"{self._belonging.cluster_id.hex()[:8]}: a node of another cluster needs a data directory of its own"
            )

    async def _prepare(self, state: LayoutState) -> LayoutState:
        """The same state, its preference lists known."""

        def known(layout: Layout) -> Layout:
            return next((one for one in self._prepared if one == layout), layout)

        state = replace(state, current=known(state.current), next=state.next and known(state.next))
        self._prepared = state.layouts()  # also when this is cancelled: whoever comes next goes on with them
        for layout in state.layouts():
            step = max(1, PREPARED_AT_ONCE // len(layout.nodes))
            for start in range(0, layout.partitions, step):
                await self._offload.run(layout.prepare, start, min(start + step, layout.partitions))
        return state

    async def forget_memory(self) -> None:
        """This store may have forgotten what it once voted: become a learner wherever it is a replica of the current layout."""
        acceptor = self._acceptor
        assert acceptor is not None
        standings: dict[int, PartitionRecord] = {}
        for partition, record in acceptor.standings().items():
            if record.standing != AWAY:
                standing = FRESH if record.standing == FRESH else LEARNER
                standings[partition] = PartitionRecord(standing=standing, tenure=record.tenure)
        await acceptor.set_standings(standings, set(standings))

    def _take(self, state: LayoutState) -> None:
        self._state = state
        self._epoch = state.epoch
        self._rules.clear()
        self._stores.clear()
        for listener in self._listeners:
            listener(state)

    def _standings(
        self, state: LayoutState, acceptor: Acceptor, *, founding: bool
    ) -> tuple[dict[int, PartitionRecord], set[int]]:
        """Each partition's standing under ``state``, and the partitions whose registers are to be forgotten. A replica by the
        coming layout only keeps what it copied in this very epoch: what it copied for a change that was given up since is
        stale, and so is what it held in an earlier tenure."""
        standings: dict[int, PartitionRecord] = {}
        clear: set[int] = set()
        current, coming = state.current, state.next
        here = set(current.partitions_of(self._me))
        there = set() if coming is None else set(coming.partitions_of(self._me))
        if current.node(self._me) is not None:
            here.add(META_PARTITION)
        if coming is not None and coming.node(self._me) is not None:
            there.add(META_PARTITION)
        for partition in here | there | set(acceptor.standings()):
            before = acceptor.state(partition)
            if partition in here:
                standing = VOTER if before.standing == VOTER or founding else LEARNER
                standings[partition] = PartitionRecord(standing=standing, tenure=before.tenure)
                if founding:
                    clear.add(partition)
            elif partition in there:
                kept = before.standing in {FRESH, VOTER} and before.tenure == state.epoch
                standings[partition] = PartitionRecord(standing=before.standing if kept else FRESH, tenure=state.epoch)
                if not kept:
                    clear.add(partition)
            else:
                standings[partition] = PartitionRecord(standing=AWAY, tenure=0)
                if before.standing != AWAY:
                    clear.add(partition)
        return standings, clear

    # Handlers

    def _answer_get_state(self, request: GetState, call: IncomingCall) -> State:
        return State(b"" if self._state is None else self._state.pack())

    async def _answer_install(self, request: Install, call: IncomingCall) -> Installed:
        await self.install(LayoutState.unpack(request.state))
        return Installed(self._epoch)
