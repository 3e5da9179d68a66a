"""A byte of ``registers.db`` is not what it was: that is noticed, or does no harm; never is a wrong value given."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

import pytest

from cluster.errors import Corrupt, HoldfastError, Invalid
from cluster.register.ballot import Ballot, Version
from cluster.register.key import RegisterKey
from cluster.register.record import ABSENT, Record
from cluster.register.store import HeldVersion, MetaWrite, Page, PartitionRecord, PartitionWrite, RegisterWrite
from node.storage.register_store import DATABASE_NAME, SqliteRegisterStore
from tests.support.simulated.sqlite_files import USER_VERSION

STEP = 997
"""Every so many bytes of the file one is changed: each page is hit a few times."""

MAGIC_BYTES, HEADER_BYTES = 16, 100
"""Of an SQLite file: what it begins with, and all of its header."""


STATE = PartitionRecord(Ballot(9, "n"), "voter", 0)
LAYOUT = b"layout" * 120
NOTHING = RegisterKey("volumes", b"shard0", b"nothing")
Held = dict[int, dict[RegisterKey, Record]]


def content() -> Held:
    held: Held = {}
    for number in range(120):
        key = RegisterKey("volumes" if number % 5 else "buckets", b"shard%d" % (number % 2), b"key%05d" % number)
        value = None if number % 7 == 0 else b"v%d" % number * (1 + (number % 11) * 12)
        held.setdefault(number % 3, {})[key] = Record(Version(number + 1, "node/abc/1", number), value)
    held[0][RegisterKey("volumes", b"shard0", b"big")] = Record(Version(1, "x", 1), b"large" * 2000)
    return held


async def made(directory: Path, held: Held) -> bytes:
    """The bytes of a database that holds all of it."""
    store = SqliteRegisterStore.open(directory, lambda error: None)
    store.begin_boot(b"store-id")
    await store.commit(
        [RegisterWrite(p, key, record) for p, records in held.items() for key, record in records.items()]
    )
    await store.commit([*(PartitionWrite(p, STATE) for p in held), MetaWrite("layout", LAYOUT)])
    await store.close()
    return (directory / DATABASE_NAME).read_bytes()


class Reader:
    """Asks everything, and counts what was noticed."""

    def __init__(self, store: SqliteRegisterStore) -> None:
        self.store = store
        self.noticed = 0

    async def ask(self, work: Awaitable[Any], wanted: object) -> None:
        try:
            found = await work
        except HoldfastError as error:
            if type(error) is not Corrupt:
                raise
            self.noticed += 1
            self.store._failure = None  # what else is wrong?
            return
        assert found == wanted

    async def ask_single(self, held: Held) -> None:
        store = self.store
        for partition, records in held.items():
            for key, record in records.items():
                await self.ask(store.get(partition, key), record)
            await self.ask(store.get(partition, NOTHING), ABSENT)
        await self.ask(store.partitions(), dict.fromkeys(held, STATE))
        await self.ask(store.meta("layout"), LAYOUT)
        await self.ask(store.meta("store_id"), b"store-id")
        await self.ask(store.meta("none"), None)

    async def ask_ranges(self, held: Held) -> None:
        for partition, records in held.items():
            await self.ask(self.store.page(partition, None, 1000), Page(sorted(records.items()), False))
            wanted = [
                (key, record)
                for key, record in sorted(records.items())
                if (key.table, key.partition) == ("volumes", b"shard1") and key.sort > b"key00030"
            ]
            scanned = self.store.scan(partition, "volumes", b"shard1", b"key00030", b"", 1000)
            await self.ask(scanned, Page(wanted, False))
            versions = [HeldVersion(key, record.version, record.value is None) for key, record in records.items()]
            await self.ask(self._sorted_versions(partition), sorted(versions))
            deleted = sorted(version for version in versions if version.deleted)
            await self.ask(self.store.tombstones(partition, None, 1000), deleted)

    async def _sorted_versions(self, partition: int) -> list[HeldVersion]:
        return sorted(await self.store.versions(partition, 0, [0]))


@pytest.mark.parametrize("running", [False, True], ids=["while it was closed", "while it is open"])
async def test_no_changed_byte_makes_a_wrong_value(tmp_path: Path, running: bool) -> None:
    held = content()
    sound = await made(tmp_path, held)
    chance = random.Random(f"damage {running}")
    noticed = harmless = 0
    for offset in range(chance.randrange(STEP), len(sound), STEP):
        for leftover in ("", "-wal", "-shm"):
            (tmp_path / (DATABASE_NAME + leftover)).unlink(missing_ok=True)
        damaged = bytearray(sound)
        damaged[offset] ^= chance.choice([1, 2, 4, 8, 16, 32, 64, 128, 255])
        path = tmp_path / DATABASE_NAME
        path.write_bytes(sound if running else damaged)
        try:
            store = SqliteRegisterStore.open(tmp_path, lambda error: None)
        except (Corrupt, Invalid):
            noticed += 1
            continue
        reader = Reader(store)
        try:
            if running:
                with path.open("r+b") as file:
                    file.seek(offset)
                    file.write(damaged[offset : offset + 1])
            await reader.ask_single(held)
            if not running:
                await reader.ask_ranges(held)
                assert not reader.noticed, "what went wrong while it was closed is noticed when it is opened"
        except AssertionError as error:
            error.add_note(f"byte {offset} of {len(sound)}: {sound[offset]} became {damaged[offset]}")
            raise
        finally:
            store._failure = None
            await store.close()
        noticed, harmless = noticed + bool(reader.noticed), harmless + (not reader.noticed)
    assert noticed > 20
    assert harmless > 10, "free space takes up a part of the file"


async def test_a_flipped_bit_in_the_header_of_the_file_is_damage_and_no_failure_of_the_disk(tmp_path: Path) -> None:
    """Whatever SQLite calls it: a store that could not even be opened, or counted no start, would end its daemon again and again."""
    sound = await made(tmp_path, {})
    path = tmp_path / DATABASE_NAME
    for bit in range(8 * MAGIC_BYTES, 8 * HEADER_BYTES, 3):
        for leftover in ("", "-wal", "-shm"):
            (tmp_path / (DATABASE_NAME + leftover)).unlink(missing_ok=True)
        damaged = bytearray(sound)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        try:
            store = SqliteRegisterStore.open(tmp_path, lambda error: None)
        except Corrupt:
            continue
        except Invalid:
            assert bit // 8 in USER_VERSION, "only the schema's number may look like a newer release's"
            continue
        except OSError as error:
            error.add_note(f"bit {bit}")
            raise
        try:
            assert store.begin_boot(b"another")[0] == b"store-id"
        except HoldfastError as error:
            error.add_note(f"bit {bit}")
            raise
        finally:
            await store.close()


async def test_damage_found_by_a_read_ends_the_store(tmp_path: Path) -> None:
    """It is told once, and nothing is answered or taken afterwards."""
    held = content()
    await made(tmp_path, held)
    told: list[HoldfastError] = []
    store = SqliteRegisterStore.open(tmp_path, told.append)
    path = tmp_path / DATABASE_NAME
    path.write_bytes(path.read_bytes().replace(b"v1v1v1", b"v1v2v1"))
    key = next(key for key, record in held[1].items() if record.version.seq == 1)
    for _ in range(2):
        with pytest.raises(Corrupt):
            await store.get(1, key)
    with pytest.raises(Corrupt):
        await store.commit([])
    with pytest.raises(Corrupt):
        await store.meta("layout")
    assert [type(error) for error in told] == [Corrupt]
    await store.close()


async def test_a_range_next_to_a_damaged_key_is_not_cut_short(tmp_path: Path) -> None:
    """A key that strayed ends a listing early, and lies outside of it itself."""
    held = content()
    sound = await made(tmp_path, held)
    store = SqliteRegisterStore.open(tmp_path, lambda error: None)
    path = tmp_path / DATABASE_NAME
    last = max(key for key in held[0] if key.partition == b"shard0" and key.table == "buckets")
    assert last.sort in sound
    path.write_bytes(sound.replace(b"bucketsshard0" + last.sort, b"bucketsshard9" + last.sort))
    with pytest.raises(Corrupt):
        await store.scan(0, "buckets", b"shard0", b"", b"", 1000)
    await asyncio.sleep(0)
    store._failure = None
    await store.close()
