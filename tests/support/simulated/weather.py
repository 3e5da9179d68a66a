"""What the simulated network does to streams by itself, apart from what a scenario breaks: named numbers, nothing else.

TCP loses and repeats no byte inside a stream. So loss is a stream that stalls or breaks, a late segment holds up what follows it in its
own stream only, and what overtakes it comes by another stream. Chances are per segment (one write of the sender) unless they say otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Weather:
    """The default is calm: short, varying delays, now and then a segment that arrives in small parts."""

    latency_s: float = 0.0005
    """The mean way of a segment, one way: half of it fixed, half of it drawn."""
    bytes_per_s: float = 0.0
    """What a host sends at most; 0: as much as it likes."""
    fragment_chance: float = 0.1
    """That a segment arrives in parts of a drawn size, down to single bytes, each read by itself."""

    late_chance: float = 0.0
    """That a segment takes a way with a heavy tail."""
    late_s: float = 0.05
    """The least of such a way. Half take more than twice as long, a quarter more than four times, and so on (Pareto, index 1)."""
    late_max_s: float = 120.0
    """The most: longer than any time-out there is, so that requests arrive whose senders have long moved on."""

    reset_chance: float = 0.0
    """That a stream breaks in the middle of a segment: what came before the break arrives."""
    stall_chance: float = 0.0
    """That a stream delivers nothing for a while, in both directions; then it breaks, or goes on."""
    stall_max_s: float = 40.0
    stall_break_share: float = 0.5
    """How many stalls end in a break."""
    half_open_share: float = 0.0
    """Of the breaks: how many are known to one end only. The other finds out when it next sends something, or by its own time-outs."""

    connect_hang_chance: float = 0.0
    """Per connection: that nothing comes back, ever."""
    connect_refuse_chance: float = 0.0
    """Per connection: that it is refused."""
    connect_ghost_chance: float = 0.0
    """Per connection: that the peer accepts it, and the dialer is told that it failed."""
    vanish_share: float = 0.0
    """Of the killed hosts: how many take their peers' ends of the streams along without a word, as with the power cut."""


CALM = Weather()
"""No faults."""
WINDY = Weather(late_chance=0.01, late_max_s=3.0, reset_chance=0.0005, half_open_share=0.2, connect_refuse_chance=0.01)
"""What a network does on a bad day: everything should go on, slower."""
STORM = Weather(
    late_chance=0.02,
    reset_chance=0.001,
    stall_chance=0.0005,
    half_open_share=0.4,
    connect_hang_chance=0.02,
    connect_refuse_chance=0.05,
    connect_ghost_chance=0.05,
    vanish_share=0.5,
)
"""What no network does all the time: only safety can be expected, and that all is well once it is over."""
