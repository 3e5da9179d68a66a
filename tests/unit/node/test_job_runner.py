"""Jobs are asked again at once, after a pause, or after their interval; an error that a job does not expect ends them all."""

from __future__ import annotations

import asyncio

import pytest

from node.job_runner import run_jobs


class RecordingClock:
    """Sleeps no longer than it must, and remembers how long it should have."""

    def __init__(self) -> None:
        self.slept: list[float] = []

    def monotonic(self) -> float:
        return 0.0

    def wall(self) -> float:
        return 0.0

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        await asyncio.sleep(0)


class ScriptedJob:
    name = "scripted"
    queue_length = 0
    last_error: str | None = None
    waiting_for: str | None = None
    interval_s = 9.0

    def __init__(self, *script: tuple[bool, float]) -> None:
        self.script = list(script)
        self.pause_s = 0.0

    async def run_once(self) -> bool:
        if not self.script:
            raise RuntimeError("the script is over")
        more, self.pause_s = self.script.pop(0)
        return more


async def test_a_job_says_when_it_is_asked_again() -> None:
    clock = RecordingClock()
    with pytest.raises(ExceptionGroup) as caught:
        await run_jobs([ScriptedJob((True, 0.0), (True, 0.5), (False, 0.5), (True, 0.25))], clock)
    assert clock.slept == [0.5, 9.0, 0.25]
    assert isinstance(caught.value.exceptions[0], RuntimeError)


async def test_jobs_take_turns() -> None:
    busy = ScriptedJob(*[(True, 0.0)] * 1000)
    other = ScriptedJob((True, 0.0), (False, 0.0))
    with pytest.raises(ExceptionGroup):
        await run_jobs([busy, other], RecordingClock())
    assert len(busy.script) > 900, "the other came to its end first"
