"""Progress of a transfer on standard error: bytes, rate, time left. Silent unless somebody watches."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


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


def _ignore(done: int, total: int | None = None) -> None:
    """Nobody watches."""
