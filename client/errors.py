"""What can go wrong for somebody who uses a cluster, sorted by what they can do about it.

The server answers errors as `application/problem+json` whose `type` ends in a stable word; that word decides the class,
and the HTTP status decides where the word is unknown. Every class carries ``code`` (the word) and ``retryable`` (whether the
same call may succeed later without anybody changing it). `OutcomeUnknown` is the third answer beside yes and no and is
never turned into either.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, ClassVar

PROBLEM_BODY_LIMIT = 64 * 1024
"""Bytes of an error body that are looked at: a problem document is a few hundred."""


class HoldfastError(Exception):
    """Base of the tree. ``str(error)`` says what happened and what to do next.

    ``status`` is the HTTP status or None when no answer came; ``details`` are the problem document's other members.
    """

    code: ClassVar[str] = "internal"
    retryable: ClassVar[bool] = False

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        details: Mapping[str, Any] | None = None,
        code: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.details: dict[str, Any] = dict(details or {})
        self.problem = code or self.code


class Invalid(HoldfastError):
    """The request itself is wrong: a name, a size, a range."""

    code = "invalid"


class RangeNotSatisfiable(Invalid):
    """The range lies outside the volume. ``details["size"]`` is the volume's size in bytes where the server told it."""

    code = "range-not-satisfiable"


class NotFound(HoldfastError):
    """There is no such volume or node."""

    code = "not-found"


class Conflict(HoldfastError):
    """A condition did not hold (If-Match, If-None-Match, create of what exists). Nothing was changed."""

    code = "conflict"


class ContentChanged(Conflict):
    """The volume got new content while it was being read, and the rest of the old content can no longer be had."""

    code = "content-changed"
    retryable = True


class Unauthorized(HoldfastError):
    """The API token is missing or wrong."""

    code = "unauthorized"


class Unavailable(HoldfastError):
    """No node could do it within the time allowed: nothing listens, no quorum, starting, busy. Certainly not done."""

    code = "unavailable"
    retryable = True


class Unreachable(Unavailable):
    """Not one endpoint accepts a connection."""

    code = "unreachable"


class OutcomeUnknown(HoldfastError):
    """The request may or may not have taken effect; look before you repeat it. After a lost attempt every refusal becomes this one,
    with the refusal's ``status`` and ``details``."""

    code = "outcome-unknown"
    retryable = True


class NoSpace(HoldfastError):
    """The cluster's disks are full up to their reserve. Nothing was written."""

    code = "no-space"
    retryable = True


class Corrupt(HoldfastError):
    """No good copy of some stored bytes was found. Wrong bytes are never returned."""

    code = "corrupt"


class ServerFailure(HoldfastError):
    """The server failed in a way that it does not explain, or answered what no Holdfast server answers."""

    code = "server-failure"


_BY_CODE: dict[str, type[HoldfastError]] = {
    "invalid": Invalid,
    "range-not-satisfiable": RangeNotSatisfiable,
    "not-found": NotFound,
    "conflict": Conflict,
    "unauthorized": Unauthorized,
    "unavailable": Unavailable,
    "quorum-unavailable": Unavailable,
    "not-ready": Unavailable,
    "busy": Unavailable,
    "stale-layout": Unavailable,
    "peer-unavailable": Unavailable,
    "unsupported": Unavailable,
    "outcome-unknown": OutcomeUnknown,
    "peer-lost": OutcomeUnknown,
    "no-space": NoSpace,
    "corrupt": Corrupt,
}

_BY_STATUS: dict[int, type[HoldfastError]] = {
    401: Unauthorized,
    403: Unauthorized,
    404: NotFound,
    409: Conflict,
    412: Conflict,
    416: RangeNotSatisfiable,
    429: Unavailable,
    502: OutcomeUnknown,  # a proxy between us lost the node after it had passed the request on
    503: Unavailable,
    504: OutcomeUnknown,
    507: NoSpace,
}


def error_of_code(code: str, message: str) -> HoldfastError:
    """The error with a stable word; the base class for one that is unknown here."""
    return _BY_CODE.get(code, HoldfastError)(message, code=code)


def error_from_response(status: int, body: bytes, headers: Mapping[str, str]) -> HoldfastError:
    """The error that an HTTP answer of ``status`` >= 300 stands for. Never raises, whatever the body holds."""
    problem: dict[str, Any] = {}
    try:
        parsed = json.loads(body[:PROBLEM_BODY_LIMIT])
        if isinstance(parsed, dict):
            problem = parsed
    except ValueError:
        pass  # not JSON (a proxy's page, a cut body): the status alone must do
    code = str(problem.get("type", "")).rpartition("/")[2]
    kind = _BY_STATUS.get(status) if status == 416 else None
    kind = kind or _BY_CODE.get(code) or _BY_STATUS.get(status) or (Invalid if 400 <= status < 500 else ServerFailure)
    message = str(
        problem.get("detail") or problem.get("title") or f"the server answered HTTP {status} without saying why"
    )
    details = {key: value for key, value in problem.items() if key not in {"type", "title", "status", "detail"}}
    total = headers.get("Content-Range", "").rpartition("/")[2]
    if kind is RangeNotSatisfiable and total.isdecimal():
        details["size"] = int(total)
    return kind(message, status=status, details=details, code=code or None)
