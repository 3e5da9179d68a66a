"""What happened lately: a bounded ring of (virtual time, node, words), for whoever has to understand a failed run.

Off unless it is given a size: then every note costs one comparison. The network notes its connections, faults and messages; scenarios add
their own. `digest` covers everything that was ever noted, also what has left the ring, so two runs can be compared by it.
"""

from __future__ import annotations

from collections import deque
from zlib import crc32


class Trace:
    def __init__(self, size: int = 0) -> None:
        self.on = size > 0
        self.noted = 0
        self.digest = 0
        self._ring: deque[tuple[float, str, tuple[object, ...]]] = deque(maxlen=size)

    def note(self, when: float, node: str, *words: object) -> None:
        """Words are strings and numbers; they are put together only when somebody reads them."""
        if self.on:
            self.noted += 1
            self.digest = crc32(repr((when, node, words)).encode(), self.digest)
            self._ring.append((when, node, words))

    def lines(self, last: int | None = None) -> list[str]:
        """The newest at the end."""
        kept = list(self._ring)[-last:] if last is not None else list(self._ring)
        return [f"{when:12.6f} {node:>8} {' '.join(map(str, words))}" for when, node, words in kept]
