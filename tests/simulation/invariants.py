"""What must hold of a cluster, beside what its users saw (`register_users`, `volume_users`): while layouts change, and when all is over."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from cluster.errors import HoldfastError
from cluster.governance.state import LayoutState
from cluster.register.store import FRESH, LEARNER
from cluster.volumes.head import VOLUME_SHARDS
from tests.simulation.campaign_cluster import CampaignCluster
from tests.simulation.result import BrokenError
from tests.simulation.scenario import SCRUB
from tests.support.simulated.whole_cluster import Machine, get, put

MONUMENT = "monument"
"""A volume that nobody changes while the run lasts: what is done to its copies is done by the cluster."""

WATCH_S = 0.1

SETTLED_WITHIN_S = 120.0
CLEAN_WITHIN_S = 300.0
"""Of virtual time, from the end of all trouble until everybody has relearned and the layout stands; and from there until every copy is
where it belongs, and nothing else is anywhere."""

WHOLE_WITHIN_S = 3 * SCRUB.period_s
"""The pass under way, one more, and the repair of what it found."""


class CopiesWatch:
    """Live copies of anything never fall below what they were because of a planned change. A copy on a node that is in no layout in
    force counts for nothing: it may be given up at any time. Processes are watched as well."""

    def __init__(self, cluster: CampaignCluster) -> None:
        self._cluster = cluster
        self._references: frozenset[tuple[bytes, bytes]] = frozenset()
        self._copies = 0
        self._state: LayoutState | None = None
        """The newest that anybody was seen to have."""
        self.outed: set[str] = set()
        """Who was seen to be moved out, because it was dead."""

    async def begin(self) -> None:
        """Put the monument up, and wait until all of its copies are there."""
        core = next(machine.running for machine in self._cluster.machines.values())
        await put(core, MONUMENT, b"monument" * 2500)
        self._references = frozenset(await self._cluster.needed())
        self._copies = min(3, len(self._cluster.machines))
        await self._cluster.until(lambda: self._least() >= self._copies, "the monument stands")

    async def run(self) -> None:
        """Watch until cancelled."""
        while True:
            await asyncio.sleep(WATCH_S)
            self._cluster.check_processes()
            if not self._cluster.losses and self._least() < self._copies:
                raise BrokenError(
                    "a planned change never lowers the number of copies",
                    f"{self._least()} of {self._copies} copies are left of a part of {MONUMENT}",
                )

    def _least(self) -> int:
        members = self._members()
        machines = [machine for name, machine in self._cluster.machines.items() if name in members]
        return min(
            sum(referrer in m.stores.references_on_disk(chunk) for m in machines)
            for chunk, referrer in self._references
        )

    def _members(self) -> tuple[str, ...]:
        """Of the layout in force, and while a change is under way of the coming one."""
        for machine in self._cluster.machines.values():
            state = None if machine.core is None else machine.core.installed.state
            if state is not None and (self._state is None or state.epoch > self._state.epoch):
                self._state = state
                self.outed.update(state.outed)
        assert self._state is not None
        return self._state.members

    async def read_everywhere(self) -> None:
        for machine in self._cluster.machines.values():
            if await get(machine.running, MONUMENT) != b"monument" * 2500:
                raise BrokenError("nothing acknowledged is lost", f"{MONUMENT} reads otherwise at {machine.name}")


async def settle(cluster: CampaignCluster) -> None:
    """Everybody is back and has relearned, no change is under way, and the layout is what was asked for."""
    await _until(
        cluster, lambda: _well(cluster), "everybody recovers", SETTLED_WITHIN_S, lambda: _who_is_not_well(cluster)
    )
    await _until(  # who was away is taken in after a while
        cluster,
        lambda: _well(cluster) and not not_as_asked(cluster),
        "the layout is what was asked for",
        SETTLED_WITHIN_S,
        lambda: not_as_asked(cluster) or _who_is_not_well(cluster),
    )


def not_as_asked(cluster: CampaignCluster) -> str:
    """Who joined, or was away, is in the layout; who was removed is not. Of a cluster that has settled."""
    state = next(iter(cluster.machines.values())).running.installed.require()
    members = set(state.members)
    missing = cluster.machines.keys() - members - set(state.excluded)
    told = [f"{name} is not in the layout" for name in sorted(missing)]
    told += [f"{name} is in the layout, and was removed" for name in sorted(members & cluster.removed)]
    return "; ".join(told)


async def clean(cluster: CampaignCluster) -> None:
    """Every copy is where it belongs, and nothing else is anywhere: no leak, no resurrection, no handoff."""
    await patrol(cluster)
    needed = await cluster.needed()
    end = asyncio.get_running_loop().time() + CLEAN_WITHIN_S
    await _until(
        cluster,
        lambda: (
            cluster.held() == needed and cluster.converged() and _roots_equal(cluster) and not _left_behind(cluster)
        ),
        "the cluster converges",
        CLEAN_WITHIN_S,
        lambda: _what_differs(cluster, needed),
    )
    await whole(cluster)
    left = end - asyncio.get_running_loop().time()
    await _until(
        cluster,
        lambda: not any(_tombstones(m) for m in cluster.machines.values()) and cluster.converged(),
        "tombstones go",
        max(left, 60.0),
        lambda: str({m.name: _tombstones(m) for m in cluster.machines.values()}),
    )
    await _until(
        cluster,
        lambda: not _misnamed(cluster),
        "everybody knows the others' releases",
        30.0,
        lambda: _misnamed(cluster),
    )
    await _until(cluster, lambda: not _in_hand(cluster), "nothing is left in hand", 30.0, lambda: _in_hand(cluster))


async def whole(cluster: CampaignCluster) -> None:
    """Every copy that is held is whole on its disk, though nobody need have read it."""
    await _until(cluster, lambda: not _rotten(cluster), "every copy is whole", WHOLE_WITHIN_S, lambda: _rotten(cluster))


async def patrol(cluster: CampaignCluster) -> None:
    """What some gateway's patrol does within half an hour: find the retired roots that gateways left which died."""
    machine = next(iter(cluster.machines.values()))
    reclaimer = machine.running.volumes.reclaimer
    for shard in range(VOLUME_SHARDS):
        await reclaimer._patrol_shard(shard)


def _well(cluster: CampaignCluster) -> bool:
    return cluster.settled() and not _who_is_not_well(cluster)


def _who_is_not_well(cluster: CampaignCluster) -> str:
    told: list[str] = []
    for machine in cluster.machines.values():
        if machine.core is None:
            told.append(f"{machine.name} is down")
            continue
        core = machine.running
        standings = [record.standing for record in core.acceptor.standings().values()]
        if LEARNER in standings or FRESH in standings:
            told.append(f"{machine.name} still learns ({core.copier.last_error})")
        state = core.installed.state
        if state is None:
            told.append(f"{machine.name} has no layout")
        elif state.next is not None:
            told.append(f"{machine.name}: change under way, waiting for {core.governor.waiting_for}")
    return "; ".join(told)


def _roots_equal(cluster: CampaignCluster) -> bool:
    """Whether any two replicas have equal Merkle roots of a partition, of registers and of chunks."""
    holders = {name: machine for name, machine in cluster.machines.items() if machine.core is not None}
    layout = next(iter(holders.values())).running.installed.require().current
    for partition in range(layout.partitions):
        roots = set()
        for name in layout.replicas(partition):
            tree = holders[name].running._doors.registers.trees().get(partition)
            roots.add((0, 0) if tree is None else (tree.sum(0, 0), tree.count(0, 0)))
        if len(roots) > 1:
            return False
    for copies in {copies for machine in holders.values() for copies in machine.running._doors.chunks.trees()}:
        for partition in range(layout.partitions):
            sums = set()
            for name in layout.placement(partition, copies):
                tree = holders[name].running._doors.chunks.trees().get(copies)
                bits = layout.partition_bits
                sums.add((0, 0) if tree is None else (tree.sum(bits, partition), tree.count(bits, partition)))
            if len(sums) > 1:
                return False
    return True


def _left_behind(cluster: CampaignCluster) -> list[str]:
    """Who is in no layout and holds chunks still."""
    members = next(iter(cluster.machines.values())).running.installed.require().members
    return [
        name
        for name, machine in cluster.machines.items()
        if name not in members and any(references for _, references in machine.stores.held_chunks().values())
    ]


def _tombstones(machine: Machine) -> int:
    held = machine.stores.held_registers().values()
    return sum(record.value is None for registers in held for record in registers.values())


def _what_differs(cluster: CampaignCluster, needed: set[tuple[bytes, bytes]]) -> str:
    held = cluster.held()
    kept = {name: machine.stores.held_chunks() for name, machine in cluster.machines.items()}
    lines: list[str] = []
    for kind, pairs in (("missing everywhere", needed - held), ("held and not needed", held - needed)):
        for chunk, referrer in sorted(pairs)[:4]:
            who = [name for name, chunks in kept.items() if chunk in chunks and referrer in chunks[chunk][1]]
            lines.append(f"{kind}: chunk {chunk.hex()[:8]} referrer {referrer.hex()} at {who}")
    if not cluster.settled():
        lines.append("not settled")
    elif not cluster.converged():
        lines.append("replicas differ")
    lines += [f"{name} is in no layout and holds chunks" for name in _left_behind(cluster)]
    for machine in cluster.machines.values():
        if machine.core is not None:
            busy = [
                f"{job.name}: {job.queue_length} {job.last_error}" for job in machine.running.jobs() if job.last_error
            ]
            lines += [f"{machine.name} {text}" for text in busy]
    return "; ".join(lines)


def _rotten(cluster: CampaignCluster) -> str:
    """What is held, and is not whole on its disk."""
    told: list[str] = []
    for name, machine in cluster.machines.items():
        held = {chunk for chunk, (_, references) in machine.stores.held_chunks().items() if references}
        told += [
            f"chunk {chunk.hex()[:8]} at {name}" for chunk in sorted(held.difference(machine.stores.chunks_on_disk()))
        ]
    return "; ".join(told)


def _misnamed(cluster: CampaignCluster) -> str:
    """Whose release somebody has wrong."""
    told: list[str] = []
    for name, machine in cluster.machines.items():
        members = machine.running.membership.members()
        told += [
            f"{name} takes {other} to run {members[other].release!r}"
            for other, peer in cluster.machines.items()
            if other in members and members[other].release != peer.release.name
        ]
    return "; ".join(told)


def _in_hand(cluster: CampaignCluster) -> str:
    """What a core still holds although nobody wants anything of it."""
    told: list[str] = []
    for name, machine in cluster.machines.items():
        core = machine.running
        if core.leader.in_hand or core.leader._turns:
            told.append(f"{name} has register updates in hand")
        if core.chunks.late_bytes:
            told.append(f"{name} has {core.chunks.late_bytes} bytes on their way to slow replicas")
        for what, budget in (("write", core.volumes.write_budget), ("read", core.volumes.read_budget)):
            if budget.held:
                told.append(f"{name} has {budget.held} bytes of its {what} budget in use")
    return "; ".join(told)


async def _until(
    cluster: CampaignCluster, condition: Callable[[], bool], what: str, within_s: float, why: Callable[[], str]
) -> None:
    loop = asyncio.get_running_loop()
    end = loop.time() + within_s
    while not condition():
        cluster.check_processes()
        if loop.time() >= end:
            raise BrokenError(what, f"not within {within_s:.0f} s: {why()}")
        await asyncio.sleep(1.0)


async def tried(work: Callable[[], object], within_s: float) -> bool:
    """Whether it succeeds at some time within so long."""
    loop = asyncio.get_running_loop()
    end = loop.time() + within_s
    while True:
        try:
            result = work()
            if asyncio.iscoroutine(result):
                result = await result
        except HoldfastError:
            result = False
        if result:
            return True
        if loop.time() >= end:
            return False
        await asyncio.sleep(0.2)
