"""Unlinking dead log files never changes what the log adds up to: random records, any file boundaries, replay of what remains.

Compaction takes part with its real planning and its real decisions; only files and threads are left out.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node.storage.chunk_operation import NO_PUTS, Batch, Operation
from node.storage.chunk_record import Kind, Record, pack_references, parse_header, record_size
from node.storage.chunk_relocation import Relocate, Restate
from node.storage.chunk_state import REFERENCED, Change, ChunkState
from node.storage.file_evacuation import PIECE_RECORDS, plan
from node.storage.file_ledger import FileLedger

CHUNKS = [bytes([number]) * 32 for number in range(3)]
REFERRERS = [bytes([number]) * 16 for number in range(2)]


@dataclass(frozen=True)
class Step:
    """A record to write if it makes sense to, after sealing the file, unlinking, emptying a file and losing the index as asked."""

    seal: bool
    unlink: bool
    compact: int
    """Which of the sealed files is emptied, counted from the oldest; beyond: none."""
    pieces: int
    """So many operations of the emptying under way are done before the record is written."""
    forget: bool
    """The ledger is made anew by replay."""
    kind: Kind
    chunk: bytes
    referrer: bytes
    replicas: int


steps = st.builds(
    Step,
    seal=st.booleans(),
    unlink=st.booleans(),
    compact=st.sampled_from([9, 9, 9, 0, 0, 1, 2, 3]),
    pieces=st.sampled_from([0, 1, 2, 99, 99]),
    forget=st.sampled_from([False, False, True]),
    kind=st.sampled_from([Kind.PUT, Kind.REFERENCE, Kind.UNREFERENCE, Kind.UNREFERENCE, Kind.DELETE]),
    chunk=st.sampled_from(CHUNKS),
    referrer=st.sampled_from(REFERRERS),
    replicas=st.integers(1, 2),
)
Files = dict[int, list[tuple[int, Record]]]


def records_of(step: Step, moment: int, state: ChunkState | None) -> list[Record]:
    """What is written for a step: what would change nothing isn't, and a put over a held copy is a MOVE with all its references."""
    held = None if state is None else state.reference(step.referrer)
    if step.kind == Kind.PUT and state is not None:
        references = {one.referrer: one.replicas for one in state.references} | {step.referrer: step.replicas}
        packed = pack_references(sorted(references.items()))
        return [Record(Kind.MOVE, 0, 0, 10, moment, 1, 0, step.chunk, bytes(16), packed, len(references))]
    if step.kind != Kind.PUT and state is None:
        return []
    if step.kind == Kind.UNREFERENCE and held is None:
        return []
    return [Record(step.kind, 0, step.replicas, 10, moment, 1, 0, step.chunk, step.referrer, b"")]


def replayed(files: Files) -> Change:
    change = Change(dict.fromkeys(CHUNKS))
    for number in sorted(files):
        for offset, record in files[number]:
            change.apply(record, number, offset)
    return change


def states(change: Change) -> dict[bytes, ChunkState]:
    return {chunk: state for chunk in CHUNKS if (state := change.get(chunk)) is not None}


@dataclass
class Log:
    """Files of records, the ledger over them, and what they should add up to."""

    ledger: FileLedger = field(default_factory=FileLedger)
    files: Files = field(default_factory=dict)
    held: dict[bytes, ChunkState | None] = field(default_factory=lambda: dict.fromkeys(CHUNKS))
    active: int = 0
    end: int = 64
    moment: int = 0

    def seal(self) -> None:
        self.active += 1
        self.files[self.active] = []
        self.ledger.add(self.active, 1, 0)
        self.end = 64

    def check(self, moment: str) -> None:
        expected = {chunk: state for chunk, state in self.held.items() if state is not None}
        assert states(replayed(self.files)) == expected, moment
        self.ledger.check()

    def write(self, records: list[Record]) -> None:
        change = Change(dict(self.held))
        for record in records:
            change.apply(record, self.active, self.end)
            self.files[self.active].append((self.end, record))
            self.end += record_size(record)
        self.ledger.merge(change)
        self.held.update(change.states)

    def decide(self, operation: Operation) -> Any:
        """As the writer does: the records are those that the batch would have appended."""
        batch = Batch(Change(dict(self.held)), self.active, self.end, 1, self.moment, NO_PUTS)
        operation.decide(batch)
        data = b"".join(batch.buffers)
        assert len(data) == batch.size
        position = 0
        while position < len(data):
            record = parse_header(data, position, self.end, 1)
            assert record is not None
            self.files[self.active].append((self.end, record))
            position += record_size(record)
            self.end += record_size(record)
        self.ledger.merge(batch.change)
        self.held.update(batch.change.states)
        return operation.outcome

    def unlink(self, released: int | None = None) -> None:
        for number in self.ledger.removable(self.active, released):
            # a crash between two of the unlinks leaves any first part of them done: each alone must be harmless
            del self.files[number]
            self.ledger.remove([number])
            self.check(f"file {number} is gone")

    def pieces(self, number: int, chance: random.Random) -> Iterator[Operation]:
        """The operations that empty a file, planned on the states of the moment, a few records at a time."""
        covers = frozenset(self.ledger.accounts[number].covers)
        records = list(self.files[number])
        future = cast("Any", None)
        while records:
            count = chance.randint(1, min(4, PIECE_RECORDS))
            part, records = records[:count], records[count:]
            piece = plan(number, 0, part, dict(self.held), covers)
            for chunk, state in piece.moves.items():
                yield Relocate(chunk, future, state, bytes(state.length), covers)
            for chunk, (one, needed) in piece.restatements.items():
                while True:
                    restate = Restate(chunk, future, number, one.dropped, one.deleted, covers, needed)
                    yield restate
                    if not isinstance(restate.outcome, ChunkState) or restate.outcome.file == number:
                        break
                    relocate = Relocate(chunk, future, restate.outcome, bytes(restate.outcome.length), covers)
                    yield relocate
                    if relocate.outcome:
                        break

    def forget(self) -> None:
        """The index is lost: the ledger is what replay makes of the files that remain."""
        whole = replayed(self.files)
        ledger = FileLedger()
        for number in sorted(self.files):
            ledger.add(number, 1, 0)
        ledger.merge(whole)
        for number, account in self.ledger.accounts.items():
            assert account.live == ledger.accounts[number].live, number
            assert account.live_bytes == ledger.accounts[number].live_bytes, number
        self.ledger = ledger


@given(st.lists(steps, max_size=60), st.integers(0, 1 << 30))
@settings(max_examples=300, deadline=None)
def test_replay_of_the_remaining_files_adds_up_to_the_same(script: list[Step], seed: int) -> None:
    play(script, seed)


@pytest.mark.parametrize("seeds", [range(start, start + 150) for start in range(0, 600, 150)], ids=str)
def test_replay_adds_up_to_the_same_after_long_histories(seeds: range) -> None:
    """Histories of few chunks in many files, where Hypothesis seldom gets; a failing seed is the reproduction."""
    for seed in seeds:
        chance = random.Random(seed)
        style = chance.choice(["busy", "calm"])
        script = [
            Step(
                seal=chance.random() < 0.3,
                unlink=chance.random() < 0.2,
                compact=chance.choice([9, 0, 1, 1, 2, 3]),
                pieces=chance.choice([0, 1, 1, 2, 5] if style == "busy" else [0, 0, 0, 99]),
                forget=chance.random() < 0.05,
                kind=chance.choice(
                    [Kind.PUT, Kind.PUT, Kind.REFERENCE, Kind.UNREFERENCE, Kind.UNREFERENCE, Kind.DELETE]
                ),
                chunk=chance.choice(CHUNKS[: 1 + seed % 3]),
                referrer=chance.choice(REFERRERS),
                replicas=chance.randint(1, 2),
            )
            for _ in range(80)
        ]
        try:
            play(script, seed)
        except AssertionError as error:
            raise AssertionError(f"seed {seed}") from error


def play(script: list[Step], seed: int) -> None:
    """Other records are written while a file is being emptied, files roll and go, the index is lost, the emptying is broken off."""
    chance = random.Random(seed)
    log = Log()
    log.seal()
    emptying: tuple[int, Iterator[Operation]] | None = None
    for moment, step in enumerate(script):
        log.moment = moment
        if step.seal:
            log.seal()
        if step.unlink:
            log.unlink()
            log.check("unlinked")
        if step.forget:
            log.forget()
            emptying = None
        if emptying is not None and emptying[0] not in log.files:
            emptying = None  # it died and went by itself
        if emptying is None and step.compact < len(log.files) - 1:
            number = sorted(log.files)[step.compact]
            emptying = (number, log.pieces(number, chance))
        if emptying is not None:
            number, pieces = emptying
            for _ in range(step.pieces):
                operation = next(pieces, None)
                if operation is not None:
                    log.decide(operation)
                    log.check("emptying")
                    continue
                if number in log.files:  # not void
                    assert log.ledger.release(number)
                    log.unlink(number)
                    assert number not in log.files
                emptying = None
                break
        log.write(records_of(step, moment, log.held[step.chunk]))
        log.check("written")
    log.forget()
    log.unlink()


def record(kind: Kind, referrer: bytes = REFERRERS[0], moment: int = 0) -> Record:
    return Record(kind, 0, 1, 10, moment, 1, 0, CHUNKS[0], referrer, b"")


def written(*files: list[Record]) -> Log:
    """A log with these records, one list a file, and an empty newest file."""
    log = Log()
    for records in files:
        log.seal()
        log.write(records)
    log.seal()
    return log


def empty(log: Log, number: int) -> None:
    for operation in log.pieces(number, random.Random(1)):
        log.decide(operation)
        log.check("emptying")
    assert log.ledger.release(number)
    log.unlink(number)
    assert number not in log.files


def test_a_reference_that_came_back_goes_on_holding_down_the_old_one() -> None:
    """Otherwise the second UNREFERENCE, which covers only the second REFERENCE, goes with it and leaves the first one standing."""
    keeper = record(Kind.PUT, REFERRERS[1])
    log = written([keeper, record(Kind.REFERENCE)], [record(Kind.UNREFERENCE)], [record(Kind.REFERENCE)])
    empty(log, 2)
    log.seal()
    log.write([record(Kind.UNREFERENCE)])
    log.seal()
    for _ in range(3):
        log.unlink()
    assert 1 in log.files
    log.check("the end")


def test_a_chunk_that_came_back_goes_on_holding_down_its_old_copy() -> None:
    keeper = Record(Kind.PUT, 0, 1, 10, 0, 1, 0, CHUNKS[1], REFERRERS[0], b"")
    log = written([keeper, record(Kind.PUT)], [record(Kind.DELETE)], [record(Kind.PUT, REFERRERS[1])])
    empty(log, 2)
    assert log.held[CHUNKS[0]] is not None
    log.seal()
    log.write([record(Kind.DELETE)])
    log.seal()
    for _ in range(3):
        log.unlink()
    assert 1 in log.files
    log.check("the end")


def test_the_grace_period_goes_on_where_it_was() -> None:
    """Neither a chunk that moves nor the record of its last reference begins it anew."""
    log = written([record(Kind.PUT)], [record(Kind.UNREFERENCE, moment=5)])
    log.moment = 1000
    for number in (2, 1):
        empty(log, number)
        log.seal()
        state = log.held[CHUNKS[0]]
        assert state is not None
        assert (state.references, state.freed) == ((), 5)
    assert log.files.keys() == {4, 5}
    empty(log, 4)
    state = log.held[CHUNKS[0]]
    assert state is not None
    assert (state.freed, state.freed_file) == (5, 5)


def test_what_is_written_again_does_not_depend_on_how_python_hashes() -> None:
    """A set of bytes has another order in each process, and the same run must write the same log."""
    referrers = [number.to_bytes(2) * 8 for number in range(1, 41)]
    change = Change({CHUNKS[0]: None})
    change.put(CHUNKS[0], 1, 64, 10, REFERRERS[0], 1, 5)
    batch = Batch(change, 3, 64, 1, 9, NO_PUTS)
    Restate(CHUNKS[0], cast("Any", None), 2, set(referrers), False, {1}, 41).decide(batch)
    data = b"".join(batch.buffers)
    written: list[bytes] = []
    position = 0
    while position < len(data):
        record = parse_header(data, position, 64 + position, 1)
        assert record is not None
        assert record.kind == Kind.UNREFERENCE
        written.append(record.referrer)
        position += record_size(record)
    assert written == referrers


@given(st.lists(steps, max_size=60))
@settings(max_examples=100, deadline=None)
def test_when_everything_is_deleted_every_sealed_file_goes(script: list[Step]) -> None:
    log = Log()
    log.seal()
    ends = [Step(True, False, 9, 0, False, Kind.DELETE, chunk, REFERRERS[0], 1) for chunk in CHUNKS]
    for moment, step in enumerate([*script, *ends]):
        if step.seal:
            log.seal()
        log.write(records_of(step, moment, log.held[step.chunk]))
    assert all(state is None for state in log.held.values())
    log.seal()
    assert log.ledger.removable(log.active) == sorted(set(log.ledger.accounts) - {log.active})


def test_a_chunk_without_references_has_none_and_a_stamp() -> None:
    change = Change({CHUNKS[0]: None})
    change.put(CHUNKS[0], 1, 64, 10, REFERRERS[0], 1, 5)
    assert change.get(CHUNKS[0]) is not None
    change.unreference(CHUNKS[0], 2, REFERRERS[0], 9)
    state = change.get(CHUNKS[0])
    assert state is not None
    assert (state.references, state.freed, state.freed_file) == ((), 9, 2)
    change.reference(CHUNKS[0], 3, REFERRERS[1], 1)
    state = change.get(CHUNKS[0])
    assert state is not None
    assert state.freed == REFERENCED
