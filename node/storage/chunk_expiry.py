"""The job that gives space back: deletes chunks whose grace period is over, then unlinks log files that nothing needs.

One bounded unit of work per `run_once`; who runs it decides how often.
"""

from __future__ import annotations

from cluster.errors import HoldfastError
from node.storage.chunk_store import LogChunkStore

EXPIRY_INTERVAL_S = 5.0
"""Between looks for chunks whose grace period is over."""

SHORT_INTERVAL_S = 0.5
"""The same, when space is short. The grace period is kept: readers rely on it."""

EXPIRY_BATCH = 1024
"""Chunks deleted per unit of work: one or two group commits."""


class ChunkExpiry:
    """`queue_length`: chunks that wait for their grace period to end. `waiting_for`: why nothing is done now, None while there is more."""

    name = "chunk-expiry"
    pause_s = 0.0

    def __init__(self, store: LogChunkStore) -> None:
        self._store = store
        self.queue_length = 0
        self.last_error: str | None = None
        self.waiting_for: str | None = None
        self.deleted = 0
        self.unlinked = 0

    @property
    def interval_s(self) -> float:
        return SHORT_INTERVAL_S if self._store.short_of_space else EXPIRY_INTERVAL_S

    async def run_once(self) -> bool:
        """One unit of work; whether there is more to do at once. Errors are kept in `last_error`, not raised."""
        try:
            deleted = await self._store.expire(EXPIRY_BATCH)
            self.deleted += deleted
            more = deleted == EXPIRY_BATCH
            if not more:
                self.unlinked += await self._store.unlink_dead_files()
            self.queue_length = await self._store.freed_count()
        except HoldfastError as error:
            self.last_error = error.message
            self.waiting_for = "the chunk store to work again"
            return False
        self.last_error = None
        if more:
            self.waiting_for = None
        elif self.queue_length:
            self.waiting_for = "the grace period of chunks without references"
        else:
            self.waiting_for = "chunks without references"
        return more
