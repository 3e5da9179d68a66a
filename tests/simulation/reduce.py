"""A failing run made small, by itself: fewer events, operations, clients and nodes, as long as the same invariant breaks.

Each step is tried once and kept if it still fails; what is left is the least that this finds within `TRIES`, not the least there is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from tests.simulation.result import Result
from tests.simulation.run import WHOLE, Cut
from tests.simulation.scenario import SCENARIOS
from tests.simulation.trouble import draw

TRIES = 40

Run = Callable[[str, int, Cut], Result]


def reduce(result: Result, run: Run, tries: int = TRIES) -> tuple[Cut, Result]:
    """The smallest cut found, and what came of it."""
    assert result.broken is not None
    scenario = SCENARIOS.get(result.scenario)
    if scenario is None:
        return WHOLE, result
    events = tuple(range(len(draw(result.seed, scenario))))
    best = Cut(operations=scenario.operations, clients=scenario.clients, events=events)
    kept = result
    progress = True
    while progress and tries > 0:
        progress = False
        for candidate in _smaller(best):
            if tries <= 0:
                break
            tries -= 1
            found = run(result.scenario, result.seed, candidate)
            if found.broken is not None and found.broken.invariant == result.broken.invariant:
                best, kept, progress = candidate, found, True
                break
    return (WHOLE, result) if kept is result else (best, kept)


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
