"""Attestation: may this node trust its own memory of what it voted?

A store that was emptied has no voting rights recorded in it, so it votes in nothing by itself. A store put back from an old copy has
them, and has forgotten the votes since. So before a node votes it tells its peers which store and boot it is, and they tell what they
remember; a peer that remembers a later life of this node proves that memory was lost. The node then takes a new store id, of a
higher generation than any remembered, and relearns everything (`cluster.rebalance.copier`).

A node votes in a partition once so many of the other replicas have confirmed it that they and it make a quorum. It goes on
until every member of the layout has heard of this life. What this catches and what it can't: docs/decisions/amnesia.md.
Owns this node's `Life`.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

from cluster.doors.clock import Clock
from cluster.errors import HoldfastError
from cluster.governance.installed import InstalledLayout
from cluster.governance.messages import Attest, Attested
from cluster.governance.stores import UNKNOWN_STORE, Life, StoreRegistry, new_store_id
from cluster.register.quorum import majority
from cluster.register.store import MetaWrite, RegisterStore
from cluster.rpc.caller import Caller
from cluster.rpc.service import Handlers, IncomingCall

ATTEST_INTERVAL_S = 0.25
"""Between rounds of asking while some have not been reached; grows to `ATTEST_INTERVAL_LIMIT_S`."""

ATTEST_INTERVAL_LIMIT_S = 2.0

ATTEST_DEADLINE_S = 2.0

STORES_META = "stores"
"""The name under which the registry of stores is kept."""

STORE_ID_META = "store_id"
BOOT_META = "boot"


class Attestation:
    """See the module. ``on_new_life`` is called when this node takes a new store id."""

    def __init__(
        self,
        me: str,
        life: Life,
        caller: Caller,
        store: RegisterStore,
        registry: StoreRegistry,
        installed: InstalledLayout,
        clock: Clock,
        rng: random.Random,
        on_new_life: Callable[[Life], None],
    ) -> None:
        self._me = me
        self._life = life
        self._new = life.boot == 1
        self._caller = caller
        self._store = store
        self._registry = registry
        self._installed = installed
        self._clock = clock
        self._rng = rng
        self._on_new_life = on_new_life
        self._confirmed: set[str] = set()
        self._changed = asyncio.Event()
        installed.on_install(lambda _: self._changed.set())

    @property
    def life(self) -> Life:
        return self._life

    @property
    def unconfirmed(self) -> list[str]:
        """Members of the layout that have not heard of this life yet."""
        state = self._installed.state
        return [] if state is None else [n for n in state.members if n != self._me and n not in self._confirmed]

    def register(self, handlers: Handlers) -> None:
        handlers.register(Attest, self._answer)

    async def open(self) -> None:
        """Read what is remembered of the others. Before anything else."""
        packed = await self._store.meta(STORES_META)
        if packed is not None:
            self._registry.load(packed)
        self._registry.note(self._me, self._life)

    def has_confirmed(self, name: str) -> bool:
        """Whether a peer has durably taken note of this life."""
        return name in self._confirmed

    def covers(self, partition: int) -> bool:
        """Whether enough of a partition's other replicas have confirmed this node's life."""
        for group in self._installed.rule(partition).groups:
            if self._me in group:
                confirmed = sum(name in self._confirmed for name in group)
                if confirmed < majority(len(group)) - 1:
                    return False
        return True

    async def run(self) -> None:
        """Ask until everybody has answered, and again when the layout gains members."""
        interval = ATTEST_INTERVAL_S
        while True:
            self._changed.clear()
            waiting = self.unconfirmed
            if not waiting:
                interval = ATTEST_INTERVAL_S
                await self._changed.wait()
                continue
            async with asyncio.TaskGroup() as group:
                for name in waiting:
                    group.create_task(self._ask(name))
            if self.unconfirmed:
                await self._clock.sleep(interval * (0.5 + self._rng.random()))
                interval = min(2 * interval, ATTEST_INTERVAL_LIMIT_S)

    async def _ask(self, name: str) -> None:
        life = self._life
        try:
            reply = await self._caller.call(name, Attest(*life), deadline_s=ATTEST_DEADLINE_S)
        except HoldfastError:
            return
        answer = reply.message
        remembered = Life(answer.store, answer.boot, answer.run)
        self._registry.note(name, Life(answer.own_store, answer.own_boot, answer.own_run))
        if life != self._life:
            return
        other_disk = self._new and remembered.store not in {UNKNOWN_STORE, life.store}
        twin = remembered.age == life.age and remembered.run != life.run
        if other_disk or twin or remembered.age > life.age:
            await self._begin_anew(remembered)
        else:
            self._confirmed.add(name)

    async def _begin_anew(self, remembered: Life) -> None:
        """Take a new store id: what this store remembers is not what this node once promised."""
        above = max(remembered.store, self._life.store)
        self._life = Life(new_store_id(self._rng, above), 1, self._life.run)
        self._new = False
        self._confirmed.clear()
        self._registry.note(self._me, self._life)
        await self._installed.forget_memory()
        await asyncio.shield(
            self._store.commit(
                [MetaWrite(STORE_ID_META, self._life.store), MetaWrite(BOOT_META, str(self._life.boot).encode())]
            )
        )
        self._on_new_life(self._life)

    async def _answer(self, request: Attest, call: IncomingCall) -> Attested:
        known = self._registry.life(call.peer)
        if self._registry.note(call.peer, Life(request.store, request.boot, request.run)):
            await asyncio.shield(self._store.commit([MetaWrite(STORES_META, self._registry.pack())]))
        return Attested(*known, *self._life)
