"""A node's whole wire: it listens, answers, and calls peers by name.

Owns every connection and every task of them: between ``async with`` and its end, never outside. Called from one event loop only.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any, Self, TypeVar

from cluster.doors.clock import Clock
from cluster.doors.network import Listener, Network
from cluster.errors import HoldfastError, Invalid, PeerLost, PeerUnavailable, WrongCluster
from cluster.rpc.buffer_pool import BufferPool
from cluster.rpc.caller import Caller, Reply
from cluster.rpc.codec import Codec, codec_of
from cluster.rpc.deadline import Deadlines
from cluster.rpc.handshake import NONCE_SIZE, AnswererHandshake, CallerHandshake, Hello, Identity
from cluster.rpc.incoming import IncomingConnection, Intake
from cluster.rpc.limits import (
    BULK_PAYLOAD,
    DEADLINE_MAX_S,
    GREETINGS_LIMIT,
    HANDSHAKE_TIMEOUT_S,
    IDLE_PING_S,
    PAYLOAD_LIMIT,
)
from cluster.rpc.link import Lane, Link
from cluster.rpc.message import Payload, Request, payload_joined, payload_size
from cluster.rpc.outgoing import OutgoingConnection
from cluster.rpc.quiet_log import QuietLog
from cluster.rpc.service import Handlers, IncomingCall
from cluster.rpc.statistics import RpcStatistics

R = TypeVar("R")


class RpcNode(Caller):
    """Calls peers, and answers them with `handlers`.

    ``check_hello`` is given every peer's hello after its proof, in both directions, and raises the HoldfastError to refuse it with.
    ``layout_version`` is asked for every request sent. ``random`` makes the handshake's nonces, so outside of tests and simulations it
    has to be one that nobody can predict: `random.SystemRandom`.
    """

    def __init__(
        self,
        *,
        me: Hello,
        secret: bytes,
        handlers: Handlers,
        network: Network,
        clock: Clock,
        random: random.Random,
        layout_version: Callable[[], int],
        check_hello: Callable[[Hello], None],
    ) -> None:
        if not secret:
            raise Invalid("the cluster secret is empty: set one", field="secret")
        self.statistics = RpcStatistics()
        self._me = me
        self._secret = secret
        self._handlers = handlers
        self._network = network
        self._clock = clock
        self._random = random
        self._layout_version = layout_version
        self._check_hello = check_hello
        self._log = QuietLog(clock)
        self._pool = BufferPool()
        self._intake = Intake(self.statistics)
        self._links: dict[str, Link] = {}
        self._incoming: dict[IncomingConnection, None] = {}
        self._greetings: dict[IncomingConnection, None] = {}
        self._outgoing: dict[OutgoingConnection, None] = {}
        self._listener: Listener | None = None
        self._closing = False
        self._all_lost = asyncio.Event()
        # made when it is entered
        self._loop: asyncio.AbstractEventLoop
        self._deadlines: Deadlines
        self._tasks: asyncio.TaskGroup

    # life

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._deadlines = Deadlines(self._loop)
        self._tasks = await asyncio.TaskGroup().__aenter__()
        self._tidier = self._tasks.create_task(self._tidy_up())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing = True
        self._tidier.cancel()
        try:
            if self._listener is not None:
                await self._listener.close()
        finally:
            for link in self._links.values():
                link.close()
            for connection in [*self._incoming, *self._outgoing]:
                connection.abort()
            # handlers are cancelled as their connections go, in the next turns of the loop, which the group waits for
            await self._tasks.__aexit__(kind, error, trace)
            self._note_all_lost()
            await self._all_lost.wait()
            self._deadlines.close()

    async def listen(self, host: str, port: int) -> None:
        """Let peers connect. Raises OSError when the address cannot be bound."""
        assert self._listener is None
        self._listener = await self._network.listen(self._accept, host, port)

    async def run(self, host: str, port: int) -> None:
        """Listen until cancelled."""
        async with self:
            await self.listen(host, port)
            await self._loop.create_future()

    # who is who

    @property
    def port(self) -> int:
        """The port it listens on."""
        assert self._listener is not None
        return self._listener.port

    @property
    def me(self) -> Hello:
        """What peers are told of this node."""
        return self._me

    def set_cluster(self, cluster: bytes) -> None:
        """The cluster has been formed, or joined: later handshakes carry its id."""
        self._me = replace(self._me, cluster=cluster)

    def set_address(self, name: str, host: str, port: int) -> None:
        """Where to reach a peer. Connections to another address of the same name are given up."""
        link = self._links.get(name)
        if link is not None:
            if (link.host, link.port) == (host, port):
                return
            link.close()
        self._links[name] = Link(name, host, port, connect=self._connect, spawn=self._spawn, random=self._random)

    def forget_address(self, name: str) -> None:
        """The peer is gone for good."""
        link = self._links.pop(name, None)
        if link is not None:
            link.close()

    # calling

    async def call(self, peer: str, request: Request[R], payload: Payload = b"", *, deadline_s: float) -> Reply[R]:
        """See `Caller.call`."""
        codec: Codec[Any] = codec_of(type(request))
        if peer == self._me.name:
            return await self._call_self(codec, request, payload, deadline_s)
        link = self._links.get(peer)
        if link is None:
            raise PeerUnavailable(f"no address of a node {peer!r} is known", peer=peer)
        size = len(payload) if type(payload) is bytes else payload_size(payload)
        lane = link.bulk if codec.bulk or size > BULK_PAYLOAD else link.small
        connection = lane.connection
        if connection is None or connection.closed or connection.is_full or not 0 < deadline_s <= DEADLINE_MAX_S:
            connection, deadline_s = await self._ready(link, lane, size, deadline_s)
        return await self._ask(connection, codec, request, payload, size, deadline_s)

    async def call_address(
        self, host: str, port: int, request: Request[R], payload: Payload = b"", *, deadline_s: float
    ) -> Reply[R]:
        """Call whoever listens at an address, over a connection of its own; for joining, when no name is known.

        Raises like `call`, and the reason itself when the handshake fails: Unauthorized for another secret, Invalid with the detail
        ``itself`` when the address is this node's own, whatever ``check_hello`` raised on either side.
        """
        codec: Codec[Any] = codec_of(type(request))
        started = self._loop.time()
        self._check_open()
        _check_deadline(deadline_s)
        try:
            async with asyncio.timeout(deadline_s):
                connection = await self._connect(host, port, "")
        except TimeoutError as error:
            raise PeerUnavailable(f"{host}:{port} could not be reached within {deadline_s:g} s") from error
        try:
            left = max(deadline_s - (self._loop.time() - started), 0.001)
            return await self._ask(connection, codec, request, payload, payload_size(payload), left)
        finally:
            connection.abort()

    async def addresses_of(self, host: str, *, deadline_s: float) -> Sequence[str]:
        """All addresses that ``host`` stands for, each to be given to `call_address`. Raises PeerUnavailable."""
        try:
            async with asyncio.timeout(deadline_s):
                return await self._network.addresses(host)
        except OSError as error:  # TimeoutError is one
            raise PeerUnavailable(f"{host} is not to be found: {str(error) or 'no answer'}") from error

    async def _ask(
        self,
        connection: OutgoingConnection,
        codec: Codec[Any],
        request: Request[R],
        payload: Payload,
        size: int,
        deadline_s: float,
    ) -> Reply[R]:
        asked = connection.ask(codec, request, payload, size, deadline_s, self._layout_version())
        try:
            return await asked.future
        except asyncio.CancelledError:
            connection.abandon(asked)
            if asked.future.done() and not asked.future.cancelled():
                asked.future.exception()  # it came too late to be seen
            raise

    async def _ready(self, link: Link, lane: Lane, size: int, deadline_s: float) -> tuple[OutgoingConnection, float]:
        """A connection with room for a call, and what is left of the deadline."""
        self._check_open()
        _check_deadline(deadline_s)
        started = self._loop.time()
        try:
            async with asyncio.timeout(deadline_s):
                connection = await link.connected(lane)
                while connection.is_full:
                    await connection.room(size)
                    if not connection.closed:
                        break
                    connection = await link.connected(lane)
        except TimeoutError as error:
            raise PeerUnavailable(
                f"{link.name} could not be reached, or took nothing more, within {deadline_s:g} s", peer=link.name
            ) from error
        return connection, max(deadline_s - (self._loop.time() - started), 0.001)

    async def _call_self(self, codec: Codec[Any], request: Request[R], payload: Payload, deadline_s: float) -> Reply[R]:
        """The same without a wire."""
        _check_deadline(deadline_s)
        if payload_size(payload) > PAYLOAD_LIMIT:
            raise Invalid(f"{codec.name}: {payload_size(payload)} bytes of payload; the limit is {PAYLOAD_LIMIT}")
        handler = self._handlers.find(codec.name)
        handler.calls += 1
        deadline = self._clock.monotonic() + deadline_s
        call = IncomingCall(self._me.name, self._layout_version(), payload_joined(payload), deadline)
        limit: asyncio.Timeout | None = None
        try:
            answer = handler.function(request, call)
            if type(answer) is not handler.reply and type(answer) is not tuple:
                async with asyncio.timeout(deadline_s) as limit:
                    answer = await answer
            message = answer[0] if type(answer) is tuple else answer
            if type(message) is not handler.reply:
                raise TypeError(f"the handler of {codec.name} returned {type(message).__name__}")  # noqa: TRY301
        except HoldfastError:
            handler.errors += 1
            raise
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            # nobody cancelled this call: the handler's own future was given up
            handler.errors += 1
            raise HoldfastError(f"{codec.name} failed: the work was given up") from error
        except Exception as error:
            if limit is not None and limit.expired():
                raise PeerLost(f"no answer to {codec.name} from this node within {deadline_s:g} s") from error
            handler.errors += 1
            self._log.failure("handler failed", error, method=codec.name, peer=self._me.name)
            raise HoldfastError(f"{codec.name} failed: {type(error).__name__}; see the log") from error
        if type(answer) is tuple:
            return Reply(answer[0], payload_joined(answer[1]))
        return Reply(answer)

    def _check_open(self) -> None:
        if self._closing:
            raise PeerUnavailable("this node is stopping")

    # connections

    def _identity(self, check_hello: Callable[[Hello], None]) -> Identity:
        return Identity(self._me, self._secret, check_hello)

    def _nonce(self) -> bytes:
        return self._random.randbytes(NONCE_SIZE)

    def _spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        return self._tasks.create_task(work)

    async def _connect(self, host: str, port: int, name: str) -> OutgoingConnection:
        """A greeted connection to the node of that name (any, when it is empty). Raises the HoldfastError that prevented it."""

        def check_hello(hello: Hello) -> None:
            if name and hello.name != name:
                raise WrongCluster(f"{host}:{port} is node {hello.name!r}, not {name!r}")
            self._check_hello(hello)

        def make() -> OutgoingConnection:
            handshake = CallerHandshake(self._identity(check_hello), self._nonce())
            return OutgoingConnection(
                self._loop, handshake, self._deadlines, self.statistics, self._log, self._pool, self._outgoing_lost
            )

        connection: OutgoingConnection | None = None
        try:
            async with asyncio.timeout(HANDSHAKE_TIMEOUT_S):
                connection = await self._network.connect(make, host, port)
                self._outgoing[connection] = None
                if connection.closed:
                    self._outgoing_lost(connection)
                await connection.welcome
        except OSError as error:  # TimeoutError is one
            if connection is not None:
                connection.abort()
            reason = str(error) or f"no answer within {HANDSHAKE_TIMEOUT_S:g} s"
            raise PeerUnavailable(f"{host}:{port} cannot be reached: {reason}") from error
        except asyncio.CancelledError:
            if connection is not None:
                connection.abort()
            raise
        return connection

    def _outgoing_lost(self, connection: OutgoingConnection) -> None:
        self._outgoing.pop(connection, None)
        self._note_all_lost()
        if connection.peer is not None:
            link = self._links.get(connection.peer.name)
            if link is not None:
                link.lost(connection)

    def _accept(self) -> IncomingConnection:
        handshake = AnswererHandshake(self._identity(self._check_hello), self._nonce())
        connection = IncomingConnection(
            self._loop,
            handshake,
            self._deadlines,
            self.statistics,
            self._log,
            self._pool,
            handlers=self._handlers,
            clock=self._clock,
            intake=self._intake,
            spawn=self._spawn,
            on_greeting_over=self._greeting_over,
            on_lost=self._incoming_lost,
        )
        if self._closing:
            connection.abort()
            return connection
        self._incoming[connection] = None
        self._greetings[connection] = None
        self.statistics.greetings = len(self._greetings)
        if len(self._greetings) > GREETINGS_LIMIT:
            oldest = next(iter(self._greetings))
            self._log.warning("too many unproven connections: the oldest was closed", limit=GREETINGS_LIMIT)
            self._greeting_over(oldest)
            oldest.abort()
        return connection

    def _greeting_over(self, connection: IncomingConnection) -> None:
        self._greetings.pop(connection, None)
        self.statistics.greetings = len(self._greetings)

    def _incoming_lost(self, connection: IncomingConnection) -> None:
        self._greeting_over(connection)
        self._incoming.pop(connection, None)
        self._note_all_lost()

    def _note_all_lost(self) -> None:
        if self._closing and not self._incoming and not self._outgoing:
            self._all_lost.set()

    async def _tidy_up(self) -> None:
        """Let go of idle buffers, and find incoming connections whose other end is gone without a word."""
        while True:
            await self._clock.sleep(IDLE_PING_S / 2)
            self._pool.sweep()
            now = self._loop.time()
            for connection in list(self._incoming):
                silent_s = now - connection.last_heard
                if connection.peer is None or connection.is_stopped or silent_s < IDLE_PING_S:
                    continue
                if silent_s < 2 * IDLE_PING_S:
                    connection.ping()
                else:
                    connection.abort()


def _check_deadline(deadline_s: float) -> None:
    if deadline_s <= 0:
        raise PeerUnavailable("the deadline had passed before the call")
    if deadline_s > DEADLINE_MAX_S:
        raise Invalid(f"a deadline of {deadline_s:g} s; the limit is {DEADLINE_MAX_S:g}")
