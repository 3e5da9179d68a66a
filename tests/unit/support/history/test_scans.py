"""Listings: what each page answers for, what is wrong by itself, and what is wrong beside the names' own histories."""

from __future__ import annotations

import pytest

from tests.support.history.history import History
from tests.support.history.operation import CAS, DELETE, NEVER, PUT, READ, Operation
from tests.support.history.scans import Page, faults_of, reads_of

NAMES = [b"a", b"b", b"c", b"d"]


def page(
    call: float,
    ret: float,
    *entries: tuple[bytes, bytes | None],
    after: bytes = b"",
    resume: bytes | None = None,
    limit: int = 10,
    prefix: bytes = b"",
) -> Page:
    return Page(call, ret, after, entries, resume, limit, prefix, who="l")


def history(**written: tuple[float, float]) -> History:
    """Each name written once, with its own name as the value, in these bounds."""
    found = History(NAMES)
    for name, (call, ret) in written.items():
        found.add(name.encode(), Operation(PUT, call, ret, name.encode()))
    return found


def test_a_page_is_a_read_of_each_name_that_it_answers_for() -> None:
    reads = reads_of(page(3, 4, (b"b", b"x"), (b"c", None), after=b"a", resume=b"c"), NAMES)
    assert reads == {
        b"b": Operation(READ, 3, 4, b"x", who="l (a listing)"),
        b"c": Operation(READ, 3, 4, None, who="l (a listing)", told=False),
    }
    assert list(reads_of(page(0, 1), NAMES)) == NAMES
    assert list(reads_of(page(0, 1, prefix=b"b"), NAMES)) == [b"b"]


@pytest.mark.parametrize(
    ("pages", "said"),
    [
        ([page(0, 1, (b"b", b"x"), (b"a", b"y"))], "out of order"),
        ([page(0, 1, (b"a", b"x"), (b"a", b"y"))], "out of order or twice"),
        ([page(0, 1, (b"a", b"x"), (b"b", b"y"), limit=1)], "lists 2 names where 1"),
        ([page(0, 1, (b"a", b"x"), after=b"a")], "outside its page"),
        ([page(0, 1, (b"d", b"x"), resume=b"c")], "outside its page"),
        ([page(0, 1, (b"d", b"x"), prefix=b"c")], "outside its page"),
        ([page(0, 1, after=b"b", resume=b"b")], "does not get on"),
        ([page(0, 1, resume=b"b"), page(2, 3, after=b"c")], "goes on after b'c', not after b'b'"),
        ([page(0, 1), page(2, 3, after=b"c")], "goes on after"),
    ],
)
def test_wrong_by_itself(pages: list[Page], said: str) -> None:
    assert any(said in fault for fault in faults_of(pages))


def test_good_pages_have_no_faults() -> None:
    pages = [
        page(0, 1, (b"a", b"x"), resume=b"a", limit=1),
        page(1, 2, (b"b", b"y"), after=b"a", resume=b"c"),
        page(2, 3, after=b"c"),
    ]
    assert faults_of(pages) == []


def test_what_was_written_before_is_listed() -> None:
    good = history(a=(0, 1), b=(0, 1))
    good.add_listing([page(2, 3, (b"a", b"a"), (b"b", b"b"))])
    assert good.problems() == []
    bad = history(a=(0, 1), b=(0, 1))
    bad.add_listing([page(2, 3, (b"a", b"a"))])
    assert len(bad.problems()) == 1
    assert "b: no order explains" in bad.problems()[0]


def test_a_listing_is_no_picture_of_one_moment() -> None:
    """b is written after a was; a page that overlaps both may have seen b and not a. Two pages all the more."""
    found = history(a=(0, 1), b=(2, 3))
    found.add_listing([page(0, 9, (b"b", b"b"))])
    found.add_listing([page(0, 0.5, resume=b"a"), page(5, 6, (b"b", b"b"), after=b"a")])
    assert found.problems() == []


def test_a_page_answers_for_its_own_time() -> None:
    """The first page had its answer before a was written, the second comes afterwards and does not answer for a."""
    found = history(a=(2, 3))
    found.add_listing([page(0, 1, resume=b"b"), page(4, 5, after=b"b")])
    assert found.problems() == []
    found.add_listing([page(4, 5, resume=b"b")])
    assert found.problems()


def test_two_listings_do_not_go_back() -> None:
    found = History(NAMES)
    found.add(b"a", Operation(PUT, 0, NEVER, b"x"))
    found.add_listing([page(1, 2, (b"a", b"x"))])
    assert found.problems() == []
    found.add_listing([page(3, 4)])
    assert found.problems()


def test_a_listing_that_tells_no_value_shows_that_something_is_there() -> None:
    found = History(NAMES)
    found.add(b"a", Operation(CAS, 0, 1, b"x"))
    found.add(b"a", Operation(DELETE, 4, 5))
    found.add_listing([page(2, 3, (b"a", None))])
    assert found.problems() == []
    found.add_listing([page(6, 7, (b"a", None))])
    assert found.problems()


def test_a_name_that_nobody_wrote() -> None:
    found = history()
    found.add_listing([page(0, 1, (b"z", b"z"))])
    assert "which nobody wrote" in found.problems()[0]
