"""The tunables of membership. The defaults notice a dead node in 2 to 4 s and forgive a pause of 2 s."""

from __future__ import annotations

import math
from dataclasses import dataclass

from cluster.errors import Invalid


@dataclass(frozen=True, slots=True)
class MembershipSettings:
    probe_interval_s: float = 0.5
    """Time between two rounds of probing, in seconds. In each a node pings its successor in the ring of names and one other."""

    probe_timeout_s: float = 0.5
    """Seconds to wait for a direct answer, and then as long again for an indirect one."""

    indirect_probes: int = 3
    """How many others are asked to ping a node that doesn't answer."""

    suspicion_s: float = 1.3
    """Seconds that a suspect has to say that it lives, in a cluster of one (see `suspicion_for`)."""

    suspicion_hop_s: float = 0.1
    """Seconds added for every doubling of the cluster: what news needs to go one hop further (a tick)."""

    sync_interval_s: float = 30.0
    """Seconds between full exchanges with a random member, which repair whatever gossip missed."""

    reunion_interval_s: float = 2.0
    """Seconds between tries to reach one of the members believed dead, so that halves of a split cluster meet again."""

    seed_retry_s: float = 0.5
    """Seconds until unreached seeds are tried again; doubles up to `seed_retry_limit_s`."""

    seed_retry_limit_s: float = 10.0
    """The longest wait between two tries of the seeds. While nobody else is known it is `seed_retry_alone_s`."""

    seed_retry_alone_s: float = 1.0
    """The longest wait between two tries of the seeds while nobody else is known to be alive."""

    forget_s: float = 86_400.0
    """Seconds after which a member that died or left is no longer listed. The layout knows it for as long as it matters."""

    def __post_init__(self) -> None:
        for field in self.__slots__:
            if not getattr(self, field) > 0:
                raise Invalid(f"{field} must be more than 0.", field=field)

    def suspicion_for(self, nodes: int) -> float:
        """Seconds from suspicion to death in a cluster of so many nodes: news reaches all in O(log n) hops (SWIM, section 4.2)."""
        return self.suspicion_s + self.suspicion_hop_s * math.log2(max(1, nodes))

    def retransmissions_for(self, nodes: int) -> int:
        """How many times a node passes on a rumour: a small multiple of log n, as in SWIM, section 4.1."""
        return RETRANSMISSION_FACTOR * math.ceil(math.log2(nodes + 1))


RETRANSMISSION_FACTOR = 2
"""Times log2(n + 1): 6 in a cluster of five, 12 in one of fifty."""

TICK_S = 0.1
"""Seconds between two steps of the machine: the grain of all its timers."""

NEWS_LIMIT = 16
"""Records in one message besides the sender's own: some 2 KiB."""

EAGER_FANOUT = 3
"""Members told of news at the next tick, without waiting for a ping to carry it. Three reach 94 % of a cluster at once (the
fixed point of infect-and-die gossip); pings reach the rest."""

SECOND_OPINIONS = 4
"""How many nodes, on average, ping a suspect at once of their own accord: all of a small cluster, a few of a large one."""

MEMBERS_LIMIT = 4096
"""Members known at once. A full exchange carries them all in one message of less than 1 MiB."""
