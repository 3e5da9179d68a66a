"""What one node knows about its cluster, as JSON for the API: status, nodes, layout, jobs, plans. Also the core's counters as metrics.

Reads the core's parts; owns nothing. Meets `node.api.ports.ClusterView` and `MetricSource`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from cluster.chunks.store import ChunkStore
from cluster.errors import NotReady
from cluster.governance.state import LayoutState, StagedChange
from cluster.layout.layout import Layout
from cluster.layout.report import LayoutChange
from cluster.membership.member import Member
from cluster.peer.core import PeerCore
from cluster.peer.jobs import JobState
from cluster.register.quorum import majority
from cluster.register.store import LEARNER
from node.api.ports import JsonObject, Sample, StagedNode
from node.job_runner import ShownJob
from node.repair_view import CoreRepairView, attention, is_healthy, totals_json

GIB = 1 << 30


class CoreView:
    """See the module. ``core`` is called anew each time: a node's core is made again when its store begins a new life. ``own_jobs``:
    those of the daemon's storage. While there is no core, all but `readiness` and `samples` raise NotReady, so that clients ask another
    node."""

    def __init__(
        self,
        core: Callable[[], PeerCore | None],
        store: ChunkStore,
        own_jobs: Sequence[ShownJob],
        repair: CoreRepairView,
    ) -> None:
        self._core = core
        self._store = store
        self._own_jobs = own_jobs
        self._repair = repair

    # ClusterView

    def readiness(self) -> JsonObject:
        core = self._core()
        if core is None:
            return {"ready": False, "reason": "the node is starting"}
        state = core.installed.state
        if core.membership.rival is not None:
            return {
                "ready": False,
                "reason": f"another living node is called {core.settings.name!r}",
                "node": core.settings.name,
            }
        if state is None:
            return {
                "ready": False,
                "reason": f"no layout yet: waiting for {core.bootstrap.waiting_for}",
                "node": core.settings.name,
            }
        standings = core.acceptor.standings()
        if standings and core.attestation.unconfirmed and not any(core.attestation.covers(p) for p in standings):
            return {
                "ready": False,
                "reason": "waiting for peers to confirm this node's store",
                "node": core.settings.name,
            }
        return {"ready": True, "reason": None, "node": core.settings.name, "layout_version": state.current.version}

    async def status(self) -> JsonObject:
        core = self._require()
        state = core.installed.state
        members = core.membership.members()
        states = Counter(member.state.value for member in members.values())
        layout_names = set(state.members) if state else set()
        missing = sorted(name for name in layout_names if not core.installed.is_alive(name))
        lines = [f"node {name} is {members[name].state.value if name in members else 'unknown'}" for name in missing]
        blocked = _blocked_partitions(state, core) if state else 0
        if state is None:
            lines.append(f"no layout yet: waiting for {core.bootstrap.waiting_for}")
        if blocked:
            lines.append(
                f"{blocked} of {state.current.partitions if state else 0} partitions have no quorum: they can't be written"
            )
        joiners = core.governor.joiners() if state else {}
        lines += [f"node {name} waits to be taken into the layout: `holdfast layout plan`" for name in sorted(joiners)]
        if state is not None and state.next is not None:
            lines.append(f"layout {state.next.version} is being filled")
        learning = sum(record.standing == LEARNER for record in core.acceptor.standings().values())
        if learning:
            lines.append(f"this node is relearning {learning} partitions")
        chunks = self._store.statistics()
        if chunks.failure:
            lines.append(f"this node's chunk store has failed: {chunks.failure}")
        summary = None
        try:
            summary = await self._repair.summary() if state else None
        except TimeoutError:
            lines.append("how repair goes is not known: the nodes did not say so in time")
        if summary is not None:
            lines += attention(summary, layout_names.difference(missing))
        healthy = not lines and (summary is None or is_healthy(summary))
        health = "healthy" if healthy else ("unavailable" if blocked or state is None else "degraded")
        if chunks.quarantined:
            # Worth knowing about a disk, but no state of the data: what was lost there shows above until it is fetched again.
            lines.append(f"{chunks.quarantined} damaged places in this node's log are set aside: watch its disk")
        return {
            "cluster_id": core.cluster_id.hex() or None,
            "health": health,
            "attention": lines,
            "node": core.settings.name,
            "release": core.settings.release,
            "nodes": {
                "in_layout": len(layout_names),
                **{name: states[name] for name in ("alive", "suspect", "dead", "left")},
            },
            "layout": {
                "version": state.current.version if state else 0,
                "epoch": state.epoch if state else 0,
                "replication_factor": state.current.replication_factor if state else 0,
                "partitions": state.current.partitions if state else 0,
                "changing_to": state.next.version if state and state.next else None,
                "partitions_without_quorum": blocked,
            },
            "store": {
                "chunks": chunks.chunks,
                "live_bytes": chunks.live_bytes,
                "log_bytes": chunks.log_bytes,
                "free_bytes": chunks.free_bytes,
                "quarantined": chunks.quarantined,
            },
            "repair": totals_json(summary) if summary is not None else None,
        }

    async def nodes(self) -> JsonObject:
        core = self._require()
        state = core.installed.state
        members = core.membership.members()
        names = sorted({*members, *(state.members if state else ())})
        return {"nodes": [_node(name, members.get(name), state) for name in names]}

    async def layout(self) -> JsonObject:
        core = self._require()
        state = core.installed.state
        if state is None:
            return {
                "current": None,
                "next": None,
                "lines": [f"no layout yet: waiting for {core.bootstrap.waiting_for}"],
            }
        lines = _table(state.current)
        document: JsonObject = {
            "epoch": state.epoch,
            "current": _layout(state.current),
            "next": None,
            "excluded": list(state.excluded),
            "staged": [_staged(change) for change in state.staged],
            "joining": sorted(core.governor.joiners()),
        }
        if state.next is not None:
            progress = core.governor.progress
            document["next"] = _layout(state.next)
            document["progress"] = {
                name: {
                    "partitions": p.partitions,
                    "partitions_done": p.partitions_done if p.epoch == state.epoch else 0,
                    "chunks_copied": p.chunks,
                    "bytes_copied": p.bytes,
                    "error": p.error,
                }
                for name, p in progress.items()
            }
            done = sum(p.partitions_done for p in progress.values())
            total = sum(p.partitions for p in progress.values())
            lines.append(f"layout {state.next.version} is being filled: {done} of {total} partitions copied")
            lines += [
                f"  {name}: {p.partitions_done}/{p.partitions} {p.error}".rstrip()
                for name, p in sorted(progress.items())
            ]
        lines += [_staged_line(change) for change in state.staged]
        if document["joining"]:
            lines.append(f"waiting to be taken in: {', '.join(document['joining'])} (`holdfast layout plan`)")
        document["lines"] = lines
        return document

    async def jobs(self) -> JsonObject:
        core = self._require()
        return {"node": core.settings.name, "jobs": [job._asdict() for job in self._jobs(core)]}

    async def plan_layout(self, stage: Sequence[StagedNode]) -> JsonObject:
        core = self._require()
        if stage:
            changes = [StagedChange(s.name, s.zone, s.capacity, s.remove) for s in stage]
            await core.governor.stage(changes)
        state = core.installed.state
        if state is not None and state.next is not None:
            line = f"layout {state.next.version} is still being filled: plan again when it is in force, or abort it"
            return {"version": None, "lines": [line]}
        current, planned = await core.governor.plan()
        if planned.version == current.version:
            return {"version": None, "lines": [f"layout {current.version} is in force and there is nothing to change"]}
        change = LayoutChange(current, planned, self._estimated_bytes(core, current))
        return {
            "version": planned.version,
            "plan": planned.fingerprint,
            **change.to_json(),
            "lines": list(change.lines()),
        }

    async def apply_layout(self, version: int, plan: str | None) -> JsonObject:
        core = self._require()
        await core.governor.apply(version, plan)
        return await self.layout()

    async def abort_layout(self) -> JsonObject:
        core = self._require()
        await core.governor.abort()
        return await self.layout()

    # MetricSource

    def samples(self) -> Iterator[Sample]:
        chunks = self._store.statistics()
        for name, kind, doc, value in (
            ("chunks", "gauge", "Chunks held.", chunks.chunks),
            ("chunk_live_bytes", "gauge", "Payload bytes of the chunks held.", chunks.live_bytes),
            ("chunk_log_bytes", "gauge", "Size of the chunk log.", chunks.log_bytes),
            ("disk_free_bytes", "gauge", "Free space of the data directory's disk.", chunks.free_bytes),
            ("disk_ballast_bytes", "gauge", "Given up for deletes when the disk is full.", chunks.ballast_bytes),
            ("chunks_quarantined", "gauge", "Damaged places set aside.", chunks.quarantined),
            ("chunk_puts", "counter", "Chunks stored on this node.", chunks.puts),
            ("chunk_reads", "counter", "Chunks read on this node.", chunks.reads + chunks.cached_reads),
            ("chunk_syncs", "counter", "fdatasync calls of the chunk log.", chunks.syncs),
            ("chunk_written_bytes", "counter", "Bytes appended to the chunk log.", chunks.bytes_written),
        ):
            yield Sample(name, kind, doc, value)  # type: ignore[arg-type]  # the literals above are its kinds
        core = self._core()
        if core is None:
            return
        for state, count in Counter(member.state.value for member in core.membership.members().values()).items():
            yield Sample("members", "gauge", "Members by state.", count, {"state": state})
        yield Sample("layout_epoch", "gauge", "The installed layout epoch.", core.installed.epoch)
        yield Sample("register_updates", "counter", "Register updates led by this node.", core.leader.updates)
        yield Sample("register_terms", "counter", "Ballots this node began to lead under.", core.leader.terms_begun)
        yield Sample("register_votes", "counter", "Votes granted.", core.acceptor.votes)
        yield Sample("register_refusals", "counter", "Votes refused.", core.acceptor.refusals)
        yield Sample("register_reads", "counter", "Quorum reads answered at once.", core.registers.reader.reads)
        yield Sample(
            "register_settled", "counter", "Reads that had to be settled by a leader.", core.registers.reader.settled
        )
        yield Sample("chunk_cluster_puts", "counter", "Chunks stored through this gateway.", core.chunks.puts)
        yield Sample("chunk_cluster_reads", "counter", "Chunk reads through this gateway.", core.chunks.reads)
        yield Sample("chunk_hedged_reads", "counter", "Reads that asked a second replica.", core.chunks.hedged_reads)
        yield Sample("chunk_damaged_reads", "counter", "Damaged copies met by reads.", core.chunks.damaged_reads)
        yield Sample("chunk_late_bytes", "gauge", "Payloads that wait for slow replicas.", core.chunks.late_bytes)
        for job in self._jobs(core):
            labels = {"job": job.name}
            yield Sample("job_queue", "gauge", "Work waiting, by job.", job.queue_length, labels)
            yield Sample("job_failed", "gauge", "1 while a job's last work failed.", int(bool(job.last_error)), labels)

    def _jobs(self, core: PeerCore) -> Iterator[JobState]:
        """The core's, and this daemon's own."""
        yield from core.jobs()
        for job in self._own_jobs:
            yield JobState(job.name, job.queue_length, job.last_error or "", job.waiting_for or "")

    def _estimated_bytes(self, core: PeerCore, layout: Layout) -> int | None:
        """Bytes of one copy of everything, judged by this node's share: chunks spread evenly over the partitions."""
        share = len(layout.partitions_of(core.settings.name))
        return self._store.statistics().live_bytes * layout.partitions // share if share else None

    def _require(self) -> PeerCore:
        core = self._core()
        if core is None:
            raise NotReady("this node is starting; ask another, or again in a moment", retry_after_s=1)
        return core


def _blocked_partitions(state: LayoutState, core: PeerCore) -> int:
    """Partitions too few of whose replicas are alive."""
    blocked = 0
    alive = {name for name in state.members if core.installed.is_alive(name)}
    for partition in range(state.current.partitions):
        for layout in state.layouts():
            replicas = layout.replicas(partition)
            if sum(name in alive for name in replicas) < majority(len(replicas)):
                blocked += 1
                break
    return blocked


def _node(name: str, member: Member | None, state: LayoutState | None) -> dict[str, Any]:
    placed = None if state is None else state.current.node(name)
    coming = None if state is None or state.next is None else state.next.node(name)
    where = (
        "in layout" if placed else "joining" if coming else "excluded" if state and name in state.excluded else "staged"
    )
    return {
        "name": name,
        "state": member.state.value if member else "unknown",
        "layout": where,
        "zone": placed.zone if placed else (member.zone if member else None),
        "capacity": placed.capacity if placed else (member.capacity if member else None),
        "partitions": len(state.current.partitions_of(name)) if state and placed else 0,
        "peer": f"{member.host}:{member.port}" if member else (f"{placed.host}:{placed.port}" if placed else None),
        "api": member.api if member else None,
        "store": member.store.hex() if member else None,
        "boot": member.boot if member else None,
        "release": member.release if member else None,
    }


def _layout(layout: Layout) -> dict[str, Any]:
    return {
        "version": layout.version,
        "replication_factor": layout.replication_factor,
        "partitions": layout.partitions,
        "nodes": [
            {
                "name": node.name,
                "zone": node.zone,
                "capacity": node.capacity,
                "partitions": len(layout.partitions_of(node.name)),
            }
            for node in layout.nodes
        ],
    }


def _table(layout: Layout) -> list[str]:
    total = sum(node.capacity for node in layout.nodes)
    width = max(len(node.name) for node in layout.nodes)
    lines = [f"layout {layout.version}: {len(layout.nodes)} nodes, {layout.partitions} partitions"]
    lines[0] += f", {layout.replicas_per_partition} replicas each"
    return lines + [
        f"  {node.name:<{width}}  zone {node.zone}  {len(layout.partitions_of(node.name))} partitions  "
        f"{_capacity(node.capacity)}, {100 * node.capacity / total:.1f} % of the capacity"
        for node in layout.nodes
    ]


def _staged(change: StagedChange) -> dict[str, Any]:
    return {"name": change.name, "zone": change.zone, "capacity": change.capacity, "remove": change.remove}


def _staged_line(change: StagedChange) -> str:
    if change.remove:
        return f"staged: {change.name} is removed"
    parts = [f"zone {change.zone}"] if change.zone else []
    parts += [f"capacity {_capacity(change.capacity)}"] if change.capacity else []
    return f"staged: {change.name} {', '.join(parts) or 'as it says itself'}"


def _capacity(size: int) -> str:
    """For people: GiB, or the plain number of an operator who gave weights of another kind."""
    return f"{f'{size / GIB:.1f}'.removesuffix('.0')} GiB" if size >= GIB else str(size)
