"""Is a history of one register linearizable? Wing and Gong's search with memoisation (Wing, Gong 1993; Lowe 2017), made short by what is
certain beforehand (`tests.support.history.obligations`).

A configuration is what has taken effect so far and the state that it left. None is visited twice, and most of an order is forced:

* a step that keeps the state is taken as soon as it can be, since that forbids nothing later;
* a value is left only when all who saw it had their turn, and then by the one that replaces exactly it, if there is one;
* a block is begun only when nothing is left that must come before any part of it;
* of unknown writes that are alike the one called first stands for all, and none is taken but to make something possible at once that was
  not: it has no deadline.

What is left to try are the orders of concurrent writes that nobody saw enough of, and unknown deletions. The search gives up with
`UndecidedError` at a limit; it never calls a history good that it has not explained, nor bad one that it has not refuted.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from tests.support.history.obligations import (
    ABSENT,
    FIRST_VALUE,
    IS,
    IS_NOT,
    ContradictionError,
    Prepared,
    Step,
    prepare,
)
from tests.support.history.operation import NEVER, Operation

EFFORT_LIMIT = 50_000
"""Configurations looked at before the search gives up: some seconds, and far more than a history takes in which reads are not rare."""


class UndecidedError(Exception):
    """The history is too hard: neither good nor bad has been shown."""


def is_linearizable(history: Sequence[Operation], initial: bytes | None = None, effort: int = EFFORT_LIMIT) -> bool:
    """Whether some order explains everything that returned. Raises UndecidedError past ``effort`` configurations, and ValueError when
    the values written are not unique."""
    try:
        prepared = prepare(history, initial)
    except ContradictionError:
        return False
    return _Search(prepared, effort).succeeds()


class _Configuration(NamedTuple):
    """``base``: all of ``must`` below it are done; ``done``: those from there on, as bits; ``used``: how many of each group of ``may``."""

    base: int
    done: int
    state: int
    used: tuple[int, ...]


class _Search:
    def __init__(self, prepared: Prepared, effort: int) -> None:
        self._must, self._may, self._observers, self._successors = prepared
        self._effort = effort
        # Whether some state that nobody saw has yet to be none, or not a certain other one.
        self._absence_refused = any(step.need == IS_NOT and step.want == ABSENT for step in self._must)
        self._values_refused = any(step.need == IS_NOT and step.want != ABSENT for step in self._must)

    def succeeds(self) -> bool:
        start = self._settled(_Configuration(0, 0, ABSENT, (0,) * len(self._may)))
        visited = {start}
        stack = [start]
        while stack:
            configuration = stack.pop()
            if configuration.base == len(self._must):
                return True
            for following in self._followers(configuration):
                after = self._settled(following)
                if after not in visited:
                    if len(visited) >= self._effort:
                        raise UndecidedError(
                            f"{len(self._must)} operations were not decided within {self._effort} configurations"
                        )
                    visited.add(after)
                    stack.append(after)
        return False

    def _open(self, configuration: _Configuration) -> tuple[list[int], float]:
        """The steps that may be next as far as time is concerned, and the first return of all that are left."""
        must = self._must
        deadline = NEVER
        found: list[int] = []
        for number in self._left(configuration):
            step = must[number]
            if step.call > deadline:
                break
            found.append(number)
            deadline = min(deadline, step.ret)
        return [number for number in found if must[number].call <= deadline], deadline

    def _left(self, configuration: _Configuration) -> Iterator[int]:
        """All that is not done, in order of call."""
        base, done, _, _ = configuration
        beyond = done.bit_length()
        gaps = ~done & ((1 << beyond) - 1)
        while gaps:
            first = gaps & -gaps
            yield base + first.bit_length() - 1
            gaps ^= first
        yield from range(base + beyond, len(self._must))

    def _settled(self, configuration: _Configuration) -> _Configuration:
        """With all taken that keep the state and can be next."""
        base, done, state, used = configuration
        must = self._must
        while True:
            taken = False
            for number in self._open(configuration)[0]:
                step = must[number]
                if step.enabled(state) and (step.keeps or (step.to == state and self._is_idle(step))):
                    done |= 1 << (number - base)
                    taken = True
            while done & 1:
                base, done = base + 1, done >> 1
            configuration = _Configuration(base, done, state, used)
            if not taken:
                return configuration

    def _is_idle(self, step: Step) -> bool:
        """Whether a write that leaves the state what it is need not be kept for later, to make something possible then."""
        return not self._values_refused and (step.need == IS_NOT or not self._absence_refused)

    def _followers(self, configuration: _Configuration) -> Iterator[_Configuration]:
        """After each write that can be next; the likeliest comes last, for the stack."""
        state = configuration.state
        must = self._must
        numbers, deadline = self._open(configuration)
        if state >= FIRST_VALUE:
            if not all(self._is_done(configuration, number) for number in self._observers.get(state, ())):
                return
            successor = self._successors.get(state)
            if successor is not None:
                if successor in numbers:
                    yield self._after(configuration, successor)
                return
        yield from self._with_unknown(configuration, numbers, deadline)
        writes = [number for number in numbers if not must[number].keeps and must[number].enabled(state)]
        for number in sorted(writes, key=lambda number: must[number].ret, reverse=True):
            if self._may_begin(configuration, must[number]):
                yield self._after(configuration, number)

    def _with_unknown(
        self, configuration: _Configuration, numbers: Sequence[int], deadline: float
    ) -> Iterator[_Configuration]:
        state, used = configuration.state, configuration.used
        for group, steps in enumerate(self._may):
            if used[group] == len(steps):
                continue
            step = steps[used[group]]
            if step.call > deadline or step.to == state or not step.enabled(state):
                continue
            waiting = (self._must[number] for number in numbers)
            others = (steps[used[n]] for n, steps in enumerate(self._may) if n != group and used[n] < len(steps))
            if any(_unlocks(step, state, other) for other in (*waiting, *(o for o in others if o.call <= deadline))):
                counts = (*used[:group], used[group] + 1, *used[group + 1 :])
                yield configuration._replace(state=step.to, used=counts)

    def _may_begin(self, configuration: _Configuration, head: Step) -> bool:
        """Whether nothing is left that must come before any part of the block that this step begins."""
        block = head.block
        assert block is not None
        for number in self._left(configuration):
            step = self._must[number]
            if step.call >= block.last_call:
                return True
            before = step.ret < block.last_call and (not step.keeps or (step.need == IS and step.want == ABSENT))
            if before and step.block is not block:
                return False
        return True

    def _after(self, configuration: _Configuration, number: int) -> _Configuration:
        done = configuration.done | 1 << (number - configuration.base)
        return configuration._replace(done=done, state=self._must[number].to)

    def _is_done(self, configuration: _Configuration, number: int) -> bool:
        return number < configuration.base or bool(configuration.done >> (number - configuration.base) & 1)


def _unlocks(step: Step, state: int, other: Step) -> bool:
    """Whether the unknown write ``step`` makes ``other`` possible."""
    return other.enabled(step.to) and not other.enabled(state)
