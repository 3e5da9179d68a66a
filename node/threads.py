"""The offload door for a daemon: CPU-heavy work in a few threads. What runs here (hashing of large buffers) releases Python's lock."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

Args = ParamSpec("Args")
R = TypeVar("R")

HASH_THREADS = 2
"""Two chunks hashed at once keep up with any disk: BLAKE3 does several GB/s a core."""


class Threads:
    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(HASH_THREADS, "offload")

    async def run(self, function: Callable[Args, R], *args: Args.args, **kwargs: Args.kwargs) -> R:
        call = functools.partial(function, *args, **kwargs)
        return await asyncio.get_running_loop().run_in_executor(self._pool, call)

    def close(self) -> None:
        """Wait for what is running."""
        self._pool.shutdown(cancel_futures=True)
