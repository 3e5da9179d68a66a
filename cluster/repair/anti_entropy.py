"""Anti-entropy: this node compares what it holds with each living peer, over and over, and sets mending going where they differ.

After Demers et al., "Epidemic Algorithms for Replicated Database Maintenance" (1987), by Merkle trees as in Dynamo (2007). One
comparison at a time. A difference counts when a second comparison finds it too (`Suspicions`); then whichever side lacks something
mends itself: this node by its own queues, the peer by a nudge. A register that stays newer here for all nudging is mended here as well: it
may be an acceptance that never reached a quorum, and only who holds such a one can have it written over (`RegisterMender`). References
that only this node has are also handed to `on_unshared`, which knows how to find out whether any root needs them. Decides nothing about
data: that is the menders' and the judge's part.

Owns what is known to differ, by peer.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from cluster.doors.clock import Clock
from cluster.errors import HoldfastError, StaleLayout
from cluster.governance.installed import InstalledLayout
from cluster.repair.chunk_mender import ChunkMender
from cluster.repair.comparison import Comparison, KeyDifference, ReferenceDifference
from cluster.repair.messages import Nudge, NudgedKey, NudgeKeys
from cluster.repair.register_queue import RegisterQueue
from cluster.repair.settings import RepairSettings
from cluster.repair.suspicion import Suspicions
from cluster.rpc.caller import Caller

TICK_S = 0.25
"""Between looks at which peer is due."""

NUDGE_DEADLINE_S = 2.0

NUDGE_LIMIT = 1000
"""Chunks or registers in one nudge."""

Unshared = Callable[[Sequence[tuple[bytes, bytes]], bool], None]
"""Told ``(chunk, referrer)`` pairs that some other holder lacks, and whether all other holders lack them."""


@dataclass(slots=True)
class _Peer:
    """What is known of one peer. ``due``: when to compare next."""

    due: float
    references: Suspicions[ReferenceDifference]
    keys: Suspicions[KeyDifference]
    retry_s: float
    start: float = 0.0
    """Where listing begins, a share of all places: behind what was listed and acted on, when not all of it fits one comparison."""
    alive: bool = True
    passes: int = 0
    last_error: str = ""


class AntiEntropy:
    """See the module. ``on_unshared``: told ``(chunk, referrer)`` pairs that only this node seems to have."""

    def __init__(
        self,
        me: str,
        settings: RepairSettings,
        comparison: Comparison,
        caller: Caller,
        installed: InstalledLayout,
        mender: ChunkMender,
        keys: RegisterQueue,
        clock: Clock,
        rng: random.Random,
    ) -> None:
        self._me = me
        self._settings = settings
        self._comparison = comparison
        self._caller = caller
        self._installed = installed
        self._mender = mender
        self._keys = keys
        self._clock = clock
        self._rng = rng
        self._peers: dict[str, _Peer] = {}
        self.on_unshared: Unshared = lambda references, lone: None
        self.comparisons = 0
        self.compared_chunks = 0
        """Chunks that compared sums stood for, all comparisons together."""
        self.waiting_for = ""

    async def run(self) -> None:
        """Compare until cancelled."""
        while True:
            name = self._next()
            if name is None:
                await self._clock.sleep(TICK_S)
                continue
            await self._compare(name)

    def hurry(self) -> None:
        """Compare with everybody now."""
        for peer in self._peers.values():
            peer.due = self._clock.monotonic()

    # What is known

    @property
    def passes(self) -> int:
        """Comparisons made with the living peer that was compared least often."""
        return min((peer.passes for peer in self._peers.values() if peer.alive), default=0)

    @property
    def queue_length(self) -> int:
        """Peers that are due."""
        now = self._clock.monotonic()
        return sum(peer.alive and peer.due <= now for peer in self._peers.values())

    @property
    def last_error(self) -> str:
        return next((f"{name}: {peer.last_error}" for name, peer in self._peers.items() if peer.last_error), "")

    def diverged(self) -> tuple[int, int, float]:
        """Chunks and registers that differ from some peer's, and the age in seconds of the oldest difference (negative: none)."""
        chunks: set[bytes] = set()
        keys: set[tuple[int, object]] = set()
        oldest: list[float] = []
        for peer in self._peers.values():
            chunks.update(difference.chunk for difference in peer.references.persisting())
            keys.update((difference.partition, difference.key) for difference in peer.keys.persisting())
            oldest += [since for since in (peer.references.oldest, peer.keys.oldest) if since is not None]
        age = self._clock.monotonic() - min(oldest) if oldest else -1.0
        return len(chunks), len(keys), age

    # Whose turn it is

    def _next(self) -> str | None:
        state = self._installed.state
        if state is None:
            self.waiting_for = "a layout"
            return None
        now = self._clock.monotonic()
        names = [node.name for node in state.current.nodes if node.name != self._me]
        if state.current.node(self._me) is None:
            names = []
        for gone in self._peers.keys() - set(names):
            del self._peers[gone]
        for name in names:
            peer = self._peers.get(name)
            alive = self._installed.is_alive(name)
            if peer is None:
                peer = self._peers[name] = self._new_peer(now)
            if alive and not peer.alive:
                peer.due = now
            elif peer.alive and not alive:
                peer.references.forget()
                peer.keys.forget()
                peer.last_error = ""
            peer.alive = alive
        due = [(peer.due, name) for name, peer in self._peers.items() if peer.alive and peer.due <= now]
        self.waiting_for = "" if due else "the next comparison" if self._peers else "peers to compare with"
        return min(due)[1] if due else None

    def _new_peer(self, now: float) -> _Peer:
        persist = self._settings.persist_s
        first = now + self._settings.retry_s * self._rng.random()
        return _Peer(first, Suspicions(persist), Suspicions(persist), self._settings.retry_s)

    # One comparison

    async def _compare(self, name: str) -> None:
        settings = self._settings
        peer = self._peers[name]
        try:
            found = await self._comparison.with_peer(name, peer.start)
        except HoldfastError as error:
            peer.last_error = "" if isinstance(error, StaleLayout) else error.message
            peer.due = self._clock.monotonic() + peer.retry_s * (0.5 + self._rng.random())
            peer.retry_s = min(2 * peer.retry_s, settings.interval_s)
            return
        peer.last_error = ""
        peer.retry_s = settings.retry_s
        peer.passes += 1
        self.comparisons += 1
        self.compared_chunks += found.compared
        now = self._clock.monotonic()
        references = peer.references.compared(now, found.references)
        keys = peer.keys.compared(now, found.keys)
        if found.complete:
            peer.start = 0.0
        elif references or keys:
            peer.start = found.stopped
        differs = found.references or found.keys
        pause = settings.persist_s if differs else settings.interval_s
        peer.due = now + pause * (1 + 0.2 * self._rng.random())
        await self._act(name, peer, references, keys)

    async def _act(
        self, name: str, peer: _Peer, references: Collection[ReferenceDifference], keys: Collection[KeyDifference]
    ) -> None:
        self._mender.note(dict.fromkeys(d.chunk for d in references if not d.mine))
        unshared = [d for d in references if d.mine]
        for lone in (False, True):
            told = [(d.chunk, d.referrer) for d in unshared if self._is_lone(d) is lone]
            if told:
                self.on_unshared(told, lone)
        theirs: dict[int, list[NudgedKey]] = {}
        for difference in keys:
            partition, key, mine = difference
            if mine:
                theirs.setdefault(partition, []).append(NudgedKey(key.table, key.partition, key.sort))
            if not mine or peer.keys.acts(difference) > 1:
                self._keys.note(partition, [key])
        try:
            await self._nudge(name, list(dict.fromkeys(d.chunk for d in unshared)), theirs)
        except HoldfastError:
            return  # it compares by itself, too

    def _is_lone(self, difference: ReferenceDifference) -> bool:
        """Whether all other nodes that should hold the chunk are there, and lack the reference."""
        others = [
            name for name in self._installed.chunk_rule(difference.chunk, difference.copies).members if name != self._me
        ]
        return all(
            (peer := self._peers.get(name)) is not None and peer.alive and peer.references.persists(difference)
            for name in others
        )

    async def _nudge(self, peer: str, chunks: Sequence[bytes], keys: dict[int, list[NudgedKey]]) -> None:
        for start in range(0, len(chunks), NUDGE_LIMIT):
            part = tuple(chunks[start : start + NUDGE_LIMIT])
            await self._caller.call(peer, Nudge(part), deadline_s=NUDGE_DEADLINE_S)
        for partition, behind in keys.items():
            for start in range(0, len(behind), NUDGE_LIMIT):
                request = NudgeKeys(partition, tuple(behind[start : start + NUDGE_LIMIT]))
                await self._caller.call(peer, request, deadline_s=NUDGE_DEADLINE_S)
