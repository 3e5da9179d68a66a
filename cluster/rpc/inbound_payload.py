"""A payload that arrives in pieces, put together in the one buffer in which it will stay."""

from __future__ import annotations

from cluster.rpc.buffer_pool import BufferPool
from cluster.rpc.frame import ProtocolError
from cluster.rpc.limits import PAYLOAD_LIMIT


class InboundPayload:
    """Bytes received so far of a payload of known size."""

    __slots__ = ("_claimed", "_filled", "_view", "buffer")

    def __init__(self, size: object, pool: BufferPool) -> None:
        if type(size) is not int or not 0 <= size <= PAYLOAD_LIMIT:
            raise ProtocolError(f"a payload of {size!r} bytes")
        self.buffer = pool.take(size)
        self._view = memoryview(self.buffer)
        self._claimed = 0
        self._filled = 0

    def place(self, length: int) -> memoryview:
        """Where the next `length` bytes go; `arrived` tells when they are there."""
        start = self._claimed
        if length <= 0 or start + length > len(self.buffer):
            raise ProtocolError(f"{start + length} bytes of a payload of {len(self.buffer)}")
        self._claimed = start + length
        return self._view[start : self._claimed]

    def arrived(self) -> bool:
        """All bytes placed so far are there. True when the payload is complete."""
        self._filled = self._claimed
        return self._filled == len(self.buffer)

    def append(self, piece: bytes) -> bool:
        """Place and fill at once. True when the payload is complete."""
        self.place(len(piece))[:] = piece
        return self.arrived()
