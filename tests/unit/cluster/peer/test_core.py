"""Whole node cores on virtual time: a cluster forms, loses nodes and disks, grows and shrinks, and keeps every volume."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import ParamSpec, TypeVar

import pytest

from cluster.doors.offload import Inline
from cluster.errors import (
    Conflict,
    HoldfastError,
    Invalid,
    PeerUnavailable,
    QuorumUnavailable,
    Unauthorized,
    WrongCluster,
)
from cluster.governance.attestation import Attestation
from cluster.governance.state import LayoutState, StagedChange
from cluster.register.ballot import Ballot, Version
from cluster.register.key import RegisterKey
from cluster.register.record import Record
from cluster.register.store import LEARNER, VOTER
from cluster.register.view import META_PARTITION
from tests.support.simulated.loop import run_virtual
from tests.support.simulated.whole_cluster import WholeCluster, get, put

Scenario = Callable[[WholeCluster], Awaitable[None]]

Args = ParamSpec("Args")
R = TypeVar("R")


def play(scenario: Scenario, size: int = 5, seed: int = 1, *, auto_layout: bool = True) -> None:
    async def main() -> None:
        cluster = WholeCluster(seed, size, auto_layout=auto_layout)
        try:
            await cluster.start()
            await cluster.until(cluster.settled, "a settled cluster")
            await scenario(cluster)
        finally:
            await cluster.close()

    run_virtual(main())


def contents(seed: int, count: int = 12, size: int = 20_000) -> dict[str, bytes]:
    rng = random.Random(seed)
    return {f"v{index}": rng.randbytes(rng.randrange(size)) for index in range(count)}


async def store(cluster: WholeCluster, data: dict[str, bytes]) -> None:
    cores = [machine.running for machine in cluster.machines.values()]
    await asyncio.gather(*(put(cores[i % len(cores)], name, value) for i, (name, value) in enumerate(data.items())))


async def check(cluster: WholeCluster, data: dict[str, bytes], *names: str) -> None:
    for node in names or tuple(cluster.machines):
        for name, value in data.items():
            assert await get(cluster[node], name) == value, (node, name)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7])
def test_a_cluster_forms_and_every_node_answers(size: int) -> None:
    async def scenario(cluster: WholeCluster) -> None:
        data = contents(size, count=5)
        await store(cluster, data)
        await check(cluster, data)
        first = cluster["n1"].installed.require()
        assert len(first.current.nodes) == size
        assert all(m.running.installed.require() == first for m in cluster.machines.values())

    play(scenario, size)


def test_everything_survives_the_death_of_all_processes() -> None:
    async def scenario(cluster: WholeCluster) -> None:
        data = contents(2)
        await store(cluster, data)
        for machine in cluster.machines.values():
            await machine.kill()
        await cluster.start()
        await cluster.until(cluster.settled, "everybody back")
        assert all(machine.lives == 2 for machine in cluster.machines.values())
        await check(cluster, data)

    play(scenario)


def test_one_node_dead_changes_nothing_for_the_others() -> None:
    async def scenario(cluster: WholeCluster) -> None:
        data = contents(3)
        await store(cluster, data)
        await cluster.machines["n2"].kill()
        await check(cluster, data, "n1", "n3", "n4", "n5")
        for name in list(data)[:6]:
            data[name] += b"more"
            await put(cluster["n4"], name, data[name])
        cluster.machines["n2"].start()
        await cluster.until(cluster.settled, "n2 back")
        await check(cluster, data)

    play(scenario)


def test_a_frozen_node_delays_but_does_not_stop() -> None:
    async def scenario(cluster: WholeCluster) -> None:
        data = contents(4)
        await store(cluster, data)
        cluster.network.freeze("n3")
        start = asyncio.get_running_loop().time()
        for name in list(data)[:6]:
            data[name] = name.encode() * 100
            await put(cluster["n1"], name, data[name])
        assert asyncio.get_running_loop().time() - start < 15
        await check(cluster, data, "n1", "n5")
        cluster.network.thaw("n3")
        await cluster.until(lambda: cluster["n1"].membership.is_alive("n3"), "n3 welcomed back")
        await check(cluster, data)

    play(scenario)


def test_two_of_three_dead_is_said_and_passes() -> None:
    async def scenario(cluster: WholeCluster) -> None:
        data = contents(5, count=3)
        await store(cluster, data)
        await cluster.machines["n2"].kill()
        await cluster.machines["n3"].kill()
        with pytest.raises(QuorumUnavailable):
            await put(cluster["n1"], "v0", b"new")
        with pytest.raises(QuorumUnavailable):
            await get(cluster["n1"], "v0")
        cluster.machines["n2"].start()
        await cluster.until(cluster.machines["n2"].has_layout, "n2 back")
        await cluster.until(lambda: cluster["n1"].membership.is_alive("n2"), "n2 seen")
        await cluster.until(lambda: cluster["n2"].attestation.covers(0), "n2 may vote")
        await check(cluster, data, "n1")

    play(scenario, 3)


def test_every_disk_is_lost_in_turn() -> None:
    async def scenario(cluster: WholeCluster) -> None:
        data = contents(6)
        await store(cluster, data)
        for name in list(cluster.machines):
            machine = cluster.machines[name]
            await machine.kill()
            machine.wipe()
            machine.start()
            await cluster.until(machine.has_layout, f"{name} back")
            await cluster.until(cluster.settled, f"{name} whole again")
            standings = cluster[name].acceptor.standings().values()
            assert all(record.standing != LEARNER for record in standings)
        await check(cluster, data)

    play(scenario)


def test_an_emptied_disk_does_not_vote_before_it_has_relearned() -> None:
    async def scenario(cluster: WholeCluster) -> None:
        await store(cluster, contents(7, count=3))
        for name in ("n1", "n2"):
            await cluster.machines[name].kill()
        cluster.machines["n1"].wipe()
        cluster.machines["n1"].start()
        await cluster.until(cluster.machines["n1"].has_layout, "n1 back")
        await asyncio.sleep(5)
        # n2 is away: two of the three replicas have forgotten or are gone, and the third must not be outvoted.
        assert all(record.standing == LEARNER for record in cluster["n1"].acceptor.standings().values())
        with pytest.raises(HoldfastError):
            await put(cluster["n3"], "v0", b"new")
        cluster.machines["n2"].start()
        await cluster.until(cluster.settled, "n1 has relearned")
        assert cluster["n1"].acceptor.state(META_PARTITION).standing == VOTER
        await put(cluster["n1"], "v0", b"new")

    play(scenario, 3)


def test_a_disk_put_back_from_an_old_copy_relearns() -> None:
    async def scenario(cluster: WholeCluster) -> None:
        data = contents(8)
        await store(cluster, data)
        machine = cluster.machines["n2"]
        await machine.kill()
        old = machine.copy_disk()
        machine.start()
        await cluster.until(lambda: machine.core and cluster.settled(), "n2 back")
        for name in data:
            data[name] += b"later"
        await store(cluster, data)
        lives = machine.lives
        await machine.kill()
        machine.put_back(old)
        machine.start()
        await cluster.until(lambda: machine.lives == lives + 2, "n2 has noticed")
        await cluster.until(cluster.settled, "n2 has relearned")
        await check(cluster, data)

    play(scenario)


def test_an_old_copy_leads_under_no_ballot_that_its_original_has_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before it has asked anybody whether its memory is to be trusted: the others' votes are enough to lead, and both count their starts
    from the same number. Under the same ballot its first write would be taken for a late copy of the original's."""

    async def scenario(cluster: WholeCluster) -> None:
        machine = cluster.machines["n3"]
        await machine.kill()
        old = machine.copy_disk()
        machine.start()
        await cluster.until(lambda: machine.core and cluster.settled(), "n3 back")
        view = cluster["n1"].installed
        keys = [RegisterKey("t", b"%d" % number, b"k") for number in range(40)]
        led = [key for key in keys if view.rule(view.partition_of(key.partition)).members[0] == "n3"]
        assert len(led) > 5
        for key in led:
            await cluster["n3"].registers.put(key, b"first")

        async def unheard(_attestation: Attestation, _name: str) -> None:
            """Nobody answers."""

        await machine.kill()
        machine.put_back(old)
        with monkeypatch.context() as patch:
            patch.setattr(Attestation, "_ask", unheard)
            machine.start()
            await cluster.until(machine.has_layout, "n3 back once more")
            for key in led:
                await cluster["n3"].registers.put(key, b"second")
            for key in led:
                assert await cluster["n1"].registers.read(key) == b"second"
        await cluster.until(cluster.settled, "n3 has relearned")

    play(scenario, 3)


def test_a_node_joins_under_load_and_gets_its_share() -> None:
    async def scenario(cluster: WholeCluster) -> None:
        data = contents(9, count=30)
        await store(cluster, data)
        stop = asyncio.Event()
        done = 0

        async def load(core_name: str, number: int) -> None:
            nonlocal done
            while not stop.is_set():
                name = f"load{number}"
                data[name] = random.Random(done).randbytes(3000)
                await put(cluster[core_name], name, data[name])
                assert await get(cluster[core_name], name) == data[name]
                done += 1
                await asyncio.sleep(0.01)

        async with asyncio.TaskGroup() as group:
            for number, name in enumerate(("n1", "n2", "n3", "n4")):
                group.create_task(load(name, number))
            cluster.add("n6").start()
            await cluster.until(
                lambda: cluster["n1"].installed.require().current.version == 2 and cluster.settled(), "layout 2"
            )
            stop.set()
        assert done > 50
        layout = cluster["n6"].installed.require().current
        assert len(layout.partitions_of("n6")) == pytest.approx(3 * 16 / 6, abs=1)
        assert cluster.machines["n6"].chunks
        await check(cluster, data)
        await cluster.until(lambda: all(m.running.tidier.queue_length == 0 for m in cluster.machines.values()), "tidy")

        def nobody_keeps_what_is_not_theirs() -> bool:
            return all(
                name in core.installed.chunk_rule(chunk, 3).members
                for name, machine in cluster.machines.items()
                for core in [machine.running]
                for chunk in machine.chunks
            )

        await cluster.until(nobody_keeps_what_is_not_theirs, "old holders gave up their copies", 120)
        await check(cluster, data)

    play(scenario)


def test_a_node_is_removed_and_its_data_moves() -> None:
    async def scenario(cluster: WholeCluster) -> None:
        data = contents(10, count=20)
        await store(cluster, data)
        governor = cluster["n1"].governor
        await governor.stage([StagedChange("n5", remove=True)])
        _, plan = await governor.plan()
        await governor.apply(plan.version)
        with pytest.raises(Conflict):
            await governor.apply(plan.version)
        await cluster.until(
            lambda: cluster["n1"].installed.require().current.version == 2 and cluster.settled(), "layout 2"
        )
        await asyncio.sleep(5)
        assert cluster["n2"].installed.require().excluded == ("n5",)
        await cluster.machines["n5"].kill()
        await check(cluster, data, "n1", "n2", "n3", "n4")

    play(scenario)


def test_a_seed_whose_address_is_anothers_by_now_does_not_stop_a_node_that_has_a_layout() -> None:
    async def scenario(cluster: WholeCluster) -> None:
        core = cluster["n1"]
        answers: dict[str, HoldfastError] = {}

        async def call_address(host: str, *_: object, **__: object) -> None:
            if host in answers:
                raise answers[host]

        core.rpc.call_address = call_address  # type: ignore[method-assign,assignment]  # seeds that answer what the test wants
        seeds = [host for host, _ in core.settings.seeds]
        for error in (WrongCluster("of another cluster"), Unauthorized("another secret")):
            answers = {seeds[0]: error}
            await core._check_seeds()
        for refusal in (WrongCluster("of another cluster"), Unauthorized("another secret")):
            answers = {**dict.fromkeys(seeds, refusal), seeds[0]: PeerUnavailable("is not up yet")}
            await core._check_seeds()
            answers = dict.fromkeys(seeds, refusal)
            with pytest.raises(type(refusal)):
                await core._check_seeds()
        state, core.installed._state = core.installed._state, None
        for refusal in (WrongCluster("of another cluster"), Unauthorized("another secret")):
            answers = {seeds[-1]: refusal}
            with pytest.raises(type(refusal)):
                await core._check_seeds()
        core.installed._state = state

    play(scenario)


def test_preference_lists_are_worked_out_once_for_a_layout_and_before_it_is_taken_up() -> None:
    async def scenario(cluster: WholeCluster) -> None:
        core = cluster["n2"]
        ready: list[bool] = []
        core.installed.on_install(
            lambda state: ready.append(all(len(one._preferences) == one.partitions for one in state.layouts()))
        )
        before = core.installed.require()
        await core.governor.stage([StagedChange("n5", remove=True)])
        staged = core.installed.require()
        assert (staged.epoch, staged.current is before.current) == (before.epoch + 1, True)
        _, plan = await core.governor.plan()
        await core.governor.apply(plan.version)
        coming = core.installed.require().next
        await cluster.until(lambda: core.installed.require().current.version == 2, "layout 2")
        assert core.installed.require().current is coming
        assert ready == [True] * len(ready) != []

    play(scenario)


class Interrupted(Inline):
    """Takes a while, and the first time it is given up meanwhile."""

    def __init__(self) -> None:
        self.begun = 0
        self.go_on = asyncio.Event()

    async def run(self, function: Callable[Args, R], *args: Args.args, **kwargs: Args.kwargs) -> R:
        self.begun += 1
        await self.go_on.wait()
        return await super().run(function, *args, **kwargs)


def test_a_layout_that_takes_long_to_prepare_is_prepared_for_all_who_bring_it() -> None:
    async def scenario(cluster: WholeCluster) -> None:
        core = cluster["n2"]
        core.installed._offload = offload = Interrupted()
        state = core.installed.require()
        fresh = LayoutState.unpack(replace(state, epoch=state.epoch + 1, write_id=b"w" * 8).pack())
        first = asyncio.create_task(core.installed.install(fresh))
        others = [asyncio.create_task(core.installed.install(LayoutState.unpack(fresh.pack()))) for _ in range(5)]
        await asyncio.sleep(0.1)
        assert offload.begun == 1
        first.cancel()
        await asyncio.sleep(0.1)
        assert (offload.begun, core.installed.epoch) == (2, state.epoch)
        offload.go_on.set()
        await asyncio.gather(*others)
        assert (offload.begun, core.installed.epoch) == (2, state.epoch + 1)
        assert core.installed.require().current is state.current

    play(scenario)


def test_a_change_to_one_node_that_loses_its_disk_meanwhile_can_be_given_up() -> None:
    """What one replica alone has accepted, below a promise, must be settled before that node knows everything again; but with its vote,
    which it has not before. So the change can't go on."""

    async def scenario(cluster: WholeCluster) -> None:
        data = contents(21, count=20)
        await store(cluster, data)
        governor, last = cluster["n1"].governor, cluster.machines["n5"]
        await governor.stage([StagedChange(f"n{number}", remove=True) for number in range(1, 5)])
        _, plan = await governor.plan()
        state = await governor.apply(plan.version, plan.fingerprint)
        partition = state.current.partitions_of("n5")[0]
        await last.kill()
        last.wipe()
        other, third = (cluster[name] for name in state.current.replicas(partition) if name != "n5")
        key = next(
            key
            for number in range(1000)
            if other.installed.partition_of((key := RegisterKey("lone", b"%d" % number, b"")).partition) == partition
        )
        ballot = Ballot(other.acceptor.state(partition).promised.round + 1, "n9/1/0")
        stores = other.installed.stores(partition)
        accepted = Record(Version(ballot.round, ballot.proposer, 1), b"alone")
        await other.acceptor.accept(partition, key, accepted, other.installed.epoch, stores)
        promise = Ballot(ballot.round + 1, "n9/1/0")
        await third.acceptor.learn(partition, promise, key, third.installed.epoch, stores)
        last.start()
        await cluster.until(
            lambda: last.core and last.running.copier.last_error.startswith(f"partition {partition} "), "it is stuck"
        )
        await asyncio.sleep(60)
        assert last.running.acceptor.state(partition).standing == LEARNER
        assert "n5: not-ready" in last.running.copier.last_error
        await cluster["n2"].governor.abort()
        await cluster.until(cluster.settled, "everybody is well", 120)
        assert last.running.acceptor.state(partition).standing == VOTER
        assert await last.running.registers.read(key) in {b"alone", None}
        await check(cluster, data)

    play(scenario)


def test_only_the_plan_that_was_read_is_applied() -> None:
    async def scenario(cluster: WholeCluster) -> None:
        governor = cluster["n1"].governor
        await governor.stage(
            [StagedChange("n5", capacity=2 * cluster["n1"].installed.require().current.nodes[0].capacity)]
        )
        _, read = await governor.plan()
        await cluster["n2"].governor.stage([StagedChange("n5", remove=True)])
        _, other = await governor.plan()
        assert read.version == other.version
        with pytest.raises(Conflict, match=other.fingerprint):
            await governor.apply(read.version, read.fingerprint)
        assert cluster["n1"].installed.require().next is None
        state = await cluster["n3"].governor.apply(other.version, other.fingerprint)
        assert state.next == other

    play(scenario)


def test_wishes_that_no_plan_can_meet_are_not_staged_and_none_are_during_a_change() -> None:
    async def scenario(cluster: WholeCluster) -> None:
        governor = cluster["n1"].governor
        before = cluster["n1"].installed.require()
        for wrong in (
            [StagedChange("n5", zone="No Zone")],
            [StagedChange(f"n{number}", remove=True) for number in range(1, 6)],
        ):
            with pytest.raises(Invalid):
                await governor.stage(wrong)
            assert cluster["n1"].installed.require() == before
        await governor.stage([StagedChange("n5", remove=True)])
        _, plan = await governor.plan()
        under_way = await governor.apply(plan.version, plan.fingerprint)
        with pytest.raises(Conflict, match="still being filled"):
            await governor.stage([StagedChange("n4", remove=True)])
        assert cluster["n1"].installed.require() == under_way

    play(scenario)


def test_a_joiner_that_is_taken_in_by_itself_does_not_apply_what_is_only_planned() -> None:
    async def scenario(cluster: WholeCluster) -> None:
        await cluster["n1"].governor.stage([StagedChange("n5", remove=True), StagedChange("n4", zone="attic")])
        cluster.auto_layout = False
        cluster.add("n6").start()
        await cluster.until(lambda: "n6" in cluster["n1"].governor.joiners(), "n6 is there")
        for core in (cluster[name] for name in ("n1", "n2", "n3", "n4", "n5")):
            core.governor._joiners_since = 1e9  # not before the wish
        await cluster["n1"].governor.stage([StagedChange("n6", zone="cellar")])
        for core in (cluster[name] for name in ("n1", "n2", "n3", "n4", "n5")):
            core.governor._joiners_since = 0.0
        await cluster.until(
            lambda: cluster["n1"].installed.require().current.version == 2 and cluster.settled(), "layout 2"
        )
        state = cluster["n1"].installed.require()
        assert [node.name for node in state.current.nodes] == ["n1", "n2", "n3", "n4", "n5", "n6"]
        assert [change.name for change in state.staged] == ["n4", "n5"], "and the wish about n6 is granted"
        assert {node.name: node.zone for node in state.current.nodes}["n6"] == "cellar"
        assert "attic" not in {node.zone for node in state.current.nodes}
        _, plan = await cluster["n2"].governor.plan()
        assert [node.name for node in plan.nodes] == ["n1", "n2", "n3", "n4", "n6"]

    play(scenario)


def test_the_last_node_has_everything_although_it_was_away_for_the_writes() -> None:
    """From three replicas to one: the one that stays may be the one that every write did without."""

    async def scenario(cluster: WholeCluster) -> None:
        data = contents(12)
        await store(cluster, data)
        await cluster.machines["n1"].kill()
        for name in data:
            data[name] += b"while n1 was away"
            await put(cluster["n2"], name, data[name])
        cluster.machines["n1"].start()
        await cluster.until(cluster.settled, "n1 back")
        governor = cluster["n1"].governor
        await governor.stage([StagedChange("n2", remove=True), StagedChange("n3", remove=True)])
        _, plan = await governor.plan()
        await governor.apply(plan.version)
        await cluster.until(
            lambda: cluster["n1"].installed.require().current.version == 2 and cluster.settled(), "layout 2"
        )
        for name in ("n2", "n3"):
            await cluster.machines[name].kill()
        await check(cluster, data, "n1")

    play(scenario, 3)


def test_a_change_can_be_given_up() -> None:
    async def scenario(cluster: WholeCluster) -> None:
        data = contents(11)
        await store(cluster, data)
        cluster.add("n6").start()
        await cluster.until(cluster["n1"].governor.joiners, "n6 is seen")
        governor = cluster["n2"].governor
        _, plan = await governor.plan()
        await governor.apply(plan.version)
        await governor.abort()
        await cluster.until(cluster.settled, "everybody knows")
        state = cluster["n3"].installed.require()
        assert (state.current.version, state.next, state.epoch) == (1, None, 3)
        await store(cluster, data)
        _, plan = await governor.plan()
        await governor.apply(plan.version)
        await cluster.until(lambda: cluster["n3"].installed.require().current.version == 2 and cluster.settled(), "v2")
        await check(cluster, data)

    play(scenario, auto_layout=False)
