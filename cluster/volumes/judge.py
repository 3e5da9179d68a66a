"""Answers whether a reference is needed, by looking at the roots of the volume it belongs to (`cluster.repair.judge`).

A referrer begins with a tag, 4 bytes of the hash of the volume's name, which also tell the shard of its head. Names of tags are
remembered from scans of the shards, so that most questions cost one read of a head, shared by the whole batch, and pages from the
cache. That a reference is in *no* root is only said after a scan that began after the question was asked: a volume created since
an earlier one would be missed. Questions that wait share one scan.

What the live root says comes first. A page of it that can't be read is an error of that question, never the answer UNNAMED. A retired
root without one of its pages no longer names what lay below it.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import TypeAlias

from cluster.errors import Corrupt, HoldfastError, NotFound, QuorumUnavailable
from cluster.repair.judge import Verdict
from cluster.volumes.head import VOLUME_SHARDS, Head
from cluster.volumes.head_store import HeadStore
from cluster.volumes.page import LEAF_EXTENTS, PAGE_HEADER_BYTES, page_start
from cluster.volumes.page_store import PageCache
from cluster.volumes.read_coalescer import ReadCoalescer
from cluster.volumes.reference import MAP_CELL, REFERRER_BYTES, TAG_BYTES, split_referrer, tag_of
from cluster.volumes.root_search import RootSearch

NAMES_LIMIT = 64 << 10
"""Tags whose names are remembered: some 10 MiB with names of common length."""

STARTS_LIMIT = 16 << 10
"""Pages whose addresses are remembered: the map of 16 TiB."""

SCAN_PAGE = 500
"""Names in one register scan."""

TAG_WINDOW = 8
"""Volumes of one batch looked at together."""

HEAD_TRIES = 4
"""Reads of a head whose live root goes while it is looked at: each means that the volume was written."""

YIELD_EVERY = 32
"""Questions answered from cached pages before others have their turn on the loop."""

Reference: TypeAlias = tuple[bytes, bytes]
"""``(chunk, referrer)``"""

Answer: TypeAlias = Verdict | HoldfastError


class ReferenceJudge:
    """Owns what is remembered of names. Any number of tasks may ask."""

    def __init__(self, heads: HeadStore, cache: PageCache, leaf_extents: int = LEAF_EXTENTS) -> None:
        self._heads = heads
        self._cache = cache
        self._leaf_extents = leaf_extents
        self._names: OrderedDict[bytes, tuple[str, ...]] = OrderedDict()
        self._scans: ReadCoalescer[int, dict[bytes, list[str]]] = ReadCoalescer(self._scan)
        self._starts: OrderedDict[bytes, int] = OrderedDict()

    async def judge(self, references: Sequence[Reference]) -> list[Verdict]:
        """Verdicts on ``(chunk, referrer)``, in order. Raises QuorumUnavailable, Corrupt when one can't be known now."""
        verdicts = []
        for answer in await self.judge_each(references):
            if isinstance(answer, HoldfastError):
                raise answer
            verdicts.append(answer)
        return verdicts

    async def judge_each(self, references: Sequence[Reference]) -> Sequence[Answer]:
        """As `judge`, but what can't be known about one of them does not hide what is known about the others."""
        by_tag: dict[bytes, Questions] = {}
        for reference in references:
            assert len(reference[1]) == REFERRER_BYTES
            by_tag.setdefault(reference[1][:TAG_BYTES], Questions()).ask(reference)
        window = asyncio.Semaphore(TAG_WINDOW)

        async def answer(tag: bytes, questions: Questions) -> None:
            async with window:
                await self._answer(tag, questions)

        if len(by_tag) == 1:
            for tag, questions in by_tag.items():
                await self._answer(tag, questions)
        else:
            async with asyncio.TaskGroup() as group:
                for tag, questions in by_tag.items():
                    group.create_task(answer(tag, questions))
        return [by_tag[reference[1][:TAG_BYTES]].answers[reference] for reference in references]

    async def names_of(self, tag: bytes) -> tuple[str, ...]:
        """The names with a register now (that is, after this call) whose references begin with ``tag``; seldom more than one."""
        found = await self._scans.read(tag[TAG_BYTES - 1] % VOLUME_SHARDS)
        return tuple(found.get(tag, ()))

    async def _answer(self, tag: bytes, questions: Questions) -> None:
        try:
            known = self._names.get(tag, ())
            for name in known:
                await self._ask(name, tag, questions)
            if questions.open:
                for name in await self.names_of(tag):
                    if name not in known:
                        await self._ask(name, tag, questions)
            questions.close(Verdict.UNNAMED)
        except HoldfastError as error:
            questions.close(error)

    async def _ask(self, name: str, tag: bytes, questions: Questions) -> None:
        """Answer what the roots under ``name`` tell. Raises QuorumUnavailable and Corrupt of the head."""
        before: bytes | None = None
        gone: dict[Reference, HoldfastError] = {}
        for _ in range(HEAD_TRIES):
            version = await self._heads.read(name)
            head = version.head
            if head is None:
                self._forget(tag, name)
                return
            if version.raw == before:
                break
            before = version.raw
            gone = await self._ask_head(head, list(gone) or list(questions.open), questions)
            if not gone:
                return
        for reference, error in gone.items():
            questions.answer(reference, error)

    async def _ask_head(
        self, head: Head, references: Iterable[Reference], questions: Questions
    ) -> dict[Reference, HoldfastError]:
        """Those that met a page of the live root that is nowhere: the root may just have been reclaimed."""
        live = RootSearch(head, self._cache, self._leaf_extents) if head.live else None
        retired = []
        for entry in reversed(head.retired):
            try:
                retired.append(RootSearch(entry, self._cache, self._leaf_extents))
            except Corrupt:
                continue  # nobody can read it any more
        gone: dict[Reference, HoldfastError] = {}
        for number, reference in enumerate(references, 1):
            if number % YIELD_EVERY == 0:
                await asyncio.sleep(0)
            try:
                verdict = await self._search(live, retired, reference)
            except NotFound as error:
                gone[reference] = QuorumUnavailable(
                    f"A page of the volume {head.name!r} can't be found: {error.message}"
                )
            except HoldfastError as error:
                questions.answer(reference, error)
            else:
                if verdict is not Verdict.UNNAMED:
                    questions.answer(reference, verdict)
        return gone

    async def _search(self, live: RootSearch | None, retired: Sequence[RootSearch], reference: Reference) -> Verdict:
        chunk, referrer = reference
        write, cell = split_referrer(referrer)
        roots = [*([live] if live is not None else []), *retired]
        start: int | None = None
        if cell == MAP_CELL:
            roots = [root for root in roots if root.has_pages]
            start = await self._start_of(chunk, [root.replicas for root in roots])
        for root in roots:
            try:
                if cell != MAP_CELL:
                    named = await root.names_data(chunk, write, cell)
                elif start is not None:
                    named = await root.names_page(chunk, write, start)
                else:
                    named = await root.names_page_anywhere(chunk, write)
            except (NotFound, Corrupt):
                if root is live:
                    raise
                continue
            if named:
                return Verdict.LIVE if root is live else Verdict.RETIRED
        return Verdict.UNNAMED

    async def _start_of(self, chunk: bytes, replicas: Sequence[int]) -> int | None:
        """The address that the page says it is for; None when no good copy of it is left. Raises QuorumUnavailable."""
        known = self._starts.get(chunk)
        if known is not None:
            self._starts.move_to_end(chunk)
            return known
        for copies in dict.fromkeys(replicas):
            try:
                data = await self._cache.chunks.read(chunk, 0, PAGE_HEADER_BYTES, replicas=copies)
                start = page_start(bytes(data))
            except (NotFound, Corrupt):
                continue
            self._starts[chunk] = start
            if len(self._starts) > STARTS_LIMIT:
                self._starts.popitem(last=False)
            return start
        return None

    async def _scan(self, shard: int) -> dict[bytes, list[str]]:
        """All names of a shard by their tags; remembered."""
        found: dict[bytes, list[str]] = {}
        after: bytes | None = b""
        while after is not None:
            names, after = await self._heads.scan_names(shard, after, SCAN_PAGE)
            for name in names:
                found.setdefault(tag_of(name), []).append(name)
        for tag, names in found.items():
            self._names[tag] = tuple(names)
            self._names.move_to_end(tag)
        while len(self._names) > NAMES_LIMIT:
            self._names.popitem(last=False)
        return found

    def _forget(self, tag: bytes, name: str) -> None:
        left = tuple(known for known in self._names.get(tag, ()) if known != name)
        if left:
            self._names[tag] = left
        else:
            self._names.pop(tag, None)


class Questions:
    """What is asked about the references of one tag, and what is known so far."""

    def __init__(self) -> None:
        self.open: dict[Reference, None] = {}
        self.answers: dict[Reference, Answer] = {}

    def ask(self, reference: Reference) -> None:
        self.open[reference] = None

    def answer(self, reference: Reference, answer: Answer) -> None:
        del self.open[reference]
        self.answers[reference] = answer

    def close(self, answer: Answer) -> None:
        """The same answer to all that are left."""
        for reference in list(self.open):
            self.answer(reference, answer)
