"""Which log files there are and which of them may go. Pure bookkeeping; owned by the store's writer.

The log is replayed from its remaining files alone, so a file may be unlinked only if replay without it adds up to the same:

1. None of its records still says something: no chunk held has its PUT there, no reference held was made there, and no chunk without
   references had its last one dropped there (that record says when the grace period began). `live` counts these.
2. Its records that cancel or override (UNREFERENCE, DELETE, a REFERENCE or PUT over an older one) are needed as long as what
   they cancel is still in the log: each file has the set of older files that its records cancel something in (`covers`), and
   stays while any of those is there.

By induction every dead record that remains is followed by a remaining one that cancels it, so nothing comes back. Covered files are
always older, so there are no circles, and one live chunk in an old file holds back only the files with records against it. Files go
oldest first, each durably before the next. The file being appended to never goes. Numbers are never used twice.

Compaction empties a file F and then lets it go although files that it covers remain (`release`). Why nothing comes back:

* A *fact* is a copy's place (made by PUT, MOVE) or a reference (PUT, REFERENCE, MOVE). A *canceller* of a place is a later DELETE or
  MOVE of the chunk; of a reference, a later DELETE or MOVE of the chunk, or UNREFERENCE, REFERENCE or PUT of the same referrer. A file
  *reaches* those it covers, and what they reach: by rule 2 it can't go before them.
* What is kept true: each dead fact that remains, in file O, has a canceller that remains, in O or in a file that reaches O. Replay
  then ends with the live facts alone. Rules 1 and 2 keep it true, since a file that goes by them reaches nothing. (A dead reference
  may also lean on its chunk's place: if the place before it is dead, what cancels that stands behind both, and when it goes the place
  has gone before it, without which the reference says nothing.)
* Emptying F (`file_evacuation`) writes, newer than F, for each chunk named in it: a MOVE if its place is in F, or if F has a DELETE
  of it and it is held again; its live references in F; the DELETE again of a chunk that isn't held; for each UNREFERENCE in F of a held
  chunk the UNREFERENCE again, or the reference if there is one again. A file that these go to covers at once what F covers (it may be
  sealed, die and go before F is empty).
* When F goes, every file that covers F takes over what F covers. So reaching among the remaining files stays as it was.
* Let the canceller of a dead fact d in O have been in F, and F reach O. If it was a DELETE, or an UNREFERENCE of a held chunk, one as
  strong stands in a newer file that covers what F covers. If it was itself a fact f, and f is live, it was written again, as above. If
  f is dead, its own canceller cancels d too (a place's canceller also cancels all references), and is in a file that reached F, hence
  reaches O now; or it was in F too, and the same is asked about it: they are finitely many.
* Each of those records repeats what is so as long as F is there, and a MOVE is whole or not there (a PUT with references behind it would
  not be; a DELETE with a PUT behind it could cost the chunk). So a crash may tear any part of them off.
* When a chunk last had a reference is told by the last UNREFERENCE about it, or a MOVE without references. If that stands in F it is
  written again with the age that it says; any UNREFERENCE written again says so from then on, in memory as in replay.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from node.storage.chunk_state import Change


class FileFigures(NamedTuple):
    """What others than the ledger's owner look at of an account: numbers alone, of which there may be thousands at a time. `covering`: how
    many older files it covers; `changes`: see `FileAccount`."""

    number: int
    size: int
    live: int
    live_bytes: int
    covering: int = 0
    changes: int = 0


@dataclass(slots=True)
class FileAccount:
    """One log file: random salt, size in bytes, live records, payload bytes held, and the older files it covers. `changes`: counts how
    often these became others while the ledger is in memory."""

    number: int
    salt: int
    size: int
    live: int = 0
    live_bytes: int = 0
    covers: set[int] = field(default_factory=set)
    changes: int = field(default=0, compare=False)

    @property
    def figures(self) -> FileFigures:
        """Any thread. Each number is true; they may be of either side of a change that is being made."""
        return FileFigures(self.number, self.size, self.live, self.live_bytes, len(self.covers), self.changes)


class FileLedger:
    """The accounts of all log files."""

    def __init__(self, accounts: Iterable[FileAccount] = ()) -> None:
        self.accounts: dict[int, FileAccount] = {account.number: account for account in accounts}
        self.changed: set[int] = set(self.accounts)
        """Numbers whose account differs from the index."""
        self.removed: set[int] = set()
        """Numbers unlinked that the index still has."""

    def add(self, number: int, salt: int, size: int) -> None:
        """A new file, or one found on the disk."""
        assert number not in self.accounts
        self.accounts[number] = FileAccount(number, salt, size)
        self.changed.add(number)

    def grow(self, number: int, size: int) -> None:
        self.accounts[number].size = size
        self.changed.add(number)

    def merge(self, change: Change) -> None:
        """Take over the effects of durable records. Files that are no longer there (damage, see recovery) are passed over."""
        for number, count in change.live.items():
            if count and (account := self.accounts.get(number)) is not None:
                account.live += count
                self.changed.add(number)
        for number, size in change.live_bytes.items():
            if size and (account := self.accounts.get(number)) is not None:
                account.live_bytes += size
                self.changed.add(number)
        for number, older in change.covers:
            if older in self.accounts and (account := self.accounts.get(number)) is not None:
                if older not in account.covers:
                    account.covers.add(older)
                    account.changes += 1
                self.changed.add(number)

    def removable(self, active: int, released: int | None = None) -> list[int]:
        """Numbers that may be unlinked, in the order in which they must be. `released`: see there."""
        going: set[int] = set()
        for number in sorted(self.accounts):
            account = self.accounts[number]
            if number == active or account.live:
                continue
            if number == released or all(older in going for older in account.covers):
                going.add(number)
        return sorted(going)

    def release(self, number: int) -> bool:
        """A file whose cancelling records have been written anew may go before what it covers: whoever covers it covers that too. False
        when something in it is live still."""
        account = self.accounts[number]
        if account.live:
            return False
        for other in self.accounts.values():
            if number in other.covers and not account.covers <= other.covers:
                other.covers |= account.covers
                other.changes += 1
                self.changed.add(other.number)
        return True

    def remove(self, numbers: Iterable[int]) -> None:
        """These files are gone from the disk."""
        gone = set(numbers)
        for number in gone:
            del self.accounts[number]
        for account in self.accounts.values():
            if account.covers & gone:
                account.covers -= gone
                account.changes += 1
                self.changed.add(account.number)
        self.removed |= gone
        self.changed -= gone

    @property
    def log_bytes(self) -> int:
        return sum(account.size for account in self.accounts.values())

    def check(self) -> None:
        """Assert the invariants."""
        for account in self.accounts.values():
            assert account.live >= 0, account
            assert account.live_bytes >= 0, account
            assert all(older < account.number and older in self.accounts for older in account.covers), account
