"""What can be asked of the store's writer, and how a batch of it becomes records.

`Batch` is the critical section: it takes operations in order, decides each on the state left by the ones before it, and collects
the records to append and the effects they will have (`Change`). It does no I/O and changes nothing outside itself, so it can
be thrown away and made again without the puts when the disk turns out to be full.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from cluster.errors import NoSpace
from cluster.rpc.message import Buffer
from node.storage.chunk_index import Damage
from node.storage.chunk_reading import Position
from node.storage.chunk_record import (
    DAMAGED,
    MOVE_REFERENCES_LIMIT,
    Kind,
    checksum_table,
    pack_header,
    pack_references,
    put_size,
)
from node.storage.chunk_state import REFERENCED, Change, ChunkState

JOIN_LIMIT = 16 * 1024
"""Payloads up to this are copied next to their header: cheaper than two more buffers in the system call."""

_PADDING = [bytes(count) for count in range(8)]


class Operation:
    """One request to the writer; `future` belongs to the event loop, `outcome` is filled in by the writer."""

    __slots__ = ("chunk", "future", "moved", "outcome", "position")

    def __init__(self, chunk: bytes, future: asyncio.Future[Any]) -> None:
        self.chunk = chunk
        self.future = future
        self.outcome: Any = None
        """The answer; an exception is raised to the caller."""
        self.position: Position | None = None
        """Where the chunk is now, for the loop's cache."""
        self.moved = False
        """Whether what the loop's cache knows of the chunk is void."""

    @property
    def size(self) -> int:
        """Bytes in the log, at most."""
        return 128

    @property
    def given_up(self) -> bool:
        """Whether its caller went away before it was answered. Any thread: a moment later it may be so."""
        return self.future.cancelled()

    def decide(self, batch: Batch) -> None:
        """Set `outcome` and add the records it takes."""
        raise NotImplementedError


class Put(Operation):
    """Keep a payload. The outcome is None, or the ChunkState of a copy that is there and must be verified before asking again.

    One that was given up is dropped if the writer has not begun with it: nobody was told that it is kept. What is queued behind it is
    decided on the state without it, as if it had never come."""

    __slots__ = ("checked", "fault", "payload", "referrer", "repair", "replicas")

    def __init__(
        self,
        chunk: bytes,
        future: asyncio.Future[Any],
        payload: Buffer,
        referrer: bytes,
        replicas: int,
        checked: tuple[int, int] | None = None,
        fault: str | None = None,
        *,
        repair: bool = False,
    ) -> None:
        super().__init__(chunk, future)
        self.payload = payload
        self.referrer = referrer
        self.replicas = replicas
        self.checked = checked
        """File and offset of the copy whose bytes were looked at."""
        self.fault = fault
        """What was wrong with them, None if nothing."""
        self.repair = repair

    @property
    def size(self) -> int:
        return put_size(len(self.payload))

    def decide(self, batch: Batch) -> None:
        state = batch.change.get(self.chunk)
        if state is None:
            self._write(batch)
        elif (state.file == batch.file and state.offset >= batch.start) or (
            self.fault is None and self.checked == (state.file, state.offset)
        ):
            batch.reference(self.chunk, state, self.referrer, self.replicas)
            self.outcome = None
        elif self.checked == (state.file, state.offset):
            if batch.admit(put_size(len(self.payload), len(state.references) + 1), repair=self.repair):
                self.moved = True
                batch.set_aside(self.chunk, state, self.fault or "")
                kept = [(held.referrer, held.replicas) for held in state.references if held.referrer != self.referrer]
                self.position = batch.move(self.chunk, self.payload, [(self.referrer, self.replicas), *kept])
                self.outcome = None
            else:
                self.outcome = batch.no_space()
        else:
            self.outcome = state

    def _write(self, batch: Batch) -> None:
        if batch.admit(put_size(len(self.payload)), repair=self.repair):
            self.position = batch.put(self.chunk, self.payload, self.referrer, self.replicas)
            self.outcome = None
        else:
            self.outcome = batch.no_space()


class AddReference(Operation):
    """The outcome says whether the chunk is held."""

    __slots__ = ("referrer", "replicas")

    def __init__(self, chunk: bytes, future: asyncio.Future[Any], referrer: bytes, replicas: int) -> None:
        super().__init__(chunk, future)
        self.referrer = referrer
        self.replicas = replicas

    def decide(self, batch: Batch) -> None:
        state = batch.change.get(self.chunk)
        if state is not None:
            batch.reference(self.chunk, state, self.referrer, self.replicas)
        self.outcome = state is not None


class DropReference(Operation):
    """The outcome says whether there was one."""

    __slots__ = ("referrer",)

    def __init__(self, chunk: bytes, future: asyncio.Future[Any], referrer: bytes) -> None:
        super().__init__(chunk, future)
        self.referrer = referrer

    def decide(self, batch: Batch) -> None:
        state = batch.change.get(self.chunk)
        self.outcome = state is not None and state.reference(self.referrer) is not None
        if self.outcome:
            batch.drop_reference(self.chunk, self.referrer)


class Delete(Operation):
    """Delete a chunk whatever refers to it. The outcome says whether it was held."""

    __slots__ = ()

    def decide(self, batch: Batch) -> None:
        state = batch.change.get(self.chunk)
        self.outcome = state is not None and self._applies(state)
        if state is not None and self.outcome:
            self.moved = True
            self._delete(batch, state)

    def _applies(self, state: ChunkState) -> bool:
        return True

    def _delete(self, batch: Batch, state: ChunkState) -> None:
        batch.delete(self.chunk)


class Expire(Delete):
    """Delete a chunk if it has had no references since the store's age `until_ms` or longer."""

    __slots__ = ("until_ms",)

    def __init__(self, chunk: bytes, future: asyncio.Future[Any], until_ms: int) -> None:
        super().__init__(chunk, future)
        self.until_ms = until_ms

    def _applies(self, state: ChunkState) -> bool:
        return REFERENCED < state.freed <= self.until_ms


class Condemn(Delete):
    """Set a chunk aside whose copy at (file, offset) was found damaged, if that is still the copy."""

    __slots__ = ("fault", "place")

    def __init__(self, chunk: bytes, future: asyncio.Future[Any], place: tuple[int, int], fault: str) -> None:
        super().__init__(chunk, future)
        self.place = place
        self.fault = fault

    def _applies(self, state: ChunkState) -> bool:
        return (state.file, state.offset) == self.place

    def _delete(self, batch: Batch, state: ChunkState) -> None:
        batch.set_aside(self.chunk, state, self.fault)


class Room(NamedTuple):
    """Bytes that a batch may take: for users' puts, and for puts that repair. Everything else is bound by the disk alone, except that
    chunks are moved only if `moves`."""

    puts: int
    repairs: int
    moves: bool = True


NO_PUTS = Room(0, 0)
NO_MOVES = Room(0, 0, moves=False)


class Batch:
    """Records to be appended at `start` of log file `file`, and their effects."""

    def __init__(self, change: Change, file: int, start: int, salt: int, stamp: int, room: Room) -> None:
        self.change = change
        self.file = file
        self.start = start
        self.buffers: list[Buffer] = []
        self.size = 0
        self.puts = 0
        self.damages: list[Damage] = []
        self._salt = salt
        self._stamp = stamp
        self._room = room

    def admit(self, size: int, *, repair: bool) -> bool:
        """Whether a put of this size fits beside what the batch has already."""
        return size <= (self._room.repairs if repair else self._room.puts) - self.size

    @property
    def moves(self) -> bool:
        """Whether chunks may be moved."""
        return self._room.moves

    def no_space(self) -> NoSpace:
        return NoSpace("the disk is full up to its reserve: nothing was stored; free space or add a node")

    def put(self, chunk: bytes, payload: Buffer, referrer: bytes, replicas: int) -> Position:
        length = len(payload)
        table = checksum_table(payload)
        offset = self.start + self.size
        header = pack_header(
            Kind.PUT, offset, self.start, self._salt, self._stamp, chunk, referrer, replicas, 0, length, table
        )
        self._append_payload(header, payload)
        self.puts += 1
        self.change.put(chunk, self.file, offset, length, referrer, replicas, self._stamp)
        return Position(self.file, offset + len(header), length, table)

    def move(
        self, chunk: bytes, payload: Buffer, references: Sequence[tuple[bytes, int]], stamp: int | None = None
    ) -> Position:
        """Bytes and references anew, as one record that makes void what was said of the chunk before. `stamp`: of the age when the
        last reference went, None: now. What one record can't hold of the references follows it."""
        length = len(payload)
        table = checksum_table(payload)
        offset = self.start + self.size
        inside = references[:MOVE_REFERENCES_LIMIT]
        packed = table + pack_references(inside)
        if stamp is None:
            stamp = self._stamp
        header = pack_header(
            Kind.MOVE,
            offset,
            self.start,
            self._salt,
            stamp,
            chunk,
            length=length,
            table=packed,
            references=len(inside),
        )
        self._append_payload(header, payload)
        self.change.move(chunk, self.file, offset, length, inside, stamp)
        for referrer, replicas in references[MOVE_REFERENCES_LIMIT:]:
            self.add_reference(chunk, referrer, replicas)
        return Position(self.file, offset + len(header), length, table)

    def _append_payload(self, header: bytes, payload: Buffer) -> None:
        length = len(payload)
        padding = _PADDING[-(len(header) + length) % 8]
        if length <= JOIN_LIMIT:
            self.buffers.append(b"".join((header, payload, padding)))
        else:
            self.buffers.append(header)
            self.buffers.append(payload)
            if padding:
                self.buffers.append(padding)
        self.size += len(header) + length + len(padding)

    def reference(self, chunk: bytes, state: ChunkState, referrer: bytes, replicas: int) -> None:
        """A reference as wanted; no record if it is there already."""
        held = state.reference(referrer)
        if held is None or held.replicas != replicas:
            self.add_reference(chunk, referrer, replicas)

    def add_reference(self, chunk: bytes, referrer: bytes, replicas: int) -> None:
        self._append(Kind.REFERENCE, chunk, referrer, replicas)
        self.change.reference(chunk, self.file, referrer, replicas)

    def drop_reference(self, chunk: bytes, referrer: bytes, stamp: int | None = None) -> None:
        """`stamp`: of the age when the last reference went, None: now."""
        if stamp is None:
            stamp = self._stamp
        self._append(Kind.UNREFERENCE, chunk, referrer, stamp=stamp)
        self.change.unreference(chunk, self.file, referrer, stamp)

    def set_aside(self, chunk: bytes, state: ChunkState, fault: str) -> None:
        """The copy in `state` is damaged: the chunk isn't held any more."""
        self.damages.append(Damage(state.file, state.offset, put_size(state.length), chunk, fault))
        self.delete(chunk, DAMAGED)

    def delete(self, chunk: bytes, flags: int = 0) -> None:
        self._append(Kind.DELETE, chunk, flags=flags)
        self.change.delete(chunk, self.file)

    def cover(self, older: Iterable[int]) -> None:
        """This file's records do the work of those that cancel something in these older files."""
        self.change.covers.update((self.file, number) for number in older if number != self.file)

    def _append(
        self,
        kind: Kind,
        chunk: bytes,
        referrer: bytes = bytes(16),
        replicas: int = 0,
        flags: int = 0,
        stamp: int | None = None,
    ) -> None:
        offset = self.start + self.size
        if stamp is None:
            stamp = self._stamp
        header = pack_header(kind, offset, self.start, self._salt, stamp, chunk, referrer, replicas, flags)
        self.buffers.append(header)
        self.size += len(header)
