"""A daemon whose data directory goes away, turns read-only or was never mounted: it says so and ends, and never begins an empty one.

Mounts are made in a mount namespace of the daemon's own, which goes with it: nothing is left behind, whatever happens. That needs
root; without it those tests are skipped, or fail where CI is set.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from tests.cluster.conftest import MakeCluster
from tests.cluster.harness import ClusterProcess, Daemon
from tests.cluster.namespace import in_namespace, inside

NOTICED_S = 30.0
"""Longer than a few looks of the watch, and the orderly end after them."""


async def ends_loudly(daemon: Daemon, *words: str) -> None:
    assert await daemon.exit_code(NOTICED_S) == 1
    log = daemon.log_text()
    assert "node_failed" in log
    for word in words:
        assert word in log, log[-3000:]


async def refuses_to_start(daemon: Daemon, *words: str) -> None:
    daemon.start()
    assert await daemon.exit_code(NOTICED_S) == 2
    for word in ("cannot_start", *words):
        assert word in daemon.log_text()


async def one_node(make_cluster: MakeCluster, arguments: Sequence[str] = ()) -> tuple[ClusterProcess, Daemon]:
    cluster = await make_cluster(1, start=False, arguments=["--replication", "1", *arguments])
    return cluster, cluster["n1"]


async def test_a_directory_that_is_moved_away_ends_the_node(make_cluster: MakeCluster, tmp_path: Path) -> None:
    cluster, daemon = await one_node(make_cluster)
    await cluster.start()
    async with cluster.client() as client:
        await client.put("v", b"precious")
    daemon.data.rename(tmp_path / "moved")
    await ends_loudly(daemon, "is gone")
    assert not daemon.data.exists()
    (tmp_path / "moved").rename(daemon.data)
    await cluster.start()
    async with cluster.client() as client:
        assert await client.get("v") == b"precious"


async def test_an_unmounted_disk_ends_the_node_and_keeps_it_from_starting(make_cluster: MakeCluster) -> None:
    cluster, daemon = await one_node(make_cluster)
    daemon.command += ["--require-mount", str(daemon.data)]
    in_namespace(daemon, '[ -n "$NO_DISK" ] || mount -t tmpfs none "$DATA"')
    await cluster.start()
    assert "registers.db" not in os.listdir(daemon.data)  # it is in the namespace alone
    inside(daemon, "umount", "--lazy", str(daemon.data))
    await ends_loudly(daemon, "is gone")
    daemon.environment["NO_DISK"] = "yes"
    await refuses_to_start(daemon, "is not mounted")
    assert os.listdir(daemon.data) == []


async def test_a_marked_mount_point_is_not_taken_for_an_empty_disk(make_cluster: MakeCluster) -> None:
    _, daemon = await one_node(make_cluster)
    daemon.data.mkdir(parents=True)
    (daemon.data / "NOT_MOUNTED").touch()
    await refuses_to_start(daemon, "NOT_MOUNTED")


async def test_a_disk_that_turns_read_only_ends_the_node(make_cluster: MakeCluster) -> None:
    """As a kernel does after errors of a disk: by its path the directory can't be written any more."""
    cluster, daemon = await one_node(make_cluster)
    in_namespace(daemon)
    await cluster.start()
    inside(daemon, "sh", "-c", 'mount --bind "$0" "$0" && mount -o remount,bind,ro "$0"', str(daemon.data))
    await ends_loudly(daemon, "can't be written any more", "Read-only file system")


async def test_a_read_only_disk_is_refused_at_the_start(make_cluster: MakeCluster) -> None:
    cluster, daemon = await one_node(make_cluster)
    await cluster.start()
    assert await daemon.stop() == 0
    in_namespace(daemon, 'mount --bind "$DATA" "$DATA"', 'mount -o remount,bind,ro "$DATA"')
    await refuses_to_start(daemon, "Read-only file system", "mount it writable")
