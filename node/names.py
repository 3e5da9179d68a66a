"""Names of peers to addresses, by the system's resolver.

The resolver blocks, for many seconds where no name server answers, and can't be called back. In Compose and Kubernetes a dead node's
name is gone with it, so that is the usual case after a death and not a rare one. Therefore a look-up is shared by all who want the
same name while it is under way (no more threads than names, however often peers are tried), goes on unheard when they have given
up, and is not waited for when the daemon ends: its thread ends with the process. Nothing is remembered: addresses change.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
import threading
from collections.abc import Callable

Resolve = Callable[[str], tuple[str, ...]]


def resolve(host: str) -> tuple[str, ...]:
    """The addresses of a host, in the system's order of preference. Blocks. Raises OSError."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except UnicodeError as error:
        raise OSError(f"{host!r} can't be the name of a host: {error}") from error
    return tuple(dict.fromkeys(str(address[0]) for *_, address in found))


_Found = tuple[str, ...] | OSError
"""What came of a look-up. A failure is a value until somebody takes it: one that nobody waits for is no event."""


class NameLookup:
    """Meets `cluster.doors.network.Names`. For one event loop."""

    def __init__(self, resolve: Resolve = resolve) -> None:
        self._resolve = resolve
        self._under_way: dict[str, asyncio.Future[_Found]] = {}

    async def addresses(self, host: str) -> tuple[str, ...]:
        with contextlib.suppress(ValueError):
            ipaddress.ip_address(host)
            return (host,)
        answer = self._under_way.get(host)
        if answer is None:
            loop = asyncio.get_running_loop()
            answer = loop.create_future()
            threading.Thread(target=self._look_up, args=(host, loop), name=f"look up {host}", daemon=True).start()
            self._under_way[host] = answer
        found = await asyncio.shield(answer)
        if isinstance(found, OSError):
            raise found
        return found

    def _look_up(self, host: str, loop: asyncio.AbstractEventLoop) -> None:
        """In a thread of its own."""
        found: _Found
        try:
            found = self._resolve(host)
        except OSError as error:
            found = error
        with contextlib.suppress(RuntimeError):  # the loop has been closed meanwhile: nobody waits
            loop.call_soon_threadsafe(self._answered, host, found)

    def _answered(self, host: str, found: _Found) -> None:
        self._under_way.pop(host).set_result(found)
