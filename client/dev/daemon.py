"""How one `holdfastd` of a local cluster is started: its command line, its environment, and that it never outlives its runner."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import socket
import sys
import sysconfig
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from client.dev.plan import LOOPBACK, NodePlan
from client.errors import Invalid, NotFound

DAEMON = "holdfastd"

SEEDS = 8
"""Other nodes that each node is told of; any one of them that answers is enough."""

_PER_NODE_VARIABLES = frozenset(
    f"HOLDFAST_{name}"
    for name in (
        *(
            "ADVERTISE",
            "ALLOW_ANONYMOUS",
            "API",
            "API_TOKEN",
            "API_TOKEN_FILE",
            "BOOTSTRAP_EXPECT",
            "CAPACITY",
            "CONFIG",
        ),
        *("DATA", "DEV_DATA", "ENDPOINTS", "JOIN", "NAME", "PEER", "SECRET", "SECRET_FILE", "ZONE"),
    )
)
"""Variables meant for another cluster, or for one node: a local cluster's nodes do not inherit them. All other settings pass."""

_PR_SET_PDEATHSIG = 1


def find_daemon() -> tuple[str, ...]:
    """The `holdfastd` that was installed beside this Python, else the first on PATH. Raises `NotFound`."""
    places = [Path(sys.executable).parent, Path(sysconfig.get_path("scripts")), Path(sys.argv[0]).absolute().parent]
    for place in places:
        if os.access(place / DAEMON, os.X_OK):
            return (str(place / DAEMON),)
    if (found := shutil.which(DAEMON)) is not None:
        return (found,)
    raise NotFound(f"{DAEMON} is not installed beside {sys.executable} nor on PATH; install holdfast as a whole")


def daemon_arguments(
    node: NodePlan,
    *,
    data: Path,
    secret_file: Path,
    seeds: Sequence[str],
    bootstrap_expect: int | None,
    extra: Sequence[str] = (),
) -> list[str]:
    """The command line after the program. ``bootstrap_expect`` None: the node joins a cluster that exists already."""
    arguments = ["--data", str(data), "--name", node.name, "--api", node.api, "--peer", node.peer]
    arguments += ["--secret-file", str(secret_file), "--auto-layout"]
    if bootstrap_expect is not None:
        arguments += ["--bootstrap-expect", str(bootstrap_expect)]
    for seed in [seed for seed in seeds if seed != node.peer][:SEEDS]:
        arguments += ["--join", seed]
    return [*arguments, *extra]


def daemon_environment(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name not in _PER_NODE_VARIABLES}


def dies_with_parent() -> Callable[[], None] | None:
    """What to run in the child before the program: the kernel kills it when the thread that forked it ends, however it ends.

    SIGKILL, not SIGTERM: a runner that was killed must leave nothing behind, and daemons survive a kill by design.
    None on systems without such a thing.
    """
    if not sys.platform.startswith("linux"):
        return None
    prctl = ctypes.CDLL(None, use_errno=True).prctl  # looked up here: after fork only the bare call is made
    parent = os.getpid()

    def tie() -> None:
        prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
        if os.getppid() != parent:  # it ended between fork and prctl
            os._exit(1)

    return tie


def require_free_ports(nodes: Sequence[NodePlan]) -> None:
    """Raises `Invalid` naming the first port that somebody listens on."""
    for node in nodes:
        for purpose, port in (("API", node.api_port), ("peers", node.peer_port)):
            with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    probe.bind((LOOPBACK, port))
                    probe.listen(1)
                except OSError as error:
                    raise Invalid(
                        f"port {port} ({node.name}, {purpose}) cannot be used: {error.strerror}; "
                        "stop what listens there or choose another --port-base"
                    ) from error
