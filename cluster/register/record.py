"""What a replica holds of one register."""

from __future__ import annotations

from typing import NamedTuple

from cluster.register.ballot import NO_VERSION, Version


class Record(NamedTuple):
    """An accepted value. ``value`` is None for a register that was never written (version `NO_VERSION`) or was deleted (a
    tombstone, any other version)."""

    version: Version
    value: bytes | None


ABSENT = Record(NO_VERSION, None)
"""The record of a register that was never written."""

VALUE_LIMIT = 256 * 1024
"""Bytes in a register's value. Heads are about 2 KiB, a layout of 1000 nodes under 64 KiB."""
