"""The order of the replicas: the first live one leads, so every node should come first for its part of what it holds.

A node that holds h replicas of partitions with w each leads floor(h / w) or ceil(h / w) of them. That is always possible: leading a
w-th of everything it holds is a fractional flow, and a flow with whole bounds has a whole solution. Putting another replica first moves
no data, but it costs the partition a ballot, so only what is needed is changed: shortest chains of hand-overs, each node on
the way gaining one partition and passing one on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence


def balance_leaders(holdings: Sequence[Sequence[int]], nodes: int) -> list[list[int]]:
    """The same holdings (node indexes below ``nodes`` of each partition), reordered; a new leader is put before the old one."""
    order = [list(members) for members in holdings]
    led: list[dict[int, None]] = [{} for _ in range(nodes)]
    held: list[list[int]] = [[] for _ in range(nodes)]
    for partition, members in enumerate(order):
        led[members[0]][partition] = None
        for node in members:
            held[node].append(partition)
    width = len(order[0])
    least = [len(partitions) // width for partitions in held]
    most = [-(-len(partitions) // width) for partitions in held]

    def hand_over(partition: int, node: int) -> None:
        members = order[partition]
        del led[members[0]][partition]
        members.remove(node)
        members.insert(0, node)
        led[node][partition] = None

    def givers(node: int) -> list[tuple[int, int]]:
        """(who leads it now, partition) for all that the node might lead instead."""
        return [(order[partition][0], partition) for partition in held[node] if order[partition][0] != node]

    def takers(node: int) -> list[tuple[int, int]]:
        """(who might lead it instead, partition) for all that the node leads."""
        return [(other, partition) for partition in led[node] for other in order[partition][1:]]

    for node in range(nodes):
        while len(led[node]) > most[node]:
            chain = _chain(node, takers, lambda other: len(led[other]) < least[other]) or _chain(
                node, takers, lambda other: len(led[other]) < most[other]
            )
            for taker, partition in chain:
                hand_over(partition, taker)
    for node in range(nodes):
        while len(led[node]) < least[node]:
            chain = _chain(node, givers, lambda other: len(led[other]) > least[other])
            receiver = node
            for giver, partition in chain:
                hand_over(partition, receiver)
                receiver = giver
    return order


def _chain(
    start: int, following: Callable[[int], list[tuple[int, int]]], is_end: Callable[[int], bool]
) -> list[tuple[int, int]]:
    """The shortest chain of (next node, partition that changes hands) from ``start`` to an end; empty when there is none."""
    reached: dict[int, tuple[int, int]] = {start: (start, -1)}
    queue = [start]
    for node in queue:
        for after, partition in following(node):
            if after in reached:
                continue
            reached[after] = (node, partition)
            if is_end(after):
                chain: list[tuple[int, int]] = []
                link = after
                while link != start:
                    before, changing = reached[link]
                    chain.append((link, changing))
                    link = before
                return chain[::-1]
            queue.append(after)
    return []
