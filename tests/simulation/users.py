"""How a campaign's users ask: through any gateway, recording how it ended. What they share: gateways, counts, the trace.

An operation ends in one of three ways: answered, certainly not done, or unknown (no answer, or OutcomeUnknown). Anything else is a
failure of the run: an error that was not promised, or an operation that does not end.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Coroutine
from typing import Any, NamedTuple

from cluster.errors import (
    Busy,
    Conflict,
    HoldfastError,
    Invalid,
    NoSpace,
    NotFound,
    NotReady,
    OutcomeUnknown,
    PeerUnavailable,
    QuorumUnavailable,
    StaleLayout,
)
from tests.simulation.campaign_cluster import CampaignCluster
from tests.simulation.result import BrokenError
from tests.simulation.trace import Trace
from tests.support.simulated.whole_cluster import Machine

ANSWERED, REFUSED, NOT_DONE, UNKNOWN = "ok", "refused", "not done", "unknown"

ENDS_WITHIN_S = 120.0
"""However bad things are: a put of several chunks tries each replica and each stand-in for some seconds."""

CALM_ENDS_WITHIN_S = 10.0
"""With everybody there."""

LOOKING = ("get", "list", "read", "scan")
"""Kinds that change nothing: there is always a yes, a no (of "get"), or nobody to ask."""

NOT_DONE_ERRORS = (Busy, NoSpace, NotReady, PeerUnavailable, QuorumUnavailable, StaleLayout)
REFUSALS = (Conflict, Invalid, NotFound)


class Answer(NamedTuple):
    """How it ended, and the result, or the error that says why not."""

    ended: str
    result: Any


class Users:
    def __init__(self, seed: int, cluster: CampaignCluster, trace: Trace) -> None:
        self.cluster = cluster
        self.trace = trace
        self.rng = random.Random(f"users {seed}")
        self.counts: Counter[str] = Counter()
        self.calm = False
        self._number = 0

    def number(self) -> int:
        self._number += 1
        return self._number

    def gateway(self, rng: random.Random) -> Machine | None:
        cluster = self.cluster
        up = [m for m in cluster.everybody() if m.has_layout() and m.host not in cluster.stopping]
        return rng.choice(up) if up else None

    def now(self) -> float:
        return asyncio.get_running_loop().time()

    async def ask(
        self, machine: Machine, what: str, work: Coroutine[Any, Any, Any], give_up_s: float | None = None
    ) -> Answer:
        """Have it done by the machine. ``what``: kind, then what it is about. ``give_up_s``: the user goes away after so long."""
        kind = what.partition(" ")[0]
        limit = CALM_ENDS_WITHIN_S if self.calm else ENDS_WITHIN_S
        number = self.number()
        self.trace.note(f"#{number} {what} at {machine.name}")
        life = machine.lives
        task = self.cluster.request(machine, work)
        _, waiting = await asyncio.wait([task], timeout=limit if give_up_s is None else give_up_s)
        if waiting:
            if give_up_s is None:
                stack = task.get_stack()
                task.cancel()
                raise BrokenError(
                    "every operation ends within its deadline",
                    f"#{number} {what} at {machine.name} has not ended after {limit:.0f} s (in {stack})",
                    what.rpartition(" ")[2],
                )
            task.cancel()
            await asyncio.wait([task])
        elif (
            task.cancelled()
            and machine.core is not None
            and machine.lives == life
            and machine.host not in self.cluster.ending
        ):
            raise BrokenError("nothing fails otherwise than it may", f"#{number} {what} was cancelled by nobody")
        answer = self._judge(task, number, what)
        if kind in LOOKING and isinstance(answer.result, OutcomeUnknown | Conflict | Invalid):
            raise BrokenError("errors are those promised", f"#{number} {what}: {answer.result}")
        self.counts[f"{kind} {answer.ended}"] += 1
        shown = _short(answer.result)
        self.trace.note(f"#{number} {what}: {answer.ended}{shown}")
        return answer

    def _judge(self, task: asyncio.Task[Any], number: int, what: str) -> Answer:
        if task.cancelled():
            return Answer(UNKNOWN, None)
        error = task.exception()
        if error is None:
            return Answer(ANSWERED, task.result())
        if isinstance(error, NOT_DONE_ERRORS):
            return Answer(NOT_DONE, error)
        if isinstance(error, REFUSALS):
            return Answer(REFUSED, error)
        if isinstance(error, OutcomeUnknown):
            return Answer(UNKNOWN, error)
        if isinstance(error, BrokenError):
            raise error
        named = f"{type(error).__name__}: {error}"
        if isinstance(error, HoldfastError):
            raise BrokenError("errors are those promised", f"#{number} {what}: {named}") from error
        raise BrokenError("nothing fails otherwise than it may", f"#{number} {what}: {named}") from error


def _short(result: Any) -> str:
    if result is None:
        return ""
    if isinstance(result, HoldfastError):
        return f" ({result.code}: {result.message[:160]})"
    if isinstance(result, bytes):
        return f" {result[:24]!r}" + (f"... of {len(result)}" if len(result) > 24 else "")
    return f" {str(result)[:120]}"
