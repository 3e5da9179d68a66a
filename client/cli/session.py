"""One command's run against a cluster: the connection it was told to use, its errors as words and exit codes, its signals."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import typer

from client.cli.exit_codes import ExitCode, exit_code_of
from client.errors import Conflict, HoldfastError, Invalid, OutcomeUnknown, Unauthorized, Unreachable

if TYPE_CHECKING:
    from client.api import Holdfast

Result = TypeVar("Result")

_HINTS: tuple[tuple[type[HoldfastError], str], ...] = (
    (Unreachable, "is the cluster running there? name its nodes with --endpoint or HOLDFAST_ENDPOINTS"),
    (Unauthorized, "set HOLDFAST_API_TOKEN or --token-file to the cluster's API token"),
    (OutcomeUnknown, "see what is there with `holdfast volume show`, then decide"),
)


def fail(error: HoldfastError, *, as_json: bool) -> NoReturn:
    """Say what happened on standard error and leave with the code that scripts know."""
    code = exit_code_of(error)
    if as_json:
        document = {
            "error": error.problem,
            "message": error.message,
            "retryable": error.retryable,
            "exit_code": int(code),
            **({"details": error.details} if error.details else {}),
        }
        sys.stderr.write(json.dumps(document, default=str) + "\n")
    else:
        sys.stderr.write(f"holdfast: {error.message}\n")
        hint = next((text for kind, text in _HINTS if isinstance(error, kind)), None)
        if isinstance(error, Conflict) and error.status == 412:
            hint = "the volume has another version than the condition says; `holdfast volume show` has its ETag"
        if hint is not None:
            sys.stderr.write(f"  {hint}\n")
    raise typer.Exit(int(code))


def run(work: Coroutine[Any, Any, Result], *, as_json: bool) -> Result:
    """The result of ``work``, or the process's end with an exit code. SIGINT and SIGTERM cancel it, so that it cleans up."""

    async def watched() -> tuple[Result | None, bool]:
        task = asyncio.current_task()
        assert task is not None
        terminated = False

        def terminate() -> None:
            nonlocal terminated
            terminated = True
            task.cancel()

        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, terminate)
        try:
            return await work, False
        except asyncio.CancelledError:
            if terminated:
                return None, True
            raise

    try:
        result, terminated = asyncio.run(watched())
    except HoldfastError as error:
        fail(error, as_json=as_json)
    except KeyboardInterrupt:
        raise typer.Exit(int(ExitCode.INTERRUPTED)) from None
    except BrokenPipeError:
        # whoever read our output has gone; what is still buffered must not raise again when Python exits
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(int(ExitCode.ERROR)) from None
    except OSError as error:
        fail(Invalid(f"{error.filename}: {error.strerror}" if error.filename else str(error)), as_json=as_json)
    if terminated:
        raise typer.Exit(int(ExitCode.TERMINATED))
    return result  # type: ignore[return-value]  # None only when terminated


@dataclass(frozen=True, slots=True)
class Session:
    """What the shared options say."""

    endpoints: list[str] | None
    token_file: Path | None
    timeout_s: float
    as_json: bool

    def run(self, work: Callable[[Holdfast], Awaitable[Result]]) -> Result:
        """Run ``work`` with an open connection."""

        async def connected() -> Result:
            from client.api import Holdfast  # the HTTP stack: not needed to print help
            from client.retry import RetryPolicy

            token = None if self.token_file is None else self.token_file.read_text().strip()
            policy = RetryPolicy(deadline_s=self.timeout_s)
            async with Holdfast(self.endpoints, token=token, policy=policy) as holdfast:
                return await work(holdfast)

        return run(connected(), as_json=self.as_json)
