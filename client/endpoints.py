"""Which node is asked next.

Every node is a gateway, so the choice is only about who is there. Requests rotate over the endpoints in the order given;
one that could not be reached, broke a connection or hung is left alone for a while that doubles with each failure, and is asked
before its time only when no other is left. Owned by one `Transport`; no I/O, time comes in.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from urllib.parse import urlsplit

from client.errors import Invalid

DEFAULT_ENDPOINT = "http://127.0.0.1:7480"
ENDPOINTS_VARIABLE = "HOLDFAST_ENDPOINTS"

QUARANTINE_S = 0.5
"""Seconds that an endpoint is avoided after its first failure in a row."""

QUARANTINE_LIMIT_S = 15.0
"""Longest quarantine: a node that came back is found again within this time."""


def parse_endpoint(text: str) -> str:
    """``host:port`` or a URL, as ``scheme://host:port[/prefix]`` without a slash at its end. Raises `Invalid`."""
    url = text.strip()
    url = (url if "://" in url else f"http://{url}").rstrip("/")
    try:
        parts = urlsplit(url)
        host, _port = parts.hostname, parts.port
    except ValueError as error:
        raise Invalid(f"{text!r} is not an endpoint ({error}); write http://host:port") from error
    if parts.scheme not in {"http", "https"} or not host or parts.query or parts.fragment or parts.username:
        raise Invalid(f"{text!r} is not an endpoint; write http://host:port")
    return url


def endpoints_from_environment() -> list[str]:
    """``HOLDFAST_ENDPOINTS`` split at commas, or the default API port of this machine."""
    named = [part for part in os.environ.get(ENDPOINTS_VARIABLE, "").split(",") if part.strip()]
    return named or [DEFAULT_ENDPOINT]


@dataclass(slots=True)
class _Health:
    failures: int = 0
    avoid_until: float = 0.0
    hung: bool = False


class Endpoints:
    """The endpoints of one cluster and what is known of their health."""

    def __init__(self, urls: Iterable[str], *, now: Callable[[], float]) -> None:
        self._health = {parse_endpoint(url): _Health() for url in urls}
        if not self._health:
            raise Invalid("no endpoint given; name at least one, such as http://127.0.0.1:7480")
        self._order = list(self._health)
        self._next = 0
        self._now = now

    def __len__(self) -> int:
        return len(self._order)

    @property
    def urls(self) -> tuple[str, ...]:
        return tuple(self._order)

    def choose(self, avoid: Collection[str] = ()) -> str:
        """The endpoint to ask now: a healthy one outside ``avoid``, else any healthy one, else the one whose quarantine
        ends first."""
        now = self._now()
        rotation = self._order[self._next :] + self._order[: self._next]
        healthy = [url for url in rotation if self._health[url].avoid_until <= now]
        fresh = [url for url in healthy if url not in avoid]
        if fresh or healthy:
            chosen = (fresh or healthy)[0]
        else:
            others = [url for url in rotation if url not in avoid] or rotation
            chosen = min(others, key=lambda url: self._health[url].avoid_until)
        self._next = (self._order.index(chosen) + 1) % len(self._order)
        return chosen

    def failed(self, url: str) -> None:
        """``url`` could not be reached, or broke or stalled a connection."""
        health = self._health[url]
        health.failures += 1
        pause = min(QUARANTINE_LIMIT_S, QUARANTINE_S * 2 ** min(health.failures - 1, 16))
        health.avoid_until = self._now() + pause

    def hung(self, url: str) -> None:
        """``url`` accepts connections, and nobody is there to answer."""
        self.failed(url)
        self._health[url].hung = True

    def is_hung(self, url: str) -> bool:
        """``url`` hung when it was last heard of: after its quarantine, ask whether it lives before it is given a request."""
        return self._health[url].hung

    def succeeded(self, url: str) -> None:
        """``url`` answered, whatever it said."""
        self._health[url] = _Health()
