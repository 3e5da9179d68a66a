"""Users of registers: they read, write, compare and set, delete and scan registers of a table of their own, and remember what they saw."""

from __future__ import annotations

import random

from cluster.register.key import RegisterKey
from tests.simulation.result import BrokenError
from tests.simulation.users import ANSWERED, NOT_DONE, REFUSED, UNKNOWN, Users
from tests.support.history.linearizability import is_linearizable
from tests.support.history.operation import CAS, NEVER, PUT, READ, Operation
from tests.support.simulated.whole_cluster import Machine

TABLE = "campaign"
PARTITION_KEYS = (b"p", b"q")
SORT_KEYS = (b"k0", b"k1", b"k2")

KINDS = ("read", "put", "cas", "blind", "scan")
WEIGHTS = (35, 12, 35, 10, 8)


class RegisterUsers:
    def __init__(self, users: Users, deletes: float) -> None:
        self._users = users
        self._deletes = deletes
        self.keys = [RegisterKey(TABLE, partition, sort) for partition in PARTITION_KEYS for sort in SORT_KEYS]
        self.histories: dict[RegisterKey, list[Operation]] = {key: [] for key in self.keys}

    async def act(self, machine: Machine, rng: random.Random) -> None:
        """Something or other."""
        key = rng.choice(self.keys)
        give_up_s = rng.random() * 0.02 if rng.random() < 0.04 else None
        kind = "delete" if rng.random() < self._deletes else rng.choices(KINDS, WEIGHTS)[0]
        if kind == "read":
            await self.read(machine, key)
        elif kind == "scan":
            await self.scan(machine, key.partition, rng.choice([1, 2, 10]))
        elif kind == "put":
            await self.put(machine, key, give_up_s)
        elif kind == "blind":
            await self._change(machine, key, None, self._value(), give_up_s)
        else:
            answered, current = await self.read(machine, key)
            if answered:
                await self._change(machine, key, current, None if kind == "delete" else self._value(), give_up_s)

    def _value(self) -> bytes:
        return b"v%d" % self._users.number()

    async def read(self, machine: Machine, key: RegisterKey) -> tuple[bool, bytes | None]:
        """Whether there was an answer, and what it was."""
        users = self._users
        call = users.now()
        answer = await users.ask(machine, f"read {name_of(key)}", machine.running.registers.read(key))
        if answer.ended != ANSWERED:
            return False, None
        self._note(key, Operation(READ, call, users.now(), answer.result, who=machine.name))
        return True, answer.result

    async def write(self, machine: Machine, key: RegisterKey) -> bool:
        """A conditional write on what is there; whether it was answered."""
        answered, current = await self.read(machine, key)
        return answered and await self._change(machine, key, current, self._value(), None)

    async def guess(self, machine: Machine, key: RegisterKey) -> None:
        """A write on condition of something that was never there: the leader says what is."""
        await self._change(machine, key, b"never", self._value(), None)

    async def put(self, machine: Machine, key: RegisterKey, give_up_s: float | None) -> None:
        """Whatever is there."""
        users, value = self._users, self._value()
        call = users.now()
        work = machine.running.registers.put(key, value)
        answer = await users.ask(machine, f"put {value.decode()} {name_of(key)}", work, give_up_s)
        if answer.ended in {ANSWERED, UNKNOWN}:
            ret = users.now() if answer.ended == ANSWERED else NEVER
            self._note(key, Operation(PUT, call, ret, value, who=machine.name))
        self._never_refused(answer.ended, key)

    async def _change(
        self, machine: Machine, key: RegisterKey, expected: bytes | None, value: bytes | None, give_up_s: float | None
    ) -> bool:
        users = self._users
        kind = "delete" if value is None else "cas"
        call = users.now()
        work = machine.running.registers.compare_and_set(key, expected, value)
        answer = await users.ask(machine, f"{kind} {expected!r}->{value!r} {name_of(key)}", work, give_up_s)
        self._never_refused(answer.ended, key)
        if answer.ended == NOT_DONE:
            return False
        if expected is None and value is None:
            if answer.ended == ANSWERED:
                self._note(key, Operation(READ, call, users.now(), answer.result.current, who=machine.name))
        elif answer.ended == UNKNOWN:
            self._note(key, Operation(CAS, call, NEVER, value, expected, who=machine.name))
        else:
            applied = answer.result.applied
            seen = None if applied else answer.result.current
            self._note(key, Operation(CAS, call, users.now(), value, expected, applied, seen, machine.name))
        return answer.ended == ANSWERED

    async def scan(self, machine: Machine, partition: bytes, limit: int) -> bool:
        """A listing is a read of every register in its range. Whether it came to its end."""
        users = self._users
        after = b""
        while True:
            call = users.now()
            work = machine.running.registers.scan(TABLE, partition, after, b"k", limit)
            answer = await users.ask(machine, f"scan {partition.decode()} after {after!r}", work)
            if answer.ended != ANSWERED:
                return False
            page = answer.result
            listed: dict[bytes, bytes] = dict(page.entries)
            in_order = [key for key, _ in page.entries] == sorted(listed) and len(page.entries) <= limit
            if not in_order or (page.resume is not None and page.resume <= after):
                raise BrokenError("listings are in order", f"{page} after {after!r}, at most {limit}")
            for key in self.keys:
                if key.partition == partition and key.sort > after and (page.resume is None or key.sort <= page.resume):
                    who = f"{machine.name} scan"
                    self._note(key, Operation(READ, call, users.now(), listed.pop(key.sort, None), who=who))
            if listed:
                raise BrokenError("listings are in order", f"{listed} are outside of {page.resume!r} and {after!r}")
            if page.resume is None:
                return True
            after = page.resume

    def check(self) -> None:
        """Every history is linearizable."""
        for key, history in self.histories.items():
            if not is_linearizable(history):
                raise BrokenError(
                    "registers are linearizable",
                    f"no order explains what was seen of {name_of(key)}: "
                    + "; ".join(map(_told, sorted(history, key=lambda operation: operation.call)[-25:])),
                    name_of(key),
                )

    def _note(self, key: RegisterKey, operation: Operation) -> None:
        self.histories[key].append(operation)

    @staticmethod
    def _never_refused(ended: str, key: RegisterKey) -> None:
        if ended == REFUSED:
            raise BrokenError("errors are those promised", f"an update of {name_of(key)} was refused")


def name_of(key: RegisterKey) -> str:
    return f"{key.partition.decode()}/{key.sort.decode()}"


def _told(operation: Operation) -> str:
    condition = "" if operation.kind != CAS else f" if {operation.expected!r}"
    failed = "" if operation.applied else f" failed on {operation.seen!r}"
    return f"[{operation.call:.4f}-{operation.ret:.4f}] {operation.kind} {operation.value!r}{condition}{failed}"
