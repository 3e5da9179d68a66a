"""The simulation's own reading of a chunk log says what the store holds when it starts on it, after any crash."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping

import pytest
from blake3 import blake3

from cluster.chunks.store import Reference
from tests.support.simulated.clock import VirtualClock
from tests.support.simulated.loop import run_virtual
from tests.support.simulated.production_stores import ProductionStores
from tests.support.simulated.stores import OpenStores

LIVES = 6
CHUNKS = 30


class Writer:
    """A node that does nothing but change its chunks, and compares what its store holds with what stood in the log before."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(f"writer {seed}")
        self.stores = ProductionStores("n1", seed, random.Random(f"machine {seed}"))
        self.expected: dict[bytes, Mapping[bytes, int]] | None = {}
        """None: not known, since more than was durable may be left."""
        self.compared = 0

    async def live(self, stores: OpenStores) -> None:
        held = {chunk: dict(references) for chunk, (_, references) in self.stores.held_chunks().items() if references}
        if self.expected is not None:
            assert held == self.expected
            self.compared += len(held)
        async with asyncio.TaskGroup() as group:
            for _ in range(6):
                group.create_task(self.change(stores))

    async def change(self, stores: OpenStores) -> None:
        while True:
            number = self.chance.randrange(CHUNKS)
            payload = b"%d." % number * (1 + number * 97 % 3000)
            chunk = blake3(payload).digest()
            reference = Reference(self.chance.randrange(4).to_bytes(16), 3)
            kind = self.chance.choice(["put", "put", "add", "drop"])
            if kind == "put":
                await stores.chunks.put(chunk, payload, reference)
            elif kind == "add":
                await stores.chunks.add_reference(chunk, reference)
            else:
                await stores.chunks.drop_reference(chunk, reference.referrer)
            await asyncio.sleep(self.chance.expovariate(100))

    async def leave(self) -> None:
        pass

    def mend(self, chunk: bytes) -> None:
        pass

    async def main(self) -> None:
        try:
            for _ in range(LIVES):
                process = asyncio.ensure_future(self.stores.run(self, VirtualClock()))
                await asyncio.sleep(self.chance.uniform(0.05, 0.6))
                power = self.chance.random() < 0.7
                self.stores.crash(power=power)
                process.cancel()
                await asyncio.wait([process])
                assert process.cancelled(), process.exception()
                on_disk = self.stores.chunks_on_disk()
                found = {chunk: self.stores.references_on_disk(chunk) for chunk in on_disk}
                self.expected = found if power else None
        finally:
            self.stores.remove()


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_what_the_log_says_is_what_the_store_finds(seed: int) -> None:
    writer = Writer(seed)
    run_virtual(writer.main(), seed=seed)
    assert writer.compared > 30
