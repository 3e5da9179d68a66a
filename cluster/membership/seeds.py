"""Whom to ask at first: addresses from the configuration, tried until each has led to a living member.

Pure: time and the living members come in. A seed that answered is bound to the name that answered, and is left alone for as
long as that member seems alive; so a cluster that split, or whose nodes all moved, finds together by its seeds again. Until there is
a layout they are asked now and then all the same: a name may stand for more machines by and by (a headless service), at first perhaps
for nobody but oneself.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from cluster.membership.settings import MembershipSettings

Address = tuple[str, int]

SEEDS_AT_ONCE = 4
"""Seeds tried in one go; the others follow in later goes."""


@dataclass(slots=True)
class _Seed:
    due: float = 0.0
    wait_s: float = 0.0
    name: str | None = None
    busy: bool = False


class Seeds:
    def __init__(self, addresses: Iterable[Address], settings: MembershipSettings) -> None:
        self._settings = settings
        self._seeds: dict[Address, _Seed] = {}
        for address in addresses:
            self.add(address)

    def __contains__(self, address: Address) -> bool:
        return address in self._seeds

    def add(self, address: Address) -> None:
        """One more address; nothing when it is known already."""
        self._seeds.setdefault(address, _Seed())

    def unmet(self) -> list[Address]:
        """Those at which nobody has answered yet."""
        return [address for address, seed in self._seeds.items() if seed.name is None]

    def due(self, time: float, alive: Collection[str], *, alone: bool, forming: bool) -> list[Address]:
        """The addresses to try now, at most `SEEDS_AT_ONCE`; each is to be `answered` or `failed` before it is due again.
        ``alive``: names that seem to live, one's own included (a seed may be oneself); ``alone``: there is none but one's own;
        ``forming``: there is no layout yet, whose nodes would find each other."""
        chosen: list[Address] = []
        for address, seed in self._seeds.items():
            met = seed.name is not None and seed.name in alive
            if seed.busy or (met and not forming):
                continue
            if alone:
                seed.due = min(seed.due, time + self._settings.seed_retry_alone_s)
            if seed.due + (self._settings.seed_retry_limit_s if met and not alone else 0) <= time:
                seed.busy = True
                chosen.append(address)
                if len(chosen) == SEEDS_AT_ONCE:
                    break
        return chosen

    def answered(self, address: Address, name: str, time: float) -> None:
        """``name`` answered at ``address``."""
        seed = self._seeds.get(address)
        if seed is not None:
            seed.busy, seed.name, seed.wait_s, seed.due = False, name, 0.0, time + self._settings.seed_retry_s

    def failed(self, address: Address, time: float, *, others: bool = False) -> None:
        """Nobody answered at ``address``. ``others``: besides oneself, whom it had seemed to stand for alone."""
        seed = self._seeds.get(address)
        if seed is not None:
            seed.busy = False
            if others:
                seed.name = None
            seed.wait_s = min(max(self._settings.seed_retry_s, 2 * seed.wait_s), self._settings.seed_retry_limit_s)
            seed.due = time + seed.wait_s


def who_answered(me: str, met: Mapping[str, str | None]) -> str | None:
    """To whom a seed has led: one of the others if there are any, oneself, or nobody yet. ``met``: for each of its addresses the name
    that answered there, None for silence. Where oneself is one of several, the others must have been heard before that tells anything;
    unless their address is of another family, at which a node may well not listen (``localhost``)."""
    others = [name for name in met.values() if name is not None and name != me]
    if others:
        return others[0]
    mine = {":" in address for address, name in met.items() if name == me}
    silent = {":" in address for address, name in met.items() if name is None}
    return me if mine and not mine & silent else None
