"""A layout view for simulated nodes: scripted states in place of agreed ones, with the same rules for who may vote.

`Script` is the sequence of decided states (in the real thing a register decides them); each node's `ScriptedView` installs them as it
hears of them, in any order but never back.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from zlib import crc32

from cluster.errors import HoldfastError, StaleLayout
from cluster.register.acceptor import Acceptor
from cluster.register.quorum import QuorumRule, majority
from cluster.register.store import AWAY, FRESH, LEARNER, VOTER, MetaWrite, PartitionRecord, RegisterStore
from cluster.rpc.message import Request, message
from cluster.rpc.service import IncomingCall
from tests.support.simulated.fabric import Process

PARTITIONS = 2


@dataclass(frozen=True)
class State:
    epoch: int
    current: tuple[str, ...]
    coming: tuple[str, ...] | None = None

    @property
    def rule(self) -> QuorumRule:
        groups = (self.current,) if self.coming is None else (self.current, self.coming)
        return QuorumRule(tuple(dict.fromkeys(groups)))

    def must_copy(self, name: str) -> bool:
        """Whether a node of the coming group must copy before the change may finish: a new one; and everybody when so many of the
        old group may lack a decided value that they would be a majority of the new one."""
        assert self.coming is not None
        shrinks = len(self.current) - majority(len(self.current)) >= majority(len(self.coming))
        return name in self.coming and (name not in self.current or shrinks)


class Script:
    def __init__(self, first: tuple[str, ...]) -> None:
        self.states = {1: State(1, first)}
        self.last = self.states[1]

    def follow(self, current: tuple[str, ...], coming: tuple[str, ...] | None) -> State:
        self.last = State(self.last.epoch + 1, current, coming)
        self.states[self.last.epoch] = self.last
        return self.last


@message
@dataclass(frozen=True, slots=True)
class InstalledEpoch:
    epoch: int


@message("simulated.get-epoch", reply=InstalledEpoch)
@dataclass(frozen=True, slots=True)
class GetEpoch(Request[InstalledEpoch]):
    """The epoch that the receiver has installed."""


@message
@dataclass(frozen=True, slots=True)
class Heard:
    """The receiver's own store."""

    store: bytes


@message("simulated.announce", reply=Heard)
@dataclass(frozen=True, slots=True)
class Announce(Request[Heard]):
    """The sender has this store now. Remembered durably before the answer."""

    store: bytes


class ScriptedView:
    """`LayoutView` of one life of a node, and its knowledge of the stores."""

    def __init__(
        self,
        process: Process,
        script: Script,
        store: RegisterStore,
        stores: dict[str, bytes],
        is_up: Callable[[str], bool],
        rng: random.Random,
        doubt: float = 0.1,
    ) -> None:
        """``doubt``: how often it guesses who is alive."""
        self._process = process
        self._script = script
        self._store = store
        self._stores = dict(stores)
        self._is_up = is_up
        self._rng = rng
        self._doubt = doubt
        self._acceptor: Acceptor | None = None
        self.state = script.states[1]
        process.layout_version = lambda: self.epoch
        process.handlers.register(GetEpoch, lambda request, call: InstalledEpoch(self.epoch))
        process.handlers.register(Announce, self._hear)

    async def open(self, acceptor: Acceptor) -> None:
        self._acceptor = acceptor
        packed = await self._store.meta("epoch")
        if packed is not None:
            self.state = self._script.states[int(packed)]
        for name in sorted(self._stores):
            remembered = await self._store.meta(f"store/{name}")
            if remembered is not None:
                self._stores[name] = max(remembered, self._stores[name])

    def note_store(self, name: str, store: bytes) -> None:
        self._stores[name] = max(store, self._stores[name])

    # LayoutView

    @property
    def epoch(self) -> int:
        return self.state.epoch

    def partition_of(self, partition_key: bytes) -> int:
        return crc32(partition_key) % PARTITIONS

    def rule(self, partition: int) -> QuorumRule:
        return self.state.rule

    def is_alive(self, name: str) -> bool:
        return self._is_up(name) if self._rng.random() < 1 - self._doubt else self._rng.random() < 0.5

    def stores(self, partition: int) -> bytes:
        return b"".join([self._stores[name] for name in sorted(self.state.rule.members)])

    def check(self, epoch: int) -> bool:
        return epoch == self.epoch

    async def agree(self, epoch: int, peer: str) -> None:
        if epoch > self.epoch:
            await self.refresh(peer)
        if epoch != self.epoch:
            raise StaleLayout(f"epoch {epoch} against {self.epoch}", version=self.epoch)

    async def refresh(self, peer: str) -> None:
        try:
            reply = await self._process.call(peer, GetEpoch(), deadline_s=1.0)
        except HoldfastError:
            return
        await self.install(self._script.states[reply.message.epoch])

    # Installing

    async def install(self, state: State) -> None:
        """Take up a decided state, with what it means for this node's standing; durable on return."""
        if state.epoch <= self.epoch:
            return
        assert self._acceptor is not None
        standings: dict[int, PartitionRecord] = {}
        clear: list[int] = []
        for partition in range(PARTITIONS):
            before = self._acceptor.state(partition)
            if self._process.name in state.current:
                standing = VOTER if before.standing == VOTER else LEARNER
                standings[partition] = PartitionRecord(standing=standing, tenure=before.tenure)
            elif state.coming is not None and self._process.name in state.coming:
                kept = before.standing in {FRESH, VOTER} and before.tenure == state.epoch
                standings[partition] = PartitionRecord(standing=before.standing if kept else FRESH, tenure=state.epoch)
                if not kept:
                    clear.append(partition)
            else:
                standings[partition] = PartitionRecord(standing=AWAY)
                if before.standing != AWAY:
                    clear.append(partition)
        self.state = state
        await self._acceptor.set_standings(standings, clear, [MetaWrite("epoch", str(state.epoch).encode())])

    async def _hear(self, request: Announce, call: IncomingCall) -> Heard:
        self.note_store(call.peer, request.store)
        await self._store.commit([MetaWrite(f"store/{call.peer}", self._stores[call.peer])])
        return Heard(self._stores[self._process.name])
