"""When enough replicas have answered: majorities, joint while a layout changes.

A rule is a list of groups; it is satisfied when a majority of *every* group has said yes. One group is the everyday case; two
(the old and the new replicas) while a layout change is under way, as in Raft's joint consensus (Ongaro and Ousterhout, 2014).
Pure values.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

SCANNED = 8
"""Names up to which a tuple is looked through faster than a set is made."""


def majority(count: int) -> int:
    """The least number that is more than half of ``count``."""
    return count // 2 + 1


@dataclass(frozen=True, slots=True)
class QuorumRule:
    """Groups of replica names, none empty; the first group lists its replicas in order of preference."""

    groups: tuple[tuple[str, ...], ...]

    def __post_init__(self) -> None:
        assert self.groups
        assert all(self.groups)

    @property
    def members(self) -> tuple[str, ...]:
        """Everybody in any group, once, in order of preference."""
        if len(self.groups) == 1:
            return self.groups[0]
        return tuple(dict.fromkeys(name for group in self.groups for name in group))

    def satisfied(self, names: Collection[str]) -> bool:
        """Whether ``names`` hold a majority of every group."""
        for group in self.groups:
            count = 0
            for name in group:
                if name in names:
                    count += 1
            if count * 2 <= len(group):
                return False
        return True

    def possible(self, refused: Collection[str]) -> bool:
        """Whether the rule may still be satisfied when ``refused`` never say yes."""
        return all(sum(name not in refused for name in group) >= majority(len(group)) for group in self.groups)

    def smallest(self, order: Iterable[str]) -> tuple[str, ...]:
        """The first names in ``order``, each of which is there once, that satisfy the rule, none of them needless to have been
        considered; all members' names when ``order`` does not suffice. The rule of all members of a large cluster has a thousand."""
        chosen: list[str] = []
        groups: list[Collection[str]] = [group if len(group) <= SCANNED else frozenset(group) for group in self.groups]
        missing = [majority(len(group)) for group in self.groups]
        for name in order:
            of = [at for at, group in enumerate(groups) if name in group]
            if any(missing[at] > 0 for at in of):
                chosen.append(name)
                for at in of:
                    missing[at] -= 1
                if max(missing) <= 0:
                    return tuple(chosen)
        return self.members

    def joint_with(self, other: QuorumRule) -> QuorumRule:
        """The rule that satisfies both."""
        return QuorumRule(tuple(dict.fromkeys((*self.groups, *other.groups))))
