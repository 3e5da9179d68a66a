"""Runs a function in a process of its own, so that what it measures does not share an interpreter with anything else."""

from __future__ import annotations

import asyncio
import multiprocessing
import traceback
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from multiprocessing.connection import Connection
from typing import Any, TypeVar

T = TypeVar("T")

_spawn = multiprocessing.get_context("spawn")


async def in_process(function: Callable[..., T], *arguments: object) -> T:
    """What ``function`` (of a module, so that it can be found again) returns there. Raises RuntimeError when it raises."""
    here, there = _spawn.Pipe()
    process = _spawn.Process(target=_answer, args=(there, function, arguments), daemon=True)
    process.start()
    there.close()
    try:
        failure, result = await asyncio.to_thread(here.recv)
    except EOFError:
        failure, result = "it ended without an answer", None
    finally:
        process.kill()
        process.join()
    if failure is not None:
        raise RuntimeError(f"{function.__name__} failed in its process: {failure}")
    answer: T = result
    return answer


def _answer(there: Connection, function: Callable[..., object], arguments: tuple[object, ...]) -> None:
    try:
        there.send((None, function(*arguments)))
    except BaseException:
        there.send((traceback.format_exc(), None))
        raise


@asynccontextmanager
async def serving(function: Callable[..., None], *arguments: object) -> AsyncIterator[Any]:
    """Run ``function(connection, *arguments)`` there until the block ends; the value is the first thing it sends."""
    here, there = _spawn.Pipe()
    process = _spawn.Process(target=function, args=(there, *arguments), daemon=True)
    process.start()
    there.close()
    try:
        yield await asyncio.to_thread(here.recv)
    finally:
        process.kill()
        process.join()
