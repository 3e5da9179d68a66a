"""Answering peers: `Handlers` maps each request class to the function that answers it.

A handler is ``handler(request, call)``. It returns the reply, or ``(reply, payload)``, or an awaitable of either:

* a plain value is answered at once, without a task: the cheapest;
* an ``asyncio.Future`` is answered when it is done, without a task; it is cancelled when the caller goes away;
* any other awaitable runs as a task, which is cancelled when the caller goes away, its deadline passes, or the connection breaks.

A HoldfastError raised by a handler travels to the caller as it is; any other exception is logged and travels as ``internal``.
Handlers never see bytes of the wire: the request has been checked field by field before.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, TypeVar, cast

from cluster.errors import Unsupported
from cluster.rpc.codec import Codec, codec_of
from cluster.rpc.message import Buffer, Payload, Request

Q = TypeVar("Q", bound=Request[Any])
Q_co = TypeVar("Q_co", covariant=True)
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)

Answer: TypeAlias = R | tuple[R, Payload] | Awaitable[R | tuple[R, Payload]]
"""What a handler may return."""


class RequestKind(Protocol[Q_co, R_co]):
    """A request class as seen by the type checker: what it makes, and what answers it."""

    def __call__(self, *args: Any, **kwargs: Any) -> Q_co: ...

    def reply_type(self) -> type[R_co]: ...


class IncomingCall:
    """The circumstances of one request."""

    __slots__ = ("deadline", "layout_version", "payload", "peer")

    def __init__(self, peer: str, layout_version: int, payload: Buffer, deadline: float) -> None:
        self.peer = peer
        """The caller's name, proven in the handshake."""
        self.layout_version = layout_version
        """The layout that the caller knew when it sent the request."""
        self.payload = payload
        """Raw bytes beside the request; the handler may keep them."""
        self.deadline = deadline
        """When the caller stops waiting, in seconds of this node's ``Clock.monotonic``."""


@dataclass(slots=True)
class Handler:
    """One registered handler, with what it has done so far."""

    name: str
    unpack: Callable[[object], Any]
    reply: type[Any]
    pack_reply: Callable[[Any], tuple[object, ...]]
    function: Callable[[Any, IncomingCall], Any]
    calls: int = 0
    errors: int = 0


class Handlers:
    """The requests that a node answers. Filled before the node listens."""

    def __init__(self) -> None:
        self._by_name: dict[str, Handler] = {}

    def register(self, kind: RequestKind[Q, R], handler: Callable[[Q, IncomingCall], Answer[R]]) -> None:
        """Let `handler` answer requests of the class `kind`. Raises ValueError when the name is taken already."""
        codec: Codec[Any] = codec_of(cast("type[Any]", kind))
        if codec.reply is None:
            raise TypeError(f"{codec.kind.__name__} is not a request")
        if codec.name in self._by_name:
            raise ValueError(f"{codec.name!r} has a handler already")
        pack_reply = codec_of(codec.reply).pack
        self._by_name[codec.name] = Handler(codec.name, codec.unpack, codec.reply, pack_reply, handler)

    def find(self, name: str) -> Handler:
        """The handler of the requests of that name. Raises Unsupported for a request that this release does not answer."""
        handler = self._by_name.get(name)
        if handler is None:
            raise Unsupported(f"this node does not answer {name!r} requests: is it of an older release?", method=name)
        return handler

    def __iter__(self) -> Iterator[Handler]:
        return iter(self._by_name.values())
