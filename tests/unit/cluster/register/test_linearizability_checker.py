"""The checker itself: histories known to be good or bad, and agreement with trying every order."""

from __future__ import annotations

from itertools import permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.simulated.linearizability import CAS, NEVER, PUT, READ, Operation, is_linearizable


def read(call: float, ret: float, value: bytes | None) -> Operation:
    return Operation(READ, call, ret, value)


def put(call: float, ret: float, value: bytes) -> Operation:
    return Operation(PUT, call, ret, value)


def cas(call: float, ret: float, expected: bytes | None, value: bytes | None) -> Operation:
    return Operation(CAS, call, ret, value, expected)


def failed(call: float, ret: float, expected: bytes | None, seen: bytes | None) -> Operation:
    return Operation(CAS, call, ret, b"wanted", expected, applied=False, seen=seen)


GOOD = {
    "nothing": [],
    "absent at first": [read(0, 1, None)],
    "read your write": [put(0, 1, b"a"), read(2, 3, b"a")],
    "a read during a write sees either": [put(0, 9, b"a"), read(1, 2, None), read(3, 4, b"a")],
    "an unknown write takes effect late": [put(0, NEVER, b"a"), put(1, 2, b"b"), read(3, 4, b"b"), read(5, 6, b"a")],
    "an unknown write never happens": [put(0, NEVER, b"a"), read(1, 2, None), read(8, 9, None)],
    "chain": [cas(0, 1, None, b"a"), cas(2, 3, b"a", b"b"), cas(4, 5, b"b", None), read(6, 7, None)],
    "a condition fails on a value that is there": [put(0, 1, b"a"), failed(2, 3, None, b"a")],
    "an unknown delete explains an absence": [put(0, 1, b"a"), cas(2, NEVER, b"a", None), read(9, 10, None)],
}

BAD = {
    "stale read": [put(0, 1, b"a"), put(2, 3, b"b"), read(4, 5, b"a")],
    "lost write": [put(0, 1, b"a"), read(2, 3, None)],
    "out of thin air": [read(0, 1, b"a")],
    "there and gone again": [put(0, 9, b"a"), read(1, 2, b"a"), read(3, 4, None)],
    "two winners": [cas(0, 5, None, b"a"), cas(0, 5, None, b"b")],
    "two winners, one unknown but read between": [
        put(0, 1, b"x"),
        cas(2, NEVER, b"x", b"a"),
        read(3, 4, b"a"),
        cas(5, 6, b"x", b"b"),
    ],
    "a condition failed on what was never there": [put(0, 1, b"a"), failed(2, 3, None, b"z")],
    "a condition failed although it held": [put(0, 1, b"a"), failed(2, 3, b"a", b"a")],
    "an effect before its call": [read(0, 1, b"a"), put(2, NEVER, b"a")],
    "back and forth": [put(0, NEVER, b"a"), put(0, 1, b"b"), read(2, 3, b"a"), read(4, 5, b"b")],
}


@pytest.mark.parametrize("name", GOOD)
def test_good(name: str) -> None:
    assert is_linearizable(GOOD[name])


@pytest.mark.parametrize("name", BAD)
def test_bad(name: str) -> None:
    assert not is_linearizable(BAD[name])


def naive(history: list[Operation]) -> bool:
    """Every subset of the unknown ones, in every order."""
    known = [operation for operation in history if operation.ret != NEVER]
    unknown = [operation for operation in history if operation.ret == NEVER]
    for chosen in range(1 << len(unknown)):
        some = known + [operation for index, operation in enumerate(unknown) if chosen >> index & 1]
        for order in permutations(some):
            state: bytes | None = None
            for index, operation in enumerate(order):
                possible, state = operation.step(state)
                if not possible or any(later.ret < operation.call for later in order[index + 1 :]):
                    break
            else:
                return True
    return False


values = st.sampled_from([b"a", b"b", b"c"])


@st.composite
def histories(draw: st.DrawFn) -> list[Operation]:
    written = iter([b"a", b"b", b"c", b"d", b"e"])
    found = []
    for _ in range(draw(st.integers(1, 5))):
        call = draw(st.integers(0, 8))
        ret = call + draw(st.integers(1, 5)) if draw(st.booleans()) else NEVER
        kind = draw(st.sampled_from([READ, PUT, CAS, "failed"]))
        if kind == READ:
            found.append(read(call, call + 2, draw(st.none() | values)))
        elif kind == PUT:
            found.append(put(call, ret, next(written)))
        elif kind == CAS:
            value = None if draw(st.booleans()) else next(written)
            found.append(cas(call, ret, draw(st.none() | values), value))
        else:
            found.append(failed(call, call + 2, draw(st.none() | values), draw(st.none() | values)))
    return found


@settings(max_examples=400, deadline=None)
@given(histories())
def test_agrees_with_trying_everything(history: list[Operation]) -> None:
    assert is_linearizable(history) == naive(history)
