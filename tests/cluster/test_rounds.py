"""Random rounds of kill, SIGSTOP, restart and lost disks, one at a time, under load: nothing acknowledged is lost, nothing wrong is read,
after each round all copies are there again, and in the end they are where they belong.

`scripts/soak` runs many rounds; the number of the seed makes a run's choices again.
"""

from __future__ import annotations

import asyncio
import os
import random
import time

from client import RetryPolicy
from tests.cluster.conftest import MakeCluster
from tests.cluster.content import KIB
from tests.cluster.healing import QUICK_REPAIR, wait_equal, wait_redundant, wait_whole
from tests.cluster.load import Load

ROUNDS = int(os.environ.get("HOLDFAST_TEST_ROUNDS", "5"))
SEED = int(os.environ.get("HOLDFAST_SEED", "1"))
PAUSE_S = float(os.environ.get("HOLDFAST_TEST_PAUSE_S", "0.02"))
"""Of each of the ten clients between two requests; more of it leaves some of a small machine to others."""

KINDS = ("kill", "kill", "freeze", "restart", "wipe")
ROUND_DEADLINE_S = 120.0


async def test_rounds_of_trouble(make_cluster: MakeCluster) -> None:
    cluster = await make_cluster(5, environment=QUICK_REPAIR)
    rng = random.Random(SEED)
    policy = RetryPolicy(deadline_s=60.0)
    counts = dict.fromkeys(KINDS, 0)
    began = time.monotonic()
    async with cluster.client(policy=policy) as one, cluster.client(policy=policy) as other:
        load = Load([one, other], writers=6, readers=4, size=150 * KIB, pause_s=PAUSE_S, outages=True)
        async with load.running():
            for number in range(ROUNDS):
                kind, victim = rng.choice(KINDS), rng.choice(cluster.names)
                counts[kind] += 1
                away_s = rng.choice((0.2, 1.0, 4.0))
                print(
                    f"round {number} after {time.monotonic() - began:.0f} s: {kind} {victim} for {away_s} s", flush=True
                )
                daemon = cluster[victim]
                if kind == "freeze":
                    daemon.freeze()
                    await asyncio.sleep(away_s)
                    daemon.thaw()
                else:
                    if kind == "restart":
                        await daemon.stop()
                    elif kind == "kill":
                        cluster.kill(victim)
                    else:
                        cluster.wipe(victim)
                    await asyncio.sleep(away_s)
                    await cluster.start(victim)
                await load.goes_on(3, 3)
                await wait_redundant(cluster, ROUND_DEADLINE_S)
        await wait_whole(cluster, ROUND_DEADLINE_S)
        await wait_equal(cluster)
        await load.check(one)
    print(f"{ROUNDS} rounds (seed {SEED}): {counts}, {load.puts} writes and {load.gets} reads, all right")
