"""The Bearer token, the rule about listening, and pages of other sites."""

from __future__ import annotations

import pytest

from cluster.errors import Invalid, Unauthorized
from node.api.auth import ApiHosts, BearerToken, check_listen_address, check_not_cross_site, is_loopback
from node.api.problem import RefusalError
from tests.unit.node.api.conftest import Harness, start, stop


def test_the_token_itself_passes() -> None:
    token = BearerToken("s3cret")
    token.check("Bearer s3cret")
    token.check("bearer  s3cret ")


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        "Bearer s3cre",
        "Bearer s3cret2",
        "Bearer S3CRET",
        "Basic s3cret",
        "s3cret",
        "Bearer \udcff",
        "Bearer é",
    ],
)
def test_anything_else_does_not(header: str | None) -> None:
    with pytest.raises(Unauthorized) as caught:
        BearerToken("s3cret").check(header)
    assert "s3cret" not in caught.value.message


def test_the_token_is_not_shown() -> None:
    assert "s3cret" not in repr(BearerToken("s3cret"))


@pytest.mark.parametrize("token", ["", "two words", "new\nline", "tab\t", "ü"])
def test_tokens_that_no_header_can_carry_are_refused(token: str) -> None:
    with pytest.raises(Invalid):
        BearerToken(token)


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.8.8.8", "::1", "[::1]", "localhost", "LocalHost", "::ffff:127.0.0.1"]
)
def test_loopback_needs_no_token(host: str) -> None:
    assert is_loopback(host)
    check_listen_address(host, has_token=False, allow_anonymous=False)


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "::", "", "10.0.0.1", "192.168.1.5", "node-1", "localhost.evil.example", "::ffff:10.0.0.1"]
)
def test_beyond_loopback_needs_a_token_or_a_statement(host: str) -> None:
    assert not is_loopback(host)
    with pytest.raises(Invalid, match="allow_anonymous"):
        check_listen_address(host, has_token=False, allow_anonymous=False)
    check_listen_address(host, has_token=True, allow_anonymous=False)
    check_listen_address(host, has_token=False, allow_anonymous=True)


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
def test_changes_from_other_sites_are_refused(method: str) -> None:
    for site in (None, "same-origin", "none"):
        check_not_cross_site(method, site, None, "n1:7480")
        check_not_cross_site(method, site, "http://N1:7480", "n1:7480")
    for site in ("same-origin", "none"):  # a proxy has changed the host
        check_not_cross_site(method, site, "https://store.example", "10.0.0.1:7480")
    for site in ("cross-site", "same-site", "Cross-Site"):
        with pytest.raises(Unauthorized):
            check_not_cross_site(method, site, None, "n1:7480")
    for origin in ("https://evil.example", "null", "", "http://n1", "http://n1:8080"):
        for host in ("n1:7480", None):
            with pytest.raises(Unauthorized):
                check_not_cross_site(method, None, origin, host)
    check_not_cross_site("GET", "cross-site", "https://evil.example", "n1:7480")


HOSTS = ApiHosts(("N1.example.org.", "*.svc.example"))


@pytest.mark.parametrize(
    "host",
    [
        *(
            None,
            "",
            "127.0.0.1:7480",
            "10.1.2.3",
            "[::1]:7480",
            "[fe80::1]",
            "localhost:7480",
            "n1",
            "n1:7480",
            "app.localhost",
        ),
        *("n1.example.org", "N1.Example.org.:7480", "a.svc.example:80", "a.b.svc.example"),
        *("localhost.localdomain", "n1.local", "host.docker.internal:7480", "n.holdfast.svc.cluster.local"),
    ],
)
def test_an_open_api_is_asked_by_its_address_or_by_a_name_that_it_knows(host: str | None) -> None:
    HOSTS.check(host)


@pytest.mark.parametrize(
    "host",
    [
        *("evil.example", "evil.example:7480", "n1.example.org.evil.example", "xn1.example.org", "svc.example"),
        *("127.0.0.1.evil.example", "localhost.evil.example", "127.0.0.1@evil.example", "1.2.3"),
    ],
)
def test_and_by_no_other(host: str) -> None:
    with pytest.raises(RefusalError) as caught:
        HOSTS.check(host)
    assert (caught.value.status, caught.value.error.details["field"]) == (421, "Host")
    ApiHosts(("*",)).check(host)


async def test_a_page_that_took_the_apis_address_reads_nothing(http: Harness) -> None:
    assert (await http.request("GET", "/v1/volumes", Host="evil.example:7480")).status == 421
    assert (await http.request("GET", "/v1/nowhere", Host="evil.example:7480")).status == 421
    assert (await http.request("GET", "/healthz", Host="lb.example")).status == 200
    assert (await http.request("GET", "/v1/volumes", Host="n1.example.org")).status == 200
    answer = await http.request("POST", "/v1/layout/abort", Host="n1.example.org", Origin="http://evil.example")
    assert answer.status == 401
    assert http.cluster.calls == []


async def test_with_a_token_any_name_will_do() -> None:
    harness = await start("s3cret")
    try:
        told = {"Authorization": "Bearer s3cret", "Host": "lb.example"}
        assert (await harness.request("GET", "/v1/volumes", given=told)).status == 200
        answer = await harness.request("POST", "/v1/layout/abort", Origin="https://store.example", given=told)
        assert answer.status == 200
    finally:
        await stop(harness)
