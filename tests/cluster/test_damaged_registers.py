"""A node's register database is damaged, while it is stopped and while it runs: it heals by itself, and nothing is lost."""

from __future__ import annotations

from pathlib import Path
from random import Random

from node.storage.register_store import DATABASE_NAME
from tests.cluster.conftest import MakeCluster
from tests.cluster.gateway import Gateway
from tests.cluster.harness import Daemon, eventually
from tests.cluster.test_amnesia import VOLUMES, check_all, whole, write_all

PAGE = 4096
NOTICE_DEADLINE_S = 20.0


def spoil(path: Path, first: int, count: int) -> None:
    """Overwrite pages with garbage."""
    garbage = Random("garbage").randbytes(PAGE * count)
    with path.open("r+b") as file:
        file.seek(PAGE * first)
        file.write(garbage)


def set_aside(daemon: Daemon) -> int:
    return len(list(daemon.data.glob(f"{DATABASE_NAME}.damaged-?")))


async def test_a_damaged_register_database_heals_itself(make_cluster: MakeCluster) -> None:
    cluster = await make_cluster(5)
    etags: dict[str, str] = {}
    async with Gateway(cluster["n1"].url) as gateway:
        await write_all(gateway, 0, etags)
        # while it is stopped: a page in the middle
        victim = cluster["n2"]
        assert await victim.stop() == 0
        database = victim.data / DATABASE_NAME
        spoil(database, database.stat().st_size // PAGE // 2, 1)
        await write_all(gateway, 1, etags)
        await cluster.start("n2")
        assert set_aside(victim) == 1
        assert "registers_set_aside" in victim.log_text()
        await check_all(gateway, 1, etags)
        async with Gateway(victim.url) as healing:
            await check_all(healing, 1, etags)
        await whole(cluster)

        # while it runs: everything behind the first page, once it is in the file and not in SQLite's log
        victim = cluster["n3"]
        assert await victim.stop() == 0
        await cluster.start("n3")
        pid = victim.pid
        database = victim.data / DATABASE_NAME
        spoil(database, 1, database.stat().st_size // PAGE - 1)
        version = 1

        async def noticed() -> bool:
            nonlocal version
            version += 1
            await write_all(gateway, version, etags)
            async with Gateway(victim.url) as damaged:
                await damaged.ask("GET", "/v1/volumes")
            return set_aside(victim) == 1

        await eventually(noticed, "the damage was noticed", NOTICE_DEADLINE_S)
        await check_all(gateway, version, etags)
        await whole(cluster)
        assert victim.pid == pid, "it healed within the process"

        # both vote again: a quorum of every partition can do without two others
        cluster.kill("n4")
        for name in ("n2", "n3"):
            async with Gateway(cluster[name].url) as healed:
                await check_all(healed, version, etags)
                await write_all(healed, version + 1, etags)
            version += 1
        assert len(etags) == len(VOLUMES)
