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
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from node.storage.chunk_state import Change


@dataclass(slots=True)
class FileAccount:
    """One log file: random salt, size in bytes, live records, payload bytes held, and the older files it covers."""

    number: int
    salt: int
    size: int
    live: int = 0
    live_bytes: int = 0
    covers: set[int] = field(default_factory=set)


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
                account.covers.add(older)
                self.changed.add(number)

    def removable(self, active: int) -> list[int]:
        """Numbers that may be unlinked, in the order in which they must be."""
        going: set[int] = set()
        for number in sorted(self.accounts):
            account = self.accounts[number]
            if number != active and account.live == 0 and all(older in going for older in account.covers):
                going.add(number)
        return sorted(going)

    def remove(self, numbers: Iterable[int]) -> None:
        """These files are gone from the disk."""
        gone = set(numbers)
        for number in gone:
            del self.accounts[number]
        for account in self.accounts.values():
            if account.covers & gone:
                account.covers -= gone
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
