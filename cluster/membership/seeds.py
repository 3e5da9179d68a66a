"""Whom to ask at first: addresses from the configuration, tried until each has led to a living member.

Pure: time and the living members come in. A seed that answered is bound to the name that answered, and is left alone for as
long as that member seems alive; so a cluster that split, or whose nodes all moved, finds together by its seeds again.

A name may stand for many machines (a headless service), for more of them by and by, and at first perhaps for nobody but oneself. So seeds
are asked again now and then until there is a layout, and while nobody else is there. And an address at which nobody answered is unmet,
though others of its name have: somebody may be there who knows of a cluster. Unless it is of another family (IPv6) than those at which
others did: there a node may well not listen, or not be reached.
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
    silent: tuple[str, ...] = ()
    """Of its addresses, where nobody answered although somebody did at others."""
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
        found: dict[Address, None] = {}
        for address, seed in self._seeds.items():
            if seed.name is None:
                found[address] = None
            found.update(dict.fromkeys((silent, address[1]) for silent in seed.silent))
        return list(found)

    def due(self, time: float, alive: Collection[str], *, alone: bool, forming: bool) -> list[Address]:
        """The addresses to try now, at most `SEEDS_AT_ONCE`; each is to be `answered` or `failed` before it is due again.
        ``alive``: names that seem to live, one's own included (a seed may be oneself); ``alone``: there is none but one's own;
        ``forming``: there is no layout yet, whose nodes would find each other."""
        chosen: list[Address] = []
        for address, seed in self._seeds.items():
            met = seed.name is not None and seed.name in alive
            if seed.busy or (met and not forming and not alone):
                continue
            if alone:
                seed.due = min(seed.due, time + self._settings.seed_retry_alone_s)
            at_leisure = met and not seed.silent and not (forming and alone)
            if seed.due + (self._settings.seed_retry_limit_s if at_leisure else 0) <= time:
                seed.busy = True
                chosen.append(address)
                if len(chosen) == SEEDS_AT_ONCE:
                    break
        return chosen

    def answered(self, address: Address, name: str, time: float, silent: Iterable[str] = ()) -> None:
        """``name`` answered at ``address``, and nobody at ``silent``, which it stands for as well."""
        seed = self._seeds.get(address)
        if seed is not None:
            seed.name, seed.silent = name, tuple(silent)
            self._again(seed, time, in_vain=bool(seed.silent))

    def failed(self, address: Address, time: float) -> None:
        """Nobody answered at ``address``."""
        seed = self._seeds.get(address)
        if seed is not None:
            self._again(seed, time, in_vain=True)

    def _again(self, seed: _Seed, time: float, *, in_vain: bool) -> None:
        settings = self._settings
        seed.busy = False
        seed.wait_s = min(max(settings.seed_retry_s, 2 * seed.wait_s), settings.seed_retry_limit_s) if in_vain else 0.0
        seed.due = time + (seed.wait_s or settings.seed_retry_s)


def who_answered(me: str, met: Mapping[str, str | None]) -> tuple[str | None, tuple[str, ...]]:
    """To whom a seed has led: one of the others if there are any, oneself, or nobody; and at which of its addresses somebody may be who
    has not answered. ``met``: for each of them the name that did, None for silence."""
    names = [name for name in met.values() if name is not None]
    answered = [(address, name) for address, name in met.items() if name is not None]
    # One reaches oneself by ways that lead to nobody else.
    by_others = [address for address, name in answered if name != me] or [address for address, _ in answered]
    families = {":" in address for address in by_others}
    silent = tuple(address for address, name in met.items() if name is None and (":" in address) in families)
    return next((name for name in names if name != me), names[0] if names else None), silent
