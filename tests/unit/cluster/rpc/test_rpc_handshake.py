"""The handshake as a pure machine: who gets in, who does not, and what either of them can learn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.errors import HoldfastError, Invalid, NotReady, PeerUnavailable, Unauthorized, WrongCluster
from cluster.rpc.frame import CALLER_PROOF, REFUSED, WELCOME, ProtocolError, pack_header
from cluster.rpc.handshake import AnswererHandshake, CallerHandshake, HandshakeError, Hello, Identity

SECRET = b"correct horse battery staple"


def identity(
    name: str,
    secret: bytes = SECRET,
    check: Callable[[Hello], None] = lambda hello: None,
    version: tuple[int, int] = (1, 1),
    boot: int = 1,
) -> Identity:
    return Identity(Hello(name, name.encode().ljust(8), boot, b"c" * 16, "1.0"), secret, check, version[0], version[1])


def header(packed: bytes | None) -> tuple[Any, ...]:
    assert packed is not None
    unpacked = msgpack.unpackb(packed, use_list=False)
    assert isinstance(unpacked, tuple)
    return unpacked


def pair(caller: Identity, answerer: Identity) -> tuple[CallerHandshake, AnswererHandshake]:
    return CallerHandshake(caller, b"1" * 32), AnswererHandshake(answerer, b"2" * 32)


def shake(caller: CallerHandshake, answerer: AnswererHandshake, sent: list[bytes] | None = None) -> None:
    """Carry headers to and fro until it is over."""
    ends: list[CallerHandshake | AnswererHandshake] = [answerer, caller]
    packed = caller.start()
    turn = 0
    while packed is not None:
        if sent is not None:
            sent.append(packed)
        packed = ends[turn % 2].receive(header(packed))
        turn += 1


def test_both_ends_learn_who_the_other_is() -> None:
    caller, answerer = pair(identity("a"), identity("b", boot=7))
    shake(caller, answerer)
    assert caller.peer == Hello("b", b"b       ", 7, b"c" * 16, "1.0")
    assert answerer.peer == Hello("a", b"a       ", 1, b"c" * 16, "1.0")


def test_the_secret_does_not_travel() -> None:
    sent: list[bytes] = []
    shake(*pair(identity("a"), identity("b")), sent)
    assert len(sent) == 4
    assert SECRET not in b"".join(sent)


def test_a_caller_with_another_secret_is_told_so_and_both_ends_know() -> None:
    caller, answerer = pair(identity("a", b"wrong"), identity("b"))
    with pytest.raises(HandshakeError) as refused:
        shake(caller, answerer)
    assert isinstance(refused.value.error, Unauthorized)
    assert answerer.peer is None
    with pytest.raises(HandshakeError) as told:
        caller.receive(header(refused.value.header))
    assert isinstance(told.value.error, Unauthorized)
    assert "secret" in str(told.value.error)
    assert told.value.header is None
    assert caller.peer is None


def test_an_answerer_that_lets_anybody_in_is_not_believed() -> None:
    caller = CallerHandshake(identity("a"), b"1" * 32)
    impostor = AnswererHandshake(identity("b", b"guess"), b"2" * 32)
    caller.receive(header(impostor.receive(header(caller.start()))))
    with pytest.raises(HandshakeError) as refused:
        caller.receive((WELCOME, impostor._proof(b"answerer")))
    assert isinstance(refused.value.error, Unauthorized)
    assert header(refused.value.header)[0] == REFUSED
    assert caller.peer is None


def test_a_proof_cannot_be_reflected() -> None:
    caller = CallerHandshake(identity("a"), b"1" * 32)
    mirror = AnswererHandshake(identity("m", b"unknown"), b"2" * 32)
    proof = header(caller.receive(header(mirror.receive(header(caller.start())))))
    assert proof[0] == CALLER_PROOF
    with pytest.raises(HandshakeError):
        caller.receive((WELCOME, proof[1]))
    assert caller.peer is None


def test_a_hello_cannot_be_reflected() -> None:
    caller = CallerHandshake(identity("a"), b"1" * 32)
    with pytest.raises(ProtocolError):
        caller.receive(header(caller.start()))


def test_a_relay_of_a_node_to_itself_is_refused() -> None:
    me = identity("a")
    caller, answerer = pair(me, me)
    with pytest.raises(HandshakeError) as refused:
        shake(caller, answerer)
    assert isinstance(refused.value.error, Invalid)
    assert refused.value.error.details == {"itself": True}
    with pytest.raises(HandshakeError) as told:
        caller.receive(header(refused.value.header))
    assert told.value.error.details == {"itself": True}


def test_two_nodes_of_one_name_refuse_each_other() -> None:
    caller, answerer = pair(identity("a", boot=1), identity("a", boot=2))
    with pytest.raises(HandshakeError) as refused:
        shake(caller, answerer)
    assert isinstance(refused.value.error, WrongCluster)


def test_a_recorded_handshake_cannot_be_replayed() -> None:
    sent: list[bytes] = []
    shake(*pair(identity("a"), identity("b")), sent)
    later = AnswererHandshake(identity("b"), b"3" * 32)
    later.receive(header(sent[0]))
    with pytest.raises(HandshakeError) as refused:
        later.receive(header(sent[2]))
    assert isinstance(refused.value.error, Unauthorized)


@given(st.data())
def test_whatever_is_altered_on_the_way_is_noticed(data: st.DataObject) -> None:
    """One header of the four is changed in one place: at least one end refuses, and no end believes what was altered."""
    caller, answerer = pair(identity("a"), identity("b"))
    victim = data.draw(st.integers(0, 3))
    ends: list[CallerHandshake | AnswererHandshake] = [answerer, caller]
    packed = caller.start()
    failed = False
    for turn in range(4):
        assert packed is not None
        if turn == victim:
            at = data.draw(st.integers(0, len(packed) - 1))
            packed = packed[:at] + bytes([packed[at] ^ data.draw(st.integers(1, 255))]) + packed[at + 1 :]
        try:
            unpacked = msgpack.unpackb(packed, use_list=False)
            if type(unpacked) is not tuple or not unpacked:
                raise ProtocolError("as the frame reader would")  # noqa: TRY301
            packed = ends[turn % 2].receive(unpacked)
        except (HandshakeError, ProtocolError, ValueError):
            failed = True
            break
    assert failed
    assert caller.peer is None


def test_versions_without_overlap_are_refused_clearly() -> None:
    for mine, theirs in (((1, 1), (3, 2)), ((3, 2), (1, 1))):
        caller, answerer = pair(identity("a", version=mine), identity("b", version=theirs))
        with pytest.raises(HandshakeError, match="version") as refused:
            shake(caller, answerer)
        assert isinstance(refused.value.error, PeerUnavailable)
        with pytest.raises(HandshakeError, match="upgrade") as told:
            caller.receive(header(refused.value.header))
        assert isinstance(told.value.error, PeerUnavailable)


def test_neighbouring_versions_understand_each_other() -> None:
    caller, answerer = pair(identity("a", version=(2, 1)), identity("b", version=(1, 1)))
    shake(caller, answerer)
    assert caller.peer is not None
    assert answerer.peer is not None


def test_a_newer_release_may_say_more() -> None:
    """More items in the hello frame, and more fields in the hello itself."""

    class Newer(CallerHandshake):
        def __init__(self, mine: Identity, nonce: bytes) -> None:
            super().__init__(mine, nonce)
            items = header(self._own_header)
            self._own_header = pack_header((*items[:5], (*items[5], "new field", {"x": 1.5}), "new item"))

    caller = Newer(identity("a"), b"1" * 32)
    answerer = AnswererHandshake(identity("b"), b"2" * 32)
    shake(caller, answerer)
    assert answerer.peer is not None
    assert answerer.peer.name == "a"


@pytest.mark.parametrize("error", [WrongCluster("another cluster"), NotReady("starting")])
def test_either_side_may_refuse_whom_it_knows(error: HoldfastError) -> None:
    def refuse(hello: Hello) -> None:
        assert hello.name in {"a", "b"}
        raise error

    for caller_check, answerer_check in ((refuse, lambda hello: None), (lambda hello: None, refuse)):
        caller, answerer = pair(identity("a", check=caller_check), identity("b", check=answerer_check))
        with pytest.raises(HandshakeError) as refused:
            shake(caller, answerer)
        assert refused.value.error is error
        other = answerer if caller_check is refuse else caller
        with pytest.raises(HandshakeError) as told:
            other.receive(header(refused.value.header))
        assert type(told.value.error) is type(error)
        assert str(told.value.error) == str(error)


@pytest.mark.parametrize("packed", [(), (16,), (16, "holdfast"), (16, "http", 1, 1, b"1" * 32, ()), (1, 2, 3, 4, 5, 6),
    (16, "holdfast", "1", 1, b"1" * 32, ()), (16, "holdfast", 1, 1, b"short", ()), (16, "holdfast", 1, 1, b"1" * 32, ()),
    (16, "holdfast", 1, 1, b"1" * 32, ("name", b"", "boot")), (18, b"proof"), (19, b"proof")])  # fmt: skip
def test_a_strange_first_header_is_garbage(packed: tuple[Any, ...]) -> None:
    answerer = AnswererHandshake(identity("b"), b"2" * 32)
    with pytest.raises((ProtocolError, IndexError)):
        answerer.receive(packed)


def test_a_strangers_reason_is_trimmed() -> None:
    caller = CallerHandshake(identity("a"), b"1" * 32)
    with pytest.raises(HandshakeError) as refused:
        caller.receive((REFUSED, "no-such-code", "x" * 10_000, {"big": "y" * 10_000}))
    assert len(str(refused.value.error)) <= 400
    assert "big" not in refused.value.error.details
