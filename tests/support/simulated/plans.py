"""The plans of the register simulation that have a name."""

from __future__ import annotations

from tests.support.simulated.fabric import Weather
from tests.support.simulated.scenario import Plan

STORM = Weather(loss=0.03, late=0.2, duplicate=0.2)

PLANS = {
    "three": Plan(),
    "five": Plan(5, 5),
    "wild": Plan(two_at_once=True),
    "storm": Plan(
        clients=8, seconds=5, keys=1, two_at_once=True, trouble=("crash", "crash", "freeze", "slow"), weather=STORM
    ),
    "amnesia": Plan(trouble=("wipe", "cut", "crash", "slow")),
    "amnesia of five": Plan(5, 5, trouble=("wipe", "wipe", "cut", "crash", "slow")),
    "layouts": Plan(3, 5, trouble=("layout", "crash", "cut", "slow", "freeze")),
    "layouts in a storm": Plan(3, 5, clients=8, seconds=6, keys=1, trouble=("layout", "cut"), weather=STORM),
    "layouts that shrink": Plan(
        3, 3, clients=8, keys=2, trouble=("layout", "cut", "crash"), weather=Weather(loss=0.1, late=0.2, duplicate=0.1)
    ),
    "purges": Plan(keys=2, purging=True),
    "purges in a storm": Plan(clients=8, seconds=6, keys=1, purging=True, trouble=("freeze", "slow"), weather=STORM),
    "purges and amnesia": Plan(keys=2, purging=True, trouble=("wipe", "cut", "crash", "slow")),
    "purges of five": Plan(5, 5, keys=2, purging=True, trouble=("wipe", "wipe", "cut", "crash", "slow", "freeze")),
    "purges and layouts": Plan(3, 5, keys=2, purging=True, trouble=("layout", "crash", "cut", "slow", "freeze")),
    "purges and everything": Plan(
        3,
        6,
        keys=2,
        purging=True,
        trouble=("layout", "wipe", "crash", "cut", "slow", "freeze"),
        weather=Weather(loss=0.02, late=0.1, duplicate=0.1),
    ),
    # These aim at one moment each: a name that was created, deleted and purged while an older creation of it was on its way, a register
    # that is forgotten while it is on its way to the disk, votes that a crash takes away while two believe that they lead, a leader that
    # is back before anybody has noticed, an acceptance that only one replica has heard of, met by anti-entropy and by a copier.
    "late creations": Plan(
        clients=3,
        seconds=10,
        keys=1,
        purging=True,
        trouble=(),
        weather=Weather(late=0.2),
        weights=(20, 0, 5, 45, 30, 0),
    ),
    "slow disks": Plan(clients=8, seconds=5, trouble=("slow",), sync_s=0.05, certain=True, fewer=True),
    "pivots": Plan(clients=6, seconds=5, keys=1, trouble=("pivot",), sync_s=0.01, pace=8.0, guesses=0.6, certain=True),
    "restarts": Plan(clients=3, seconds=4, keys=1, trouble=("restart",), pace=10.0, fewer=True),
    "lone leaders": Plan(
        clients=3,
        seconds=4,
        keys=1,
        trouble=("lone",),
        mending=30.0,
        pace=10.0,
        guesses=0.1,
        weights=(80, 3, 3, 0, 0, 0),
        certain=True,
        fewer=True,
    ),
    "shrinking groups": Plan(
        clients=3,
        seconds=4,
        keys=1,
        trouble=("shrink",),
        pace=10.0,
        guesses=0.1,
        weights=(80, 3, 3, 0, 0, 0),
        certain=True,
        fewer=True,
    ),
    "everything": Plan(3, 6, trouble=("layout", "wipe", "crash", "cut", "slow", "freeze")),
}
