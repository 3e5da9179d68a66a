"""What a daemon asks of the kernel, and in which order: strace around a daemon, and its record read back.

The record of each thread has the moments when a call was entered and left. A traced thread stands still while either is written down,
and all records of one machine use one clock: so a call that was left before another was entered came before it, in other
processes too.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.cluster.harness import Daemon, require_tool

TRACED = ("pwritev", "pwritev2", "pwrite64", "write", "writev", "sendto", "sendmsg", "fdatasync", "fsync")

STRING_LIMIT = 16 * 1024
"""Bytes of each buffer that are recorded: a whole page of a database."""


@dataclass(frozen=True)
class SystemCall:
    """``path`` is what the first argument, a descriptor, stands for. ``arguments`` has buffers with every byte as ``\\xNN``."""

    name: str
    path: str
    arguments: str
    entered: float
    left: float

    def carries(self, data: bytes) -> bool:
        """Whether these bytes are in one of its buffers."""
        return "".join(f"\\x{byte:02x}" for byte in data) in self.arguments


def trace(daemon: Daemon, record: Path) -> None:
    """Have the daemon start under strace from now on."""
    strace = require_tool("strace")
    # -D: the tracer is not in between, the daemon stays the child of who starts it. Stopped only at the calls that are traced.
    options = [
        "-D",
        "-f",
        "--seccomp-bpf",
        "-ttt",
        "-y",
        "-xx",
        "-s",
        str(STRING_LIMIT),
        "-e",
        f"trace={','.join(TRACED)}",
    ]
    daemon.command = [strace, *options, "-e", "signal=none", "-T", "-o", str(record), *daemon.command]


_LINE = re.compile(r"(?P<thread>\d+) +(?P<at>\d+\.\d+) (?P<rest>.*)")
_RESUMED = re.compile(r"<\.\.\. (?P<name>\w+) resumed>(?P<rest>.*)")
_CALL = re.compile(r"(?P<name>\w+)\(\d+<(?P<path>[^>]*)>(?P<arguments>.*)")
_TOOK = re.compile(r"<(\d+\.\d+)>$")
_UNFINISHED = "<unfinished ...>"


def system_calls(record: Path) -> Iterator[SystemCall]:
    """The calls that have ended, in the order of their ends."""
    begun: dict[str, tuple[float, str]] = {}
    for line in record.read_text(errors="replace").splitlines():
        found = _LINE.fullmatch(line)
        if found is None:
            continue  # the last line of one that was killed
        thread, at, rest = found["thread"], float(found["at"]), found["rest"]
        if rest.endswith(_UNFINISHED):
            begun[thread] = at, rest.removesuffix(_UNFINISHED)
            continue
        resumed = _RESUMED.fullmatch(rest)
        if resumed is not None:
            if thread not in begun:
                continue
            entered, first = begun.pop(thread)
            left, whole = at, first + resumed["rest"]
        else:
            took = _TOOK.search(rest)
            if took is None:
                continue
            entered, left, whole = at, at + float(took[1]), rest
        call = _CALL.match(whole)
        if call is not None:
            # with -xx paths are written byte by byte as well
            path = bytes.fromhex(call["path"].replace("\\x", "")).decode() if "\\x" in call["path"] else call["path"]
            yield SystemCall(call["name"], path, call["arguments"], entered, left)
