"""The first layout: nodes with ``bootstrap_expect = N`` wait for each other, then agree on layout 1.

Each node pledges itself, durably, to the first state that it is asked to pledge to; a state takes effect only when *all* of its N members
are pledged to it, so two overlapping sets of nodes can't both form a cluster. The node with the least name among those seen makes
the proposal; whoever finds itself pledged carries that proposal on, so the death of the proposer only delays.

Sets that overlap could block each other for ever, each with the pledge of a node that the other needs. So a node that is asked for one
state while it is pledged to another refuses that one, durably: it never pledges itself to it, also later. One refusal and the state
can't take effect any more, so whoever is pledged to it and hears of a refusal is free again, and never pledges itself to it either.
Invariant: a state that anybody has left has a member that never pledged and never pledges itself to it. (Two-phase commit with
unilateral abort.) A node that was emptied has forgotten what it pledged, so a refusal counts only from the very store that the state
names.

A node neither proposes nor pledges where there may be a cluster already, or it was in one itself (`founding`); it waits for that.
Owns this node's pledge and refusals. Does nothing once a layout is installed.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Collection, Mapping

from cluster.doors.clock import Clock
from cluster.errors import Conflict, HoldfastError, Invalid, NotReady
from cluster.governance.founding import Past, choose_founders, objection
from cluster.governance.installed import InstalledLayout
from cluster.governance.messages import Install, Pledge, State
from cluster.governance.state import CLUSTER_ID_BYTES, WRITE_ID_BYTES, LayoutState
from cluster.layout.layout import LayoutNode
from cluster.layout.planner import plan_layout
from cluster.membership.member import Member
from cluster.register.store import MetaWrite, RegisterStore
from cluster.rpc.caller import Caller
from cluster.rpc.service import Handlers, IncomingCall

ROUND_S = 0.2
"""Between looks at who is there."""

CALL_DEADLINE_S = 2.0

PLEDGE_META = "pledge"
REFUSED_META = "refused"
"""The ids of the states (their clusters') that this node has refused, one after the other."""

REFUSED_LIMIT = 1024
"""Refusals that are remembered, 16 bytes each. After so many hours of them a node waits for its own pledge alone."""

REFUSED_PAUSE_S, REFUSED_PAUSE_LIMIT_S = 0.5, 10.0
"""Until the next proposal, doubled each time: who is in whose way settles better without new ones all the time."""


def layout_node(member: Member) -> LayoutNode:
    """A member's place in a layout."""
    return LayoutNode(member.name, member.zone or member.name, max(1, member.capacity), member.host, member.port)


class Bootstrap:
    def __init__(
        self,
        me: str,
        expect: int,
        replication_factor: int,
        partition_bits: int,
        caller: Caller,
        store: RegisterStore,
        installed: InstalledLayout,
        members: Callable[[], Mapping[str, Member]],
        unmet_seeds: Callable[[], Collection[tuple[str, int]]],
        past: Callable[[], Past],
        store_id: Callable[[], bytes],
        clock: Clock,
        rng: random.Random,
    ) -> None:
        """``past``: what the disk tells of a former life. ``store_id``: of this node's store, called anew each time."""
        self._me = me
        self._expect = expect
        self._replication_factor = replication_factor
        self._partition_bits = partition_bits
        self._caller = caller
        self._store = store
        self._installed = installed
        self._members = members
        self._unmet_seeds = unmet_seeds
        self._read_past = past
        self._store_id = store_id
        self._past = Past()
        self._clock = clock
        self._rng = rng
        self._pledge: LayoutState | None = None
        self._refused: dict[bytes, None] = {}
        self._pause = 0.0
        self._refused_pause = REFUSED_PAUSE_S
        self._turn = asyncio.Lock()
        self.waiting_for = "peers"
        """What the first layout waits for, in words for people."""

    def register(self, handlers: Handlers) -> None:
        handlers.register(Pledge, self._answer)

    async def open(self) -> None:
        packed = await self._store.meta(PLEDGE_META)
        if packed:
            self._pledge = LayoutState.unpack(packed)
        refused = await self._store.meta(REFUSED_META) or b""
        self._refused = dict.fromkeys(
            refused[at : at + CLUSTER_ID_BYTES] for at in range(0, len(refused), CLUSTER_ID_BYTES)
        )
        if self._pledge is None and self._installed.state is None:
            self._past = self._read_past()
            if self.loss:
                self.waiting_for = self.loss

    @property
    def loss(self) -> str:
        """Why this node waits for its cluster and can't found one, in words for people; empty when that is not so."""
        return "" if self._installed.state is not None else self._past.loss

    async def run(self) -> None:
        """Until there is a layout."""
        while self._installed.state is None:
            proposal = self._pledge or self._propose()
            if proposal is not None:
                await self._carry_through(proposal)
            if self._installed.state is None:
                pause, self._pause = self._pause or ROUND_S, 0.0
                await self._clock.sleep(pause * (0.5 + self._rng.random()))
        self.waiting_for = ""

    def _propose(self) -> LayoutState | None:
        """The first state, when it is this node's turn to propose it."""
        members = self._members()
        chosen, self.waiting_for = choose_founders(self._me, self._expect, self._past, members, self._unmet_seeds())
        if not chosen:
            return None
        layout = plan_layout(
            None,
            [layout_node(members[name]) for name in chosen],
            replication_factor=self._replication_factor,
            partition_bits=self._partition_bits,
        )
        return LayoutState(
            cluster_id=self._rng.randbytes(CLUSTER_ID_BYTES),
            epoch=1,
            write_id=self._rng.randbytes(WRITE_ID_BYTES),
            current=layout,
            founders=tuple((name, members[name].store) for name in chosen),
        )

    async def _carry_through(self, proposal: LayoutState) -> None:
        """Ask all members to pledge; when all have, the state is in force."""
        packed = proposal.pack()
        missing: list[str] = []
        refused = False
        for name in proposal.members:
            try:
                reply = await self._caller.call(name, Pledge(packed), deadline_s=CALL_DEADLINE_S)
            except Conflict as error:
                refused = error.details.get("store") == dict(proposal.founders)[name].hex()
                missing.append(f"{name} ({error.message})")
                if refused:
                    break  # whoever comes after it had better stay free
                continue
            except HoldfastError as error:
                missing.append(f"{name} ({error.code})")
                continue
            if reply.message.state != packed:
                other = LayoutState.unpack(reply.message.state)
                if other.cluster_id != proposal.cluster_id:  # else it is in force already, and has changed since
                    missing.append(f"{name} (in the cluster of {', '.join(other.members)})")
        if missing:
            self.waiting_for = f"pledges for the first layout from {', '.join(missing)}"
            if refused:
                await self._leave(proposal)
                self._pause = self._refused_pause
                self._refused_pause = min(2 * self._refused_pause, REFUSED_PAUSE_LIMIT_S)
            return
        await self._installed.install(proposal)
        if self._installed.require().cluster_id != proposal.cluster_id:
            return  # this node has found its way into another cluster meanwhile
        for name in proposal.members:
            try:
                await self._caller.call(name, Install(packed), deadline_s=CALL_DEADLINE_S)
            except HoldfastError:
                continue  # it will find the state at its peers

    async def _leave(self, proposal: LayoutState) -> None:
        """It can't take effect any more: be free for another."""
        async with self._turn:
            pledge = self._pledge
            if self._installed.state is None and pledge is not None and pledge.cluster_id == proposal.cluster_id:
                await self._remember(b"", proposal.cluster_id)
                self._pledge = None
                self._past = self._read_past()

    async def _refuse(self, wanted: bytes, pledge: LayoutState) -> None:
        if wanted not in self._refused:
            if len(self._refused) >= REFUSED_LIMIT:
                raise NotReady(f"{self._me} is pledged to the cluster of {', '.join(pledge.members)}")
            await self._remember(pledge.pack(), wanted)

    async def _remember(self, pledge: bytes, *refused: bytes) -> None:
        """Durably: what this node is pledged to, and what it refuses besides what it has before."""
        writes = [MetaWrite(PLEDGE_META, pledge)]
        if refused:
            writes.append(MetaWrite(REFUSED_META, b"".join((*self._refused, *refused))))
        await asyncio.shield(self._store.commit(writes))
        self._refused.update(dict.fromkeys(refused))

    async def _answer(self, request: Pledge, call: IncomingCall) -> State:
        async with self._turn:
            if self._installed.state is not None:
                return State(self._installed.state.pack())
            wanted = LayoutState.unpack(request.state).cluster_id
            if self._pledge is not None and self._pledge.cluster_id != wanted:
                await self._refuse(wanted, self._pledge)
            if wanted in self._refused:
                store = self._store_id().hex()
                raise Conflict("it is, or was when first asked, pledged to another first layout", store=store)
            if self._pledge is None:
                if reason := objection(self._past, self._members(), self._unmet_seeds()):
                    raise NotReady(f"{self._me} founds no cluster now: it waits for {reason}")
                proposal = LayoutState.unpack(request.state)
                if proposal.epoch != 1 or self._me not in dict(proposal.founders):
                    raise Invalid("a pledge is asked for a first layout that this node is part of")
                await self._remember(request.state)
                self._pledge = proposal
            return State(self._pledge.pack())
