"""Several things at once, to the end of all of them: for background workers, which carry on after errors and must end when cancelled.

A TaskGroup won't do there: when a child fails in the moment in which its parent is cancelled, as when a node stops, the group raises the
child's error, the cancellation is forgotten, and the worker goes on for ever.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable
from typing import Any, TypeVar

T = TypeVar("T")


async def together(works: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Their results, in order. The first error ends the others and is raised, unless the caller was cancelled: that comes first.

    Nothing of them runs any more when this returns or raises.
    """
    tasks = [asyncio.create_task(work) for work in works]
    left = set(tasks)
    ended = False
    first: BaseException | None = None
    cancelled: asyncio.CancelledError | None = None
    while left:
        try:
            _, left = await asyncio.wait(left, return_when=asyncio.FIRST_EXCEPTION)
        except asyncio.CancelledError as error:
            cancelled = error
        failed = next((task for task in tasks if task.done() and (task.cancelled() or task.exception())), None)
        if failed is not None and first is None:
            first = asyncio.CancelledError() if failed.cancelled() else failed.exception()
        if not ended and (cancelled is not None or failed is not None):
            ended = True
            for task in tasks:
                task.cancel()
    for task in tasks:
        if not task.cancelled():
            task.exception()  # all have been seen
    if cancelled is not None:
        raise cancelled
    if first is not None:
        raise first
    return [task.result() for task in tasks]
