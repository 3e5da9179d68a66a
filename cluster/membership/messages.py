"""What members say to each other. Each message carries its sender's own record as ``me`` and other records as ``news``.

A record that this release cannot make sense of (a state it doesn't know, a field out of bounds) is left out by `members_of`, and
the rest of the message is used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from cluster.errors import Invalid
from cluster.membership.member import Member, State, check_member
from cluster.rpc.message import Request, message


@message
@dataclass(frozen=True, slots=True)
class MemberRecord:
    """A `Member` on the wire; ``state`` is the value of a `State`."""

    name: str
    host: str
    port: int
    incarnation: int
    state: str
    zone: str
    capacity: int
    store: bytes
    boot: int
    api: str
    layout_version: int
    release: str


@message
@dataclass(frozen=True, slots=True)
class Ack:
    """I live."""

    me: MemberRecord
    news: tuple[MemberRecord, ...]


@message("membership.ping", reply=Ack)
@dataclass(frozen=True, slots=True)
class PingRequest(Request[Ack]):
    """Do you live? Also carries news without need of an answer."""

    me: MemberRecord
    news: tuple[MemberRecord, ...]


@message
@dataclass(frozen=True, slots=True)
class HelperAnswer:
    """``target``: what the target said about itself; None when it did not answer."""

    me: MemberRecord
    news: tuple[MemberRecord, ...]
    target: MemberRecord | None


@message("membership.help", reply=HelperAnswer)
@dataclass(frozen=True, slots=True)
class HelpRequest(Request[HelperAnswer]):
    """Ping the node called ``target`` for me, and wait ``patience_s`` seconds for its answer."""

    me: MemberRecord
    news: tuple[MemberRecord, ...]
    target: str
    patience_s: float


@message
@dataclass(frozen=True, slots=True)
class Everything:
    """All the records of the answering node."""

    me: MemberRecord
    members: tuple[MemberRecord, ...]


@message("membership.exchange", reply=Everything)
@dataclass(frozen=True, slots=True)
class ExchangeRequest(Request[Everything]):
    """All the records of the asking node."""

    me: MemberRecord
    members: tuple[MemberRecord, ...]


def record_of(member: Member) -> MemberRecord:
    return MemberRecord(
        name=member.name,
        host=member.host,
        port=member.port,
        incarnation=member.incarnation,
        state=member.state.value,
        zone=member.zone,
        capacity=member.capacity,
        store=member.store,
        boot=member.boot,
        api=member.api,
        layout_version=member.layout_version,
        release=member.release,
    )


def records_of(members: Iterable[Member]) -> tuple[MemberRecord, ...]:
    return tuple(map(record_of, members))


STATES = {state.value: state for state in State}


def member_of(record: MemberRecord) -> Member:
    """The member that ``record`` describes. Raises Invalid."""
    state = STATES.get(record.state)
    if state is None:
        raise Invalid(f"This release knows no member state {record.state[:40]!r}.", field="state")
    return check_member(
        Member(
            name=record.name,
            host=record.host,
            port=record.port,
            incarnation=record.incarnation,
            state=state,
            zone=record.zone,
            capacity=record.capacity,
            store=record.store,
            boot=record.boot,
            api=record.api,
            layout_version=record.layout_version,
            release=record.release,
        )
    )


def members_of(records: Iterable[MemberRecord], refused: Callable[[MemberRecord, Invalid], None]) -> list[Member]:
    """The members described; ``refused`` is told of each record left out."""
    members = []
    for record in records:
        try:
            members.append(member_of(record))
        except Invalid as error:
            refused(record, error)
    return members
