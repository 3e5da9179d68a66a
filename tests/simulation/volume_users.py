"""Users of volumes, through `core.volumes` as the API uses it: every request is recorded with what it read or wrote."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator

from blake3 import blake3

from cluster.errors import Conflict, Invalid, NotFound
from cluster.volumes.volume import UNCONDITIONAL, Condition
from tests.simulation import acknowledged
from tests.simulation.campaign_cluster import RETIRED_GRACE_S
from tests.simulation.result import BrokenError
from tests.simulation.users import ANSWERED, NOT_DONE, REFUSED, UNKNOWN, Answer, Users
from tests.simulation.volume_history import (
    ANYTHING,
    CONFLICT,
    CREATE,
    DELETE,
    LISTED,
    MISFIT,
    MISSING,
    OK,
    RANGE,
    READ,
    REPLACE,
    RESIZE,
    VolumeOperation,
    is_explained,
)
from tests.support.history.operation import NEVER
from tests.support.simulated.whole_cluster import Machine

NAMES = ("v0", "v1", "v2", "v3")
CHUNK_SIZE = 4096
REPLICAS = 3
POPULARITY = (6, 2, 1, 1)
"""Most meet at one of them."""

SLOW_READER_S = 0.35
"""The most between two pieces: also the largest content is read within the time for which replaced versions are kept."""

SLOWEST_BODY_S = 4.0
"""The most that a client takes to send a content: an operation ends within 10 s when everybody is there (`users.CALM_ENDS_WITHIN_S`), and a
write that is older than `campaign_cluster.SETTINGS.sweep_age_s` may be taken for one that died."""

CHANGES_LATE_S = 30.0
"""So long after the last of a volume's changes was asked for or answered, none of them can have replaced what a reader reads now."""

NOISE = 20
"""Bytes between two tags of a content."""

KINDS = ("read", "replace", "conditional", "range", "resize", "create", "list")
WEIGHTS = (40, 22, 12, 14, 4, 4, 4)


class VolumeUsers:
    def __init__(self, users: Users, deletes: float, slow_readers: float) -> None:
        self._users = users
        self._deletes = deletes
        self._slow_readers = slow_readers
        self.histories: dict[str, list[VolumeOperation]] = {name: [] for name in NAMES}
        self._contents: dict[str, bytes] = {}
        """Etag -> the content that it was seen to name."""
        self._changed_at = dict.fromkeys(NAMES, -CHANGES_LATE_S)
        """When somebody last asked for a change, or was told how it ended."""

    async def act(self, machine: Machine, rng: random.Random) -> None:
        name = rng.choices(NAMES, POPULARITY)[0]
        kind = "delete" if rng.random() < self._deletes else rng.choices(KINDS, WEIGHTS)[0]
        give_up_s = rng.random() * 0.05 if rng.random() < 0.04 else None
        if kind == "read":
            await self.read(machine, name, rng.random() * SLOW_READER_S if rng.random() < self._slow_readers else 0.0)
        elif kind == "replace":
            await self._replace(machine, name, rng, None, give_up_s)
        elif kind == "conditional":
            seen = await self.read(machine, name) if rng.random() < 0.7 else ""
            if seen is not None:
                await self._replace(machine, name, rng, seen, give_up_s)
        elif kind == "range":
            await self._range(machine, name, rng, give_up_s)
        elif kind == "resize":
            await self._resize(machine, name, 3 * self._users.number() + rng.randrange(20_000), give_up_s)
        elif kind == "create":
            await self._create(machine, name, 5 * self._users.number() + rng.randrange(9_000), give_up_s)
        elif kind == "list":
            await self.list_all(machine)
        else:
            await self._delete(machine, name, give_up_s)

    # Looking

    async def read(self, machine: Machine, name: str, pause_s: float = 0.0) -> str | None:
        """The version's etag, "" when there is no volume, None without an answer. ``pause_s``: of the reader, between two pieces."""
        users = self._users
        call = users.now()
        answer = await users.ask(machine, f"get {name}", self._content(machine, name, pause_s))
        if answer.ended == REFUSED and self._is_missing(answer):
            self._note(name, VolumeOperation(READ, call, users.now(), value=None, who=machine.name))
            return ""
        if answer.ended == REFUSED:
            if users.now() - call < RETIRED_GRACE_S or call - self._changed_at[name] > CHANGES_LATE_S:
                raise BrokenError(
                    "nothing acknowledged is lost",
                    f"{name} could not be read: {answer.result}",
                    name,
                )
            return None
        if answer.ended != ANSWERED:
            return None
        etag, content = answer.result
        self._names(name, etag, content)
        self._note(name, VolumeOperation(READ, call, users.now(), value=content, who=machine.name))
        return str(etag)

    async def _content(self, machine: Machine, name: str, pause_s: float) -> tuple[str, bytes]:
        opened = await machine.running.volumes.open(name)
        pieces: list[bytes] = []
        async for piece in opened.read(0, opened.volume.size):
            pieces.append(bytes(piece))
            if pause_s:
                await asyncio.sleep(pause_s)
        return opened.volume.etag, b"".join(pieces)

    async def list_all(self, machine: Machine) -> bool:
        users = self._users
        call = users.now()
        answer = await users.ask(machine, "list", machine.running.volumes.list(prefix="v"))
        if answer.ended != ANSWERED:
            return False
        found = {volume.name: volume for volume in answer.result.volumes}
        if list(found) != sorted(found) or set(found) - set(NAMES) or answer.result.next_after is not None:
            raise BrokenError("listings are in order", str(answer.result))
        for name in NAMES:
            volume = found.get(name)
            size, content = (None, None) if volume is None else (volume.size, self._contents.get(volume.etag))
            listed = VolumeOperation(LISTED, call, users.now(), size=size, value=content, who=machine.name)
            self._note(name, listed)
        return True

    # Changing

    async def write(self, machine: Machine, name: str, rng: random.Random) -> bool:
        """A whole new content; whether it was answered."""
        return await self._replace(machine, name, rng, None, None)

    async def _replace(
        self, machine: Machine, name: str, rng: random.Random, etag: str | None, give_up_s: float | None
    ) -> bool:
        """``etag``: of the version that is to be replaced, "" for none; None: whatever there is."""
        users = self._users
        tag, content = self._some_content(name, rng)
        expected: bytes | str | None = ANYTHING
        condition = UNCONDITIONAL
        if etag == "":
            expected, condition = None, Condition(if_none_match=frozenset({"*"}))
        elif etag is not None:
            expected, condition = self._contents[etag], Condition(if_match=frozenset({etag}))
        call, losses, stored = self._begin_change(name), users.cluster.losses, self._begin_storing()
        length = len(content) if rng.random() < 0.7 else None
        work = machine.running.volumes.replace(name, body(content, rng), length, condition, chunk_size=CHUNK_SIZE)
        what = f"replace {tag.decode()} of {len(content)}{'' if etag is None else f' if {etag!r}'} {name}"
        answer = await users.ask(machine, what, work, give_up_s)
        if answer.ended == ANSWERED:
            self._names(name, answer.result[0].etag, content)
            self._is_acknowledged(call, losses, stored, what)
        self._changed(
            answer,
            name,
            VolumeOperation(REPLACE, call, NEVER, value=content, expected=expected, tag=tag, who=machine.name),
        )
        return answer.ended == ANSWERED

    async def _range(self, machine: Machine, name: str, rng: random.Random, give_up_s: float | None) -> None:
        users = self._users
        tag, content = self._some_content(name, rng)
        content = content[: rng.randrange(len(tag), len(content) + 1)]
        offset = rng.choice([0, CHUNK_SIZE, rng.randrange(12_000)])
        call, losses, stored = self._begin_change(name), users.cluster.losses, self._begin_storing()
        work = machine.running.volumes.write_range(name, offset, body(content, rng), len(content))
        what = f"range {tag.decode()} {offset}+{len(content)} {name}"
        answer = await users.ask(machine, what, work, give_up_s)
        if answer.ended == ANSWERED:
            self._is_acknowledged(call, losses, stored, what)
        self._changed(
            answer,
            name,
            VolumeOperation(RANGE, call, NEVER, value=content, offset=offset, tag=tag, who=machine.name),
        )

    async def _resize(self, machine: Machine, name: str, size: int, give_up_s: float | None) -> None:
        call = self._begin_change(name)
        work = machine.running.volumes.resize(name, size)
        answer = await self._users.ask(machine, f"resize {size} {name}", work, give_up_s)
        self._changed(answer, name, VolumeOperation(RESIZE, call, NEVER, size=size, who=machine.name))

    async def _create(self, machine: Machine, name: str, size: int, give_up_s: float | None) -> None:
        call = self._begin_change(name)
        work = machine.running.volumes.create(name, size, chunk_size=CHUNK_SIZE)
        answer = await self._users.ask(machine, f"create {size} {name}", work, give_up_s)
        self._changed(answer, name, VolumeOperation(CREATE, call, NEVER, size=size, who=machine.name))

    async def _delete(self, machine: Machine, name: str, give_up_s: float | None) -> None:
        call = self._begin_change(name)
        answer = await self._users.ask(machine, f"remove {name}", machine.running.volumes.delete(name), give_up_s)
        self._changed(answer, name, VolumeOperation(DELETE, call, NEVER, who=machine.name))

    def _begin_change(self, name: str) -> float:
        """When it begins: now."""
        self._changed_at[name] = self._users.now()
        return self._changed_at[name]

    def _changed(self, answer: Answer, name: str, operation: VolumeOperation) -> None:
        """Note a change of which only the end is missing."""
        self._changed_at[name] = self._users.now()
        if answer.ended == NOT_DONE:
            return
        ended, ret = OK, NEVER if answer.ended == UNKNOWN else self._users.now()
        if answer.ended == REFUSED:
            error = answer.result
            if isinstance(error, Conflict):
                if "condition" in error.details and error.details["condition"] in {"shape", "fenced"}:
                    return  # told to repeat it, for a reason that is not the content's
                if operation.kind not in {CREATE, REPLACE} or "etag" not in error.details:
                    raise BrokenError(
                        "errors are those promised", f"{operation.kind} of {name}: {error} {error.details}", name
                    )
                ended = CONFLICT
            elif isinstance(error, Invalid):
                ended = MISFIT
            elif self._is_missing(answer):
                ended = MISSING
            else:
                raise BrokenError("nothing acknowledged is lost", f"{operation.kind} of {name}: {error}", name)
        fields = {slot: getattr(operation, slot) for slot in VolumeOperation.__slots__}
        self._note(name, VolumeOperation(**{**fields, "ended": ended, "ret": ret}))

    # What must hold

    @staticmethod
    def _begin_storing() -> list[acknowledged.Stored]:
        """What the request that begins now will have put."""
        stored: list[acknowledged.Stored] = []
        acknowledged.STORED.set(stored)
        return stored

    def _is_acknowledged(self, call: float, losses: int, stored: list[acknowledged.Stored], what: str) -> None:
        users = self._users
        if losses == users.cluster.losses:
            retained = users.now() - call < RETIRED_GRACE_S / 2  # clocks drift
            acknowledged.check(users.cluster, stored, REPLICAS, what, retained=retained)

    def check(self) -> None:
        """Every history can be explained."""
        for name, history in self.histories.items():
            if not is_explained(history):
                raise BrokenError(
                    "volumes are linearizable",
                    f"no order explains what was seen of {name}: "
                    + "; ".join(map(_told, sorted(history, key=lambda operation: operation.call)[-25:])),
                    name,
                )

    def _names(self, name: str, etag: str, content: bytes) -> None:
        known = self._contents.setdefault(etag, content)
        if known != content:
            raise BrokenError(
                "a reader sees exactly one version",
                f"{name} {etag} was seen as {known[:40]!r} of {len(known)} bytes and as {content[:40]!r} of {len(content)}",
                name,
            )

    def _some_content(self, name: str, rng: random.Random) -> tuple[bytes, bytes]:
        """A tag that nothing else carries, and some bytes made of it."""
        tag = f"<{name}#{self._users.number()}>".encode()
        size = rng.choice(
            [len(tag), rng.randrange(len(tag), 3000), rng.randrange(3000, 14_000), rng.randrange(14_000, 40_000)]
        )
        return tag, content_of(tag, size)

    def _note(self, name: str, operation: VolumeOperation) -> None:
        self.histories[name].append(operation)

    @staticmethod
    def _is_missing(answer: Answer) -> bool:
        return isinstance(answer.result, NotFound) and "volume" in answer.result.details


def content_of(tag: bytes, size: int) -> bytes:
    """No two pieces of it are alike, and the tag is never far."""
    noise = blake3(tag).digest(length=NOISE * (size // (len(tag) + NOISE) + 1))
    return b"".join(tag + noise[start : start + NOISE] for start in range(0, len(noise), NOISE))[:size]


async def body(data: bytes, rng: random.Random) -> AsyncIterator[bytes]:
    """As a client sends it: in pieces, some slowly, all of it within `SLOWEST_BODY_S`."""
    piece = rng.choice([1000, 4096, 10_000, 65_536])
    pause_s = min(rng.choice([0.0, 0.0, 0.0, 0.02, 0.3]), SLOWEST_BODY_S * piece / max(1, len(data)))
    for start in range(0, len(data), piece):
        if start and pause_s:
            await asyncio.sleep(pause_s)
        yield data[start : start + piece]


def _told(operation: VolumeOperation) -> str:
    value = "" if operation.value is None else f" {operation.value[:12]!r} of {len(operation.value)}"
    if operation.kind == READ and operation.value is None:
        value = " nothing"
    size = "" if operation.size is None else f" {operation.size}"
    return f"[{operation.call:.4f}-{operation.ret:.4f}] {operation.kind}{value}{size} {operation.ended}"
