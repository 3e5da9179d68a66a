"""What a listing promises, and checking it.

A page of a listing answers for the names after where it began, up to where the next page begins (or to the end). For *each* of them it is
a read of that name: what it lists was there with that value, and what it leaves out was absent, at some moment between the page's request
and its answer (`cluster.register.reader.Reader.scan`: "each as current as `read` would give it"). Names come in order, each once, and
pages leave no gap.

A page is *not* a picture of one moment: two names in it may have been read at different moments, and two pages always are. So each name is
judged by itself, together with its own history, and nothing is asked of combinations of names.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from tests.support.history.operation import READ, Operation


@dataclass(frozen=True, slots=True)
class Page:
    """``entries``: ``(name, value)``, the value None where the answer told only that the name exists. ``resume``: after which name the next
    page begins, None at the end."""

    call: float
    ret: float
    after: bytes
    entries: tuple[tuple[bytes, bytes | None], ...]
    resume: bytes | None
    limit: int
    prefix: bytes = b""
    who: str = ""

    def covers(self, name: bytes) -> bool:
        """Whether the page answers for a name."""
        return name.startswith(self.prefix) and name > self.after and (self.resume is None or name <= self.resume)


def faults_of(pages: Sequence[Page]) -> list[str]:
    """What is wrong with one listing by itself, whatever is in the names' histories; its pages in order."""
    faults: list[str] = []
    for page in pages:
        names = [name for name, _ in page.entries]
        if names != sorted(set(names)):
            faults.append(f"{page.who} lists names out of order or twice: {names}")
        if len(names) > page.limit:
            faults.append(f"{page.who} lists {len(names)} names where {page.limit} were asked for")
        faults += [f"{page.who} lists {name!r}, which is outside its page" for name in names if not page.covers(name)]
        if page.resume is not None and page.resume <= page.after:
            faults.append(f"{page.who} does not get on from {page.after!r}")
    for page, following in pairwise(pages):
        if page.resume is None or following.after != page.resume:
            faults.append(f"{following.who} goes on after {following.after!r}, not after {page.resume!r}")
    return faults


def reads_of(page: Page, names: Iterable[bytes]) -> dict[bytes, Operation]:
    """The reads that a page stands for, of those of ``names`` that it answers for."""
    listed = dict(page.entries)
    return {
        name: Operation(
            READ,
            page.call,
            page.ret,
            listed.get(name),
            who=f"{page.who} (a listing)" if page.who else "a listing",
            told=name not in listed or listed[name] is not None,
        )
        for name in names
        if page.covers(name)
    }
