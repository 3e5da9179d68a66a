"""The name of a register."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, order=True)
class RegisterKey:
    """``(table, partition key, sort key)``: registers with equal table and partition key live in one partition, in the order of
    their sort keys, so that a listing is a range scan."""

    table: str
    partition: bytes
    sort: bytes
