"""The job that rewrites log files which are mostly dead: chooses one, has it emptied (`file_evacuation`), and lets it go.

One bounded piece of a file per `run_once`, then `pause_s` for whoever runs it, so that copying keeps to its budget. Why a file may go is
said in `file_ledger`.

Every file that is emptied makes the log smaller. So a file is first read through, to know what its cancelling records cost
(`FileEvacuation.measure`), and left alone if that leaves no gain. What was measured counts until the file's account has changed or the
measurement is old (what it costs hangs on chunks elsewhere, of which the account does not tell), and then until there is time to measure
again. Measuring writes nothing; what was written for a file in vain counts as a part of its cost until its account has changed, so that
trying again and again can't write more than there is to gain.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from cluster.doors.clock import Clock
from cluster.errors import HoldfastError
from node.storage.chunk_record import HEADER_BYTES
from node.storage.chunk_store import LogChunkStore
from node.storage.file_evacuation import FileEvacuation
from node.storage.file_ledger import FileFigures

COMPACTION_RATE = 50 * 1024 * 1024
"""Bytes per second that compaction writes at most (and reads as many): a third of a plain hard disk, and it keeps ahead of a node that
overwrites 50 MiB/s in files that are half dead."""

COMPACT_BELOW = 0.5
"""A file is rewritten when less than this part of it is live: each byte moved then gives back at least one."""

WORTH_BYTES = 8 * 1024 * 1024
"""A file with fewer dead bytes is left as it is."""

WORTH_WHEN_SHORT_BYTES = 64 * 1024
"""As `WORTH_BYTES`, when space is short: then every file with a gain is taken, whatever part of it is live."""

RECORD_OVERHEAD = HEADER_BYTES
"""What a live record costs beside its payload, roughly. Without it files of tiny chunks would look dead, and be rewritten for ever."""

COMPACTION_INTERVAL_S = 10.0
"""Between looks for files worth emptying."""

SHORT_INTERVAL_S = 1.0
"""The same, when space is short."""

MEASURING_SHARE = 0.2
"""The part of the time in which files are measured while there is something to measure (all of it when space is short), and again the part
of the time in which any that were measured before are: it costs no writes, but a reader."""

MEASURED_S = 4 * 3600.0
"""How long a measurement counts while the file's account stays as it is. A dead file that became cheap is held no longer than that, while
there is room; and files that stay expensive for good are read for it a few times a day."""

MEASURED_WHEN_SHORT_S = 5 * 60.0
"""The same, when space is short: writes may be refused for want of what such a file holds."""


def live_size(account: FileFigures, cancelling: int = 0) -> int:
    """Bytes that would have to be written to empty a file. `cancelling`: for what it cancels, if that is known."""
    return min(account.size, account.live_bytes + account.live * RECORD_OVERHEAD + cancelling)


def gain(account: FileFigures, cancelling: int = 0) -> int:
    return account.size - live_size(account, cancelling)


def choose(
    accounts: Sequence[FileFigures],
    *,
    short: bool,
    room: int,
    worth_bytes: int = WORTH_BYTES,
    cancelling: Mapping[int, int] | None = None,
) -> list[int]:
    """Files worth emptying, the best first: the smallest part live, then the oldest. `accounts` ascending, the last is the active
    file; `room`: bytes that may be written; `cancelling`: by file, as for `live_size`. Files that may go as they are need no compaction."""
    found: list[tuple[float, int]] = []
    for account in accounts[:-1]:
        known = cancelling.get(account.number, 0) if cancelling else 0
        live = live_size(account, known)
        part = live / max(account.size, 1)
        if (not account.live and not account.covering) or live + WORTH_WHEN_SHORT_BYTES > room:
            continue
        if gain(account, known) >= (min(worth_bytes, WORTH_WHEN_SHORT_BYTES) if short else worth_bytes) and (
            short or part < COMPACT_BELOW
        ):
            found.append((part, account.number))
    return [number for _, number in sorted(found)]


class _Measured(NamedTuple):
    """What emptying a file costs beside what is live in it, in bytes, by its account at that time (`_state`). `wasted`: written for it in
    vain since its account was another."""

    cost: int
    state: tuple[int, int]
    at: float
    wasted: int = 0


def _state(account: FileFigures) -> tuple[int, int]:
    return account.live, account.changes


class ChunkCompaction:
    """`queue_length`: files worth emptying, with the one at hand. `waiting_for`: why nothing is done now, None while there is more.
    `rate`: bytes per second; 0 for no bound. `pause_s`: how long to wait before the next piece, to keep to it."""

    name = "compaction"

    def __init__(
        self,
        store: LogChunkStore,
        clock: Clock,
        *,
        rate: int = COMPACTION_RATE,
        worth_bytes: int = WORTH_BYTES,
    ) -> None:
        self._store = store
        self._clock = clock
        self._rate = rate
        self._worth_bytes = worth_bytes
        self._at_hand: FileEvacuation | None = None
        self._measuring = False
        self._measuring_s = 0.0
        """The time that measuring the file at hand has taken."""
        self._wasted_before = 0
        """What was written in vain for the file at hand before it was taken in hand."""
        self._measured: dict[int, _Measured] = {}
        self._again_at = 0.0
        """From when on a file may be measured once more."""
        self.queue_length = 0
        self.last_error: str | None = None
        self.waiting_for: str | None = None
        self.pause_s = 0.0
        self.moved_bytes = 0
        self.freed_bytes = 0
        """Size of the files given back, less what was written for it."""
        self.files_emptied = 0

    @property
    def interval_s(self) -> float:
        return SHORT_INTERVAL_S if self._store.short_of_space else COMPACTION_INTERVAL_S

    async def run_once(self) -> bool:
        """One unit of work; whether there is more to do. Errors are kept in `last_error`, not raised."""
        began = self._clock.monotonic()
        self.pause_s = 0.0
        try:
            more, written = await self._work()
        except (HoldfastError, OSError) as error:
            self.last_error = error.message if isinstance(error, HoldfastError) else str(error)
            if isinstance(error, HoldfastError) and error.code == "conflict":
                self._leave()
                return True
            self.waiting_for = "the chunk store to work again"
            return False
        self.last_error = None
        if self._rate:
            self.pause_s = max(self.pause_s, written / self._rate - (self._clock.monotonic() - began))
        return more

    async def _work(self) -> tuple[bool, int]:
        """(whether there is more, bytes written)."""
        at_hand = self._at_hand
        if at_hand is not None and at_hand.void:
            if at_hand.gone:
                self._credit(at_hand)  # it died of what was moved, and whoever unlinks dead files was faster
            self._at_hand = at_hand = None
        if at_hand is None:
            return await self._choose(), 0
        if self._measuring:
            await self._measure(at_hand)
            return True, 0
        if not at_hand.emptied:
            if self._another_fits(at_hand):
                self._at_hand = None
                return True, 0
            written = await at_hand.step()
            self.moved_bytes += written
            if not self._is_worth(at_hand):
                self._leave()
            return True, written
        if not await at_hand.release() and not at_hand.void:
            account = self._store.log_file(at_hand.number)
            if account is None:
                return True, 0  # whoever unlinks dead files was faster
            if account.live:
                self._leave()
                return True, 0
            self.waiting_for = "readers of the emptied file, or room for the index"
            return False, 0
        return True, 0

    def _credit(self, at_hand: FileEvacuation) -> None:
        self.files_emptied += 1
        self.freed_bytes += at_hand.size - at_hand.moved_bytes - at_hand.restated_bytes

    async def _choose(self) -> bool:
        """Take the best file in hand; whether there is one."""
        short = self._store.short_of_space
        accounts = self._store.log_files()
        if short and accounts and self._is_mostly_dead(accounts[-1]) and await self._store.seal():
            accounts = self._store.log_files()
        worth = self._worth(accounts, short=short)
        self.queue_length = len(worth)
        if not worth:
            self.waiting_for = "log files that are mostly dead"
            return False
        self.waiting_for = None
        self._at_hand = self._store.evacuation(worth[0])
        self._measuring = True
        self._measuring_s = 0.0
        self._wasted_before = 0
        return True

    async def _measure(self, at_hand: FileEvacuation) -> None:
        """One piece; after the last one, whether to go on with the file."""
        began = self._clock.monotonic()
        more = await at_hand.measure()
        took = self._clock.monotonic() - began
        if not self._store.short_of_space:
            self.pause_s = took * (1 / MEASURING_SHARE - 1)
        self._measuring_s += took + self.pause_s
        if more or at_hand.void:
            return
        self._measuring = False
        if at_hand.number in self._measured:
            self._again_at = began + max(self.interval_s, self._measuring_s / MEASURING_SHARE)
        self._wasted_before = self._wasted(at_hand.number)
        self._note(at_hand, at_hand.cancelling_bytes, self._wasted_before)
        if at_hand.number not in self._worth(self._store.log_files(), short=self._store.short_of_space):
            self._at_hand = None

    def _note(self, at_hand: FileEvacuation, cost: int, wasted: int) -> None:
        account = self._store.log_file(at_hand.number)
        if account is not None:
            self._measured[at_hand.number] = _Measured(cost, _state(account), self._clock.monotonic(), wasted)

    def _wasted(self, number: int) -> int:
        """What was written for a file in vain, as its account is now."""
        account, measured = self._store.log_file(number), self._measured.get(number)
        return 0 if account is None or measured is None or measured.state != _state(account) else measured.wasted

    def _worth(self, accounts: Sequence[FileFigures], *, short: bool) -> list[int]:
        """Files worth emptying, or measuring, the best first."""
        there = {account.number: account for account in accounts}
        self._measured = {number: measured for number, measured in self._measured.items() if number in there}
        room = self._store.room_to_move()

        def chosen(costs: Mapping[int, int]) -> list[int]:
            return choose(accounts, short=short, room=room, worth_bytes=self._worth_bytes, cancelling=costs)

        costs = {number: measured.cost + measured.wasted for number, measured in self._measured.items()}
        now = self._clock.monotonic()
        if now >= self._again_at:
            lasts = MEASURED_WHEN_SHORT_S if short else MEASURED_S
            due: dict[int, float] = {}
            least: dict[int, int] = {}
            for number, measured in self._measured.items():
                changed = measured.state != _state(there[number])
                since = measured.at if changed else measured.at + lasts
                if since <= now:
                    due[number] = since
                    least[number] = 0 if changed else measured.wasted
            # of those only that are worth it at the least cost: another one would never be measured, and keep its turn for ever
            again = [number for number in chosen(costs | least) if number in due] if due else []
            if again:
                first = min(again, key=lambda number: due[number])
                costs[first] = least[first]
        return chosen(costs)

    def _another_fits(self, at_hand: FileEvacuation) -> bool:
        """Whether there is no room any more for what is left of the file at hand, but for another one: half a file moved gives nothing
        back, and would take the room that the other one needs."""
        room = self._store.room_to_move()
        if at_hand.size + WORTH_WHEN_SHORT_BYTES <= room:
            return False
        account = self._store.log_file(at_hand.number)
        if account is None:
            return False
        if live_size(account, at_hand.cancelling_bytes) + WORTH_WHEN_SHORT_BYTES <= room:
            return False
        return bool(self._worth(self._store.log_files(), short=self._store.short_of_space))

    def _is_mostly_dead(self, account: FileFigures) -> bool:
        least = min(self._worth_bytes, WORTH_WHEN_SHORT_BYTES)
        return gain(account) >= least and live_size(account) < COMPACT_BELOW * account.size

    def _is_worth(self, at_hand: FileEvacuation) -> bool:
        """Whether the records that had to be written again are a small part of what will be given back."""
        written = at_hand.moved_bytes + at_hand.restated_bytes
        return written < at_hand.size * (1.0 if self._store.short_of_space else (1 + COMPACT_BELOW) / 2)

    def _leave(self) -> None:
        """Not this file, until its account is another, or much later."""
        at_hand, self._at_hand = self._at_hand, None
        self._measuring = False
        if at_hand is not None and not at_hand.gone:
            written = at_hand.moved_bytes + at_hand.restated_bytes
            self._note(at_hand, at_hand.size, self._wasted_before + written)
