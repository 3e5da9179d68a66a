"""What kind of run: how large the cluster is, what its users do, what may happen to it. Pure values, and the table of those with a name.

A scenario and a seed are a run (`tests.simulation.run`); everything that a run draws, it draws from generators made of the two.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial

from node.storage.scrub import ScrubSettings
from tests.support.simulated.production_stores import SETTINGS, ProductionStores
from tests.support.simulated.stores import MemoryStores, StoresFactory
from tests.support.simulated.weather import CALM, STORM, WINDY, Weather

CRASH, FREEZE, WIPE, OLD_COPY, CUT, SLOW, FULL = "crash", "freeze", "wipe", "old copy", "cut", "slow", "full"
LONE_COPY, LONE_LEADER = "lone copy", "lone leader"
BLACKOUT, JOIN, REMOVE, RESIZE, ABORT, AWAY = "blackout", "join", "remove", "resize", "abort", "away"
POWER, ROT, EIO, ENOSPC, UPGRADE = "power", "rot", "eio", "enospc", "upgrade"
REPLACE = "replace"

CHUNKS = replace(SETTINGS, grace_s=5.0, file_bytes=16 * 1024, flush_states=8)
"""So little that files die, and are emptied, while the users are there."""

SCRUB = ScrubSettings(period_s=30.0)
"""So soon is all that has rotted found."""

MEMORY, PRODUCTION = "memory", "production"
STORES: dict[str, StoresFactory] = {
    MEMORY: MemoryStores,
    PRODUCTION: partial(ProductionStores, settings=CHUNKS, scrub=SCRUB),
}
"""`PRODUCTION`: the daemon's own, on a simulated disk."""

PLANNED = frozenset({JOIN, REMOVE, RESIZE, ABORT})
"""Changes of the layout: what somebody wanted."""

LOSSES = frozenset({WIPE, OLD_COPY, LONE_COPY, ROT, EIO, REPLACE})
"""What takes copies on a disk for good."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """``nodes``: how many there may be at first, drawn by the seed. ``troubles``: kind -> weight; ``events`` of them are drawn, over
    ``active_s`` seconds of virtual time. Users do ``operations`` in all, ``volume_share`` of them on volumes, the others on registers.
    ``down_out_s``: after how long a dead node is moved out; 0 for never."""

    nodes: tuple[int, ...] = (5,)
    operations: int = 200
    clients: int = 6
    volume_share: float = 0.4
    deletes: float = 0.1
    """Of the operations on registers and volumes, how many delete."""
    troubles: Mapping[str, float] = field(default_factory=dict)
    events: int = 0
    active_s: float = 20.0
    down_out_s: float = 0.0
    interval_s: float = 4.0
    """Between two comparisons of the same nodes: a long one leaves time in which a replica lacks what it missed."""
    weather: Weather = CALM
    """What the network does by itself, until all trouble is over."""
    wild_clocks: bool = False
    """Whether the nodes' clocks drift, and their wall clocks are hours off and jump."""
    slow_readers: float = 0.2
    """Of the readers of volumes, how many take seconds."""
    fewer: bool = False
    """Whether tests run fewer seeds of it: it is made for one moment in which a fault would hurt, and little else, or takes long."""
    later_share: float = 0.0
    """Of the nodes, how many run a later release at first."""
    stores: str = MEMORY
    """What nodes keep registers and chunks on: one of `STORES`."""


SCENARIOS: dict[str, Scenario] = {
    "steady": Scenario(nodes=(3, 5, 7), operations=250),
    "volumes": Scenario(nodes=(3, 5), volume_share=0.95, slow_readers=0.6, troubles={CRASH: 1}, events=2),
    "crashes": Scenario(nodes=(3, 5), troubles={CRASH: 3, BLACKOUT: 1}, events=6),
    "freezes": Scenario(nodes=(3, 5), troubles={FREEZE: 2, SLOW: 1}, events=6),
    "wipes": Scenario(nodes=(3, 5), troubles={WIPE: 2, CRASH: 2, CUT: 1}, events=7, active_s=25.0, interval_s=20.0),
    "old-copies": Scenario(
        nodes=(3, 5), troubles={OLD_COPY: 2, CRASH: 2, CUT: 1}, events=7, active_s=25.0, interval_s=20.0
    ),
    "replaced": Scenario(
        nodes=(3, 5),
        operations=160,
        troubles={REPLACE: 2, CRASH: 1, CUT: 1},
        events=5,
        active_s=30.0,
        interval_s=20.0,
        fewer=True,
    ),
    "lone-copies": Scenario(
        nodes=(3,),
        operations=120,
        volume_share=0.2,
        troubles={LONE_COPY: 1},
        events=2,
        active_s=16.0,
        interval_s=20.0,
        fewer=True,
    ),
    "lone-leaders": Scenario(
        nodes=(3,),
        operations=80,
        volume_share=0.1,
        troubles={LONE_LEADER: 1},
        events=8,
        active_s=10.0,
        interval_s=20.0,
        fewer=True,
    ),
    "partitions": Scenario(nodes=(3, 5), troubles={CUT: 3, CRASH: 1}, events=6),
    "winds": Scenario(nodes=(3, 5), troubles={CRASH: 2, CUT: 1}, events=4, weather=WINDY, wild_clocks=True),
    "storms": Scenario(nodes=(3, 5), troubles={CRASH: 2, FREEZE: 1}, events=3, weather=STORM, wild_clocks=True),
    "layouts": Scenario(
        nodes=(4, 5), troubles={JOIN: 2, REMOVE: 2, RESIZE: 1, ABORT: 1}, events=4, active_s=25.0, operations=160
    ),
    "layouts-in-trouble": Scenario(
        nodes=(4, 5), troubles={JOIN: 2, REMOVE: 2, RESIZE: 1, CRASH: 2, FREEZE: 1, CUT: 1}, events=6, active_s=25.0
    ),
    "full-disks": Scenario(nodes=(3, 5), troubles={FULL: 3, CRASH: 1}, events=5, volume_share=0.7),
    "stand-ins": Scenario(
        nodes=(5,),
        operations=80,
        volume_share=0.9,
        slow_readers=0.0,
        troubles={FULL: 1},
        events=8,
        active_s=8.0,
        fewer=True,
    ),
    "moved-out": Scenario(nodes=(5,), troubles={AWAY: 1}, events=1, active_s=35.0, down_out_s=8.0, operations=160),
    "deletes": Scenario(
        nodes=(3, 5), troubles={CRASH: 2, SLOW: 1, FREEZE: 1}, events=4, deletes=0.45, volume_share=0.3
    ),
    "everything": Scenario(
        nodes=(3, 4, 5, 6, 7, 9),
        troubles={
            CRASH: 3,
            FREEZE: 2,
            WIPE: 1,
            OLD_COPY: 1,
            CUT: 2,
            SLOW: 1,
            FULL: 1,
            BLACKOUT: 1,
            JOIN: 1,
            REMOVE: 1,
            RESIZE: 1,
        },
        events=9,
        active_s=30.0,
    ),
    "disks": Scenario(
        nodes=(3, 5),
        operations=120,
        troubles={CRASH: 2, POWER: 2, BLACKOUT: 1, SLOW: 1, WIPE: 1, OLD_COPY: 1},
        events=6,
        stores=PRODUCTION,
        fewer=True,
    ),
    "rot": Scenario(nodes=(3, 5), operations=120, troubles={ROT: 3, CRASH: 1}, events=7, stores=PRODUCTION, fewer=True),
    "failing-disks": Scenario(
        nodes=(3, 5),
        operations=120,
        troubles={EIO: 3, ENOSPC: 2, FULL: 1, CRASH: 1},
        events=7,
        active_s=25.0,
        stores=PRODUCTION,
        fewer=True,
    ),
    "releases": Scenario(
        nodes=(3, 5),
        operations=150,
        troubles={UPGRADE: 4, CRASH: 1, FREEZE: 1, CUT: 1},
        events=8,
        active_s=25.0,
        later_share=0.4,
        fewer=True,
    ),
    "winds-and-losses": Scenario(
        nodes=(3, 5),
        operations=150,
        troubles={WIPE: 2, OLD_COPY: 2, JOIN: 2, CRASH: 1},
        events=5,
        active_s=25.0,
        weather=WINDY,
        wild_clocks=True,
        fewer=True,
    ),
}
