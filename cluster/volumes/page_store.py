"""Map pages as chunks: loading them through a bounded cache of decoded pages, saving new ones.

Pages never change, so the cache needs no invalidation. One `PageCache` per daemon; a `PageStore` is a cheap view of it for one
volume's number of replicas, a `WritePages` adds the write in whose name pages are saved.
"""

from __future__ import annotations

from collections import OrderedDict

from cluster.volumes.page import FAN_OUT, PAGE_LIMIT_BYTES, Interior, Leaf, Stored, decode_page
from cluster.volumes.ports import Chunks
from cluster.volumes.reference import page_referrer

PAGE_CACHE_EXTENTS = 64 << 10
"""Extents held decoded, of all volumes: about 16 MiB, the map of 256 GiB in 4 MiB pieces."""


class PageCache:
    """Least recently used decoded pages, bounded by their extents (an interior page counts as FAN_OUT)."""

    def __init__(self, chunks: Chunks, limit: int = PAGE_CACHE_EXTENTS) -> None:
        self.chunks = chunks
        self._limit = limit
        self._held = 0
        self._pages: OrderedDict[tuple[bytes, int, int], Leaf | Interior] = OrderedDict()

    def get(self, key: tuple[bytes, int, int]) -> Leaf | Interior | None:
        page = self._pages.get(key)
        if page is not None:
            self._pages.move_to_end(key)
        return page

    def add(self, key: tuple[bytes, int, int], page: Leaf | Interior) -> None:
        if key in self._pages:
            return
        self._pages[key] = page
        self._held += weight_of(page)
        while self._held > self._limit and self._pages:
            _, oldest = self._pages.popitem(last=False)
            self._held -= weight_of(oldest)


def weight_of(page: Leaf | Interior) -> int:
    return len(page.extents) if isinstance(page, Leaf) else FAN_OUT


class PageStore:
    """Loads the pages of a volume that keeps ``replicas`` copies."""

    def __init__(self, cache: PageCache, replicas: int) -> None:
        self._cache = cache
        self._replicas = replicas

    async def load(self, page: Stored, start: int, span: int) -> Leaf | Interior:
        """The page that covers [start, start + span). Raises NotFound, Corrupt, QuorumUnavailable."""
        key = (page.chunk, start, span)
        found = self._cache.get(key)
        if found is None:
            data = await self._cache.chunks.read(page.chunk, 0, page.length, replicas=self._replicas)
            found = decode_page(bytes(data), start, span)
            self._cache.add(key, found)
        return found


class WritePages(PageStore):
    """Also saves pages, with references of the write ``write``."""

    def __init__(self, cache: PageCache, replicas: int, write: bytes) -> None:
        super().__init__(cache, replicas)
        self.saved: list[Stored] = []
        """What was saved through this object, in order."""
        self._write = write

    async def save(self, data: bytes, extents: int) -> Stored:
        assert len(data) <= PAGE_LIMIT_BYTES
        chunk = await self._cache.chunks.put(data, referrer=page_referrer(self._write), replicas=self._replicas)
        page = Stored(chunk, self._write, len(data), extents)
        self.saved.append(page)
        return page
