"""Cuts between pairs of hosts, for a network that only knows frozen hosts: nothing travels between the two, and no stream breaks."""

from __future__ import annotations

from collections.abc import Iterable, Set
from typing import Any

from tests.support.simulated.network import SimulatedNetwork


class Barriers(set[str]):
    """In the place of the network's set of frozen hosts: the network asks which of two hosts are in it, and two that are cut off from each
    other are."""

    def __init__(self, network: SimulatedNetwork) -> None:
        super().__init__()
        self._network = network
        self._pairs: dict[frozenset[str], int] = {}
        network.frozen = self

    def cut(self, host: str, others: Iterable[str]) -> None:
        for other in others:
            pair = frozenset({host, other})
            self._pairs[pair] = self._pairs.get(pair, 0) + 1

    def mend(self, host: str, others: Iterable[str]) -> None:
        for other in others:
            pair = frozenset({host, other})
            self._pairs[pair] -= 1
            if not self._pairs[pair]:
                del self._pairs[pair]
        self._network.thawed.set()
        for stream in self._network.streams:
            stream.plan()

    def __rand__(self, hosts: Set[Any]) -> set[str]:
        if len(hosts) == 2 and frozenset(hosts) in self._pairs:
            return set(hosts)
        return {host for host in hosts if host in self}
