"""One end of a simulated byte stream: a transport whose segments arrive late, in parts, or never. Made by `network`, in pairs.

Each end keeps what is on its way to it. Segments of one direction arrive in order; one timer, that of the first, is set at a time.
Everything that an end does to its protocol it does in the context of its own host, so a frozen process gets nothing until it runs again,
while what was sent to it waits, as in the kernel's buffers. What is under way when its sender closes, aborts or dies still arrives, and
only then the end of the stream: a late copy of a request may be read long after its sender has given up, connected again, and sent
something else.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from contextvars import Context
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from tests.support.simulated.network import SimulatedNetwork

HIGH_WATER = 256 * 1024
TURN_BYTES = 1024 * 1024
"""Handed to a protocol before others have their turn."""
FRAGMENTS = (1, 7, 100, 1460, 4096)

Segment = bytes | bytearray | memoryview


class SimulatedTransport(asyncio.Transport):
    def __init__(self, network: SimulatedNetwork, here: str, there: str, context: Context) -> None:
        super().__init__({"peername": (there, 0)})
        self.network = network
        self.loop = network.loop
        self.here = here
        self.there = there
        self.context = context
        self.protocol: asyncio.BufferedProtocol | None = None
        """None until the process accepts the connection."""
        self.peer: SimulatedTransport
        self.arriving: deque[tuple[float, Segment | None]] = deque()
        """(when it arrives, the bytes; None for the end of the stream)."""
        self.offset = 0
        """Bytes of the first segment that the protocol has already."""
        self.unread = 0
        self.last_due = 0.0
        self.fragmented = False
        self.reading = True
        self.closing = False
        """The protocol is told, or will be in the next turn, that the stream is gone."""
        self.deaf = False
        """The kernel at this end knows nothing of the stream any more: it answers segments with a reset."""
        self.doomed = False
        """The stream breaks here when what is under way has arrived; nothing more is taken."""
        self.mute = False
        """Nothing that this end writes leaves it any more."""
        self.stalled_until = 0.0
        self.paused_writer = False
        self.high = HIGH_WATER
        self.planned = False

    # what the protocol at this end does

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self.high = high or HIGH_WATER

    def get_write_buffer_size(self) -> int:
        return self.peer.unread

    def write(self, data: Segment) -> None:
        size = len(data)
        if self.closing or self.mute or not size:
            return
        network = self.network
        if network.trace.on:
            network.note_frames(self, data)
        peer = self.peer
        if peer.deaf or peer.doomed:
            if peer.deaf:
                self._answered_with_reset()
            return
        due = network.due(self, size)
        if due < 0:
            network.break_inside(self, data)
            return
        peer.take(due, data)
        if peer.unread > self.high and not self.paused_writer and self.protocol is not None:
            self.paused_writer = True
            self.protocol.pause_writing()

    def writelines(self, list_of_data: Iterable[Any]) -> None:
        for data in list_of_data:
            self.write(data)

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True
        if not self.planned:
            self.plan()

    def is_closing(self) -> bool:
        return self.closing

    def close(self) -> None:
        """What was written arrives, then the end."""
        if self.closing:
            return
        self.network.note(self.here, "closes its stream to", self.there)
        self.peer.end_after(self.network.latency_s())
        self.deaf = True
        self.lose()

    def abort(self) -> None:
        self.close()

    # what is on its way to this end

    def accept(self, factory: Callable[[], asyncio.BaseProtocol]) -> None:
        """The process at this end takes the connection that its kernel has made."""
        if self.closing:
            return
        self.protocol = cast("asyncio.BufferedProtocol", factory())
        self.protocol.connection_made(self)
        self.plan()

    def take(self, due: float, data: Segment) -> None:
        """A segment has been sent to this end."""
        self.arriving.append((due, data))
        self.unread += len(data)
        if not self.planned:
            self.plan()

    def plan(self) -> None:
        """See to it that the first segment is delivered when it is due."""
        if self.planned or not self.arriving or self.closing or self.protocol is None or self.network.is_cut(self):
            return
        if not self.reading and self.arriving[0][1] is not None:
            return
        self.planned = True
        due = max(self.arriving[0][0], self.stalled_until)
        self.loop.call_at(due, self._deliver, context=self.context)

    def _deliver(self) -> None:
        self.planned = False
        protocol, arriving = self.protocol, self.arriving
        if self.closing or protocol is None or self.network.is_cut(self):
            return
        now = self.loop.time()
        turn = TURN_BYTES
        while arriving and turn > 0 and now >= self.stalled_until:
            due, data = arriving[0]
            if due > now:
                break
            if data is None:
                self.network.note(self.here, "loses its stream from", self.there)
                self.deaf = True
                self.lose()
                return
            if not self.reading:
                break
            at = self.offset
            size = len(data) - at
            buffer = cast("memoryview[int]", protocol.get_buffer(-1))
            count = min(len(buffer), size)
            if self.fragmented or self.network.is_fragmented():
                self.fragmented = True
                count = min(count, self.network.rng.choice(FRAGMENTS))
            if count == size:
                buffer[:count] = data[at:] if at else data
                arriving.popleft()
                self.offset = 0
                self.fragmented = False
            else:
                buffer[:count] = data[at : at + count]
                self.offset = at + count
            self.unread -= count
            turn -= count
            protocol.buffer_updated(count)
            if self.is_closing():
                return
        peer = self.peer
        if peer.paused_writer and self.unread <= peer.high // 4:
            peer.paused_writer = False
            self.loop.call_soon(peer.writable_again, context=peer.context)
        if arriving and not self.planned:
            self.plan()

    def writable_again(self) -> None:
        if not self.closing and self.protocol is not None:
            self.protocol.resume_writing()

    def end_after(self, seconds: float) -> None:
        """The end of the stream follows what is under way."""
        if self.closing or self.doomed:
            return
        self.doomed = True
        self.last_due = max(self.last_due, self.loop.time() + seconds)
        self.arriving.append((self.last_due, None))
        if not self.planned:
            self.plan()

    def forget_arriving(self) -> None:
        self.arriving.clear()
        self.offset = self.unread = 0

    def lose(self) -> None:
        """The protocol is told that the stream is gone."""
        if self.closing:
            return
        self.closing = self.deaf = True
        self.forget_arriving()
        self.network.streams.pop(self, None)
        if self.protocol is not None:
            self.loop.call_soon(self.protocol.connection_lost, None, context=self.context)

    # faults

    def break_off(self) -> None:
        """Both ends lose the stream now, and what was on its way."""
        for end in (self, self.peer):
            end.forget_arriving()
            end.lose()

    def _answered_with_reset(self) -> None:
        """The far kernel does not know the stream: its answer is a reset, if there is a kernel and a way."""
        network = self.network
        if self.doomed or self.there in network.absent or network.is_cut(self.peer) or network.is_cut(self):
            return
        self.end_after(2 * network.latency_s())
