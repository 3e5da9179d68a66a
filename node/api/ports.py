"""What the API needs from the rest of the node, as protocols: the volumes, views of the cluster and of repair, and counters to show.

`Volumes` is met by `cluster.volumes.service.VolumeService`; `ClusterView` and `RepairView` by whoever wires the node together; a
`MetricSource` by any component with counters. The API holds no state of theirs.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from cluster.rpc.message import Buffer
from cluster.volumes.volume import Condition, Volume, VolumePage

JsonObject = dict[str, Any]


class OpenVolume(Protocol):
    """One version of a volume; reading it is never disturbed by later writes."""

    @property
    def volume(self) -> Volume: ...

    def read(self, start: int, stop: int) -> AsyncGenerator[Buffer, None]:
        """The bytes [start, stop) as a stream, to be closed when it is left early."""

    async def read_small(self, start: int, stop: int) -> Buffer:
        """The bytes [start, stop) at once."""


class Volumes(Protocol):
    """What users do to volumes; see `cluster.volumes.service.VolumeService` for what each call promises and raises."""

    async def create(
        self,
        name: str,
        size: int,
        condition: Condition = ...,
        *,
        chunk_size: int = ...,
        replicas: int | None = ...,
        durability: str = ...,
    ) -> Volume: ...

    async def show(self, name: str) -> Volume: ...

    async def list(self, *, prefix: str = ..., after: str = ..., limit: int = ...) -> VolumePage: ...

    async def resize(self, name: str, size: int, condition: Condition = ...) -> Volume: ...

    async def delete(self, name: str, condition: Condition = ...) -> None: ...

    async def open(self, name: str) -> OpenVolume: ...

    async def replace(
        self,
        name: str,
        body: AsyncIterator[bytes],
        length: int | None,
        condition: Condition = ...,
        *,
        chunk_size: int | None = None,
        replicas: int | None = None,
        durability: str | None = None,
    ) -> tuple[Volume, bool]: ...

    async def write_range(
        self,
        name: str,
        offset: int,
        body: AsyncIterator[bytes],
        length: int | None,
        condition: Condition = ...,
        *,
        size: int | None = ...,
    ) -> Volume: ...


@dataclass(frozen=True, slots=True)
class StagedNode:
    """A change to one node that a plan is to include; a None leaves that property as it is."""

    name: str
    zone: str | None = None
    capacity: int | None = None
    remove: bool = False


class ClusterView(Protocol):
    """What a node knows about its cluster, as JSON-able objects, and the few things an operator changes.

    Every method may raise HoldfastError: QuorumUnavailable when the register of layouts can't be read or written, Conflict when a
    layout changed in between, Invalid for a plan that can't be made.
    """

    async def status(self) -> JsonObject:
        """The cluster as a whole: its id, nodes by state, layout version, capacity and what needs attention."""

    async def nodes(self) -> JsonObject:
        """``{"nodes": [{"name", "state", "zone", ...}]}``."""

    async def layout(self) -> JsonObject:
        """``{"current": layout | null, "staged": change | null, ...}``."""

    async def jobs(self) -> JsonObject:
        """``{"node", "jobs": [{"name", "queue_length", "last_error", "waiting_for"}]}``: the background work of this node."""

    async def plan_layout(self, stage: Sequence[StagedNode]) -> JsonObject:
        """Stage the changes (none: those staged already) and answer what applying them would do."""

    async def apply_layout(self, version: int, plan: str | None) -> JsonObject:
        """Make the plan with this version, and this fingerprint unless None, the layout; Conflict when another has taken its place."""

    async def abort_layout(self) -> JsonObject:
        """Drop what is staged, or stop a change under way."""

    def readiness(self) -> JsonObject:
        """``{"ready": bool, "reason": str | null, ...}``: whether this node has joined and knows a layout. Answers at once."""


class RepairView(Protocol):
    """How repair goes and where content lies, as JSON-able objects. Every method may raise NotReady while the node starts."""

    async def repair(self) -> JsonObject:
        """``{"health", "copies_missing", ..., "nodes": [...]}``: what all nodes say of themselves."""

    async def control_repair(self, action: str) -> JsonObject:
        """One of `cluster.repair.status.ACTIONS` to all nodes of the layout: ``{"action", "nodes": [{"name", "done", "error"}]}``."""

    async def where(self, name: str, offset: int, length: int | None, limit: int) -> JsonObject:
        """``{"volume", ..., "pieces": [...], "next": offset | null}``. Raises NotFound, and Invalid for an offset past the end."""

    def passes(self) -> int:
        """Full comparisons made: m of the formula ``T = m * P``."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One number to show. ``name`` without the ``holdfast_`` prefix and without ``_total``; units are part of it."""

    name: str
    kind: Literal["counter", "gauge"]
    documentation: str
    value: float
    labels: Mapping[str, str] = field(default_factory=dict)


class MetricSource(Protocol):
    """A component with counters. Called when somebody asks for /metrics, so it may be as slow as a few dictionary reads."""

    def samples(self) -> Iterable[Sample]:
        """The current values; samples of one name carry the same label names."""
