"""One sealed log file being emptied, so that it may go: what is live in it moves to the newest file, what it cancels is cancelled anew.

The file is read from beginning to end on the readers' lane, a bounded piece at a time: headers, and the live payloads, each checked.
Before anything is written, `measure` reads through the headers once and finds what cancelling anew would take. The accounts do not tell: a
file without anything live may consist of cancelling records that are all needed, and emptying that would only write a second one like it.
What must be written follows from the records and the states of their chunks (`plan`); the writer decides each piece again
(`chunk_relocation`).
A copy that proves damaged is condemned, as by a read. If headers are damaged, what the index knows in the file is looked for at the end.

Nothing here is remembered over a stop: a file that was half emptied is emptied again. Why it may go then is said in `file_ledger`. One
evacuation at a time: what the file covers is read once, at the beginning.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, TypeVar

from node.storage.chunk_catalog import ChunkCatalog, States
from node.storage.chunk_log import LogFiles
from node.storage.chunk_operation import Condemn, Operation
from node.storage.chunk_reading import ChunkReading, Damaged
from node.storage.chunk_record import (
    FILE_HEADER_BYTES,
    HEADER_BYTES,
    WITH_PAYLOAD,
    Kind,
    Record,
    put_size,
    record_size,
)
from node.storage.chunk_relocation import RESTATED_LIMIT, Relocate, Restate
from node.storage.chunk_state import ChunkState
from node.storage.chunk_writer import Retire
from node.storage.log_scan import Gap, LogScan

R = TypeVar("R")

PIECE_BYTES = 8 * 1024 * 1024
"""Live payload at which a piece ends: two chunks of the usual size, which a put behind them waits for."""

PIECE_RECORDS = 512
"""Records in one piece: some milliseconds of a reader."""

PAGE = 1024
"""Chunks looked at in one piece of the search behind damaged headers."""


class Asking(Protocol):
    """A call of a function on the readers' lane."""

    def __call__(self, function: Callable[..., R], *arguments: Any) -> Awaitable[R]: ...


class EvacuationDoors(NamedTuple):
    """What an evacuation has of its store: `ask` repeats a question when the index is rebuilt meanwhile, `run` does not."""

    files: LogFiles
    catalog: ChunkCatalog
    reading: ChunkReading
    ask: Asking
    run: Asking
    submit: Callable[[Operation], Awaitable[Any]]
    future: Callable[[], asyncio.Future[Any]]


@dataclass(slots=True)
class Restatement:
    """What a file's small records say of one chunk."""

    dropped: set[bytes] = field(default_factory=set)
    deleted: bool = False


@dataclass(slots=True)
class Run:
    """Records in a row, each with its offset. `end`: where the next run begins; `damaged`: whether bytes among them are no record."""

    end: int
    records: list[tuple[int, Record]] = field(default_factory=list)
    damaged: bool = False


@dataclass(slots=True)
class Piece:
    """What has to be done about a run of records: chunks to relocate, and small records to write again. `end`: where the next begins."""

    end: int
    moves: dict[bytes, ChunkState] = field(default_factory=dict)
    restatements: dict[bytes, tuple[Restatement, int]] = field(default_factory=dict)
    """With the records that each may take."""
    damaged: bool = False
    """Whether there were bytes that are no record; of a piece of the search behind damage, whether more follow."""
    searched: bytes | None = None
    """The last chunk that was looked at behind damage."""


def plan(file: int, end: int, records: Iterable[tuple[int, Record]], states: States, covers: Collection[int]) -> Piece:
    """What has to be written before these records of `file` may be gone. Pure."""
    piece = Piece(end)
    small: list[Record] = []
    for offset, record in records:
        if record.kind == Kind.FILLER:
            continue
        chunk = record.chunk
        state = states[chunk]
        if record.kind in WITH_PAYLOAD and state is not None and (state.file, state.offset) == (file, offset):
            piece.moves[chunk] = state
        else:
            small.append(record)
    for chunk, one in said_of(small).items():
        state = states[chunk]
        cancels = bool(covers) and (one.deleted or (bool(one.dropped) and state is not None))
        if state is None:
            if cancels:
                piece.restatements[chunk] = (one, 1)
        elif state.file == file:
            pass  # it moves when its own record comes, and takes everything along
        else:
            here = sum(held.file == file for held in state.references)
            if cancels or here or state.freed_file == file:
                piece.restatements[chunk] = (one, here + len(one.dropped) + 1)
    return piece


def said_of(records: Iterable[Record]) -> dict[bytes, Restatement]:
    """What these records say of each chunk that they name."""
    said: dict[bytes, Restatement] = {}
    for record in records:
        one = said.setdefault(record.chunk, Restatement())
        if record.kind == Kind.UNREFERENCE:
            one.dropped.add(record.referrer)
        elif record.kind == Kind.DELETE:
            one.deleted = True
    return said


def cancelling_size(file: int, records: Iterable[Record], states: States) -> int:
    """Bytes that cancelling anew what these records of `file` cancel would take, beside what is live in it. Pure."""
    size = 0
    for chunk, one in said_of(records).items():
        state = states[chunk]
        if state is None:
            size += HEADER_BYTES if one.deleted else 0
        elif state.file == file:
            pass  # it moves, and takes everything along
        elif one.deleted or len(one.dropped) > RESTATED_LIMIT:
            size += put_size(state.length, len(state.references))
        else:
            size += HEADER_BYTES * len(one.dropped)
    return size


class FileEvacuation:
    """`measure` while it says that there is more, if what comes of it matters; `step` until `emptied`, then `release` until it says that
    the file has gone. `void`: begin anew, with a new one."""

    def __init__(self, number: int, doors: EvacuationDoors) -> None:
        self._epoch = doors.catalog.epoch  # first: what is read under a later one makes this void
        account = doors.catalog.ledger.accounts.get(number)
        self.number = number
        self.size = 0 if account is None else account.size
        self.offset = FILE_HEADER_BYTES
        """How far the file has been read."""
        self.cancelling_bytes = 0
        """What has to be written so that what the file cancels stays cancelled, as far as `measure` has got; in the end it may turn out
        less or more, since chunks go on changing."""
        self.moved_bytes = 0
        """Written for chunks that moved."""
        self.restated_bytes = 0
        """Written for small records."""
        self.emptied = False
        self._doors = doors
        self._salt = None if account is None else account.salt or None
        self._covers = frozenset(() if account is None else account.covers)
        self._measured = FILE_HEADER_BYTES
        """How far `measure` has got."""
        self._damaged = False
        self._searched: bytes | None = None
        """Behind damage: the last chunk that was looked at."""

    @property
    def gone(self) -> bool:
        return self.number not in self._doors.catalog.ledger.accounts

    @property
    def void(self) -> bool:
        """The file is gone, or the index was rebuilt: what was noted of covered files is lost."""
        return self.gone or self._doors.catalog.epoch != self._epoch

    async def measure(self) -> bool:
        """Read one bounded piece of the file, and write nothing; whether there is more to read."""
        if self._covers and self._measured < self.size:
            self._measured, found = await self._doors.ask(self._measure_piece)
            self.cancelling_bytes += found
        return bool(self._covers) and self._measured < self.size

    async def step(self) -> int:
        """One bounded piece; returns the bytes written for it. Raises NoSpace, StoreFailed, Conflict: the same piece can be tried again."""
        if self.offset < self.size:
            piece = await self._doors.ask(self._read)
        elif self._damaged:
            piece = await self._doors.ask(self._search)
        else:
            self.emptied = True
            return 0
        written = await self._write(piece)
        self._damaged = piece.damaged or (self._damaged and self.offset < self.size)
        self._searched = piece.searched
        self.offset = piece.end
        return written

    async def release(self) -> bool:
        """Let the emptied file go; False when somebody reads it, or the disk has no room for the index: try again."""
        retire = Retire(self._doors.future(), self.number, self._epoch)
        return self.number in await self._doors.submit(retire)

    async def _write(self, piece: Piece) -> int:
        """Everything of a piece, at once: the writer makes one batch of it."""
        moves = [self._move(chunk, state) for chunk, state in piece.moves.items()]
        restatements = [self._restate(chunk, one, records) for chunk, (one, records) in piece.restatements.items()]
        outcomes = await asyncio.gather(*moves, *restatements, return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome
        written = sum(outcome for outcome in outcomes if isinstance(outcome, int))
        moved = sum(outcome for outcome in outcomes[: len(moves)] if isinstance(outcome, int))
        self.moved_bytes += moved
        self.restated_bytes += written - moved
        return written

    async def _move(self, chunk: bytes, state: ChunkState) -> int:
        doors = self._doors
        try:
            payload = await doors.run(self._load, chunk, state)
        except Damaged as damaged:
            place = (state.file, state.offset)
            await doors.submit(Condemn(chunk, doors.future(), place, damaged.reason))
            return 0
        return int(await doors.submit(Relocate(chunk, doors.future(), state, payload, self._covers)))

    def _load(self, chunk: bytes, state: ChunkState) -> bytes:
        reading = self._doors.reading
        return reading.read(reading.locate(chunk, state), 0, state.length)

    async def _restate(self, chunk: bytes, one: Restatement, records: int) -> int:
        doors = self._doors
        while True:
            operation = Restate(chunk, doors.future(), self.number, one.dropped, one.deleted, self._covers, records)
            outcome = await doors.submit(operation)
            if not isinstance(outcome, ChunkState):
                return int(outcome)
            if outcome.file == self.number:
                return 0  # it moves when its own record comes, and takes everything along
            if moved := await self._move(chunk, outcome):
                return moved

    # -- on the readers' lane

    def _read(self) -> Piece:
        """The next run of records, with the states of their chunks."""
        run = self._records(self.offset, payload_limit=PIECE_BYTES)
        piece = plan(self.number, run.end, run.records, self._states(record for _, record in run.records), self._covers)
        piece.damaged = run.damaged
        return piece

    def _measure_piece(self) -> tuple[int, int]:
        """(where the next run begins, bytes that cancelling anew what is cancelled in this one takes)."""
        run = self._records(self._measured)
        records = [record for _, record in run.records if record.kind != Kind.FILLER]
        return run.end, cancelling_size(self.number, records, self._states(records))

    def _states(self, records: Iterable[Record]) -> States:
        catalog = self._doors.catalog
        return catalog.bases({record.chunk for record in records}, catalog.index.reader())

    def _records(self, start: int, payload_limit: int | None = None) -> Run:
        """A bounded run of records from an offset on. `payload_limit`: bytes of live payload at which it ends, too."""
        doors = self._doors
        run = Run(start)
        payload = 0
        descriptor = doors.files.pin(self.number)
        try:
            scan = LogScan(doors.files.disk, descriptor, self.size, self._salt, start=start, verify_from=self.size)
            for entry in scan.entries():
                if isinstance(entry, Gap):
                    run.damaged = True
                    run.end = entry.offset + entry.length
                    continue
                offset, record = entry
                run.records.append(entry)
                run.end = offset + record_size(record)
                if len(run.records) >= PIECE_RECORDS:
                    break
                if payload_limit is not None and record.kind in WITH_PAYLOAD and self._is_live(offset, record):
                    payload += record.length
                    if payload >= payload_limit:
                        break
            self._salt = scan.salt
        finally:
            doors.files.unpin(self.number)
        return run

    def _is_live(self, offset: int, record: Record) -> bool:
        doors = self._doors
        state = doors.catalog.bases([record.chunk], doors.catalog.index.reader())[record.chunk]
        return state is not None and (state.file, state.offset) == (self.number, offset)

    def _search(self) -> Piece:
        """The next chunks that the index knows in this file."""
        doors = self._doors
        after = self._searched
        newest = doors.catalog.overlay(lambda chunk, _state: after is None or chunk > after)
        rows = dict(doors.catalog.index.reader().span(b"", after, b"\xff" * 33, PAGE))
        full = len(rows) == PAGE
        last = max(rows) if full else None
        rows.update((chunk, state) for chunk, state in newest.items() if state is not None)
        piece = Piece(self.size, damaged=full, searched=last)
        for chunk, state in rows.items():
            if newest.get(chunk, state) is None or (last is not None and chunk > last):
                continue
            here = sum(held.file == self.number for held in state.references)
            if state.file == self.number:
                piece.moves[chunk] = state
            elif here or state.freed_file == self.number:
                piece.restatements[chunk] = (Restatement(), here + 1)
        return piece
