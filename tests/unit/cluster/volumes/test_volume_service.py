"""The service against a dict of plain byte strings, and its answers to what it is asked wrongly."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.errors import Conflict, Invalid, NotFound
from cluster.volumes.names import MAX_VOLUME_BYTES
from cluster.volumes.service import Condition, VolumeService, VolumeSettings
from tests.unit.cluster.volumes.memory_cluster import MemoryCluster, blocks_of, body_of, content, put

CELL = 4096


def cut(data: bytes, rng: random.Random) -> list[bytes]:
    """The same bytes in blocks of any size, empty ones too."""
    blocks, at = [], 0
    while at < len(data):
        size = rng.choice([0, 1, 100, CELL - 1, CELL, CELL + 1, 3 * CELL])
        blocks.append(data[at : at + size])
        at += size
    return blocks


def body_bytes(kind: int, length: int) -> bytes:
    """0: a hole; 1, 2: equal pieces; else different everywhere."""
    return bytes([kind]) * length if kind < 3 else random.Random(kind).randbytes(length)


names = st.sampled_from(["a", "b", "c.d"])
lengths = st.one_of(st.integers(0, 5 * CELL), st.sampled_from([0, 1, CELL, 2 * CELL, 2 * CELL + 1]))
steps = st.lists(
    st.one_of(
        st.tuples(st.just("create"), names, lengths, st.just(0), st.booleans()),
        st.tuples(st.just("put"), names, lengths, st.integers(0, 5), st.booleans()),
        st.tuples(st.just("range"), names, lengths, st.integers(0, 5), st.booleans()),
        st.tuples(st.just("resize"), names, lengths, st.just(0), st.booleans()),
        st.tuples(st.just("delete"), names, st.just(0), st.just(0), st.booleans()),
    ),
    max_size=20,
)


@settings(max_examples=120, deadline=None)
@given(steps, st.sampled_from([1, 3, 1000]), st.randoms(use_true_random=False))
def test_volumes_behave_like_a_dict_of_bytes(
    history: list[tuple[str, str, int, int, bool]], leaf_extents: int, rng: random.Random
) -> None:
    async def run() -> None:
        cluster = MemoryCluster(settings=VolumeSettings(leaf_extents=leaf_extents))
        gateways = [cluster.gateway(0), cluster.gateway(1)]
        model: dict[str, bytes] = {}
        etags: set[str] = set()
        for kind, name, length, fill, announced in history:
            service = rng.choice(gateways)
            before = (await service.show(name)).etag if name in model else None
            if kind == "create":
                if name in model:
                    with pytest.raises(Conflict):
                        await service.create(name, length, chunk_size=CELL)
                else:
                    await service.create(name, length, chunk_size=CELL)
                    model[name] = bytes(length)
            elif kind == "put":
                data = body_bytes(fill, length)
                _, created = await service.replace(
                    name, blocks_of(cut(data, rng)), len(data) if announced else None, chunk_size=CELL
                )
                assert created == (name not in model)
                model[name] = data
            elif name not in model:
                with pytest.raises(NotFound):
                    await service.show(name)
                with pytest.raises(NotFound):
                    await service.open(name)
                with pytest.raises(NotFound):
                    await service.delete(name)
                with pytest.raises(NotFound):
                    await service.resize(name, length)
                with pytest.raises(NotFound):
                    await service.write_range(name, 0, body_of(b"x"), 1)
            elif kind == "range":
                old = model[name]
                offset = rng.randrange(len(old) + 1)
                data = body_bytes(fill, min(length, len(old) - offset))
                await service.write_range(name, offset, blocks_of(cut(data, rng)), len(data) if announced else None)
                model[name] = old[:offset] + data + old[offset + len(data) :]
                if not data:
                    continue
            elif kind == "resize":
                if length < len(model[name]):
                    with pytest.raises(Invalid):
                        await service.resize(name, length)
                    continue
                await service.resize(name, length)
                if length == len(model[name]):
                    continue
                model[name] += bytes(length - len(model[name]))
            else:
                await service.delete(name)
                del model[name]
            if name in model:
                etag = (await service.show(name)).etag
                if kind != "create" or before is None:
                    assert etag not in etags
                    assert etag != before
                etags.add(etag)
            for gateway in gateways:
                assert {v.name: v.size for v in (await gateway.list()).volumes} == {
                    key: len(value) for key, value in model.items()
                }
                for key, value in model.items():
                    assert await content(gateway, key) == value
                    await check_small_reads(gateway, key, value, rng)

    asyncio.run(run())


async def check_small_reads(service: VolumeService, name: str, data: bytes, rng: random.Random) -> None:
    opened = await service.open(name)
    for _ in range(4):
        start, stop = sorted((rng.randrange(len(data) + 1), rng.randrange(len(data) + 1)))
        assert bytes(await opened.read_small(start, stop)) == data[start:stop]
        assert b"".join([bytes(part) async for part in opened.read(start, stop)]) == data[start:stop]


async def test_a_range_of_a_volume_that_is_resized_meanwhile_is_refused_when_it_names_the_whole_size() -> None:
    service = MemoryCluster().gateway()
    await service.replace("v", body_of(b"x" * 100), 100, chunk_size=CELL)

    async def body() -> AsyncIterator[bytes]:
        yield b"y"
        await service.resize("v", 200)
        yield b"y"

    with pytest.raises(Invalid) as caught:
        await service.write_range("v", 0, body(), 2, size=100)
    assert (caught.value.details["field"], caught.value.details["size"]) == ("range", 200)
    assert await content(service, "v") == b"x" * 100 + bytes(100)
    await service.write_range("v", 0, body_of(b"yy"), 2, size=200)
    with pytest.raises(Invalid):
        await service.write_range("v", 0, body_of(b"zz"), 2, size=100)
    assert (await content(service, "v"))[:3] == b"yyx"


async def test_an_existing_volume_keeps_its_id_and_shape_under_a_put() -> None:
    service = MemoryCluster().gateway()
    before = await service.create("v", 10, chunk_size=8192, replicas=2)
    after, created = await service.replace("v", body_of(b"abc"), 3, chunk_size=4096, replicas=5)
    assert not created
    assert (after.id, after.chunk_size, after.replicas, after.size) == (before.id, 8192, 2, 3)
    assert after.generation == before.generation + 1


async def test_created_anew_it_is_another_volume() -> None:
    cluster = MemoryCluster()
    service = cluster.gateway()
    first, _ = await service.replace("v", body_of(b"abc"), 3)
    await service.delete("v")
    second = await service.create("v", 3, chunk_size=8192)
    assert second.id != first.id
    assert second.etag != first.etag
    assert second.chunk_size == 8192
    assert await content(service, "v") == bytes(3)


async def test_zeroes_and_unwritten_space_cost_nothing() -> None:
    cluster = MemoryCluster()
    service = cluster.gateway()
    await put(service, "v", bytes(10 * CELL))
    volume = await service.resize("v", MAX_VOLUME_BYTES)
    assert cluster.chunks.payloads == {}
    assert volume.formulas.chunks == MAX_VOLUME_BYTES // CELL
    assert volume.map_inline
    await service.write_range("v", MAX_VOLUME_BYTES - 5, body_of(b"hello"), 5)
    opened = await service.open("v")
    assert bytes(await opened.read_small(MAX_VOLUME_BYTES - 8, MAX_VOLUME_BYTES)) == bytes(3) + b"hello"
    assert len(cluster.chunks.payloads) == 1


async def test_a_trim_gives_the_space_back_and_reads_as_zeroes() -> None:
    cluster = MemoryCluster(settings=VolumeSettings(retired_grace_s=0))
    service = cluster.gateway()
    await put(service, "v", random.Random(1).randbytes(4 * CELL))
    await service.write_range("v", 0, body_of(bytes(4 * CELL)), 4 * CELL)
    while await service.reclaimer.run_due():
        pass
    assert cluster.chunks.payloads == {}
    assert await content(service, "v") == bytes(4 * CELL)


@pytest.mark.parametrize(
    "name", ["", "A", "-a", "a-", ".a", "a.", "a/b", "a b", "ä", "a" * 129, "..", "a\n", "\udc80", "a\x00"]
)
async def test_names_that_are_none(name: str) -> None:
    service = MemoryCluster().gateway()
    for attempt in (
        service.create(name, 1),
        service.show(name),
        service.open(name),
        service.delete(name),
        service.resize(name, 1),
        service.replace(name, body_of(b"x"), 1),
        service.write_range(name, 0, body_of(b"x"), 1),
    ):
        with pytest.raises(Invalid) as caught:
            await attempt
        assert caught.value.details["field"] == "name"


@pytest.mark.parametrize("name", ["a", "0", "a.b_c-d", "a" * 128, "a..b", "v-1"])
async def test_names_that_are(name: str) -> None:
    assert (await MemoryCluster().gateway().create(name, 1)).name == name


async def test_shapes_that_are_not_possible() -> None:
    service = MemoryCluster(nodes=3).gateway()
    for size in (-1, MAX_VOLUME_BYTES + 1, True, 1.5):
        with pytest.raises(Invalid, match="size"):
            await service.create("v", size)  # type: ignore[arg-type]  # what a careless caller may pass
    for chunk_size in (0, 2048, 4097, 12288, 8 << 20, -4096):
        with pytest.raises(Invalid, match="power of two"):
            await service.create("v", 1, chunk_size=chunk_size)
        with pytest.raises(Invalid, match="power of two"):
            await service.replace("v", body_of(b"x"), 1, chunk_size=chunk_size)
    for replicas in (0, 8, -1):
        with pytest.raises(Invalid, match="1 to 7"):
            await service.create("v", 1, replicas=replicas)
    with pytest.raises(Invalid, match="the cluster has 3"):
        await service.create("v", 1, replicas=4)
    with pytest.raises(Invalid, match="fsync"):
        await service.create("v", 1, durability="memory")
    with pytest.raises(NotFound):
        await service.show("v")


@pytest.mark.parametrize(
    ("announced", "blocks"), [(5, [b"abc"]), (5, []), (2, [b"abc"]), (0, [b"abc"]), (9000, [bytes(4096)] * 3)]
)
async def test_a_body_that_is_not_as_long_as_announced_changes_nothing(announced: int, blocks: list[bytes]) -> None:
    cluster = MemoryCluster()
    service = cluster.gateway()
    await put(service, "v", b"before" * 2000)
    with pytest.raises(Invalid):
        await service.replace("v", blocks_of(blocks), announced)
    with pytest.raises(Invalid):
        await service.write_range("v", 0, blocks_of(blocks), announced)
    with pytest.raises(Invalid):
        await service.replace("new", blocks_of(blocks), announced)
    assert await content(service, "v") == b"before" * 2000
    assert [volume.name for volume in (await service.list()).volumes] == ["v"]
    assert service.write_budget.held == 0


async def test_ranges_outside_the_volume() -> None:
    service = MemoryCluster().gateway()
    await put(service, "v", b"0123456789")
    for offset, data in ((8, b"abc"), (11, b""), (10, b"x"), (-1, b"x")):
        with pytest.raises(Invalid):
            await service.write_range("v", offset, body_of(data), len(data))
    with pytest.raises(Invalid):
        await service.write_range("v", 8, body_of(b"abc"), None)
    opened = await service.open("v")
    for start, stop in ((-1, 3), (5, 4), (0, 11)):
        with pytest.raises(Invalid):
            await opened.read_small(start, stop)
        with pytest.raises(Invalid):
            [part async for part in opened.read(start, stop)]
    assert await content(service, "v") == b"0123456789"


async def test_conditions() -> None:
    service = MemoryCluster().gateway()
    anything, nothing = Condition(if_match=frozenset("*")), Condition(if_none_match=frozenset("*"))
    with pytest.raises(Conflict) as caught:
        await service.replace("v", body_of(b"x"), 1, anything)
    assert caught.value.details == {"condition": "if-match", "etag": None}
    volume, created = await service.replace("v", body_of(b"x"), 1, nothing)
    assert created
    for change in (
        service.replace("v", body_of(b"y"), 1, nothing),
        service.write_range("v", 0, body_of(b"y"), 1, nothing),
        service.resize("v", 5, Condition(if_match=frozenset({"other"}))),
        service.delete("v", Condition(if_none_match=frozenset({volume.etag}))),
    ):
        with pytest.raises(Conflict):
            await change
    assert await content(service, "v") == b"x"
    assert (await service.show("v")).etag == volume.etag
    following = await service.write_range("v", 0, body_of(b"z"), 1, Condition(if_match=frozenset({"q", volume.etag})))
    with pytest.raises(Conflict):
        await service.delete("v", Condition(if_match=frozenset({volume.etag})))
    await service.resize("v", 2, Condition(if_match=frozenset({following.etag})))
    assert await content(service, "v") == b"z\0"
    await service.delete("v", anything)
    with pytest.raises(NotFound):
        await service.show("v")


async def test_a_small_put_is_one_read_one_chunk_and_one_swing() -> None:
    cluster = MemoryCluster()
    service = cluster.gateway()
    await put(service, "v", b"first")
    cluster.registers.reads = cluster.registers.swings = cluster.chunks.puts = 0
    await put(service, "v", b"second")
    assert (cluster.registers.reads, cluster.chunks.puts, cluster.registers.swings) == (1, 1, 1)


async def test_listing_is_exact_page_by_page() -> None:
    cluster = MemoryCluster()
    service = cluster.gateway()
    every = sorted(f"{'ab'[number % 2]}{number:03}" for number in range(150))
    for name in every:
        await service.create(name, 1)
    for name in every[::7]:
        await put(service, name, b"x")
        await service.delete(name)  # stays as a hidden head until it is reclaimed
    living = [name for name in every if name not in every[::7]]
    for limit in (1, 2, 13, 64, len(living), 1000):
        for prefix in ("", "a", "b1", "zzz"):
            expected = [name for name in living if name.startswith(prefix)]
            found: list[str] = []
            after: str | None = ""
            while after is not None:
                page = await service.list(prefix=prefix, after=after, limit=limit)
                assert len(page.volumes) == min(limit, len(expected) - len(found))
                found += [volume.name for volume in page.volumes]
                after = page.next_after
                assert (after is None) == (len(found) == len(expected))
            assert found == expected
    assert [volume.name for volume in (await service.list(after="a100", limit=2)).volumes] == [
        n for n in living if n > "a100"
    ][:2]
    for bad in (0, -1, 1001):
        with pytest.raises(Invalid):
            await service.list(limit=bad)
    with pytest.raises(Invalid):
        await service.list(prefix="UPPER")


@pytest.mark.parametrize("leaf_extents", [2, 1000])
async def test_pieces_say_where_every_byte_is(leaf_extents: int) -> None:
    cluster = MemoryCluster(settings=VolumeSettings(leaf_extents=leaf_extents))
    service = cluster.gateway()
    data = bytearray(random.Random(1).randbytes(20 * CELL + 7))
    data[3 * CELL : 9 * CELL] = bytes(6 * CELL)
    await put(service, "v", bytes(data))
    await service.write_range("v", 100, body_of(b"x" * CELL), CELL)
    data[100 : 100 + CELL] = b"x" * CELL
    for limit in (1, 3, 1000):
        found = bytearray(len(data))
        start: int | None = 0
        while start is not None:
            page = await service.pieces("v", start, limit)
            assert page.volume == await service.show("v")
            assert len(page.pieces) <= limit
            assert page.next_start is None or len(page.pieces) == limit
            for piece in page.pieces:
                payload = cluster.chunks.payloads[piece.chunk]
                part = payload[piece.chunk_offset : piece.chunk_offset + piece.length]
                assert len(part) == piece.length > 0
                found[piece.offset : piece.offset + piece.length] = part
            start = page.next_start
        assert found == data
    last = await service.pieces("v", len(data) - 1)
    assert [(piece.offset, piece.length, piece.chunk_offset) for piece in last.pieces] == [(len(data) - 1, 1, 6)]
    assert (await service.pieces("v", 1 << 40)).pieces == []
    for arguments in ((-1, 5), (0, 0), (0, 1001)):
        with pytest.raises(Invalid):
            await service.pieces("v", *arguments)
    with pytest.raises(NotFound):
        await service.pieces("w")


async def test_a_put_that_creates_a_volume_claims_its_name_first() -> None:
    cluster = MemoryCluster()
    await put(cluster.gateway(), "v", b"first")
    assert (cluster.registers.reads, cluster.chunks.puts, cluster.registers.swings) == (1, 1, 2)


async def test_show_reports_the_formulas() -> None:
    service = MemoryCluster().gateway()
    volume = await service.create("v", 10 * CELL + 1, chunk_size=CELL, replicas=3)
    assert volume.formulas.to_json() == {
        "sharding": {"D": 10 * CELL + 1, "S": CELL, "P": 11},
        "replication": {"n": 3, "R": 33},
        "synchronisation": {"m": 0, "T": 0},
    }
