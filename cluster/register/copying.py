"""What a replica may take over from others. Pure.

A copied record is an acceptance that somebody else made; holding it makes the holder count for it. Two kinds of records may be held by a
replica that never got their Accept: those that a majority of the group they come from holds (decided: every later leader that
asked has seen them), and those whose ballot is not below what the replica has promised (the Accept itself could still arrive). Any
other is left to be settled by the partition's leader: taking it over could make a value look decided that a later leader,
having asked the very replicas that now hold it, knows nothing of (docs/decisions/layout-change.md).

And nothing may be held that its source held before a purge and this replica has purged since: so what was read of the sources' fences
goes with the records (`Origin`, docs/decisions/tombstones.md).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from cluster.register.ballot import Ballot
from cluster.register.key import RegisterKey
from cluster.register.quorum import majority
from cluster.register.record import ABSENT, Record
from cluster.register.store import Page


class Copied(NamedTuple):
    """The newest record that any source holds, and whether it is known to be decided."""

    key: RegisterKey
    record: Record
    decided: bool


class Origin(NamedTuple):
    """Under what the sources of copied records were read: the lowest and the highest of the fences that they had then, and the layout
    epoch and the stores that the copying replica believed in before it asked."""

    oldest_fence: Ballot
    newest_fence: Ballot
    epoch: int
    stores: bytes


class Merged(NamedTuple):
    """Some of a partition in order of key; ``resume`` is the key to ask all sources to go on after, None at the end."""

    records: list[Copied]
    resume: RegisterKey | None


def merge_pages(pages: Mapping[str, Page], group: Sequence[str]) -> Merged:
    """What several members of ``group`` hold, from their pages after one and the same key."""
    assert set(pages) <= set(group)
    # Beyond its last entry a page with more after it says nothing.
    ends = [page.entries[-1][0] for page in pages.values() if page.more]
    end = min(ends) if ends else None
    held = [dict(page.entries) for page in pages.values()]
    records: list[Copied] = []
    for key in sorted({key for page in held for key in page}):
        if end is not None and key > end:
            break
        versions = [page.get(key, ABSENT) for page in held]
        newest = max(versions, key=lambda record: record.version)
        holders = sum(record.version == newest.version for record in versions)
        records.append(Copied(key, newest, holders >= majority(len(group))))
    return Merged(records, end)
