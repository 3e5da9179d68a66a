"""The pure decisions: which endpoint, whether to try again, and when."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.endpoints import (
    DEFAULT_ENDPOINT,
    QUARANTINE_LIMIT_S,
    QUARANTINE_S,
    Endpoints,
    endpoints_from_environment,
    parse_endpoint,
)
from client.errors import Invalid, Unavailable
from client.retry import Budget, Failure, RetryPolicy

REFUSED = Failure(Unavailable("refused"), reached=False, maybe_executed=False)
BUSY = Failure(Unavailable("busy"), reached=True, maybe_executed=False)


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("127.0.0.1:7480", "http://127.0.0.1:7480"),
        (" http://node:7480/ ", "http://node:7480"),
        ("https://store.example/holdfast/", "https://store.example/holdfast"),
        ("[::1]:7480", "http://[::1]:7480"),
    ],
)
def test_endpoints_as_people_write_them(text: str, url: str) -> None:
    assert parse_endpoint(text) == url


@pytest.mark.parametrize(
    "text", ["", "ftp://node", "http://", "http://node:99999", "http://u:p@node", "http://node/?a"]
)
def test_what_is_no_endpoint(text: str) -> None:
    with pytest.raises(Invalid, match="not an endpoint"):
        parse_endpoint(text)


def test_endpoints_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOLDFAST_ENDPOINTS", raising=False)
    assert endpoints_from_environment() == [DEFAULT_ENDPOINT]
    monkeypatch.setenv("HOLDFAST_ENDPOINTS", "http://a:1, http://b:2,")
    assert Endpoints(endpoints_from_environment(), now=lambda: 0.0).urls == ("http://a:1", "http://b:2")
    with pytest.raises(Invalid, match="no endpoint"):
        Endpoints([], now=lambda: 0.0)


def test_rotation_and_quarantine() -> None:
    now = 0.0
    endpoints = Endpoints(["a", "b", "c"], now=lambda: now)
    a, b, c = endpoints.urls
    assert [endpoints.choose() for _ in range(4)] == [a, b, c, a]
    endpoints.failed(b)
    assert [endpoints.choose() for _ in range(3)] == [c, a, c]
    now = QUARANTINE_S + 0.01
    assert b in {endpoints.choose() for _ in range(3)}
    for _ in range(20):
        endpoints.failed(b)
    now += QUARANTINE_LIMIT_S - 0.01
    assert b not in {endpoints.choose() for _ in range(6)}
    endpoints.succeeded(b)
    assert b in {endpoints.choose() for _ in range(3)}
    endpoints.failed(a)
    endpoints.failed(c)
    endpoints.failed(c)
    endpoints.failed(b)
    endpoints.failed(b)
    endpoints.failed(b)
    assert endpoints.choose() == a  # all are bad: the one that is due first
    assert endpoints.choose(avoid={a}) == c


@given(
    endpoints=st.integers(1, 6),
    failures=st.lists(st.tuples(st.sampled_from([REFUSED, BUSY]), st.floats(0, 5)), max_size=200),
    seed=st.integers(0, 1000),
)
def test_a_budget_ends_and_never_pauses_too_long(
    endpoints: int, failures: list[tuple[Failure, float]], seed: int
) -> None:
    policy = RetryPolicy(deadline_s=10, unreachable_s=2, attempts=30)
    now = 100.0
    budget = Budget(policy, endpoints, Random(seed), now)
    for attempts, (failure, took) in enumerate(failures, start=1):
        now += took
        pause = budget.failed(f"e{attempts % endpoints}", failure, now)
        if pause is None:
            break
        assert 0 <= pause <= policy.backoff_limit_s
        assert attempts < policy.attempts
        if attempts % endpoints == 0:
            assert now + pause - 100.0 <= policy.deadline_s
        now += pause


def test_each_endpoint_is_tried_before_any_pause_or_end() -> None:
    budget = Budget(RetryPolicy(), 3, Random(1), 0.0)
    assert budget.failed("a", REFUSED, 100.0) == 0.0
    assert budget.failed("b", REFUSED, 200.0) == 0.0
    assert budget.failed("c", REFUSED, 300.0) is None


def test_a_cluster_that_is_not_there_is_given_up_sooner_than_one_that_is_busy() -> None:
    policy = RetryPolicy(deadline_s=30, unreachable_s=3)
    assert Budget(policy, 1, Random(1), 0.0).failed("a", REFUSED, 3.0) is None
    assert Budget(policy, 1, Random(1), 0.0).failed("a", BUSY, 3.0) is not None
    budget = Budget(policy, 1, Random(1), 0.0)
    budget.progress(1000.0)
    assert budget.failed("a", BUSY, 1003.0) is not None
