"""The register protocol's messages. A ballot travels as ``(round, proposer)``, a version as ``(round, proposer, seq)``, a key as
its three parts. Ballots that come back are what is promised now: the request was granted when they equal its own. A ``fence`` is the
ballot of the last purge that was fenced where the answer comes from (`cluster.register.purge`)."""

from __future__ import annotations

from dataclasses import dataclass

from cluster.register.ballot import NO_BALLOT, Ballot, Version
from cluster.register.key import RegisterKey
from cluster.register.record import Record
from cluster.rpc.message import Request, message


@message
@dataclass(frozen=True, slots=True)
class Promise:
    round: int
    proposer: str
    stores: bytes
    fence_round: int = NO_BALLOT.round
    fence_proposer: str = NO_BALLOT.proposer

    @property
    def ballot(self) -> Ballot:
        return Ballot(self.round, self.proposer)

    @property
    def fence(self) -> Ballot:
        return Ballot(self.fence_round, self.fence_proposer)


@message("register.prepare", reply=Promise)
@dataclass(frozen=True, slots=True)
class Prepare(Request[Promise]):
    """Promise to refuse every lower ballot in this partition."""

    partition: int
    round: int
    proposer: str


@message
@dataclass(frozen=True, slots=True)
class Learned:
    promised_round: int
    promised_proposer: str
    stores: bytes
    round: int
    proposer: str
    seq: int
    value: bytes | None

    @property
    def promised(self) -> Ballot:
        return Ballot(self.promised_round, self.promised_proposer)

    @property
    def record(self) -> Record:
        return Record(Version(self.round, self.proposer, self.seq), self.value)


@message("register.learn", reply=Learned)
@dataclass(frozen=True, slots=True)
class Learn(Request[Learned]):
    """The newest accepted value of one register, under a promise of this ballot. ``stores`` is the term's: a replica that
    believes in other ones refuses."""

    partition: int
    round: int
    proposer: str
    stores: bytes
    table: str
    partition_key: bytes
    sort_key: bytes

    @property
    def key(self) -> RegisterKey:
        return RegisterKey(self.table, self.partition_key, self.sort_key)


@message("register.accept", reply=Promise)
@dataclass(frozen=True, slots=True)
class Accept(Request[Promise]):
    """Accept a value under this ballot, durably. ``value`` None is a tombstone. ``epoch`` and ``stores`` are the term's: the
    request may have waited for a connection while the sender's own moved on."""

    partition: int
    epoch: int
    stores: bytes
    round: int
    proposer: str
    seq: int
    table: str
    partition_key: bytes
    sort_key: bytes
    value: bytes | None

    @property
    def key(self) -> RegisterKey:
        return RegisterKey(self.table, self.partition_key, self.sort_key)

    @property
    def record(self) -> Record:
        return Record(Version(self.round, self.proposer, self.seq), self.value)


@message
@dataclass(frozen=True, slots=True)
class Value:
    """``stores``: which disks the one who answers believes the replicas to have."""

    round: int
    proposer: str
    seq: int
    value: bytes | None
    fence_round: int = NO_BALLOT.round
    fence_proposer: str = NO_BALLOT.proposer
    stores: bytes = b""

    @property
    def record(self) -> Record:
        return Record(Version(self.round, self.proposer, self.seq), self.value)

    @property
    def fence(self) -> Ballot:
        return Ballot(self.fence_round, self.fence_proposer)


@message("register.read", reply=Value)
@dataclass(frozen=True, slots=True)
class Read(Request[Value]):
    """One replica's durable record of a register."""

    partition: int
    table: str
    partition_key: bytes
    sort_key: bytes

    @property
    def key(self) -> RegisterKey:
        return RegisterKey(self.table, self.partition_key, self.sort_key)


@message
@dataclass(frozen=True, slots=True)
class Entry:
    """A register of a page: for a scan the table and partition key are the request's and left empty."""

    table: str
    partition_key: bytes
    sort_key: bytes
    round: int
    proposer: str
    seq: int
    value: bytes | None

    @property
    def key(self) -> RegisterKey:
        return RegisterKey(self.table, self.partition_key, self.sort_key)

    @property
    def record(self) -> Record:
        return Record(Version(self.round, self.proposer, self.seq), self.value)


@message
@dataclass(frozen=True, slots=True)
class Scanned:
    """``stores``: as in `Value`."""

    entries: tuple[Entry, ...]
    more: bool
    stores: bytes = b""


@message("register.scan", reply=Scanned)
@dataclass(frozen=True, slots=True)
class Scan(Request[Scanned]):
    """One replica's durable records of a range, tombstones included, in order of sort key."""

    partition: int
    table: str
    partition_key: bytes
    after: bytes
    prefix: bytes
    limit: int


@message
@dataclass(frozen=True, slots=True)
class Updated:
    """The version is that of ``current``, the fence what the leader's term began under."""

    applied: bool
    current: bytes | None
    round: int
    proposer: str
    seq: int
    fence_round: int = NO_BALLOT.round
    fence_proposer: str = NO_BALLOT.proposer

    @property
    def record(self) -> Record:
        return Record(Version(self.round, self.proposer, self.seq), self.current)

    @property
    def fence(self) -> Ballot:
        return Ballot(self.fence_round, self.fence_proposer)


@message("register.update", reply=Updated)
@dataclass(frozen=True, slots=True)
class Update(Request[Updated]):
    """Asks the receiver to lead an update (`cluster.register.change`)."""

    partition: int
    table: str
    partition_key: bytes
    sort_key: bytes
    mode: str
    value: bytes | None
    expected: bytes

    @property
    def key(self) -> RegisterKey:
        return RegisterKey(self.table, self.partition_key, self.sort_key)


@message
@dataclass(frozen=True, slots=True)
class Exported:
    promised_round: int
    promised_proposer: str
    entries: tuple[Entry, ...]
    more: bool
    fence_round: int = NO_BALLOT.round
    fence_proposer: str = NO_BALLOT.proposer

    @property
    def promised(self) -> Ballot:
        return Ballot(self.promised_round, self.promised_proposer)

    @property
    def fence(self) -> Ballot:
        return Ballot(self.fence_round, self.fence_proposer)


@message("register.export", reply=Exported)
@dataclass(frozen=True, slots=True)
class Export(Request[Exported]):
    """A page of everything that a voter holds in a partition, for a replica that copies it. ``started`` False asks for the
    first page."""

    partition: int
    started: bool
    table: str
    partition_key: bytes
    sort_key: bytes
    limit: int


@message
@dataclass(frozen=True, slots=True)
class Tombstone:
    """A deleted register, and the version of its deletion."""

    table: str
    partition_key: bytes
    sort_key: bytes
    round: int
    proposer: str
    seq: int

    @property
    def key(self) -> RegisterKey:
        return RegisterKey(self.table, self.partition_key, self.sort_key)

    @property
    def version(self) -> Version:
        return Version(self.round, self.proposer, self.seq)


@message
@dataclass(frozen=True, slots=True)
class Fenced:
    """``held``: which of the tombstones the replica held, at exactly their versions, when it took the fence up; empty when it was not
    granted."""

    granted: bool
    round: int
    proposer: str
    stores: bytes
    held: tuple[bool, ...]

    @property
    def promised(self) -> Ballot:
        return Ballot(self.round, self.proposer)


@message("register.fence-purge", reply=Fenced)
@dataclass(frozen=True, slots=True)
class FencePurge(Request[Fenced]):
    """Promise this new ballot, and make it the partition's fence, durably; say which of these tombstones are held then. Only a voter
    answers, and only under exactly this epoch and these stores."""

    partition: int
    epoch: int
    stores: bytes
    round: int
    proposer: str
    tombstones: tuple[Tombstone, ...]


@message
@dataclass(frozen=True, slots=True)
class Purged:
    count: int


@message("register.purge", reply=Purged)
@dataclass(frozen=True, slots=True)
class Purge(Request[Purged]):
    """Forget these tombstones, which all replicas held when they took up the fence of this ballot; one that is no longer exactly that
    tombstone stays."""

    partition: int
    epoch: int
    stores: bytes
    round: int
    proposer: str
    tombstones: tuple[Tombstone, ...]
