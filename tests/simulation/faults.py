"""Whole nodes that are wrong on purpose, each in one way: what a campaign must be able to notice.

`tests.support.simulated.faults` has those of the register protocol alone. A fault puts a subclass in a part's place when a node's core
has been put together; production code knows none.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING
from unittest import mock

from blake3 import blake3

from cluster.chunks import chunks as chunks_module
from cluster.chunks.chunks import ClusterChunks
from cluster.chunks.spread import Spread
from cluster.chunks.store import Reference
from cluster.errors import HoldfastError
from cluster.governance.attestation import Attestation
from cluster.governance.installed import InstalledLayout
from cluster.governance.messages import Attest
from cluster.peer.core import Doors, PeerCore
from cluster.register.purge import Purger
from cluster.register.quorum import QuorumRule
from cluster.rpc.message import Buffer
from cluster.volumes.service import VolumeSettings
from cluster.volumes.sweep import Suspect, Sweeper
from tests.support.simulated.faults import CredulousCopier, CredulousMender, EagerLearner, HalfRuleLeader
from tests.support.simulated.memory_chunks import MemoryChunkStore

if TYPE_CHECKING:
    from tests.support.simulated.whole_cluster import Machine


class Fault:
    """Nothing is wrong; the others override what they make wrong."""

    def doors(self, machine: Machine, doors: Doors) -> Doors:
        """What a core is given."""
        return doors

    def rig(self, core: PeerCore) -> None:
        """Anything, to a core that has just been put together."""

    def after_kill(self, machine: Machine) -> None:
        """The process is gone."""

    def volume_settings(self, settings: VolumeSettings) -> VolumeSettings:
        return settings

    def patched(self) -> AbstractContextManager[object]:
        """For the length of a run."""
        return nullcontext()


HONEST = Fault()

WRITTEN_BACK_S = 0.5
"""How long a page stays in a disk's cache when nobody syncs it."""


class _UnsyncedChunks(MemoryChunkStore):
    """Answers when the bytes are in the cache of the disk."""

    def __init__(self, before: MemoryChunkStore) -> None:
        super().__init__(before.disk, before._rng)
        self.unsynced: dict[tuple[bytes, bytes], float] = {}

    async def put(self, chunk: bytes, payload: Buffer, reference: Reference, *, repair: bool = False) -> None:
        if reference.referrer not in self.disk.get(chunk, (b"", {}))[1]:
            self.unsynced[chunk, reference.referrer] = asyncio.get_running_loop().time() + WRITTEN_BACK_S
        await super().put(chunk, payload, reference, repair=repair)

    def power_cut(self, now: float) -> None:
        for (chunk, referrer), synced_at in self.unsynced.items():
            if synced_at > now and chunk in self.disk:
                self.disk[chunk][1].pop(referrer, None)
                self.disk.touched.add(chunk)
                if not self.disk[chunk][1]:
                    del self.disk[chunk]


class ChunkAckedBeforeSync(Fault):
    def doors(self, machine: Machine, doors: Doors) -> Doors:
        machine.memory.chunk_store = _UnsyncedChunks(machine.chunk_store)
        return dataclasses.replace(doors, chunks=machine.chunk_store)

    def after_kill(self, machine: Machine) -> None:
        if isinstance(machine.chunk_store, _UnsyncedChunks):
            machine.chunk_store.power_cut(asyncio.get_running_loop().time())


class _TwiceUsed(Spread):
    """The same stand-in fills as many places as are empty."""

    def next_stand_in(self) -> str | None:
        return next((name for name in self._stand_ins if self._usable(name)), None)


class HandoffCountedTwice(Fault):
    def patched(self) -> AbstractContextManager[object]:
        return mock.patch.object(chunks_module, "Spread", _TwiceUsed)


class _EagerChunks(ClusterChunks):
    """Says that a chunk is stored when it has been sent."""

    async def put(self, payload: Buffer, *, referrer: bytes, replicas: int) -> bytes:
        async def behind(data: bytes) -> None:
            try:
                await ClusterChunks.put(self, data, referrer=referrer, replicas=replicas)
            except HoldfastError:
                return

        assert self._group is not None
        self._group.create_task(behind(bytes(payload)))
        return blake3(payload).digest()


class HeadBeforeChunks(Fault):
    def rig(self, core: PeerCore) -> None:
        core.chunks.__class__ = _EagerChunks


class CollectedWithoutGrace(Fault):
    def volume_settings(self, settings: VolumeSettings) -> VolumeSettings:
        return dataclasses.replace(settings, retired_grace_s=0.0)


class _UnfencedSweeper(Sweeper):
    """Drops what no root names, and fences nothing."""

    async def _fence(self, suspects: Sequence[Suspect]) -> None:
        for suspect in suspects:
            suspect.fenced = True


class SweptWithoutFence(Fault):
    def rig(self, core: PeerCore) -> None:
        sweeper = core.volumes.sweeper
        assert sweeper is not None
        sweeper.__class__ = _UnfencedSweeper

    def volume_settings(self, settings: VolumeSettings) -> VolumeSettings:
        return dataclasses.replace(settings, sweep_age_s=0.5, sweep_period_s=1.0)


class _QuorumPurger(Purger):
    def _enough(self, rule: QuorumRule, names: Collection[str]) -> bool:
        return rule.satisfied(names)


class TombstoneDroppedEarly(Fault):
    def rig(self, core: PeerCore) -> None:
        core.purger.__class__ = _QuorumPurger


class WipedVotes(Fault):
    def rig(self, core: PeerCore) -> None:
        core.acceptor.__class__ = EagerLearner


class _TrustingAttestation(Attestation):
    """Doesn't mind that the others remember more."""

    async def _ask(self, name: str) -> None:
        try:
            await self._caller.call(name, Attest(*self._life), deadline_s=2.0)
        except HoldfastError:
            return
        self._confirmed.add(name)


class OldCopyVotes(Fault):
    def rig(self, core: PeerCore) -> None:
        core.attestation.__class__ = _TrustingAttestation


class UndecidedTakenOver(Fault):
    def rig(self, core: PeerCore) -> None:
        core.acceptor.__class__ = CredulousCopier
        core.register_mender.__class__ = CredulousMender


class _AnyStores(InstalledLayout):
    def stores(self, partition: int) -> bytes:
        return b""


class StoresIgnored(Fault):
    """Nobody minds which disk a replica's name stands for."""

    def rig(self, core: PeerCore) -> None:
        core.installed.__class__ = _AnyStores


class HalfOfJointRule(Fault):
    def rig(self, core: PeerCore) -> None:
        core.leader.__class__ = HalfRuleLeader


WHOLE_FAULTS: dict[str, Fault] = {
    "chunk acknowledged before fdatasync": ChunkAckedBeforeSync(),
    "handoff counted as two copies": HandoffCountedTwice(),
    "head swung before the chunks are durable": HeadBeforeChunks(),
    "garbage collected without grace": CollectedWithoutGrace(),
    "swept without a fence": SweptWithoutFence(),
    "tombstone dropped too early": TombstoneDroppedEarly(),
    "wiped acceptor votes": WipedVotes(),
    "acceptor from an old copy votes": OldCopyVotes(),
    "anti-entropy takes over undecided records": UndecidedTakenOver(),
    "layout change without joint quorums": HalfOfJointRule(),
    "which disk a name stands for is ignored": StoresIgnored(),
}
