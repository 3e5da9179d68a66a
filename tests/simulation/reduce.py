"""A failing run made small, by itself: fewer events, operations, clients and nodes, as long as the same thing breaks.

Each step is tried once and kept if it still fails; what is left is the least that this finds within `TRIES` and `REDUCING_S`, not the least
there is.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import NamedTuple

from tests.simulation.result import Result
from tests.simulation.run import WHOLE, Cut
from tests.simulation.scenario import SCENARIOS
from tests.simulation.trouble import draw

TRIES = 40

REDUCING_S = 300.0
"""Of real time, for one failure: a run that hangs takes minutes. The try under way then is the last."""

Run = Callable[[str, int, Cut], Result]


class Reduced(NamedTuple):
    """The smallest cut found, and what came of it. ``out_of_time``: more might have been found."""

    cut: Cut
    result: Result
    out_of_time: bool = False


def reduce(
    result: Result,
    run: Run,
    tries: int = TRIES,
    seconds: float = REDUCING_S,
    clock: Callable[[], float] = time.monotonic,
) -> Reduced:
    """Tries until nothing smaller fails alike, ``tries`` are used up, or ``seconds`` of real time are over."""
    assert result.broken is not None
    scenario = SCENARIOS.get(result.scenario)
    if scenario is None:
        return Reduced(WHOLE, result)
    end = clock() + seconds
    out_of_time = False
    events = tuple(range(len(draw(result.seed, scenario))))
    best = Cut(operations=scenario.operations, clients=scenario.clients, events=events)
    kept = result
    progress = True
    while progress and tries > 0:
        progress = False
        for candidate in _smaller(best):
            out_of_time = clock() >= end
            if tries <= 0 or out_of_time:
                break
            tries -= 1
            found = run(result.scenario, result.seed, candidate)
            if found.broken is not None and found.broken.name == result.broken.name:
                best, kept, progress = candidate, found, True
                break
    return Reduced(WHOLE if kept is result else best, kept, out_of_time)


def _smaller(cut: Cut) -> Iterator[Cut]:
    """What to try next, the largest steps first."""
    assert cut.events is not None
    assert cut.operations is not None
    assert cut.clients is not None
    if len(cut.events) > 3:
        half = len(cut.events) // 2
        yield replace(cut, events=cut.events[:half])
        yield replace(cut, events=cut.events[half:])
    if cut.operations >= 20:
        yield replace(cut, operations=cut.operations // 2)
    for place in range(len(cut.events)):
        yield replace(cut, events=cut.events[:place] + cut.events[place + 1 :])
    if cut.clients > 2:
        yield replace(cut, clients=cut.clients // 2)
    if cut.nodes is None or cut.nodes > 3:
        yield replace(cut, nodes=3 if cut.nodes is None else cut.nodes - 1)
    if cut.operations >= 10:
        yield replace(cut, operations=cut.operations * 3 // 4)
