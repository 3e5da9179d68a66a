"""Which nodes hold each partition: quotas and spread met exactly, with the fewest moves from what was held before.

The problem is a minimum-cost flow: units go from the nodes (as many as each node's quota) through (partition, zone) to the partitions
(as many as there are replicas), and a unit costs 1 where the node did not hold the partition before. `Assignment` solves it by successive
shortest paths (Ahuja, Magnanti, Orlin, Network Flows, 9.7), on a graph that is never built but read off the current holdings:

1. *keep* what was held, as far as spread and quotas allow;
2. *recover*: zero-cost paths that let more be kept, until there are none (now as much is kept as can be);
3. *fill* each missing replica along a cheapest path. After step 2 none is cheaper than 1, so the first path of cost 1 will do, and
   nearly always a node with room fits at once.

A path alternates: partition p lacks a replica, node x takes it; x now has one too many and gives up partition q; q lacks a replica ...
until a node with room takes one. What step 1 keeps is a flow without cost, so no residual cycle is negative, and shortest paths keep
it that way: the result is optimal over all holdings that meet `Quotas`, whichever way those are rounded.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Collection, Iterator, Sequence
from typing import Final

from cluster.layout.quota import Quotas

SEARCH_BUDGET: Final = 1_000_000
"""Steps that all searches of one plan may spend on the cheapest path; past it the first path found is taken, so that a plan stays a
matter of seconds even for changes nobody makes. Changes of a 1000-node layout that were tried spend a small part of it."""

SHUFFLE_ROUNDS: Final = 4
"""Tried exchanges per replica that mix a first layout, so that the partitions of one node share their other replicas with many."""

UNREACHED: Final = 1 << 30


def first_holdings(quotas: Quotas) -> list[list[int]]:
    """Nodes of each partition when nothing was held before.

    McNaughton's wrap-around rule (1959): nodes laid end to end, zone by zone, each as long as its quota, on a line that winds round the
    partitions ``width`` times. A node never meets itself since no quota exceeds the number of partitions, and a zone covers every
    partition equally often, give or take one, which is just what base and extra ask for.
    """
    counts = quotas.rounded([0] * len(quotas.quota))
    line = [
        node
        for node in sorted(range(len(counts)), key=lambda node: (quotas.zone_of[node], node))
        for _ in range(counts[node])
    ]
    holdings: list[list[int]] = [[] for _ in range(quotas.partitions)]
    for place, node in enumerate(line):
        holdings[place % quotas.partitions].append(node)
    _shuffle(holdings, quotas)
    return holdings


class Assignment:
    """Holdings on their way from the ``previous`` ones to ones that meet ``quotas``.

    ``previous[p]``: nodes (indexes as in ``quotas``) that held partition p, most preferred first. `solve` does it all.
    """

    def __init__(self, quotas: Quotas, previous: Sequence[Sequence[int]]) -> None:
        self.quotas = quotas
        self.previous = previous
        self.extras = quotas.width - sum(quotas.zone_base)
        self.members: list[list[int]] = [[] for _ in range(quotas.partitions)]
        self.held: list[dict[int, None]] = [{} for _ in quotas.quota]
        self.zone_nodes: list[list[int]] = [[] for _ in quotas.zones]
        for node, zone in enumerate(quotas.zone_of):
            self.zone_nodes[zone].append(node)
        self.zone_ups = [0] * len(quotas.zones)
        """Of each zone, the nodes that hold one more than their floor."""
        self.total_ups = 0
        """Zones that round up one node more than `Quotas.zone_ups`."""
        self.height: dict[int, int] = {}
        """For each state of `_Search` a cost (0 when missing) below which no path leads on to a node with room: the potentials of the
        shortest paths, which stay valid from one search to the next."""
        self.budget = SEARCH_BUDGET

    def solve(self) -> list[list[int]]:
        """The nodes of each partition: first those that held it already, in their order, then the new ones."""
        if not any(self.previous):
            return first_holdings(self.quotas)
        targets = self._keep()
        self._recover()
        self._fill(targets)
        result: list[list[int]] = []
        for members, before in zip(self.members, self.previous, strict=True):
            kept = [node for node in before if node in members]
            result.append(kept + [node for node in members if node not in before])
        return result

    # -- what the current holdings allow -----------------------------------------------------------------------------------------

    def add(self, node: int, partition: int) -> None:
        self.members[partition].append(node)
        self.held[node][partition] = None
        if len(self.held[node]) == self.quotas.node_floor[node] + 1:
            zone = self.quotas.zone_of[node]
            self.zone_ups[zone] += 1
            self.total_ups += self.zone_ups[zone] == self.quotas.zone_ups[zone] + 1

    def remove(self, node: int, partition: int) -> None:
        if len(self.held[node]) == self.quotas.node_floor[node] + 1:
            zone = self.quotas.zone_of[node]
            self.total_ups -= self.zone_ups[zone] == self.quotas.zone_ups[zone] + 1
            self.zone_ups[zone] -= 1
        self.members[partition].remove(node)
        del self.held[node][partition]

    def zone_counts(self, partition: int) -> dict[int, int]:
        """Replicas of the partition in each zone that has some."""
        counts: dict[int, int] = {}
        for node in self.members[partition]:
            zone = self.quotas.zone_of[node]
            counts[zone] = counts.get(zone, 0) + 1
        return counts

    def lacks(self, partition: int) -> list[int | None]:
        """What the partition lacks now: zones short of their base, and None when an extra replica is missing."""
        counts = self.zone_counts(partition)
        base = self.quotas.zone_base
        short: list[int | None] = [zone for zone, least in enumerate(base) if least and counts.get(zone, 0) < least]
        if sum([count > base[zone] for zone, count in counts.items()]) < self.extras:
            short.append(None)
        return short

    def fits(self, node: int, partition: int, lack: int | None) -> bool:
        """Whether the node may take what the partition lacks."""
        if node in self.members[partition]:
            return False
        zone = self.quotas.zone_of[node]
        if lack is not None:
            return zone == lack
        return self.quotas.zone_extra[zone] and self.zone_counts(partition).get(zone, 0) <= self.quotas.zone_base[zone]

    def has_room(self, node: int) -> bool:
        """Whether the node may hold one more, all others staying as they are."""
        over = len(self.held[node]) - self.quotas.node_floor[node]
        return over < 0 or (
            over == 0 and self.quotas.node_splits[node] and self.may_round_up(self.quotas.zone_of[node])
        )

    def may_round_up(self, zone: int) -> bool:
        """Whether one more node of the zone may be rounded up."""
        over = self.zone_ups[zone] - self.quotas.zone_ups[zone]
        return over < 0 or (over == 0 and self.quotas.zone_splits[zone] and self.total_room())

    def total_room(self) -> bool:
        """Whether one more zone may be rounded up."""
        return self.total_ups < self.quotas.total_ups

    # -- the three steps ---------------------------------------------------------------------------------------------------------

    def _keep(self) -> list[int]:
        """Keep what spread and quotas allow, one partition and one node at a time; the whole quotas it was cut to."""
        quotas = self.quotas
        kept: list[list[int]] = [[] for _ in quotas.quota]
        for partition, before in enumerate(self.previous):
            counts: dict[int, int] = {}
            extras = self.extras
            for node in before:
                zone = quotas.zone_of[node]
                over = counts.get(zone, 0) - quotas.zone_base[zone]
                if over < 0 or (over == 0 and quotas.zone_extra[zone] and extras > 0):
                    extras -= over == 0
                    counts[zone] = counts.get(zone, 0) + 1
                    kept[node].append(partition)
        targets = quotas.rounded([len(partitions) for partitions in kept])
        blocked = self._blocked(kept, targets)
        lost = [quotas.width] * quotas.partitions
        for partitions in kept:
            for partition in partitions:
                lost[partition] -= 1
        for node, partitions in enumerate(kept):
            if len(partitions) > targets[node]:
                # Give up first what the nodes that grow can take without a detour, no two replicas of a partition if that can be
                # helped, and all over the ring, so that many nodes share in what follows. The searches would get there from any
                # choice, only later.
                ranked: list[tuple[int, int, int, int]] = []
                for partition in partitions:
                    waiting = sum([blocked[other] for other in self.previous[partition] if other != node])
                    ranked.append((lost[partition], waiting, _mixed(partition, node), partition))
                ranked.sort(reverse=True)
                for given_up in ranked[targets[node] :]:
                    lost[given_up[-1]] += 1
                partitions[:] = [kept_on[-1] for kept_on in ranked[: targets[node]]]
            for partition in partitions:
                self.add(node, partition)
        return targets

    def _blocked(self, kept: Sequence[Sequence[int]], targets: Sequence[int]) -> list[int]:
        """For each node, how much growth cannot go to a partition because that node is there: that of its zone where a zone holds one
        replica, its own otherwise."""
        growth = [max(0, target - len(partitions)) for partitions, target in zip(kept, targets, strict=True)]
        if any(self.quotas.zone_base):
            return growth
        by_zone = [sum([growth[node] for node in nodes]) for nodes in self.zone_nodes]
        return [by_zone[zone] for zone in self.quotas.zone_of]

    def _recover(self) -> None:
        dead: set[int] = set()
        for partition in range(self.quotas.partitions):
            hopeless: set[int | None] = set()
            while waiting := [lack for lack in self.lacks(partition) if lack not in hopeless]:
                if not _Search(self, partition, waiting[0]).keep_more(dead):
                    hopeless.add(waiting[0])
        self.height = dict.fromkeys(dead, 1)

    def _fill(self, targets: Sequence[int]) -> None:
        room = [node for node, target in enumerate(targets) if len(self.held[node]) < target]
        rest: list[int] = []
        for partition in range(self.quotas.partitions):
            while len(self.members[partition]) < self.quotas.width:
                node = self._direct(partition, room)
                if node is None:
                    rest.append(partition)
                    break
                if len(self.held[node]) >= targets[node]:
                    room.remove(node)
        # searches come last: an earlier one might use up the only node that fits a partition which it merely passes through
        for partition in rest:
            while len(self.members[partition]) < self.quotas.width:
                _Search(self, partition, self.lacks(partition)[0]).fill()

    def _direct(self, partition: int, room: Sequence[int]) -> int | None:
        """Give the partition a node out of ``room``; None when none fits."""
        lack = self.lacks(partition)[0]
        start = _mixed(partition, len(self.members[partition])) % len(room) if room else 0
        for place in range(start, start + len(room)):
            node = room[place % len(room)]
            if self.fits(node, partition, lack) and self.has_room(node):
                self.add(node, partition)
                return node
        return None


class _Search:
    """One search for a cheapest path from what a partition lacks to a node with room; a path that is found is applied.

    Path states are integers: node x is x; partition p lacking a replica in zone z, or (z = number of zones) lacking an extra one, is
    ``nodes + p * (zones + 1) + z``; zone z that has rounded up one node too many is -1 - z, all zones together that is -1 - zones.
    """

    def __init__(self, assignment: Assignment, partition: int, lack: int | None) -> None:
        self.assignment = assignment
        self.nodes = len(assignment.held)
        self.zones = len(assignment.zone_nodes)
        self.start = self._lack(partition, self.zones if lack is None else lack)
        self.cost: dict[int, int] = {self.start: 0}
        self.parent: dict[int, int] = {}

    def keep_more(self, dead: set[int]) -> bool:
        """Apply a path on which every node takes back what it held before. False, and its states added to ``dead``, if there is none.

        From a state that once could not reach a node with room it never can again, so ``dead`` serves all searches of the step.
        """
        assignment = self.assignment
        queue = [self.start]
        if self.start in dead:
            return False
        for state in queue:
            if state >= self.nodes:
                partition, zone = divmod(state - self.nodes, self.zones + 1)
                lack = None if zone == self.zones else zone
                following = [node for node in assignment.previous[partition] if assignment.fits(node, partition, lack)]
                if lack is not None and self._frees_extra(partition, zone):
                    following.append(self._lack(partition, self.zones))
            elif state >= 0:
                zone = assignment.quotas.zone_of[state]
                following = [self._lack(partition, zone) for partition in assignment.held[state]]
                if self._may_round(state):
                    following.append(-1 - zone)
            else:
                following = list(self._after_rounding(-1 - state))
            for after in following:
                if after in self.cost or after in dead:
                    continue
                self.cost[after] = 0
                self.parent[after] = state
                if self._is_end(after):
                    self._apply(after)
                    return True
                queue.append(after)
        dead.update(queue)
        return False

    def fill(self) -> None:
        """Apply a cheapest path, which there always is (A*, with the heights as estimates, which it raises)."""
        self.heap: list[tuple[int, int, int]] = [(self.assignment.height.get(self.start, 0), 0, self.start)]
        self.best = UNREACHED
        self.end = self.start
        self.spread_cost = UNREACHED
        self.spread_left: list[int] = []
        self.zone_cost = [UNREACHED] * self.zones
        self.zone_left: list[list[int]] = [[] for _ in range(self.zones)]
        height = self.assignment.height
        target = height.get(self.start, 0)
        while self.heap and self.heap[0][0] < self.best and self.best > target:
            estimate, _, state = heapq.heappop(self.heap)
            cost = self.cost[state]
            if estimate > cost + height.get(state, 0):
                continue
            self.assignment.budget -= 1
            if self.assignment.budget < 0 and self.best < UNREACHED:
                break
            if state >= self.nodes:
                self._expand_lack(state, cost)
            elif state >= 0:
                self._expand_node(state, cost)
            else:
                for after in self._after_rounding(-1 - state):
                    self._reach(after, cost, state)
        assert self.best < UNREACHED, "quotas and spread always leave a way to place every replica"
        if self.best > target:
            for state, cost in self.cost.items():
                if cost + height.get(state, 0) < self.best:
                    height[state] = self.best - cost
        self._apply(self.end)

    def _expand_lack(self, state: int, cost: int) -> None:
        assignment = self.assignment
        partition, zone = divmod(state - self.nodes, self.zones + 1)
        lack = None if zone == self.zones else zone
        for node in assignment.previous[partition]:
            if assignment.fits(node, partition, lack):
                self._reach(node, cost, state)
        if lack is None:
            self._spread(partition, cost, state)
        else:
            self._spread_zone(zone, partition, cost, state)
            if self._frees_extra(partition, zone):
                self._reach(self._lack(partition, self.zones), cost, state)

    def _expand_node(self, node: int, cost: int) -> None:
        assignment = self.assignment
        zone = assignment.quotas.zone_of[node]
        if self._may_round(node):
            self._reach(-1 - zone, cost, node)
        for partition in assignment.held[node]:
            refund = node not in assignment.previous[partition]
            self._reach(self._lack(partition, zone), cost - refund, node)

    def _spread(self, partition: int, cost: int, state: int) -> None:
        """Reach every node of every zone that may take an extra replica. What one partition reached, the next need not touch again:
        only zones and nodes that were no candidates for the earlier ones are left to look at."""
        quotas = self.assignment.quotas
        if cost < self.spread_cost:
            self.spread_cost = cost
            self.spread_left = [zone for zone, extra in enumerate(quotas.zone_extra) if extra]
        counts = self.assignment.zone_counts(partition)
        left: list[int] = []
        for zone in self.spread_left:
            if counts.get(zone, 0) > quotas.zone_base[zone]:
                left.append(zone)
            else:
                self._spread_zone(zone, partition, cost, state)
                if self.zone_left[zone]:
                    left.append(zone)
        if cost == self.spread_cost:
            self.spread_left = left

    def _spread_zone(self, zone: int, partition: int, cost: int, state: int) -> None:
        if cost < self.zone_cost[zone]:
            self.zone_cost[zone] = cost
            self.zone_left[zone] = self.assignment.zone_nodes[zone]
        members: Collection[int] = self.assignment.members[partition]
        left: list[int] = []
        for node in self.zone_left[zone]:
            if node in members:
                left.append(node)
            else:
                self._reach(node, cost + 1, state)
        if cost == self.zone_cost[zone]:
            self.zone_left[zone] = left

    def _reach(self, state: int, cost: int, before: int) -> None:
        estimate = cost + self.assignment.height.get(state, 0)
        if estimate >= self.best or cost >= self.cost.get(state, UNREACHED):
            return
        self.cost[state] = cost
        self.parent[state] = before
        if self._is_end(state):
            self.best, self.end = cost, state
            return
        heapq.heappush(self.heap, (estimate, -len(self.cost), state))

    # -- the graph ---------------------------------------------------------------------------------------------------------------

    def _lack(self, partition: int, zone: int) -> int:
        return self.nodes + partition * (self.zones + 1) + zone

    def _frees_extra(self, partition: int, zone: int) -> bool:
        """Whether a replica that leaves the zone was above its base, so that a node of any other zone may follow it."""
        counts = self.assignment.zone_counts(partition)
        return counts.get(zone, 0) > self.assignment.quotas.zone_base[zone]

    def _may_round(self, node: int) -> bool:
        quotas = self.assignment.quotas
        return quotas.node_splits[node] and len(self.assignment.held[node]) == quotas.node_floor[node]

    def _after_rounding(self, zone: int) -> Iterator[int]:
        """A zone that rounded up one node too many takes that back from another node, or has its own total rounded up instead of
        another zone's."""
        assignment, quotas = self.assignment, self.assignment.quotas
        if zone == self.zones:
            for other in range(self.zones):
                if assignment.zone_ups[other] > quotas.zone_ups[other]:
                    yield -1 - other
            return
        for node in assignment.zone_nodes[zone]:
            if len(assignment.held[node]) > quotas.node_floor[node]:
                yield node
        if quotas.zone_splits[zone] and assignment.zone_ups[zone] == quotas.zone_ups[zone]:
            yield -1 - self.zones

    def _is_end(self, state: int) -> bool:
        assignment = self.assignment
        if state >= self.nodes:
            return False
        if state >= 0:
            return len(assignment.held[state]) < assignment.quotas.node_floor[state]
        zone = -1 - state
        if zone == self.zones:
            return assignment.total_room()
        return assignment.zone_ups[zone] < assignment.quotas.zone_ups[zone]

    def _apply(self, end: int) -> None:
        """Carry out the path, from its end to its start."""
        path = [end]
        while path[-1] != self.start:
            path.append(self.parent[path[-1]])
        for after, before in itertools.pairwise(path):
            if 0 <= after < self.nodes <= before:
                self.assignment.add(after, (before - self.nodes) // (self.zones + 1))
            elif 0 <= before < self.nodes <= after:
                self.assignment.remove(before, (after - self.nodes) // (self.zones + 1))


def _shuffle(holdings: list[list[int]], quotas: Quotas) -> None:
    """Exchange replicas between partitions wherever spread allows it, in an order fixed once and for all."""
    slots = quotas.partitions * quotas.width
    for step in range(SHUFFLE_ROUNDS * slots):
        first, second = step % slots, _mixed(step, slots) % slots
        one, other = holdings[first // quotas.width], holdings[second // quotas.width]
        place, other_place = first % quotas.width, second % quotas.width
        leaving, coming = one[place], other[other_place]
        if one is other or coming in one or leaving in other:
            continue
        from_zone, to_zone = quotas.zone_of[leaving], quotas.zone_of[coming]
        if from_zone != to_zone and not (
            _may_exchange(one, from_zone, to_zone, quotas) and _may_exchange(other, to_zone, from_zone, quotas)
        ):
            continue
        one[place], other[other_place] = coming, leaving


def _may_exchange(members: Sequence[int], leaving: int, coming: int, quotas: Quotas) -> bool:
    """Whether a partition may have one replica less in zone ``leaving`` and one more in zone ``coming``."""
    zones = [quotas.zone_of[node] for node in members]
    return zones.count(leaving) > quotas.zone_base[leaving] and (
        zones.count(coming) < quotas.zone_base[coming] + quotas.zone_extra[coming]
    )


def _mixed(number: int, salt: int) -> int:
    """A well-mixed 64-bit number (the finalizer of SplitMix64, Steele et al. 2014): spreads choices, protects nothing."""
    value = (number * 0x9E3779B97F4A7C15 + salt * 0xD1B54A32D192ED03 + 0x2545F4914F6CDD1D) & 0xFFFFFFFFFFFFFFFF
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
    return value ^ (value >> 31)
