"""A volume as the API shows it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from client.errors import ServerFailure


@dataclass(frozen=True, slots=True)
class Volume:
    """One version of a volume's description. Sizes are bytes, times RFC 3339 text; ``raw`` is the whole document."""

    name: str
    size: int
    etag: str
    chunk_size: int
    replicas: int
    durability: str
    generation: int
    created_at: str
    modified_at: str
    raw: Mapping[str, Any] = field(repr=False, compare=False)

    @classmethod
    def from_json(cls, document: Any) -> Volume:
        """Members of a newer release are kept in ``raw`` and otherwise ignored. Raises `ServerFailure`."""
        try:
            return cls(
                name=str(document["name"]),
                size=int(document["size"]),
                etag=str(document["etag"]),
                chunk_size=int(document["chunk_size"]),
                replicas=int(document["replicas"]),
                durability=str(document.get("durability", "")),
                generation=int(document.get("generation", 0)),
                created_at=str(document.get("created_at", "")),
                modified_at=str(document.get("modified_at", "")),
                raw=document,
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ServerFailure(
                f"the server described a volume in a way this client does not understand: {error!r}"
            ) from error
