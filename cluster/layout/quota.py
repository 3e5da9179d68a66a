"""How many replicas each node ought to hold, given the zones and the weights.

Spread comes first, then weights. With ``w`` replicas a partition, the *level* is the least number L for which
``sum(min(L, nodes of the zone)) >= w``: every partition has ``min(L - 1, nodes)`` replicas in each zone (its *base*) and one more in
some of the zones that have L nodes or more (its *extra*). With at least ``w`` zones L is 1: no two replicas share a zone.

Within those bounds load is water-filled (max-min fair, Bertsekas & Gallager, Data Networks, 6.5): one factor ``f`` for which every
node holds ``min(partitions, f * capacity)``; a zone that would leave its bounds is held at the bound and has a factor of its own. All in
exact fractions: a quota that is whole stays whole.

Whole numbers follow by rounding each zone's quota, and within the zone each node's, down or up. Which ones go up is left open
(`Quotas.rounded` and `cluster.layout.assignment` choose so that little moves), how many is not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

from cluster.layout.layout import LayoutNode


class _Bounds(NamedTuple):
    """Bounds on a zone's load, and the factors at which water-filling reaches them."""

    low: int
    high: int
    low_factor: Fraction
    high_factor: Fraction


@dataclass(frozen=True, slots=True)
class Quotas:
    """Wanted loads in replicas; lists by node are in the order of the nodes given, lists by zone in the order of ``zones``.

    A node gets ``node_floor`` replicas, plus one if it is one of the ``zone_ups`` nodes of its zone that are rounded up, which only nodes
    with ``node_splits`` (a quota that is not whole) can be. Of the zones with ``zone_splits``, ``total_ups`` have one such node more.
    """

    partitions: int
    width: int
    zones: tuple[str, ...]
    zone_of: tuple[int, ...]
    zone_base: tuple[int, ...]
    zone_extra: tuple[bool, ...]
    quota: tuple[Fraction, ...]
    node_floor: tuple[int, ...]
    node_splits: tuple[bool, ...]
    zone_ups: tuple[int, ...]
    zone_splits: tuple[bool, ...]
    total_ups: int

    def rounded(self, held: Sequence[int]) -> list[int]:
        """Whole quotas that ask for the least growth over ``held`` (replicas each node has now); ties go to the largest remainder."""
        by_zone: list[list[int]] = [[] for _ in self.zones]
        remainder = [quota - floor for quota, floor in zip(self.quota, self.node_floor, strict=True)]
        for node, zone in enumerate(self.zone_of):
            if self.node_splits[node]:
                by_zone[zone].append(node)
        for candidates in by_zone:
            candidates.sort(key=lambda node: (held[node] <= self.node_floor[node], -remainder[node], node))
        ups = list(self.zone_ups)
        rises: list[tuple[bool, Fraction, int]] = []
        for zone, candidates in enumerate(by_zone):
            if self.zone_splits[zone]:
                marginal = candidates[ups[zone]]
                rest = sum((remainder[node] for node in candidates), Fraction(0)) - ups[zone]
                rises.append((held[marginal] <= self.node_floor[marginal], -rest, zone))
        for _, _, zone in sorted(rises)[: self.total_ups]:
            ups[zone] += 1
        result = list(self.node_floor)
        for zone, candidates in enumerate(by_zone):
            for node in candidates[: ups[zone]]:
                result[node] += 1
        return result


def compute_quotas(nodes: Sequence[LayoutNode], width: int, partitions: int) -> Quotas:
    """Quotas for ``partitions`` partitions of ``width`` replicas each, 1 <= ``width`` <= number of nodes."""
    zones = tuple(sorted({node.zone for node in nodes}))
    zone_index = {zone: index for index, zone in enumerate(zones)}
    zone_of = tuple([zone_index[node.zone] for node in nodes])
    members: list[list[int]] = [[] for _ in zones]
    for node, zone in enumerate(zone_of):
        members[zone].append(node)
    level = next(level for level in range(1, width + 1) if sum(min(level, len(group)) for group in members) >= width)
    base = tuple([min(level - 1, len(group)) for group in members])
    extra = tuple([len(group) >= level for group in members])

    weights = [[nodes[node].capacity for node in group] for group in members]
    factors = _zone_factors(weights, base, extra, partitions, width * partitions)
    quota = [Fraction(0)] * len(nodes)
    for group, factor in zip(members, factors, strict=True):
        for node in group:
            quota[node] = min(Fraction(partitions), factor * nodes[node].capacity)
    floor = [int(value) for value in quota]
    zone_quota = [sum((quota[node] for node in group), Fraction(0)) for group in members]
    return Quotas(
        partitions=partitions,
        width=width,
        zones=zones,
        zone_of=zone_of,
        zone_base=base,
        zone_extra=extra,
        quota=tuple(quota),
        node_floor=tuple(floor),
        node_splits=tuple([value.denominator != 1 for value in quota]),
        zone_ups=tuple(
            [int(value) - sum(floor[node] for node in group) for value, group in zip(zone_quota, members, strict=True)]
        ),
        zone_splits=tuple([value.denominator != 1 for value in zone_quota]),
        total_ups=width * partitions - sum(int(value) for value in zone_quota),
    )


def _zone_factors(
    weights: Sequence[Sequence[int]], base: Sequence[int], extra: Sequence[bool], partitions: int, total: int
) -> list[Fraction]:
    """Load per unit of capacity in each zone: one factor for all, save for zones held at a bound."""
    bounds = []
    for group, least, more in zip(weights, base, extra, strict=True):
        low, high = partitions * least, partitions * (least + more)
        bounds.append(_Bounds(low, high, _fill(group, partitions, low), _fill(group, partitions, high)))
    steps = sorted({bound.low_factor for bound in bounds} | {bound.high_factor for bound in bounds})
    below, above = 0, len(steps)  # load(steps[below]) <= total < load(steps[above]), the load growing with the factor
    while above - below > 1:
        middle = (below + above) // 2
        if _load(weights, bounds, partitions, steps[middle]) <= total:
            below = middle
        else:
            above = middle
    step = steps[below]
    result = [bound.high_factor if bound.high_factor <= step else bound.low_factor for bound in bounds]
    free = [zone for zone, bound in enumerate(bounds) if bound.low_factor <= step < bound.high_factor]
    if free:
        rest = total
        for bound in bounds:
            if bound.high_factor <= step:
                rest -= bound.high
            elif bound.low_factor > step:
                rest -= bound.low
        factor = _fill([weight for zone in free for weight in weights[zone]], partitions, rest)
        for zone in free:
            result[zone] = factor
    return result


def _load(weights: Sequence[Sequence[int]], bounds: Sequence[_Bounds], partitions: int, factor: Fraction) -> Fraction:
    """Replicas held by all zones at ``factor``, each within its bounds."""
    over, under = factor.as_integer_ratio()
    load = 0
    for group, bound in zip(weights, bounds, strict=True):
        filled = sum([min(partitions * under, over * weight) for weight in group])
        load += min(max(filled, bound.low * under), bound.high * under)
    return Fraction(load, under)


def _fill(weights: Sequence[int], limit: int, total: int) -> Fraction:
    """The least f with ``sum(min(limit, f * weight)) == total``; needs ``total <= limit * len(weights)``."""
    rest, weight_left = total, sum(weights)
    for weight in sorted(weights, reverse=True):
        if rest * weight <= limit * weight_left:
            return Fraction(rest, weight_left)
        rest -= limit
        weight_left -= weight
    raise AssertionError("more load than the nodes can hold")
