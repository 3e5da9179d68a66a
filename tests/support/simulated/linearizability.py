"""Is a history of one register linearizable? Wing and Gong's search with memoisation (Wing, Gong 1993; Lowe 2017).

An operation takes effect at one moment between its call and its return. One whose outcome is unknown has no return: it takes effect
at any later moment, or never. Values that are written are unique, except None (absent).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

READ, PUT, CAS = "read", "put", "cas"
NEVER = math.inf
"""The return of an operation that nobody got an answer to."""


@dataclass(frozen=True, slots=True)
class Operation:
    """``value``: what a read returned, a put or a compare-and-set writes (None deletes). ``expected`` and ``applied`` belong to
    compare-and-set; when it was not applied, ``seen`` is the value that it failed on."""

    kind: str
    call: float
    ret: float
    value: bytes | None
    expected: bytes | None = None
    applied: bool = True
    seen: bytes | None = None
    who: str = ""

    def step(self, state: bytes | None) -> tuple[bool, bytes | None]:
        """Whether it can have happened in this state, and the state after it."""
        if self.kind == READ:
            return state == self.value, state
        if self.kind == PUT:
            return True, self.value
        if self.applied:
            return state == self.expected, self.value
        return state == self.seen and state != self.expected, state


def is_linearizable(history: Sequence[Operation], initial: bytes | None = None) -> bool:
    """Whether some order explains everything that returned."""
    operations = sorted(_without_unseen(history), key=lambda operation: operation.call)
    # Every set of operations done so far, as a bit mask, with the value they leave: each is visited once.
    must = sum(1 << index for index, operation in enumerate(operations) if operation.ret != NEVER)
    start = (0, initial)
    visited = {start}
    stack = [start]
    while stack:
        done, state = stack.pop()
        if done & must == must:
            return True
        deadline = NEVER
        for index, operation in enumerate(operations):
            if operation.call > deadline:
                break
            if done >> index & 1:
                continue
            deadline = min(deadline, operation.ret)
        for index, operation in enumerate(operations):
            if operation.call > deadline:
                break
            if done >> index & 1:
                continue
            possible, after = operation.step(state)
            if possible:
                following = (done | 1 << index, after)
                if following not in visited:
                    visited.add(following)
                    stack.append(following)
    return False


def _without_unseen(history: Sequence[Operation]) -> list[Operation]:
    """Leave out what is unknown and was never seen: a write that nobody read and on which nothing was built can be taken out of
    any order that contains it."""
    seen: set[bytes | None] = {None}
    for operation in history:
        if operation.kind == READ:
            seen.add(operation.value)
        elif operation.kind == CAS:
            seen.add(operation.expected)
            seen.add(operation.seen)
    return [operation for operation in history if operation.ret != NEVER or operation.value in seen]
