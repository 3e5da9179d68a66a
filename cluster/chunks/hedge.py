"""When to ask a second replica: a little later than reads usually take. A pure estimate.

Mean and mean deviation of recent latencies, smoothed as TCP smooths round-trip times (Jacobson, 1988; RFC 6298), after "The Tail at
Scale" (Dean and Barroso, 2013). Bounded on both sides, so that a burst of slow reads can't switch hedging off.
"""

from __future__ import annotations

HEDGE_LEAST_S = 0.03
"""Below this a second request costs more than it saves."""

HEDGE_MOST_S = 0.5
"""A hung replica delays a read by no more than this."""

START_S = 0.1


class HedgeDelay:
    def __init__(self) -> None:
        self._mean = START_S / 2
        self._deviation = START_S / 8

    def note(self, seconds: float) -> None:
        """A read took so long."""
        self._deviation += (abs(seconds - self._mean) - self._deviation) / 4
        self._mean += (seconds - self._mean) / 8

    @property
    def seconds(self) -> float:
        return min(HEDGE_MOST_S, max(HEDGE_LEAST_S, self._mean + 4 * self._deviation))
