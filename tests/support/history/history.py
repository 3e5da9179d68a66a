"""What clients saw of a set of registers: operations by name, and listings of many names. `problems` judges all of it.

The public thing of this folder. Read next: `operation`, `scans`, then `linearizability` with `obligations`, `explanation`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tests.support.history.explanation import explain
from tests.support.history.linearizability import UndecidedError, is_linearizable
from tests.support.history.operation import Operation
from tests.support.history.scans import Page, faults_of, reads_of


class History:
    """``names``: all that anybody may write; a listing that names another is wrong."""

    def __init__(self, names: Iterable[bytes]) -> None:
        self._operations: dict[bytes, list[Operation]] = {name: [] for name in names}
        self._listings: list[Sequence[Page]] = []

    def add(self, name: bytes, operation: Operation) -> None:
        self._operations[name].append(operation)

    def add_listing(self, pages: Sequence[Page]) -> None:
        """The pages of one listing, in order; it need not have got to the end."""
        self._listings.append(pages)

    @property
    def names(self) -> list[bytes]:
        return list(self._operations)

    @property
    def listings(self) -> int:
        return len(self._listings)

    def of(self, name: bytes) -> list[Operation]:
        """All that is known of one name, listings included, in order of call."""
        found = list(self._operations[name])
        for pages in self._listings:
            for page in pages:
                found += reads_of(page, [name]).values()
        return sorted(found, key=lambda operation: operation.call)

    def problems(self) -> list[str]:
        """What can't be explained, an account each; empty when all is well. What could not be decided is a problem too."""
        found: list[str] = []
        for pages in self._listings:
            found += faults_of(pages)
            for page in pages:
                found += [
                    f"{page.who} lists {n!r}, which nobody wrote" for n, _ in page.entries if n not in self._operations
                ]
        for name in self._operations:
            operations = self.of(name)
            try:
                if not is_linearizable(operations):
                    found.append(f"{name.decode(errors='backslashreplace')}: {explain(operations)}")
            except UndecidedError as error:
                found.append(f"{name.decode(errors='backslashreplace')}: could not be judged: {error}")
        return found
