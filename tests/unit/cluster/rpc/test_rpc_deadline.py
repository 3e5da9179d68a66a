"""The shared deadlines: nothing early, nothing late by more than a step, nothing forgotten."""

from __future__ import annotations

import asyncio

from cluster.rpc.buffer_pool import BufferPool
from cluster.rpc.deadline import Deadlines, Expiring
from cluster.rpc.limits import BUFFER_POOL_LIMIT


class Thing:
    due: set[Expiring]

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
    done.due.discard(done)
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


def test_a_buffer_is_used_again_only_when_nobody_looks_at_it() -> None:
    pool = BufferPool()
    size = 1024 * 1024
    first = pool.take(size)
    first[10:14] = b"held"
    view = memoryview(first)[10:20]
    identity = id(first)
    del first
    second = pool.take(size)
    second[:] = bytes(size)
    assert id(second) != identity
    assert bytes(view[:4]) == b"held"
    view.release()
    del view
    third = pool.take(size)
    assert id(third) == identity
    assert pool.size == 2 * size


def test_the_pool_is_bounded_and_lets_go_of_what_is_idle() -> None:
    pool = BufferPool()
    size = 4 * 1024 * 1024
    held = [pool.take(size) for _ in range(20)]
    assert pool.size == BUFFER_POOL_LIMIT
    assert len({id(buffer) for buffer in held}) == 20
    held.clear()
    other = pool.take(size + 1)  # takes the place of a free one
    assert len(other) == size + 1
    assert pool.size <= BUFFER_POOL_LIMIT
    pool.sweep()
    pool.sweep()
    assert pool.size == 0
    assert len(pool.take(100)) == 100
    assert pool.size == 0
