"""The job that reads every chunk held again, so that a copy that has rotted is found while others are whole.

It goes through the chunks in order of id, once in a period, one chunk at a time; damaged copies are set aside by the store, which tells
whoever repairs them. What is written meanwhile counts as verified when it was written. One bounded unit of work per `run_once`; who
runs it waits `interval_s` when there is nothing to do at once.

The pace comes from the ids alone: they are hashes, so the share of ids passed is the share of chunks and bytes verified, and nothing
needs to be counted. The progress is durable to `SAVE_EVERY_S` (`scrub_progress`). Wall time only paces and is shown to people; a clock that
is set makes a pass faster (never above the rate) or slower, nothing else.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, Protocol

from cluster.chunks.store import CHUNK_ID_BYTES, ChunkEntry, ChunkStatistics
from cluster.doors.clock import Clock
from cluster.errors import Corrupt, HoldfastError, NotFound
from node.storage.lanes import Lane
from node.storage.scrub_progress import ScrubFile, ScrubProgress

log = logging.getLogger(__name__)

SCRUB_PERIOD_S: Final = 14 * 24 * 3600.0
SCRUB_RATE: Final = 20 * 1024 * 1024

UNIT_CHUNKS: Final = 16
"""Chunks verified per unit of work at most, so that a stop never waits long."""

PAGE: Final = 1024
"""Chunks listed at once."""

SEEK_BYTES: Final = 64 * 1024
"""What a chunk costs at least of the rate: a disk reads so much in the time that finding the next chunk takes. Keeps small chunks
from taking a disk's every movement."""

BACKLOG_S: Final = 10.0
"""What was not done because nobody called can be caught up for so long; more would be a burst."""

PAUSE_LIMIT_S: Final = 5.0
"""Longest `interval_s`: so soon a request is noticed."""

SAVE_EVERY_S: Final = 60.0
"""Between two writes of the progress: a restart repeats no more than this."""


class Verifiable(Protocol):
    """What is asked of the store."""

    async def verify(self, chunk: bytes) -> int: ...

    async def list_partition(
        self, partition: int, bits: int, after: bytes | None, limit: int
    ) -> Sequence[ChunkEntry]: ...

    def statistics(self) -> ChunkStatistics: ...


@dataclass(frozen=True, slots=True)
class ScrubSettings:
    """``period_s``: in which each chunk is verified once. ``rate``: bytes/s that are read for it at most, even if it takes longer then."""

    period_s: float = SCRUB_PERIOD_S
    rate: int = SCRUB_RATE


def wait_s(done: float, following: float, left_s: float, work: int, rate: int) -> float:
    """Seconds from one verification, of ``work`` bytes, to the next: what the time left for the pass needs, never faster than the rate.

    ``done`` and ``following`` are the shares of all ids up to the two chunks (1 for the end of the pass).
    """
    assert 0 <= done <= following <= 1
    share = (following - done) / (1 - done) if done < 1 else 1.0
    return max(work / rate, share * max(left_s, 0.0))


def share_of(chunk: bytes | None) -> float:
    """The share of all ids up to this one; 0 for None."""
    return 0.0 if chunk is None else int.from_bytes(chunk[:6]) / (1 << 48)


class Scrubber:
    """``queue_length``: chunks left in this pass, by the share of ids left. ``interval_s``: how long `run_once` has nothing to do."""

    name = "scrub"
    pause_s = 0.0

    def __init__(self, store: Verifiable, file: ScrubFile, clock: Clock, settings: ScrubSettings, lane: Lane) -> None:
        """``lane``: for what the file has to wait for. Whoever opened it closes it."""
        assert settings.period_s > 0
        assert settings.rate > 0
        self._store = store
        self._file = file
        self._clock = clock
        self._settings = settings
        self._lane = lane
        self._progress: ScrubProgress | None = None
        self._upcoming: deque[tuple[bytes, int]] = deque()
        """Ids and lengths listed beyond the cursor."""
        self._listed_all = False
        self._due = 0.0
        self._work = 0
        """Bytes read by the last verification, for which the next has to wait."""
        self._timed = False
        """Whether `_due` is that of the next chunk."""
        self._asked = False
        self._saved: ScrubProgress | None = None
        self._save_at = 0.0
        self.queue_length = 0
        self.last_error: str | None = None
        self.waiting_for: str | None = None
        self.interval_s = 0.0
        self.passes = 0
        self.chunks_verified = 0
        self.bytes_verified = 0
        self.damaged_found = 0

    def start_now(self) -> None:
        """An operator's request: begin a pass at once and go through it at the rate. One that was requested and runs goes on."""
        self._asked = True
        self.interval_s = 0.0

    @property
    def progress(self) -> ScrubProgress | None:
        """The pass under way; None before the first `run_once`."""
        return self._progress

    @property
    def oldest_verification_s(self) -> float | None:
        """No chunk held was verified (or written) longer ago than this; None while that isn't known: after the progress was lost, until
        a pass has ended."""
        progress = self._progress
        if progress is None:
            return None
        bound = progress.began if self._at_end else progress.previous_began
        return None if bound is None else max(0.0, self._clock.wall() - bound)

    @property
    def _at_end(self) -> bool:
        return self._listed_all and not self._upcoming

    async def run_once(self) -> bool:
        """One unit of work; whether there is more to do at once. Errors are kept in `last_error`, not raised."""
        try:
            more = await self._unit()
            await self._save()
        except (HoldfastError, OSError) as error:
            self.last_error = error.message if isinstance(error, HoldfastError) else str(error)
            self.waiting_for = "chunk store and disk to work again"
            self.interval_s = PAUSE_LIMIT_S
            return False
        self.last_error = None
        return more

    async def _unit(self) -> bool:
        await self._begin()
        for _ in range(UNIT_CHUNKS):
            await self._time()
            self.interval_s = min(max(self._due - self._clock.monotonic(), 0.0), PAUSE_LIMIT_S)
            if self.interval_s:
                break
            await self._step()
        progress = self._progress
        assert progress is not None
        left = 0.0 if self._at_end else 1 - share_of(progress.cursor)
        self.queue_length = round(self._store.statistics().chunks * left)
        if not self.interval_s:
            self.waiting_for = None
            return True
        if self._at_end:
            self.waiting_for = "the next pass"
        else:
            self.waiting_for = "the rate" if progress.requested else "the pace that its period needs"
        return False

    async def _begin(self) -> None:
        """Take up the pass under way, or begin one."""
        wall = self._clock.wall()
        if self._progress is None:
            found = await self._lane.run(self._file.load)
            if found is None:  # what is held, if anything, was written nobody knows when
                found = ScrubProgress(wall, None if self._store.statistics().chunks else wall)
            self._saved = None
            self._enter(found)
        assert self._progress is not None
        self._progress = self._progress.until(wall)
        if self._asked:
            self._asked = False
            if not self._progress.requested:
                self._enter(replace(self._progress, began=wall, cursor=None, requested=True))

    def _enter(self, progress: ScrubProgress) -> None:
        """Go on from here, now."""
        log.info(
            "scrub: %s a pass%s",
            "going on with" if progress.cursor else "beginning",
            " on request" * progress.requested,
        )
        self._progress = progress
        self._upcoming.clear()
        self._listed_all = False
        self._due = self._clock.monotonic()
        self._work = 0
        self._timed = False
        self._save_at = self._due

    async def _time(self) -> None:
        """Find out when the next step is due."""
        progress = self._progress
        assert progress is not None
        if not self._upcoming and not self._listed_all:
            entries = await self._store.list_partition(0, 0, progress.cursor, PAGE)
            self._upcoming.extend((entry.chunk, entry.length) for entry in entries)
            self._listed_all = len(entries) < PAGE
        if self._timed:
            return
        following = share_of(self._upcoming[0][0]) if self._upcoming else 1.0
        left_s = 0.0 if progress.requested else progress.began + self._settings.period_s - self._clock.wall()
        wait = wait_s(share_of(progress.cursor), following, left_s, self._work, self._settings.rate)
        self._due = max(self._due, self._clock.monotonic() - BACKLOG_S) + wait
        self._timed = True

    async def _step(self) -> None:
        """Verify the next chunk, or end the pass."""
        progress = self._progress
        assert progress is not None
        self._timed = False
        if not self._upcoming:
            self.passes += 1
            log.info(
                "scrub: a pass is over: chunks=%d bytes=%d damaged=%d since the start",
                self.chunks_verified,
                self.bytes_verified,
                self.damaged_found,
            )
            self._enter(ScrubProgress(self._clock.wall(), progress.began))
            return
        chunk, length = self._upcoming[0]
        self._work = max(length, SEEK_BYTES)
        try:
            self.bytes_verified += await self._store.verify(chunk)
            self.chunks_verified += 1
        except NotFound:
            self._work = 0  # deleted since it was listed
        except Corrupt as error:
            self.damaged_found += 1
            log.warning("scrub: chunk=%s %s", chunk.hex(), error.message)
        self._upcoming.popleft()
        self._progress = replace(progress, cursor=chunk)

    async def _save(self) -> None:
        now = self._clock.monotonic()
        progress = self._progress
        if progress is None or progress == self._saved or now < self._save_at:
            return
        self._save_at = now + SAVE_EVERY_S
        await self._lane.run(self._file.save, progress)
        self._saved = progress


assert CHUNK_ID_BYTES > 6  # `share_of` looks at the first bytes
