"""What a cluster costs when nobody uses it. Generous bounds: the exact figures belong to the benchmark."""

from __future__ import annotations

import asyncio
import time

from client.dev.supervisor import http_status
from tests.cluster.conftest import MakeCluster
from tests.cluster.content import MIB
from tests.cluster.harness import eventually
from tests.cluster.process_usage import processor_seconds, resident

MOST_RESIDENT = 96 * MIB
MOST_PROCESSOR = 0.05
"""Of one core, per node."""

MOST_START_S = 8.0
"""From the command to an answer. The aim is 1 s for one daemon on an idle machine, and this one is not idle."""

OBSERVED_S = 5.0


async def test_an_idle_cluster(make_cluster: MakeCluster) -> None:
    cluster = await make_cluster(5)
    before = {name: processor_seconds(cluster[name].pid) for name in cluster.names}
    began = time.monotonic()
    await asyncio.sleep(OBSERVED_S)  # the span that is measured
    span = time.monotonic() - began
    share = {name: (processor_seconds(cluster[name].pid) - before[name]) / span for name in cluster.names}
    memory = {name: resident(cluster[name].pid) for name in cluster.names}
    for name in cluster.names:
        print(f"{name}: {memory[name] / MIB:.1f} MiB resident, {100 * share[name]:.2f} % of a core")

    daemon = cluster["n1"]
    assert await daemon.stop() == 0
    began = time.monotonic()
    daemon.start()

    async def answers() -> bool:
        return await http_status(daemon.plan.api_port, "/readyz") == 200

    await eventually(answers, "a restarted daemon is ready")
    started_s = time.monotonic() - began
    print(f"ready {started_s:.2f} s after its start")

    assert max(memory.values()) < MOST_RESIDENT
    assert max(share.values()) < MOST_PROCESSOR
    assert started_s < MOST_START_S
