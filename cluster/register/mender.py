from __future__ import annotations
from collections.abc import Sequence
from cluster.errors import HoldfastError, StaleLayout
from cluster.register.acceptor import Acceptor
from cluster.register.ballot import NO_BALLOT
from cluster.register.copying import Copied
from cluster.register.key import RegisterKey
from cluster.register.messages import Read
from cluster.register.registers import Registers
from cluster.register.scatter import Scatter
from cluster.register.view import LayoutView


class RegisterMender:
    def __init__(self, me: str, acceptor: Acceptor, registers: Registers, scatter: Scatter, view: LayoutView) -> None:
        self._a, self._r, self._s, self._v = acceptor, registers, scatter, view

    async def mend(self, partition: int, keys: Sequence[RegisterKey]) -> None:
        for key in keys:
            rule, epoch = self._v.rule(partition), self._v.epoch
            got = {}
            async for name, answer in self._s.send(
                rule.members, Read(partition, key.table, key.partition, key.sort), deadline_s=2
            ):
                if not isinstance(answer, HoldfastError):
                    got[name] = answer.message.record
            if not got or not self._v.check(epoch):
                raise StaleLayout("x")
            newest = max(got.values(), key=lambda r: r.version)
            if rule.satisfied([n for n, r in got.items() if r.version == newest.version]):
                await self._a.import_records(partition, [Copied(key, newest, True)], NO_BALLOT)
            else:
                await self._r.settle(key, partition=partition)
