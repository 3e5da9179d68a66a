"""Which disk each node is known to have: name -> (store id, boot).

A store id is 8 bytes: a generation (2 bytes, big-endian) and 6 random bytes, so that ids of one name compare: a replaced disk takes
a higher generation than any its peers remember. `StoreRegistry` owns this node's knowledge; knowledge only grows. It is made
durable (by the caller, in the register store) before it is told to a relearning node.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import msgpack

GENERATION_BYTES = 2
STORE_ID_BYTES = 8
UNKNOWN_STORE = b"\0" * STORE_ID_BYTES


class Life(NamedTuple):
    """One start of one store. ``run`` is random, so that two starts with the same count (of a store and of its copy) differ."""

    store: bytes
    boot: int
    run: bytes = b""

    @property
    def age(self) -> tuple[bytes, int]:
        """Greater is newer."""
        return self.store, self.boot


NO_LIFE = Life(UNKNOWN_STORE, 0)
RUN_BYTES = 8


def new_store_id(rng: random.Random, above: bytes = UNKNOWN_STORE) -> bytes:
    """A store id of the generation after ``above``'s."""
    generation = int.from_bytes(above[:GENERATION_BYTES], "big") + 1
    return generation.to_bytes(GENERATION_BYTES, "big") + rng.randbytes(STORE_ID_BYTES - GENERATION_BYTES)


class StoreRegistry:
    """See the module. ``on_change`` is called after every change."""

    def __init__(self) -> None:
        self._lives: dict[str, Life] = {}
        self._listeners: list[Callable[[], None]] = []
        self.version = 0
        """Counts changes of store ids, for whoever caches what it derives from them."""

    def on_change(self, listener: Callable[[], None]) -> None:
        self._listeners.append(listener)

    def life(self, name: str) -> Life:
        return self._lives.get(name, NO_LIFE)

    def note(self, name: str, life: Life) -> bool:
        """Take in what a node says of itself, or others say of it. Whether it was news."""
        known = self.life(name)
        if life.age <= known.age or len(life.store) != STORE_ID_BYTES:
            return False
        self._lives[name] = life
        if life.store != known.store:
            self.version += 1
        for listener in self._listeners:
            listener()
        return True

    def stores(self, names: Sequence[str]) -> bytes:
        """The store ids of ``names``, joined in their order."""
        return b"".join([self.life(name).store for name in names])

    def pack(self) -> bytes:
        return bytes(msgpack.packb({name: list(life) for name, life in self._lives.items()}))

    def load(self, data: bytes) -> None:
        """Take in what `pack` made."""
        lives: Mapping[str, tuple[bytes, int, bytes]] = msgpack.unpackb(data)
        for name, life in lives.items():
            self.note(name, Life(*life))
