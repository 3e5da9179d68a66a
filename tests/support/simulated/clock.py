"""A node's clocks on virtual time: a wall clock that is off, drifts and jumps, and a monotonic one that runs a little fast or slow.

The monotonic clock never goes back, starts anywhere, and drifts within `DRIFT_MAX`; the wall clock may do anything. Sleeping is by
the node's own monotonic clock. Time-outs of asyncio are by the loop's time, without drift: a core meets both.
"""

from __future__ import annotations

import asyncio
import random

WALL_START = 1_700_000_000.0
DRIFT_MAX = 0.05
"""A node's second lasts between 0.95 and 1.05 seconds: a hundred times worse than quartz."""
JUMP_MAX_S = 12 * 3600.0


class VirtualClock:
    """Without arguments: the loop's time."""

    def __init__(self, *, rate: float = 1.0, offset_s: float = 0.0, start_s: float = 0.0) -> None:
        self._rate = rate
        self._offset_s = offset_s
        self._start_s = start_s
        self._since = 0.0
        self._check(rate)

    @classmethod
    def wild(cls, rng: random.Random) -> VirtualClock:
        """One that is off by hours and drifts."""
        return cls(
            rate=1 + rng.uniform(-DRIFT_MAX, DRIFT_MAX),
            offset_s=rng.uniform(-JUMP_MAX_S, JUMP_MAX_S),
            start_s=rng.uniform(0, 1e6),
        )

    def monotonic(self) -> float:
        return self._start_s + (asyncio.get_running_loop().time() - self._since) * self._rate

    def wall(self) -> float:
        return WALL_START + self._offset_s + asyncio.get_running_loop().time()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds / self._rate)

    # what a scenario does

    def jump(self, seconds: float) -> None:
        """The wall clock is set forward, or back."""
        self._offset_s += seconds

    def drift(self, rate: float) -> None:
        """From now on the monotonic clock runs at that rate. Sleeps under way end as they would have."""
        self._check(rate)
        now = asyncio.get_running_loop().time()
        self._start_s += (now - self._since) * self._rate
        self._since = now
        self._rate = rate

    @staticmethod
    def _check(rate: float) -> None:
        assert 1 - DRIFT_MAX <= rate <= 1 + DRIFT_MAX, f"a rate of {rate}"


async def disturb(clocks: list[VirtualClock], rng: random.Random, mean_s: float = 5.0) -> None:
    """For ever: now and then one of the clocks jumps by up to hours, or changes its rate."""
    while True:
        await asyncio.sleep(rng.expovariate(1 / mean_s))
        clock = rng.choice(clocks)
        if rng.random() < 0.5:
            clock.jump(rng.choice((-1, 1)) * JUMP_MAX_S * rng.random() ** 3)
        else:
            clock.drift(1 + rng.uniform(-DRIFT_MAX, DRIFT_MAX))
