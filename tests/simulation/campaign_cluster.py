"""A whole cluster as a campaign needs it: quick settings, who is killed takes its users' requests with it, cuts, slow and full disks."""

from __future__ import annotations

import asyncio
import dataclasses
import shutil
from collections.abc import Callable
from typing import Any

from cluster.governance.state import LayoutState
from cluster.governance.stores import Life
from cluster.membership.settings import MembershipSettings
from cluster.peer.core import Doors, PeerCore
from cluster.peer.settings import PeerSettings
from cluster.repair.settings import RepairSettings
from cluster.volumes.service import VolumeSettings
from tests.simulation import acknowledged
from tests.simulation.cuts import Cuts
from tests.simulation.faults import HONEST, Fault
from tests.simulation.result import BrokenError
from tests.support.simulated.loop import process_context
from tests.support.simulated.production_stores import ProductionStores
from tests.support.simulated.stores import MemoryStores, StoresFactory
from tests.support.simulated.streams import Streams
from tests.support.simulated.whole_cluster import Machine, WholeCluster

RETIRED_GRACE_S = 4.0
"""Readers of a replaced version may take so long."""

SYNC_S = (0.001, 0.002, 0.02, 0.06)
"""What a sync takes: the seed chooses for registers and for chunks, from a good solid-state disk to one that turns."""

SETTINGS = VolumeSettings(retired_grace_s=RETIRED_GRACE_S, sweep_age_s=6.0, sweep_period_s=15.0, leaf_extents=4)
"""Minutes and hours in production: virtual time costs processor time too, since nodes talk all the time. Nothing's safety rests on them."""

MEMBERSHIP = MembershipSettings(probe_interval_s=1.0)
"""Half as many pings: they are most of what an idle cluster costs."""

TOMBSTONE_GRACE_S = 3.0

ROOM_BYTES = 1 << 22
"""With less where SQLite's files are, it is this machine's disk that is full."""


class CampaignCluster(WholeCluster):
    def __init__(
        self,
        streams: Streams,
        size: int,
        *,
        down_out_s: float = 0.0,
        interval_s: float = 4.0,
        wild_clocks: bool = False,
        stores: StoresFactory = MemoryStores,
        fault: Fault = HONEST,
        note: Callable[[str], None] = lambda _: None,
    ) -> None:
        """``note``: told when a process ends by itself."""
        self.fault = fault
        self._note = note
        super().__init__(
            streams.seed, size, down_out_s=down_out_s, streams=streams, wild_clocks=wild_clocks, stores=stores
        )
        self.repair = RepairSettings(interval_s=interval_s, persist_s=1.0, retry_s=1.0, down_out_s=down_out_s)
        self.volumes = fault.volume_settings(SETTINGS)
        self.cuts = Cuts(self.network)
        rng = streams.stream("disks")
        self._register_sync_s, self._chunk_sync_s = rng.choice(SYNC_S), rng.choice(SYNC_S)
        self.losses = 0
        """Disks lost for good so far."""
        self.stopping: set[str] = set()
        """Who takes no requests any more."""
        self.ending: set[str] = set()
        """Whose requests are cut off just now."""
        self.removed: set[str] = set()
        """Whose removal was asked for, agreed on and not given up."""
        self._requests: dict[str, dict[asyncio.Task[Any], None]] = {}
        self._sync_s: dict[str, float] = {}

    def new_core(self, settings: PeerSettings, doors: Doors, life: Life) -> PeerCore:
        machine = next(m for m in self.everybody() if m.host == settings.host)
        doors = self.fault.doors(machine, doors)
        self._set_pace(machine)
        settings = dataclasses.replace(settings, membership=MEMBERSHIP, tombstone_grace_s=TOMBSTONE_GRACE_S)
        core = PeerCore(settings, doors, life)
        self.fault.rig(core)
        acknowledged.watch(self, core)
        self._watch_changes(core)
        return core

    def _watch_changes(self, core: PeerCore) -> None:
        """Remember who is to leave the layout."""
        governor: Any = core.governor
        apply, abort = governor.apply, governor.abort

        async def applied(version: int, fingerprint: str | None = None) -> LayoutState:
            state: LayoutState = await apply(version, fingerprint)
            self.removed.update(set(state.excluded).difference(node.name for node in state.layouts()[-1].nodes))
            return state

        async def aborted() -> LayoutState:
            self.removed.difference_update(core.installed.require().members)
            state: LayoutState = await abort()
            return state

        governor.apply, governor.abort = applied, aborted

    # Users

    def request(self, machine: Machine, work: Any) -> asyncio.Task[Any]:
        """Work that dies with the machine's process."""
        task = asyncio.get_running_loop().create_task(work, context=process_context(machine.host))
        tasks = self._requests.setdefault(machine.host, {})
        tasks[task] = None
        task.add_done_callback(lambda done: tasks.pop(done, None))
        return task

    async def kill(self, machine: Machine, *, power: bool | None = None) -> None:
        self.ending.add(machine.host)
        tasks = self._cancel_requests(machine)
        if not self._closing:
            self._check_process(machine)
        await machine.kill(power=power)
        self.fault.after_kill(machine)
        if tasks:
            await asyncio.wait(tasks)
        self.ending.discard(machine.host)

    async def stop(self, machine: Machine) -> None:
        """In good order: the requests that it has are cut off, and no more are taken."""
        self.stopping.add(machine.host)
        self.ending.add(machine.host)
        self._cancel_requests(machine)
        await machine.stop()
        self.ending.discard(machine.host)
        self.stopping.discard(machine.host)

    def process_ended(self, machine: Machine) -> None:
        self._cancel_requests(machine)
        if machine.stores.failure is not None:
            self._note(f"! {machine.host} ends by itself: {machine.stores.failure!r}")
            self._check_process(machine)

    async def close(self) -> None:
        self._closing = True
        await super().close()

    _closing = False

    def check_processes(self) -> None:
        """None has ended by itself, and every log takes more, unless something on that machine's disks was made to fail."""
        for machine in self.everybody():
            if machine._task is not None and machine._task.done() and not machine._task.cancelled():
                machine._task.result()
            self._check_process(machine)

    def _check_process(self, machine: Machine) -> None:
        stores = machine.stores
        if not isinstance(stores, ProductionStores) or stores.was_made_to_fail or stores.end is None:
            return
        detail = f"{machine.host}, whose disks work: {stores.end!r}"
        if shutil.disk_usage(stores.register_files.directory).free < ROOM_BYTES:
            detail += f" (there is no room in {stores.register_files.directory.parent})"
        raise BrokenError("no process ends by itself", detail)

    def _cancel_requests(self, machine: Machine) -> list[asyncio.Task[Any]]:
        tasks = list(self._requests.get(machine.host, ()))
        for task in tasks:
            task.cancel()
        return tasks

    # Disks

    def slow(self, machine: Machine, sync_s: float | None) -> None:
        """Every sync takes about so long; None: as always."""
        if sync_s is None:
            self._sync_s.pop(machine.host, None)
        else:
            self._sync_s[machine.host] = sync_s
        self._set_pace(machine)

    def _set_pace(self, machine: Machine) -> None:
        slow = self._sync_s.get(machine.host)
        machine.stores.set_pace(slow or self._register_sync_s, slow or self._chunk_sync_s)


def production(machine: Machine) -> ProductionStores:
    """The stores of a machine that has the daemon's own."""
    assert isinstance(machine.stores, ProductionStores)
    return machine.stores
