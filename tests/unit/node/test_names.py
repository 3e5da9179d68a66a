"""Looking up names: shared while under way, given up without a trace, never waited for."""

from __future__ import annotations

import asyncio
import gc
import socket
import threading
import time

import pytest

from node.names import NameLookup, resolve

DEADLINE_S = 10.0


class Resolver:
    """Answers when it is let."""

    def __init__(self, answer: tuple[str, ...] | OSError = ("192.0.2.1",)) -> None:
        self.asked: list[str] = []
        self.threads: list[threading.Thread] = []
        self.answer = answer
        self.begun = threading.Semaphore(0)
        self.may_answer = threading.Event()

    def __call__(self, host: str) -> tuple[str, ...]:
        self.threads.append(threading.current_thread())
        self.asked.append(host)
        self.begun.release()
        assert self.may_answer.wait(DEADLINE_S)
        if isinstance(self.answer, OSError):
            raise self.answer
        return self.answer

    def end(self) -> None:
        self.may_answer.set()
        for thread in self.threads:
            thread.join(DEADLINE_S)
            assert not thread.is_alive()


@pytest.mark.parametrize("address", ["192.0.2.7", "2001:db8::7", "fe80::1%eth0"])
async def test_an_address_is_its_own(address: str) -> None:
    resolver = Resolver()
    assert await NameLookup(resolver).addresses(address) == (address,)
    assert resolver.asked == []


async def test_all_who_want_a_name_share_one_look_up() -> None:
    resolver = Resolver()
    lookup = NameLookup(resolver)
    async with asyncio.TaskGroup() as group:
        first = [group.create_task(lookup.addresses("n1")) for _ in range(10)]
        other = group.create_task(lookup.addresses("n2"))
        for _ in range(2):
            assert await asyncio.to_thread(resolver.begun.acquire, timeout=DEADLINE_S)
        resolver.may_answer.set()
    assert {task.result() for task in (*first, other)} == {("192.0.2.1",)}
    assert sorted(resolver.asked) == ["n1", "n2"]
    # nothing is remembered
    resolver.answer = ("192.0.2.2",)
    assert await lookup.addresses("n1") == ("192.0.2.2",)


async def test_who_gives_up_disturbs_nobody() -> None:
    resolver = Resolver()
    lookup = NameLookup(resolver)
    patient = asyncio.ensure_future(lookup.addresses("n1"))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await lookup.addresses("n1")
    resolver.may_answer.set()
    assert await patient == ("192.0.2.1",)
    assert resolver.asked == ["n1"]


async def test_a_failure_that_nobody_waits_for_is_no_event() -> None:
    resolver = Resolver(socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution"))
    lookup = NameLookup(resolver)
    reported: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await lookup.addresses("n1")
    resolver.end()
    await asyncio.sleep(0)  # the answer stands in the loop's queue already
    gc.collect()
    assert reported == []
    # whoever comes later asks anew, and hears of it
    with pytest.raises(socket.gaierror):
        await lookup.addresses("n1")
    assert resolver.asked == ["n1", "n1"]


def test_the_end_does_not_wait() -> None:
    resolver = Resolver()

    async def give_up() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await NameLookup(resolver).addresses("n1")

    began = time.monotonic()
    asyncio.run(give_up())
    assert time.monotonic() - began < DEADLINE_S / 2
    resolver.end()  # and the late answer, to a loop that is closed, breaks nothing


def test_the_systems_resolver() -> None:
    assert set(resolve("localhost")) <= {"127.0.0.1", "::1"}
    with pytest.raises(OSError, match="can't be the name"):
        resolve("a" * 64 + ".example")
