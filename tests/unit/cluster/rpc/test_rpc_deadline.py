"""The shared deadlines: nothing early, nothing late by more than a step, nothing forgotten."""

from __future__ import annotations

import asyncio

from cluster.rpc.deadline import Deadlines, Expiring


class Thing:
    due: dict[Expiring, None]

    def __init__(self, log: list[tuple[float, Thing]], expired: asyncio.Queue[None]) -> None:
        self.log = log
        self.expired = expired

    def expire(self) -> None:
        self.expired.put_nowait(None)
        self.log.append((asyncio.get_running_loop().time(), self))


async def test_things_expire_at_their_deadline_and_not_when_they_are_done_before() -> None:
    loop = asyncio.get_running_loop()
    deadlines = Deadlines(loop)
    log: list[tuple[float, Thing]] = []
    expired: asyncio.Queue[None] = asyncio.Queue()
    start = loop.time()
    seconds = [0.05, 0.02, 0.08, 0.02, 60.0]
    things = [Thing(log, expired) for _ in seconds]
    for thing, after in zip(things, seconds, strict=True):
        deadlines.add(thing, after)
    done = things[3]
    done.due.pop(done)
    async with asyncio.timeout(5):
        for _ in range(3):
            await expired.get()
    assert [thing for _, thing in log] == [things[1], things[0], things[2]]
    for when, thing in log:
        assert when - start >= seconds[things.index(thing)]
    deadlines.close()


async def test_a_nearer_deadline_added_later_comes_first() -> None:
    deadlines = Deadlines(asyncio.get_running_loop())
    log: list[tuple[float, Thing]] = []
    expired: asyncio.Queue[None] = asyncio.Queue()
    far, near = Thing(log, expired), Thing(log, expired)
    deadlines.add(far, 30)
    deadlines.add(near, 0.01)
    async with asyncio.timeout(5):
        await expired.get()
    assert log[0][1] is near
    deadlines.close()
