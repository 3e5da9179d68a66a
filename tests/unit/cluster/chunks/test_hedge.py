"""When a second replica is asked."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cluster.chunks.hedge import HEDGE_LEAST_S, HEDGE_MOST_S, HedgeDelay


@given(st.lists(st.floats(0, 100)))
def test_it_stays_within_its_bounds(latencies: list[float]) -> None:
    delay = HedgeDelay()
    for latency in latencies:
        delay.note(latency)
        assert HEDGE_LEAST_S <= delay.seconds <= HEDGE_MOST_S


def test_it_follows_what_reads_take() -> None:
    delay = HedgeDelay()
    for _ in range(100):
        delay.note(0.002)
    quick = delay.seconds
    for _ in range(100):
        delay.note(0.2)
    slow = delay.seconds
    assert quick == HEDGE_LEAST_S
    assert 0.2 < slow <= HEDGE_MOST_S
    for _ in range(100):
        delay.note(0.002)
    assert delay.seconds == quick
