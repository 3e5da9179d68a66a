"""What a simulated loop refuses: threads, sockets, files and processes. Nothing in a simulation may wait for the real world."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn


class RealWorld(AssertionError):
    """Something inside the simulation reached for a thread, a socket, a file descriptor or a process."""


def _refused(name: str) -> Any:
    def refuse(self: object, *args: object, **named: object) -> NoReturn:
        raise RealWorld(f"loop.{name}: no threads and no real I/O inside a simulation")

    refuse.__name__ = name
    return refuse


class LoopWithoutIO(asyncio.AbstractEventLoop):
    """The methods of a loop that would reach the real world. `asyncio.to_thread` comes by `run_in_executor`."""

    run_in_executor = _refused("run_in_executor")
    set_default_executor = _refused("set_default_executor")
    getaddrinfo = _refused("getaddrinfo")
    getnameinfo = _refused("getnameinfo")
    create_connection = _refused("create_connection")
    create_server = _refused("create_server")
    create_unix_connection = _refused("create_unix_connection")
    create_unix_server = _refused("create_unix_server")
    create_datagram_endpoint = _refused("create_datagram_endpoint")
    connect_accepted_socket = _refused("connect_accepted_socket")
    connect_read_pipe = _refused("connect_read_pipe")
    connect_write_pipe = _refused("connect_write_pipe")
    subprocess_shell = _refused("subprocess_shell")
    subprocess_exec = _refused("subprocess_exec")
    add_reader = _refused("add_reader")
    remove_reader = _refused("remove_reader")
    add_writer = _refused("add_writer")
    remove_writer = _refused("remove_writer")
    sock_recv = _refused("sock_recv")
    sock_recv_into = _refused("sock_recv_into")
    sock_recvfrom = _refused("sock_recvfrom")
    sock_recvfrom_into = _refused("sock_recvfrom_into")
    sock_sendall = _refused("sock_sendall")
    sock_sendto = _refused("sock_sendto")
    sock_connect = _refused("sock_connect")
    sock_accept = _refused("sock_accept")
    sock_sendfile = _refused("sock_sendfile")
    sendfile = _refused("sendfile")
    start_tls = _refused("start_tls")
    add_signal_handler = _refused("add_signal_handler")
    remove_signal_handler = _refused("remove_signal_handler")


@contextmanager
def no_threads() -> Iterator[None]:
    """While it lasts, the calling thread cannot start another; what other threads do is their own business."""
    start = threading.Thread.start
    here = threading.get_ident()

    def refuse(self: threading.Thread) -> None:
        if threading.get_ident() == here:
            raise RealWorld(f"a thread ({self.name}) started inside a simulation")
        start(self)

    threading.Thread.start = refuse  # type: ignore[method-assign]
    try:
        yield
    finally:
        threading.Thread.start = start  # type: ignore[method-assign]
