"""Is it me who is slow? The machine's own time, and how much its accusations are worth.

Two measures keep an overloaded node from accusing others, since the answers it misses may wait in its own sockets:

* Its own time. The machine's clock advances by at most `STEP_LIMIT_S` per tick, so time in which the event loop did not run does not
  count against anybody: a node that was stopped for a minute resumes where it was, and reads its mail before it judges.
* Its score (the local health multiplier of Lifeguard: Dadgar, Phillips and Currey, 2017, section IV.A). It rises when a probe fails
  and none of the helpers answers either, when it hears itself suspected, and after a long pause; it falls with each
  answered probe. Time-outs are multiplied by `factor`.
"""

from __future__ import annotations

STEP_LIMIT_S = 0.25
"""The most that one tick adds to the machine's time: an event loop that is late by up to 150 ms costs no accuracy, and one that is
later than that slows the judgement of this node down, and nobody else's."""

PAUSE_S = 1.0
"""A tick that comes so late worsens the score: whatever held up this node may still be there."""

SCORE_LIMIT = 4
"""The worst score."""

FACTOR_PER_POINT = 0.25
"""What a point of the score adds to the factor: time-outs at most double, so that a dead node is noticed in bounded time by
a cluster in which every node is overloaded."""

LATENESS_DECAY = 0.9
"""Share of `lateness_s` that is left after a punctual tick: it shows the worst of the last second or two."""


class LocalHealth:
    """Owned by the machine; ``tick_s`` is the wait it asks for between ticks."""

    def __init__(self, now: float, tick_s: float) -> None:
        self._last_tick = now
        self._tick_s = tick_s
        self._score = 0
        self.time = 0.0
        """The machine's own time in seconds; begins at 0."""
        self.lateness_s = 0.0
        """How late ticks have come lately, in seconds."""

    def advance(self, now: float) -> float:
        """A tick has come. Returns the machine's own time."""
        step = max(0.0, now - self._last_tick)
        self._last_tick = max(now, self._last_tick)
        self.lateness_s = max(step - self._tick_s, self.lateness_s * LATENESS_DECAY, 0.0)
        if step > PAUSE_S:
            self.worse()
        self.time += min(step, STEP_LIMIT_S)
        return self.time

    def worse(self) -> None:
        self._score = min(SCORE_LIMIT, self._score + 1)

    def better(self) -> None:
        self._score = max(0, self._score - 1)

    @property
    def score(self) -> int:
        """0 (well) to `SCORE_LIMIT`."""
        return self._score

    @property
    def factor(self) -> float:
        """What this node's time-outs are multiplied by: 1 to 2."""
        return 1.0 + FACTOR_PER_POINT * self._score
