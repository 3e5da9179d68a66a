"""The Bearer token, the rule about listening, and pages of other sites."""

from __future__ import annotations

import pytest

from cluster.errors import Invalid, Unauthorized
from node.api.auth import BearerToken, check_listen_address, check_not_cross_site, is_loopback


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
        check_not_cross_site(method, site)
    for site in ("cross-site", "same-site", "Cross-Site"):
        with pytest.raises(Unauthorized):
            check_not_cross_site(method, site)
    check_not_cross_site("GET", "cross-site")
