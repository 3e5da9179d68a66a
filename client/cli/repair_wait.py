"""When `holdfast repair run --wait` is over: a decision about two documents of `/v1/repair`. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

AGE_SLACK_S = 1.0
"""An age is rounded, and clocks are slewed; a pass that has ended makes it fall by far more."""

QUIET_LOOKS = 2
"""A cluster is taken for whole when it looks so this many times running: what a comparison has found shows a moment later."""


class RepairWait:
    """``before``: the document from before the order was given. Feed every later one to `is_over`."""

    def __init__(self, before: Mapping[str, Any], *, scrub: bool) -> None:
        self._passes = {node["name"]: node.get("passes") for node in before["nodes"]}
        self._ages = {node["name"]: node.get("oldest_verification_s") for node in before["nodes"]}
        self._scrub = scrub
        self._looks = 0

    def is_over(self, document: Mapping[str, Any], elapsed_s: float) -> bool:
        """Whether everything is whole, every node has compared with all its peers since the order, and with a scrub has verified
        everything it holds since then (or in a pass that was under way, which ended since). ``elapsed_s``: seconds since the order."""
        nodes = document["nodes"]
        done = document["health"] == "healthy" and all(
            (len(nodes) == 1 or self._has_compared(node)) and (not self._scrub or self._has_verified(node, elapsed_s))
            for node in nodes
        )
        self._looks = self._looks + 1 if done else 0
        return self._looks >= QUIET_LOOKS

    def _has_compared(self, node: Mapping[str, Any]) -> bool:
        """One more pass than before; a node that was started anew counts from the beginning."""
        passes, before = node.get("passes"), self._passes.get(node["name"])
        return passes is not None and passes > 0 and passes != before

    def _has_verified(self, node: Mapping[str, Any], elapsed_s: float) -> bool:
        """The age of the oldest verification grows with time, and falls only when a pass ends."""
        age, before = node.get("oldest_verification_s"), self._ages.get(node["name"])
        if age is None:
            return False
        return age <= elapsed_s or before is None or age < before + elapsed_s - AGE_SLACK_S


def unfinished(document: Mapping[str, Any] | None) -> str:
    """What is still to do, for whoever can't wait longer."""
    if document is None:
        return "how repair goes is not known"
    missing, due = document["copies_missing"], document["copies_due"]
    if missing:
        return f"{missing} of {due} copies are missing"
    silent = [node["name"] for node in document["nodes"] if not node["answered"]]
    if silent:
        return f"{', '.join(silent)} does not answer"
    if document["health"] != "healthy":
        return "replicas still differ, or copies wait to be handed over"
    return "not every node has compared and verified everything"
