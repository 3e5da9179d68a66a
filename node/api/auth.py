"""Who may talk to the API: a Bearer token compared in constant time; and without one, the rules about where to listen and which web pages
must not speak through a browser that reaches it.

The token is a secret: it is kept as its digest here and never appears in a message, a log or a repr.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
from collections.abc import Iterable

from cluster.errors import Invalid, Unauthorized
from node.api.problem import RefusalError

_SAFE_METHODS = frozenset(("GET", "HEAD", "OPTIONS"))
_PORT = re.compile(r":[0-9]*$")


class BearerToken:
    """The configured token, as something to check a header against."""

    __slots__ = ("_digest",)

    def __init__(self, token: str) -> None:
        if not token or not token.isascii() or any(character <= " " or character == "\x7f" for character in token):
            raise Invalid("api_token must be visible ASCII without spaces", field="api_token")
        self._digest = hashlib.sha256(token.encode()).digest()

    def check(self, authorization: str | None) -> None:
        """Return when an Authorization header carries the token; raises Unauthorized saying what is missing."""
        if authorization is None:
            raise Unauthorized("This API needs a token: send the header `Authorization: Bearer TOKEN`")
        scheme, _, credentials = authorization.partition(" ")
        if scheme.lower() != "bearer":
            raise Unauthorized("This API takes `Authorization: Bearer TOKEN`, no other scheme")
        # Digests have one length, so that the comparison tells nothing about the token's own.
        offered = hashlib.sha256(credentials.strip(" ").encode("utf-8", "surrogateescape")).digest()
        if not hmac.compare_digest(offered, self._digest):
            raise Unauthorized("The Bearer token is not this cluster's api_token")


def check_not_cross_site(method: str, fetch_site: str | None, origin: str | None, host: str | None) -> None:
    """Refuse a change that a web page of another site asks a browser for.

    A node without a token on loopback trusts whoever is on the machine; that must not include every page open in its browser.
    Browsers say where a request comes from in Sec-Fetch-Site, but only to https and loopback, and in Origin, to anybody; other clients
    send neither. Without the first, the host of the ``origin`` must be the one that is asked; with it that is not looked at, since a
    proxy may have changed the host. Raises Unauthorized.
    """
    if method in _SAFE_METHODS:
        return
    if fetch_site is not None:
        foreign = fetch_site.lower() not in ("same-origin", "none")
    else:  # an origin "null" too: a page that hides where it comes from
        foreign = origin is not None and (host is None or origin.lower().partition("://")[2] != host.lower())
    if foreign:
        raise Unauthorized("Changes asked for by a web page of another site are refused")


PRIVATE = (".localhost", ".localdomain", ".local", ".internal", ".test", ".home.arpa")
"""Ends of names that are never sold: RFC 6761, 6762 and 8375, and ICANN's reservation of 2024."""


class ApiHosts:
    """The names under which an API without a token may be asked.

    A web page can give its own name this machine's address (DNS rebinding), and is then of one site with the API in the eyes of its
    browser. It can't do that with an address, nor with a name that no registry sells (without a dot, or below `PRIVATE`); other names must
    be known: ``configured`` ones, where ``*.example.org`` stands for all below it and ``*`` for any.
    """

    __slots__ = ("_any", "_names", "_suffixes")

    def __init__(self, configured: Iterable[str]) -> None:
        names = [name.lower().rstrip(".") for name in configured]
        self._any = "*" in names
        self._names = {name for name in names if "*" not in name}
        self._suffixes = (*PRIVATE, *(name[1:] for name in names if name.startswith("*.")))

    def check(self, host: str | None) -> None:
        """``host``: the Host header; clients that send none are no browsers. Raises RefusalError with 421."""
        if host is None or self._any:
            return
        name = host.rpartition(":")[0] if _PORT.search(host) else host
        name = name.lower().rstrip(".")
        if "." not in name or name in self._names or name.endswith(self._suffixes):
            return
        try:
            ipaddress.ip_address(name.strip("[]"))
        except ValueError:
            raise RefusalError(
                Invalid(
                    f"This API needs no token and does not know itself as {name[:255]!r}: ask for it by its address, "
                    "set `api_hosts` to the names it has, or set a token",
                    field="Host",
                ),
                421,
            ) from None


def check_listen_address(host: str, *, has_token: bool, allow_anonymous: bool) -> None:
    """The rule for configuration: beyond loopback the API needs a token, or a plain statement that it needs none.

    `host` is an address or a name; a name other than ``localhost`` counts as beyond loopback, as do the empty host and wildcards.
    Raises Invalid (field ``api_host``).
    """
    if has_token or allow_anonymous or is_loopback(host):
        return
    raise Invalid(
        f"The API would listen on {host or 'every address'} without a token, so anybody who reaches it could read and delete all data. "
        "Set api_token, or listen on 127.0.0.1, or set allow_anonymous = true if the network is trusted.",
        field="api_host",
    )


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach what listens on `host`."""
    if host.lower() == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback
