"""How many files and connections the process may have open at once, and who gets how many of them.

Everything here draws on one table. What a stranger can take of it, connections to the API, is bounded so that the rest is left for what a
node can't do without: its log files, its index, its peers.
"""

from __future__ import annotations

import resource

import structlog

from cluster.errors import Invalid
from cluster.rpc.limits import GREETINGS_LIMIT
from node.api.server import MAX_CONNECTIONS
from node.storage.chunk_log import OPEN_FILES_LIMIT

log = structlog.get_logger(__name__)

PEERS = 128
"""Two connections in each direction to 32 other nodes."""

OTHERS = 128
"""The two databases with their readers (some 20), listening sockets, the files of start and jobs, log files that readers hold beyond
`OPEN_FILES_LIMIT`, and connections that are being refused."""

RESERVED = OPEN_FILES_LIMIT + PEERS + GREETINGS_LIMIT + OTHERS
"""Not for the API."""

LEAST_CONNECTIONS = 32
"""A node that can't serve so many is not started: gateways and clients would find it full most of the time."""

LEAST_OPEN_FILES = RESERVED + LEAST_CONNECTIONS
"""What a node needs of the system's limit."""


def set_up() -> int:
    """Take all that the system allows; how many connections the API may have. Raises Invalid when that is too little for a node."""
    limit = raise_limit()
    connections = connections_within(limit)
    log.info("open_files", limit=limit, api_connections=connections)
    return connections


def raise_limit() -> int | None:
    """Make the hard limit of open files the one in force, if that is allowed; the limit then, None for none. The soft one is low by
    tradition (1024), for programs that use select()."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (OSError, ValueError) as error:
            log.warning("open_files_not_raised", limit=soft, hard=hard, error=str(error))
        else:
            soft = hard
    return None if soft == resource.RLIM_INFINITY else soft


def connections_within(limit: int | None) -> int:
    """The API's share of a limit of open files. Pure. Raises Invalid."""
    if limit is None:
        return MAX_CONNECTIONS
    if limit < LEAST_OPEN_FILES:
        raise Invalid(
            f"this process may have only {limit} files open, a node needs {LEAST_OPEN_FILES}: raise the hard limit (ulimit -Hn, "
            "LimitNOFILE= of a systemd unit, nofile of a container), then start the node again"
        )
    return min(MAX_CONNECTIONS, limit - RESERVED)
