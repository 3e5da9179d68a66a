"""The outbox: short frames first, large payloads in turns, and every byte exactly once."""

from __future__ import annotations

from typing import Any

import msgpack
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.rpc.frame import PIECE, PREFIX, REQUEST, pack_header
from cluster.rpc.limits import INLINE_PAYLOAD, PIECE_SIZE, STREAMS_SENT
from cluster.rpc.outbox import Outbox


def frames_of(stream: bytes) -> list[tuple[tuple[Any, ...], bytes]]:
    frames = []
    at = 0
    while at < len(stream):
        header_length, payload_length = PREFIX.unpack_from(stream, at)
        at += 8
        header = msgpack.unpackb(stream[at : at + header_length], use_list=False)
        at += header_length
        frames.append((header, stream[at : at + payload_length]))
        at += payload_length
    return frames


def drained(outbox: Outbox) -> list[tuple[tuple[Any, ...], bytes]]:
    stream = bytearray()
    while outbox:
        for buffer in outbox.take():
            stream += buffer
    assert outbox.take() == []
    return frames_of(bytes(stream))


def add(outbox: Outbox, call_id: int, payload: bytes | list[bytes], size: int) -> None:
    outbox.add(call_id, pack_header((REQUEST, call_id)), payload, size)


@settings(deadline=None, max_examples=50)
@given(
    st.lists(
        st.lists(
            st.sampled_from([0, 1, 100, INLINE_PAYLOAD, INLINE_PAYLOAD + 1, PIECE_SIZE, PIECE_SIZE * 2 + 5]), max_size=4
        ),
        max_size=6,
    )
)
def test_every_payload_arrives_whole_and_in_order(payloads: list[list[int]]) -> None:
    outbox = Outbox()
    expected = {}
    for call_id, sizes in enumerate(payloads):
        pieces = [bytes([at + 1]) * size for at, size in enumerate(sizes)]
        expected[call_id] = b"".join(pieces)
        add(outbox, call_id, pieces, sum(sizes))
    got: dict[int, bytes] = {}
    for header, payload in drained(outbox):
        assert len(payload) <= PIECE_SIZE
        assert (header[0] == REQUEST) == (header[1] not in got)
        got[header[1]] = got.get(header[1], b"") + payload
    assert got == expected
    assert outbox.queued == 0


def test_a_short_frame_waits_for_one_piece_at_most() -> None:
    outbox = Outbox()
    add(outbox, 1, bytes(4 * PIECE_SIZE), 4 * PIECE_SIZE)
    first = frames_of(b"".join(outbox.take()))
    add(outbox, 2, b"short", 5)
    second = frames_of(b"".join(outbox.take()))
    assert [header[1] for header, _ in first] == [1]
    assert [header[1] for header, _ in second] == [2, 1]


def test_large_payloads_take_turns() -> None:
    outbox = Outbox()
    for call_id in (1, 2):
        add(outbox, call_id, bytes(3 * PIECE_SIZE), 3 * PIECE_SIZE)
    assert [header[1] for header, _ in drained(outbox)] == [1, 2, 1, 2, 1, 2]


def test_no_more_than_a_few_payloads_are_unfinished_at_a_time() -> None:
    outbox = Outbox()
    for call_id in range(20):
        add(outbox, call_id, bytes(2 * PIECE_SIZE), 2 * PIECE_SIZE)
    unfinished: set[int] = set()
    for header, _ in drained(outbox):
        if header[0] == PIECE:
            unfinished.remove(header[1])
        else:
            unfinished.add(header[1])
        assert len(unfinished) <= STREAMS_SENT


def test_a_dropped_payload_says_whether_any_of_it_was_sent() -> None:
    outbox = Outbox()
    for call_id in range(STREAMS_SENT + 2):
        add(outbox, call_id, bytes(2 * PIECE_SIZE), 2 * PIECE_SIZE)
    outbox.take()
    assert outbox.drop(0) is False
    assert outbox.drop(1) is True
    assert outbox.drop(STREAMS_SENT + 1) is True
    assert outbox.drop(99) is False
    assert {header[1] for header, _ in drained(outbox)} == set(range(2, STREAMS_SENT + 1))
    assert outbox.queued == 0
