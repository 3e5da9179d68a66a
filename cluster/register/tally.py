"""Counts the answers to one question put to a partition's replicas. A pure machine: answers in, a verdict out.

Only answers that agree about which stores (disks) stand behind the replicas count together: an answer given before a replica's
disk was replaced, and one given after, must not add up to a majority (docs/decisions/amnesia.md).
"""

from __future__ import annotations

from cluster.register.quorum import QuorumRule


class Tally:
    def __init__(self, rule: QuorumRule) -> None:
        self._rule = rule
        self._yes: dict[bytes, set[str]] = {}
        self._answered: set[str] = set()
        self.agreed: set[str] | None = None
        """The names whose agreeing answers satisfied the rule, once they have."""
        self.stores = b""
        """What those agree about."""

    def yes(self, name: str, stores: bytes) -> None:
        """``name`` said yes, believing in ``stores``."""
        self._answered.add(name)
        names = self._yes.setdefault(stores, set())
        names.add(name)
        if self.agreed is None and self._rule.satisfied(names):
            self.agreed, self.stores = names, stores

    def no(self, name: str) -> None:
        """``name`` refused, failed or can't be reached."""
        self._answered.add(name)

    @property
    def hopeless(self) -> bool:
        """Whether no further answer can satisfy the rule any more."""
        if self.agreed is not None:
            return False
        open_names = [name for name in self._rule.members if name not in self._answered]
        return not any(self._rule.satisfied({*names, *open_names}) for names in (self._yes.values() or [set()]))

    @property
    def any_yes(self) -> bool:
        return bool(self._yes)
