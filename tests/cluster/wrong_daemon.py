"""`holdfastd` with one thing wrong: its leaders answer without asking whether they still lead. `test_linearizable.py` must notice it."""

from __future__ import annotations

from cluster.register.key import RegisterKey
from cluster.register.leader import Leader
from node.main import main


async def _trusts_itself(self: Leader, term: object, key: RegisterKey, deadline: float) -> None:
    """It may have been deposed while it was stopped or cut off."""


if __name__ == "__main__":
    Leader._confirm = _trusts_itself  # type: ignore[method-assign] # wrong on purpose
    main()
