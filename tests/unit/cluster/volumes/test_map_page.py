"""Page and head bytes: what is encoded is decoded, what is damaged is Corrupt and nothing else, and the documented example is true."""

from __future__ import annotations

import contextlib
import re
from dataclasses import replace
from pathlib import Path

import msgpack
import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.errors import Corrupt
from cluster.volumes.extent import Extent
from cluster.volumes.head import Head, RetiredRoot, decode_head, encode_head
from cluster.volumes.page import (
    FAN_OUT,
    INTERIOR_LIMIT_BYTES,
    LEAF_EXTENTS,
    PAGE_HEADER_BYTES,
    PAGE_LIMIT_BYTES,
    Interior,
    Leaf,
    Node,
    Stored,
    decode_page,
    encode_interior,
    encode_leaf,
    encode_node,
    page_start,
)
from cluster.volumes.volume_map import INLINE_LIMIT_BYTES, Root

SPAN = 64 * 4096


def write(number: int) -> bytes:
    return number.to_bytes(10, "big")


def chunk(number: int) -> bytes:
    return blake3(b"%d" % number).digest()


@st.composite
def leaves(draw: st.DrawFn) -> tuple[int, Leaf]:
    start = draw(st.sampled_from([0, SPAN, 5 * SPAN]))
    at, extents = start, []
    for _ in range(draw(st.integers(1, 12))):
        at += draw(st.integers(1, 300))  # a gap, so that neighbours never continue each other
        length = draw(st.integers(1, 4000))
        number = draw(st.integers(0, 3))
        extents.append(Extent(at, length, chunk(number), draw(st.integers(0, 4 << 20)), write(number % 2)))
        at += length
    return start, Leaf(tuple(extents))


@st.composite
def interiors(draw: st.DrawFn) -> tuple[int, Interior]:
    indexes = draw(st.sets(st.integers(0, FAN_OUT - 1), min_size=1))
    children: dict[int, Node] = {
        index: Stored(
            chunk(index), write(index % 3), draw(st.integers(30, PAGE_LIMIT_BYTES)), draw(st.integers(0, 1023))
        )
        for index in indexes
    }
    return draw(st.sampled_from([0, SPAN])), Interior(children)


@settings(max_examples=100, deadline=None)
@given(st.one_of(leaves(), interiors()))
def test_a_page_comes_back(page: tuple[int, Leaf | Interior]) -> None:
    start, node = page
    assert decode_page(encode_node(node, start), start, SPAN) == node


@settings(max_examples=100, deadline=None)
@given(st.one_of(leaves(), interiors()), st.integers(0, 10_000), st.integers(1, 255), st.booleans())
def test_a_damaged_page_is_corrupt_or_another_page_but_never_another_error(
    page: tuple[int, Leaf | Interior], position: int, flip: int, cut: bool
) -> None:
    start, node = page
    data = bytearray(encode_node(node, start))
    if cut:
        del data[position % len(data) :]
        with pytest.raises(Corrupt):
            decode_page(bytes(data), start, SPAN)
        return
    data[position % len(data)] ^= flip
    with contextlib.suppress(Corrupt):
        assert decode_page(bytes(data), start, SPAN) != node


def test_a_page_in_the_wrong_place_is_corrupt() -> None:
    extents = [Extent(10, 5, chunk(1), 0, write(1))]
    for start, span in ((SPAN, SPAN), (0, 12)):
        with pytest.raises(Corrupt):
            decode_page(encode_leaf(extents, 0), start, span)


def test_the_limits_hold_for_the_largest_pages() -> None:
    extents = [Extent(7 * index, 5, chunk(index), 0, write(index)) for index in range(LEAF_EXTENTS)]
    assert PAGE_LIMIT_BYTES - 64 <= len(encode_leaf(extents, 0)) <= PAGE_LIMIT_BYTES
    children: dict[int, Node] = {index: Stored(chunk(index), write(index), 9, 9) for index in range(FAN_OUT)}
    assert len(encode_interior(children, 0)) == INTERIOR_LIMIT_BYTES
    one_write = [Extent(4096 * index, 4096, chunk(index), 0, write(1)) for index in range(18)]
    assert len(encode_leaf(one_write, 0)) <= INLINE_LIMIT_BYTES


def head(root: Root, retired: tuple[RetiredRoot, ...] = ()) -> Head:
    return Head(b"stamp678", write(1), bytes(16), True, 3, "v", 10, 4096, 3, "fsync", root, 1.5, 2.5, retired)


def test_a_head_comes_back() -> None:
    page = Root(page=Stored(chunk(1), write(2), 100, 7))
    for root in (Root(), Root(b"inline"), page):
        entry = RetiredRoot(write(9), bytes(16), root, 5, 4096, 3, 7.25)
        value = head(root, (entry, entry))
        assert decode_head(encode_head(value)) == value
        value = replace(value, fenced=(write(3), write(4)), fences=70)
        assert decode_head(encode_head(value)) == value


def test_a_head_of_before_there_were_fences_has_none_and_unknown_items_are_ignored() -> None:
    value = head(Root(b"inline"))
    items = msgpack.unpackb(encode_head(value))
    assert len(items) == 17
    assert decode_head(msgpack.packb(items[:15])) == value
    assert decode_head(msgpack.packb([*items, "news"])) == value


@settings(max_examples=50, deadline=None)
@given(st.one_of(leaves(), interiors()))
def test_the_beginning_of_a_page_says_where_it_starts(page: tuple[int, Leaf | Interior]) -> None:
    start, node = page
    data = encode_node(node, start)
    assert page_start(data[:PAGE_HEADER_BYTES]) == start
    for damaged in (data[: PAGE_HEADER_BYTES - 1], b"x" + data[1:], data[:4] + b"\x09" + data[5:]):
        with pytest.raises(Corrupt):
            page_start(damaged)


@pytest.mark.parametrize("damage", [b"", b"\x90", b"\xc1", b"\x91\x02", encode_head(head(Root()))[:-1], b"\x01"])
def test_a_damaged_head_is_corrupt(damage: bytes) -> None:
    with pytest.raises(Corrupt):
        decode_head(damage)


def test_the_documented_example_is_what_is_written() -> None:
    text = (Path(__file__).parents[4] / "docs/formats/volume-map.md").read_text()
    block = text.split("<!-- example -->")[1].split("```")[1]
    documented = bytes.fromhex("".join(re.findall(r"^([0-9a-f]{2}(?: [0-9a-f]{2})*)(?:  |$)", block, re.MULTILINE)))
    first, second = blake3(b"first").digest(), blake3(b"second").digest()
    old, new = bytes.fromhex("d1a0c0de000000000001"), bytes.fromhex("d1a0c0de000000000002")
    extents = [
        Extent(0, 1000, first, 0, old),
        Extent(1000, 96, second, 0, new),
        Extent(1096, 3000, first, 1096, old),
    ]
    assert documented == encode_leaf(extents, 0)
    assert decode_page(documented, 0, 4096) == Leaf(tuple(extents))
