"""Blocking calls on files, in threads."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import ParamSpec, TypeVar

Arguments = ParamSpec("Arguments")
R = TypeVar("R")


async def in_thread(work: Callable[Arguments, R], *arguments: Arguments.args, **named: Arguments.kwargs) -> R:
    """Run ``work`` in a thread, which has come to its end when this returns or raises, cancelled or not."""
    thread = asyncio.get_running_loop().run_in_executor(None, partial(work, *arguments, **named))
    try:
        return await asyncio.shield(thread)
    except asyncio.CancelledError:
        while not thread.done():
            try:
                await asyncio.wait([thread])
            except asyncio.CancelledError:
                continue  # cancelled again; raised below, once the thread has ended
        raise
