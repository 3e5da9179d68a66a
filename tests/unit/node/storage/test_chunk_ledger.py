"""Unlinking dead log files never changes what the log adds up to: random records, any file boundaries, replay of what remains."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from node.storage.chunk_record import Kind, Record
from node.storage.chunk_state import REFERENCED, Change, ChunkState
from node.storage.file_ledger import FileLedger

CHUNKS = [bytes([number]) * 32 for number in range(3)]
REFERRERS = [bytes([number]) * 16 for number in range(2)]


@dataclass(frozen=True)
class Step:
    """A record to write if it makes sense to, after sealing the file and unlinking as asked."""

    seal: bool
    unlink: bool
    kind: Kind
    chunk: bytes
    referrer: bytes
    replicas: int


steps = st.builds(
    Step,
    seal=st.booleans(),
    unlink=st.booleans(),
    kind=st.sampled_from([Kind.PUT, Kind.REFERENCE, Kind.UNREFERENCE, Kind.UNREFERENCE, Kind.DELETE]),
    chunk=st.sampled_from(CHUNKS),
    referrer=st.sampled_from(REFERRERS),
    replicas=st.integers(1, 2),
)
Files = dict[int, list[tuple[int, Record]]]


def records_of(step: Step, moment: int, state: ChunkState | None) -> list[Record]:
    """A PUT over a held copy moves it: all its references are written again behind it."""
    records = [Record(step.kind, 0, step.replicas, 10, moment, 1, 0, step.chunk, step.referrer, b"")]
    if step.kind == Kind.PUT and state is not None:
        records += [
            Record(Kind.REFERENCE, 0, held.replicas, 0, moment, 1, 0, step.chunk, held.referrer, b"")
            for held in state.references
            if held.referrer != step.referrer
        ]
    return records


def replayed(files: Files) -> Change:
    change = Change(dict.fromkeys(CHUNKS))
    for number in sorted(files):
        for offset, record in files[number]:
            change.apply(record, number, offset)
    return change


def states(change: Change) -> dict[bytes, ChunkState]:
    return {chunk: state for chunk in CHUNKS if (state := change.get(chunk)) is not None}


@given(st.lists(steps, max_size=60))
@settings(max_examples=400, deadline=None)
def test_replay_of_the_remaining_files_adds_up_to_the_same(script: list[Step]) -> None:
    ledger = FileLedger()
    files: Files = {1: []}
    ledger.add(1, 1, 0)
    held: dict[bytes, ChunkState | None] = dict.fromkeys(CHUNKS)
    active = 1
    for moment, step in enumerate(script):
        if step.seal:
            active += 1
            files[active] = []
            ledger.add(active, 1, 0)
        if step.unlink:
            for number in ledger.removable(active):
                # a crash between two of the unlinks leaves any first part of them done: each alone must be harmless
                del files[number]
                ledger.remove([number])
                assert states(replayed(files)) == {chunk: state for chunk, state in held.items() if state is not None}
            ledger.check()
        change = Change(dict(held))
        for record in records_of(step, moment, held[step.chunk]):
            change.apply(record, active, moment)
            files[active].append((moment, record))
        ledger.merge(change)
        held.update(change.states)
    whole = replayed(files)
    assert states(whole) == {chunk: state for chunk, state in held.items() if state is not None}
    for number, account in ledger.accounts.items():
        assert account.live == whole.live.get(number, 0)
        assert account.live_bytes == whole.live_bytes.get(number, 0)


@given(st.lists(steps, max_size=60))
@settings(max_examples=100, deadline=None)
def test_when_everything_is_deleted_every_sealed_file_goes(script: list[Step]) -> None:
    ledger = FileLedger()
    ledger.add(1, 1, 0)
    held: dict[bytes, ChunkState | None] = dict.fromkeys(CHUNKS)
    active = 1
    ends = [Step(True, False, Kind.DELETE, chunk, REFERRERS[0], 1) for chunk in CHUNKS]
    for moment, step in enumerate([*script, *ends]):
        if step.seal:
            active += 1
            ledger.add(active, 1, 0)
        change = Change(dict(held))
        change.apply(
            Record(step.kind, 0, step.replicas, 10, moment, 1, 0, step.chunk, step.referrer, b""), active, moment
        )
        ledger.merge(change)
        held.update(change.states)
    assert all(state is None for state in held.values())
    assert ledger.removable(active) == sorted(set(ledger.accounts) - {active})


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
