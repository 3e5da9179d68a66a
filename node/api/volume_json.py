"""How a volume looks in JSON and in headers. Pure."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from email.utils import formatdate
from functools import lru_cache
from typing import Any
from urllib.parse import quote

from cluster.volumes.volume import Volume


def volume_json(volume: Volume, passes: int) -> dict[str, Any]:
    """The Volume object of the API: sizes in bytes, times in RFC 3339 (UTC), and the formulas P, R and T, the last with ``passes``
    full comparisons made (m)."""
    return {
        "name": volume.name,
        "id": volume.id.hex(),
        "size": volume.size,
        "chunk_size": volume.chunk_size,
        "replicas": volume.replicas,
        "durability": volume.durability,
        "etag": volume.etag,
        "generation": volume.generation,
        "created_at": _rfc3339(volume.created_at),
        "modified_at": _rfc3339(volume.modified_at),
        "map": {"inline": volume.map_inline},
        **replace(volume.formulas, passes=passes).to_json(),
    }


def quoted_etag(volume: Volume) -> str:
    """The strong entity tag as headers carry it."""
    return f'"{volume.etag}"'


def location(volume: Volume) -> str:
    return "/v1/volumes/" + quote(volume.name, safe="")


def last_modified(volume: Volume, now: float) -> str:
    """The Last-Modified value: never later than `now`, the moment of answering (RFC 9110 section 8.8.2.1); clocks differ."""
    return _http_date(int(min(volume.modified_at, now)))


@lru_cache(maxsize=4096)
def _http_date(seconds: int) -> str:
    return formatdate(seconds, usegmt=True)


def _rfc3339(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
