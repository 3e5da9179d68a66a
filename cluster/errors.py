"""The one tree of errors, sorted by what a caller can do about them.

Every error that crosses a module boundary on purpose is one of these. Each class carries

* ``code``: a stable word; it is what travels on the wire and what the HTTP ``type`` is made from;
* ``retryable``: whether the same request may succeed later without anybody changing it;
* ``details``: small msgpack-able facts for the caller (a node's name, a version, a retry hint in seconds).

`OutcomeUnknown` is the third answer beside yes and no: the request may or may not have taken effect. It is never turned
into either of the others. A broken invariant is an assertion, not one of these.
"""

from __future__ import annotations

from typing import Any, ClassVar

type_registry: dict[str, type[HoldfastError]] = {}


class HoldfastError(Exception):
    """Base of the tree. ``str(error)`` says what happened and what to do next, in one or two sentences."""

    code: ClassVar[str] = "internal"
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, **details: Any) -> None:
        super().__init__(message)
        self.details: dict[str, Any] = details

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "code" not in cls.__dict__:
            raise TypeError(f"{cls.__name__} needs a code of its own")
        if cls.code in type_registry:
            raise TypeError(f"two errors with the code {cls.code!r}")
        type_registry[cls.code] = cls

    @property
    def message(self) -> str:
        return str(self.args[0])


class Invalid(HoldfastError):
    """The request itself is wrong: a name, a size, a range, a field. Details may name the ``field``."""

    code = "invalid"


class NotFound(HoldfastError):
    """There is no such volume, chunk or node."""

    code = "not-found"


class Conflict(HoldfastError):
    """A condition did not hold (If-Match, create of what exists): nothing was changed."""

    code = "conflict"


class Unauthorized(HoldfastError):
    """The caller has not proved who it is: a wrong cluster secret, a missing or wrong token."""

    code = "unauthorized"


class WrongCluster(HoldfastError):
    """The peer or the data directory belongs to another cluster, or to another node of this one."""

    code = "wrong-cluster"


class QuorumUnavailable(HoldfastError):
    """Too few replicas answer. Nothing was changed, or only on a minority. ``retry_after_s`` in the details."""

    code = "quorum-unavailable"
    retryable = True


class OutcomeUnknown(HoldfastError):
    """The request may or may not have taken effect; look before you repeat it."""

    code = "outcome-unknown"
    retryable = True


class PeerUnavailable(HoldfastError):
    """The peer could not be reached, so the request was certainly not executed there."""

    code = "peer-unavailable"
    retryable = True


class Unsupported(PeerUnavailable):
    """The peer's release does not answer such requests. Nothing was done there; another peer may."""

    code = "unsupported"


class PeerLost(HoldfastError):
    """The connection broke or the deadline passed after the request may have been sent: it may have been executed."""

    code = "peer-lost"
    retryable = True


class StaleLayout(HoldfastError):
    """The request was made under a layout that is no longer valid. ``version`` in the details is the one to fetch."""

    code = "stale-layout"
    retryable = True


class NotReady(HoldfastError):
    """The node cannot serve this yet: it is starting, not part of a layout, or still relearning."""

    code = "not-ready"
    retryable = True


class Busy(HoldfastError):
    """A limit is reached (queue, memory budget, open files). Nothing was done."""

    code = "busy"
    retryable = True


class NoSpace(HoldfastError):
    """The disk is full up to its reserve. Nothing was written."""

    code = "no-space"
    retryable = True


class Corrupt(HoldfastError):
    """Stored bytes do not match their checksum or name. Never served; another copy may be good."""

    code = "corrupt"


def error_to_wire(error: HoldfastError) -> tuple[str, str, dict[str, Any]]:
    """``(code, message, details)``, all msgpack-able."""
    return error.code, error.message, error.details


def error_from_wire(code: str, message: str, details: dict[str, Any]) -> HoldfastError:
    """The error a peer sent, whatever its details are. A code this release does not know becomes the base class, its code kept in the
    details."""
    kind = type_registry.get(code)
    details = {str(name): value for name, value in details.items() if name not in ("self", "message")}
    if kind is None:
        return HoldfastError(message, **{**details, "peer_code": code})
    return kind(message, **details)
