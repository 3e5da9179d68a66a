"""The checker itself: histories known to be good or bad, agreement with trying every order, and how much it can judge in what time."""

from __future__ import annotations

import random
import time
from itertools import permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.history.linearizability import UndecidedError, is_linearizable
from tests.support.history.operation import CAS, DELETE, NEVER, PUT, READ, Operation
from tests.unit.support.history.honest_register import Mix, honest_history, spoiled


def read(call: float, ret: float, value: bytes | None) -> Operation:
    return Operation(READ, call, ret, value)


def exists(call: float, ret: float) -> Operation:
    return Operation(READ, call, ret, told=False)


def put(call: float, ret: float, value: bytes, existed: bool | None = None) -> Operation:
    return Operation(PUT, call, ret, value, existed=existed)


def cas(call: float, ret: float, expected: bytes | None, value: bytes | None) -> Operation:
    return Operation(CAS, call, ret, value, expected)


def failed(call: float, ret: float, expected: bytes | None, seen: bytes | None) -> Operation:
    return Operation(CAS, call, ret, b"wanted", expected, applied=False, seen=seen)


def refused(call: float, ret: float, expected: bytes | None) -> Operation:
    """A failed condition that does not tell on what."""
    return Operation(CAS, call, ret, b"wanted", expected, applied=False, told=False)


def delete(call: float, ret: float) -> Operation:
    return Operation(DELETE, call, ret)


def nothing_to_delete(call: float, ret: float) -> Operation:
    return Operation(DELETE, call, ret, applied=False)


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
    # Herlihy and Wing, "Linearizability" (1990), figure 2: a concurrent register, H6
    "Herlihy and Wing, H6": [
        put(0, 4, b"0"),
        put(5, 12, b"1"),
        read(6, 8, b"1"),
        read(9, 11, b"1"),
        put(13, 20, b"0'"),
        read(14, 18, b"0'"),
    ],
    # porcupine's README: three clients of a register; knossos' register examples
    "porcupine's example": [put(0, 100, b"100"), read(25, 75, b"100"), read(30, 60, None)],
    "knossos: a read may return what a concurrent cas has yet to be answered for": [
        put(0, 1, b"0"),
        cas(2, NEVER, b"0", b"1"),
        read(3, 4, b"1"),
        failed(5, 6, b"0", b"1"),
    ],
    "concurrent writes are seen in either order": [
        put(0, 5, b"a"),
        put(0, 5, b"b"),
        read(6, 7, b"b"),
        put(8, 9, b"c"),
    ],
    "reads that overlap a write need not agree": [put(0, 1, b"a"), put(2, 9, b"b"), read(3, 8, b"b"), read(4, 7, b"a")],
    "an unknown write that a condition saw": [cas(0, NEVER, None, b"a"), failed(1, 2, None, b"a"), read(3, 4, b"a")],
    "an unknown write explains a refusal": [put(0, 1, b"a"), put(2, NEVER, b"b"), refused(3, 4, b"a")],
    "an unknown creation explains that there was something to delete": [cas(0, NEVER, None, b"a"), delete(1, 2)],
    "a chain of unknown ones explains an absence": [
        put(0, 1, b"a"),
        put(2, NEVER, b"b"),
        cas(3, NEVER, b"b", None),
        read(4, 5, None),
    ],
    "one unknown deletion for each time it was gone": [
        put(0, 1, b"a"),
        delete(0, NEVER),
        delete(0, NEVER),
        read(2, 3, None),
        cas(4, 5, None, b"b"),
        read(6, 7, None),
    ],
    "two deletions, one of which finds nothing": [put(0, 1, b"a"), delete(2, 5), nothing_to_delete(3, 6)],
    "created, then replaced": [put(0, 1, b"a", existed=False), put(2, 3, b"b", existed=True), exists(4, 5)],
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
    # H6 again, with the last read of what had been overwritten
    "Herlihy and Wing, H6 spoiled": [put(0, 4, b"0"), put(5, 12, b"1"), read(6, 8, b"1"), read(9, 11, b"0")],
    # porcupine's README: client 3 began after client 2 had seen the write
    "porcupine's counter-example": [put(0, 100, b"200"), read(10, 30, b"200"), read(40, 90, None)],
    "read inversion": [put(0, 1, b"a"), put(2, 20, b"b"), read(3, 5, b"b"), read(6, 8, b"a")],
    "lost update": [put(0, 1, b"a"), cas(2, 3, b"a", b"b"), cas(4, 5, b"a", b"c")],
    "split brain": [
        put(0, 1, b"a"),
        put(2, 3, b"left"),
        put(2, 3, b"right"),
        read(4, 5, b"left"),
        read(4, 5, b"right"),
        read(6, 7, b"left"),
    ],
    "an unknown write is seen, then not any more": [
        put(0, 1, b"a"),
        put(2, NEVER, b"b"),
        read(3, 4, b"b"),
        read(5, 6, b"a"),
    ],
    "one unknown deletion for two times that it was gone": [
        put(0, 1, b"a"),
        delete(0, NEVER),
        read(2, 3, None),
        cas(4, 5, None, b"b"),
        read(6, 7, None),
    ],
    "an unknown replacement of what was gone": [
        put(0, 1, b"a"),
        put(2, 3, b"b"),
        cas(4, NEVER, b"a", b"c"),
        read(5, 6, b"c"),
    ],
    "a condition failed for no reason": [put(0, 1, b"a"), refused(2, 3, b"a")],
    "deleted by two": [put(0, 1, b"a"), delete(2, 5), delete(2, 5)],
    "nothing to delete where something was": [put(0, 1, b"a"), nothing_to_delete(2, 3)],
    "created over something": [put(0, 1, b"a"), put(2, 3, b"b", existed=False)],
    "replaced where nothing was": [put(0, 1, b"a", existed=True)],
    "deleted stays deleted": [put(0, 1, b"a"), delete(2, 3), read(4, 5, None), read(6, 7, b"a")],
    "replacements in a circle": [cas(0, 9, b"a", b"b"), cas(0, 9, b"b", b"a")],
    "something was read where nothing can have been": [put(0, 1, b"a"), delete(2, 3), exists(4, 5)],
}


@pytest.mark.parametrize("name", GOOD)
def test_good(name: str) -> None:
    assert naive(GOOD[name])
    assert is_linearizable(GOOD[name])


@pytest.mark.parametrize("name", BAD)
def test_bad(name: str) -> None:
    assert not naive(BAD[name])
    assert not is_linearizable(BAD[name])


def test_what_is_there_at_first() -> None:
    assert is_linearizable([read(0, 1, b"x"), cas(2, 3, b"x", b"a")], initial=b"x")
    assert not is_linearizable([read(0, 1, None)], initial=b"x")
    assert not is_linearizable([put(0, 1, b"a"), read(2, 3, b"x")], initial=b"x")


def test_values_must_be_unique() -> None:
    with pytest.raises(ValueError, match="a is written twice"):
        is_linearizable([put(0, 1, b"a"), put(2, 3, b"a")])


def naive(history: list[Operation], initial: bytes | None = None) -> bool:
    """The definition: some of the unknown ones, in some order of all, with nothing after what was called when it had returned."""
    known = [operation for operation in history if operation.is_known]
    unknown = [operation for operation in history if not operation.is_known]
    for chosen in range(1 << len(unknown)):
        some = known + [operation for index, operation in enumerate(unknown) if chosen >> index & 1]
        for order in permutations(some):
            state = initial
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
    found: list[Operation] = []
    for _ in range(draw(st.integers(1, 5))):
        call = draw(st.integers(0, 8))
        end = call + draw(st.integers(0, 5))
        ret = end if draw(st.booleans()) else NEVER
        kind = draw(st.sampled_from(["read", "exists", "put", "cas", "failed", "refused", "delete", "nothing"]))
        if kind == "read":
            found.append(read(call, end, draw(st.none() | values)))
        elif kind == "exists":
            found.append(exists(call, end))
        elif kind == "put":
            existed = draw(st.none() | st.booleans()) if ret != NEVER else None
            found.append(put(call, ret, next(written), existed))
        elif kind == "cas":
            value = None if draw(st.booleans()) else next(written)
            found.append(cas(call, ret, draw(st.none() | values), value))
        elif kind == "failed":
            found.append(failed(call, end, draw(st.none() | values), draw(st.none() | values)))
        elif kind == "refused":
            found.append(refused(call, end, draw(st.none() | values)))
        elif kind == "delete":
            found.append(delete(call, ret))
        else:
            found.append(nothing_to_delete(call, end))
    return found


@settings(max_examples=500, deadline=None)
@given(histories(), st.none() | st.just(b"i"))
def test_agrees_with_trying_everything(history: list[Operation], initial: bytes | None) -> None:
    assert is_linearizable(history, initial) == naive(history, initial)


MIXES = {
    "as users do": Mix(),
    "many unknown": Mix(clients=12, operations=300, lost=0.4),
    "many deletions": Mix(clients=10, operations=300, weights=(30, 5, 10, 20, 15, 15, 5), lost=0.3),
    "answers that tell little": Mix(
        clients=10, operations=300, weights=(10, 10, 20, 20, 20, 15, 5), lost=0.3, mute=1.0
    ),
    "hardly any reads": Mix(clients=5, operations=300, weights=(3, 3, 60, 20, 10, 3, 1), lost=0.1),
}


@pytest.mark.parametrize("name", MIXES)
def test_an_honest_register_is_never_blamed(name: str) -> None:
    for seed in range(10):
        assert is_linearizable(honest_history(seed, MIXES[name])), seed


@pytest.mark.parametrize("name", ["as users do", "many unknown", "many deletions"])
def test_spoiled_answers_are_noticed(name: str) -> None:
    """A wrong value may happen to be right as well, at its moment; not often."""
    noticed = 0
    for seed in range(20):
        noticed += not is_linearizable(spoiled(honest_history(seed, MIXES[name]), random.Random(seed)))
    assert noticed > 10


@pytest.mark.parametrize(
    "mix",
    [
        Mix(clients=20, operations=5000),
        Mix(clients=40, operations=3000, lost=0.4),
        Mix(clients=30, operations=3000, weights=(30, 5, 10, 20, 15, 15, 5), lost=0.3),
    ],
    ids=["5000 operations", "40 at once, 700 unknown", "600 unknown, many deletions"],
)
def test_thousands_of_operations_take_seconds(mix: Mix) -> None:
    """Some 0.3 s each on the development machines, good or bad."""
    history = honest_history(1, mix)
    wrong = spoiled(history, random.Random(2))
    began = time.process_time()
    assert is_linearizable(history)
    is_linearizable(wrong)
    assert time.process_time() - began < 5


def test_what_is_too_hard_is_not_called_good() -> None:
    """Eight writes at once, and answers that fit no order of them."""
    history = [put(0, 10, b"w%d" % number, existed=True) for number in range(8)]
    history += [put(-2, -1, b"first"), nothing_to_delete(11, 12)]
    history += [refused(13, 14, b"w%d" % number) for number in range(8)]
    assert not is_linearizable(history)
    with pytest.raises(UndecidedError, match="not decided within 50 configurations"):
        is_linearizable(history, effort=50)
