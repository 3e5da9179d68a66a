"""The machine by itself: one node, its events and what it sends."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.errors import Invalid
from cluster.membership import swim as swim_module
from cluster.membership.member import ASKING, Member, MemberInfo, State, beats, first_incarnation, newest
from cluster.membership.settings import NEWS_LIMIT, TICK_S, MembershipSettings
from cluster.membership.swim import AskHelper, Changed, Exchange, Ping, Rivalry, Send, Swim

SETTINGS = MembershipSettings(sync_interval_s=1000.0, reunion_interval_s=1000.0)


def member(name: str, incarnation: int = 1, state: State = State.ALIVE, store: bytes = b"", port: int = 1) -> Member:
    store = store or name.encode().ljust(8, b"-")[:8]
    return Member(name, name, port, incarnation, state, name, 1, store, 1, "", 0, "1")


class Alone:
    """A machine whose messages go nowhere."""

    def __init__(self, *others: str, settings: MembershipSettings = SETTINGS) -> None:
        self.now = 50.0
        info = MemberInfo("me", "home", 7482, b"my-store", 3)
        self.swim = Swim(info, settings, Random(1), self.now)
        if others:
            self.swim.exchanged(member(others[0]), [member(name) for name in others[1:]])
            self.swim.notices()

    def tick(self, times: int = 1) -> list[Send]:
        sends: list[Send] = []
        for _ in range(times):
            self.now += TICK_S
            sends += self.swim.tick(self.now)
            self.swim.check()
        return sends

    def state_of(self, name: str) -> State:
        return self.swim.others[name].state

    def tick_until_suspect(self, name: str) -> None:
        for _ in range(100):
            self.tick()
            if self.state_of(name) is State.SUSPECT:
                return
        raise AssertionError(f"{name} is never suspected")


names = st.sampled_from(["a", "b", "c", "me"])
heard = st.builds(
    member,
    names,
    st.integers(0, 1 << 23),
    st.sampled_from(State),
    st.sampled_from([b"store--1", b"store--2", b"my-store"]),
    st.integers(1, 2),
)
events = st.one_of(
    st.tuples(st.just("received"), heard, st.lists(heard, max_size=4)),
    st.tuples(st.just("exchanged"), heard, st.lists(heard, max_size=4)),
    st.tuples(st.just("tick"), st.integers(1, 12), st.none()),
    st.tuples(st.just("failure"), names, st.none()),
    st.tuples(st.just("success"), names, st.none()),
    st.tuples(st.just("update"), st.integers(0, 5), st.none()),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(events, max_size=30))
def test_whatever_is_heard_the_invariants_hold_and_knowledge_only_grows(
    history: list[tuple[str, object, object]],
) -> None:
    alone = Alone()
    swim = alone.swim
    for kind, one, many in history:
        before = dict(swim.others)
        if kind in {"received", "exchanged"}:
            assert isinstance(one, Member)
            assert isinstance(many, list)
            getattr(swim, kind)(one, many)
            for record in (one, *many):
                if record.name == "me":
                    holder = swim.rival or swim.me
                    foreign = record.store != swim.me.store
                    assert not beats(record, holder) or (foreign and record.incarnation == ASKING)
                elif record.usable or record.name in before:
                    assert not beats(record, swim.others[record.name])
        elif kind == "tick":
            assert isinstance(one, int)
            for send in alone.tick(one):
                if not isinstance(send, Exchange):
                    assert len(send.news) <= NEWS_LIMIT
                assert getattr(send, "to", None) != "me"
        elif kind == "update":
            assert isinstance(one, int)
            swim.update_me(layout_version=one)
        else:
            assert isinstance(one, str)
            (swim.hint_failure if kind == "failure" else swim.hint_success)(one)
        swim.check()
        for name, record in before.items():
            assert newest(record, swim.others[name]) == swim.others[name]


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.builds(member, st.sampled_from("abc"), st.integers(0, 3), st.sampled_from(State)), max_size=8),
    st.randoms(),
)
def test_nodes_that_heard_the_same_of_a_known_name_agree(records: list[Member], random: Random) -> None:
    shuffled = list(records)
    random.shuffle(shuffled)
    one, other = Alone("a", "b", "c"), Alone("a", "b", "c")
    one.swim.received(member("a"), records)
    other.swim.received(member("a"), shuffled)
    assert one.swim.others == other.swim.others


@given(st.sampled_from([State.SUSPECT, State.DEAD, State.LEFT]), st.integers(0, 1 << 24))
def test_whatever_is_said_of_it_a_node_refutes(state: State, incarnation: int) -> None:
    alone = Alone("a")
    slander = replace(alone.swim.me, incarnation=incarnation, state=state)
    before = alone.swim.me
    alone.swim.received(member("a"), [slander])
    assert beats(alone.swim.me, slander)
    assert alone.swim.me.state is State.ALIVE
    assert (alone.swim.me == before) == beats(before, slander)
    assert alone.swim.me in alone.swim.news_for("a"), "the refutation is not told"


def test_a_node_claims_its_name_after_its_first_exchange() -> None:
    alone = Alone()
    assert alone.swim.me.incarnation == ASKING
    alone.swim.received(member("a"), ())
    assert not alone.swim.claimed
    alone.swim.exchanged(member("a"), ())
    assert alone.swim.me.incarnation == first_incarnation(3)


def test_a_probe_goes_from_direct_to_helpers_to_suspicion_to_death() -> None:
    alone = Alone("a", "b", "c", "d", "e")
    sends = alone.tick()
    probes = {send.to: send.probe for send in sends if isinstance(send, Ping) and send.probe is not None}
    assert len(probes) == 2, "the successor and one other"
    assert "a" in probes, "'a' follows 'me' in the ring"
    dead = probes["a"]
    assert dead is not None
    asked: list[AskHelper] = []
    for _ in range(20):
        if alone.state_of("a") is not State.ALIVE:
            break
        sends = alone.tick()
        for send in sends:
            if isinstance(send, Ping) and send.probe is not None and send.to != "a":
                alone.swim.pinged(send.probe, alone.swim.others[send.to])
            if isinstance(send, AskHelper) and send.probe == dead:
                asked.append(send)
        for other in probes.keys() - {"a"}:
            number = probes[other]
            assert number is not None
            alone.swim.pinged(number, alone.swim.others[other])
    assert len({send.helper for send in asked}) == len(asked) == SETTINGS.indirect_probes
    assert "a" not in {send.helper for send in asked}
    assert alone.state_of("a") is State.SUSPECT
    assert alone.swim.health.score > 0, "no helper answered: perhaps it is me"
    for _ in range(60):
        for send in alone.tick():
            if isinstance(send, Ping) and send.probe is not None and send.to != "a":
                alone.swim.pinged(send.probe, alone.swim.others[send.to])
    assert alone.state_of("a") is State.DEAD
    changes = [
        notice.new.state for notice in alone.swim.notices() if isinstance(notice, Changed) and notice.new.name == "a"
    ]
    assert changes == [State.SUSPECT, State.DEAD]


def test_helpers_that_all_say_no_end_the_probe_at_once_and_clear_my_name() -> None:
    alone = Alone("a", "b", "c")
    (probe,) = [send.probe for send in alone.tick() if isinstance(send, Ping) and send.to == "a" and send.probe]
    alone.swim.ping_failed(probe)
    helpers = [send for send in alone.tick() if isinstance(send, AskHelper) and send.probe == probe]
    assert len(helpers) == 2
    for _ in helpers:
        alone.swim.helped(probe, None)
    alone.tick()
    assert alone.state_of("a") is State.SUSPECT
    assert alone.swim.health.score == 0


@pytest.mark.parametrize("how", ["direct", "helper", "call", "message"])
def test_any_sign_of_life_ends_a_probe_well(how: str) -> None:
    alone = Alone("a", "b")
    (probe,) = [send.probe for send in alone.tick() if isinstance(send, Ping) and send.to == "a" and send.probe]
    alone.tick(7)
    if how == "direct":
        alone.swim.pinged(probe, alone.swim.others["a"])
    elif how == "helper":
        alone.swim.helped(probe, alone.swim.others["a"])
    elif how == "call":
        alone.swim.hint_success("a")
    else:
        alone.swim.received(alone.swim.others["a"], ())
    alone.tick(3)
    assert alone.state_of("a") is State.ALIVE


def test_another_store_under_the_name_is_no_answer() -> None:
    alone = Alone("a", "b")
    (probe,) = [send.probe for send in alone.tick() if isinstance(send, Ping) and send.to == "a" and send.probe]
    impostor = member("a", ASKING, store=b"impostor", port=9)
    alone.swim.received(impostor, ())
    alone.swim.pinged(probe, impostor)
    assert Rivalry(alone.swim.others["a"], impostor) in alone.swim.notices()
    alone.tick_until_suspect("a")


def test_a_suspect_that_shows_itself_gets_more_time() -> None:
    alone = Alone("a", "b")
    alone.tick_until_suspect("a")
    for _ in range(60):
        alone.tick()
        alone.swim.hint_success("a")
        assert alone.state_of("a") is State.SUSPECT
    alone.tick(60)
    assert alone.state_of("a") is State.DEAD


def test_a_failed_call_brings_the_probe_forward() -> None:
    alone = Alone(*"abcdefgh")
    alone.tick()
    sends = alone.tick()
    assert not [send for send in sends if isinstance(send, Ping) and send.probe]
    alone.swim.hint_failure("f")
    sends = alone.tick()
    assert [send.to for send in sends if isinstance(send, Ping) and send.probe] == ["f"]
    alone.swim.hint_failure("unknown")
    assert not [send for send in alone.tick() if isinstance(send, Ping) and send.probe]


def test_the_accused_is_told_first_and_in_every_ping() -> None:
    alone = Alone(*"abcdefghijklmnop")
    alone.tick(40)  # no answers: by now there are suspects, and the rumours of the start are told
    suspect = member("q", 1)
    alone.swim.received(suspect, ())
    alone.tick(30)
    accused = alone.swim.others["q"].at(State.SUSPECT)
    alone.swim.received(member("b", 9), [accused])
    pushed = [send for send in alone.tick() if isinstance(send, Ping) and send.to == "q"]
    assert pushed
    assert all(send.news[0] == accused for send in pushed)
    assert alone.swim.news_for("q")[0] == accused
    assert alone.swim.news_for("q", suspect)[0] == accused
    assert accused not in alone.swim.news_for("q", replace(suspect, incarnation=5))


def test_gossip_is_bounded_and_drops_out() -> None:
    alone = Alone(*(f"n{number}" for number in range(100)))
    times = SETTINGS.retransmissions_for(101)
    told: dict[str, int] = {}
    for _ in range(10_000):
        news = alone.swim.news_for("nobody")
        if not news:
            break
        assert len(news) <= NEWS_LIMIT
        for record in news:
            told[record.name] = told.get(record.name, 0) + 1
    assert set(told) == {"me", *(f"n{number}" for number in range(100))}
    assert set(told.values()) == {times}


def test_unknown_dead_are_not_learnt_and_known_dead_are_forgotten() -> None:
    alone = Alone("a", settings=replace(SETTINGS, forget_s=5.0))
    alone.swim.received(member("a"), [member("b", 4, State.DEAD), member("c", 4, State.LEFT)])
    assert set(alone.swim.others) == {"a"}
    alone.swim.received(member("a"), [member("b", 5)])
    alone.swim.received(member("a"), [member("b", 5, State.DEAD)])
    alone.tick(45)
    assert "b" in alone.swim.others
    alone.tick(10)
    assert "b" not in alone.swim.others
    alone.swim.received(member("a"), [member("b", 6)])
    assert alone.state_of("b") is State.ALIVE


def test_the_dead_are_tried_now_and_then_the_departed_are_not() -> None:
    alone = Alone("a", "b", "c", settings=replace(SETTINGS, reunion_interval_s=1.0))
    alone.swim.received(member("c"), [member("a", 5, State.DEAD), member("b", 5, State.LEFT)])
    tried = [send.to for send in alone.tick(20) if isinstance(send, Exchange)]
    assert tried
    assert set(tried) == {"a"}


def test_the_number_of_members_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(swim_module, "MEMBERS_LIMIT", 2)
    alone = Alone("a", "b", "c")
    assert set(alone.swim.others) == {"a", "b"}
    assert alone.swim.counters.members_refused == 1


def test_updates_raise_the_incarnation_and_identity_cannot_be_changed() -> None:
    alone = Alone("a")
    before = alone.swim.me
    alone.swim.update_me(layout_version=7)
    assert alone.swim.me == replace(before, layout_version=7, incarnation=before.incarnation + 1)
    alone.swim.update_me(layout_version=7)
    assert alone.swim.me.incarnation == before.incarnation + 1, "nothing changed"
    assert Changed(before, alone.swim.me) in alone.swim.notices()
    with pytest.raises(TypeError, match="store"):
        alone.swim.update_me(store=b"12345678")
    with pytest.raises(Invalid):
        alone.swim.update_me(zone="z" * 300)


def test_a_node_that_left_is_silent_and_does_not_come_back() -> None:
    alone = Alone("a", "b")
    alone.swim.leave()
    assert alone.swim.me.state is State.LEFT
    alone.swim.received(member("a"), [replace(alone.swim.me, incarnation=1 << 40, state=State.DEAD)])
    assert alone.swim.me.state is State.LEFT
    assert alone.tick(20) == []


def test_it_yields_to_a_living_holder_elsewhere_and_returns_when_that_one_is_dead() -> None:
    alone = Alone()
    holder = replace(member("me", 5, store=b"anothers"), host="elsewhere")
    alone.swim.exchanged(member("a"), [holder])
    assert (alone.swim.rival, alone.swim.me.incarnation) == (holder, ASKING)
    assert alone.swim.notices()[-1] == Rivalry(holder, alone.swim.me)
    assert holder in alone.swim.everything()
    alone.swim.received(member("a"), [holder.at(State.SUSPECT)])
    assert alone.swim.rival == holder.at(State.SUSPECT)
    alone.swim.received(member("a"), [holder.at(State.DEAD)])
    assert beats(alone.swim.me, holder.at(State.DEAD)), "it doesn't come back"
    alone.swim.check()


def test_it_takes_its_own_address_back_once_and_yields_to_whoever_answers() -> None:
    alone = Alone()
    holder = replace(member("me", 1 << 30, store=b"anothers"), host="home", port=7482)
    alone.swim.exchanged(member("a"), [holder])
    assert alone.swim.me.incarnation == holder.incarnation + 1
    answer = replace(holder, incarnation=alone.swim.me.incarnation + 1)
    alone.swim.received(member("a"), [answer])
    assert alone.swim.rival == answer


def test_it_does_not_yield_to_somebody_who_merely_asks_for_the_name() -> None:
    alone = Alone()
    asking = replace(member("me", ASKING, store=b"zzzzzzzz"), host="elsewhere")
    assert beats(asking, alone.swim.me)
    alone.swim.exchanged(member("a"), [asking])
    assert alone.swim.rival is None
    assert alone.swim.claimed
