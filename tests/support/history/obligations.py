"""A history of one register made ready for the search: what has to take effect, what may, and within which bounds. Pure.

Since written values are unique, much is certain before anything is tried:

* a value that was seen was written before that, so an unknown write of it did happen, before the first who saw it returned;
* a value is in force once, without a gap; whoever replaces exactly it comes right after all who saw it. So chains of such
  replacements are *blocks*: nothing else comes between their parts;
* of two blocks one comes wholly before the other (Gibbons and Korach, "Testing shared memories", 1997, with blocks in place of their
  zones). If each has a part that ended before some part of the other began, nothing explains the history.

`prepare` gives the bounds that follow, or the `Contradiction` that it met.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

from tests.support.history.operation import CAS, DELETE, NEVER, PUT, READ, Operation, shown

ABSENT, UNSEEN, FIRST_VALUE = 0, 1, 2
"""States as numbers. All values that nobody saw are one: nothing depends on which of them it is."""

ANY, IS, IS_NOT = range(3)
"""What a step asks of the state it takes effect in."""

BEFORE_ALL = float("-inf")


class ContradictionError(Exception):
    """The history can't be explained, and why in words, and by which operations."""

    def __init__(self, why: str, *operations: Operation) -> None:
        super().__init__(why)
        self.why = why
        self.operations = operations


@dataclass(slots=True)
class Step:
    """An operation in terms of states. ``call`` and ``ret`` are bounds: no order that explains the history has it take effect outside."""

    operation: Operation
    call: float
    ret: float
    need: int
    want: int
    to: int
    """The state after it; for a step that keeps the state, ``want``."""
    keeps: bool
    block: Block | None = None

    def enabled(self, state: int) -> bool:
        if self.need == IS:
            return state == self.want
        return self.need == ANY or state != self.want


@dataclass(slots=True)
class Block:
    """Writes that follow one another without anything between, and all who saw what they wrote. ``first_ret``: when the first of
    them ended; ``last_call``: when the last began."""

    steps: list[Step] = field(default_factory=list)
    first_ret: float = NEVER
    last_call: float = BEFORE_ALL

    def add(self, step: Step) -> None:
        self.steps.append(step)
        step.block = self
        self.first_ret = min(self.first_ret, step.ret)
        self.last_call = max(self.last_call, step.call)

    @property
    def earliest(self) -> Step:
        return min(self.steps, key=lambda step: step.ret)

    @property
    def latest(self) -> Step:
        return max(self.steps, key=lambda step: step.call)


class Prepared(NamedTuple):
    """``must``: steps that took effect, in order of their calls. ``may``: groups of unknown writes that are alike, each in order of their
    calls. ``observers``: by state, the numbers (in ``must``) of those that keep it; ``successors``: of the one that replaces exactly it."""

    must: list[Step]
    may: list[list[Step]]
    observers: dict[int, list[int]]
    successors: dict[int, int]


def prepare(history: Sequence[Operation], initial: bytes | None = None) -> Prepared:
    """Raises ContradictionError, and ValueError for a history whose written values are not unique."""
    operations = [operation for operation in history if operation.is_known or operation.writes]
    if initial is not None:
        operations.insert(0, Operation(PUT, BEFORE_ALL, BEFORE_ALL, initial, who="the beginning"))
    must, may = _what_happened(operations)
    numbers = _numbers(operations)
    steps = [_step(operation, numbers) for operation in must]
    blocks = _blocks(steps)
    _check_blocks(steps, blocks)
    steps.sort(key=lambda step: step.call)
    observers: dict[int, list[int]] = {}
    successors: dict[int, int] = {}
    for number, step in enumerate(steps):
        if step.need == IS and step.want >= FIRST_VALUE:
            if step.keeps:
                observers.setdefault(step.want, []).append(number)
            else:
                successors[step.want] = number
    return Prepared(steps, _groups([_step(operation, numbers) for operation in may]), observers, successors)


def _required(operation: Operation) -> bytes | None:
    """The value that an operation shows to have been there."""
    if operation.kind == READ and operation.told:
        return operation.value
    if operation.kind == CAS:
        if operation.applied:
            return operation.expected
        return operation.seen if operation.told else None
    return None


def _what_happened(operations: Sequence[Operation]) -> tuple[list[Operation], list[Operation]]:
    """What took effect, unknown writes that were seen included, and the other unknown ones."""
    writers: dict[bytes, Operation] = {}
    for operation in operations:
        if operation.writes and operation.kind != DELETE and operation.value is not None:
            if operation.value in writers:
                raise ValueError(f"{shown(operation.value)} is written twice: values must be unique")
            writers[operation.value] = operation
    must: list[Operation] = []
    found: set[bytes] = set()
    todo = [operation for operation in operations if operation.is_known]
    while todo:
        operation = todo.pop()
        must.append(operation)
        value = _required(operation)
        if value is None or value in found:
            continue
        found.add(value)
        writer = writers.get(value)
        if writer is None:
            raise ContradictionError(f"{shown(value)} was seen and nobody had begun to write it", operation)
        if not writer.is_known:
            todo.append(writer)
    # An unknown write of a value that was seen is in ``must`` now, like all known ones.
    return must, [
        operation
        for operation in operations
        if not operation.is_known
        and not (operation.kind != DELETE and operation.value in found)
        and (operation.kind != CAS or operation.expected is None or operation.expected in writers)
    ]


def _numbers(operations: Sequence[Operation]) -> dict[bytes, int]:
    """States of the values that anything depends on."""
    numbers: dict[bytes, int] = {}
    for operation in operations:
        for value in (_required(operation), operation.expected if operation.kind == CAS else None):
            if value is not None and value not in numbers:
                numbers[value] = FIRST_VALUE + len(numbers)
    return numbers


def _step(operation: Operation, numbers: dict[bytes, int]) -> Step:
    def state(value: bytes | None) -> int:
        return ABSENT if value is None else numbers.get(value, UNSEEN)

    kind, keeps, to = operation.kind, not operation.writes, state(operation.value)
    need, want = ANY, ABSENT
    if kind == READ:
        need, want = (IS, state(operation.value)) if operation.told else (IS_NOT, ABSENT)
    elif kind == PUT:
        need = {None: ANY, True: IS_NOT, False: IS}[operation.existed]
    elif kind == DELETE:
        to = ABSENT
        # An unknown one that finds nothing changes nothing.
        need = IS_NOT if operation.applied else IS
    elif operation.applied:
        need, want = IS, state(operation.expected)
    elif operation.told:
        need, want = IS, state(operation.seen)
        if operation.seen == operation.expected:
            raise ContradictionError("a condition failed although it held", operation)
    else:
        need, want = IS_NOT, state(operation.expected)
    return Step(operation, operation.call, operation.ret, need, want, want if keeps else to, keeps)


def _blocks(steps: Sequence[Step]) -> list[Block]:
    """All blocks, with the bounds of their steps tightened to what their order implies."""
    writers = {step.to: step for step in steps if not step.keeps and step.to >= FIRST_VALUE}
    observers: dict[int, list[Step]] = {}
    successors: dict[int, Step] = {}
    for step in steps:
        if step.need != IS or step.want < FIRST_VALUE:
            continue
        if step.keeps:
            observers.setdefault(step.want, []).append(step)
            continue
        other = successors.setdefault(step.want, step)
        if other is not step:
            value = shown(step.operation.expected)
            raise ContradictionError(
                f"{value} was replaced twice", writers[step.want].operation, other.operation, step.operation
            )
    blocks: list[Block] = []
    for head in steps:
        if head.keeps or (head.need == IS and head.want >= FIRST_VALUE):
            continue
        block = Block()
        chain: list[tuple[Step, list[Step]]] = []
        write: Step | None = head
        while write is not None:
            seen_by = observers.get(write.to, []) if write.to >= FIRST_VALUE else []
            chain.append((write, seen_by))
            write = successors.get(write.to) if write.to >= FIRST_VALUE else None
        for write, seen_by in chain:
            for step in (write, *seen_by):
                block.add(step)
        _tighten(chain)
        blocks.append(block)
    if sum(len(block.steps) for block in blocks) != sum(
        not step.keeps or (step.need == IS and step.want >= FIRST_VALUE) for step in steps
    ):
        stray = next(step for step in steps if step.block is None and not step.keeps)
        raise ContradictionError("replacements go round in a circle", stray.operation)
    return blocks


def _tighten(chain: Sequence[tuple[Step, list[Step]]]) -> None:
    """Narrow the bounds of a block's steps, which are in order but for those who saw the same value. Raises ContradictionError."""
    last = chain[0][0]

    def follow(step: Step, before: Step) -> None:
        if step.operation.ret < before.call:
            why = f"{_deed_of(step)} had ended before {_deed_of(before)} can have begun"
            raise ContradictionError(why, *dict.fromkeys([chain[0][0].operation, step.operation, before.operation]))
        step.call = max(step.call, before.call)

    for write, seen_by in chain:
        follow(write, last)
        last = write if write.operation.call >= last.call else last
        for step in seen_by:
            follow(step, write)
        last = max([last, *seen_by], key=lambda step: step.call)
    latest = NEVER
    for write, seen_by in reversed(chain):
        before = latest
        for step in seen_by:
            step.ret = min(step.ret, latest)
            before = min(before, step.ret)
        write.ret = latest = min(before, write.ret)


def _deed_of(step: Step) -> str:
    operation = step.operation
    if not step.keeps:
        return f"the write of {shown(operation.value)}"
    return f"the sight of {shown(operation.value if operation.kind == READ else operation.seen)}"


def _check_blocks(steps: Sequence[Step], blocks: Sequence[Block]) -> None:
    """Raises when two blocks, or a block and an absence seen, would each have to come before the other."""
    solid = sorted((block for block in blocks if block.first_ret < block.last_call), key=lambda block: block.first_ret)
    for one, other in pairwise(solid):
        if other.first_ret < one.last_call and one.first_ret < other.last_call:
            raise _crossed(one, other)
    # Disjoint now, so in order of both bounds.
    starts = [block.first_ret for block in solid]
    absences = [step for step in steps if step.keeps and step.need == IS and step.want == ABSENT]
    things: list[tuple[float, float, Block | Step]] = [(step.call, step.ret, step) for step in absences]
    things += [(block.last_call, block.first_ret, block) for block in blocks if block.first_ret >= block.last_call]
    for begin, end, thing in things:
        place = bisect_left(starts, begin) - 1
        if place >= 0 and solid[place].last_call > end:
            raise _crossed(solid[place], thing)


def _crossed(one: Block, other: Block | Step) -> ContradictionError:
    if isinstance(other, Step):
        return ContradictionError(
            f"{_held(one)} held on both sides of a moment at which there was nothing",
            one.earliest.operation,
            other.operation,
            one.latest.operation,
        )
    found = {id(step): step.operation for step in (one.earliest, other.latest, other.earliest, one.latest)}
    return ContradictionError(f"{_held(one)} and {_held(other)} each come before the other", *found.values())


def _held(block: Block) -> str:
    writes = [shown(step.operation.value) for step in block.steps if not step.keeps]
    return writes[0] if len(writes) == 1 else f"the replacements {writes[0]} to {writes[-1]}"


def _groups(may: Sequence[Step]) -> list[list[Step]]:
    """Those that ask for the same and leave the same are alike: whichever was called first may stand for all."""
    groups: dict[tuple[int, int, int, bytes | None], list[Step]] = {}
    for step in sorted(may, key=lambda step: step.call):
        value = step.operation.value if step.to >= FIRST_VALUE else None
        groups.setdefault((step.need, step.want, step.to, value), []).append(step)
    return list(groups.values())
