"""Runs the jobs that a node has beside its core: one bounded unit of work after the other, each job in a task of its own.

A job says itself what it waits for and what went wrong; here is only when it is asked again. Errors that a job does not expect end the
daemon.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Protocol

from cluster.doors.clock import Clock


class ShownJob(Protocol):
    """What people see of a job. `queue_length` in its own pieces of work; `waiting_for`: why nothing is done now, None while there is
    more."""

    @property
    def name(self) -> str: ...

    @property
    def queue_length(self) -> int: ...

    @property
    def last_error(self) -> str | None: ...

    @property
    def waiting_for(self) -> str | None: ...


class Job(ShownJob, Protocol):
    """One that is run here."""

    @property
    def pause_s(self) -> float:
        """How long to wait before the next unit of work, when there is more to do at once."""

    @property
    def interval_s(self) -> float:
        """How long to wait when there is nothing to do."""

    async def run_once(self) -> bool:
        """One unit of work; whether there is more to do at once."""


async def run_jobs(jobs: Sequence[Job], clock: Clock) -> None:
    """Until cancelled."""
    async with asyncio.TaskGroup() as group:
        for job in jobs:
            group.create_task(_run(job, clock))


async def _run(job: Job, clock: Clock) -> None:
    while True:
        more = await job.run_once()
        pause_s = job.pause_s if more else job.interval_s
        await (clock.sleep(pause_s) if pause_s > 0 else asyncio.sleep(0))
