"""One operation of a client on one register, as the client saw it. Plain data; judged by `tests.support.history.linearizability`.

An operation takes effect at one moment between its call and its return. One whose outcome is unknown has no return (`NEVER`): it takes
effect at any moment after its call, or never. Values that are written are unique within a history, except None (absent): that is what
lets a read tell which write it saw.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

READ, PUT, CAS, DELETE = "read", "put", "cas", "delete"
NEVER = math.inf
"""The return of an operation that nobody got an answer to."""


@dataclass(frozen=True, slots=True)
class Operation:
    """* `READ`: ``value`` is what it returned; with ``told`` false only that something is there is known.
    * `PUT`: writes ``value`` whatever is there; ``existed`` is what the answer told of what was there before, None: nothing.
    * `CAS`: replaces ``expected`` (None: absent) by ``value`` (None deletes it). When it was not ``applied``, ``seen`` is the value that
      it failed on; with ``told`` false only that this was not ``expected``.
    * `DELETE`: removes whatever is there; not ``applied``: there was nothing.
    """

    kind: str
    call: float
    ret: float
    value: bytes | None = None
    expected: bytes | None = None
    applied: bool = True
    seen: bytes | None = None
    who: str = ""
    told: bool = True
    existed: bool | None = None

    @property
    def is_known(self) -> bool:
        return self.ret != NEVER

    @property
    def writes(self) -> bool:
        """Whether it changes the register when it takes effect."""
        if self.kind == CAS:
            return self.applied and self.value != self.expected
        return self.kind == PUT or (self.kind == DELETE and self.applied)

    def without_answer(self) -> Operation:
        """The same as its client would have recorded it had the answer been lost. Explains whatever the operation explains."""
        return replace(self, ret=NEVER, existed=None)

    def step(self, state: bytes | None) -> tuple[bool, bytes | None]:
        """Whether it can take effect in this state, as it did, and the state after it. The definition that everything else is checked
        against."""
        if self.kind == READ:
            return (state == self.value if self.told else state is not None), state
        if self.kind == PUT:
            return self.existed is None or self.existed == (state is not None), self.value
        if self.kind == DELETE:
            if self.is_known:
                return self.applied == (state is not None), None
            return True, None
        if self.applied:
            return state == self.expected, self.value
        return state != self.expected and (state == self.seen or not self.told), state

    def __str__(self) -> str:
        return f"{self.who + ': ' if self.who else ''}{self._deed}{'' if self.is_known else ', no answer'}"

    @property
    def _deed(self) -> str:
        if self.kind == READ:
            return f"reads {shown(self.value)}" if self.told else "reads that something is there"
        if self.kind == PUT:
            before = {None: "", True: " in place of something", False: " where nothing was"}[self.existed]
            return f"writes {shown(self.value)}{before}"
        if self.kind == DELETE:
            return "deletes" if self.applied else "has nothing to delete"
        change = f"{shown(self.expected)} by {shown(self.value)}"
        if self.applied:
            return f"replaces {change}"
        return f"can't replace {change}: it is {shown(self.seen) if self.told else 'something else'}"


def shown(value: bytes | None) -> str:
    """A value for people."""
    return "nothing" if value is None else value.decode(errors="backslashreplace")
