"""Why a history is not linearizable: the few operations that contradict each other, for people.

First the shortest bad prefix: what was known when the first answer came that nothing explains. Then everything is left out without which
what remains is still bad. Leaving out an answer of a read is sound, since a good history stays good without it; a write is never left
out but becomes one of unknown outcome, which explains more. So what is shown is bad by itself, whatever else happened.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tests.support.history.linearizability import UndecidedError, is_linearizable
from tests.support.history.obligations import ContradictionError, prepare
from tests.support.history.operation import CAS, NEVER, READ, Operation

SHOWN_LIMIT = 30
"""Operations in one account at most."""

EFFORT = 1_000
"""Configurations for each of the many histories tried. One that takes more counts as good: the account gets longer, never wrong."""

UNDECIDED_LIMIT = 20
"""So many of those, and what is left is shown as it is."""


def explain(history: Sequence[Operation], initial: bytes | None = None) -> str:
    """An account of a history that is not linearizable, several lines."""

    undecided = 0

    def bad(some: Sequence[Operation]) -> bool:
        nonlocal undecided
        if undecided == UNDECIDED_LIMIT:
            return False
        try:
            return not is_linearizable(some, initial, EFFORT)
        except UndecidedError:
            undecided += 1
            return False

    shortest = _shortest_prefix(history, bad)
    core = _reduced(shortest, bad)
    lines = [f"no order explains {len(_known(core))} of the {len(history)} operations:"]
    relevant = _relevant(core)
    others = len(core) - len(relevant)
    answers = {_question(operation): operation for operation in history}
    relevant = [answers[_question(operation)] for operation in relevant]
    start = min((operation.call for operation in relevant), default=0.0)
    for operation in sorted(relevant, key=lambda operation: operation.call)[:SHOWN_LIMIT]:
        ended = f"{operation.ret - start:9.4f}" if operation.is_known else "        ?"
        lines.append(f"  {operation.call - start:9.4f} to {ended}  {operation}")
    if len(relevant) > SHOWN_LIMIT:
        lines.append(f"  and {len(relevant) - SHOWN_LIMIT} more")
    if others:
        lines.append(f"  nor does it help that other writes may have taken effect: {others}")
    why = _reason(core, initial)
    if why:
        lines.append(f"  {why}")
    return "\n".join(lines)


def prefix(history: Sequence[Operation], end: float) -> list[Operation]:
    """What was known at a moment: answers that came later are unknown, questions asked later are not there."""
    return [
        operation if operation.ret <= end else operation.without_answer()
        for operation in history
        if operation.call <= end and (operation.ret <= end or operation.writes)
    ]


def _shortest_prefix(history: Sequence[Operation], bad: Callable[[Sequence[Operation]], bool]) -> list[Operation]:
    ends = sorted({operation.ret for operation in history if operation.is_known})
    low, high = 0, len(ends) - 1
    while low < high:
        middle = (low + high) // 2
        if bad(prefix(history, ends[middle])):
            high = middle
        else:
            low = middle + 1
    return prefix(history, ends[low]) if ends else list(history)


def _reduced(history: list[Operation], bad: Callable[[Sequence[Operation]], bool]) -> list[Operation]:
    """Fewer known operations, still bad; in larger runs first, then one by one."""
    size = max(1, len(_known(history)) // 2)
    while True:
        changed = False
        known = _known(history)
        for start in range(0, len(known), size):
            weakened = set(map(id, known[start : start + size]))
            fewer = [
                operation.without_answer() if id(operation) in weakened else operation
                for operation in history
                if operation.writes or id(operation) not in weakened
            ]
            if bad(fewer):
                history, changed = fewer, True
                known = [operation if id(operation) not in weakened else _GONE for operation in known]
        if size == 1 and not changed:
            return history
        size = max(1, size // 2)


_GONE = Operation(READ, 0, NEVER)


def _known(history: Sequence[Operation]) -> list[Operation]:
    return [operation for operation in history if operation.is_known]


def _relevant(core: Sequence[Operation]) -> list[Operation]:
    """What is known, and the unknown writes that it needs."""
    found = _known(core)
    mentioned = {value for operation in found for value in _values(operation)}
    while True:
        more = [o for o in core if not o.is_known and o not in found and o.value is not None and o.value in mentioned]
        if not more:
            return found
        found += more
        mentioned.update(value for operation in more for value in _values(operation))


def _question(operation: Operation) -> tuple[object, ...]:
    """What stays the same when an answer is taken away."""
    return operation.who, operation.kind, operation.call, operation.value, operation.expected


def _values(operation: Operation) -> list[bytes | None]:
    if operation.kind != CAS:
        return [operation.value]
    return [operation.expected, operation.value if operation.applied else operation.seen]


def _reason(history: Sequence[Operation], initial: bytes | None) -> str:
    try:
        prepare(history, initial)
    except ContradictionError as contradiction:
        return contradiction.why
    return ""
