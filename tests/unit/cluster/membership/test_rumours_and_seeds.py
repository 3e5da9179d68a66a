"""The small parts: rumours, seeds, local health, settings."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.errors import Invalid
from cluster.membership.health import LATENESS_DECAY, SCORE_LIMIT, STEP_LIMIT_S, LocalHealth
from cluster.membership.rumours import Rumours
from cluster.membership.seeds import SEEDS_AT_ONCE, Seeds, who_answered
from cluster.membership.settings import NEWS_LIMIT, TICK_S, MembershipSettings

SETTINGS = MembershipSettings()


def test_a_seed_is_unmet_until_somebody_has_answered_there() -> None:
    seeds = Seeds([("a", 1), ("b", 1)], SETTINGS)
    assert seeds.unmet() == [("a", 1), ("b", 1)]
    assert seeds.due(0.0, {"me"}, alone=True, forming=False) == [("a", 1), ("b", 1)]
    seeds.failed(("a", 1), 0.0)
    seeds.answered(("b", 1), "n2", 0.0)
    assert seeds.unmet() == [("a", 1)]
    seeds.answered(("a", 1), "me", 1.0)
    assert seeds.unmet() == []


@given(st.sets(st.text("abc", min_size=1, max_size=3)), st.integers(1, NEWS_LIMIT), st.integers(1, 8))
def test_each_rumour_is_told_so_many_times_and_then_dropped(names: set[str], count: int, times: int) -> None:
    rumours = Rumours()
    for name in names:
        rumours.add(name)
    told = dict.fromkeys(names, 0)
    for _ in range(len(names) * times):
        if not rumours:
            break
        chosen = rumours.pick(count, times)
        assert 0 < len(chosen) <= count
        assert len(set(chosen)) == len(chosen)
        for name in chosen:
            told[name] += 1
    assert all(number == times for number in told.values())
    assert len(rumours) == 0


def test_the_least_told_comes_first_and_news_begins_afresh() -> None:
    rumours = Rumours()
    rumours.add("old")
    assert rumours.pick(1, 3) == ["old"]
    rumours.add("new")
    assert rumours.pick(1, 3) == ["new"]
    rumours.pick(2, 3)
    rumours.add("old")
    assert rumours.pick(1, 3) == ["old"]
    assert rumours.pick(5, 3, without=["old"]) == ["new"]
    rumours.drop("old")
    assert "old" not in rumours
    assert len(rumours) == 0


def test_a_seed_is_tried_until_it_leads_to_a_living_member() -> None:
    seeds = Seeds([("a", 1)], SETTINGS)
    assert seeds.due(0.0, {"me"}, alone=True, forming=False) == [("a", 1)]
    assert seeds.due(0.0, {"me"}, alone=True, forming=False) == [], "it is being tried"
    seeds.failed(("a", 1), 1.0)
    assert seeds.due(1.4, {"me"}, alone=True, forming=False) == []
    assert seeds.due(1.5, {"me"}, alone=True, forming=False) == [("a", 1)]
    seeds.answered(("a", 1), "other", 1.6)
    assert seeds.due(100.0, {"me", "other"}, alone=False, forming=False) == []
    assert seeds.due(100.0, {"me", "third"}, alone=False, forming=False) == [("a", 1)], "its member is gone"


def test_seeds_back_off_but_not_for_long_while_alone() -> None:
    seeds = Seeds([("a", 1)], SETTINGS)
    time, waits = 0.0, []
    for _ in range(8):
        assert seeds.due(time, {"me", "other"}, alone=False, forming=False) == [("a", 1)]
        seeds.failed(("a", 1), time)
        before = time
        while not (found := seeds.due(time, {"me", "other"}, alone=False, forming=False)):
            time += 0.125
        waits.append(time - before)
        seeds.failed(found[0], time)
        time += SETTINGS.seed_retry_limit_s
    assert waits[0] == SETTINGS.seed_retry_s
    assert max(waits) == SETTINGS.seed_retry_limit_s
    seeds.due(time, {"me", "other"}, alone=False, forming=False)
    seeds.failed(("a", 1), time)
    assert seeds.due(time, {"me"}, alone=True, forming=False) == []
    assert seeds.due(time + SETTINGS.seed_retry_alone_s, {"me"}, alone=True, forming=False) == [("a", 1)]


def test_until_there_is_a_layout_a_seed_is_asked_again_although_it_has_answered() -> None:
    seeds = Seeds([("a", 1)], SETTINGS)
    assert seeds.due(0.0, {"me"}, alone=True, forming=True) == [("a", 1)]
    seeds.answered(("a", 1), "me", 0.0)
    assert seeds.due(0.4, {"me"}, alone=True, forming=True) == []
    assert seeds.due(1.0, {"me"}, alone=True, forming=True) == [("a", 1)], "it may stand for others too by now"
    seeds.answered(("a", 1), "other", 1.0)
    assert seeds.due(10.0, {"me", "other"}, alone=False, forming=True) == []
    assert seeds.due(100.0, {"me", "other"}, alone=False, forming=False) == []
    assert seeds.due(11.6, {"me", "other"}, alone=False, forming=True) == [("a", 1)]


def test_a_node_that_is_alone_asks_again_also_with_a_layout() -> None:
    seeds = Seeds([("a", 1)], SETTINGS)
    seeds.answered(("a", 1), "me", 0.0)
    assert seeds.due(9.0, {"me"}, alone=True, forming=False) == []
    assert seeds.due(11.0, {"me"}, alone=True, forming=False) == [("a", 1)]
    seeds.answered(("a", 1), "me", 11.0)
    assert seeds.due(30.0, {"me", "other"}, alone=False, forming=False) == []


def test_an_address_where_nobody_answered_is_unmet_although_others_of_its_name_did() -> None:
    seeds = Seeds([("all", 1), ("b", 2)], SETTINGS)
    seeds.answered(("b", 2), "n2", 0.0)
    seeds.answered(("all", 1), "n2", 0.0, ["10.0.0.3"])
    assert seeds.unmet() == [("10.0.0.3", 1)]
    tried = []
    for tenth in range(100):
        time = tenth / 10
        if seeds.due(time, {"me", "n2"}, alone=False, forming=True):
            tried.append(time)
            seeds.answered(("all", 1), "n2", time, ["10.0.0.3"])
    assert tried == [0.5, 1.5, 3.5, 7.5]
    assert seeds.due(100.0, {"me", "n2"}, alone=False, forming=False) == [], "there is a layout by now"
    seeds.answered(("all", 1), "n2", 100.0, [])
    assert seeds.unmet() == []


@pytest.mark.parametrize(
    ("met", "name", "silent"),
    [
        ({}, None, ()),
        ({"a": None}, None, ()),
        ({"a": "n2"}, "n2", ()),
        ({"a": "me"}, "me", ()),
        ({"10.0.0.1": "me", "10.0.0.2": "n2"}, "n2", ()),
        ({"10.0.0.1": "me", "10.0.0.2": None}, "me", ("10.0.0.2",)),
        ({"10.0.0.1": None, "10.0.0.2": "n2", "10.0.0.3": None}, "n2", ("10.0.0.1", "10.0.0.3")),
        ({"10.0.0.1": "me", "10.0.0.2": "me"}, "me", ()),
        ({"127.0.0.1": "me", "::1": None}, "me", ()),
        ({"127.0.0.1": "me", "127.0.0.2": None, "::1": "me"}, "me", ("127.0.0.2",)),
        ({"10.0.0.1": None, "10.0.0.2": None}, None, ()),
        ({"10.0.0.1": "me", "fd00::1": "me", "10.0.0.2": "n2", "fd00::2": None}, "n2", ()),
    ],
)
def test_a_name_of_many_machines_leads_to_the_others(
    met: dict[str, str | None], name: str | None, silent: tuple[str, ...]
) -> None:
    assert who_answered("me", met) == (name, silent)


def test_only_a_few_seeds_are_tried_at_once() -> None:
    seeds = Seeds([("a", port) for port in range(1, 11)], SETTINGS)
    tried = [seeds.due(0.0, {"me"}, alone=True, forming=False) for _ in range(4)]
    assert [len(addresses) for addresses in tried] == [SEEDS_AT_ONCE, SEEDS_AT_ONCE, 2, 0]
    seeds.add(("a", 1))
    assert seeds.due(0.0, {"me"}, alone=True, forming=False) == []


def test_time_in_which_the_loop_stood_still_does_not_count() -> None:
    health = LocalHealth(100.0, TICK_S)
    assert health.advance(100.1) == pytest.approx(0.1)
    assert health.advance(160.1) == pytest.approx(0.1 + STEP_LIMIT_S)
    assert health.lateness_s == pytest.approx(60.0 - TICK_S)
    assert health.score == 1
    assert health.advance(160.2) == pytest.approx(0.2 + STEP_LIMIT_S)
    assert health.lateness_s == pytest.approx((60.0 - TICK_S) * LATENESS_DECAY)
    assert health.advance(150.0) == pytest.approx(0.2 + STEP_LIMIT_S), "time never goes back"


def test_the_score_is_bounded_and_time_outs_at_most_double() -> None:
    health = LocalHealth(0.0, TICK_S)
    health.better()
    assert (health.score, health.factor) == (0, 1.0)
    for _ in range(20):
        health.worse()
    assert (health.score, health.factor) == (SCORE_LIMIT, 2.0)
    health.better()
    assert health.score == SCORE_LIMIT - 1


def test_settings_must_be_positive_and_scale_with_the_logarithm() -> None:
    with pytest.raises(Invalid, match="probe_timeout_s"):
        MembershipSettings(probe_timeout_s=0)
    assert SETTINGS.suspicion_for(1) == SETTINGS.suspicion_s
    assert SETTINGS.suspicion_for(1024) == pytest.approx(SETTINGS.suspicion_s + 10 * SETTINGS.suspicion_hop_s)
    assert [SETTINGS.retransmissions_for(nodes) for nodes in (1, 5, 50, 1000)] == [2, 6, 12, 20]
