"""The buffer pool: nobody's bytes are ever overwritten, and idle memory is given back."""

from __future__ import annotations

from cluster.rpc.buffer_pool import BufferPool
from cluster.rpc.limits import BUFFER_POOL_LIMIT


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
