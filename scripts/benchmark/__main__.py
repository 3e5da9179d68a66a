"""``scripts/bench``: the command line. Measures, prints one table, writes one JSON file."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import signal
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmark.figure import Figure, table
from benchmark.measurements import MEASUREMENTS
from benchmark.plan import MIB, Plan
from benchmark.testbed import NODES, Testbed

VOLUME_BYTES, QUICK_VOLUME_BYTES = 256 * MIB, 64 * MIB
SECONDS, QUICK_SECONDS = 5.0, 2.0
IDLE_S, QUICK_IDLE_S = 10.0, 5.0
REGISTERS, QUICK_REGISTERS = 1_000_000, 100_000
RUNS, QUICK_RUNS = 3, 1


def main() -> None:
    given = _arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that daemons and data are taken away then too
    figures: list[Figure] = []
    start = time.monotonic()

    def note(what: str) -> None:
        print(f"[{time.monotonic() - start:6.1f} s] {what}", file=sys.stderr, flush=True)

    with tempfile.TemporaryDirectory(prefix="holdfast-bench-", dir=given.directory) as directory:
        plan = Plan(
            runs=given.runs or (QUICK_RUNS if given.quick else RUNS),
            volume_bytes=QUICK_VOLUME_BYTES if given.quick else VOLUME_BYTES,
            seconds=QUICK_SECONDS if given.quick else SECONDS,
            idle_s=QUICK_IDLE_S if given.quick else IDLE_S,
            registers=QUICK_REGISTERS if given.quick else REGISTERS,
            directory=Path(directory),
            note=note,
        )
        asyncio.run(_measure(plan, given.only or list(MEASUREMENTS), figures))
    print(table(figures))
    output = given.relative_to / given.output
    output.write_text(json.dumps({**_machine(), "figures": [figure.to_json() for figure in figures]}, indent=2) + "\n")
    note(f"figures are in {output}")


async def _measure(plan: Plan, names: list[str], figures: list[Figure]) -> None:
    plan.note(f"starting {NODES} daemons in {plan.directory}")
    async with Testbed(plan.directory / "cluster") as testbed:
        for name, measure in MEASUREMENTS.items():
            if name in names:
                figures += await measure(testbed, plan)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/bench",
        description=f"Measures a {NODES}-node cluster on this machine: one table on stdout, a JSON file, progress on stderr. "
        "Large transfers stand beside a floor, which is what plain processes reach with the same bytes in the same run. "
        "MB are 10^6 bytes of users' content: each is stored three times. A full run takes some ten minutes and up to 50 GB of disk.",
    )
    parser.add_argument(
        "--only",
        action="append",
        choices=list(MEASUREMENTS),
        metavar="NAME",
        help=f"one of {', '.join(MEASUREMENTS)}; repeatable",
    )
    parser.add_argument(
        "--runs", type=int, metavar="N", help=f"runs of each measurement (default {RUNS}, quick {QUICK_RUNS})"
    )
    parser.add_argument(
        "--quick", action="store_true", help="small volumes, short runs, once each: two minutes, rough figures"
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("bench-results.json"),
        metavar="PATH",
        help="the JSON file (default %(default)s)",
    )
    parser.add_argument(
        "--directory",
        type=Path,
        metavar="DIR",
        help="where data goes, removed afterwards (default: the system's temporary one)",
    )
    parser.add_argument("--relative-to", type=Path, default=Path.cwd(), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.runs is not None and given.runs < 1:
        parser.error("--runs is at least 1")
    return given


def _machine() -> dict[str, Any]:
    return {
        "release": version("holdfast"),
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "python": platform.python_version(),
        "cores": len(os.sched_getaffinity(0)),
        "load_average": os.getloadavg()[0],
    }


if __name__ == "__main__":
    main()
