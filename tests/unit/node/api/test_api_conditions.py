"""Entity tags, preconditions of reads, and their order of evaluation (RFC 9110 section 13)."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict

from cluster.errors import Invalid
from cluster.volumes.volume import Condition
from node.api.conditions import (
    ANY,
    EntityTag,
    Verdict,
    entity_tags_of,
    evaluate_read,
    parse_entity_tags,
    parse_http_date,
    range_applies,
    strong_values,
    weak_values,
)
from node.api.volume_routes import write_condition

MODIFIED = 1_700_000_000.75
MODIFIED_DATE = "Tue, 14 Nov 2023 22:13:20 GMT"
EARLIER = "Tue, 14 Nov 2023 22:13:19 GMT"
LATER = "Tue, 14 Nov 2023 22:13:21 GMT"

tag_text = st.text(
    st.characters(codec="latin-1", exclude_characters='"', min_codepoint=0x21, exclude_categories=["Cc"]), max_size=8
).filter(lambda text: all(character <= "\x7e" or character >= "\x80" for character in text))


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("*", ANY),
        (" * ", ANY),
        ('"a"', (EntityTag("a"),)),
        ('W/"a"', (EntityTag("a", weak=True),)),
        ('"a", W/"b" ,"c"', (EntityTag("a"), EntityTag("b", weak=True), EntityTag("c"))),
        (', "a",, ,', (EntityTag("a"),)),
        ('""', (EntityTag(""),)),
        ('"a,b", "c"', (EntityTag("a,b"), EntityTag("c"))),
        ('"*"', (EntityTag("*"),)),
    ],
)
def test_tags(header: str, expected: object) -> None:
    assert parse_entity_tags(header, "If-Match") == expected


@pytest.mark.parametrize(
    "header", ["", ",", "a", '"a', 'a"', '"a" "b"', '"a"b', 'w/"a"', '*, "a"', '"a", *', "'a'", '"a\tb"', "W/a"]
)
def test_malformed_tags_are_refused(header: str) -> None:
    with pytest.raises(Invalid) as caught:
        parse_entity_tags(header, "If-None-Match")
    assert caught.value.details["field"] == "If-None-Match"


@given(st.lists(st.tuples(tag_text, st.booleans()), min_size=1, max_size=6))
def test_tags_round_trip(tags: list[tuple[str, bool]]) -> None:
    header = ", ".join(f'{"W/" if weak else ""}"{value}"' for value, weak in tags)
    assert parse_entity_tags(header, "If-Match") == tuple(EntityTag(value, weak) for value, weak in tags)


@given(st.text(max_size=60) | st.text('"W/, *a', max_size=2000))
def test_any_text_is_tags_or_invalid(text: str) -> None:
    with contextlib.suppress(Invalid):
        parse_entity_tags(text, "If-Match")


def test_long_malformed_lists_take_linear_time() -> None:
    for header in ('"a"' * 3000, " ," * 4000 + "x", '"' * 8000, 'W/"' * 2500):
        with pytest.raises(Invalid):
            parse_entity_tags(header, "If-Match")


def test_several_lines_are_one_list() -> None:
    headers = CIMultiDict([("If-Match", '"a"'), ("if-match", 'W/"b", "c"')])
    tags = entity_tags_of(headers, "If-Match")
    assert strong_values(tags) == frozenset("ac")
    assert weak_values(tags) == frozenset("abc")
    assert entity_tags_of(headers, "If-None-Match") is None


@pytest.mark.parametrize(
    ("headers", "verdict"),
    [
        ({}, Verdict.PROCEED),
        ({"If-Match": '"now"'}, Verdict.PROCEED),
        ({"If-Match": "*"}, Verdict.PROCEED),
        ({"If-Match": '"x", "now"'}, Verdict.PROCEED),
        ({"If-Match": '"old"'}, Verdict.FAILED),
        ({"If-Match": 'W/"now"'}, Verdict.FAILED),
        ({"If-None-Match": '"now"'}, Verdict.NOT_MODIFIED),
        ({"If-None-Match": 'W/"now"'}, Verdict.NOT_MODIFIED),
        ({"If-None-Match": "*"}, Verdict.NOT_MODIFIED),
        ({"If-None-Match": '"old"'}, Verdict.PROCEED),
        ({"If-Match": '"old"', "If-None-Match": '"now"'}, Verdict.FAILED),
        ({"If-Match": '"now"', "If-None-Match": '"now"'}, Verdict.NOT_MODIFIED),
        ({"If-Modified-Since": EARLIER}, Verdict.PROCEED),
        ({"If-Modified-Since": MODIFIED_DATE}, Verdict.NOT_MODIFIED),
        ({"If-Modified-Since": LATER}, Verdict.NOT_MODIFIED),
        ({"If-Modified-Since": "yesterday"}, Verdict.PROCEED),
        ({"If-Unmodified-Since": EARLIER}, Verdict.FAILED),
        ({"If-Unmodified-Since": MODIFIED_DATE}, Verdict.PROCEED),
        ({"If-Unmodified-Since": "nonsense"}, Verdict.PROCEED),
        # entity tags take precedence over dates
        ({"If-None-Match": '"old"', "If-Modified-Since": LATER}, Verdict.PROCEED),
        ({"If-Match": '"now"', "If-Unmodified-Since": EARLIER}, Verdict.PROCEED),
    ],
)
def test_verdict(headers: dict[str, str], verdict: Verdict) -> None:
    assert evaluate_read(CIMultiDict(headers), "now", MODIFIED) is verdict


@pytest.mark.parametrize(
    ("if_range", "applies"),
    [
        (None, True),
        ('"now"', True),
        (' "now" ', True),
        ('"old"', False),
        ('W/"now"', False),
        ("now", False),
        (MODIFIED_DATE, False),
    ],
)
def test_if_range(if_range: str | None, applies: bool) -> None:
    assert range_applies(if_range, "now") is applies


def test_dates() -> None:
    assert parse_http_date(MODIFIED_DATE) == 1_700_000_000
    assert parse_http_date(None) is None
    for nonsense in ("", "x", "Tue, 99 Nov 2023 22:13:20 GMT", "Tue, 14 Nov 99999999999 22:13:20 GMT", "0" * 3000):
        assert parse_http_date(nonsense) is None


def test_conditions_of_changes() -> None:
    assert write_condition(CIMultiDict()) == Condition()
    assert write_condition(CIMultiDict({"If-Match": 'W/"a", "b"'})) == Condition(if_match=frozenset({"b"}))
    assert write_condition(CIMultiDict({"If-None-Match": "*"})) == Condition(if_none_match=frozenset({"*"}))
    with pytest.raises(Invalid, match="use If-Match"):
        write_condition(CIMultiDict({"If-Unmodified-Since": MODIFIED_DATE}))
