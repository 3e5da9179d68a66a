"""Questions to a chunk store about many chunks at once: what the index says, and what is newer and only in memory on top of it.

Everything here runs on the readers' lane and blocks on SQLite; it changes nothing. `LogChunkStore` asks again when the index was built anew
in the meantime, so that an answer is of one catalog.
"""

from __future__ import annotations

from collections.abc import Sequence
from heapq import nsmallest

from cluster.chunks.store import CHUNK_ID_BYTES, ChunkEntry, Reference
from node.storage.chunk_catalog import ABSENT, PREFIX_BYTES, ChunkCatalog, merged_page
from node.storage.chunk_index import ChunkIndex
from node.storage.chunk_state import REFERENCED, ChunkState


class ChunkLookup:
    """Raises IndexDamaged, IndexFull, IndexUnavailable."""

    def __init__(self, catalog: ChunkCatalog, index: ChunkIndex) -> None:
        self._catalog = catalog
        self._index = index

    def hold(self, chunks: Sequence[bytes]) -> list[bool]:
        states = self._catalog.bases(chunks, self._index.reader())
        return [states[chunk] is not None for chunk in chunks]

    def list_span(self, first: bytes, below: bytes, after: bytes | None, limit: int) -> list[ChunkEntry]:
        def inside(chunk: bytes, _: ChunkState | None) -> bool:
            return first <= chunk < below and (after is None or chunk > after)

        prefix = first[:PREFIX_BYTES]
        if below[:PREFIX_BYTES] == prefix or below == _following(prefix):
            newest = {chunk: state for chunk, state in self._catalog.overlay_of(prefix).items() if inside(chunk, state)}
        else:
            newest = self._catalog.overlay(inside)
        reader = self._index.reader()
        states: dict[bytes, ChunkState] = {chunk: state for chunk, state in newest.items() if state is not None}

        def fetch(beyond: bytes | None, wanted: int) -> list[bytes]:
            rows = reader.span(first, beyond, below, wanted)
            states.update((chunk, state) for chunk, state in rows if chunk not in newest)
            return [chunk for chunk, _ in rows]

        page = merged_page(fetch, newest.__contains__, sorted(states), after, limit)
        return [_entry(chunk, states[chunk]) for chunk in page]

    def list_referrer(self, referrer: bytes, after: bytes | None, limit: int) -> list[bytes]:
        def inside(chunk: bytes, _: ChunkState | None) -> bool:
            return after is None or chunk > after

        newest = self._catalog.overlay(inside)
        extra = sorted(
            chunk for chunk, state in newest.items() if state is not None and state.reference(referrer) is not None
        )
        reader = self._index.reader()

        def fetch(beyond: bytes | None, wanted: int) -> list[bytes]:
            return reader.of_referrer(referrer, beyond or b"", wanted)

        return merged_page(fetch, newest.__contains__, extra, after, limit)

    def list_references(self, after: tuple[bytes, bytes] | None, limit: int) -> list[tuple[bytes, bytes]]:
        newest = self._catalog.overlay(lambda _chunk, _state: True)
        first = after or (b"", b"")
        extra = nsmallest(
            limit,
            (
                pair
                for chunk, state in newest.items()
                if state is not None
                for held in state.references
                if (pair := (held.referrer, chunk)) > first
            ),
        )
        reader = self._index.reader()

        def fetch(beyond: tuple[bytes, bytes] | None, wanted: int) -> list[tuple[bytes, bytes]]:
            return reader.pairs(beyond or (b"", b""), wanted)

        return merged_page(fetch, lambda pair: pair[1] in newest, extra, after, limit)

    def describe(self, chunks: Sequence[bytes]) -> list[ChunkEntry | None]:
        states = self._catalog.bases(chunks, self._index.reader())
        return [None if (state := states[chunk]) is None else _entry(chunk, state) for chunk in chunks]

    def freed(self, until_ms: int, limit: int) -> list[bytes]:
        newest = self._catalog.overlay(lambda _chunk, _state: True)
        due = sorted(
            (state.freed, chunk)
            for chunk, state in newest.items()
            if state is not None and REFERENCED < state.freed <= until_ms
        )
        found = [chunk for _, chunk in due[:limit]]
        if len(found) < limit:
            rows = self._index.reader().freed(until_ms, limit + len(newest))
            found += [chunk for chunk in rows if chunk not in newest][: limit - len(found)]
        return found

    def count_freed(self) -> int:
        newest = self._catalog.overlay(lambda _chunk, _state: True)
        reader = self._index.reader()
        indexed = reader.find_many(list(newest))
        lapsed = sum(state is not None and state.freed != REFERENCED for state in indexed.values())
        waiting = sum(state is not None and state.freed != REFERENCED for state in newest.values())
        return reader.freed_count() - lapsed + waiting

    def look_up(self, chunk: bytes) -> ChunkState | None:
        state = self._catalog.find(chunk)
        if state is ABSENT:
            return self._index.reader().find(chunk)
        assert state is None or isinstance(state, ChunkState)
        return state


def _following(prefix: bytes) -> bytes | None:
    """The smallest chunk id beyond all that begin with the prefix; None if there are no greater ones."""
    number = int.from_bytes(prefix) + 1
    return (
        (number << 8 * (CHUNK_ID_BYTES - len(prefix))).to_bytes(CHUNK_ID_BYTES)
        if number >> 8 * len(prefix) == 0
        else None
    )


def _entry(chunk: bytes, state: ChunkState) -> ChunkEntry:
    references = tuple([Reference(held.referrer, held.replicas) for held in state.references])
    return ChunkEntry(chunk, state.length, references)
