"""Cuts that may overlap: two hosts reach each other again when the last cut between them is mended."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from tests.support.simulated.network import SimulatedNetwork


class Cuts:
    def __init__(self, network: SimulatedNetwork) -> None:
        self._network = network
        self._ways: Counter[tuple[str, str]] = Counter()

    def cut(self, host: str, others: Iterable[str], *, one_way: bool, refuse: bool) -> None:
        """Nothing gets from the host to the others, nor back unless ``one_way``; attempts to connect hang, or are refused."""
        for way in _ways(host, others, one_way):
            self._ways[way] += 1
            self._network.cut(*way, one_way=True, refuse=refuse)

    def mend(self, host: str, others: Iterable[str], *, one_way: bool) -> None:
        for way in _ways(host, others, one_way):
            self._ways[way] -= 1
            if not self._ways[way]:
                self._network.mend(*way)


def _ways(host: str, others: Iterable[str], one_way: bool) -> list[tuple[str, str]]:
    return [way for other in others for way in [(host, other), (other, host)][: 1 if one_way else 2]]
