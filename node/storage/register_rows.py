"""Rows of ``registers.db`` and their checksums: what is put into SQLite, and what comes back, checked.

A row's last column is a CRC32C over everything that the row says, its key included, so that a row that strayed to another key is
noticed as well as one whose value changed. Pure. Raises Corrupt.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Any, Final

import crc32c

from cluster.errors import Corrupt
from cluster.merkle.identity import register_place
from cluster.register.ballot import Ballot, Version
from cluster.register.key import RegisterKey
from cluster.register.record import Record
from cluster.register.store import PartitionRecord

_REGISTER: Final = struct.Struct("<qIIIqIq?")
_PARTITION: Final = struct.Struct("<qqIIqqI")

REGISTER_COLUMNS: Final = "partition, tbl, partition_key, sort_key, round, proposer, seq, value, crc"
"""What `read_register` takes, in its order."""

PARTITION_COLUMNS: Final = "partition, round, proposer, standing, tenure, fence_round, fence_proposer, crc"
META_COLUMNS: Final = "name, value, crc"

Row = tuple[Any, ...]


def register_row(partition: int, key: RegisterKey, record: Record) -> Row:
    """All columns of a register."""
    columns = (partition, *key_columns(key), *record.version, record.value)
    return (*columns, register_place(*key_columns(key)), _register_crc(*columns))


def key_columns(key: RegisterKey) -> tuple[str, bytes, bytes]:
    return key.table, key.partition, key.sort


def read_register(row: Row) -> tuple[RegisterKey, Record]:
    """The register in a row of `REGISTER_COLUMNS`."""
    check_register(row)
    return RegisterKey(row[1], row[2], row[3]), Record(Version(row[4], row[5], row[6]), row[7])


def check_register(row: Row) -> None:
    """Raises Corrupt unless a row of `REGISTER_COLUMNS` matches its checksum."""
    try:
        sound = _register_crc(*row[:8]) == row[8]
    except (TypeError, ValueError, AttributeError, struct.error):
        sound = False
    if not sound:
        raise Corrupt("a register's row does not match its checksum")


def partition_row(partition: int, state: PartitionRecord) -> Row:
    columns = (partition, *state.promised, state.standing, state.tenure, *state.fence)
    return (*columns, _partition_crc(*columns))


def read_partition(row: Row) -> tuple[int, PartitionRecord]:
    """The state in a row of `PARTITION_COLUMNS`."""
    try:
        sound = _partition_crc(*row[:7]) == row[7]
    except (TypeError, ValueError, AttributeError, struct.error):
        sound = False
    if not sound:
        raise Corrupt("a partition's row does not match its checksum")
    return row[0], PartitionRecord(Ballot(row[1], row[2]), row[3], row[4], Ballot(row[5], row[6]))


def meta_row(name: str, value: bytes) -> Row:
    return name, value, _meta_crc(name, value)


def read_meta(rows: Iterable[Row]) -> dict[str, bytes]:
    """All named values, from rows of `META_COLUMNS`. There are few: reading all of them shows that a missing one has not just strayed
    to another name."""
    values: dict[str, bytes] = {}
    for name, value, crc in rows:
        try:
            sound = _meta_crc(name, value) == crc
        except (TypeError, ValueError, AttributeError):
            sound = False
        if not sound:
            raise Corrupt("a named value of the register database does not match its checksum")
        values[name] = bytes(value)
    return values


def _register_crc(
    partition: int,
    table: str,
    partition_key: bytes,
    sort_key: bytes,
    round_number: int,
    proposer: str,
    seq: int,
    value: bytes | None,
) -> int:
    name, author = table.encode(), proposer.encode()
    head = _REGISTER.pack(
        partition, len(name), len(partition_key), len(sort_key), round_number, len(author), seq, value is None
    )
    crc = crc32c.crc32c(b"".join((head, name, partition_key, sort_key, author)))
    return crc32c.crc32c(value, crc) if value else crc


def _partition_crc(
    partition: int, round_number: int, proposer: str, standing: str, tenure: int, fence_round: int, fence_proposer: str
) -> int:
    author, word, fencer = proposer.encode(), standing.encode(), fence_proposer.encode()
    head = _PARTITION.pack(partition, round_number, len(author), len(word), tenure, fence_round, len(fencer))
    return crc32c.crc32c(b"".join((head, author, word, fencer)))


def _meta_crc(name: str, value: bytes) -> int:
    return crc32c.crc32c(value, crc32c.crc32c(name.encode() + b"\0"))
