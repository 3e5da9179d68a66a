"""What a node's core is told. `node.config` fills it from files, environment and flags."""

from __future__ import annotations

from dataclasses import dataclass, field

from cluster.membership.settings import MembershipSettings
from cluster.register.purge import TOMBSTONE_GRACE_S
from cluster.repair.settings import RepairSettings
from cluster.volumes.service import VolumeSettings


@dataclass(frozen=True, slots=True)
class PeerSettings:
    """``host:port`` is where it listens for peers, ``advertise_host:advertise_port`` where they reach it; ``api`` is told to people.
    ``bootstrap_expect`` nodes form the first layout together (0: only join). ``replication_factor`` and ``partition_bits`` matter
    only for that first layout. A deleted register's tombstone is purged ``tombstone_grace_s`` after the purging node first saw it."""

    name: str
    secret: bytes
    host: str
    port: int
    advertise_host: str
    advertise_port: int
    api: str = ""
    zone: str = ""
    capacity: int = 1
    seeds: tuple[tuple[str, int], ...] = ()
    bootstrap_expect: int = 0
    replication_factor: int = 3
    partition_bits: int = 10
    auto_layout: bool = False
    release: str = ""
    tombstone_grace_s: float = TOMBSTONE_GRACE_S
    membership: MembershipSettings = field(default_factory=MembershipSettings)
    repair: RepairSettings = field(default_factory=RepairSettings)
    volumes: VolumeSettings = field(default_factory=VolumeSettings)
