"""The governor: makes plans into layouts. Stages, applies, watches a change being filled, finishes or aborts it.

Every node runs one; the *steward* (the living member of the layout with the least name) does what nobody asked for: it takes up states
that were decided and not yet told, applies staged joiners where ``auto_layout`` is on, moves out nodes that have been dead for
``down_out_s`` (and takes those in again when they are back), and finishes a change when every node of the next layout has copied what
it is due, or gives it up when one of those has been dead for as long. Two stewards at once are harmless: the agreed state changes by
compare-and-set only.
Owns nothing but its timers; the state is `InstalledLayout`'s.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from cluster.doors.clock import Clock
from cluster.doors.offload import Offload
from cluster.errors import Conflict, HoldfastError, Invalid, NotReady, OutcomeUnknown
from cluster.governance.bootstrap import layout_node
from cluster.governance.installed import InstalledLayout
from cluster.governance.messages import FillProgress, GetFill, Install
from cluster.governance.state import META_KEY, WRITE_ID_BYTES, LayoutState, StagedChange
from cluster.layout.layout import Layout, LayoutNode
from cluster.layout.planner import plan_layout
from cluster.membership.member import Member
from cluster.register.registers import Registers
from cluster.register.view import META_PARTITION
from cluster.rpc.caller import Caller

ROUND_S = 0.5
"""Between two looks at what there is to do."""

CATCH_UP_S = 5.0
"""Between two reads of the agreed state by the steward, in case a decision was never told."""

SETTLE_S = 2.0
"""How long the set of joiners must stay the same before ``auto_layout`` applies it, so that nodes that come together move data once."""

CALL_DEADLINE_S = 2.0


class Governor:
    def __init__(
        self,
        me: str,
        auto_layout: bool,
        down_out_s: float,
        caller: Caller,
        registers: Registers,
        installed: InstalledLayout,
        members: Callable[[], Mapping[str, Member]],
        clock: Clock,
        rng: random.Random,
        offload: Offload,
    ) -> None:
        self._me = me
        self._auto_layout = auto_layout
        self._down_out_s = down_out_s
        self._caller = caller
        self._registers = registers
        self._installed = installed
        self._members = members
        self._clock = clock
        self._rng = rng
        self._offload = offload
        self._joiners: tuple[str, ...] = ()
        self._joiners_since = 0.0
        self._caught_up = 0.0
        self._dead_since: dict[str, float] = {}
        self._dead_in = 0
        """The epoch in which that was noted."""
        self.progress: dict[str, FillProgress] = {}
        """Of a change under way, by node, as the steward last heard it."""
        self.last_error = ""
        self.waiting_for = ""

    async def run(self) -> None:
        while True:
            try:
                await self._round()
                self.last_error = ""
            except HoldfastError as error:
                self.last_error = error.message
            await self._clock.sleep(ROUND_S * (0.75 + 0.5 * self._rng.random()))

    # For operators

    def joiners(self) -> dict[str, Member]:
        """Living members that are not in the layout and were not removed from it."""
        state = self._installed.require()
        known = {*state.members, *state.excluded}
        return {name: member for name, member in self._members().items() if member.usable and name not in known}

    async def stage(self, changes: list[StagedChange]) -> LayoutState:
        """Record wishes for the next plan. Raises Invalid for a node that is neither in the layout nor there, and when no layout can be
        planned with them: then nothing is staged. Raises Conflict while a change is under way, whose copying a new epoch would begin
        again."""
        state = self._installed.require()
        for change in changes:
            member = self._members().get(change.name)
            if state.current.node(change.name) is None and (change.remove or member is None):
                raise Invalid(
                    f"there is no node {change.name!r} in the layout; `holdfast nodes` lists them", field="name"
                )
        agreed = await self._agreed()
        agreed.require_no_change()
        wished = agreed.stage(changes, self._write_id())
        await self._plan(wished, self._wanted(wished))
        return await self._replace(agreed, wished)

    async def plan(self) -> tuple[Layout, Layout]:
        """The layout in force and the one that applying would begin. Equal versions: there is nothing to change."""
        state = self._installed.require()
        wanted = self._wanted(state)
        layout = await self._plan(state, wanted)
        return state.current, layout if layout.nodes != state.current.nodes else state.current

    async def apply(self, version: int, fingerprint: str | None = None) -> LayoutState:
        """Begin the change to the plan with this version, and with this fingerprint if one is given: plans of one version follow one
        another with every joiner and every wish. Raises Conflict while another change is under way, and when the plan is another
        one by now."""
        agreed = await self._agreed()
        agreed.require_no_change()
        layout = await self._plan(agreed, self._wanted(agreed))
        if layout.nodes == agreed.current.nodes:
            raise Conflict("there is nothing to apply: the plan is the layout in force")
        if layout.version != version or fingerprint not in (None, layout.fingerprint):
            raise Conflict(
                f"the plan is version {layout.version}-{layout.fingerprint} by now: look at it again before you apply it",
                version=layout.version,
                plan=layout.fingerprint,
            )
        return await self._replace(agreed, agreed.begin(layout, self._write_id()))

    async def abort(self) -> LayoutState:
        """Give up the change under way, or drop what is staged. Raises Conflict when there is neither."""

        def decide(agreed: LayoutState) -> LayoutState:
            if agreed.next is None and agreed.staged:
                return agreed.unstage(self._write_id())
            return agreed.abort(self._write_id())

        return await self._decide(decide)

    # The agreed state

    async def _agreed(self) -> LayoutState:
        """The agreed state, read linearizably and installed."""
        self._installed.require()
        packed = await self._registers.read(META_KEY, partition=META_PARTITION)
        if packed is None:
            raise NotReady("the register of layouts is empty: its members are still relearning it")
        state = LayoutState.unpack(packed)
        await self._installed.install(state)
        return state

    async def _decide(self, change: Callable[[LayoutState], LayoutState]) -> LayoutState:
        agreed = await self._agreed()
        return await self._replace(agreed, change(agreed))

    async def _replace(self, old: LayoutState, new: LayoutState) -> LayoutState:
        """Agree on ``new`` in place of ``old`` and tell everybody. Raises Conflict when another change came first."""
        packed = new.pack()
        outcome = await self._registers.compare_and_set(META_KEY, old.pack(), packed, partition=META_PARTITION)
        if not outcome.applied:
            raise Conflict("another change of the layout came first: look at it and try again")
        await self._installed.install(new)
        for name in new.members:
            if name != self._me and self._installed.is_alive(name):
                try:
                    await self._caller.call(name, Install(packed), deadline_s=CALL_DEADLINE_S)
                except HoldfastError:
                    continue  # it will see the higher epoch with the next message from anybody
        return new

    def _wanted(self, state: LayoutState) -> list[LayoutNode]:
        """The nodes of the next plan: those in force where they are now, the wishes, the joiners."""
        members = self._members()
        staged = {change.name: change for change in state.staged}
        wanted: list[LayoutNode] = []
        candidates = {node.name: node for node in state.current.nodes}
        for name, member in self.joiners().items():
            candidates[name] = layout_node(member)
        for name, change in staged.items():
            if name not in candidates and not change.remove and name in members:
                candidates[name] = layout_node(members[name])
        for name, node in candidates.items():
            wish = staged.get(name)
            if wish is None or not wish.remove:
                wanted.append(_as_wished(node, wish))
        if not wanted:
            raise Invalid("a layout needs at least one node")
        return sorted(wanted, key=lambda node: node.name)

    async def _plan(self, state: LayoutState, wanted: list[LayoutNode]) -> Layout:
        return await self._offload.run(
            plan_layout,
            state.current,
            wanted,
            replication_factor=state.current.replication_factor,
            partition_bits=state.current.partition_bits,
        )

    # The steward

    async def _round(self) -> None:
        await self._follow()
        state = self._installed.state
        if state is None:
            self.waiting_for = "a layout"
            return
        alive = [name for name in state.members if self._installed.is_alive(name)]
        if min(alive, default=self._me) != self._me or self._me not in state.members:
            self.waiting_for = f"nothing: {min(alive, default='another node')} is the steward"
            self.progress = {}
            return
        self.waiting_for = ""
        now = self._clock.monotonic()
        if now - self._caught_up >= CATCH_UP_S:
            await self._agreed()
            self._caught_up = now
        dead = self._dead(state)
        if state.next is not None:
            if not await self._give_change_up(state, dead):
                await self._watch(state)
        elif not await self._move_out(state, dead):
            await self._take_in(state)

    async def _follow(self) -> None:
        """Install a newer state that somebody announces."""
        ahead = [
            member
            for member in self._members().values()
            if member.usable and member.layout_version > self._installed.epoch
        ]
        if ahead:
            newest = max(ahead, key=lambda member: member.layout_version)
            await self._installed.refresh(newest.name)

    async def _take_in(self, state: LayoutState) -> None:
        """Take joiners in once they have been there for a while: all of them with ``auto_layout``, else those that were moved out only
        because they were dead. What is staged about others stays so until an operator applies it."""
        wishes = {change.name: change for change in state.staged}
        there = {
            name: _as_wished(layout_node(member), wishes.get(name))
            for name, member in self.joiners().items()
            if (self._auto_layout or name in state.outed) and not (name in wishes and wishes[name].remove)
        }
        joiners = tuple(sorted(there))
        now = self._clock.monotonic()
        if joiners != self._joiners:
            self._joiners, self._joiners_since = joiners, now
        if not joiners:
            return
        if now - self._joiners_since < SETTLE_S:
            self.waiting_for = f"{', '.join(joiners)} to settle before they are taken in"
        else:
            await self._begin_unasked(state, [*state.current.nodes, *there.values()])

    def _dead(self, state: LayoutState) -> dict[str, bool]:
        """The members that are dead, and whether for long, counted from no earlier than the present epoch."""
        now = self._clock.monotonic()
        if state.epoch != self._dead_in:
            self._dead_in, self._dead_since = state.epoch, {}
        names = [name for name in state.members if not self._installed.is_alive(name)]
        self._dead_since = {name: self._dead_since.get(name, now) for name in names}
        return {name: 0 < self._down_out_s <= now - since for name, since in self._dead_since.items()}

    async def _move_out(self, state: LayoutState, dead: Mapping[str, bool]) -> bool:
        """Begin a layout without the nodes that have been dead for long, so that others hold what they held. Only while enough are
        left to hold all copies, and a majority: then it is not this side that is cut off. And only when nobody else is dead: with a
        dead node in it the change could not finish. Whether a change was begun."""
        out = {name for name, long in dead.items() if long}
        if not out:
            return False
        living = len(state.current.nodes) - len(dead)
        if living < state.current.replication_factor or 2 * living <= len(state.current.nodes):
            self.waiting_for = (
                f"more living nodes: {living} are too few to take over what {', '.join(sorted(out))} held"
            )
            return False
        if len(out) < len(dead):
            self.waiting_for = f"{', '.join(sorted(dead.keys() - out))} to be back, or dead for long as well"
            return False
        await self._begin_unasked(state, [node for node in state.current.nodes if node.name not in out])
        return True

    async def _give_change_up(self, state: LayoutState, dead: Mapping[str, bool]) -> bool:
        """Give up a change that can't finish, because a node of the coming layout has been dead for long: then it can be moved out.
        Whether that was done."""
        assert state.next is not None
        if not any(long and state.next.node(name) is not None for name, long in dead.items()):
            return False
        agreed = await self._agreed()
        if agreed.epoch == state.epoch:
            await self._replace(agreed, agreed.abort(self._write_id()))
        return True

    async def _begin_unasked(self, state: LayoutState, nodes: Sequence[LayoutNode]) -> None:
        agreed = await self._agreed()
        if agreed.epoch == state.epoch:
            layout = await self._plan(agreed, sorted(nodes, key=lambda node: node.name))
            await self._replace(agreed, agreed.begin_unasked(layout, self._write_id()))

    async def _watch(self, state: LayoutState) -> None:
        """Finish the change when all nodes of the next layout have what they are due."""
        assert state.next is not None
        missing: list[str] = []
        for node in state.next.nodes:
            try:
                reply = await self._caller.call(node.name, GetFill(), deadline_s=CALL_DEADLINE_S)
            except HoldfastError:
                missing.append(node.name)
                continue
            progress = reply.message
            self.progress[node.name] = progress
            if progress.epoch != state.epoch or progress.partitions_done < progress.partitions:
                missing.append(node.name)
        if missing:
            self.waiting_for = f"{', '.join(missing)} to copy what layout {state.next.version} gives them"
            return
        try:
            agreed = await self._agreed()
            if agreed.epoch == state.epoch:
                await self._replace(agreed, agreed.finish(self._write_id()))
        except (Conflict, OutcomeUnknown) as error:
            self.last_error = error.message

    def _write_id(self) -> bytes:
        return self._rng.randbytes(WRITE_ID_BYTES)


def _as_wished(node: LayoutNode, change: StagedChange | None) -> LayoutNode:
    """The node with the zone and capacity that an operator wants it to have. Raises Invalid."""
    if change is None:
        return node
    return replace(node, zone=change.zone or node.zone, capacity=change.capacity or node.capacity)
