"""Conditional requests of RFC 9110 (section 13), as pure parsing and comparing of entity tags.

A volume's entity tag is strong and opaque; here it is the bare text between the quotes. Header values are kept as what they
mean: `ANY` for ``*``, else the tags listed. A malformed precondition is refused (400), never ignored: a client that sent
``If-Match`` relies on it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from enum import Enum
from typing import Final, Literal

from multidict import MultiMapping

from cluster.errors import Invalid


class Wildcard(Enum):
    """``*``: whatever exists."""

    ANY = "*"


ANY: Final = Wildcard.ANY

_TAG = r'(W/)?"([\x21\x23-\x7e\x80-\xff]*)"'
_ONE = re.compile(_TAG)
# One pass over the list; empty elements are allowed (RFC 9110 section 5.6.1.2). Each alternative begins with a different character,
# so that matching takes linear time.
_LIST = re.compile(rf"(?:[ \t,]|{_TAG}(?=[ \t]*(?:,|$)))*")


@dataclass(frozen=True, slots=True)
class EntityTag:
    value: str
    weak: bool = False


EntityTags = tuple[EntityTag, ...] | Literal[Wildcard.ANY]


def parse_entity_tags(header: str, field: str) -> EntityTags:
    """The tags of an If-Match or If-None-Match value. Raises Invalid naming `field`."""
    text = header.strip(" \t")
    if text == "*":
        return ANY
    if _LIST.fullmatch(text) is not None:
        tags = tuple(EntityTag(match[2], match[1] is not None) for match in _ONE.finditer(text))
        if tags:
            return tags
    raise Invalid(f'{field} must be * or a list of entity tags in double quotes, such as "abc"', field=field)


def entity_tags_of(headers: MultiMapping[str], field: str) -> EntityTags | None:
    """The tags of a request's `field`; None when it was not sent. Several lines are one list (RFC 9110 section 5.3).
    Raises Invalid."""
    if field not in headers:
        return None
    return parse_entity_tags(", ".join(headers.getall(field)), field)


def strong_values(tags: EntityTags | None) -> frozenset[str] | None:
    """The values that can match strongly; ``{"*"}`` for ANY, None for no condition. Weak tags never match If-Match."""
    if tags is None:
        return None
    if tags is ANY:
        return frozenset("*")
    return frozenset(tag.value for tag in tags if not tag.weak)


def weak_values(tags: EntityTags | None) -> frozenset[str] | None:
    """The values that match under weak comparison (If-None-Match); ``{"*"}`` for ANY, None for no condition."""
    if tags is None:
        return None
    if tags is ANY:
        return frozenset("*")
    return frozenset(tag.value for tag in tags)


class Verdict(Enum):
    """What the preconditions of a read say (RFC 9110 section 13.2.2)."""

    PROCEED = 200
    NOT_MODIFIED = 304
    FAILED = 412


def evaluate_read(headers: MultiMapping[str], etag: str, modified: float) -> Verdict:
    """The verdict on a GET or HEAD of content that exists. `modified` is in seconds since the epoch, for people.

    If-Modified-Since and If-Unmodified-Since count whole seconds and only where no entity tag condition of their kind was sent;
    a date that can't be parsed is ignored, as RFC 9110 sections 13.1.3 and 13.1.4 demand.
    Raises Invalid for malformed entity tags.
    """
    allowed = strong_values(entity_tags_of(headers, "If-Match"))
    if allowed is not None:
        if "*" not in allowed and etag not in allowed:
            return Verdict.FAILED
    elif (moment := parse_http_date(headers.get("If-Unmodified-Since"))) is not None and int(modified) > moment:
        return Verdict.FAILED
    refused = weak_values(entity_tags_of(headers, "If-None-Match"))
    if refused is not None:
        if "*" in refused or etag in refused:
            return Verdict.NOT_MODIFIED
    elif (moment := parse_http_date(headers.get("If-Modified-Since"))) is not None and int(modified) <= moment:
        return Verdict.NOT_MODIFIED
    return Verdict.PROCEED


def range_applies(if_range: str | None, etag: str) -> bool:
    """Whether a Range header counts beside this If-Range (RFC 9110 section 13.1.5).

    Only the current strong entity tag lets it count. A date never does: a volume may change twice within a second, so its
    modification time is not a strong validator.
    """
    return if_range is None or if_range.strip(" \t") == f'"{etag}"'


def parse_http_date(value: str | None) -> int | None:
    """Seconds since the epoch, or None for what isn't an HTTP date."""
    if value is None:
        return None
    try:
        moment = parsedate_to_datetime(value)
        return int(moment.timestamp()) if moment.tzinfo is not None else None
    except (ValueError, TypeError, OverflowError, IndexError):
        return None
