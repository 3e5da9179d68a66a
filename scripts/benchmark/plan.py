"""How much to measure, and what measurements share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmark.testbed import Testbed
from client.errors import NotFound

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Plan:
    """How much to measure. ``registers``: on each of two sides that are compared. ``note`` is told what is being done."""

    runs: int
    volume_bytes: int
    seconds: float
    idle_s: float
    registers: int
    directory: Path
    note: Callable[[str], None]

    @property
    def volume(self) -> str:
        return f"{self.volume_bytes // MIB} MiB"


def volume_path(volume: str) -> str:
    return f"/v1/volumes/{volume}/data"


async def delete_volumes(testbed: Testbed, volumes: list[str]) -> None:
    async with testbed.cluster.client() as client:
        for volume in volumes:
            try:
                await client.delete(volume)
            except NotFound:
                continue
