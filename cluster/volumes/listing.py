"""All volumes in the order of their names: a merge of the shards, exact page by page.

Each shard is read ahead in small steps, so that a page of ``limit`` volumes reads little more than that from all shards together.
"""

from __future__ import annotations

from collections import deque
from heapq import heapify, heappop, heappush

from cluster.volumes.head import VOLUME_SHARDS, Head
from cluster.volumes.head_store import HeadStore
from cluster.volumes.together import together
from cluster.volumes.volume import VolumePage

LIST_LIMIT = 1000
"""Volumes in one page at most."""

SCAN_MARGIN = 8
"""Heads fetched of a shard beyond its even share, so that most pages need one round of scans."""


class ShardCursor:
    """The heads of one shard, from ``after`` on."""

    def __init__(self, heads: HeadStore, shard: int, after: bytes, prefix: bytes, step: int) -> None:
        self._heads = heads
        self._shard = shard
        self._after: bytes | None = after
        self._prefix = prefix
        self._step = step
        self._fetched: deque[Head] = deque()

    async def next_live(self) -> Head | None:
        """The next head of a volume that exists; None at the end."""
        while True:
            while self._fetched:
                head = self._fetched.popleft()
                if head.live:
                    return head
            if self._after is None:
                return None
            versions, self._after = await self._heads.scan(self._shard, self._after, self._prefix, self._step)
            self._fetched.extend(version.head for version in versions if version.head is not None)


async def list_volumes(heads: HeadStore, prefix: str, after: str, limit: int) -> VolumePage:
    """At most ``limit`` volumes with names that begin with ``prefix`` and come after ``after``. Raises QuorumUnavailable.

    ``next_after`` is given exactly when a further volume existed at that moment."""
    step = min(limit, limit // VOLUME_SHARDS + SCAN_MARGIN) + 1
    cursors = [ShardCursor(heads, shard, after.encode(), prefix.encode(), step) for shard in range(VOLUME_SHARDS)]
    firsts = await together(cursor.next_live() for cursor in cursors)
    merge = [(head.name.encode(), shard, head) for shard, head in enumerate(firsts) if head is not None]
    heapify(merge)
    found: list[Head] = []
    while merge and len(found) < limit:
        _, shard, head = heappop(merge)
        found.append(head)
        following = await cursors[shard].next_live()
        if following is not None:
            heappush(merge, (following.name.encode(), shard, following))
    return VolumePage(tuple(head.volume() for head in found), found[-1].name if merge and found else None)
