"""The membership machine: SWIM (Das, Gupta and Motivala, 2002) with Lifeguard's local health. Pure: no I/O, no tasks, no clock.

Events come in as method calls; what is to be sent comes out of `tick`, and only there; what others should know (a member changed, two
nodes claim one name) comes out of `notices`. Time is the machine's own (`LocalHealth`) and moves only in `tick`.

In each round a node pings its successor in the ring of living names, so that everybody is watched by somebody in every round, and
one other in shuffled turn, so that no single watcher matters. A ping without an answer is followed by pings through helpers, then by
suspicion, then, unless the suspect refutes it, by death. Every message carries its sender's own record, whatever is believed of its
receiver if that is bad, and up to `NEWS_LIMIT` rumours; news is also pushed to a few members at the next tick.

Invariants (`check`): the table never holds the node itself; a suspicion has a suspect in the table and every suspect has one;
knowledge of a name only grows in the order of `member.precedence`. A dead or departed node that is not known is not learnt of,
so that what one node has forgotten does not come back from another.

Its own name is a claim (docs/decisions/membership.md): a node begins with incarnation ASKING, which loses to every claim, and claims its
name after the first full exchange. It yields to another living node that has the name, and tries again when that one is dead.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from random import Random
from typing import Any, Final

from cluster.membership.health import LocalHealth
from cluster.membership.member import (
    ASKING,
    Member,
    MemberInfo,
    State,
    beats,
    check_member,
    first_incarnation,
)
from cluster.membership.rumours import Rumours
from cluster.membership.settings import (
    EAGER_FANOUT,
    MEMBERS_LIMIT,
    NEWS_LIMIT,
    SECOND_OPINIONS,
    TICK_S,
    MembershipSettings,
)

NEVER: Final = float("-inf")

HELPER_SHARE = 0.8
"""How much of the time left for an indirect answer the helper waits for the target."""

UPDATABLE = frozenset({"zone", "capacity", "api", "layout_version", "release"})
"""What a node may change about itself while it lives; the rest is its identity."""


@dataclass(frozen=True, slots=True)
class Ping:
    """Ping ``to``; its answer is due for `pinged` or `ping_failed` when ``probe`` is given, within ``deadline_s``."""

    to: str
    probe: int | None
    news: tuple[Member, ...]
    deadline_s: float


@dataclass(frozen=True, slots=True)
class AskHelper:
    """Ask ``helper`` to ping ``target``; to be followed by `helped`, or by nothing when the helper doesn't answer."""

    helper: str
    target: Member
    probe: int
    news: tuple[Member, ...]
    patience_s: float
    deadline_s: float


@dataclass(frozen=True, slots=True)
class Exchange:
    """Exchange all records with ``to``."""

    to: str


Send = Ping | AskHelper | Exchange


@dataclass(frozen=True, slots=True)
class Changed:
    """What is believed of a member, or of the node itself, has changed in more than its incarnation."""

    old: Member | None
    new: Member


@dataclass(frozen=True, slots=True)
class Rivalry:
    """Two living stores claim one name: ``holder`` has it, ``claimant`` does not get it while the holder lives."""

    holder: Member
    claimant: Member


Notice = Changed | Rivalry


@dataclass(slots=True)
class _Probe:
    target: Member
    started: float
    ask_at: float
    fail_at: float
    asked: int = 0
    helpers_answered: int = 0


@dataclass(slots=True)
class Counters:
    """Events since the start."""

    probes: int = 0
    probes_failed: int = 0
    suspicions: int = 0
    deaths: int = 0
    refutations: int = 0
    eager_pushes: int = 0
    members_refused: int = 0


class Swim:
    """One node's view of the cluster. ``now``: any monotonic clock, in seconds."""

    def __init__(self, info: MemberInfo, settings: MembershipSettings, random: Random, now: float) -> None:
        self.me = info.record()
        self.rival: Member | None = None
        """The living holder of this node's name, to which it has yielded."""
        self.health = LocalHealth(now, TICK_S)
        self.counters = Counters()
        self.left = False
        self.revision = 0
        """Raised by every change of any record."""
        self._settings = settings
        self._random = random
        self._others: dict[str, Member] = {}
        self._living: tuple[str, ...] = ()
        self._rumours = Rumours()
        self._eager: dict[str, None] = {}
        self._probes: dict[int, _Probe] = {}
        self._last_probe = 0
        self._at_once: dict[str, None] = {}
        self._turn: list[str] = []
        self._suspected: dict[str, float] = {}
        self._gone: dict[str, float] = {}
        self._heard: dict[str, float] = {}
        self._outbid: set[tuple[bytes, str, int]] = set()
        self._notices: list[Notice] = []
        self._probe_due = 0.0
        self._sync_due = self._jitter(settings.sync_interval_s)
        self._reunion_due = self._jitter(settings.reunion_interval_s)

    # What is known.

    @property
    def others(self) -> Mapping[str, Member]:
        """Everybody known but the node itself; not to be kept or changed."""
        return self._others

    @property
    def living(self) -> tuple[str, ...]:
        """Names of the others who are worth a try, sorted."""
        return self._living

    @property
    def claimed(self) -> bool:
        """Whether the node holds its name, as far as it knows."""
        return self.me.incarnation != ASKING

    def everything(self) -> tuple[Member, ...]:
        """All records, for a full exchange: the node's own comes separately as ``me``."""
        known = tuple(self._others.values())
        return known if self.rival is None else (*known, self.rival)

    def notices(self) -> list[Notice]:
        """What has happened since the last call, in order."""
        notices, self._notices = self._notices, []
        return notices

    def check(self) -> None:
        """Raise AssertionError when an invariant does not hold."""
        assert self.me.name not in self._others
        suspects = {name for name, member in self._others.items() if member.state is State.SUSPECT}
        assert suspects == set(self._suspected)
        assert {name for name, member in self._others.items() if not member.usable} == set(self._gone)
        assert self._living == tuple(sorted(name for name, member in self._others.items() if member.usable))
        assert self.me.state is (State.LEFT if self.left else State.ALIVE)
        assert self.rival is None or (self.rival.usable and not self.claimed)

    # Events.

    def tick(self, now: float) -> list[Send]:
        """Time has passed; to be called every `TICK_S`. Returns what is to be sent."""
        time = self.health.advance(now)
        if self.left:
            return []
        sends: list[Send] = []
        self._follow_up_probes(time, sends)
        self._bury(time)
        if time >= self._probe_due:
            interval = self._settings.probe_interval_s
            self._probe_due = max(self._probe_due + interval, time + interval / 2)
            self._start_round(time, sends)
        for name in self._at_once:
            self._start_probe(name, time, sends)
        self._at_once.clear()
        self._push(sends)
        if time >= self._sync_due:
            self._sync_due = time + self._jitter(self._settings.sync_interval_s)
            if self._living:
                sends.append(Exchange(self._random.choice(self._living)))
        if time >= self._reunion_due:
            self._reunion_due = time + self._jitter(self._settings.reunion_interval_s)
            self._seek_reunion(sends)
        return sends

    def received(self, sender: Member, news: Iterable[Member]) -> None:
        """A message has come from ``sender`` itself, be it a request or an answer."""
        known = self._others.get(sender.name)
        self._learn(sender)
        now_known = self._others.get(sender.name)
        if now_known is not None and now_known.store == sender.store:
            self._heard[sender.name] = self.health.time
        elif known is not None and known.usable and known.address != sender.address:
            self._notices.append(Rivalry(known, sender))
        for member in news:
            self._learn(member)

    def exchanged(self, sender: Member, members: Iterable[Member]) -> None:
        """All of ``sender``'s records have come, asked for or not."""
        self.received(sender, members)
        if not self.claimed and self.rival is None and not self.left:
            self._claim(ASKING)

    def news_for(self, name: str, record: Member | None = None) -> tuple[Member, ...]:
        """Records to send along to ``name``: first whatever it should refute, then rumours. ``record`` is what it just said about
        itself, if it did."""
        about = self._others.get(name)
        if about is not None and (about.state is State.ALIVE if record is None else not beats(about, record)):
            about = None
        count = NEWS_LIMIT if about is None else NEWS_LIMIT - 1
        times = self._settings.retransmissions_for(len(self._living) + 1)
        chosen = [self._current(rumour) for rumour in self._rumours.pick(count, times, (name,))]
        return tuple(chosen) if about is None else (about, *chosen)

    def pinged(self, probe: int, answerer: Member) -> None:
        """A probe's ping was answered, directly or to a helper. Comes after `received`."""
        state = self._probes.get(probe)
        if state is None or answerer.name != state.target.name:
            return
        current = self._others.get(answerer.name)
        if answerer.store == state.target.store or (current is not None and current.store == answerer.store):
            del self._probes[probe]
            self._heard[answerer.name] = self.health.time
            self.health.better()

    def ping_failed(self, probe: int) -> None:
        """A probe's direct ping will not be answered: helpers are asked without waiting for the time-out."""
        state = self._probes.get(probe)
        if state is not None and not state.asked:
            delay = state.fail_at - state.ask_at
            state.ask_at = min(state.ask_at, self.health.time)
            state.fail_at = state.ask_at + delay

    def helped(self, probe: int, answerer: Member | None) -> None:
        """A helper answered: with what the target said about itself, or with None when the target didn't answer it either."""
        state = self._probes.get(probe)
        if state is None:
            return
        state.helpers_answered += 1
        if answerer is not None:
            self.pinged(probe, answerer)
        elif state.helpers_answered == state.asked:
            state.fail_at = self.health.time

    def hint_failure(self, name: str) -> None:
        """A call to ``name`` failed: probe it at the next tick."""
        member = self._others.get(name)
        if member is not None and member.usable:
            self._heard.pop(name, None)
            self._at_once[name] = None

    def hint_success(self, name: str) -> None:
        """``name`` has just answered a call."""
        if name in self._others:
            self._heard[name] = self.health.time

    def update_me(self, **fields: Any) -> None:
        """Change what the node says about itself: any of `UPDATABLE`. Raises Invalid, TypeError."""
        if unknown := fields.keys() - UPDATABLE:
            raise TypeError(f"cannot change {', '.join(sorted(unknown))} of a living node")
        incarnation = self.me.incarnation + 1 if self.claimed else ASKING
        new = check_member(replace(self.me, **fields))
        if new != self.me:
            self._become(replace(new, incarnation=incarnation))

    def leave(self) -> None:
        """The node stops on purpose: from now on its record says so, and `tick` sends nothing more."""
        if not self.left:
            self.left = True
            self._become(self.me.at(State.LEFT))

    # Knowledge.

    def _current(self, name: str) -> Member:
        if name == self.me.name:
            return self.rival or self.me
        return self._others[name]

    def _learn(self, record: Member) -> None:
        if record.name == self.me.name:
            self._hear_of_myself(record)
            return
        known = self._others.get(record.name)
        if known is None:
            if not record.usable:
                return
            if len(self._others) >= MEMBERS_LIMIT:
                self.counters.members_refused += 1
                return
        elif not beats(record, known):
            return
        self._adopt(known, record)

    def _adopt(self, known: Member | None, record: Member) -> None:
        name = record.name
        self.revision += 1
        self._others[name] = record
        self._rumours.add(name)
        self._eager[name] = None
        if record.state is State.SUSPECT:
            if known is None or known.state is not State.SUSPECT or known.incarnation != record.incarnation:
                self._suspected[name] = self.health.time
            if self._random.random() * max(1, len(self._living)) < SECOND_OPINIONS:
                self._at_once[name] = None
        else:
            self._suspected.pop(name, None)
        if record.usable:
            self._gone.pop(name, None)
        else:
            self._gone.setdefault(name, self.health.time)
            self._heard.pop(name, None)
        if known is None or known.usable != record.usable:
            self._living = tuple(sorted(other for other, member in self._others.items() if member.usable))
            if record.usable:
                self._turn.insert(self._random.randint(0, len(self._turn)), name)
        if known is None or not record.same_but_for_incarnation(known):
            self._notices.append(Changed(known, record))

    def _hear_of_myself(self, record: Member) -> None:
        """Refute, outbid or yield. Decided on one record, so that two nodes never raise each other without end."""
        if self.left or not beats(record, self.rival or self.me):
            return
        mine = record.store == self.me.store
        if record.incarnation == ASKING and not mine:
            return  # somebody else who asks for the name: whoever claims it first has it
        at_home = record.address == self.me.address
        identity = (record.store, *record.address)
        if not record.usable or (mine and at_home):
            # It is me who is spoken of, or an earlier holder who is dead: nobody else lives under the name.
            self._refute(record, mine)
        elif (mine or at_home) and identity not in self._outbid:
            # My store, or my address, in what should be an earlier life. If it answers once more, it is another living node.
            self._outbid.add(identity)
            self._refute(record, mine)
        else:
            self._yield_to(record)

    def _refute(self, record: Member, mine: bool) -> None:
        if mine and record.boot == self.me.boot and record.state is not State.ALIVE:
            self.counters.refutations += 1
            self.health.worse()
        self._claim(record.incarnation)

    def _claim(self, over: int) -> None:
        """Take the name with an incarnation above ``over``."""
        self.rival = None
        self._become(replace(self.me, incarnation=max(over + 1, self.me.incarnation, first_incarnation(self.me.boot))))

    def _yield_to(self, holder: Member) -> None:
        if self.rival is None or not self.rival.same_but_for_incarnation(holder):
            self._notices.append(Rivalry(holder, self.me))
        self.rival = holder
        self._become(replace(self.me, incarnation=ASKING))

    def _become(self, me: Member) -> None:
        if not me.same_but_for_incarnation(self.me):
            self._notices.append(Changed(self.me, me))
        self.revision += 1
        self.me = me
        self._rumours.add(me.name)
        self._eager[me.name] = None

    # Probing.

    def _start_round(self, time: float, sends: list[Send]) -> None:
        if not self._living:
            return
        successor = self._living[bisect_right(self._living, self.me.name) % len(self._living)]
        self._start_probe(successor, time, sends)
        other = self._next_in_turn(successor)
        if other is not None:
            self._start_probe(other, time, sends)

    def _next_in_turn(self, without: str) -> str | None:
        """The next living name in shuffled turn, so that each has its turn within 2n rounds (SWIM, section 4.3)."""
        if len(self._living) < 2:
            return None
        while True:
            while self._turn:
                name = self._turn.pop()
                if name != without and name in self._others and self._others[name].usable:
                    return name
            self._turn = list(self._living)
            self._random.shuffle(self._turn)

    def _start_probe(self, name: str, time: float, sends: list[Send]) -> None:
        target = self._others.get(name)
        if target is None or not target.usable or any(probe.target.name == name for probe in self._probes.values()):
            return
        self._last_probe += 1
        self.counters.probes += 1
        timeout = self._settings.probe_timeout_s * self.health.factor
        self._probes[self._last_probe] = _Probe(target, time, time + timeout, time + 2 * timeout)
        sends.append(Ping(name, self._last_probe, self.news_for(name), 2 * timeout))

    def _follow_up_probes(self, time: float, sends: list[Send]) -> None:
        for number, probe in list(self._probes.items()):
            known = self._others.get(probe.target.name)
            if known is None or known.store != probe.target.store:
                del self._probes[number]  # another has taken its place meanwhile
                continue
            just_asked = not probe.asked and time >= probe.ask_at and self._ask_helpers(number, probe, sends) > 0
            if not just_asked and time >= probe.fail_at:
                self._probe_failed(number, probe, known)

    def _ask_helpers(self, number: int, probe: _Probe, sends: list[Send]) -> int:
        """How many were asked: none when there is nobody to ask."""
        name = probe.target.name
        able = [other for other in self._living if other != name and self._others[other].state is State.ALIVE]
        helpers = self._random.sample(able, min(self._settings.indirect_probes, len(able)))
        probe.asked = len(helpers)
        wait_s = probe.fail_at - probe.ask_at
        # A helper stops waiting in time for its own answer to come back.
        sends += [
            AskHelper(helper, probe.target, number, self.news_for(helper), HELPER_SHARE * wait_s, wait_s)
            for helper in helpers
        ]
        return probe.asked

    def _probe_failed(self, number: int, probe: _Probe, known: Member) -> None:
        del self._probes[number]
        if self._heard.get(known.name, NEVER) > probe.started:
            return
        self.counters.probes_failed += 1
        if probe.asked and not probe.helpers_answered:
            self.health.worse()
        if known.state is State.ALIVE and known.incarnation == probe.target.incarnation:
            self.counters.suspicions += 1
            self._adopt(known, known.at(State.SUSPECT))

    def _bury(self, time: float) -> None:
        """Suspects whose time is up are dead; the long dead are forgotten."""
        patience = self._settings.suspicion_for(len(self._living) + 1) * self.health.factor
        for name, since in list(self._suspected.items()):
            if time - since < patience:
                continue
            if self._heard.get(name, NEVER) > since:
                self._suspected[name] = time  # it lives; its refutation is under way
                continue
            self.counters.deaths += 1
            self._adopt(self._others[name], self._others[name].at(State.DEAD))
        for name, since in list(self._gone.items()):
            if time - since >= self._settings.forget_s:
                self._forget(name)

    def _forget(self, name: str) -> None:
        self.revision += 1
        del self._others[name], self._gone[name]
        self._eager.pop(name, None)
        self._rumours.drop(name)

    # Gossip.

    def _push(self, sends: list[Send]) -> None:
        """Tell a few members at once of what is new: first those who are suspected, since they can refute it."""
        if not self._eager:
            return
        accused = [name for name in self._eager if name in self._suspected][:EAGER_FANOUT]
        fanout = min(EAGER_FANOUT, len(self._living))
        chosen = dict.fromkeys((*accused, *self._random.sample(self._living, fanout)))
        self._eager.clear()
        for name in chosen:
            self.counters.eager_pushes += 1
            sends.append(Ping(name, None, self.news_for(name), self._settings.probe_timeout_s))

    def _seek_reunion(self, sends: list[Send]) -> None:
        """Try one of the dead, in case it is the network that died: each side of a split does, and a full exchange mends it."""
        dead = [name for name in self._gone if self._others[name].state is State.DEAD]
        if dead:
            sends.append(Exchange(self._random.choice(dead)))

    def _jitter(self, seconds: float) -> float:
        """Between 0.8 and 1.2 times as many seconds, so that nodes started together don't act together."""
        return seconds * self._random.uniform(0.8, 1.2)
