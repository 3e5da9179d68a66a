"""One transaction of ``registers.db``: many batches of writes, each register written once, and the trees brought up to date with them.

Runs on the writer's lane; owns nothing beyond the call.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Final

from cluster.register.ballot import Version
from cluster.register.key import RegisterKey
from cluster.register.record import Record
from cluster.register.store import PartitionWrite, PurgeWrite, RegisterWrite, Write
from node.storage.register_rows import key_columns, meta_row, partition_row, register_row
from node.storage.register_schema import PUT_META, PUT_PARTITION, PUT_REGISTER
from node.storage.register_trees import RegisterTrees, TreeStep

ONE: Final = "partition = ? AND tbl = ? AND partition_key = ? AND sort_key = ?"
GET_VERSION: Final = f"SELECT round, proposer, seq, value IS NULL FROM registers WHERE {ONE}"
DROP_REGISTER: Final = f"DELETE FROM registers WHERE {ONE}"
CLEAR_PARTITION: Final = "DELETE FROM registers WHERE partition = ?"


def write_all(connection: sqlite3.Connection, trees: RegisterTrees, groups: Sequence[Sequence[Write]]) -> TreeStep:
    """Commit the batches in one transaction; afterwards `RegisterTrees.take` has to be told the step. Raises SQLite's errors and Corrupt,
    with nothing written."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        transaction = _Transaction(connection, trees.begin(connection))
        for writes in groups:
            for write in writes:
                transaction.add(write)
        transaction.finish()
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
    return transaction.step


class _Transaction:
    def __init__(self, connection: sqlite3.Connection, step: TreeStep) -> None:
        self._connection = connection
        self.step = step
        self._staged: dict[tuple[int, RegisterKey], Record | None] = {}
        """What the registers become; None for one that goes."""

    def add(self, write: Write) -> None:
        if isinstance(write, RegisterWrite):
            self._staged[write.partition, write.key] = write.record
        elif isinstance(write, PurgeWrite):
            self._purge(write)
        elif isinstance(write, PartitionWrite):
            if write.clear:
                self._clear(write.partition)
            self._connection.execute(PUT_PARTITION, partition_row(write.partition, write.state))
        else:
            self._connection.execute(PUT_META, meta_row(write.name, write.value))

    def finish(self) -> None:
        """Write what is staged, and the leaves."""
        for (partition, key), record in self._staged.items():
            old = self._stored(partition, key)
            if record is not None:
                self._connection.execute(PUT_REGISTER, register_row(partition, key, record))
            elif old is not None:
                self._connection.execute(DROP_REGISTER, (partition, *key_columns(key)))
            if record is not None or old is not None:
                self.step.change(partition, key, old and old[0], None if record is None else record.version)
        self.step.write()

    def _purge(self, write: PurgeWrite) -> None:
        name = (write.partition, write.key)
        if name in self._staged:
            record = self._staged[name]
            goes = record == Record(write.version, None)
        else:
            goes = self._stored(*name) == (write.version, True)
        if goes:
            self._staged[name] = None

    def _clear(self, partition: int) -> None:
        for name in [name for name in self._staged if name[0] == partition]:
            del self._staged[name]
        self._connection.execute(CLEAR_PARTITION, (partition,))
        self.step.clear(partition)

    def _stored(self, partition: int, key: RegisterKey) -> tuple[Version, bool] | None:
        """The version in the database, and whether it is a tombstone."""
        row = self._connection.execute(GET_VERSION, (partition, *key_columns(key))).fetchone()
        return None if row is None else (Version(*row[:3]), bool(row[3]))
