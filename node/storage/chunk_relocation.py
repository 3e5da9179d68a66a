"""What compaction asks of the writer, to empty a log file: chunks moved, and small records written again. See `file_ledger` for why.

Decided in the batch like every operation, on the state of that moment: nothing here relies on what was seen when the file was read. Each
record that comes of it repeats what is so anyway, so that any part of a batch may be torn off as long as the emptied file is there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import Any

from cluster.errors import Conflict
from cluster.rpc.message import Buffer
from node.storage.chunk_operation import Batch, Operation
from node.storage.chunk_record import HEADER_BYTES, MOVE_REFERENCES_LIMIT, put_size
from node.storage.chunk_state import REFERENCED, ChunkState, ReferenceState

NO_REFERRER = bytes(16)

RESTATED_LIMIT = 64
"""References of one chunk that are written again one by one. More of them go along in a MOVE: each record of its own costs the writer a
look at all the chunk's references, of which there may be a hundred thousand."""


class Relocate(Operation):
    """Write a chunk's bytes (read from `place`, checked) and references anew, if they still are at that place. The outcome is the bytes
    written, 0 if it has changed meanwhile; Conflict if the chunk has too many references to be moved. `covers`: the older files that the
    emptied file covers."""

    __slots__ = ("_size", "covers", "payload", "place")

    def __init__(
        self,
        chunk: bytes,
        future: asyncio.Future[Any],
        state: ChunkState,
        payload: Buffer,
        covers: Collection[int],
    ) -> None:
        super().__init__(chunk, future)
        self.place = (state.file, state.offset)
        self.payload = payload
        self.covers = covers
        self._size = put_size(len(payload), len(state.references))

    @property
    def size(self) -> int:
        return self._size

    def decide(self, batch: Batch) -> None:
        state = batch.change.get(self.chunk)
        self.outcome = 0
        if state is None or (state.file, state.offset) != self.place:
            return
        if len(state.references) > MOVE_REFERENCES_LIMIT:
            self.outcome = Conflict("a chunk has more references than one record holds: its log file stays")
            return
        if not batch.moves:
            self.outcome = batch.no_space()
            return
        before = batch.size
        self.moved = True
        references = [(held.referrer, held.replicas) for held in state.references]
        batch.move(self.chunk, self.payload, references, None if references else state.freed)
        batch.cover(self.covers)
        self.outcome = batch.size - before


class Restate(Operation):
    """Write again what the records in log file `file` say of a chunk whose bytes are elsewhere, or nowhere.

    `dropped`: referrers of the UNREFERENCE records there; `deleted`: whether there is a DELETE; `covers`: the older files that the
    file covers, empty: its cancelling records matter no more; `records`: how many this may take. The outcome is the bytes written, or the
    chunk's state: it must be relocated instead (also when it has many references there).
    """

    __slots__ = ("covers", "deleted", "dropped", "file", "records")

    def __init__(
        self,
        chunk: bytes,
        future: asyncio.Future[Any],
        file: int,
        dropped: Collection[bytes],
        deleted: bool,
        covers: Collection[int],
        records: int,
    ) -> None:
        super().__init__(chunk, future)
        self.file = file
        self.dropped = dropped
        self.deleted = deleted
        self.covers = covers
        self.records = records

    @property
    def size(self) -> int:
        return HEADER_BYTES * self.records

    def decide(self, batch: Batch) -> None:
        state = batch.change.get(self.chunk)
        before = batch.size
        if state is None:
            if self.covers and self.deleted:
                batch.delete(self.chunk)
        elif state.file == self.file or (self.deleted and self.covers) or self._many(state):
            self.outcome = state
            return
        else:
            self._restate(batch, state)
        if batch.size != before:
            batch.cover(self.covers)
        self.outcome = batch.size - before

    def _many(self, state: ChunkState) -> bool:
        return RESTATED_LIMIT < len(state.references) <= MOVE_REFERENCES_LIMIT and (
            len(self._repeated(state)) > RESTATED_LIMIT
        )

    def _repeated(self, state: ChunkState) -> list[ReferenceState]:
        """The references that must be written again."""
        dropped = self.dropped if self.covers else ()
        return [held for held in state.references if held.file == self.file or held.referrer in dropped]

    def _restate(self, batch: Batch, state: ChunkState) -> None:
        dropped = self.dropped if self.covers else ()
        for held in self._repeated(state):
            batch.add_reference(self.chunk, held.referrer, held.replicas)
        since = None if state.freed == REFERENCED else state.freed
        gone = sorted(
            referrer for referrer in dropped if state.reference(referrer) is None
        )  # of a set: its order is no order
        if not gone and state.freed_file == self.file and since is not None:
            gone = [NO_REFERRER]
        for referrer in gone:
            batch.drop_reference(self.chunk, referrer, since)
