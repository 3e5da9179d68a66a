"""What a volume may be called and how it may be shaped: the only place where users' values are judged.

Every function returns the value it was given, or raises Invalid with the ``field`` in the details and what would be right in the
message. Pure.
"""

from __future__ import annotations

import re

from cluster.errors import Invalid

NAME_LIMIT = 128
"""Characters in a volume's name: fits a DNS-like label path, a file name and a register's sort key with room to spare."""

MAX_VOLUME_BYTES = 1 << 56
"""64 PiB. A cell number (address / chunk size) then fits the 6 bytes that a reference has for it, at the smallest chunk size."""

MIN_CHUNK_BYTES = 4 << 10
MAX_CHUNK_BYTES = 4 << 20
DEFAULT_CHUNK_BYTES = 4 << 20
MAX_REPLICAS = 7
DEFAULT_REPLICAS = 3
DEFAULT_DURABILITY = "fsync"
DURABILITIES = (DEFAULT_DURABILITY,)
"""What an acknowledgement means: "fsync" = on a quorum of disks after fdatasync. No weaker promise is offered."""

name_pattern = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,126}[a-z0-9])?")
prefix_pattern = re.compile(r"(?:[a-z0-9][a-z0-9._-]{0,127})?")


def check_name(name: object) -> str:
    if not isinstance(name, str) or name_pattern.fullmatch(name) is None:
        raise Invalid(
            f"{str(name)[:64]!r} is no volume name: use 1 to {NAME_LIMIT} of a-z, 0-9, '.', '_' and '-', "
            "beginning and ending with a letter or digit.",
            field="name",
        )
    return name


def check_prefix(prefix: object, field: str = "prefix") -> str:
    """The beginning of a name (may be empty, may end with any of the characters of a name)."""
    if not isinstance(prefix, str) or prefix_pattern.fullmatch(prefix) is None:
        raise Invalid(f"{str(prefix)[:64]!r} is not the beginning of any volume name.", field=field)
    return prefix


def check_size(size: object, field: str = "size") -> int:
    """Bytes, 0 to MAX_VOLUME_BYTES."""
    if not isinstance(size, int) or isinstance(size, bool):
        raise Invalid(f"The {field} must be a whole number of bytes.", field=field)
    if not 0 <= size <= MAX_VOLUME_BYTES:
        raise Invalid(f"A {field} of {size} is outside 0 to {MAX_VOLUME_BYTES} bytes (64 PiB).", field=field)
    return size


def check_chunk_size(chunk_size: object) -> int:
    """Bytes, a power of two from 4 KiB to 4 MiB."""
    if not isinstance(chunk_size, int) or isinstance(chunk_size, bool):
        raise Invalid("The chunk size must be a whole number of bytes.", field="chunk_size")
    if not MIN_CHUNK_BYTES <= chunk_size <= MAX_CHUNK_BYTES or chunk_size & (chunk_size - 1):
        raise Invalid(
            f"A chunk size of {chunk_size} is not possible: use a power of two from {MIN_CHUNK_BYTES} to {MAX_CHUNK_BYTES} bytes.",
            field="chunk_size",
        )
    return chunk_size


def check_replicas(replicas: object, nodes: int) -> int:
    """Copies of each chunk, 1 to MAX_REPLICAS and to the number of ``nodes`` in the cluster."""
    if not isinstance(replicas, int) or isinstance(replicas, bool):
        raise Invalid("The number of replicas must be a whole number.", field="replicas")
    if not 1 <= replicas <= MAX_REPLICAS:
        raise Invalid(f"{replicas} replicas are not possible: use 1 to {MAX_REPLICAS}.", field="replicas")
    if replicas > nodes:
        raise Invalid(
            f"{replicas} replicas need as many nodes, the cluster has {nodes}: ask for fewer replicas or add nodes first.",
            field="replicas",
        )
    return replicas


def check_durability(durability: object) -> str:
    if not isinstance(durability, str) or durability not in DURABILITIES:
        raise Invalid(
            f"Durability {str(durability)[:32]!r} is not offered: use {' or '.join(DURABILITIES)}.", field="durability"
        )
    return durability
