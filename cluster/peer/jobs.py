"""A background job as people see it."""

from __future__ import annotations

from typing import NamedTuple


class JobState(NamedTuple):
    """``queue_length`` in the job's own pieces of work (partitions, chunks, nodes); empty strings for no error, nothing waited for."""

    name: str
    queue_length: int
    last_error: str
    waiting_for: str
