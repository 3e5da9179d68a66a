"""Is a history of one volume linearizable? As `linearizability` for registers, with what can be done to a volume.

A state is the content, None for no volume. Contents that are written are unique, so that an etag names one of them; a range write, a
resize and a delete make the next state from the one they find.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tests.support.history.linearizability import UndecidedError
from tests.support.history.operation import NEVER

READ, LISTED, CREATE, REPLACE, RANGE, RESIZE, DELETE = (
    "read",
    "listed",
    "create",
    "replace",
    "range",
    "resize",
    "delete",
)
OK, CONFLICT, MISSING, MISFIT = "ok", "conflict", "missing", "misfit"
"""How it ended: done; a condition failed; there was no volume; the content has another size than it takes."""

STATES_LIMIT = 60_000
"""Looked at before the search gives up on a history with many unknown outcomes; then those nobody saw anything of are taken out."""


@dataclass(frozen=True, slots=True)
class VolumeOperation:
    """``value``: what was read, or written. ``expected``: the content that a condition named (`ANYTHING`: there was none; None:
    If-None-Match). ``size``: of a create or resize, or what a listing said (None: not listed; ``value`` then, if
    the listed etag's content is known). ``tag`` is in everything it wrote."""

    kind: str
    call: float
    ret: float
    ended: str = OK
    value: bytes | None = None
    expected: bytes | str | None = "anything"
    offset: int = 0
    size: int | None = None
    tag: bytes = b""
    who: str = ""

    def step(self, state: bytes | None) -> tuple[bool, bytes | None]:
        """Whether it can have happened in this state, and the state after it."""
        if self.kind == READ:
            return state == self.value, state
        if self.kind == LISTED:
            of_size = (None if state is None else len(state)) == self.size
            return of_size and (self.value is None or state == self.value), state
        if self.kind == CREATE:
            return (self.ended == OK) == (state is None), bytes(self.size or 0) if self.ended == OK else state
        wanted = self.expected in (ANYTHING, state)
        if self.kind == REPLACE:
            return (self.ended == OK) == wanted, self.value if self.ended == OK else state
        if self.ended == MISSING:
            return state is None, state
        if state is None:
            # What nobody got an answer to may have found nothing to change.
            return self.ret == NEVER, state
        if self.ended == CONFLICT:
            return not wanted, state
        return self._changed(state, wanted)

    def _changed(self, state: bytes, wanted: bool) -> tuple[bool, bytes | None]:
        if not wanted:
            return self.ret == NEVER, state
        if self.kind == DELETE:
            return self.ended == OK, None
        if self.kind == RESIZE:
            assert self.size is not None
            fits = self.size >= len(state)
            after = state + bytes(max(0, self.size - len(state)))
        else:
            assert self.value is not None
            fits = self.offset + len(self.value) <= len(state)
            after = state[: self.offset] + self.value + state[self.offset + len(self.value) :]
        if not fits:
            return self.ended == MISFIT or self.ret == NEVER, state
        return self.ended == OK, after if self.ended == OK else state


ANYTHING = "anything"


def is_explained(history: Sequence[VolumeOperation]) -> bool:
    """Whether some order explains everything that returned. Raises UndecidedError when that could not be found out."""
    found = _search(history)
    if found is None:
        read = [operation.value for operation in history if operation.kind == READ and operation.value is not None]
        found = _search(
            [op for op in history if op.ret != NEVER or not op.tag or any(op.tag in content for content in read)]
        )
    if found is None:
        raise UndecidedError(f"{STATES_LIMIT} states of a volume were not enough")
    return found


def _search(history: Sequence[VolumeOperation]) -> bool | None:
    """None: given up."""
    operations = sorted(history, key=lambda operation: operation.call)
    must = sum(1 << index for index, operation in enumerate(operations) if operation.ret != NEVER)
    start: tuple[int, bytes | None] = (0, None)
    visited = {start}
    stack = [start]
    while stack:
        done, state = stack.pop()
        if done & must == must:
            return True
        if len(visited) > STATES_LIMIT:
            return None
        deadline = NEVER
        for index, operation in enumerate(operations):
            if operation.call > deadline:
                break
            if not done >> index & 1:
                deadline = min(deadline, operation.ret)
        following: list[tuple[int, bytes | None]] = []
        for index, operation in enumerate(operations):
            if operation.call > deadline:
                break
            if done >> index & 1:
                continue
            possible, after = operation.step(state)
            if possible and (done | 1 << index, after) not in visited:
                following.append((done | 1 << index, after))
        # Those with an answer first (they are last on the stack): most that nobody heard of never happened.
        following.sort(key=lambda entry: entry[0] & must)
        visited.update(following)
        stack += following
    return False
