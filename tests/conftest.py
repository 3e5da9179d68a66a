"""Says in the head of the log which seeds today's runs of the simulation have."""

from __future__ import annotations

from tests.simulation.today import FIRST_OF_TODAY


def pytest_report_header() -> str:
    return f"simulation: today's seeds begin at {FIRST_OF_TODAY}; HOLDFAST_DAY=YYYY-MM-DD has those of another day"
