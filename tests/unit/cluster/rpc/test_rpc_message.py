"""Messages: packed as arrays, checked on the way in, readable by the releases before and after."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import msgpack
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cluster.errors import Invalid
from cluster.rpc.codec import codec_of
from cluster.rpc.message import Buffer, Done, Request, message, payload_joined, payload_pieces, payload_size


@message
@dataclass(frozen=True, slots=True)
class Inner:
    number: int
    text: str | None = None


@message
@dataclass(frozen=True, slots=True)
class Everything:
    whole: int
    real: float
    flag: bool
    text: str
    raw: bytes
    maybe: bytes | None
    mixed: int | str | None
    numbers: tuple[int, ...]
    reals: tuple[float, ...]
    pairs: tuple[tuple[str, int], ...]
    nested: Inner
    maybe_nested: Inner | None
    many: tuple[Inner, ...]
    by_name: dict[str, int]
    nested_by_name: dict[str, Inner]
    deep: dict[str, tuple[dict[str, Inner], ...]]
    anything: object
    late: tuple[Inner, ...] = (Inner(5, "default"),)
    later: dict[str, int] = field(default_factory=lambda: {"a": 1})


@message("test.ask", reply=Done)
@dataclass(frozen=True, slots=True)
class Ask(Request[Done]):
    number: int


whole = st.integers(-(2**63), 2**64 - 1)
inner = st.builds(Inner, whole, st.none() | st.text())
everything = st.builds(
    Everything,
    whole,
    st.floats(allow_nan=False),
    st.booleans(),
    st.text(),
    st.binary(),
    st.none() | st.binary(),
    st.none() | whole | st.text(),
    st.lists(whole).map(tuple),
    st.lists(st.floats(allow_nan=False)).map(tuple),
    st.lists(st.tuples(st.text(), whole)).map(tuple),
    inner,
    st.none() | inner,
    st.lists(inner).map(tuple),
    st.dictionaries(st.text(), whole),
    st.dictionaries(st.text(), inner),
    st.dictionaries(st.text(), st.lists(st.dictionaries(st.text(), inner)).map(tuple)),
    st.none() | whole | st.lists(st.text()).map(tuple),
    st.lists(inner).map(tuple),
    st.dictionaries(st.text(), whole),
)


def travelled(value: Any) -> Any:
    """What the far end unpacks."""
    packed = msgpack.packb(codec_of(type(value)).pack(value))
    return msgpack.unpackb(packed, use_list=False)


@settings(
    max_examples=40, suppress_health_check=[HealthCheck.too_slow], deadline=None
)  # the message is large on purpose
@given(everything)
def test_what_arrives_is_what_was_sent(value: Everything) -> None:
    assert codec_of(Everything).unpack(travelled(value)) == value


@given(
    st.integers(0, 18),
    st.recursive(
        st.none() | st.booleans() | whole | st.floats() | st.text() | st.binary(),
        lambda item: st.lists(item, max_size=3).map(tuple) | st.dictionaries(st.text() | st.binary(), item, max_size=3),
        max_leaves=6,
    ),
)
def test_whatever_stands_in_a_field_makes_a_lawful_message_or_is_invalid(at: int, strange: object) -> None:
    value = Everything(1, 1.0, True, "", b"", None, None, (), (), (), Inner(1), None, (), {}, {}, {}, None)
    items = list(travelled(value))
    items[at] = strange
    try:
        result = codec_of(Everything).unpack(tuple(items))
    except Invalid:
        return
    assert repr(codec_of(Everything).unpack(travelled(result))) == repr(result)


@pytest.mark.parametrize(
    ("at", "wrong"),
    [
        (0, True), (0, 1.0), (0, None), (1, "1"), (1, True), (2, 1), (3, b"a"), (4, "a"), (5, "a"), (6, b"a"), (6, 1.5),
        (7, [1]), (7, (1, "a")), (7, (True,)), (8, ("a",)), (9, (("a",),)), (9, (("a", "b"),)), (10, (1, 2)), (10, None),
        (11, ("a",)), (12, ((1,), 5)), (13, {"a": "b"}), (13, {1: 1}), (14, {"a": ("x",)}), (15, {"a": ({"b": 1},)}),
    ],
)  # fmt: skip
def test_each_field_type_is_checked(at: int, wrong: object) -> None:
    value = Everything(1, 1.0, True, "", b"", None, None, (), (), (), Inner(1), None, (), {}, {}, {}, None)
    items = list(travelled(value))
    items[at] = wrong
    with pytest.raises(Invalid):
        codec_of(Everything).unpack(tuple(items))


def test_an_int_is_taken_for_a_float() -> None:
    value = Everything(1, 2, True, "", b"", None, None, (), (1, 2), (), Inner(1), None, (), {}, {}, {}, None)
    result = codec_of(Everything).unpack(travelled(value))
    assert type(result.real) is float
    assert [type(item) for item in result.reals] == [float, float]


def test_fields_of_a_newer_release_are_ignored() -> None:
    assert codec_of(Inner).unpack((1, "a", "new", {"newer": 1})) == Inner(1, "a")


def test_missing_fields_take_their_defaults() -> None:
    value = Everything(1, 1.0, True, "", b"", None, None, (), (), (), Inner(1), None, (), {}, {}, {}, None)
    assert codec_of(Everything).unpack(travelled(value)[:-2]) == value
    assert codec_of(Inner).unpack((1,)) == Inner(1)


def test_a_missing_field_without_a_default_is_invalid() -> None:
    with pytest.raises(Invalid, match="number"):
        codec_of(Inner).unpack(())


@pytest.mark.parametrize("wrong", [None, 5, [1, "a"], {"number": 1}, "text"])
def test_a_message_that_is_no_array_is_invalid(wrong: object) -> None:
    with pytest.raises(Invalid):
        codec_of(Inner).unpack(wrong)


def test_declarations_that_cannot_travel_are_refused_when_they_are_made() -> None:
    @dataclass(frozen=True, slots=True)
    class WithSet:
        items: set[int]

    @dataclass(frozen=True, slots=True)
    class NoRequest:
        number: int

    @dataclass(frozen=True, slots=True)
    class Nameless(Request[Done]):
        number: int

    class NoDataclass:
        pass

    with pytest.raises(TypeError, match="does not travel"):
        message(WithSet)
    with pytest.raises(TypeError, match="inherit from Request"):
        message("test.none", reply=Done)(NoRequest)
    with pytest.raises(TypeError, match="needs @message"):
        message("test.nameless")(Nameless)
    with pytest.raises(TypeError, match="dataclass"):
        message(NoDataclass)
    with pytest.raises(TypeError, match="not decorated"):
        codec_of(WithSet)


def test_a_request_knows_its_name_and_its_reply() -> None:
    assert Ask.reply_type() is Done
    assert codec_of(Ask).name == "test.ask"


def test_payloads_in_pieces() -> None:
    payload: list[Buffer] = [b"ab", bytearray(b"cd"), memoryview(b"ef"), b"", memoryview(bytes(8)).cast("I")]
    assert payload_size(payload) == 14
    assert b"".join(payload_pieces(payload)) == b"abcdef" + bytes(8) == bytes(payload_joined(payload))
    assert payload_joined(payload[0]) is payload[0]
