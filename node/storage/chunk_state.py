"""What a chunk's records add up to, and how each record changes it. Pure; shared by the writer and by replay of the log.

`Change` is the staging area: it takes the effects of records in log order on top of states looked up before, and is merged into
the catalog only once the records are durable. Beside the states it tells which records keep their files alive, and which files
lean on which others (see `file_ledger`), and what the trees over the references gain and lose (see `chunk_trees`).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from operator import itemgetter
from typing import NamedTuple

from cluster.merkle.digest_tree import MAX_BITS
from cluster.merkle.identity import chunk_leaf, reference_digest
from node.storage.chunk_record import Kind, Record, moved_references

LeafChanges = dict[int, tuple[int, int]]
"""Place -> what is added to the leaf's sum and count; not reduced modulo 2^64. A *place* is a leaf in the tree of so many copies, as one
number, ``copies << MAX_BITS | leaf``: each put makes and looks up some."""

REFERENCED = -1
"""`ChunkState.freed` of a chunk that has references."""


class ReferenceState(NamedTuple):
    """A reference: who, how many copies it wants in the cluster, and the log file whose record says so."""

    referrer: bytes
    replicas: int
    file: int


_REPLICAS = itemgetter(1)


class ChunkState(NamedTuple):
    """A chunk held: where its PUT record stands (log file, offset), its payload's length in bytes, its references by ascending
    referrer, and, without any, the store's age in ms when the last went (`freed`) and the file of the record that says so."""

    file: int
    offset: int
    length: int
    references: tuple[ReferenceState, ...]
    freed: int = REFERENCED
    freed_file: int = 0

    def reference(self, referrer: bytes) -> ReferenceState | None:
        references = self.references
        position = place_of(references, referrer)
        held = references[position] if position < len(references) else None
        return held if held is not None and held.referrer == referrer else None


class Change:
    """Effects of a run of records. `bases` must hold the state (or None) of every chunk that they name."""

    def __init__(self, bases: dict[bytes, ChunkState | None]) -> None:
        self.bases = bases
        self.states: dict[bytes, ChunkState | None] = {}
        self.live: dict[int, int] = {}
        """Log file -> change of the number of its records that still say something."""
        self.live_bytes: dict[int, int] = {}
        """Log file -> change of the payload bytes in it that are held."""
        self.covers: set[tuple[int, int]] = set()
        """(file, older file): a record of the first cancels or overrides one of the second."""
        self.leaves: LeafChanges = {}
        self.chunks = 0
        self.bytes = 0

    def get(self, chunk: bytes) -> ChunkState | None:
        """The state after the records so far."""
        return self.states[chunk] if chunk in self.states else self.bases[chunk]

    def apply(self, record: Record, file: int, offset: int) -> None:
        """The effect of a record read from the log. One about a chunk or reference that isn't there has none."""
        if record.kind == Kind.PUT:
            self.put(record.chunk, file, offset, record.length, record.referrer, record.replicas, record.stamp)
        elif record.kind == Kind.REFERENCE:
            self.reference(record.chunk, file, record.referrer, record.replicas)
        elif record.kind == Kind.UNREFERENCE:
            self.unreference(record.chunk, file, record.referrer, record.stamp)
        elif record.kind == Kind.DELETE:
            self.delete(record.chunk, file)
        elif record.kind == Kind.MOVE:
            self.move(record.chunk, file, offset, record.length, moved_references(record), record.stamp)

    def put(
        self, chunk: bytes, file: int, offset: int, length: int, referrer: bytes, replicas: int, stamp: int
    ) -> None:
        """The chunk's bytes are at (file, offset) from now on; `replicas` 0: no reference comes with it.

        References to an earlier copy are kept. Nobody writes a PUT over a held copy (that is what `move` is for: references must not hang
        on a record of which nobody keeps account); replay meets one where the DELETE between went with its file, see `file_ledger`.
        """
        old = self.get(chunk)
        self._alive(file, 1)
        self.live_bytes[file] = self.live_bytes.get(file, 0) + length
        self.bytes += length
        if old is None:
            self.chunks += 1
            if replicas:
                self._alive(file, 1)
                self.states[chunk] = ChunkState(file, offset, length, (ReferenceState(referrer, replicas, file),))
                self._leaf(chunk, replicas, reference_digest(chunk, referrer, replicas), 1)
            else:
                self._alive(file, 1)
                self.states[chunk] = ChunkState(file, offset, length, (), stamp, file)
            return
        self._alive(old.file, -1)
        self.live_bytes[old.file] = self.live_bytes.get(old.file, 0) - old.length
        self.bytes -= old.length
        self._cover(file, old.file)
        self.states[chunk] = old._replace(file=file, offset=offset, length=length)
        if replicas:
            self.reference(chunk, file, referrer, replicas)

    def reference(self, chunk: bytes, file: int, referrer: bytes, replicas: int) -> None:
        """Add the reference, or replace the same referrer's."""
        state = self.get(chunk)
        if state is None:
            return
        before = state.references
        position = following = place_of(before, referrer)
        replaced = 0
        if position < len(before) and (held := before[position]).referrer == referrer:
            following += 1
            replaced = held.replicas
            self._alive(held.file, -1)
            self._cover(file, held.file)
        if state.freed != REFERENCED:
            self._alive(state.freed_file, -1)
        self._alive(file, 1)
        # Sums of tuples: unpacking them into a new one takes several times as long when there are many.
        kept = before[:position] + (ReferenceState(referrer, replicas, file),) + before[following:]  # noqa: RUF005
        self.states[chunk] = ChunkState(state.file, state.offset, state.length, kept)
        if replaced != replicas:
            self._referred(chunk, before, kept, referrer, replaced, replicas)

    def unreference(self, chunk: bytes, file: int, referrer: bytes, stamp: int) -> None:
        """Drop the reference. With the last one the grace period begins, at the store's age `stamp`.

        A record about a reference that isn't there may be all that is left of a later one, its file gone: if the chunk has none, the
        grace period begins anew.
        """
        state = self.get(chunk)
        if state is None:
            return
        held = state.reference(referrer)
        if held is None:
            if state.freed != REFERENCED:
                self._alive(state.freed_file, -1)
                self._alive(file, 1)
                self.states[chunk] = state._replace(freed=stamp, freed_file=file)
            return
        self._alive(held.file, -1)
        self._cover(file, held.file)
        position = place_of(state.references, referrer)
        kept = state.references[:position] + state.references[position + 1 :]
        if kept:
            self.states[chunk] = state._replace(references=kept)
        else:
            self._alive(file, 1)  # this record says when the grace period began
            self.states[chunk] = ChunkState(state.file, state.offset, state.length, (), stamp, file)
        self._referred(chunk, state.references, kept, referrer, held.replicas, 0)

    def delete(self, chunk: bytes, file: int) -> None:
        """Chunk and references are gone."""
        state = self.get(chunk)
        if state is None:
            return
        self._alive(state.file, -1)
        self._cover(file, state.file)
        self.live_bytes[state.file] = self.live_bytes.get(state.file, 0) - state.length
        for held in state.references:
            self._alive(held.file, -1)
            self._cover(file, held.file)
        if state.freed != REFERENCED:
            self._alive(state.freed_file, -1)
        self.chunks -= 1
        self.bytes -= state.length
        self.states[chunk] = None
        if state.references:
            self._leaf(chunk, copies_of(state.references), -digest_of(chunk, state.references), -1)

    def _referred(
        self,
        chunk: bytes,
        before: tuple[ReferenceState, ...],
        after: tuple[ReferenceState, ...],
        referrer: bytes,
        replaced: int,
        replicas: int,
    ) -> None:
        """The referrer's reference changed from ``replaced`` copies to ``replicas`` (0: there is none). As long as the chunk stays
        in its tree no other reference is looked at: a chunk may have thousands."""
        was = copies_of(before)
        stays = replaced < was or any(held.replicas == was for held in after)  # found at the first one, mostly
        now = max(was, replicas) if stays else copies_of(after)
        if was == now:
            gained = reference_digest(chunk, referrer, replicas) if replicas else 0
            lost = reference_digest(chunk, referrer, replaced) if replaced else 0
            self._leaf(chunk, now, gained - lost, 0)
            return
        if was:
            self._leaf(chunk, was, -digest_of(chunk, before), -1)
        if now:
            self._leaf(chunk, now, digest_of(chunk, after), 1)

    def _leaf(self, chunk: bytes, copies: int, digest: int, count: int) -> None:
        place = copies << MAX_BITS | chunk_leaf(chunk)
        sums = self.leaves.get(place)
        self.leaves[place] = (digest, count) if sums is None else (sums[0] + digest, sums[1] + count)

    def move(
        self, chunk: bytes, file: int, offset: int, length: int, references: Sequence[tuple[bytes, int]], stamp: int
    ) -> None:
        """The chunk's bytes are at (file, offset), and it has these references (referrer, replicas) and no others; without any its
        grace period began at the store's age `stamp`. Whatever was said before is void, even that it is not held."""
        self.delete(chunk, file)
        self.put(chunk, file, offset, length, b"", 0, stamp)
        if references:
            self._alive(file, len(references) - 1)  # `put` has counted itself as the record that began the grace period
            held = tuple(sorted(ReferenceState(referrer, replicas, file) for referrer, replicas in references))
            self.states[chunk] = ChunkState(file, offset, length, held)
            self._leaf(chunk, copies_of(held), digest_of(chunk, held), 1)

    def _alive(self, file: int, count: int) -> None:
        self.live[file] = self.live.get(file, 0) + count

    def _cover(self, file: int, older: int) -> None:
        if file != older:
            self.covers.add((file, older))


def place_of(references: tuple[ReferenceState, ...], referrer: bytes) -> int:
    """Where the referrer's reference is, or would be. A chunk may have many thousands: none of what is done for one of them may look at
    each of the others more than it must."""
    return bisect_left(references, (referrer,))


def copies_of(references: tuple[ReferenceState, ...]) -> int:
    """How many copies a chunk with these references has in the cluster: the most that one of them wants; 0 without any."""
    return max(map(_REPLICAS, references), default=0)


def digest_of(chunk: bytes, references: tuple[ReferenceState, ...]) -> int:
    """The sum of the references' digests, not reduced."""
    return sum([reference_digest(chunk, held.referrer, held.replicas) for held in references])
