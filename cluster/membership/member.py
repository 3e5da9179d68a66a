"""A member's record, and which of two records of one name is the newer.

Records are values. `newest` is the only way in which knowledge is combined; it takes the greater record in one total order, so it
is commutative, associative and idempotent, and nodes that have heard the same records agree, whatever the order they came in.

The order: incarnation, then state (alive < suspect < dead < left), then the other fields, so that even two different records
with equal incarnation and state have a newer one. Only the node itself raises its incarnation, so whatever is said about it,
it can refute. An incarnation begins at ``boot * INCARNATIONS_PER_BOOT``: a restarted node is newer than all that was said
about its earlier life. ``ASKING`` (0) is the incarnation of a node that does not know yet whether its name is free.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from enum import Enum

from cluster.errors import Invalid

NAME_PATTERN = re.compile(r"[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?")
"""What a node may be called."""

STORE_ID_BYTES = 8
"""Length of a store id."""

INCARNATIONS_PER_BOOT = 1 << 20
"""Room for the changes and refutations of one life before it runs into the next one's (and nothing breaks when it does)."""

ASKING = 0
"""The incarnation of a node that has not yet heard from the cluster whether its name is free; loses to every claim."""

BOOT_LIMIT = 1 << 31
"""Boots counted; a node that started once a second would get here after 68 years."""

INCARNATION_LIMIT = 1 << 53
"""Incarnations above this are refused where they enter; four times what any boot begins with, and exact in JSON."""

TEXT_LIMIT = 255
"""Characters in a host, zone, API address or release; the longest DNS name."""

CAPACITY_LIMIT = 1 << 62
"""The greatest capacity; far above the bytes of any disk."""


class State(Enum):
    """What is believed of a member. Values are the words people see and the wire carries."""

    ALIVE = "alive"
    SUSPECT = "suspect"
    DEAD = "dead"
    LEFT = "left"


RANK = {State.ALIVE: 0, State.SUSPECT: 1, State.DEAD: 2, State.LEFT: 3}
"""At equal incarnations the worse news is the newer."""


@dataclass(frozen=True, slots=True)
class MemberInfo:
    """What a node says about itself.

    ``host:port`` is where peers reach it, ``api`` ("host:port") where people do; ``store`` is its store id (8 bytes), ``boot`` how
    often that store was started; ``capacity`` is its weight in the layout.
    """

    name: str
    host: str
    port: int
    store: bytes
    boot: int
    zone: str = ""
    capacity: int = 1
    api: str = ""
    layout_version: int = 0
    release: str = ""

    def record(self) -> Member:
        """The first record of this life: asking for its name."""
        return Member(
            name=self.name,
            host=self.host,
            port=self.port,
            incarnation=ASKING,
            state=State.ALIVE,
            zone=self.zone or self.name,
            capacity=self.capacity,
            store=self.store,
            boot=self.boot,
            api=self.api,
            layout_version=self.layout_version,
            release=self.release,
        )


@dataclass(frozen=True, slots=True)
class Member:
    """What is believed of a node. Fields as in `MemberInfo`."""

    name: str
    host: str
    port: int
    incarnation: int
    state: State
    zone: str
    capacity: int
    store: bytes
    boot: int
    api: str
    layout_version: int
    release: str

    @property
    def address(self) -> tuple[str, int]:
        return self.host, self.port

    @property
    def usable(self) -> bool:
        """Alive or suspect: worth a try."""
        return self.state is State.ALIVE or self.state is State.SUSPECT

    def at(self, state: State) -> Member:
        """The same record with another state."""
        return replace(self, state=state)

    def same_but_for_incarnation(self, other: Member) -> bool:
        """Whether nobody but the protocol could tell the two apart."""
        return replace(self, incarnation=other.incarnation) == other


def precedence(member: Member) -> tuple[int, int, bytes, int, str, int, str, int, str, int, str]:
    """The place of a record among all records of its name: the greater is the newer."""
    return (
        member.incarnation,
        RANK[member.state],
        member.store,
        member.boot,
        member.host,
        member.port,
        member.zone,
        member.capacity,
        member.api,
        member.layout_version,
        member.release,
    )


def newest(one: Member, other: Member) -> Member:
    """The newer of two records of one name."""
    assert one.name == other.name
    return one if precedence(one) >= precedence(other) else other


def beats(one: Member, other: Member) -> bool:
    """Whether ``one`` is strictly newer."""
    return precedence(one) > precedence(other)


def first_incarnation(boot: int) -> int:
    """The least incarnation with which the given life claims its name."""
    return boot * INCARNATIONS_PER_BOOT


def check_member(member: Member) -> Member:
    """``member`` itself. Raises Invalid, naming the field, when a field is out of its bounds."""
    if not NAME_PATTERN.fullmatch(member.name):
        raise Invalid(f"A node cannot be called {member.name[:80]!r}: use a-z, 0-9, '.', '-'.", field="name")
    if not member.host or len(member.host) > TEXT_LIMIT:
        raise Invalid(f"Node {member.name} has an empty or overlong host.", field="host")
    if not 0 < member.port < 1 << 16:
        raise Invalid(f"Node {member.name} has port {member.port}, which is none.", field="port")
    if not 0 <= member.incarnation <= INCARNATION_LIMIT:
        raise Invalid(f"Node {member.name} has incarnation {member.incarnation}, out of bounds.", field="incarnation")
    if not 0 <= member.boot <= BOOT_LIMIT:
        raise Invalid(f"Node {member.name} has boot {member.boot}, out of bounds.", field="boot")
    if len(member.store) != STORE_ID_BYTES:
        raise Invalid(f"Node {member.name} has a store id of {len(member.store)} bytes, not 8.", field="store")
    if not 0 <= member.capacity <= CAPACITY_LIMIT or not 0 <= member.layout_version <= INCARNATION_LIMIT:
        raise Invalid(f"Node {member.name} has a capacity or layout version out of bounds.", field="capacity")
    for field in ("zone", "api", "release"):
        if len(getattr(member, field)) > TEXT_LIMIT:
            raise Invalid(f"Node {member.name} has an overlong {field}.", field=field)
    return member
