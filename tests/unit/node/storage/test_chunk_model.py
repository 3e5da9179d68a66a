"""A Hypothesis state machine: the store against plain dicts, with stops of every kind and a bad index in between."""

from __future__ import annotations

import asyncio
import random
import shutil
import tempfile
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

import pytest
from blake3 import blake3
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)

from cluster.chunks.store import ChunkEntry, Reference
from cluster.errors import Corrupt, Invalid, NotFound
from node.storage import chunk_writer
from node.storage.chunk_compaction import ChunkCompaction
from node.storage.chunk_expiry import ChunkExpiry
from node.storage.chunk_store import ChunkStoreSettings, LogChunkStore
from tests.support.simulated.disk import Loss, SimulatedDisk
from tests.unit.node.storage.naive_trees import check_trees, use_small_trees

R = TypeVar("R")
GRACE_S = 10.0
REFERRERS = [bytes([letter]) * 16 for letter in b"xyz"]
PAYLOADS = [
    random.Random(number).randbytes(size) for number, size in enumerate([0, 1, 500, 5000, 16_384, 40_000, 600, 700])
]
NAMES = [blake3(payload).digest() for payload in PAYLOADS]

numbers = st.integers(0, len(PAYLOADS) - 1)
referrers = st.sampled_from(REFERRERS)
copies_wanted = st.sampled_from([1, 2, 3, 255])


class ManualClock:
    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def wall(self) -> float:
        return 0.0

    async def sleep(self, seconds: float) -> None:
        raise AssertionError("the store never sleeps")


class StoreAgainstDict(RuleBasedStateMachine):
    """The model: chunk -> {referrer: replicas}, and for those without, the age when the last went."""

    copies: Bundle[Path] = Bundle("copies")

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.directory = Path(tempfile.mkdtemp(prefix="chunk-model-"))
        self.live = self.directory / "live"
        self.live.mkdir()
        self.disk = SimulatedDisk()
        self.clock = ManualClock()
        self.held: dict[int, dict[bytes, int]] = {}
        self.freed: dict[int, float] = {}
        self.damaged: set[int] = set()
        self.copied = 0
        self.aged = 0
        self.skipped = False
        """Whether replay has passed over a damaged chunk, which leaves no record."""
        self.store = self.make()

    def make(self) -> LogChunkStore:
        return LogChunkStore(
            ChunkStoreSettings(str(self.live), grace_s=GRACE_S, file_bytes=60_000, reserve_bytes=0),
            disk=self.disk,
            clock=self.clock,
            random=random.Random(self.copied),
        )

    def run(self, work: Coroutine[Any, Any, R]) -> R:
        return self.loop.run_until_complete(work)

    @initialize()
    def begin(self) -> None:
        self.run(self.store.open())

    def teardown(self) -> None:
        self.run(self.store.abandon())
        self.run(self.loop.shutdown_default_executor())
        self.loop.close()
        shutil.rmtree(self.directory)

    # -- changes

    @rule(number=numbers, referrer=referrers, replicas=copies_wanted)
    def put(self, number: int, referrer: bytes, replicas: int) -> None:
        self.run(self.store.put(NAMES[number], PAYLOADS[number], Reference(referrer, replicas)))
        self.held.setdefault(number, {})[referrer] = replicas
        self.freed.pop(number, None)
        self.damaged.discard(number)

    @rule(many=st.lists(st.tuples(numbers, referrers), max_size=12))
    def put_at_once(self, many: list[tuple[int, bytes]]) -> None:
        async def all_of_them() -> None:
            await asyncio.gather(
                *[self.store.put(NAMES[number], PAYLOADS[number], Reference(referrer, 1)) for number, referrer in many]
            )

        self.run(all_of_them())
        for number, referrer in many:
            self.held.setdefault(number, {})[referrer] = 1
            self.freed.pop(number, None)
            self.damaged.discard(number)

    @rule(number=numbers, referrer=referrers, replicas=copies_wanted)
    def add_reference(self, number: int, referrer: bytes, replicas: int) -> None:
        added = self.run(self.store.add_reference(NAMES[number], Reference(referrer, replicas)))
        assert added == (number in self.held)
        if added:
            self.held[number][referrer] = replicas
            self.freed.pop(number, None)

    @rule(number=numbers, referrer=referrers)
    def drop_reference(self, number: int, referrer: bytes) -> None:
        dropped = self.run(self.store.drop_reference(NAMES[number], referrer))
        assert dropped == (referrer in self.held.get(number, {}))
        if dropped:
            del self.held[number][referrer]
            if not self.held[number]:
                self.freed[number] = self.clock.now

    @rule(referrer=referrers)
    def drop_all_of_a_referrer(self, referrer: bytes) -> None:
        for number in list(self.held):
            self.drop_reference(number, referrer)

    @rule(bits=st.integers(0, 3), partition=st.integers(0, 7))
    def drop_partition(self, bits: int, partition: int) -> None:
        partition %= 1 << bits
        doomed = [number for number in self.held if NAMES[number][0] >> (8 - bits) == partition]
        assert self.run(self.store.drop_partition(partition, bits)) == len(doomed)
        for number in doomed:
            del self.held[number]
            self.freed.pop(number, None)
            self.damaged.discard(number)

    @rule(seconds=st.sampled_from([1.0, 4.0, 11.0]))
    def time_passes(self, seconds: float) -> None:
        self.clock.now += seconds

    @rule()
    def expire(self) -> None:
        job = ChunkExpiry(self.store)
        assert not self.run(job.run_once())
        assert job.last_error is None
        for number, since in list(self.freed.items()):
            if self.clock.now - since >= GRACE_S:
                del self.held[number]
                del self.freed[number]
                self.damaged.discard(number)
        assert job.queue_length == len(self.freed)

    @rule(short=st.booleans(), pieces=st.sampled_from([1, 3, 1000]))
    def compact(self, short: bool, pieces: int) -> None:
        """Nothing of what is held may change; damage that is found on the way is set aside as by a read."""
        self.store._reserve = 1 << 50 if short else 0
        job = ChunkCompaction(self.store, self.clock, worth_bytes=2000)
        for _ in range(pieces):
            if not self.run(job.run_once()):
                break
        assert job.last_error is None
        self.store._reserve = 0
        self.notice_damage()

    # -- reads

    @rule(number=numbers, ends=st.tuples(st.integers(0, 41_000), st.integers(0, 41_000)))
    def read(self, number: int, ends: tuple[int, int]) -> None:
        start, end = sorted(ends)
        try:
            data = self.run(self.store.read(NAMES[number], start, end - start))
        except NotFound:
            assert number not in self.held
        except Invalid:
            assert end > len(PAYLOADS[number])
        except Corrupt:
            assert number in self.damaged
            self.forget(number)
        else:
            assert number in self.held
            assert data == PAYLOADS[number][start:end]
            cached = self.store.read_cached(NAMES[number], start, end - start)
            assert cached is None or cached == data

    def forget(self, number: int) -> None:
        self.damaged.discard(number)
        self.held.pop(number, None)
        self.freed.pop(number, None)

    @rule(number=numbers, chance=st.integers(0, 1 << 30))
    def rot(self, number: int, chance: int) -> None:
        """A bit of a payload flips on the disk."""
        payload = PAYLOADS[number]
        if number not in self.held or len(payload) < 500:
            return
        state = self.run(self.store._find(NAMES[number]))
        assert state is not None
        path = str(self.live / f"chunks-{state.file:08d}.log")
        found = self.disk.bytes_of(path).find(payload, state.offset)
        if number not in self.damaged:
            assert found > 0
            self.disk.flip(path, found + chance % len(payload), 1 << chance % 8)
            self.damaged.add(number)

    @rule(asked=st.lists(numbers, max_size=10))
    def describe(self, asked: list[int]) -> None:
        entries = self.run(self.store.describe([NAMES[number] for number in asked]))
        assert entries == [
            ChunkEntry(
                NAMES[number],
                len(PAYLOADS[number]),
                tuple(Reference(*one) for one in sorted(self.held[number].items())),
            )
            if number in self.held
            else None
            for number in asked
        ]

    @rule(limit=st.integers(1, 4))
    def list_references_in_pages(self, limit: int) -> None:
        pairs: list[tuple[bytes, bytes]] = []
        while True:
            page = self.run(self.store.list_references(pairs[-1] if pairs else None, limit))
            pairs += page
            if len(page) < limit:
                break
        assert pairs == sorted((one, NAMES[number]) for number, references in self.held.items() for one in references)

    @rule(number=numbers)
    def list_a_leaf(self, number: int) -> None:
        entries = self.run(self.store.list_partition(int.from_bytes(NAMES[number][:4]) >> 14, 18, None, 10))
        assert [entry.chunk for entry in entries] == ([NAMES[number]] if number in self.held else [])

    # -- stops

    def reopen(self) -> None:
        self.copied += 1
        self.store = self.make()
        self.run(self.store.open())
        # Rot is noticed while the end of the log is replayed, or later by a read: both are right.
        self.notice_damage()

    def notice_damage(self) -> None:
        suspects = sorted(self.damaged)
        present = self.run(self.store.holds([NAMES[number] for number in suspects]))
        for number, here in zip(suspects, present, strict=True):
            if not here:
                self.forget(number)
                self.skipped = True

    def age(self) -> None:
        """What the store may forget of its age when it does not stop cleanly lies between two records: put one, never the same twice."""
        self.aged += 1
        self.put(1, REFERRERS[0], 7 + self.aged % 2)

    @rule(tidy=st.booleans())
    def restart(self, tidy: bool) -> None:
        if not tidy:
            self.age()
        self.run(self.store.close() if tidy else self.store.abandon())
        self.reopen()

    @rule()
    def power_cut(self) -> None:
        self.age()
        self.run(self.store.abandon())
        self.disk = self.disk.crashed(len(self.disk.history), Loss(keep=0, names=False), random.Random(1))
        self.reopen()

    @rule(target=copies)
    def copy_the_index(self) -> Any:
        self.run(self.store.close())
        self.copied += 1
        path = self.directory / f"copy-{self.copied}"
        shutil.copytree(self.live, path)
        self.reopen()
        return multiple(path)

    @rule(path=copies)
    def put_an_older_index_back(self, path: Path) -> None:
        if self.skipped:
            return  # an index from before the rot was noticed rightly knows the chunk still
        self.age()
        self.run(self.store.close())
        shutil.rmtree(self.live)
        shutil.copytree(path, self.live)
        self.reopen()

    @rule(how=st.sampled_from(["missing", "truncated", "garbage", "flip", "empty"]), chance=st.integers(0, 1 << 30))
    def the_index_goes_bad(self, how: str, chance: int) -> None:
        self.age()
        self.run(self.store.close())
        index = self.live / "chunks.sqlite"
        data = bytearray(index.read_bytes())
        if how == "missing":
            index.unlink()
        elif how == "truncated":
            index.write_bytes(data[: chance % len(data)])
        elif how == "garbage":
            index.write_bytes(random.Random(chance).randbytes(len(data)))
        elif how == "empty":
            index.write_bytes(b"")
        else:
            data[chance % len(data)] ^= 1 << chance % 8
            index.write_bytes(data)
        self.reopen()

    # -- always

    @invariant()
    def the_store_is_the_model(self) -> None:
        if not self.run_begun():
            return
        entries = self.run(self.store.list_partition(0, 0, None, 1000))
        found = {entry.chunk: {one.referrer: one.replicas for one in entry.references} for entry in entries}
        assert found == {NAMES[number]: references for number, references in self.held.items()}
        assert [entry.chunk for entry in entries] == sorted(found)
        assert all(entry.length == len(PAYLOADS[NAMES.index(entry.chunk)]) for entry in entries)
        check_trees(self.store.trees(), found)
        pairs = sorted((one, NAMES[number]) for number, references in self.held.items() for one in references)
        assert self.run(self.store.list_references(None, 1000)) == pairs
        for referrer in REFERRERS:
            listed = self.run(self.store.list_referrer(referrer, None, 1000))
            assert listed == sorted(NAMES[number] for number, references in self.held.items() if referrer in references)
        statistics = self.store.statistics()
        assert statistics.chunks == len(self.held)
        assert statistics.live_bytes == sum(len(PAYLOADS[number]) for number in self.held)
        assert statistics.failure is None
        self.store._catalog.ledger.check()
        self.store._catalog.trees.check()

    def run_begun(self) -> bool:
        return self.store._writer is not None


@pytest.mark.parametrize("flush_states", [3, 10_000])
def test_the_store_is_a_dict(monkeypatch: pytest.MonkeyPatch, flush_states: int) -> None:
    monkeypatch.setattr(chunk_writer, "FLUSH_STATES", flush_states)
    use_small_trees(monkeypatch)
    run_state_machine_as_test(
        StoreAgainstDict,
        settings=settings(
            max_examples=40,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
