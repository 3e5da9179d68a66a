"""Purging and mending in a small calm cluster, a step at a time; and the acceptor's part in it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest

from cluster.errors import HoldfastError, NotReady, QuorumUnavailable, StaleLayout
from cluster.register.ballot import NO_BALLOT, NO_VERSION, Ballot, Version
from cluster.register.change import creation
from cluster.register.copying import Copied, Origin
from cluster.register.key import RegisterKey
from cluster.register.messages import Accept, FencePurge, Purge, Tombstone
from cluster.register.record import ABSENT, Record
from cluster.register.store import FRESH, LEARNER, VOTER, PartitionWrite, RegisterWrite
from tests.support.simulated.fabric import Fabric
from tests.support.simulated.layouts import Script
from tests.support.simulated.loop import run_virtual
from tests.support.simulated.memory_store import tombstones_of
from tests.support.simulated.node import Life, Machine, Parts
from tests.unit.cluster.register.test_register_acceptor import HIGH, KEY, LOW, ORIGIN, STORES, Bench, record, started

NAMES = ["a", "b", "c"]
PLACE = RegisterKey("t", b"p", b"k")


class Cluster:
    """Three nodes, no trouble but what a test makes."""

    def __init__(self) -> None:
        self.fabric = Fabric(random.Random("fabric"))
        self.script = Script(tuple(NAMES))
        self.machines = {
            name: Machine(name, NAMES, self.fabric, self.script, Parts(), random.Random(name)) for name in NAMES
        }

    async def start(self) -> None:
        for machine in self.machines.values():
            machine.peers = self.machines
            await machine.start()
        for machine in self.machines.values():
            # The failure detector is always right here: no leader is passed over by chance.
            self[machine.name].view.is_alive = machine.is_up  # type: ignore[method-assign]
        self.partition = self["a"].view.partition_of(PLACE.partition)

    def __getitem__(self, name: str) -> Life:
        life = self.machines[name].life
        assert life is not None
        return life

    def held(self, name: str, key: RegisterKey = PLACE) -> Record:
        return self.machines[name].disk.registers.get(self.partition, {}).get(key, ABSENT)

    async def create_and_delete(self, key: RegisterKey = PLACE) -> None:
        assert (await self["a"].registers.compare_and_set(key, None, b"v")).applied
        assert (await self["a"].registers.compare_and_set(key, b"v", None)).applied
        await asyncio.sleep(1)

    async def purge_round(self, name: str = "a") -> None:
        while await self[name].purger.run_once():
            pass
        await asyncio.sleep(1)


def in_cluster(test: Callable[[Cluster], Awaitable[None]]) -> Callable[[], None]:
    async def run() -> None:
        cluster = Cluster()
        await cluster.start()
        await test(cluster)
        for machine in cluster.machines.values():
            if machine.life is not None:
                await machine.crash()
        # Whatever was in flight has met its deadline.
        await asyncio.sleep(10)

    def outer() -> None:
        run_virtual(run())

    outer.__name__ = test.__name__
    outer.__doc__ = test.__doc__
    return outer


@in_cluster
async def test_a_tombstone_that_all_hold_goes(cluster: Cluster) -> None:
    await cluster.create_and_delete()
    assert [cluster.held(name).value for name in NAMES] == [None] * 3
    assert all(cluster.held(name) != ABSENT for name in NAMES)
    await cluster.purge_round()
    purger = cluster["a"].purger
    assert (purger.queue_length, purger.purged, purger.last_error, purger.waiting_for) == (1, 1, "", "")
    assert [cluster.held(name) for name in NAMES] == [ABSENT] * 3
    fences = {cluster[name].acceptor.fence(cluster.partition) for name in NAMES}
    assert len(fences) == 1
    assert fences != {NO_BALLOT}
    assert await cluster["b"].registers.read(PLACE) is None
    assert (await cluster["b"].registers.compare_and_set(PLACE, None, b"again")).applied
    assert await cluster["c"].registers.read(PLACE) == b"again"


@in_cluster
async def test_only_the_first_live_replica_purges(cluster: Cluster) -> None:
    await cluster.create_and_delete()
    await cluster.purge_round("b")
    assert tombstones_of(cluster.machines["b"].disk) == 1


@in_cluster
async def test_nothing_is_purged_while_a_replica_is_away(cluster: Cluster) -> None:
    await cluster.create_and_delete()
    await cluster.machines["c"].crash()
    # Before it is noticed: the look at all replicas fails, and no leader has lost its ballot for it.
    promised = cluster["a"].acceptor.promised(cluster.partition)
    await cluster.purge_round()
    assert "c" in cluster["a"].purger.last_error
    assert cluster["a"].acceptor.promised(cluster.partition) == promised
    await asyncio.sleep(3)
    await cluster.purge_round()
    assert cluster["a"].purger.waiting_for == "c to come back"
    assert [tombstones_of(cluster.machines[name].disk) for name in NAMES] == [1] * 3
    await cluster.machines["c"].start()
    await asyncio.sleep(1)
    await cluster.purge_round()
    assert [tombstones_of(cluster.machines[name].disk) for name in NAMES] == [0] * 3


@in_cluster
async def test_nothing_is_purged_while_the_layout_changes(cluster: Cluster) -> None:
    await cluster.create_and_delete()
    state = cluster.script.follow(("a", "b", "c"), ("a", "b"))
    for name in NAMES:
        await cluster[name].view.install(state)
    await cluster.purge_round()
    assert cluster["a"].purger.waiting_for == "the layout change to finish"
    life = cluster["b"]
    with pytest.raises(NotReady, match="layout changes"):
        await life.acceptor.fence_purge(
            cluster.partition, Ballot(99, "x"), [], state.epoch, life.view.stores(cluster.partition)
        )


@in_cluster
async def test_grace_counts_from_when_this_node_first_saw_it(cluster: Cluster) -> None:
    cluster["a"].purger._grace_s = 60.0
    await cluster.create_and_delete()
    await cluster.purge_round()
    await asyncio.sleep(50)
    await cluster.purge_round()
    assert tombstones_of(cluster.machines["a"].disk) == 1
    # deleted once more: it is another tombstone
    await cluster.create_and_delete()
    await asyncio.sleep(20)
    await cluster.purge_round()
    assert tombstones_of(cluster.machines["a"].disk) == 1
    await asyncio.sleep(70)
    await cluster.purge_round()
    assert tombstones_of(cluster.machines["a"].disk) == 0


@in_cluster
async def test_a_tombstone_that_one_lacks_is_written_again_first(cluster: Cluster) -> None:
    await cluster.create_and_delete()
    await cluster.machines["c"].crash()
    cluster.machines["c"].disk.apply([RegisterWrite(cluster.partition, PLACE, Record(NO_VERSION, b"older"))])
    await cluster.machines["c"].start()
    await asyncio.sleep(1)
    await cluster.purge_round()
    assert cluster["a"].purger.purged == 0
    assert cluster.held("c").value is None
    await cluster.purge_round()
    assert [cluster.held(name) for name in NAMES] == [ABSENT] * 3


@in_cluster
async def test_a_purge_that_reached_only_some_ends_well(cluster: Cluster) -> None:
    await cluster.create_and_delete()
    acceptor, stores = cluster["a"].acceptor, cluster["a"].view.stores(cluster.partition)
    version = cluster.held("a").version
    tombstones = [(PLACE, version)]
    ballot = cluster["a"].leader.take_ballot(cluster.partition)
    for name in NAMES:
        answer = await cluster[name].acceptor.fence_purge(cluster.partition, ballot, tombstones, 1, stores)
        assert answer == (ballot, (True,))
    assert await acceptor.purge(cluster.partition, ballot, tombstones, 1, stores) == 1
    assert cluster.held("a") == ABSENT
    assert await cluster["b"].registers.read(PLACE) is None
    await asyncio.sleep(1)
    while any(tombstones_of(machine.disk) for machine in cluster.machines.values()):
        # wherever it is left, the first replica gets it back by mending, and purges it
        await cluster["a"].mender.mend(cluster.partition, [PLACE])
        await cluster.purge_round()
    assert [cluster.held(name) for name in NAMES] == [ABSENT] * 3


@in_cluster
async def test_late_messages_from_before_a_purge_change_nothing(cluster: Cluster) -> None:
    """A copy of the old Accept, of the old creation, of the purge itself, and a page that was read before."""
    read = await cluster["b"].registers._read(PLACE, None)
    await cluster.create_and_delete()
    version = cluster.held("a").version
    epoch, stores = 1, cluster["a"].view.stores(cluster.partition)
    origin = Origin(NO_BALLOT, NO_BALLOT, epoch, stores)
    await cluster.purge_round()
    assert cluster["a"].purger.purged == 1
    fence = cluster["a"].acceptor.fence(cluster.partition)
    place = (PLACE.table, PLACE.partition, PLACE.sort)
    caller = cluster["b"].process
    old = Accept(cluster.partition, epoch, stores, version.round, version.proposer, version.seq - 1, *place, b"v")
    reply = await caller.call("c", old, deadline_s=1.0)
    assert reply.message.ballot == fence
    with pytest.raises(StaleLayout, match="purged"):
        await cluster["c"].acceptor.import_records(
            cluster.partition, [Copied(PLACE, Record(version, b"v"), decided=True)], NO_BALLOT, origin
        )
    outcome = await cluster["b"].registers._update(PLACE, creation(read.record.version, read.fence, b"late"), None)
    assert (outcome.applied, outcome.current, outcome.fence) == (False, None, fence)
    again = FencePurge(cluster.partition, epoch, stores, *fence, (Tombstone(*place, *version),))
    refused = (await caller.call("c", again, deadline_s=1.0)).message
    assert (refused.granted, refused.held) == (False, ())
    assert (await cluster["b"].registers.compare_and_set(PLACE, None, b"new")).applied
    late = Purge(cluster.partition, epoch, stores, *fence, (Tombstone(*place, *version),))
    assert (await caller.call("c", late, deadline_s=1.0)).message.count == 0
    assert await cluster["c"].registers.read(PLACE) == b"new"


@in_cluster
async def test_a_process_that_was_replaced_makes_up_no_quorum_with_one_that_lags(cluster: Cluster) -> None:
    """It still runs somewhere, while its successor, on a disk of its own, has decided something newer with the third."""
    assert (await cluster["a"].registers.compare_and_set(PLACE, None, b"old")).applied
    await asyncio.sleep(1)
    assert cluster.held("c").value == b"old"
    for name in ("b", "c"):
        cluster[name].view.note_store("a", b"\xff" * 16)
    await cluster.machines["b"].crash()
    await asyncio.sleep(3)
    with pytest.raises(QuorumUnavailable, match="a disk was replaced"):
        await cluster["a"].registers.read(PLACE)
    with pytest.raises(QuorumUnavailable):
        await cluster["a"].registers.scan(PLACE.table, PLACE.partition, b"", b"", 10)
    await cluster.machines["b"].start()
    cluster["b"].view.note_store("a", b"\xff" * 16)
    await asyncio.sleep(1)
    assert await cluster["a"].registers.read(PLACE) == b"old", "those who know make up a quorum"


@in_cluster
async def test_a_new_disk_takes_over_the_highest_fence(cluster: Cluster) -> None:
    await cluster.create_and_delete()
    await cluster.purge_round()
    fence = cluster["a"].acceptor.fence(cluster.partition)
    await cluster.machines["c"].crash()
    cluster.machines["c"].wipe()
    await cluster.machines["c"].start()
    await asyncio.sleep(5)
    assert cluster["c"].acceptor.state(cluster.partition).standing == VOTER
    assert cluster["c"].acceptor.fence(cluster.partition) == fence
    assert cluster["c"].acceptor.promised(cluster.partition) >= fence


# Mending


@in_cluster
async def test_mending_takes_over_what_a_quorum_holds_and_settles_the_rest(cluster: Cluster) -> None:
    keys = [RegisterKey("t", PLACE.partition, b"m%d" % number) for number in range(4)]
    for key in keys[:3]:
        await cluster["a"].registers.put(key, b"v")
    await asyncio.sleep(1)
    newest = cluster.held("a", keys[0]).version
    await cluster.machines["c"].crash()
    disk = cluster.machines["c"].disk
    # it missed one register and one update, holds another that it alone accepted, and one as all do
    del disk.registers[cluster.partition][keys[0]]
    disk.registers[cluster.partition][keys[1]] = Record(NO_VERSION._replace(seq=1), b"older")
    alone = Record(newest._replace(seq=newest.seq + 1), b"alone")
    disk.registers[cluster.partition][keys[3]] = alone
    await cluster.machines["c"].start()
    await asyncio.sleep(1)
    mender = cluster["c"].mender
    await mender.mend(cluster.partition, keys)
    await asyncio.sleep(1)
    assert [cluster.held("c", key).value for key in keys[:3]] == [b"v"] * 3
    assert mender.taken_over == 3
    assert mender.settled == 1
    decided = {await cluster[name].registers.read(keys[3]) for name in NAMES}
    assert len(decided) == 1
    await cluster["c"].mender.mend(cluster.partition, [])


async def mended_without_the_leader(cluster: Cluster, value: bytes | None) -> None:
    """One replica alone holds a newer version, and is always the last to answer the leader, for whom all is settled without it."""
    if value is not None:
        await cluster["a"].registers.put(PLACE, value)
        await asyncio.sleep(1)
    await cluster.machines["c"].crash()
    version = cluster.held("a").version
    ballot = Ballot(version.round + 1, "b/")  # of a leader that reached nobody else
    disk = cluster.machines["c"].disk
    promised = replace(disk.partitions[cluster.partition], promised=ballot)
    alone = Record(Version(*ballot, 1), None)
    disk.apply([PartitionWrite(cluster.partition, promised), RegisterWrite(cluster.partition, PLACE, alone)])
    await cluster.machines["c"].start()
    await asyncio.sleep(1)
    learn = cluster["c"].acceptor.learn

    async def late(*arguments: Any) -> Any:
        await asyncio.sleep(0.1)
        return await learn(*arguments)

    cluster["c"].acceptor.learn = late  # type: ignore[method-assign, assignment]
    await cluster["c"].mender.mend(cluster.partition, [PLACE])
    await asyncio.sleep(1)
    assert len({cluster.held(name) for name in NAMES}) == 1
    assert cluster.held("c").value == value


@in_cluster
async def test_mending_ends_although_the_leader_never_hears_of_a_tombstone_left_here(cluster: Cluster) -> None:
    await mended_without_the_leader(cluster, None)
    await cluster.purge_round()
    assert [cluster.held(name) for name in NAMES] == [ABSENT] * 3


@in_cluster
async def test_mending_ends_although_the_leader_never_hears_of_a_deletion_tried_here(cluster: Cluster) -> None:
    await mended_without_the_leader(cluster, b"w")


@in_cluster
async def test_mending_needs_a_quorum_and_a_voter(cluster: Cluster) -> None:
    await cluster.create_and_delete()
    for name in ("b", "c"):
        await cluster.machines[name].crash()
    with pytest.raises(QuorumUnavailable, match="can't be mended"):
        await cluster["a"].mender.mend(cluster.partition, [PLACE])
    state = cluster["a"].acceptor.state(cluster.partition)
    cluster["a"].acceptor._partitions[cluster.partition] = type(state)(state.promised, FRESH)
    with pytest.raises(NotReady, match="fresh"):
        await cluster["a"].mender.mend(cluster.partition, [PLACE])
    cluster["a"].acceptor._partitions[cluster.partition] = state


# The acceptor's part


async def test_a_fence_is_answered_when_it_is_durable_and_tells_what_was_held_then() -> None:
    bench = Bench()
    acceptor = await bench.open()
    await bench.settled(acceptor.accept(0, KEY, record(LOW, 1, None), 1, STORES))
    tombstones = [(KEY, record(LOW, 1, None).version), (RegisterKey("t", b"p", b"none"), record(LOW, 1, None).version)]
    fencing = await started(acceptor.fence_purge(0, HIGH, tombstones, 1, STORES))
    assert not fencing.done()
    assert acceptor.fence(0) == NO_BALLOT, "not before it is durable"
    bench.store.sync()
    assert await fencing == (HIGH, (True, False))
    assert acceptor.fence(0) == acceptor.promised(0) == HIGH
    assert bench.disk.partitions[0].fence == HIGH
    again = await bench.open()
    assert again.fence(0) == HIGH
    assert await bench.settled(again.fence_purge(0, HIGH, tombstones, 1, STORES)) == (HIGH, None)
    assert await bench.settled(again.fence_purge(0, LOW, tombstones, 1, STORES)) == (HIGH, None)
    assert await bench.settled(again.purge(0, HIGH, tombstones, 1, STORES)) == 1
    assert bench.disk.registers[0] == {}
    assert await again.read(0, KEY, 1) == ABSENT


async def test_a_replica_that_may_not_purge_does_not() -> None:
    version = record(LOW, 1, None).version
    for standing in (LEARNER, FRESH):
        acceptor = await Bench(standing).open()
        with pytest.raises(NotReady):
            await acceptor.fence_purge(0, HIGH, [(KEY, version)], 1, STORES)
    bench = Bench()
    acceptor = await bench.open()
    attempts: list[tuple[type[HoldfastError], int, bytes]] = [(StaleLayout, 2, STORES), (NotReady, 1, b"others")]
    for kind, epoch, stores in attempts:
        work: list[Callable[..., Awaitable[Any]]] = [acceptor.fence_purge, acceptor.purge]
        for ask in work:
            with pytest.raises(kind):
                await ask(0, HIGH, [(KEY, version)], epoch, stores)
    with pytest.raises(NotReady, match="not fenced"):
        await acceptor.purge(0, HIGH, [(KEY, version)], 1, STORES)


async def test_a_voter_takes_nothing_over_that_was_read_before_its_fence() -> None:
    bench = Bench()
    acceptor = await bench.open()
    await bench.settled(acceptor.fence_purge(0, HIGH, [], 1, STORES))
    old = [Copied(KEY, record(LOW, 1, b"v"), decided=True)]
    for origin in (ORIGIN, ORIGIN._replace(oldest_fence=HIGH, epoch=2), ORIGIN._replace(oldest_fence=HIGH, stores=b"")):
        with pytest.raises(StaleLayout):
            await bench.settled(acceptor.import_records(0, old, LOW, origin))
    assert await bench.settled(acceptor.import_records(0, old, LOW, ORIGIN._replace(oldest_fence=HIGH))) == []
    assert (await acceptor.read(0, KEY, 1)).value == b"v"


async def test_what_was_read_under_another_layout_is_not_taken_over() -> None:
    """A replica may have been emptied and begun anew since: what is left of a page belongs to its former tenure."""
    bench = Bench(FRESH)
    acceptor = await bench.open()
    bench.store.hold_reads = True
    page = [Copied(KEY, record(LOW, 1, b"v"), decided=True)]
    task = await started(acceptor.import_records(0, page, NO_BALLOT, ORIGIN))
    bench.view.epoch = 2
    bench.store.reading[0].set_result(None)
    with pytest.raises(StaleLayout):
        await bench.settled(_result_of(task))
    assert not bench.store.queue


async def _result_of(task: asyncio.Task[Any]) -> Any:
    return await task


async def test_a_learner_takes_over_the_highest_fence() -> None:
    bench = Bench(LEARNER)
    acceptor = await bench.open()
    origin = Origin(NO_BALLOT, LOW, 1, STORES)
    assert await bench.settled(acceptor.import_records(0, [], HIGH, origin)) == []
    assert (acceptor.promised(0), acceptor.fence(0)) == (HIGH, LOW)
