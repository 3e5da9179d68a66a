"""The planner's promises once more, slow and simple: what `test_layout_planner` and `test_layout_quota` compare with."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from itertools import combinations

from cluster.layout.layout import Layout, LayoutNode

TOLERANCE = 1e-6


def zone_sizes(nodes: Sequence[LayoutNode]) -> dict[str, int]:
    return dict(Counter(node.zone for node in nodes))


def zone_levels(nodes: Sequence[LayoutNode], width: int) -> list[dict[str, int]]:
    """Replicas per zone after each of ``width`` rounds that give one to a zone with the fewest so far, as its nodes allow; the
    last two of them bound what an even spread may look like in one zone."""
    counts = dict.fromkeys(zone_sizes(nodes), 0)
    rounds = [dict(counts)]
    for _ in range(width):
        open_zones = [zone for zone, size in zone_sizes(nodes).items() if counts[zone] < size]
        zone = min(open_zones, key=lambda name: (counts[name], name))
        counts[zone] += 1
        rounds.append(dict(counts))
    return rounds


def spread_of(nodes: Sequence[LayoutNode], width: int) -> list[int]:
    """The sorted numbers of replicas per zone of the most even spread: the fullest zone as low as can be, then the next."""
    return sorted(zone_levels(nodes, width)[-1].values())


def is_even(nodes: Sequence[LayoutNode], members: Sequence[LayoutNode]) -> bool:
    counts = dict.fromkeys(zone_sizes(nodes), 0)
    for member in members:
        counts[member.zone] += 1
    return sorted(counts.values()) == spread_of(nodes, len(members))


def zone_bounds(nodes: Sequence[LayoutNode], width: int) -> dict[str, tuple[int, int]]:
    """Least and most replicas of one partition in each zone, over all even spreads."""
    sizes = zone_sizes(nodes)
    top = max(zone_levels(nodes, width)[-1].values())
    return {zone: (min(top - 1, size), min(top, size)) for zone, size in sizes.items()}


def naive_quotas(nodes: Sequence[LayoutNode], width: int, partitions: int) -> dict[str, float]:
    """Water-filling by bisection: load per capacity as equal as the bounds of nodes and zones allow."""
    bounds = {zone: (low * partitions, high * partitions) for zone, (low, high) in zone_bounds(nodes, width).items()}

    def filled(zone: str, factor: float) -> float:
        return sum(min(float(partitions), factor * node.capacity) for node in nodes if node.zone == zone)

    def bounded(zone: str, factor: float) -> float:
        return min(max(filled(zone, factor), bounds[zone][0]), bounds[zone][1])

    def bisect(load: list[str], wanted: float, clamp: bool) -> float:
        low, high = 0.0, float(partitions)
        for _ in range(200):
            middle = (low + high) / 2
            total = sum(bounded(zone, middle) if clamp else filled(zone, middle) for zone in load)
            low, high = (middle, high) if total < wanted else (low, middle)
        return high

    common = bisect(list(bounds), width * partitions, clamp=True)
    quotas: dict[str, float] = {}
    for zone in bounds:
        factor = bisect([zone], bounded(zone, common), clamp=False)
        for node in nodes:
            if node.zone == zone:
                quotas[node.name] = min(float(partitions), factor * node.capacity)
    return quotas


def rounds_to(count: int, quota: float) -> bool:
    return math.floor(quota + TOLERANCE) <= count <= math.ceil(quota - TOLERANCE)


def meets_quotas(nodes: Sequence[LayoutNode], counts: Sequence[int], quotas: dict[str, float]) -> bool:
    """Whether every node's and every zone's load is its quota rounded down or up."""
    zones: dict[str, tuple[int, float]] = {}
    for node, count in zip(nodes, counts, strict=True):
        if not rounds_to(count, quotas[node.name]):
            return False
        have, want = zones.get(node.zone, (0, 0.0))
        zones[node.zone] = (have + count, want + quotas[node.name])
    return all(rounds_to(have, want) for have, want in zones.values())


def moves_between(previous: Layout, following: Layout) -> int:
    return sum(
        len(set(following.replicas(partition)) - set(previous.replicas(partition)))
        for partition in range(following.partitions)
    )


def least_moves(previous: Layout, nodes: Sequence[LayoutNode], width: int) -> int:
    """The fewest moves to any layout that is evenly spread and meets the quotas: all of them are looked at."""
    quotas = naive_quotas(nodes, width, previous.partitions)
    even = [
        group for group in combinations(range(len(nodes)), width) if is_even(nodes, [nodes[index] for index in group])
    ]
    best: dict[tuple[int, ...], int] = {(0,) * len(nodes): 0}
    for partition in range(previous.partitions):
        before = set(previous.replicas(partition))
        following: dict[tuple[int, ...], int] = {}
        for counts, moves in best.items():
            for group in even:
                after = list(counts)
                for index in group:
                    after[index] += 1
                if any(after[index] > quotas[nodes[index].name] + 1 for index in group):
                    continue
                total = moves + sum(nodes[index].name not in before for index in group)
                key = tuple(after)
                following[key] = min(total, following.get(key, total))
        best = following
    return min(moves for counts, moves in best.items() if meets_quotas(nodes, counts, quotas))
