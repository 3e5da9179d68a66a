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
    "everything": Plan(3, 6, trouble=("layout", "wipe", "crash", "cut", "slow", "freeze")),
}
