"""The `holdfast` command.

Reading order: `exit_codes` (the contract with scripts), `options` (what every command takes), `session` (one command's run:
connection, errors, signals), `sizes`, `output` and `progress` (for people), `durations` and `repair_report` too, then the
commands: `app`, `status`, `volume`, `where`, `layout`, `repair` (with `repair_wait`), `dev`.
Heavy modules (HTTP, tables, progress bars) are imported when a command needs them, so that help and completion are quick.
"""

from __future__ import annotations


def main() -> None:
    """Entry point of the console script."""
    from client.cli.app import app

    app(prog_name="holdfast")
