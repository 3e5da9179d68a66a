"""The client of large transfers: blocking sockets in threads, the least work a Python client can do for its bytes.

The daemons and their client share the machine's cores: what the client uses, they lack. Every chunk sent is different (stamped),
since equal chunks are stored once. `run` is to be called in a process of its own.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

PIECE_BYTES = 4 * 1024 * 1024
"""Sent under one stamp; the default chunk size, so that each chunk is unique."""

SLICE_BYTES = 256 * 1024
"""Handed to one socket at a time where several get the same bytes."""

RECEIVE_BYTES = 1024 * 1024
TIMEOUT_S = 300.0


@dataclass(frozen=True, slots=True)
class Address:
    host: str
    port: int


@dataclass(frozen=True, slots=True)
class Put:
    """``PUT path`` of ``size`` unique bytes."""

    to: Address
    path: str
    size: int

    def run(self) -> None:
        with _connect(self.to) as connection:
            head = f"PUT {self.path} HTTP/1.1\r\nHost: {self.to.host}\r\nContent-Length: {self.size}\r\n\r\n"
            connection.sendall(head.encode())
            _send_unique([connection], self.size)
            _read_head(connection, (b"200", b"201"))


@dataclass(frozen=True, slots=True)
class Get:
    """``GET path``, which must have ``size`` bytes."""

    to: Address
    path: str
    size: int

    def run(self) -> None:
        with _connect(self.to) as connection:
            connection.sendall(f"GET {self.path} HTTP/1.1\r\nHost: {self.to.host}\r\n\r\n".encode())
            length, begun = _read_head(connection, (b"200",))
            if length != self.size:
                raise AssertionError(f"{self.path} has {length} bytes, not {self.size}")
            buffer = bytearray(RECEIVE_BYTES)
            left = length - begun
            while left:
                got = connection.recv_into(buffer, min(left, RECEIVE_BYTES))
                if not got:
                    raise ConnectionError(f"the answer ended {left} bytes early")
                left -= got


@dataclass(frozen=True, slots=True)
class Copies:
    """``size`` unique bytes to each of several plain receivers (`benchmark.floor`); done when all of them have them on disk."""

    to: tuple[Address, ...]
    size: int

    def run(self) -> None:
        connections = [_connect(address) for address in self.to]
        try:
            for connection in connections:
                connection.sendall(self.size.to_bytes(8, "big"))
            _send_unique(connections, self.size)
            for connection in connections:
                if connection.recv(1) != b"+":
                    raise ConnectionError("a receiver failed")
        finally:
            for connection in connections:
                connection.close()


def run(transfers: Sequence[Put | Get | Copies]) -> float:
    """All of them at once; the seconds from the start of the first to the end of the last."""
    ready = threading.Barrier(len(transfers) + 1)

    def one(work: Callable[[], None]) -> None:
        ready.wait()
        work()

    with ThreadPoolExecutor(len(transfers)) as threads:
        running = [threads.submit(one, transfer.run) for transfer in transfers]
        ready.wait()
        start = time.perf_counter()
        for future in running:
            future.result()
        return time.perf_counter() - start


def _connect(address: Address) -> socket.socket:
    connection = socket.create_connection((address.host, address.port), timeout=TIMEOUT_S)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def _send_unique(connections: Sequence[socket.socket], size: int) -> None:
    piece = bytearray(os.urandom(PIECE_BYTES))
    view = memoryview(piece)
    step = PIECE_BYTES if len(connections) == 1 else SLICE_BYTES
    for number, start in enumerate(range(0, size, PIECE_BYTES)):
        piece[:8] = number.to_bytes(8, "big")
        for offset in range(0, min(PIECE_BYTES, size - start), step):
            part = view[offset : min(offset + step, size - start)]
            for connection in connections:
                connection.sendall(part)


def _read_head(connection: socket.socket, statuses: Sequence[bytes]) -> tuple[int, int]:
    """The length of the body, and how much of it came along with the head."""
    answer = b""
    while b"\r\n\r\n" not in answer:
        more = connection.recv(65536)
        if not more:
            raise ConnectionError("closed without an answer")
        answer += more
    head, _, body = answer.partition(b"\r\n\r\n")
    if head.split(b" ", 2)[1] not in statuses:
        raise AssertionError(answer[:2000].decode(errors="replace"))
    lengths = [line.partition(b":")[2] for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    return int(lengths[0]), len(body)
