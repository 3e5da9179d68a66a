"""A daemon in a mount namespace of its own: what is mounted there goes with it, whatever happens."""

from __future__ import annotations

import os
import subprocess

import pytest

from tests.cluster.harness import Daemon, require_tool


def in_namespace(daemon: Daemon, *preparation: str) -> None:
    """Let the daemon start in a mount namespace of its own, after these shell commands (``$DATA`` is its directory)."""
    unshare = require_tool("unshare")
    tried = subprocess.run([unshare, "--mount", "true"], capture_output=True, check=False)
    if tried.returncode != 0:
        if os.environ.get("CI"):
            pytest.fail("no mount namespace can be made, and CI runs every test")
        pytest.skip("no mount namespace can be made: needs root")
    script = "; ".join(["set -e", *preparation, 'exec "$@"'])
    daemon.command = [unshare, "--mount", "sh", "-c", script, "sh", *daemon.command]
    daemon.environment["DATA"] = str(daemon.data)
    daemon.data.mkdir(parents=True, exist_ok=True)


def inside(daemon: Daemon, *command: str) -> None:
    """Run a command in the daemon's namespace."""
    subprocess.run(
        [require_tool("nsenter"), "--mount", "--target", str(daemon.pid), *command], check=True, capture_output=True
    )
