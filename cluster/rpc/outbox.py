"""What one connection sends next, without I/O.

Short frames go first, all that there are, in order; then one piece of one large payload, the payloads taking turns.
So a short frame waits for one piece at most, and large payloads share the connection evenly. `queued` counts the
bytes inside; whoever adds keeps it bounded.
"""

from __future__ import annotations

from collections import deque

from cluster.rpc.frame import PIECE, PREFIX, pack_header
from cluster.rpc.limits import INLINE_PAYLOAD, PIECE_SIZE, STREAMS_SENT
from cluster.rpc.message import Buffer, Payload, payload_pieces


class Stream:
    """One large payload on its way out."""

    __slots__ = ("_at", "_header", "_pieces", "call_id", "left", "started")

    def __init__(self, call_id: int, header: bytes, payload: Payload, size: int) -> None:
        self.call_id = call_id
        self.left = size
        self.started = False
        self._header = header
        self._pieces = deque(payload_pieces(payload))
        self._at = 0

    def next_frame(self) -> list[Buffer]:
        """The frame that carries the next piece, as buffers; no payload byte is copied."""
        length = min(self.left, PIECE_SIZE)
        header = pack_header((PIECE, self.call_id)) if self.started else self._header
        self.started = True
        self.left -= length
        frame: list[Buffer] = [PREFIX.pack(len(header), length) + header]
        while length:
            piece = self._pieces[0]
            part = piece[self._at : self._at + length]
            frame.append(part)
            length -= len(part)
            self._at += len(part)
            if self._at == len(piece):
                self._pieces.popleft()
                self._at = 0
        return frame


class Outbox:
    """The frames of one connection that the transport does not have yet."""

    def __init__(self) -> None:
        self.queued = 0
        """Bytes inside."""
        self._short: list[Buffer] = []
        self._turns: deque[Stream] = deque()
        self._waiting: deque[Stream] = deque()

    def __bool__(self) -> bool:
        return self.queued > 0

    def add(self, call_id: int, header: bytes, payload: Payload, size: int) -> None:
        """A frame with a payload of `size` bytes in all."""
        if size > INLINE_PAYLOAD:
            stream = Stream(call_id, header, payload, size)
            (self._turns if len(self._turns) < STREAMS_SENT else self._waiting).append(stream)
            self.queued += size
            return
        short = self._short
        short.append(PREFIX.pack(len(header), size))
        short.append(header)
        if size:
            if isinstance(payload, (bytes, bytearray, memoryview)):
                short.append(payload)
            else:
                short.extend(payload_pieces(payload))
        self.queued += len(header) + size + 8

    def add_short(self, frame: bytes) -> None:
        """A whole frame."""
        self._short.append(frame)
        self.queued += len(frame)

    def take(self) -> list[Buffer]:
        """What is to be written next: all short frames as one buffer, then one piece. Empty when there is nothing."""
        frames: list[Buffer] = []
        if self._short:
            joined = b"".join(self._short)
            self._short.clear()
            self.queued -= len(joined)
            frames.append(joined)
        if self._turns:
            stream = self._turns.popleft()
            before = stream.left
            frames += stream.next_frame()
            self.queued -= before - stream.left
            if stream.left:
                self._turns.append(stream)
            elif self._waiting:
                self._turns.append(self._waiting.popleft())
        return frames

    def drop(self, call_id: int) -> bool:
        """Send nothing more of that call's payload. True when nothing of the call has been sent at all."""
        for queue in (self._turns, self._waiting):
            for stream in queue:
                if stream.call_id == call_id:
                    queue.remove(stream)
                    self.queued -= stream.left
                    if queue is self._turns and self._waiting:
                        self._turns.append(self._waiting.popleft())
                    return not stream.started
        return False

    def clear(self) -> None:
        self._short.clear()
        self._turns.clear()
        self._waiting.clear()
        self.queued = 0
