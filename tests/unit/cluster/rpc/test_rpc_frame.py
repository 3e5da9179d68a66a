"""Frames: the same ones come out wherever the stream is cut, and nothing unlawful gets in."""

from __future__ import annotations

import re
import struct
from pathlib import Path
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.rpc.frame import PREFIX, FrameReader, ProtocolError
from cluster.rpc.limits import (
    GREETING_HEADER_LIMIT,
    HEADER_LIMIT,
    PIECE_SIZE,
    STAGING_SIZE,
    STAGING_SIZE_GREETING,
)


class Collected:
    """A sink that remembers. Payloads of headers that start with "drop" are dropped."""

    def __init__(self) -> None:
        self.frames: list[tuple[tuple[Any, ...], bytes]] = []
        self._filling: tuple[tuple[Any, ...], bytearray] | None = None

    def frame_received(self, header: tuple[Any, ...], payload: bytes) -> None:
        assert self._filling is None
        self.frames.append((header, payload))

    def payload_starts(self, header: tuple[Any, ...], length: int) -> memoryview | None:
        buffer = bytearray(length)
        self._filling = (header, buffer)
        return None if header[0] == "drop" else memoryview(buffer)

    def payload_ends(self) -> None:
        assert self._filling is not None
        self.frames.append((self._filling[0], bytes(self._filling[1])))
        self._filling = None


def frame(header: tuple[Any, ...], payload: bytes = b"") -> bytes:
    packed: bytes = msgpack.packb(header)
    return PREFIX.pack(len(packed), len(payload)) + packed + payload


def feed(reader: FrameReader, stream: bytes, sizes: list[int]) -> None:
    """Give the stream to the reader, at most ``sizes`` bytes at a time, round and round."""
    at = turn = 0
    while at < len(stream):
        buffer = reader.buffer()
        assert len(buffer) > 0
        count = min(len(buffer), sizes[turn % len(sizes)], len(stream) - at)
        buffer[:count] = stream[at : at + count]
        reader.received(count)
        at += count
        turn += 1


payload_sizes = st.one_of(
    st.integers(0, 200),
    st.sampled_from([65535, 65536, 65537, STAGING_SIZE - 8, STAGING_SIZE, PIECE_SIZE - 1, PIECE_SIZE]),
)
header_sizes = st.one_of(st.integers(0, 50), st.sampled_from([2000, STAGING_SIZE, 200_000, HEADER_LIMIT - 20]))


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(header_sizes, payload_sizes), max_size=8),
    st.lists(st.sampled_from([3, 8, 100, 4096, 65536, 10**7]), min_size=1, max_size=5).filter(lambda s: max(s) > 4000),
)
def test_frames_survive_any_splitting(shapes: list[tuple[int, int]], sizes: list[int]) -> None:
    frames = [((1, number, bytes(header)), bytes([number + 1]) * size) for number, (header, size) in enumerate(shapes)]
    sink = Collected()
    reader = FrameReader(sink)
    reader.open_up()
    feed(reader, b"".join(frame(header, payload) for header, payload in frames), sizes)
    assert sink.frames == frames


def test_one_byte_at_a_time() -> None:
    sink = Collected()
    reader = FrameReader(sink)
    reader.open_up()
    frames = [((1, "a"), b""), ((2, "b"), b"x" * 70_000), ((3,), b"y")]
    feed(reader, b"".join(frame(*item) for item in frames), [1])
    assert sink.frames == frames


def test_a_dropped_payload_leaves_the_next_frame_whole() -> None:
    sink = Collected()
    reader = FrameReader(sink)
    reader.open_up()
    feed(reader, frame(("drop",), b"x" * PIECE_SIZE) + frame((5,), b"abc"), [10_000])
    assert sink.frames == [(("drop",), bytes(PIECE_SIZE)), ((5,), b"abc")]


def test_large_payloads_are_received_where_they_stay() -> None:
    reader = FrameReader(Collected())
    reader.open_up()
    start = frame((1,), b"x" * PIECE_SIZE)[:50]
    feed(reader, start, [50])
    assert len(reader.buffer()) == PIECE_SIZE - (50 - 10)


def test_memory_shrinks_again_after_a_large_header() -> None:
    reader = FrameReader(Collected())
    reader.open_up()
    feed(reader, frame((1, bytes(HEADER_LIMIT - 20))), [10**7])
    assert len(reader.buffer()) <= STAGING_SIZE


@pytest.mark.parametrize(
    "lengths", [(HEADER_LIMIT + 1, 0), (10, PIECE_SIZE + 1), (2**32 - 1, 0), (0, 2**32 - 1), (2**32 - 1, 2**32 - 1)]
)
def test_lengths_above_the_limits_break_the_connection_at_once(lengths: tuple[int, int]) -> None:
    reader = FrameReader(Collected())
    reader.open_up()
    with pytest.raises(ProtocolError):
        feed(reader, struct.pack(">II", *lengths), [8])


@pytest.mark.parametrize("lengths", [(GREETING_HEADER_LIMIT + 1, 0), (10, 1)])
def test_before_the_proof_limits_are_narrow(lengths: tuple[int, int]) -> None:
    reader = FrameReader(Collected())
    assert len(reader.buffer()) == STAGING_SIZE_GREETING
    with pytest.raises(ProtocolError):
        feed(reader, struct.pack(">II", *lengths), [8])


@pytest.mark.parametrize(
    "header",
    [b"", b"\xc1", b"\x05", msgpack.packb([]), msgpack.packb("text"), msgpack.packb([1]) + b"\x00", b"\x92\x01",
     b"\x91\xa1\xff", msgpack.packb({"a": 1}), b"\x91" * 900, b"\xdd\xff\xff\xff\xff", b"\x91\xd7\xff" + b"\xff" * 8],
)  # fmt: skip
def test_a_header_that_is_no_array_breaks_the_connection(header: bytes) -> None:
    reader = FrameReader(Collected())
    with pytest.raises(ProtocolError):
        feed(reader, PREFIX.pack(len(header), 0) + header, [10**6])


@given(st.binary(min_size=1, max_size=3000))
def test_arbitrary_bytes_never_do_worse_than_a_protocol_error(garbage: bytes) -> None:
    for proved in (False, True):
        reader = FrameReader(Collected())
        if proved:
            reader.open_up()
        try:
            feed(reader, garbage, [100])
        except ProtocolError:
            continue


def test_a_stopped_reader_reports_nothing_more() -> None:
    class Stopping(Collected):
        def frame_received(self, header: tuple[Any, ...], payload: bytes) -> None:
            super().frame_received(header, payload)
            reader.stopped = True

    sink = Stopping()
    reader = FrameReader(sink)
    feed(reader, frame((1,)) + frame((2,)), [10**6])
    assert sink.frames == [((1,), b"")]


def test_the_examples_of_the_format_page_are_true() -> None:
    text = (Path(__file__).parents[4] / "docs/formats/wire.md").read_text()
    example = text.partition("### Example")[2].partition("## Handshake")[0]
    octets = "".join(
        "".join(re.findall(r"^(?:[0-9a-f]{2}\s+)+", line.strip() + "  "))
        for line in example.splitlines()
        if line[:4] == "    "
    )
    sink = Collected()
    feed(FrameReader(sink), bytes.fromhex(octets), [10**6])
    assert sink.frames == [((1, 7, "register.read", 1500, 3, (513, b"k"), 0), b""), ((2, 7, (b"v",), 0), b"")]
