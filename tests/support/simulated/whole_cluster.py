"""Whole node cores (`cluster.peer.core`) on virtual time: the same code that the daemon runs, wired to simulated doors."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Mapping
from typing import Any, TypeVar

from cluster.doors.offload import Inline
from cluster.governance.stores import Life
from cluster.layout.ring import chunk_partition
from cluster.peer.core import Doors, NewLifeError, PeerCore
from cluster.peer.settings import PeerSettings
from cluster.register.view import META_PARTITION
from cluster.repair.settings import RepairSettings
from cluster.volumes.map_difference import all_references
from cluster.volumes.page_store import PageStore
from cluster.volumes.service import VolumeSettings
from cluster.volumes.volume_map import Geometry
from tests.support.simulated.belonging import MemoryBelonging
from tests.support.simulated.clock import VirtualClock
from tests.support.simulated.loop import process_context
from tests.support.simulated.memory_chunks import ChunkDisk, MemoryChunkStore
from tests.support.simulated.memory_store import DiskContent
from tests.support.simulated.network import SimulatedNetwork
from tests.support.simulated.release import PRESENT
from tests.support.simulated.stores import MemoryStores, OpenStores, StoresFactory
from tests.support.simulated.streams import Streams
from tests.support.simulated.weather import CALM, Weather

PEER_PORT = 7482
PARTITION_BITS = 4


RESTART_S = 2.0
"""A node that ended by itself is started again by whoever supervises it."""


class Machine:
    """A node: its disks, and the core that runs on them now. ``host``: where; what takes its place has the same name elsewhere."""

    def __init__(self, name: str, cluster: WholeCluster, expect: int, host: str = "") -> None:
        self.name = name
        self.host = host or name
        self._cluster = cluster
        self._expect = expect
        self.rng = cluster.streams.stream(f"node {self.host}")
        self.clock = (
            VirtualClock.wild(cluster.streams.stream(f"clock {self.host}")) if cluster.wild_clocks else VirtualClock()
        )
        self.stores = cluster.stores(self.host, cluster.seed, self.rng)
        self.belonging = MemoryBelonging()
        self.lives = 0
        self.release = PRESENT
        self.joins: Collection[str] | None = None
        """Whom it is told of at first; None: everybody there is when it starts."""
        self.failures: list[BaseException] = []
        """Why processes ended by themselves."""
        self.core: PeerCore | None = None
        self._stopping = False
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        assert self._task is None
        self._stopping = False
        self._task = asyncio.get_running_loop().create_task(self._run(), context=process_context(self.host))

    async def _run(self) -> None:
        while True:
            await self.stores.run(self, self.clock)
            self._cluster.network.kill(self.host)
            self.core = None
            self._cluster.process_ended(self)
            if self._stopping:
                return
            assert self.stores.failure is not None
            self.failures.append(self.stores.failure)
            await asyncio.sleep(RESTART_S)

    async def live(self, stores: OpenStores) -> None:
        """See `Hosted`."""
        self.lives += 1
        doors = Doors(
            self.release.network(self._cluster.network.host(self.host)),
            self.clock,
            Inline(),
            self.rng,
            stores.registers,
            stores.chunks,
            self.belonging,
            stores.scrub,
        )
        settings = PeerSettings(
            name=self.name,
            release=self.release.name,
            secret=b"sixteen characters",
            host=self.host,
            port=PEER_PORT,
            advertise_host=self.host,
            advertise_port=PEER_PORT,
            seeds=tuple(
                (m.host, PEER_PORT)
                for m in self._cluster.machines.values()
                if m.name != self.name and (self.joins is None or m.name in self.joins)
            ),
            bootstrap_expect=self._expect,
            partition_bits=PARTITION_BITS,
            auto_layout=self._cluster.auto_layout,
            repair=self._cluster.repair,
            volumes=self._cluster.volumes,
        )
        self.core = self.release.dress(self._cluster.new_core(settings, doors, stores.life))
        await self.core.open()
        try:
            await self.core.run()
        except* NewLifeError:
            pass

    async def leave(self) -> None:
        if self.core is not None:
            await self.core.leave()

    def mend(self, chunk: bytes) -> None:
        if self.core is not None:
            self.core.repair.mender.note([chunk])

    async def kill(self, *, power: bool | None = None) -> None:
        """The process is gone, with whatever was not on disk. ``power``: see `Stores.crash`."""
        assert self._task is not None
        self.stores.crash(power=power)
        self._cluster.network.kill(self.host)
        self._task.cancel()
        await self._ended()

    async def stop(self) -> None:
        """The process ends in good order."""
        self._stopping = True
        self.stores.stop()
        await self._ended()

    async def _ended(self) -> None:
        assert self._task is not None
        await asyncio.wait([self._task])
        if not self._task.cancelled() and (error := self._task.exception()) is not None:
            raise error
        self._task = self.core = None

    def wipe(self) -> None:
        assert self._task is None
        self.stores.wipe()
        self.belonging = MemoryBelonging()

    def copy_disk(self) -> Any:
        return self.stores.copy()

    def put_back(self, saved: Any) -> None:
        """What `copy_disk` gave, in the place of the disks."""
        assert self._task is None
        self.stores.put_back(saved)

    def has_layout(self) -> bool:
        return self.core is not None and self.core.installed.epoch > 0

    @property
    def running(self) -> PeerCore:
        assert self.core is not None
        return self.core

    # Of stores in memory

    @property
    def memory(self) -> MemoryStores:
        assert isinstance(self.stores, MemoryStores)
        return self.stores

    @property
    def registers(self) -> DiskContent:
        return self.memory.registers

    @property
    def chunks(self) -> ChunkDisk:
        return self.memory.chunks

    @property
    def chunk_store(self) -> MemoryChunkStore:
        return self.memory.chunk_store


class WholeCluster:
    """``down_out_s`` 0: no node is ever moved out. ``stores``: what machines keep things on; `ProductionStores` is the daemon's code."""

    def __init__(
        self,
        seed: int,
        size: int,
        *,
        auto_layout: bool = True,
        down_out_s: float = 0.0,
        interval_s: float = 10.0,
        sweep_age_s: float = 60.0,
        streams: Streams | None = None,
        weather: Weather = CALM,
        wild_clocks: bool = False,
        stores: StoresFactory = MemoryStores,
    ) -> None:
        self.seed = seed
        self.streams = streams if streams is not None else Streams(seed)
        self.wild_clocks = wild_clocks
        self.stores = stores
        self.auto_layout = auto_layout
        self.repair = RepairSettings(interval_s=interval_s, persist_s=1.0, retry_s=1.0, down_out_s=down_out_s)
        self.volumes = VolumeSettings(sweep_age_s=sweep_age_s, sweep_period_s=120.0)
        self.network = SimulatedNetwork(self.streams.stream("network"), weather)
        self.machines: dict[str, Machine] = {}
        self.replaced: list[Machine] = []
        """Whose place another machine has taken, and whose process is there still."""
        self.given_up: list[Machine] = []
        """And those of them that have been switched off."""
        for index in range(size):
            self.add(f"n{index + 1}", size)

    def add(self, name: str, expect: int = 0) -> Machine:
        self.machines[name] = Machine(name, self, expect)
        return self.machines[name]

    def replace(self, machine: Machine) -> Machine:
        """Another machine of that name, with empty disks, that knows of no cluster. The old one runs on, until `give_up`."""
        self.replaced.append(machine)
        new = self.machines[machine.name] = Machine(machine.name, self, 0, machine.host + "'")
        new.release = machine.release
        return new

    async def give_up(self, machine: Machine) -> None:
        """A replaced one is switched off."""
        await self.kill(machine)
        self.replaced.remove(machine)
        self.given_up.append(machine)

    def new_core(self, settings: PeerSettings, doors: Doors, life: Life) -> PeerCore:
        """What a machine's process is made of. A campaign gives it other settings, or parts that are wrong on purpose."""
        return PeerCore(settings, doors, life)

    def process_ended(self, machine: Machine) -> None:
        """A machine's process has ended by itself, or was stopped. What is raised here is an error of the machine."""

    def __getitem__(self, name: str) -> PeerCore:
        return self.machines[name].running

    async def start(self) -> None:
        for machine in self.machines.values():
            machine.start()
        await self.until(lambda: all(m.core and m.core.installed.epoch for m in self.machines.values()), "a layout")

    async def close(self) -> None:
        try:
            for machine in self.everybody():
                if machine._task is not None:
                    await self.kill(machine)
        finally:
            for machine in (*self.everybody(), *self.given_up):
                machine.stores.remove()

    def everybody(self) -> list[Machine]:
        """Also those whose place is taken."""
        return [*self.machines.values(), *self.replaced]

    async def kill(self, machine: Machine, *, power: bool | None = None) -> None:
        """See `Machine.kill`. A campaign also ends what users have asked of it."""
        await machine.kill(power=power)

    async def until(
        self, condition: Callable[[], Any], what: str, deadline_s: float = 60.0, step_s: float = 0.05
    ) -> None:
        loop = asyncio.get_running_loop()
        end = loop.time() + deadline_s
        while not condition():
            assert loop.time() < end, f"within {deadline_s:.0f} s of virtual time: {what}"
            for machine in self.machines.values():
                if machine._task is not None and machine._task.done():
                    machine._task.result()
            await asyncio.sleep(step_s)

    def settled(self) -> bool:
        """No change under way, nobody learning, everybody at one epoch."""
        started = [machine for machine in self.machines.values() if machine._task is not None]
        cores = [machine.core for machine in started if machine.core is not None]
        if len(cores) < len(started):
            return False
        epochs = {core.installed.epoch for core in cores}
        return (
            len(epochs) == 1
            and all(core.installed.state is not None and core.installed.state.next is None for core in cores)
            and all(core.copier.queue_length == 0 and not core.attestation.unconfirmed for core in cores)
        )

    def converged(self) -> bool:
        """Settled, and every replica holds the same: chunks and references just where they belong, registers at equal versions."""
        if not self.settled():
            return False
        living = {name: m for name, m in self.machines.items() if m.core is not None}
        layout = next(iter(living.values())).running.installed.require().current
        holders = {name: m for name, m in living.items() if layout.node(name) is not None}
        kept = {name: machine.stores.held_registers() for name, machine in holders.items()}
        for partition in range(layout.partitions):
            held = [kept[name].get(partition, {}) for name in layout.replicas(partition) if name in holders]
            if any(registers != held[0] for registers in held[1:]):
                return False
        members = [registers.get(META_PARTITION, {}) for registers in kept.values()]
        if any(registers != members[0] for registers in members[1:]):
            return False
        where: dict[bytes, dict[str, Mapping[bytes, int]]] = {}
        for name, machine in holders.items():
            for chunk, (_, references) in machine.stores.held_chunks().items():
                if references:
                    where.setdefault(chunk, {})[name] = references
        for chunk, by_node in where.items():
            copies = max(replicas for references in by_node.values() for replicas in references.values())
            due = layout.placement(chunk_partition(chunk, layout.partition_bits), copies)
            first = next(iter(by_node.values()))
            if set(by_node) != {name for name in due if name in holders} or any(r != first for r in by_node.values()):
                return False
        return True

    async def needed(self) -> set[tuple[bytes, bytes]]:
        """The references that the volumes' live roots name: a mark by walking all of them."""
        core = next(machine.core for machine in self.machines.values() if machine.core is not None)
        found: set[tuple[bytes, bytes]] = set()
        after = ""
        while True:
            page = await core.volumes.list(after=after)
            for volume in page.volumes:
                head = (await core.volumes._heads.read(volume.name)).live
                if head is None:
                    continue
                span = Geometry(head.chunk_size, core.volumes.settings.leaf_extents).root_span(head.size)
                node = head.root.node(span)
                pages = PageStore(core.volumes._cache, head.replicas)
                if node is not None:
                    async for reference in all_references(node, 0, span, head.chunk_size, pages):
                        found.add((reference.chunk, reference.referrer))
            if page.next_after is None:
                return found
            after = page.next_after

    def held(self) -> set[tuple[bytes, bytes]]:
        """The references that anybody holds."""
        return {
            (chunk, referrer)
            for machine in self.machines.values()
            if machine.core is not None
            for chunk, (_, references) in machine.stores.held_chunks().items()
            for referrer in references
        }

    async def until_clean(self, deadline_s: float = 600.0) -> None:
        """Wait until everything has converged, and what is held is exactly what the volumes need: no leak, nothing that came back."""
        await self.until(self.converged, "all replicas are equal", deadline_s, step_s=1)
        needed = await self.needed()
        await self.until(lambda: self.held() == needed, "only what is needed is held", deadline_s, step_s=1)
        await self.until(self.converged, "all replicas are equal again", deadline_s, step_s=1)


async def body(data: bytes, piece: int = 10_000) -> AsyncIterator[bytes]:
    for start in range(0, len(data), piece):
        yield data[start : start + piece]


T = TypeVar("T")


async def as_client(core: PeerCore, work: Coroutine[Any, Any, T]) -> T:
    """Run `work` in the process of that node, for a client outside, who can give up without waiting for the process to notice."""
    task = asyncio.get_running_loop().create_task(work, context=process_context(core.settings.host))
    try:
        await asyncio.wait([task])
    except asyncio.CancelledError:
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
        task.cancel()
        raise
    return task.result()


async def put(core: PeerCore, name: str, data: bytes, chunk_size: int = 4096, replicas: int | None = None) -> None:
    await as_client(core, core.volumes.replace(name, body(data), len(data), chunk_size=chunk_size, replicas=replicas))


async def get(core: PeerCore, name: str) -> bytes:
    async def read() -> bytes:
        volume = await core.volumes.open(name)
        return b"".join([bytes(piece) async for piece in volume.read(0, volume.volume.size)])

    return await as_client(core, read())
