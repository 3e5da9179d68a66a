"""What a process takes: memory and processor time, as the kernel counts them."""

from __future__ import annotations

import os
from pathlib import Path


def _status(pid: int, field: str) -> int:
    """A size from /proc/PID/status in bytes."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        name, _, rest = line.partition(":")
        if name == field:
            return int(rest.split()[0]) * 1024
    raise AssertionError(f"no {field} in /proc/{pid}/status")


def resident(pid: int) -> int:
    """Bytes of memory in use now."""
    return _status(pid, "VmRSS")


def peak(pid: int) -> int:
    """The most bytes of memory that were in use, since the start or the last `forget_peak`."""
    return _status(pid, "VmHWM")


def forget_peak(pid: int) -> None:
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def processor_seconds(pid: int) -> float:
    """User and system time of all threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
