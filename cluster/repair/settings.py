"""What repair may be told: cadence, bandwidth, back-off. `node.config` fills it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RepairSettings:
    """Seconds and bytes per second.

    ``interval_s``: between two comparisons with the same peer that found nothing. ``persist_s``: a difference is acted on when a second
    comparison, at least so much later, finds it too. ``retry_s``: after a peer could not be compared with, doubled up to ``interval_s``.
    ``rate_bytes``: the most that this node fetches to mend its copies, 0 for no limit. ``down_out_s``: a node dead for so long is
    moved out of the layout, 0 for never.
    """

    interval_s: float = 30.0
    persist_s: float = 2.0
    retry_s: float = 2.0
    rate_bytes: int = 0
    down_out_s: float = 600.0
