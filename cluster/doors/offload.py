"""Work that would hold up the event loop, as a door: hashing of large buffers, planning a layout.

`node` passes one that uses threads; tests and the simulator pass `Inline`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, Protocol, TypeVar

Args = ParamSpec("Args")
R = TypeVar("R")


class Offload(Protocol):
    async def run(self, function: Callable[Args, R], *args: Args.args, **kwargs: Args.kwargs) -> R:
        """``function(*args, **kwargs)``, without holding up the event loop."""


class Inline:
    """Runs the work where it stands."""

    async def run(self, function: Callable[Args, R], *args: Args.args, **kwargs: Args.kwargs) -> R:
        return function(*args, **kwargs)
