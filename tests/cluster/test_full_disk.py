"""A node whose disk somebody else fills to the last block, under a real cluster: users go on, deletes give space back, nothing is lost,
and nobody has to do anything once there is room."""

from __future__ import annotations

import os
from pathlib import Path

from tests.cluster.conftest import MakeCluster
from tests.cluster.content import KIB, MIB, content
from tests.cluster.gateway import Gateway
from tests.cluster.harness import eventually
from tests.cluster.healing import QUICK_REPAIR, wait_equal, wait_whole
from tests.cluster.namespace import in_namespace
from tests.support.small_file_system import fill, small_file_system

SIZE = 256 * KIB
LIMITS = {"HOLDFAST_RESERVE": str(24 * MIB), "HOLDFAST_BALLAST": str(4 * MIB)}


async def test_a_disk_filled_to_the_last_block(make_cluster: MakeCluster, tmp_path: Path) -> None:
    with small_file_system(tmp_path, 160 * MIB) as mount:
        cluster = await make_cluster(5, start=False, environment={**QUICK_REPAIR, "HOLDFAST_CAPACITY": str(160 * MIB)})
        full = cluster["n3"]
        in_namespace(full, f'mount --bind {mount} "$DATA"')
        full.environment |= LIMITS
        await cluster.start()
        versions = {f"v{number}": 0 for number in range(80)}
        async with cluster.client() as holdfast, Gateway(full.url) as gateway:

            async def put(name: str, version: int) -> None:
                await holdfast.put(name, content(name, version, SIZE))
                versions[name] = version

            async def all_right() -> None:
                for name, version in versions.items():
                    answer = await gateway.ask("GET", f"/v1/volumes/{name}/data")
                    assert (answer.status, answer.body == content(name, version, SIZE)) == (200, True), name

            for name in versions:
                await put(name, 0)
            foreign = mount / "foreign"
            fill(foreign)
            for number in range(80, 100):
                await put(f"v{number}", 0)
            for number in range(10):
                await put(f"v{number}", 1)
            await all_right()
            document = await gateway.document("/v1/repair")
            assert document["handoffs"] > 0

            fill(foreign)
            for number in range(10, 75):
                await holdfast.delete(f"v{number}")
                del versions[f"v{number}"]
            await eventually(lambda: free(mount) > 4 * MIB, "deleted volumes give their space back on a full disk", 120)
            await all_right()

            foreign.unlink()
            await wait_whole(cluster, 120)
            await wait_equal(cluster)
            await all_right()
        assert await full.stop() == 0


def free(mount: Path) -> int:
    space = os.statvfs(mount)
    return space.f_bavail * space.f_frsize
