"""Clients of a real cluster that record everything they ask and are told, for `tests.support.history` to judge.

A volume is a register: its content is a value that nobody else writes, its ETag stands for the version. Each request goes to one gateway
and is never repeated. An answer that is no answer (a broken connection, a time-out, 503 outcome-unknown, an error of the server) leaves
a write unknown; a refusal that promises that nothing was changed leaves it out, which is a promise that is judged as well.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Sequence

import aiohttp

from tests.cluster.gateway import Answer, Gateway
from tests.support.history.history import History
from tests.support.history.operation import CAS, DELETE, NEVER, PUT, READ, Operation
from tests.support.history.scans import Page

REQUEST_TIMEOUT_S = 4.0
"""A client that has waited so long turns away; what it asked for may still happen."""

NOTHING_DONE = frozenset(("quorum-unavailable", "not-ready", "busy", "peer-unavailable", "stale-layout", "no-space"))
"""Refusals after which certainly nothing was changed."""

WEIGHTS = {"read": 30, "show": 5, "create": 14, "replace": 22, "put": 10, "remove": 10, "delete": 3, "list": 6}
PAGE_LIMITS = (1, 3, 100)


class Recorder:
    """``names``: of the volumes that the clients use. What is unknown stays unknown until `history` is asked for: an ETag in a refusal may
    be one that a later read explains."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = list(names)
        self.counts: Counter[str] = Counter()
        self.values = 0
        self._operations: list[tuple[str, Operation, str | None]] = []
        """With an ETag: the operation saw the version of that one."""
        self._listings: list[list[tuple[Page, dict[bytes, str]]]] = []
        self._values_of: dict[str, bytes] = {}
        """By ETag."""

    def value(self) -> bytes:
        self.values += 1
        return b"value-%d" % self.values

    def knows(self, etag: str, value: bytes) -> None:
        """An ETag stands for one content for ever."""
        known = self._values_of.setdefault(etag, value)
        assert known == value, f"the ETag {etag} stands for {known!r} and for {value!r}"

    def value_of(self, etag: str) -> bytes | None:
        return self._values_of.get(etag)

    def add(self, name: str, operation: Operation, etag: str | None = None) -> None:
        self._operations.append((name, operation, etag))
        self.counts[operation.kind if operation.is_known else "unknown"] += 1

    def add_listing(self, pages: list[tuple[Page, dict[bytes, str]]]) -> None:
        """Pages of one listing, and the ETags in each."""
        self._listings.append(pages)
        self.counts["pages"] += len(pages)

    def history(self) -> History:
        found = History(name.encode() for name in self.names)
        for name, operation, etag in self._operations:
            found.add(name.encode(), _told(operation, None if etag is None else self.value_of(etag), etag is not None))
        for pages in self._listings:
            found.add_listing(
                [
                    Page(
                        page.call,
                        page.ret,
                        page.after,
                        tuple((name, self.value_of(etags[name])) for name, _ in page.entries),
                        page.resume,
                        page.limit,
                        page.prefix,
                        page.who,
                    )
                    for page, etags in pages
                ]
            )
        return found


def _told(operation: Operation, value: bytes | None, saw: bool) -> Operation:
    """With the value of the version that it saw, where that is known by now."""
    if not saw:
        return operation
    o, told = operation, value is not None
    if o.kind == READ:
        return Operation(READ, o.call, o.ret, value, who=o.who, told=told)
    return Operation(CAS, o.call, o.ret, o.value, o.expected, False, value, o.who, told=told)


class Client:
    """One client: asks gateway after gateway, one request at a time."""

    def __init__(self, number: int, gateways: Sequence[Gateway], recorder: Recorder, rng: random.Random) -> None:
        self._who = f"c{number}"
        self._gateways = gateways
        self._recorder = recorder
        self._rng = rng
        self._last: dict[str, tuple[str, bytes]] = {}
        """By name: the newest version that it has seen."""

    async def run(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            kind = self._rng.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
            await self.act(kind, self._rng.choice(self._recorder.names))
            await asyncio.sleep(self._rng.expovariate(20))

    async def act(self, kind: str, name: str) -> None:
        if kind == "list":
            await self._list()
        elif kind in ("read", "show") or (kind in ("replace", "remove") and name not in self._last):
            await self._read(name, whole=kind != "show")
        elif kind in ("create", "replace", "put"):
            await self._write(kind, name)
        else:
            await self._delete(kind, name)

    async def _ask(self, method: str, path: str, **arguments: object) -> Answer | None:
        """None when no answer came that means anything."""
        gateway = self._rng.choice(self._gateways)
        try:
            async with asyncio.timeout(REQUEST_TIMEOUT_S):
                return await gateway.ask(method, path, **arguments)
        except aiohttp.ClientConnectorError:
            return _NOT_SENT
        except (aiohttp.ClientError, TimeoutError, OSError):
            return None

    async def _read(self, name: str, *, whole: bool) -> None:
        call = time.monotonic()
        answer = await self._ask("GET", f"/v1/volumes/{name}/data" if whole else f"/v1/volumes/{name}")
        ret = time.monotonic()
        if answer is None or answer.status not in (200, 404):
            self._refused(answer)
            return
        if answer.status == 404:
            self._last.pop(name, None)
            self._recorder.add(name, Operation(READ, call, ret, None, who=self._who))
            return
        etag = answer.headers["etag"].strip('"')
        if whole:
            self._recorder.knows(etag, answer.body)
            self._last[name] = etag, answer.body
        self._recorder.add(name, Operation(READ, call, ret, None, who=self._who), etag)

    async def _write(self, kind: str, name: str) -> None:
        value, expected, headers = self._recorder.value(), None, {}
        if kind == "create":
            headers["If-None-Match"] = "*"
        elif kind == "replace":
            etag, expected = self._last[name]
            headers["If-Match"] = f'"{etag}"'
        call = time.monotonic()
        answer = await self._ask("PUT", f"/v1/volumes/{name}/data", data=value, headers=headers)
        ret = time.monotonic()
        done = answer is not None and answer.status in (200, 201)
        if answer is not None and answer.status == 412:
            self._last.pop(name, None)
            self._unmet(name, answer, Operation(CAS, call, ret, value, expected, False, who=self._who))
            return
        if not done and self._refused(answer):
            return
        if answer is not None and done:
            etag = answer.headers["etag"].strip('"')
            self._recorder.knows(etag, value)
            self._last[name] = etag, value
            if kind != "put":
                assert (answer.status == 201) == (kind == "create"), (kind, answer)
        ret = ret if done else NEVER
        if kind == "put":
            existed = answer.status == 200 if answer is not None and done else None
            self._recorder.add(name, Operation(PUT, call, ret, value, who=self._who, existed=existed))
        else:
            self._recorder.add(name, Operation(CAS, call, ret, value, expected, who=self._who))

    async def _delete(self, kind: str, name: str) -> None:
        headers, expected = {}, None
        if kind == "remove":
            etag, expected = self._last.pop(name)
            headers["If-Match"] = f'"{etag}"'
        call = time.monotonic()
        answer = await self._ask("DELETE", f"/v1/volumes/{name}", headers=headers)
        ret = time.monotonic()
        if answer is not None and answer.status == 404:
            self._recorder.add(name, Operation(READ, call, ret, None, who=self._who))
        elif answer is not None and answer.status == 412:
            self._unmet(name, answer, Operation(CAS, call, ret, None, expected, False, who=self._who))
        elif answer is not None and answer.status == 204:
            self._recorder.add(name, self._deletion(kind, call, ret, expected))
        elif not self._refused(answer):
            self._recorder.add(name, self._deletion(kind, call, NEVER, expected))

    def _deletion(self, kind: str, call: float, ret: float, expected: bytes | None) -> Operation:
        if kind == "delete":
            return Operation(DELETE, call, ret, who=self._who)
        return Operation(CAS, call, ret, None, expected, who=self._who)

    def _unmet(self, name: str, answer: Answer, operation: Operation) -> None:
        """A condition that failed, on a version that the answer names, or on there being none."""
        etag = answer.problem(412, "conflict")["etag"]
        self._recorder.add(name, operation, etag)

    async def _list(self) -> None:
        limit, after, pages = self._rng.choice(PAGE_LIMITS), "", []
        while True:
            call = time.monotonic()
            answer = await self._ask("GET", f"/v1/volumes?limit={limit}" + (f"&after={after}" if after else ""))
            ret = time.monotonic()
            if answer is None or answer.status != 200:
                self._refused(answer)
                break
            document = answer.json()
            etags = {volume["name"].encode(): volume["etag"].strip('"') for volume in document["volumes"]}
            entries = tuple((volume["name"].encode(), None) for volume in document["volumes"])
            resume = document["next"].encode() if document["next"] else None
            pages.append((Page(call, ret, after.encode(), entries, resume, limit, who=self._who), etags))
            if resume is None:
                break
            after = document["next"]
        if pages:
            self._recorder.add_listing(pages)

    def _refused(self, answer: Answer | None) -> bool:
        """Whether nothing was changed, says the answer; counted either way."""
        if answer is None:
            return False
        if answer is _NOT_SENT:
            self._recorder.counts["not sent"] += 1
            return True
        code = answer.json()["type"].rpartition("/")[2]
        self._recorder.counts[code] += 1
        assert answer.status in (500, 503, 507), answer
        return code in NOTHING_DONE


_NOT_SENT = Answer(0, {}, b"", 0.0)
"""There was no connection to send it over."""
