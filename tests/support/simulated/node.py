"""A simulated node: a disk that stays, and lives (processes) on it that come and go.

A life wires the register layer up as `node.daemon` does, with a small copier of its own for FRESH and LEARNER partitions. `Parts`
lets a test put a deliberately wrong part in the place of a right one.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from cluster.errors import HoldfastError, QuorumUnavailable, StaleLayout
from cluster.register.acceptor import Acceptor
from cluster.register.ballot import NO_BALLOT, Ballot, proposer_name
from cluster.register.copying import Origin, merge_pages
from cluster.register.key import RegisterKey
from cluster.register.leader import Leader
from cluster.register.mender import RegisterMender
from cluster.register.messages import Export
from cluster.register.purge import Purger
from cluster.register.quorum import majority
from cluster.register.record import ABSENT
from cluster.register.record_cache import RecordCache
from cluster.register.registers import Registers
from cluster.register.scatter import Scatter
from cluster.register.service import RegisterService
from cluster.register.store import AWAY, FRESH, LEARNER, VOTER, MetaWrite, Page, PartitionRecord, PartitionWrite
from tests.support.simulated.fabric import Fabric, Process
from tests.support.simulated.layouts import PARTITIONS, Announce, Script, ScriptedView
from tests.support.simulated.memory_store import DiskContent, MemoryRegisterStore

PURGE_INTERVAL_S = 0.03
"""So that a register is deleted, purged and created again many times in a run."""

COPY_PAGE = 3
"""Small, so that copies and listings go over many pages."""


@dataclass
class Parts:
    """What a life is made of. ``rig`` may do anything to a life that has just been put together."""

    acceptor: type[Acceptor] = Acceptor
    leader: type[Leader] = Leader
    purger: type[Purger] = Purger
    rig: Callable[[Life], None] = field(default=lambda life: None)


def store_name(generation: int, node: str) -> bytes:
    return generation.to_bytes(2, "big") + node.encode().ljust(6, b".")


class Life:
    """One process of a node."""

    def __init__(self, machine: Machine, rng: random.Random) -> None:
        name = machine.name
        self.machine = machine
        self.process = Process(name, machine.fabric, offset_s=rng.random() * 1000)
        self.store = MemoryRegisterStore(machine.disk, rng, machine.sync_s)
        known = {peer: store_name(1, peer) for peer in machine.names}
        doubt = 0.0 if machine.fabric.resets else 0.1
        self.view = ScriptedView(self.process, machine.script, self.store, known, machine.is_up, rng, doubt)
        self.view.note_store(name, machine.store_id)
        self.acceptor = machine.parts.acceptor(self.store, self.view, lambda partition: True)
        if rng.random() < 0.5:
            # Room for a register or two: everything else is evicted and read again all the time.
            self.acceptor._cache = RecordCache(900)
        self.scatter = Scatter(self.process)
        self.leader = machine.parts.leader(
            name,
            proposer_name(name, machine.boot, machine.store_id),
            self.scatter,
            self.view,
            self.process,
            rng,
            self.acceptor.promised,
        )
        RegisterService(self.acceptor, self.leader, self.view).register(self.process.handlers)
        self.registers = Registers(name, self.process, self.scatter, self.view, self.process, rng)
        self.mender = RegisterMender(self.scatter, self.view, self.acceptor, self.registers)
        self.purger = machine.parts.purger(
            name,
            self.store,
            self.leader,
            self.scatter,
            self.view,
            self.registers,
            self.process,
            rng,
            grace_s=0.0,
            interval_s=PURGE_INTERVAL_S,
        )
        self.copied_in = 0
        """The epoch in which this life has last seen everything copied."""
        self._told: set[str] = set()
        self._background: list[asyncio.Task[None]] = []

    async def open(self) -> None:
        await self.acceptor.open()
        await self.view.open(self.acceptor)
        self.machine.parts.rig(self)
        self.process.spawn(self.scatter.run())
        await asyncio.sleep(0)
        self.process.spawn(self._announce_always())
        self.process.spawn(self._copy_always())
        if self.machine.purging:
            self._background.append(self.process.spawn(self.purger.run()))
        if self.machine.mending:
            self._background.append(self.process.spawn(self._mend_always()))

    def end_background(self) -> None:
        """No more purging and mending."""
        for task in self._background:
            task.cancel()

    def idle(self) -> None:
        """Nothing may be left in hand when nobody wants anything."""
        assert self.leader.in_hand == 0
        assert not self.leader._turns
        assert self.scatter.in_flight == 0
        assert self.acceptor._pending == 0
        assert self.acceptor._pending_bytes == 0
        assert not self.acceptor._loading
        assert not self.acceptor._clearing
        assert not self.acceptor._raising
        cache = self.acceptor._cache
        assert cache._bytes == sum(400 + len(entry.newest.value or b"") for entry in cache._entries.values())
        for (partition, key), entry in cache._entries.items():
            assert entry.pending == 0
            assert entry.newest == entry.durable
            held = self.machine.disk.registers.get(partition, {}).get(key)
            assert held is None or held == entry.newest, (partition, key, held, entry)
            assert held is not None or entry.newest == ABSENT
            assert entry.pins == 0
        for partition, state in self.acceptor.standings().items():
            assert self.machine.disk.partitions[partition] == state
            for record in self.machine.disk.registers.get(partition, {}).values():
                assert record.version.ballot <= state.promised

    # Telling everybody which store this is

    async def _announce_always(self) -> None:
        while True:
            for name in self.machine.names:
                if name != self.machine.name and name not in self._told:
                    await self._announce(name)
            await asyncio.sleep(0.1)

    async def _announce(self, name: str) -> bool:
        try:
            reply = await self.process.call(name, Announce(self.machine.store_id), deadline_s=0.5)
        except HoldfastError:
            return False
        self.view.note_store(name, reply.message.store)
        self._told.add(name)
        return True

    # Mending, for no reason: what is compared and found to differ may be anything

    async def _mend_always(self) -> None:
        rng = self.machine.rng
        while True:
            await asyncio.sleep(rng.expovariate(self.machine.mending))
            partition = rng.randrange(PARTITIONS)
            held = await self.store.versions(partition, 0, [0])
            if held:
                with suppress(HoldfastError):
                    await self.mender.mend(partition, [rng.choice(held).key, *(h.key for h in held[:2])])

    # Copying

    def _standing(self, standing: str) -> list[int]:
        return [p for p, record in sorted(self.acceptor.standings().items()) if record.standing == standing]

    async def _copy_always(self) -> None:
        while True:
            with suppress(HoldfastError):
                await self._copy()
            await asyncio.sleep(0.05)

    async def _copy(self) -> None:
        state = self.view.state
        for partition in self._standing(LEARNER):
            await self._copy_partition(partition, state.epoch)
        if state.coming is not None and self.machine.name in state.coming and self.copied_in != state.epoch:
            due = range(PARTITIONS) if state.must_copy(self.machine.name) else self._standing(FRESH)
            for partition in due:
                await self._copy_partition(partition, state.epoch)
            if self.view.epoch == state.epoch and not self._standing(FRESH) and not self._standing(LEARNER):
                self.copied_in = state.epoch

    async def _copy_partition(self, partition: int, epoch: int) -> None:
        name, group = self.machine.name, self.view.state.current
        before = self.acceptor.state(partition)
        needed = len(group) - majority(len(group)) + 1 if name in group else majority(len(group))
        others = [other for other in group if other != name and self.machine.is_up(other)]
        self.machine.rng.shuffle(others)
        sources: list[str] = []
        for other in others:
            if len(sources) == needed:
                break
            # Only from those that know of this store: from then on they refuse what its predecessor had a part in.
            if other in self._told or await self._announce(other):
                sources.append(other)
        if len(sources) < needed:
            raise QuorumUnavailable("too few to copy from")
        after: RegisterKey | None = None
        while True:
            stores, fences = self.view.stores(partition), list[Ballot]()
            pages: dict[str, Page] = {}
            promised = NO_BALLOT
            for source in sources:
                start = after or RegisterKey("", b"", b"")
                request = Export(partition, after is not None, start.table, start.partition, start.sort, COPY_PAGE)
                exported = (await self.process.call(source, request, deadline_s=1.0)).message
                pages[source] = Page([(entry.key, entry.record) for entry in exported.entries], exported.more)
                promised = max(promised, exported.promised)
                fences.append(exported.fence)
            merged = merge_pages(pages, group)
            origin = Origin(min(fences), max(fences), epoch, stores)
            for key in await self.acceptor.import_records(partition, merged.records, promised, origin):
                await self.registers.settle(key, partition=partition)
            after = merged.resume
            if after is None:
                break
        if self.view.epoch != epoch or self.acceptor.state(partition).standing != before.standing:
            raise StaleLayout("the layout changed while copying")
        if before.standing != VOTER:
            await self.acceptor.set_standings({partition: PartitionRecord(standing=VOTER, tenure=before.tenure)})


class Machine:
    """A node's disk, and its process if it runs."""

    def __init__(
        self, name: str, names: list[str], fabric: Fabric, script: Script, parts: Parts, rng: random.Random
    ) -> None:
        self.name = name
        self.names = names
        self.fabric = fabric
        self.script = script
        self.parts = parts
        self.rng = rng
        self.disk = DiskContent()
        self.generation = 1
        self.boot = 0
        self.sync_s = 0.001
        self.life: Life | None = None
        self.purging = False
        """Whether its lives purge tombstones."""
        self.mending = 0.0
        """How often in a second they mend registers."""
        self._suspected = False
        self.unreachable: set[str] = set()
        """Whom this one believes to be dead since it doesn't reach them."""
        self.peers: dict[str, Machine] = {}
        if name in script.last.current:
            self.disk.apply([PartitionWrite(p, PartitionRecord(standing=VOTER, tenure=0)) for p in range(PARTITIONS)])

    @property
    def store_id(self) -> bytes:
        return store_name(self.generation, self.name)

    def is_up(self, name: str) -> bool:
        """As the failure detector would have it."""
        return not self.peers[name]._suspected and name not in self.unreachable

    async def start(self) -> None:
        assert self.life is None
        self.boot += 1
        self.life = Life(self, random.Random(self.rng.random()))
        await self.life.open()
        self.fabric.processes[self.name] = self.life.process
        self._suspected = False

    async def crash(self) -> None:
        life, self.life = self.life, None
        assert life is not None
        del self.fabric.processes[self.name]
        life.store.crash()
        asyncio.get_running_loop().call_later(0.2 + self.rng.random(), self._suspect)
        await life.process.kill()

    def _suspect(self) -> None:
        self._suspected = self.life is None

    def wipe(self) -> None:
        """A new disk in the place of the old one: another store, which votes in nothing."""
        assert self.life is None
        state = self.script.states[int(self.disk.meta.get("epoch", b"1"))]
        member = self.name in state.rule.members
        self.disk = DiskContent()
        self.generation += 1
        fresh = self.name not in state.current
        standing = AWAY if not member else FRESH if fresh else LEARNER
        record = PartitionRecord(standing=standing, tenure=state.epoch if fresh and member else 0)
        self.disk.apply([PartitionWrite(p, record) for p in range(PARTITIONS)])
        self.disk.apply([MetaWrite("epoch", str(state.epoch).encode())])
