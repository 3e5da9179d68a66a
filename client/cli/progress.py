"""Progress of a transfer, or of repair, on standard error: how far, rate, time left. Silent unless somebody watches."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from client.cli.repair_report import movement


@contextmanager
def transfer_progress(title: str, total: int | None, *, quiet: bool) -> Iterator[Callable[[int, int | None], None]]:
    """A function to call with bytes so far and, once known, bytes in all. A smaller number than before begins anew."""
    if quiet or not sys.stderr.isatty():
        yield _ignore
        return
    # the table and bar machinery takes a tenth of a second to import: only for those who see it
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(title, total=total)

        def advance(done: int, total: int | None = None) -> None:
            if total is None:
                progress.update(task, completed=done)
            else:
                progress.update(task, completed=done, total=total)

        yield advance


@contextmanager
def repair_progress(*, quiet: bool) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """A function to call with each new document of ``/v1/repair``: a bar of the copies that were missing and are back."""
    if quiet or not sys.stderr.isatty():
        yield lambda document: None
        return
    from rich.console import Console  # as above: only for those who see it
    from rich.progress import BarColumn, Progress, TextColumn

    columns = (
        TextColumn("missing copies", markup=False),
        BarColumn(),
        TextColumn("{task.description}", markup=False),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("comparing", total=None)
        most = 0

        def advance(document: Mapping[str, Any]) -> None:
            nonlocal most
            missing = document["copies_missing"]
            most = max(most, missing)
            words = f"{missing}, {movement(document)}" if missing else "none; comparing and verifying"
            progress.update(task, total=most or None, completed=most - missing, description=words)

        yield advance


def _ignore(done: int, total: int | None = None) -> None:
    """Nobody watches."""
