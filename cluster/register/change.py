"""What an update does to a register's value: conditions and new values as plain data, since a function can't travel. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from blake3 import blake3

from cluster.register.ballot import NO_BALLOT, NO_VERSION, Ballot, Version
from cluster.register.record import Record

ANY = "any"
"""No condition."""

ABSENT_ONLY = "absent"
"""The register must not exist, and must not have been written since its absence was seen at the expected version. The version
matters: a late copy of a creation, arriving after the register was created and deleted again, would otherwise create it twice. Where
there is no record, since it was never written or its tombstone was purged, the partition's last fence stands for the version."""

MATCH = "match"
"""The register's value must have the expected digest."""

SETTLE = "settle"
"""Write nothing new: only make sure that what is there is decided."""

DIGEST_BYTES = 16


class Absence:
    """Which absence a creation means, for one that is tried again after an unknown outcome: the register may have been created by the
    first try and deleted since, and must not come back. One per creation; the first try notes in it what it was to create over."""

    __slots__ = ("fence", "version")

    def __init__(self) -> None:
        self.version: Version | None = None
        """None before the first try."""
        self.fence = NO_BALLOT


def digest_of(value: bytes) -> bytes:
    """What stands for a value in a condition: 16 bytes of its BLAKE3."""
    return blake3(value).digest(length=DIGEST_BYTES)


def token_of(version: Version, fence: Ballot) -> bytes:
    """What stands for a version in a condition. The ``fence`` under which it was seen counts only where there is no record."""
    token = f"{version.round}/{version.seq}/{version.proposer}"
    if version == NO_VERSION and fence != NO_BALLOT:
        token += f"#{fence.round}/{fence.proposer}"
    return token.encode()


@dataclass(frozen=True, slots=True)
class Change:
    """``value`` None deletes. ``expected`` is the value's digest with `MATCH`, the version's token with `ABSENT_ONLY`."""

    mode: str
    value: bytes | None = None
    expected: bytes = b""

    def allows(self, current: Record, fence: Ballot) -> bool:
        """Whether the condition holds for a record seen under a ``fence``. `SETTLE` never asks for a write."""
        if self.mode == MATCH:
            return current.value is not None and digest_of(current.value) == self.expected
        if self.mode == ABSENT_ONLY:
            return current.value is None and token_of(current.version, fence) == self.expected
        return self.mode == ANY

    @property
    def once(self) -> bool:
        """Whether a value seen in the register tells by itself who wrote it (conditional writers embed a unique id)."""
        return self.mode in {MATCH, ABSENT_ONLY}


def replacement(expected: bytes, value: bytes | None) -> Change:
    """The change that replaces exactly ``expected`` by ``value`` (None: delete)."""
    return Change(MATCH, value, digest_of(expected))


def creation(absent_at: Version, fence: Ballot, value: bytes | None) -> Change:
    """The change that creates a register that was seen to be absent at a version, under a fence."""
    return Change(ABSENT_ONLY, value, token_of(absent_at, fence))
