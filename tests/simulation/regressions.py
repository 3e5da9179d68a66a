"""Runs that failed once and live on. What a seed means changes with the code, so each bug found here has a test of its own as well."""

from __future__ import annotations

from typing import NamedTuple


class Regression(NamedTuple):
    """``was``: what broke, and why."""

    scenario: str
    seed: int
    was: str


REGRESSIONS = (
    Regression(
        "steady",
        2,
        "a range PUT slower than replaced versions are kept ended as not found when its volume was replaced meanwhile",
    ),
    Regression(
        "crashes",
        1000,
        "a walk of several retired roots, interrupted after a page of a later one was dropped, could never be taken up: not found",
    ),
    Regression("everything", 2, "an operator whose node died waited for ever (the harness's own mistake)"),
    Regression(
        "freezes",
        739948000,
        "a gateway that stood still answered when the version had been replaced and given back (the harness's own mistake)",
    ),
    Regression(
        "rot",
        11,
        "a flipped bit in the header of registers.db was taken for a disk that can't be read: the node ended at every start",
    ),
    Regression(
        "rot",
        169,
        "a flipped bit in a tree or an index of registers.db was found long after the start, when another replica had lost its own",
    ),
    Regression(
        "failing-disks",
        20002,
        "a log file was unlinked and the folder could not be synced: later tries found no name, and no file was given back until a restart",
    ),
    Regression(
        "lone-copies",
        20043,
        "a store put back from an old copy led under the very ballot of its original: its write was taken for a late copy, and lost",
    ),
    Regression(
        "lone-leaders",
        20050,
        "what a leader alone had accepted stayed, decided otherwise by the rest: it nudged them, and they could not write it over",
    ),
    Regression(
        "failing-disks",
        30074,
        "a process whose commit had failed was asked about its log while it ended (the harness's own mistake)",
    ),
    Regression(
        "registers/purges-and-everything",
        30134,
        "a change to one replica that lost its disk meanwhile had to be given up, and nobody did (the harness's own mistake)",
    ),
)
