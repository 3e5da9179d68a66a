"""Asking a peer, as the rest of the cluster sees it: `Caller` and `Reply`. `node.RpcNode` is the real one; tests may pass another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from cluster.rpc.message import Buffer, Payload, Request

R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Reply(Generic[R]):
    """What a peer answered."""

    message: R
    payload: Buffer = b""
    """Raw bytes beside the message; ``b""`` when there are none."""


class Caller(Protocol):
    """Sends requests to peers by name."""

    async def call(self, peer: str, request: Request[R], payload: Payload = b"", *, deadline_s: float) -> Reply[R]:
        """The peer's reply. A call to one's own name goes straight to one's own handlers.

        When the caller is cancelled, the peer's handler is too. The payload's buffers must never be changed once they are passed.

        Raises the peer's own HoldfastError; Invalid when the request or payload is too large to send; PeerUnavailable when the request was
        certainly not executed (no address, no connection, no place in the send queue before the deadline); PeerLost when it may
        have been (the connection broke, or no answer came within `deadline_s` seconds).
        """
