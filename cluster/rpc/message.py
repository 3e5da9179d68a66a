"""What travels: messages are frozen, slotted dataclasses, declared once and used on both ends.

    @message
    @dataclass(frozen=True, slots=True)
    class ReadReply:
        value: bytes | None

    @message("register.read", reply=ReadReply)
    @dataclass(frozen=True, slots=True)
    class Read(Request[ReadReply]):
        partition: int
        key: bytes

Fields are ``int``, ``float``, ``bool``, ``str``, ``bytes``, ``X | None``, ``tuple[X, ...]``, ``tuple[X, Y]``,
``dict[str, X]``, other message classes, and ``object`` for a msgpack-able value that the receiver checks by itself. A
message is packed as an array in field order: a newer release may add fields at the end, with defaults, and nothing
else. Large content never goes into a field: it is the call's payload.

The name of a request is part of the wire: it is never changed or reused.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Protocol, TypeAlias, TypeVar, overload

from cluster.rpc.codec import add_codec, codec_of

Buffer: TypeAlias = bytes | bytearray | memoryview
Payload: TypeAlias = Buffer | Sequence[Buffer]
"""Raw bytes beside a message, in one piece or several. Whoever hands over a buffer never changes it afterwards."""


class Message(Protocol):
    """Any dataclass decorated with ``@message``."""

    __dataclass_fields__: ClassVar[dict[str, Any]]


M = TypeVar("M")
R = TypeVar("R")


class Request(Generic[R]):
    """Base of the messages that ask; `R` is the class of the reply."""

    __slots__ = ()

    @classmethod
    def reply_type(cls) -> type[R]:
        """The class of the reply, as declared with ``reply=``."""
        reply = codec_of(cls).reply
        assert reply is not None
        return reply


@overload
def message(name: type[M], /) -> type[M]: ...
@overload
def message(
    name: str = "", /, *, reply: type[Any] | None = None, bulk: bool = False
) -> Callable[[type[M]], type[M]]: ...
def message(
    name: type[M] | str = "", /, *, reply: type[Any] | None = None, bulk: bool = False
) -> type[M] | Callable[[type[M]], type[M]]:
    """Make a dataclass a message. A request needs its `name` on the wire and its `reply` class; other messages need
    neither.

    `bulk` sends calls of this request over the peer's connection for large payloads, however small the request itself
    is: for requests whose *reply* carries a large payload. Raises TypeError for a class that cannot travel.
    """
    if isinstance(name, type):
        add_codec(name, name=name.__name__, reply=None, bulk=False)
        return name

    def decorate(kind: type[M]) -> type[M]:
        is_request = issubclass(kind, Request)
        if is_request and (reply is None or not name):
            raise TypeError(f"{kind.__name__} is a request: it needs @message(name, reply=...)")
        if not is_request and reply is not None:
            raise TypeError(f"{kind.__name__} has a reply, so it has to inherit from Request[{reply.__name__}]")
        if reply is not None:
            codec_of(reply)
        add_codec(kind, name=name or kind.__name__, reply=reply, bulk=bulk)
        return kind

    return decorate


@message
@dataclass(frozen=True, slots=True)
class Done:
    """The reply of a request that has nothing to tell: it was done."""


def payload_size(payload: Payload) -> int:
    """Bytes in all its pieces."""
    if isinstance(payload, (bytes, bytearray)):
        return len(payload)
    if isinstance(payload, memoryview):
        return payload.nbytes
    return sum(payload_size(piece) for piece in payload)


def payload_pieces(payload: Payload) -> list[memoryview]:
    """Its pieces as flat byte views; empty ones left out."""
    if isinstance(payload, (bytes, bytearray, memoryview)):
        view = memoryview(payload)
        return [view.cast("B")] if view.nbytes else []
    return [view for piece in payload for view in payload_pieces(piece)]


def payload_joined(payload: Payload) -> Buffer:
    """One buffer with the same bytes; no copy when it is one already."""
    if isinstance(payload, (bytes, bytearray, memoryview)):
        return payload
    if len(payload) == 1:
        return payload[0]
    return b"".join(payload)
