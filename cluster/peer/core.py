"""One node's cluster core: the parts and how they are joined, from the wire up to the volumes.

The only place in `cluster` that knows every part. It owns their lives: `open` reads what is durable, `run` runs all of them until
cancelled and ends them together; a part that fails ends the node. A *life* of a node is one run of a core on one store: when
attestation finds that the store has forgotten, `run` ends with `NewLifeError`, and whoever made the core makes the next.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from dataclasses import dataclass

from cluster.chunks.chunks import ClusterChunks
from cluster.chunks.replica import ChunkReplica
from cluster.chunks.store import ChunkStore
from cluster.doors.clock import Clock
from cluster.doors.network import Network
from cluster.doors.offload import Offload
from cluster.errors import HoldfastError, Unauthorized, WrongCluster
from cluster.governance.attestation import Attestation
from cluster.governance.belonging import Belonging
from cluster.governance.bootstrap import Bootstrap
from cluster.governance.founding import Past
from cluster.governance.governor import Governor
from cluster.governance.installed import InstalledLayout
from cluster.governance.messages import GetState
from cluster.governance.state import LayoutState
from cluster.governance.stores import Life, StoreRegistry
from cluster.membership.member import Member, MemberInfo, State
from cluster.membership.service import Membership
from cluster.peer.jobs import JobState
from cluster.peer.settings import PeerSettings
from cluster.rebalance.copier import Copier
from cluster.rebalance.tidier import Tidier
from cluster.register.acceptor import Acceptor
from cluster.register.ballot import proposer_name
from cluster.register.leader import Leader
from cluster.register.mender import RegisterMender
from cluster.register.purge import Purger
from cluster.register.registers import Registers
from cluster.register.scatter import Scatter
from cluster.register.service import RegisterService
from cluster.register.store import VOTER, RegisterStore
from cluster.repair.repair import Repair, Scrub
from cluster.rpc.handshake import Hello
from cluster.rpc.node import RpcNode
from cluster.rpc.service import Handlers
from cluster.volumes.service import VolumeService

SEED_CHECK_S = 2.0
"""For a seed to say, before anything else, whether this node may join at all."""


class NewLifeError(Exception):
    """This store had forgotten votes: it has taken a new id, and the node starts anew with it."""


@dataclass(frozen=True, slots=True)
class Doors:
    """Everything a core reaches the outside through. ``rng`` makes ids and nonces too: in production it is the system's."""

    network: Network
    clock: Clock
    offload: Offload
    rng: random.Random
    registers: RegisterStore
    chunks: ChunkStore
    belonging: Belonging
    scrub: Scrub | None = None


class PeerCore:
    """See the module. ``life`` is this store's id and boot."""

    def __init__(self, settings: PeerSettings, doors: Doors, life: Life) -> None:
        self.settings = settings
        me, clock, rng = settings.name, doors.clock, doors.rng
        self._doors = doors
        self._new_life = asyncio.Event()
        handlers = Handlers()
        self.registry = StoreRegistry()
        self.rpc = RpcNode(
            me=Hello(me, life.store, life.boot, doors.belonging.cluster_id, settings.release),
            secret=settings.secret,
            handlers=handlers,
            network=doors.network,
            clock=clock,
            random=rng,
            layout_version=lambda: self.installed.epoch,
            check_hello=self._check_hello,
        )
        self.membership = Membership(
            me=MemberInfo(
                name=me,
                host=settings.advertise_host,
                port=settings.advertise_port,
                store=life.store,
                boot=life.boot,
                zone=settings.zone or me,
                capacity=settings.capacity,
                api=settings.api,
                release=settings.release,
            ),
            caller=self.rpc,
            handlers=handlers,
            set_address=self.rpc.set_address,
            clock=clock,
            random=rng,
            settings=settings.membership,
            seeds=settings.seeds,
        )
        self.installed = InstalledLayout(
            me,
            self.rpc,
            doors.registers,
            doors.belonging,
            self.registry,
            self.membership.is_alive,
            lambda: self.attestation.life.store,
            doors.offload,
        )
        self.attestation = Attestation(
            me,
            life,
            self.rpc,
            doors.registers,
            self.registry,
            self.installed,
            clock,
            rng,
            lambda _: self._new_life.set(),
        )
        self.acceptor = Acceptor(doors.registers, self.installed, self.attestation.covers)
        self.installed.bind(self.acceptor)
        self.scatter = Scatter(self.rpc)
        self.leader = Leader(
            me,
            proposer_name(me, life.boot, life.run),
            self.scatter,
            self.installed,
            clock,
            rng,
            self.acceptor.promised,
        )
        self.registers = Registers(me, self.rpc, self.scatter, self.installed, clock, rng)
        self.register_mender = RegisterMender(self.scatter, self.installed, self.acceptor, self.registers)
        self.purger = Purger(
            me,
            doors.registers,
            self.leader,
            self.scatter,
            self.installed,
            self.registers,
            clock,
            rng,
            grace_s=settings.tombstone_grace_s,
        )
        self.chunks = ClusterChunks(me, doors.chunks, self.rpc, self.installed, clock, doors.offload)
        self.bootstrap = Bootstrap(
            me,
            settings.bootstrap_expect,
            settings.replication_factor,
            settings.partition_bits,
            self.rpc,
            doors.registers,
            self.installed,
            self.membership.members,
            self.membership.unmet_seeds,
            self._past,
            lambda: self.attestation.life.store,
            clock,
            rng,
        )
        self.governor = Governor(
            me,
            settings.auto_layout,
            settings.repair.down_out_s,
            self.rpc,
            self.registers,
            self.installed,
            self.membership.members,
            clock,
            rng,
            doors.offload,
        )
        self.volumes = VolumeService(
            self.registers,
            self.chunks,
            clock,
            rng,
            node_count=self._node_count,
            default_replicas=lambda: self.installed.require().current.replication_factor,
            settings=settings.volumes,
            references=doors.chunks,
        )
        replica = ChunkReplica(me, doors.chunks, self.installed)
        self.repair = Repair(
            me,
            settings.repair,
            self.rpc,
            self.installed,
            doors.registers,
            doors.chunks,
            self.chunks,
            replica,
            self.register_mender,
            self.volumes.judge,
            doors.scrub,
            lambda partition: self.acceptor.state(partition).standing == VOTER,
            clock,
            rng,
            doors.offload,
        )
        self.copier = Copier(
            me,
            self.rpc,
            self.acceptor,
            self.registers,
            doors.registers,
            doors.chunks,
            self.installed,
            self.attestation.has_confirmed,
            clock,
            rng,
            doors.offload,
            self.repair.budget,
            self.volumes.judge,
        )
        self.tidier = Tidier(
            me,
            self.rpc,
            doors.chunks,
            self.installed,
            self.volumes.judge,
            self.repair.budget,
            clock,
            retired_grace_s=self.volumes.settings.retired_grace_s,
        )
        self.repair.others = lambda: [n for n, member in self.membership.members().items() if member.usable]
        self.repair.refilling = lambda: self.copier.queue_length
        sweeper = self.volumes.sweeper
        assert sweeper is not None
        for finder in (self.repair.anti_entropy, self.tidier):
            finder.on_unshared = sweeper.suspect
        self.membership.on_change(self._follow_member)
        RegisterService(self.acceptor, self.leader, self.installed).register(handlers)
        replica.register(handlers)
        for part in (self.installed, self.attestation, self.bootstrap, self.copier, self.repair):
            part.register(handlers)
        self.installed.on_install(self._follow_layout)

    async def open(self) -> None:
        """Read what is durable. Raises Corrupt when it can't be, WrongCluster when the registers are of another cluster than the node."""
        await self.acceptor.open()
        await self.attestation.open()
        await self.installed.open()
        await self.bootstrap.open()
        await self.copier.open()
        await self.repair.open()

    async def run(self) -> None:
        """Listen, join, serve, until cancelled. Raises OSError when the peer port can't be bound, Unauthorized or WrongCluster
        when a seed says that this node can't join, NewLifeError."""
        async with self.rpc:
            await self.rpc.listen(self.settings.host, self.settings.port)
            await self._check_seeds()
            async with asyncio.TaskGroup() as group:
                for part in (
                    self.scatter,
                    self.chunks,
                    self.membership,
                    self.attestation,
                    self.bootstrap,
                    self.governor,
                    self.repair,
                    self.copier,
                    self.tidier,
                    self.purger,
                    self.volumes,
                ):
                    group.create_task(part.run())
                await self._new_life.wait()
                raise NewLifeError

    async def leave(self) -> None:
        """Tell the others that this node stops on purpose; best effort. While `run` is running."""
        await self.membership.leave()

    def jobs(self) -> Iterator[JobState]:
        """The background work and how it goes."""
        yield JobState("bootstrap", 0, "", self.bootstrap.waiting_for if self.installed.state is None else "")
        unconfirmed = self.attestation.unconfirmed
        waiting = f"{', '.join(unconfirmed)} to confirm this node's store" if unconfirmed else ""
        yield JobState("attestation", len(unconfirmed), "", waiting)
        yield JobState("governor", 0, self.governor.last_error, self.governor.waiting_for)
        yield JobState("copier", self.copier.queue_length, self.copier.last_error, "")
        comparing, mender, keys = self.repair.anti_entropy, self.repair.mender, self.repair.keys
        yield JobState("anti-entropy", comparing.queue_length, comparing.last_error, comparing.waiting_for)
        yield JobState("mender", mender.queue_length, mender.last_error, mender.waiting_for)
        yield JobState(
            "register-mender", keys.queue_length, keys.last_error, "" if keys.queue_length else "something to mend"
        )
        nudges = self.repair.nudger.queue_length
        yield JobState("read-repair", nudges, "", "" if nudges else "a read that meets a bad copy")
        for job in self.volumes.jobs():
            yield JobState(job.name, job.queue_length, job.last_error or "", job.waiting_for or "")
        yield JobState("tidier", self.tidier.queue_length, self.tidier.last_error, self.tidier.waiting_for)
        yield JobState(Purger.name, self.purger.queue_length, self.purger.last_error, self.purger.waiting_for)

    @property
    def cluster_id(self) -> bytes:
        """Of the cluster that this node belongs to, also while it knows no layout; empty while there is none."""
        return self._doors.belonging.cluster_id

    # Joints

    def _past(self) -> Past:
        """What is left on the disk of an earlier life."""
        doors = self._doors
        return Past(doors.belonging.cluster_id, doors.belonging.lost_registers, doors.chunks.statistics().chunks)

    def _node_count(self) -> int:
        """The most copies a volume may ask for: one on each node, and in a cluster that is still small what it will have."""
        layout = self.installed.require().current
        return max(len(layout.nodes), layout.replication_factor)

    def _check_hello(self, hello: Hello) -> None:
        mine, theirs = self.rpc.me.cluster, hello.cluster
        if mine and theirs and mine != theirs:
            raise WrongCluster(
                f"node {hello.name} belongs to cluster {theirs.hex()[:8]}, this node ({self.settings.name}) to "
                f"{mine.hex()[:8]}: a node of another cluster needs a data directory of its own"
            )

    async def _check_seeds(self) -> None:
        """Ask the seeds once: a wrong secret or a foreign data directory is better told at the start than retried for ever. A node with
        a layout knows its cluster, and does without a seed whose address has become another's: it stops only when every seed
        refuses it."""
        refusals: list[HoldfastError] = []
        asked = 0
        for host, port in self.settings.seeds:
            if (host, port) == (self.settings.advertise_host, self.settings.advertise_port):
                continue
            asked += 1
            try:
                await self.rpc.call_address(host, port, GetState(), deadline_s=SEED_CHECK_S)
            except (Unauthorized, WrongCluster) as error:
                if self.installed.state is None:
                    raise
                refusals.append(error)
            except HoldfastError:
                continue
        if refusals and len(refusals) == asked:
            raise refusals[0]

    def _follow_member(self, before: Member | None, now: Member) -> None:
        """A node is back: what could not be told to it can be now."""
        if (
            now.state is State.ALIVE
            and now.name != self.settings.name
            and (before is None or before.state is not State.ALIVE)
        ):
            self.volumes.reclaimer.retry_now()

    def _follow_layout(self, state: LayoutState) -> None:
        """A layout was installed: tell the wire and the others, and know where its nodes are."""
        self.rpc.set_cluster(state.cluster_id)
        self.membership.update_me(layout_version=state.epoch)
        known: dict[str, Member] = dict(self.membership.members())
        for layout in state.layouts():
            for node in layout.nodes:
                if node.name not in known:
                    self.rpc.set_address(node.name, node.host, node.port)
                    self.membership.add_seed(node.host, node.port)
