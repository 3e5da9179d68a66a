"""Everything that uses a cluster from outside.

The library is `Holdfast`, async, on aiohttp alone::

    from client import Holdfast

    async with Holdfast(["http://127.0.0.1:7480", "http://127.0.0.1:7490"]) as holdfast:
        await holdfast.put("disk", b"some bytes")
        assert await holdfast.get("disk") == b"some bytes"

Reading order: `errors` (what a caller can do about a failure), `endpoints` (which node is asked next), `retry` (how long
we keep trying), `liveness` (whether a silent node is busy or hung), `transport` (one call, on whichever node answers),
`sources` (what can be sent more than once), `content` (a download that survives its gateway), `file_sink` (where it goes), `volume`
(what a volume is told to be), `api` (`Holdfast`). `cli` is
the `holdfast` command and `dev` the local cluster behind `holdfast dev`; the library imports neither.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from client.api import Holdfast
    from client.content import Content
    from client.errors import HoldfastError
    from client.retry import RetryPolicy
    from client.volume import Volume

__all__ = ["Content", "Holdfast", "HoldfastError", "RetryPolicy", "Volume"]

_HOMES = {
    "Content": "client.content",
    "Holdfast": "client.api",
    "HoldfastError": "client.errors",
    "RetryPolicy": "client.retry",
    "Volume": "client.volume",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: `holdfast --help` and `holdfast dev kill` need no HTTP stack."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)
