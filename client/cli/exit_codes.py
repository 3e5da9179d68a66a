"""What a script learns from `holdfast` without reading its words. These numbers never change their meaning."""

from __future__ import annotations

from enum import IntEnum

from client.errors import (
    Conflict,
    Corrupt,
    HoldfastError,
    Invalid,
    NoSpace,
    NotFound,
    OutcomeUnknown,
    Unauthorized,
    Unavailable,
)


class ExitCode(IntEnum):
    """0 is success; 1 is everything without a number of its own."""

    OK = 0
    ERROR = 1
    USAGE = 2
    NOT_FOUND = 3
    CONFLICT = 4
    UNAVAILABLE = 5
    OUTCOME_UNKNOWN = 6
    UNAUTHORIZED = 7
    NO_SPACE = 8
    CORRUPT = 9
    INTERRUPTED = 130
    TERMINATED = 143


_BY_ERROR: tuple[tuple[type[HoldfastError], ExitCode], ...] = (
    (Invalid, ExitCode.USAGE),
    (NotFound, ExitCode.NOT_FOUND),
    (Conflict, ExitCode.CONFLICT),
    (Unavailable, ExitCode.UNAVAILABLE),
    (OutcomeUnknown, ExitCode.OUTCOME_UNKNOWN),
    (Unauthorized, ExitCode.UNAUTHORIZED),
    (NoSpace, ExitCode.NO_SPACE),
    (Corrupt, ExitCode.CORRUPT),
)

EPILOG = """\b
Exit codes:
  0  done                                5  unavailable: try again later
  1  error                               6  outcome unknown: look before repeating
  2  wrong usage or invalid request      7  unauthorized: the API token
  3  not found                           8  no space left in the cluster
  4  conflict or failed condition        9  stored data is damaged
  130, 143  interrupted, terminated

\b
Environment:
  HOLDFAST_ENDPOINTS  API addresses, comma-separated (default http://127.0.0.1:7480)
  HOLDFAST_API_TOKEN  the API token, where one is configured
"""


def exit_code_of(error: HoldfastError) -> ExitCode:
    """The number for an error, from its class."""
    return next((code for kind, code in _BY_ERROR if isinstance(error, kind)), ExitCode.ERROR)
