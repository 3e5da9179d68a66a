"""How long, how often and how fast one operation is tried again. Pure decisions: time and randomness come in.

An operation is tried until it succeeds, until an answer says that trying again cannot help, or until its budget is spent:
a number of attempts and a deadline. A download's budget starts anew whenever bytes arrive, so that a long transfer may
outlive many gateways but never hangs on a dead cluster.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from client.errors import HoldfastError


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """The budget of one operation. The defaults suit a person or a script that waits for the answer."""

    deadline_s: float = 30.0
    """Seconds after which no new round over the endpoints is begun, counted from the start or from the last bytes that
    arrived."""
    unreachable_s: float = 3.0
    """The same, while not one endpoint accepts a connection: a cluster that isn't there is reported quickly."""
    attempts: int = 64
    """Attempts at most: bounds the work when every endpoint refuses at once."""
    backoff_s: float = 0.1
    """Pause after each endpoint has been tried once; it doubles with every further round, with jitter."""
    backoff_limit_s: float = 2.0
    """Longest pause, also when a server's Retry-After asks for more."""
    connect_timeout_s: float = 3.0
    """Seconds for a TCP (and TLS) connection."""
    idle_timeout_s: float = 20.0
    """Seconds without a byte sent, received or answered after which a connection counts as lost: longer than any node
    waits for its own peers."""
    stall_s: float = 1.5
    """Seconds without progress after which an endpoint is asked whether it lives: longer than a busy cluster's usual answer
    takes, so that few requests ask, and short beside the idle time-out, which only hung gateways are spared."""
    probe_timeout_s: float = 1.0
    """Seconds for such a question, connection included: many round trips of any network, and far above the longest pause of a
    living gateway's event loop."""


@dataclass(frozen=True, slots=True)
class Failure:
    """One attempt that did not give an answer to hand on."""

    error: HoldfastError
    reached: bool
    """A connection was there: somebody listens."""
    maybe_executed: bool
    """The server may have done what was asked."""
    retry_after_s: float = 0.0


class Budget:
    """What is left of one operation's `RetryPolicy`."""

    def __init__(self, policy: RetryPolicy, endpoints: int, random: Random, now: float) -> None:
        self._policy = policy
        self._endpoints = endpoints
        self._random = random
        self.progress(now)

    def progress(self, now: float) -> None:
        """Bytes arrived: the budget is whole again."""
        self._began = now
        self._attempts = 0
        self._reached = False
        self.tried: set[str] = set()

    def failed(self, url: str, failure: Failure, now: float) -> float | None:
        """Seconds to wait before the next attempt, or None when the budget is spent."""
        policy = self._policy
        self._attempts += 1
        self._reached = self._reached or failure.reached
        self.tried.add(url)
        if self._attempts >= policy.attempts:
            return None
        if len(self.tried) < self._endpoints:
            return 0.0  # every endpoint gets its turn, however long the others kept us: five with four hung must work
        self.tried.clear()
        rounds = max(0, self._attempts // self._endpoints - 1)
        pause = min(policy.backoff_limit_s, policy.backoff_s * 2 ** min(rounds, 16)) * self._random.uniform(0.5, 1.0)
        pause = max(pause, min(failure.retry_after_s, policy.backoff_limit_s))
        deadline = policy.deadline_s if self._reached else min(policy.unreachable_s, policy.deadline_s)
        return None if now + pause - self._began > deadline else pause
