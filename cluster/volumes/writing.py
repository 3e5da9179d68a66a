"""One change of content on its way: its body into chunks, its map onto the newest root, and what becomes of it all when it fails.

`Unfinished` knows what a change has stored so far and whether a root may name it. As long as that is certainly not so, a failure hands
everything to the reclaimer; once a swing is under way, only its answer may say so (an unknown outcome leaves everything where it is).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from cluster.volumes.head import Head
from cluster.volumes.map_builder import MapBuilder
from cluster.volumes.map_splice import spliced
from cluster.volumes.page import Node
from cluster.volumes.page_store import PageCache, WritePages
from cluster.volumes.ports import Chunks
from cluster.volumes.reclaim import Abandoned, Reclaimer
from cluster.volumes.volume_map import Geometry, Root, lifted, stored_root
from cluster.volumes.write_budget import WriteBudget
from cluster.volumes.writer import WRITE_WINDOW, BodyWriter


class Unfinished:
    """What the write ``write`` stored: parts of its tree, and the pages of its attempts to swing, of which the last may win."""

    def __init__(
        self, reclaimer: Reclaimer, cache: PageCache, replicas: int = 1, chunk_size: int = 1, write: bytes = b""
    ) -> None:
        """A change that stores nothing needs neither shape nor write."""
        self.in_doubt = False
        """A root may name it: a swing is under way, was done, or ended without an answer."""
        self.parts: Callable[[], list[tuple[Node, int, int]]] = list
        self._reclaimer = reclaimer
        self._cache = cache
        self._replicas = replicas
        self._chunk_size = chunk_size
        self._write = write
        self._attempts: list[WritePages] = []

    def attempt(self) -> WritePages:
        """Where a new attempt saves its pages."""
        pages = WritePages(self._cache, self._replicas, self._write)
        self._attempts.append(pages)
        return pages

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """Whatever ends the block early, cancellation too, leaves nothing behind that a root can't name."""
        try:
            yield
        except BaseException:
            self._failed()
            raise

    def succeeded(self) -> None:
        """The last attempt won: the pages of the others, unless it saved the same ones, are waste."""
        if len(self._attempts) > 1:
            kept = set(self._attempts[-1].saved)
            wasted = tuple(page for pages in self._attempts[:-1] for page in pages.saved if page not in kept)
            self._reclaimer.abandon(Abandoned(self._replicas, self._chunk_size, pages=wasted))

    def _failed(self) -> None:
        if not self.in_doubt:
            pages = tuple(page for attempt in self._attempts for page in attempt.saved)
            self._reclaimer.abandon(Abandoned(self._replicas, self._chunk_size, tuple(self.parts()), pages))


@dataclass(frozen=True, slots=True)
class Stores:
    """What a gateway's writes share."""

    chunks: Chunks
    cache: PageCache
    reclaimer: Reclaimer
    budget: WriteBudget
    leaf_extents: int
    window: int = WRITE_WINDOW


class Writing:
    """The body of one PUT, for a volume of the shape of ``shape``: first `store`, then a root as often as it takes."""

    def __init__(self, stores: Stores, shape: Head, write: bytes, start: int = 0) -> None:
        self.unfinished = Unfinished(stores.reclaimer, stores.cache, shape.replicas, shape.chunk_size, write)
        self._start = start
        self._stop = start
        self._geometry = Geometry(shape.chunk_size, stores.leaf_extents)
        self._builder = MapBuilder(self._geometry, WritePages(stores.cache, shape.replicas, write), start)
        self._side: Node | None = None
        self._side_span = 0
        self.unfinished.parts = self._parts
        self._writer = BodyWriter(
            stores.chunks,
            stores.budget,
            self._builder,
            write=write,
            chunk_size=shape.chunk_size,
            replicas=shape.replicas,
            window=stores.window,
        )

    async def store(self, body: AsyncIterator[bytes], length: int | None, limit: int) -> int:
        """All of the body into chunks; returns its length. Errors: see `BodyWriter.store`."""
        received = await self._writer.store(body, self._start, length, limit)
        self._stop = self._start + received
        self._side_span = self._geometry.root_span(self._stop)
        self._side = await self._builder.finish(self._side_span, self._stop)
        return received

    async def whole_root(self) -> Root:
        """The root of a volume that is the body and nothing else."""
        return await stored_root(self._side, self._side_span, self.unfinished.attempt())

    async def root_over(self, head: Head) -> Root:
        """The root of ``head`` with the body's range replaced. The body must lie inside."""
        pages = self.unfinished.attempt()
        span = self._geometry.root_span(head.size)
        side = lifted(self._side, self._side_span, span)
        base = head.root.node(span)
        node = await spliced(base, side, 0, span, self._start, self._stop, self._geometry, pages)
        return await stored_root(node, span, pages)

    def _parts(self) -> list[tuple[Node, int, int]]:
        if self._side is not None:
            return [(self._side, 0, self._side_span)]
        return self._builder.parts()
