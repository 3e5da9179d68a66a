"""Range and Content-Range against RFC 9110, and against a naive reading of it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.errors import Invalid
from node.api.ranges import LARGEST_POSITION, ContentRange, UnsatisfiableRangeError, parse_content_range, parse_range


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("bytes=0-0", (0, 1)),
        ("bytes=0-99", (0, 100)),
        ("bytes=90-1000", (90, 100)),
        ("bytes=99-", (99, 100)),
        ("bytes=-1", (99, 100)),
        ("bytes=-1000", (0, 100)),
        ("BYTES=5-6", (5, 7)),
        ("bytes= 5-6 ", (5, 7)),
        ("bytes=,5-6,", (5, 7)),
        ("bytes=000005-000006", (5, 7)),
        ("bytes=5-" + "9" * 5000, (5, 100)),
        ("bytes=" + "0" * 5000 + "5-6", (5, 7)),
        ("bytes=-" + "9" * 5000, (0, 100)),
        # ignored: the whole is sent
        ("bytes=9-5", None),
        ("bytes=--5", None),
        ("bytes=-", None),
        ("bytes=", None),
        ("bytes=0-4,5-9", None),
        ("bytes=0-5,3-9", None),
        ("bytes=200-300,400-500", None),
        ("bytes=a-b", None),
        ("bytes=1.5-2", None),
        ("bytes=+1-2", None),
        ("bytes=\u0661-\u0662", None),
        ("bytes 0-5", None),
        ("items=0-5", None),
        ("", None),
    ],
)
def test_range_of_a_hundred_bytes(header: str, expected: tuple[int, int] | None) -> None:
    assert parse_range(header, 100) == expected


@pytest.mark.parametrize("header", ["bytes=100-", "bytes=100-200", "bytes=-0", "bytes=" + "9" * 5000 + "-"])
def test_range_outside_is_unsatisfiable(header: str) -> None:
    with pytest.raises(UnsatisfiableRangeError):
        parse_range(header, 100)


def test_ranges_of_nothing() -> None:
    with pytest.raises(UnsatisfiableRangeError):
        parse_range("bytes=0-", 0)
    with pytest.raises(UnsatisfiableRangeError):
        parse_range("bytes=-0", 0)
    assert parse_range("bytes=-5", 0) is None


@given(first=st.integers(0, 40), last=st.integers(0, 40), size=st.integers(0, 30))
def test_range_gives_exactly_the_bytes_between_its_positions(first: int, last: int, size: int) -> None:
    wanted = [position for position in range(size) if first <= position <= last]
    try:
        got = parse_range(f"bytes={first}-{last}", size)
    except UnsatisfiableRangeError:
        assert first >= size
        return
    if last < first:
        assert got is None
    else:
        assert got is not None
        assert list(range(*got)) == wanted != []


@given(count=st.integers(1, 40), size=st.integers(1, 30))
def test_suffix_gives_the_last_bytes(count: int, size: int) -> None:
    got = parse_range(f"bytes=-{count}", size)
    assert got is not None
    assert list(range(*got)) == list(range(size))[-count:]


@given(header=st.text(max_size=40), size=st.integers(0, LARGEST_POSITION))
def test_no_header_breaks_the_parser(header: str, size: int) -> None:
    for text in (header, "bytes=" + header):
        try:
            got = parse_range(text, size)
        except UnsatisfiableRangeError:
            continue
        assert got is None or 0 <= got[0] < got[1] <= size


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("bytes 0-9/20", ContentRange(0, 10, 20)),
        ("bytes 0-9/*", ContentRange(0, 10, None)),
        ("Bytes 5-5/6 ", ContentRange(5, 6, 6)),
    ],
)
def test_content_range(header: str, expected: ContentRange) -> None:
    assert parse_content_range(header) == expected
    assert expected.length == expected.stop - expected.start


@pytest.mark.parametrize(
    "header",
    [
        "",
        "bytes */20",
        "bytes 9-0/20",
        "bytes 0-20/20",
        "bytes -5/20",
        "bytes 0-/20",
        "bytes 0-9",
        "bytes=0-9/20",
        "items 0-9/20",
        "bytes 0-9/20, bytes 10-19/20",
        "bytes -1-5/20",
        "bytes 0-9/-1",
    ],
)
def test_content_range_is_never_guessed_at(header: str) -> None:
    with pytest.raises(Invalid) as caught:
        parse_content_range(header)
    assert caught.value.details["field"] == "Content-Range"


@given(start=st.integers(0, 1 << 70), length=st.integers(1, 1 << 40), extra=st.integers(0, 1 << 40) | st.none())
def test_content_range_round_trip(start: int, length: int, extra: int | None) -> None:
    last = start + length - 1
    total = "*" if extra is None else str(last + 1 + extra)
    try:
        place = parse_content_range(f"bytes {start}-{last}/{total}")
    except Invalid:
        assert last >= LARGEST_POSITION or (extra is not None and last + 1 + extra >= LARGEST_POSITION)
        return
    if last < LARGEST_POSITION:
        assert (place.start, place.length) == (start, length)
