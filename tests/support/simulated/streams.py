"""Where all randomness of a simulated run comes from: one seed, and one generator for each purpose.

Purposes never share a generator, so a change in how often the network draws does not change what the workload does. The names in use:
``scheduling`` (the loop), ``network``, ``disk NODE``, ``node NODE`` (what the core itself draws), ``clock NODE``, ``workload``, ``faults``.
"""

from __future__ import annotations

import random


class Streams:
    """``stream(name)`` is the same generator each time; equal seeds and names make equal sequences, on any hash seed."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._made: dict[str, random.Random] = {}

    def stream(self, name: str) -> random.Random:
        made = self._made.get(name)
        if made is None:
            # a str is seeded by its SHA-512, whatever PYTHONHASHSEED says
            made = self._made[name] = random.Random(f"{self.seed} {name}")
        return made
