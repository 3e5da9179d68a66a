"""The one place where errors become HTTP: `HoldfastError` -> status, headers and an RFC 9457 problem document.

``type`` is ``https://holdfast.dev/problems/<code>`` with the error's own stable code, so that a client can tell a conflict from a
full disk without reading prose; ``detail`` says what happened and what to do next; ``retryable`` whether the same request may
succeed later. The error's details follow as members of their own. Never in here: tracebacks, secrets, what an unexpected
exception said.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from aiohttp import web

from cluster.errors import HoldfastError, OutcomeUnknown, PeerLost

PROBLEM_TYPE_PREFIX = "https://holdfast.dev/problems/"
PROBLEM_CONTENT_TYPE = "application/problem+json"

DEFAULT_RETRY_AFTER_S = 1
"""What Retry-After says when the error itself gives no ``retry_after_s``: about the time in which a node's death is suspected."""

_STATUSES: Mapping[str, int] = {
    "invalid": 400,
    "unauthorized": 401,
    "not-found": 404,
    "conflict": 409,
    "quorum-unavailable": 503,
    "outcome-unknown": 503,
    "not-ready": 503,
    "busy": 503,
    "peer-unavailable": 503,
    "unsupported": 503,
    "stale-layout": 503,
    "no-space": 507,
    "corrupt": 500,
    "store-failed": 503,
    "index-unavailable": 503,
}

_TITLES: Mapping[str, str] = {
    "invalid": "The request is not valid",
    "unauthorized": "Not authorized",
    "not-found": "Not found",
    "conflict": "A condition did not hold",
    "quorum-unavailable": "Too few replicas answer",
    "outcome-unknown": "The request may or may not have taken effect",
    "not-ready": "The node is not ready",
    "busy": "The node is at a limit",
    "peer-unavailable": "Another node can't be reached",
    "unsupported": "Another node is of a release that can't do this",
    "stale-layout": "The layout is changing",
    "no-space": "No space left",
    "corrupt": "Stored data is damaged",
    "store-failed": "A node's store takes no more changes",
    "index-unavailable": "A node's chunk index can't be used now",
    "internal": "Internal error",
}

_RESERVED = frozenset(("type", "title", "status", "detail", "retryable", "instance"))


class RefusalError(Exception):
    """A request refused with a status that the kind of error alone does not tell (405, 411, 412, 413, 415, 416 ...)."""

    def __init__(self, error: HoldfastError, status: int, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(error.message)
        self.error = error
        self.status = status
        self.headers = headers or {}


def status_of(error: HoldfastError) -> int:
    """The status an error has where HTTP gives no reason for another."""
    return _STATUSES.get(_as_told(error).code, 500)


def problem_document(error: HoldfastError, status: int) -> dict[str, Any]:
    """The JSON-able members of the problem; details never replace the standard members."""
    error = _as_told(error)
    facts = {name: value for name, value in error.details.items() if name not in _RESERVED}
    return {
        "type": PROBLEM_TYPE_PREFIX + error.code,
        "title": _TITLES.get(error.code, _TITLES["internal"]),
        "status": status,
        "detail": error.message,
        "retryable": error.retryable,
        **facts,
    }


def problem_response(
    error: HoldfastError, status: int | None = None, headers: Mapping[str, str] | None = None
) -> web.Response:
    """The answer to a request that failed with `error`; 401 and 503 carry the header that HTTP wants beside them."""
    if status is None:
        status = status_of(error)
    all_headers = {"Content-Type": PROBLEM_CONTENT_TYPE, "Cache-Control": "no-store"}
    if status == 401:
        all_headers["WWW-Authenticate"] = 'Bearer realm="holdfast"'
    elif status == 503:
        all_headers["Retry-After"] = str(_retry_after_s(error))
    if headers:
        all_headers.update(headers)
    body = json.dumps(problem_document(error, status), default=_plain).encode()
    return web.Response(status=status, headers=all_headers, body=body)


def refusal_response(refusal: RefusalError) -> web.Response:
    return problem_response(refusal.error, refusal.status, refusal.headers)


def internal_response(incident: str) -> web.Response:
    """The answer to a request that met a defect. `incident` is the id under which the log has the exception."""
    error = HoldfastError(
        f"This node met an internal error and logged it under the id {incident}. Another node may answer.", id=incident
    )
    return problem_response(error, 500)


def _as_told(error: HoldfastError) -> HoldfastError:
    """A lost peer may have done what it was asked, and only that matters to a client, who knows nothing of peers."""
    if not isinstance(error, PeerLost):
        return error
    return OutcomeUnknown(
        f"{error.message}. The request may or may not have taken effect: look before you repeat it", **error.details
    )


def _retry_after_s(error: HoldfastError) -> int:
    seconds = error.details.get("retry_after_s")
    if isinstance(seconds, int | float) and math.isfinite(seconds):
        return max(1, math.ceil(seconds))
    return DEFAULT_RETRY_AFTER_S


def _plain(value: object) -> object:
    """Details are small msgpack-able facts; those that JSON lacks are written as text."""
    if isinstance(value, bytes | bytearray):
        return value.hex()
    if isinstance(value, set | frozenset | tuple):
        return sorted(str(item) for item in value)
    return str(value)
