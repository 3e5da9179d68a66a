"""Histories of a register that really is linearizable, with overlapping, slow and unanswered operations; and ways to spoil them."""

from __future__ import annotations

import heapq
import random
from dataclasses import dataclass, replace

from tests.support.history.operation import CAS, DELETE, NEVER, PUT, READ, Operation


@dataclass(frozen=True)
class Mix:
    """``clients`` ask at once, each as soon as it was answered. Weights are of `KINDS`: a "remove" deletes exactly what was read,
    a "delete" whatever is there. ``lost``: the part of writes that nobody got an answer to."""

    clients: int = 8
    operations: int = 200
    weights: tuple[int, int, int, int, int, int, int] = (40, 3, 10, 30, 10, 3, 4)
    lost: float = 0.1
    mute: float = 0.3
    """The part of answers that tell less than they could."""


KINDS = ("read", "exists", "put", "replace", "create", "delete", "remove")


def honest_history(seed: int, mix: Mix) -> list[Operation]:
    """Every operation takes effect at one random moment of its own, in that order; unknown ones long after, or never."""
    rng = random.Random(f"honest {seed}")
    history: list[Operation] = []
    state: bytes | None = None
    last_read: dict[int, bytes | None] = {}
    events: list[
        tuple[float, int, int, bool, str, float]
    ] = []  # when it takes effect, number, client, lost, kind, call
    number = 0

    def begin(client: int, now: float) -> None:
        nonlocal number
        lost = True
        while lost and number < mix.operations:
            number += 1
            kind = rng.choices(KINDS, mix.weights)[0]
            lost = kind not in ("read", "exists") and rng.random() < mix.lost
            effect = now + rng.expovariate(1.0) * (20 if lost and rng.random() < 0.5 else 1)
            heapq.heappush(events, (effect, number, client, lost, kind, now))
            now += rng.expovariate(0.5)  # so long it waits for an answer that does not come

    for client in range(mix.clients):
        begin(client, rng.random())
    while events:
        effect, mine, client, lost, kind, call = heapq.heappop(events)
        ret = NEVER if lost else effect + rng.expovariate(2.0)
        who, tells = f"c{client}", rng.random() >= mix.mute
        expected = last_read.get(client) if kind in ("replace", "remove") else None
        if kind == "remove" and expected is None:
            kind = "delete"
        value = None if kind == "remove" else b"v%d" % mine
        never = lost and rng.random() < 0.5
        after = state
        if kind == "read":
            history.append(Operation(READ, call, ret, state, who=who))
            last_read[client] = state
        elif kind == "exists":
            known = state is not None
            history.append(Operation(READ, call, ret, None, who=who, told=not known))
        elif kind == "put":
            existed = (state is not None) if tells and not lost else None
            history.append(Operation(PUT, call, ret, value, who=who, existed=existed))
            after = value
        elif kind == "delete":
            history.append(Operation(DELETE, call, ret, who=who, applied=state is not None or lost))
            after = None
        elif state == expected or lost:
            history.append(Operation(CAS, call, ret, value, expected, who=who))
            after = value if state == expected else state
        else:
            seen = state if tells else None
            history.append(Operation(CAS, call, ret, value, expected, False, seen, who, told=tells))
        if not never:
            state = after
        if not lost:
            begin(client, ret)
    return history


def spoiled(history: list[Operation], rng: random.Random) -> list[Operation]:
    """One answer made wrong: a read (or a failed condition's sight) gives the value of another one, or something never written."""
    places = [n for n, o in enumerate(history) if o.is_known and not o.writes and o.told and o.kind in (READ, CAS)]
    place = rng.choice(places)
    other = history[rng.choice(places)]
    wrong = b"never" if rng.random() < 0.1 else (other.value if other.kind == READ else other.seen)
    one = history[place]
    changed = replace(one, value=wrong) if one.kind == READ else replace(one, seen=wrong)
    return [*history[:place], changed, *history[place + 1 :]]
