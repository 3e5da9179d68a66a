"""Who is there: both ends prove that they know the cluster's secret, without sending it. Pure: headers in, headers out.

    caller                                        answerer
    CALLER_HELLO   versions, nonce, hello  ->
                                           <-     ANSWERER_HELLO  versions, nonce, hello
    CALLER_PROOF   HMAC(secret, ...)       ->
                                           <-     WELCOME         HMAC(secret, ...)     or REFUSED  code, reason

A proof is HMAC-SHA256 under the secret over the prover's role and the SHA-256 of both hello frames exactly as they
travelled: nonces, versions, names and roles included, so nothing of it can be replayed, reflected or altered. The
caller proves first, so a stranger that connects learns nothing to guess the secret by. Nobody speaks to a peer that
carries his own name, which shuts out a relay of a node to itself.

Versions: both ends speak the lower one of their two versions, provided neither finds it too old. The hello frame
keeps its shape forever.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from cluster.errors import (
    HoldfastError,
    Invalid,
    PeerUnavailable,
    Unauthorized,
    WrongCluster,
    error_from_wire,
    error_to_wire,
)
from cluster.rpc.codec import codec_of
from cluster.rpc.frame import (
    ANSWERER_HELLO,
    CALLER_HELLO,
    CALLER_PROOF,
    REFUSED,
    WELCOME,
    ProtocolError,
    pack_header,
)
from cluster.rpc.limits import PROTOCOL_VERSION, PROTOCOL_VERSION_MIN, REFUSAL_TEXT_LIMIT
from cluster.rpc.message import message

MAGIC = "holdfast"
NONCE_SIZE = 32


@message
@dataclass(frozen=True, slots=True)
class Hello:
    """Who a node is."""

    name: str
    store: bytes
    """The id of its data directory, 8 bytes."""
    boot: int
    """Which start of that data directory this is."""
    cluster: bytes = b""
    """The cluster's id; empty before the cluster is formed."""
    release: str = ""
    """The software's version, for people."""


_hello = codec_of(Hello)


@dataclass(frozen=True, slots=True)
class Identity:
    """What a node brings into a handshake."""

    hello: Hello
    secret: bytes
    check_hello: Callable[[Hello], None]
    """Called with the peer's hello once it is proved; raises the HoldfastError to refuse it with."""
    version: int = PROTOCOL_VERSION
    version_min: int = PROTOCOL_VERSION_MIN


class HandshakeError(Exception):
    """The handshake has failed, for the reason `error`. `header` is the frame to send to the peer before closing, if
    any."""

    def __init__(self, error: HoldfastError, header: bytes | None) -> None:
        super().__init__(str(error))
        self.error = error
        self.header = header


class Handshake(Protocol):
    """One side of it. Feed it each header that arrives; send what it returns. It raises HandshakeError, or ProtocolError on
    garbage."""

    peer: Hello | None
    """Who the peer is, once it has been proved; the handshake is over then."""

    def start(self) -> bytes | None:
        """The header to send first, if it is this side that begins."""

    def receive(self, header: tuple[Any, ...]) -> bytes | None:
        """The header to answer with, if any."""


class _Side:
    """What both sides have in common."""

    HELLO: ClassVar[int]
    PEER_HELLO: ClassVar[int]
    ROLE: ClassVar[bytes]
    PEER_ROLE: ClassVar[bytes]

    def __init__(self, identity: Identity, nonce: bytes) -> None:
        assert len(nonce) == NONCE_SIZE
        self._identity = identity
        self._own_header = pack_header(
            (
                self.HELLO,
                MAGIC,
                identity.version,
                identity.version_min,
                nonce,
                _hello.pack(identity.hello),
            )
        )
        self._peer_header = b""
        self._claimed: Hello | None = None
        self.peer: Hello | None = None

    def _take_hello(self, header: tuple[Any, ...]) -> None:
        if len(header) < 6 or header[0] != self.PEER_HELLO or header[1] != MAGIC:
            raise ProtocolError("not a holdfast hello")
        version, version_min, nonce, fields = header[2:6]
        if type(version) is not int or type(version_min) is not int or type(nonce) is not bytes:
            raise ProtocolError("not a holdfast hello")
        if len(nonce) != NONCE_SIZE:
            raise ProtocolError("not a holdfast hello")
        mine = self._identity
        if min(version, mine.version) < max(version_min, mine.version_min):
            raise self._refusal(
                PeerUnavailable(
                    f"no common protocol version: {mine.hello.name} speaks {mine.version_min} to {mine.version},"
                    f" the peer {version_min} to {version}; upgrade the older one"
                )
            )
        try:
            self._claimed = _hello.unpack(fields)
        except Invalid as error:
            raise ProtocolError(f"not a holdfast hello: {error}") from error
        # The header as it travelled: packing is canonical for what both ends send, and a stranger's other spelling
        # fails the proof.
        self._peer_header = pack_header(header)

    def _proof(self, role: bytes) -> bytes:
        caller, answerer = self._own_header, self._peer_header
        if self.HELLO != CALLER_HELLO:
            caller, answerer = answerer, caller
        transcript = hashlib.sha256(b"%d:%b%d:%b" % (len(caller), caller, len(answerer), answerer)).digest()
        return hmac.digest(self._identity.secret, b"holdfast wire 1 " + role + b" " + transcript, "sha256")

    def _check_proof(self, proof: object) -> None:
        """Raises HandshakeError unless the peer has proved what it claimed, and is welcome."""
        assert self._claimed is not None
        if type(proof) is not bytes or not hmac.compare_digest(proof, self._proof(self.PEER_ROLE)):
            raise self._refusal(
                Unauthorized(
                    f"nodes {self._identity.hello.name} and {self._claimed.name} do not have the same cluster secret"
                )
            )
        mine, peer = self._identity.hello, self._claimed
        if peer.name == mine.name:
            if (peer.store, peer.boot) == (mine.store, mine.boot):
                raise self._refusal(Invalid(f"this address is node {mine.name} itself", itself=True))
            raise self._refusal(WrongCluster(f"two nodes carry the name {mine.name!r}; each needs a name of its own"))
        try:
            self._identity.check_hello(peer)
        except HoldfastError as error:
            raise self._refusal(error) from error
        self.peer = peer

    def _refusal(self, error: HoldfastError) -> HandshakeError:
        code, text, details = error_to_wire(error)
        return HandshakeError(error, pack_header((REFUSED, code, text[:REFUSAL_TEXT_LIMIT], details)))


class CallerHandshake(_Side):
    """The side that opened the connection."""

    HELLO = CALLER_HELLO
    PEER_HELLO = ANSWERER_HELLO
    ROLE = b"caller"
    PEER_ROLE = b"answerer"

    def start(self) -> bytes | None:
        return self._own_header

    def receive(self, header: tuple[Any, ...]) -> bytes | None:
        if header[0] == REFUSED:
            raise HandshakeError(_refused(header), None)
        if self._claimed is None:
            self._take_hello(header)
            return pack_header((CALLER_PROOF, self._proof(self.ROLE)))
        if header[0] != WELCOME or len(header) < 2 or self.peer is not None:
            raise ProtocolError("not a welcome")
        self._check_proof(header[1])
        return None


class AnswererHandshake(_Side):
    """The side that was connected to."""

    HELLO = ANSWERER_HELLO
    PEER_HELLO = CALLER_HELLO
    ROLE = b"answerer"
    PEER_ROLE = b"caller"

    def start(self) -> bytes | None:
        return None

    def receive(self, header: tuple[Any, ...]) -> bytes | None:
        if header[0] == REFUSED:
            raise HandshakeError(_refused(header), None)
        if self._claimed is None:
            self._take_hello(header)
            return self._own_header
        if header[0] != CALLER_PROOF or len(header) < 2 or self.peer is not None:
            raise ProtocolError("not a proof")
        self._check_proof(header[1])
        return pack_header((WELCOME, self._proof(self.ROLE)))


def _refused(header: tuple[Any, ...]) -> HoldfastError:
    """The reason that the peer gave; it comes from somebody unproven, so its words are trimmed and its details
    dropped."""
    if len(header) < 3 or type(header[1]) is not str or type(header[2]) is not str:
        return PeerUnavailable("the peer refused the connection without a readable reason")
    itself = len(header) > 3 and type(header[3]) is dict and header[3].get("itself") is True
    details = {"itself": True} if itself else {}
    return error_from_wire(header[1], header[2][:REFUSAL_TEXT_LIMIT], details)
