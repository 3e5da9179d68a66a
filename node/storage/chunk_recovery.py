"""Opening the store: makes catalog, index and log agree with what the disk holds. Runs once, on a lane, before the writer.

1. The index is trusted if it is whole and fits the files; otherwise a new one is built by replaying the log from its beginning.
2. The log after the covered position is replayed into the catalog.
3. The newest file is made fit for appending. Bytes after its last whole record are a torn tail and are cut off. A hole before a whole
   record of the same, never acknowledged batch is closed with a FILLER record. Any other gap is damage: set aside, reported.
   Then everything from the start of the last batch is written once more and synced: a record that is only in the page cache
   (the process died before its fdatasync, or the fdatasync failed and left the pages clean) must not be built upon as if it were durable.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass

from cluster.chunks.store import PAYLOAD_LIMIT, StoreFailed
from node.storage.ballast import START_BYTES, Ballast
from node.storage.chunk_catalog import ChunkCatalog
from node.storage.chunk_index import Damage, IndexDamaged, IndexFull, IndexState, IndexUnavailable, Snapshot
from node.storage.chunk_log import ChunkLog, LogFiles, LogFull, file_number
from node.storage.chunk_record import (
    DAMAGED,
    FILE_HEADER_BYTES,
    HEADER_BYTES,
    RECORD_LIMIT,
    WITH_PAYLOAD,
    Kind,
    Record,
    header_span,
    pack_header,
    parse_file_header,
    parse_header,
    payload_start,
    put_size,
    record_size,
)
from node.storage.chunk_state import Change
from node.storage.disk_errors import is_of_medium
from node.storage.file_ledger import FileLedger
from node.storage.log_scan import Gap, LogScan

BATCH_BYTES = 32 * 1024 * 1024
"""A batch takes no more operations once it has this size. Bounds memory, the time of one sync, and what a crash can tear."""

UNSYNCED_LIMIT = BATCH_BYTES + RECORD_LIMIT + FILE_HEADER_BYTES
"""No more than this at the end of the newest file can be unsynced."""

REPLAY_GROUP = 512
"""Records applied per index lookup."""

REPLAY_FLUSH = 16 * 1024
"""States in memory at which replay writes to the index."""

REWRITE_PIECE = 1024 * 1024


@dataclass(slots=True)
class Recovered:
    """What opening found out, beside what it did to catalog and log."""

    age_ms: int
    rebuilt: str | None
    """Why the index was built anew, None if it was good."""
    replayed: int
    cut_bytes: int
    new_damages: list[Damage]


class ChunkRecovery:
    """One opening."""

    def __init__(self, files: LogFiles, catalog: ChunkCatalog, log: ChunkLog, ballast: Ballast) -> None:
        self._files = files
        self._disk = files.disk
        self._catalog = catalog
        self._log = log
        self._ballast = ballast
        self._found = Recovered(0, None, 0, 0, [])
        self._salts: dict[int, int | None] = {}
        self._sizes: dict[int, int] = {}
        self._headers = 0

    def run(self) -> Recovered:
        """Raises OSError, LogFull, StoreFailed."""
        self._ballast.ensure_free(START_BYTES)
        self._list_files()
        try:
            state = self._catalog.index.open()
            self._adopt(state)
            self._replay()
        except IndexUnavailable as error:
            raise StoreFailed(
                f"the chunk index can't be used now: {error.message}; see to that, then restart"
            ) from error
        except IndexFull as error:
            raise StoreFailed(f"the disk has no room for the chunk index: {error}; free space, then restart") from error
        except IndexDamaged as error:
            self._found.rebuilt = str(error)
            self._rebuild()
        return self._found

    def rebuild(self, reason: str) -> Recovered:
        """Throw the index of a running store away and build it anew. The writer stands still meanwhile. Raises as `run`."""
        self._found.rebuilt = reason
        self._ballast.ensure_free(START_BYTES)
        self._list_files()
        self._rebuild()
        return self._found

    def _rebuild(self) -> None:
        known = self._catalog.damages
        self._catalog.forget()
        try:
            self._catalog.index.create()
            self._replay()
        except (IndexDamaged, IndexFull) as error:
            raise StoreFailed(
                f"the chunk index can't be rebuilt: {error}; check the disk, then restart the daemon"
            ) from error
        self._found.new_damages = [one for place, one in self._catalog.damages.items() if place not in known]

    # -- files

    def _list_files(self) -> None:
        directory = self._files.directory
        self._disk.fsync_directory(directory)  # a name that a process before this one took away must not come back
        numbers = sorted(
            number for name in self._disk.list_directory(directory) if (number := file_number(name)) is not None
        )
        self._salts, self._sizes = {}, {}
        for number in numbers:
            descriptor = self._files.pin(number)
            try:
                self._sizes[number] = self._disk.size(descriptor)
                self._salts[number] = None
                if number == numbers[-1]:
                    self._salts[number] = self._read_salt(number, descriptor)
            finally:
                self._files.unpin(number)

    def _read_salt(self, number: int, descriptor: int) -> int | None:
        try:
            header = parse_file_header(self._disk.pread(descriptor, FILE_HEADER_BYTES, 0))
        except OSError as error:
            if not is_of_medium(error):
                raise
            header = None
        return header[1] if header is not None and header[0] == number else None

    # -- the index

    def _adopt(self, state: IndexState) -> None:
        """Take the index for true, after checking that it fits the files."""
        gone = [account.number for account in state.accounts if account.number not in self._sizes and not account.live]
        for account in state.accounts:
            if account.number in gone:
                continue  # unlinked as dead just before the stop
            if account.number not in self._sizes:
                raise IndexDamaged(f"the index knows log file {account.number}, which is gone")
            if self._sizes[account.number] < account.size and account.number < state.covered_file:
                raise IndexDamaged(f"log file {account.number} is shorter than the index says")
        if state.covered_file:
            if self._sizes.get(state.covered_file, -1) < state.covered_offset:
                raise IndexDamaged("the index is ahead of the log")
            known = {account.number: account.salt for account in state.accounts}
            descriptor = self._files.pin(state.covered_file)
            try:
                salt = self._read_salt(state.covered_file, descriptor)
            finally:
                self._files.unpin(state.covered_file)
            if salt is not None and known.get(state.covered_file) != salt:
                raise IndexDamaged("the index belongs to another log")
        known_numbers = {account.number for account in state.accounts}
        if any(number < state.covered_file and number not in known_numbers for number in self._sizes):
            raise IndexDamaged("there are older log files that the index does not know")
        catalog = self._catalog
        catalog.forget()
        catalog.ledger = FileLedger(state.accounts)
        catalog.ledger.changed = set()
        catalog.ledger.remove(gone)
        catalog.trees = state.trees
        for number in known_numbers.difference(gone):
            self._salts[number] = catalog.ledger.accounts[number].salt
        catalog.chunks, catalog.bytes = state.chunks, state.bytes
        catalog.end_file, catalog.end_offset = state.covered_file, state.covered_offset
        catalog.damages = {(one.file, one.offset): one for one in state.damages}
        self._found.age_ms = state.age_ms

    # -- the log

    def _replay(self) -> None:
        catalog = self._catalog
        numbers = sorted(self._sizes)
        newest = numbers[-1] if numbers else 0
        for number in numbers:
            if number < catalog.end_file:
                continue
            start = catalog.end_offset if number == catalog.end_file else FILE_HEADER_BYTES
            if number == newest and self._sizes[number] <= FILE_HEADER_BYTES and self._salts[number] is None:
                self._remove_unborn(number)
                self._begin(number)
                break
            self._replay_file(number, start, newest=number == newest)
        if not self._log.number:
            self._begin(newest + 1)
        catalog.complete()

    def _begin(self, number: int) -> None:
        """A new file to append to."""
        while True:
            try:
                self._log.begin(number)
                break
            except LogFull as error:
                if not self._ballast.release():
                    raise OSError(errno.ENOSPC, f"no room for a new log file: {error}") from error
        self._catalog.ledger.add(number, self._log.salt, self._log.end)
        self._catalog.advance(number, self._log.end)

    def _resume(self, number: int, end: int) -> None:
        self._log.resume(number, self._catalog.ledger.accounts[number].salt, end)

    def _remove_unborn(self, number: int) -> None:
        """The newest file was created but never used: its header is torn."""
        self._files.forget(number)
        self._disk.unlink(self._files.path(number))
        self._disk.fsync_directory(self._files.directory)
        del self._sizes[number]

    def _replay_file(self, number: int, start: int, *, newest: bool) -> None:
        catalog = self._catalog
        running = self._log.number == number  # a rebuild under a running store: the file is as the log left it
        size = self._log.end if running else self._sizes[number]
        descriptor = self._files.pin(number)
        try:
            salt = self._salts[number]
            if salt is None:
                salt = self._read_salt(number, descriptor)
            batch = self._last_batch(descriptor, size, salt, start) if newest and not running else size
            scan = LogScan(self._disk, descriptor, size, salt, start=start, verify_from=batch)
            if number not in catalog.ledger.accounts:
                catalog.ledger.add(number, salt or 0, size)
            group: list[tuple[int, Record]] = []
            gaps: list[Gap] = []
            end = start
            for entry in scan.entries():
                if isinstance(entry, Gap):
                    gaps.append(entry)
                    continue
                offset, record = entry
                group.append(entry)
                end = offset + record_size(record)
                if len(group) >= REPLAY_GROUP:
                    self._apply(number, group)
                    group = []
            self._apply(number, group)
            if salt is None:
                self._header_damaged(number, scan.salt, newest=newest, empty=end == start)
            tail = gaps.pop() if gaps and gaps[-1].offset >= end else None
            if (
                not newest
                or running
                or salt is None
                or scan.unreadable
                or (tail is not None and tail.length > UNSYNCED_LIMIT)
            ):
                # Not to be appended to: a sealed file, or one whose end can't be told from damage.
                for gap in gaps if tail is None else [*gaps, tail]:
                    self._damaged(number, gap, "no record can be made out in these bytes")
                catalog.ledger.grow(number, size)
                catalog.advance(number, size)
                return
            torn = [gap for gap in gaps if gap.offset >= batch]
            for gap in gaps:
                if gap.offset < batch:
                    self._damaged(number, gap, "no record can be made out in these bytes")
            catalog.ledger.grow(number, end)
            self._mend(descriptor, salt, batch, end, torn, cut=size - end)
            catalog.advance(number, end)
            self._resume(number, end)
        finally:
            self._files.unpin(number)

    def _last_batch(self, descriptor: int, size: int, salt: int | None, start: int) -> int:
        """Where the newest batch of which anything is left begins: what is before it was synced when that batch was written, so that
        a bad payload there is damage, for a read to find. Only from here on it can mean a torn write."""
        scan = LogScan(self._disk, descriptor, size, salt, start=start, verify_from=size)
        batches = (entry[1].batch for entry in scan.entries() if not isinstance(entry, Gap))
        return max(max(batches, default=start), start)

    def _header_damaged(self, number: int, salt: int | None, *, newest: bool, empty: bool) -> None:
        """The file's own header is unreadable; its records tell the salt."""
        self._catalog.ledger.accounts[number].salt = salt or 0
        if not (newest and empty):
            self._damaged(number, Gap(0, FILE_HEADER_BYTES), "the log file's header is damaged")

    def _apply(self, number: int, group: list[tuple[int, Record]]) -> None:
        if not group:
            return
        catalog = self._catalog
        chunks = {record.chunk for _, record in group if record.kind != Kind.FILLER}
        change = Change(catalog.bases(chunks, catalog.index.reader()))
        for offset, record in group:
            if (
                record.kind == Kind.DELETE
                and record.flags & DAMAGED
                and (state := change.get(record.chunk)) is not None
            ):
                size = put_size(state.length)
                self._set_aside(
                    Damage(state.file, state.offset, size, record.chunk, "set aside by an earlier run")
                )  # reported again: that run may have ended before anybody could act on it
            change.apply(record, number, offset)
            self._found.age_ms = max(self._found.age_ms, record.stamp)
        last, record = group[-1]
        catalog.merge(change, number, last + record_size(record))
        self._found.replayed += len(group)
        if len(catalog.tables[0]) >= REPLAY_FLUSH:
            self._write_index(catalog.freeze(self._found.age_ms))
            catalog.flushed()

    def _write_index(self, snapshot: Snapshot) -> None:
        while True:
            try:
                self._catalog.index.write(snapshot)
            except IndexFull as error:
                if isinstance(error, IndexUnavailable) or not self._ballast.release():
                    raise
            else:
                return

    def _damaged(self, number: int, gap: Gap, reason: str) -> None:
        self._set_aside(Damage(number, gap.offset, gap.length, self._named(number, gap), reason))

    def _set_aside(self, damage: Damage) -> None:
        if self._catalog.set_aside(damage):
            self._found.new_damages.append(damage)

    def _named(self, number: int, gap: Gap) -> bytes:
        """The chunk at the start of a gap, if only its payload is damaged; else b""."""
        descriptor = self._files.pin(number)
        try:
            header = self._disk.pread(descriptor, min(gap.length, payload_start(PAYLOAD_LIMIT)), gap.offset)
            span = header_span(header, 0)
            if len(header) < span <= gap.length:  # a MOVE has its references between checksums and payload
                header = self._disk.pread(descriptor, span, gap.offset)
        except OSError as error:
            if not is_of_medium(error):
                raise
            return b""
        finally:
            self._files.unpin(number)
        record = parse_header(header, 0, gap.offset, self._salts[number])
        return record.chunk if record is not None and record.kind in WITH_PAYLOAD else b""

    def _mend(self, descriptor: int, salt: int, batch: int, end: int, torn: list[Gap], cut: int) -> None:
        """Make the newest file end with its last whole record, without holes, and durable."""
        if cut:
            self._disk.truncate(descriptor, end)
            self._found.cut_bytes += cut
        if not cut and not torn and batch == end:
            return  # a clean end: nothing was replayed
        offset = batch
        while offset < end:
            piece = self._disk.pread(descriptor, min(REWRITE_PIECE, end - offset), offset)
            self._write(descriptor, piece, offset)
            offset += len(piece)
        for gap in torn:
            filler = pack_header(Kind.FILLER, gap.offset, batch, salt, 0, length=gap.length - HEADER_BYTES)
            self._write(descriptor, filler, gap.offset)
        self._disk.fdatasync(descriptor)

    def _write(self, descriptor: int, data: bytes, offset: int) -> None:
        view = memoryview(data)
        while view:
            written = self._disk.pwritev(descriptor, [view], offset)
            if written <= 0:
                raise OSError(errno.EIO, f"log file {self._files.directory} took no bytes")
            view = view[written:]
            offset += written
