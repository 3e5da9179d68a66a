"""`Membership`: runs the machine (`swim`) over the RPC layer, and tells the rest of the node who is there.

Owns the one `Swim` of the node. Everything is decided synchronously: a tick, a request or an answer goes into the machine, then
`_settle` tells address book and listeners of the changes, in order. The tasks that wait for answers live in the TaskGroup of `run`.

It never blocks anybody: `members`, `is_alive` and the hints are dictionary look-ups, and its handlers answer without a task, except for
those of helpers. Liveness is a guess by nature; whoever needs certainty needs a quorum.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from functools import partial
from random import Random
from types import MappingProxyType
from typing import Any, Protocol

import structlog

from cluster.doors.clock import Clock
from cluster.errors import HoldfastError, Invalid, PeerUnavailable, Unauthorized
from cluster.membership.member import Member, MemberInfo, State, check_member
from cluster.membership.messages import (
    Ack,
    Everything,
    ExchangeRequest,
    HelperAnswer,
    HelpRequest,
    MemberRecord,
    PingRequest,
    member_of,
    members_of,
    record_of,
    records_of,
)
from cluster.membership.seeds import Address, Seeds, who_answered
from cluster.membership.settings import TICK_S, MembershipSettings
from cluster.membership.swim import AskHelper, Changed, Counters, Exchange, Ping, Rivalry, Send, Swim
from cluster.rpc.caller import Caller, R, Reply
from cluster.rpc.message import Payload, Request
from cluster.rpc.service import Handlers, IncomingCall

EXCHANGE_DEADLINE_S = 2.0
"""Seconds for a full exchange: up to a megabyte each way."""

LEAVE_DEADLINE_S = 0.5
"""Seconds that saying good-bye may take."""

LEAVE_FANOUT = 32
"""Members told directly that this node leaves; they tell the others."""

CALLS_LIMIT = 256
"""Calls of this service under way at once. Far above what a healthy node has (some ten); past it sends are dropped, as if lost."""

SEED_ADDRESSES = 16
"""Addresses of one seed's name that are tried at once; those of a larger cluster are heard of through these."""

PATIENCE_LIMIT_S = 5.0
"""The longest that a helper waits for a target, whatever it is asked."""

REPEAT_LOG_S = 60.0
"""Seconds before the same trouble is logged again."""

log = structlog.get_logger(__name__)


class Peers(Caller, Protocol):
    """What membership needs of the RPC layer: `RpcNode`, or a test's own."""

    async def call_address(
        self, host: str, port: int, request: Request[R], payload: Payload = b"", *, deadline_s: float
    ) -> Reply[R]:
        """As `call`, to whoever listens there."""

    async def addresses_of(self, host: str, *, deadline_s: float) -> Sequence[str]:
        """All addresses that ``host`` stands for. Raises HoldfastError."""


Listener = Callable[[Member | None, Member], None]


class Membership:
    """Who is there. Construction registers the handlers; `run` does the rest.

    ``set_address(name, host, port)`` is called before any listener hears of a member that is new or has moved.
    """

    def __init__(
        self,
        *,
        me: MemberInfo,
        caller: Peers,
        handlers: Handlers,
        set_address: Callable[[str, str, int], None],
        clock: Clock,
        random: Random,
        settings: MembershipSettings,
        seeds: Iterable[Address] = (),
    ) -> None:
        """Raises Invalid when ``me`` has a field out of bounds."""
        check_member(me.record())
        self._caller = caller
        self._set_address = set_address
        self._clock = clock
        self._random = random
        self._swim = Swim(me, settings, random, clock.monotonic())
        self._seeds = Seeds((seed for seed in seeds if seed != (me.host, me.port)), settings)
        self._listeners: list[Listener] = []
        self._changes: deque[Changed] = deque()
        self._telling = False
        self._snapshot: Mapping[str, Member] | None = None
        self._snapshot_revision = 0
        self._logged: dict[tuple[str, str], float] = {}
        self._tasks: asyncio.TaskGroup | None = None
        self._calls = 0
        self.records_refused = 0
        """Records that made no sense; counted since the start."""
        handlers.register(PingRequest, self._answer_ping)
        handlers.register(HelpRequest, self._answer_help)
        handlers.register(ExchangeRequest, self._answer_exchange)

    # For the rest of the node.

    @property
    def me(self) -> Member:
        """This node's own record."""
        return self._swim.me

    @property
    def rival(self) -> Member | None:
        """Another living node that has this node's name; while there is one, this node is not part of the cluster."""
        return self._swim.rival

    @property
    def counters(self) -> Counters:
        return self._swim.counters

    @property
    def health_score(self) -> int:
        """0 (well) to 4: how much this node distrusts its own judgement."""
        return self._swim.health.score

    @property
    def lateness_s(self) -> float:
        """How late this node's ticks have come lately: a measure of the load on its event loop."""
        return self._swim.health.lateness_s

    def members(self) -> Mapping[str, Member]:
        """Everybody known, this node included, by name; a snapshot that doesn't change."""
        if self._snapshot is None or self._snapshot_revision != self._swim.revision:
            self._snapshot_revision = self._swim.revision
            everybody = {**self._swim.others, self._swim.me.name: self._swim.me}
            self._snapshot = MappingProxyType({name: everybody[name] for name in sorted(everybody)})
        return self._snapshot

    def is_alive(self, name: str) -> bool:
        """Whether ``name`` is worth a try: alive or suspect, or this node itself. Unknown names are not."""
        member = self._swim.others.get(name)
        return member.usable if member is not None else name == self._swim.me.name

    def is_suspect(self, name: str) -> bool:
        member = self._swim.others.get(name)
        return member is not None and member.state is State.SUSPECT

    def on_change(self, listener: Listener) -> None:
        """Call ``listener(old, new)`` whenever a record changes in more than its incarnation; ``old`` is None for a new name. Changes
        of this node's own record are told too. Listeners are called synchronously, one change after the other; they must not block,
        and must not raise."""
        self._listeners.append(listener)

    def add_seed(self, host: str, port: int) -> None:
        """One more address to try, such as a layout node's that nobody has spoken of yet."""
        if (host, port) != self._swim.me.address:
            self._seeds.add((host, port))

    def unmet_seeds(self) -> list[Address]:
        """Addresses of which it is not known yet who is there: nobody has answered, and no known member says that it is its own. What
        those who have answered knew of others is among the `members`."""
        known = {member.address for member in self.members().values()}
        return [address for address in self._seeds.unmet() if address not in known]

    def update_me(self, **fields: Any) -> None:
        """Change this node's ``zone``, ``capacity``, ``api``, ``layout_version`` or ``release``, and let everybody know. Raises Invalid for
        values out of bounds, TypeError for other fields."""
        self._swim.update_me(**fields)
        self._settle()

    def report_failure(self, name: str) -> None:
        """A call to ``name`` failed for want of an answer: it is probed at the next tick."""
        self._swim.hint_failure(name)

    def report_success(self, name: str) -> None:
        """``name`` answered a call just now."""
        self._swim.hint_success(name)

    async def run(self) -> None:
        """Probe, gossip and join until cancelled. May be run once."""
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            try:
                while True:
                    self._tick()
                    await self._clock.sleep(TICK_S)
            finally:
                self._tasks = None

    async def leave(self) -> None:
        """Tell the others that this node stops on purpose; best effort, within `LEAVE_DEADLINE_S`."""
        living = self._swim.living
        self._swim.leave()
        self._settle()
        me = record_of(self._swim.me)

        async def tell(name: str) -> None:
            try:
                await self._caller.call(name, PingRequest(me, ()), deadline_s=LEAVE_DEADLINE_S)
            except HoldfastError as error:
                log.debug("membership.goodbye_unheard", peer=name, error=error.message)

        async with asyncio.TaskGroup() as tasks:
            for name in self._random.sample(living, min(LEAVE_FANOUT, len(living))):
                tasks.create_task(tell(name))

    # Requests of others.

    def _answer_ping(self, request: PingRequest, call: IncomingCall) -> Ack:
        sender = self._receive(request.me, request.news, call)
        return Ack(record_of(self._swim.me), records_of(self._swim.news_for(sender.name, sender)))

    def _answer_exchange(self, request: ExchangeRequest, call: IncomingCall) -> Everything:
        sender = self._sender(request.me, call.peer)
        if sender.store != self._swim.me.store:
            self._swim.exchanged(sender, self._sensible(request.members))
            self._settle()
        return Everything(record_of(self._swim.me), records_of(self._swim.everything()))

    async def _answer_help(self, request: HelpRequest, call: IncomingCall) -> HelperAnswer:
        self._receive(request.me, request.news, call)
        target = None
        if request.target in self._swim.others and not self._swim.left:
            patience_s = min(max(0.0, request.patience_s), PATIENCE_LIMIT_S)
            target = await self._ping(request.target, patience_s)
        news = self._swim.news_for(call.peer)
        return HelperAnswer(record_of(self._swim.me), records_of(news), None if target is None else record_of(target))

    def _receive(self, me: MemberRecord, news: Iterable[MemberRecord], call: IncomingCall) -> Member:
        sender = self._sender(me, call.peer)
        self._swim.received(sender, self._sensible(news))
        self._settle()
        return sender

    def _sender(self, me: MemberRecord, peer: str) -> Member:
        """Raises Invalid when the record makes no sense, Unauthorized when it is another's than the connection's."""
        sender = member_of(me)
        if sender.name != peer:
            raise Unauthorized(f"Node {peer} speaks as {sender.name}.", peer=peer)
        return sender

    def _sensible(self, records: Iterable[MemberRecord]) -> list[Member]:
        return members_of(records, self._refuse)

    def _refuse(self, record: MemberRecord, error: Invalid) -> None:
        self.records_refused += 1
        if self._may_log("record", record.name[:64]):
            log.warning("membership.record_refused", name=record.name[:64], reason=error.message)

    # Sending.

    def _tick(self) -> None:
        for send in self._swim.tick(self._clock.monotonic()):
            self._start(self._carry_out(send))
        if not self._swim.left:
            alive = {self._swim.me.name, *self._swim.living}
            forming = self._swim.me.layout_version == 0
            for address in self._seeds.due(self._swim.health.time, alive, alone=len(alive) == 1, forming=forming):
                self._start(self._contact_seed(address), else_do=partial(self._seed_failed, address))
        self._settle()

    def _start(self, work: Coroutine[Any, Any, None], else_do: Callable[[], None] | None = None) -> None:
        assert self._tasks is not None
        if self._calls >= CALLS_LIMIT:
            work.close()
            if else_do is not None:
                else_do()
            return
        self._calls += 1
        self._tasks.create_task(work).add_done_callback(self._finished)

    def _finished(self, _task: asyncio.Task[None]) -> None:
        self._calls -= 1

    async def _carry_out(self, send: Send) -> None:
        if isinstance(send, Ping):
            await self._probe(send)
        elif isinstance(send, AskHelper):
            await self._ask_helper(send)
        else:
            await self._exchange(send)

    async def _probe(self, send: Ping) -> None:
        target = await self._ping(send.to, send.deadline_s, send.news)
        if send.probe is None:
            return
        if target is None:
            self._swim.ping_failed(send.probe)
        else:
            self._swim.pinged(send.probe, target)

    async def _ping(self, name: str, deadline_s: float, news: Iterable[Member] | None = None) -> Member | None:
        """What ``name`` says about itself; None when it doesn't answer."""
        if news is None:
            news = self._swim.news_for(name)
        request = PingRequest(record_of(self._swim.me), records_of(news))
        try:
            ack = (await self._caller.call(name, request, deadline_s=deadline_s)).message
            target = self._sender(ack.me, name)
        except HoldfastError as error:
            self._unanswered(name, error)
            return None
        self._swim.received(target, self._sensible(ack.news))
        self._settle()
        return target

    async def _ask_helper(self, send: AskHelper) -> None:
        request = HelpRequest(record_of(self._swim.me), records_of(send.news), send.target.name, send.patience_s)
        try:
            answer = (await self._caller.call(send.helper, request, deadline_s=send.deadline_s)).message
            helper = self._sender(answer.me, send.helper)
            target = None if answer.target is None else member_of(answer.target)
        except HoldfastError as error:
            self._unanswered(send.helper, error)
            return
        self._swim.received(
            helper, self._sensible(answer.news if target is None else (*answer.news, record_of(target)))
        )
        self._swim.helped(send.probe, target)
        self._settle()

    async def _exchange(self, send: Exchange) -> None:
        request = ExchangeRequest(record_of(self._swim.me), records_of(self._swim.everything()))
        try:
            reply = (await self._caller.call(send.to, request, deadline_s=EXCHANGE_DEADLINE_S)).message
            answerer = self._sender(reply.me, send.to)
        except HoldfastError as error:
            self._unanswered(send.to, error)
            return
        self._swim.exchanged(answerer, self._sensible(reply.members))
        self._settle()

    async def _contact_seed(self, seed: Address) -> None:
        """Make oneself known to everybody whom a seed stands for."""
        host, port = seed
        met: dict[str, str | None] = {}

        async def greet(address: str) -> None:
            met[address] = await self._greet(address, port)

        try:
            addresses = await self._caller.addresses_of(host, deadline_s=EXCHANGE_DEADLINE_S)
        except HoldfastError:
            addresses = ()
        if len(addresses) == 1:
            await greet(addresses[0])
        else:
            async with asyncio.TaskGroup() as tasks:
                for address in addresses[:SEED_ADDRESSES]:
                    tasks.create_task(greet(address))
        name, silent = who_answered(self._swim.me.name, met)
        if name is None:
            self._seed_failed(seed)
        else:
            self._seeds.answered(seed, name, self._swim.health.time, silent)
            self._settle()

    async def _greet(self, host: str, port: int) -> str | None:
        """Exchange everything with whoever is there; their name, None when nobody answers."""
        request = ExchangeRequest(record_of(self._swim.me), records_of(self._swim.everything()))
        try:
            reply = (await self._caller.call_address(host, port, request, deadline_s=EXCHANGE_DEADLINE_S)).message
            answerer = member_of(reply.me)
        except HoldfastError as error:
            if error.details.get("itself"):
                return self._swim.me.name
            if not isinstance(error, PeerUnavailable) and self._may_log("seed", f"{host}:{port}"):
                log.warning("membership.seed_refused", host=host, port=port, reason=error.message)
            return None
        if answerer.store != self._swim.me.store:
            self._swim.exchanged(answerer, self._sensible(reply.members))
        return answerer.name

    def _seed_failed(self, address: Address) -> None:
        self._seeds.failed(address, self._swim.health.time)

    def _unanswered(self, name: str, error: HoldfastError) -> None:
        """Silence is the machine's affair; a refusal is the operator's as well."""
        if isinstance(error, (Invalid, Unauthorized)) and self._may_log("refusal", name):
            log.warning("membership.refused", peer=name, reason=error.message)

    # Telling.

    def _settle(self) -> None:
        """Act on what the machine has noticed. A listener may call back into this object: its changes are told after the present one."""
        for notice in self._swim.notices():
            if isinstance(notice, Rivalry):
                self._log_rivalry(notice)
            else:
                self._changes.append(notice)
        if self._telling:
            return
        self._telling = True
        try:
            while self._changes:
                change = self._changes.popleft()
                self._tell(change.old, change.new)
        finally:
            self._telling = False

    def _tell(self, old: Member | None, new: Member) -> None:
        if new.name != self._swim.me.name:
            if old is None or old.address != new.address:
                self._set_address(new.name, new.host, new.port)
            if old is None or old.state is not new.state or old.store != new.store or old.boot != new.boot:
                log.info(
                    "membership.changed",
                    member=new.name,
                    state=new.state.value,
                    was=old.state.value if old else None,
                    address=f"{new.host}:{new.port}",
                    boot=new.boot,
                    incarnation=new.incarnation,
                )
        for listener in self._listeners:
            listener(old, new)

    def _log_rivalry(self, notice: Rivalry) -> None:
        holder, claimant = notice.holder, notice.claimant
        if self._may_log("rivalry", holder.name):
            log.error(
                "membership.name_claimed_twice",
                member=holder.name,
                holder=f"{holder.host}:{holder.port}",
                holder_store=holder.store.hex(),
                claimant=f"{claimant.host}:{claimant.port}",
                claimant_store=claimant.store.hex(),
                advice="give one of the two another name, or remove it; the first keeps the name while it lives",
            )

    def _may_log(self, kind: str, subject: str) -> bool:
        now = self._clock.monotonic()
        for key, since in list(self._logged.items()):
            if now - since >= REPEAT_LOG_S:
                del self._logged[key]
        if (kind, subject) in self._logged:
            return False
        self._logged[kind, subject] = now
        return True
