"""The judge against a naive mark of all roots, after and during random histories; and what it says when something can't be read."""

from __future__ import annotations

import asyncio
import contextlib
import random

import pytest

from cluster.errors import Corrupt, HoldfastError, NotFound, QuorumUnavailable
from cluster.repair.judge import Verdict
from cluster.volumes.head import shard_of
from cluster.volumes.names import MIN_CHUNK_BYTES
from cluster.volumes.reference import data_referrer, new_write_id, page_referrer, tag_of
from cluster.volumes.service import VolumeService, VolumeSettings
from tests.unit.cluster.volumes.memory_cluster import MemoryCluster, body_of, put
from tests.unit.cluster.volumes.naive_references import Reference, heads_of, needed_references

CELL = MIN_CHUNK_BYTES
NAMES = ["a", "b", "c"]


def naive_verdicts(cluster: MemoryCluster, references: list[Reference]) -> list[Verdict]:
    live, all_roots = needed_references(cluster, retired=False), needed_references(cluster)
    return [
        Verdict.LIVE if reference in live else Verdict.RETIRED if reference in all_roots else Verdict.UNNAMED
        for reference in references
    ]


async def change(service: VolumeService, rng: random.Random) -> None:
    name = rng.choice(NAMES)
    letter = rng.randrange(3)
    kind = rng.random()
    with contextlib.suppress(HoldfastError):
        if kind < 0.3:
            size = rng.choice([1, CELL, 5 * CELL, 70 * CELL + 5])
            data = b"".join(bytes([rng.randrange(3)]) * CELL for _ in range(size // CELL + 1))[:size]
            await put(service, name, data, chunk_size=CELL)
        elif kind < 0.7:
            size = (await service.show(name)).size
            offset = rng.randrange(size + 1)
            length = min(rng.choice([1, 9, CELL, 3 * CELL]), size - offset)
            await service.write_range(name, offset, body_of(bytes([letter]) * length), length)
        elif kind < 0.8:
            await service.resize(name, rng.choice([CELL, 100 * CELL, 5000 * CELL]))
        elif kind < 0.9:
            await service.delete(name)
        else:
            await service.create(name, rng.choice([0, 9 * CELL]), chunk_size=rng.choice([CELL, 2 * CELL]))


def strangers(cluster: MemoryCluster, rng: random.Random) -> list[Reference]:
    """References like those that are held, each with something changed, and of names that nobody has."""
    found: list[Reference] = []
    for chunk, referrer in sorted(cluster.chunks.all_references()):
        write, cell = referrer[:10], referrer[10:]
        found += [
            (bytes(32), referrer),
            (chunk, new_write_id(rng.choice(NAMES), rng) + cell),
            (chunk, write + rng.randrange(9).to_bytes(6)),
        ]
    return [*found, (bytes(32), data_referrer(new_write_id("nobody", rng), 1))]


@pytest.mark.parametrize("seed", range(60))
async def test_the_judge_agrees_with_a_mark_of_all_roots(seed: int) -> None:
    """Also about what is held and needed by nobody, and about what is not held at all; the judge's own memory is of any age."""
    rng = random.Random(seed)
    cluster = MemoryCluster(seed=seed, settings=VolumeSettings(leaf_extents=rng.choice([1, 2, 7]), retired_grace_s=60))
    gateways = [cluster.gateway(number) for number in range(3)]
    judge = gateways[2].judge
    seen: set[Reference] = set()
    for step in range(30):
        await change(rng.choice(gateways), rng)
        cluster.clock.now += rng.choice([0, 20])
        if rng.random() < 0.5:
            await rng.choice(gateways).reclaimer.run_due()
        seen |= cluster.chunks.all_references()
        if step % 5 == 4:
            asked = sorted(seen) + strangers(cluster, rng)
            rng.shuffle(asked)
            assert await judge.judge(asked) == naive_verdicts(cluster, asked)


@pytest.mark.parametrize("seed", range(30))
async def test_nothing_needed_is_ever_called_unnamed_while_writers_and_reclaimers_work(seed: int) -> None:
    """What was live when it was asked and is live after the answer was live all the time, since a reference never comes back."""
    rng = random.Random(seed)
    cluster = MemoryCluster(seed=seed, settings=VolumeSettings(leaf_extents=2, retired_grace_s=0))
    gateways = [cluster.gateway(number) for number in range(3)]
    judge = cluster.gateway(9).judge
    await put(gateways[0], "a", b"".join(bytes([letter]) * CELL for letter in range(1, 40)))
    cluster.scatter(seed)
    working = True
    answered = dict.fromkeys(Verdict, 0)

    async def reclaim(service: VolumeService) -> None:
        while working:
            cluster.clock.now += 1
            await service.reclaimer.run_due()
            await asyncio.sleep(0)

    async def ask() -> None:
        while working:
            asked = sorted(cluster.chunks.all_references())
            before = needed_references(cluster, retired=False)
            answers = await judge.judge_each(asked)
            after = needed_references(cluster, retired=False)
            for reference, answer in zip(asked, answers, strict=True):
                if isinstance(answer, HoldfastError):
                    assert isinstance(answer, QuorumUnavailable)
                    continue
                answered[answer] += 1
                if reference in before and reference in after:
                    assert answer is Verdict.LIVE
            await asyncio.sleep(0)

    async with asyncio.TaskGroup() as group:
        for service in gateways:
            group.create_task(reclaim(service))
        group.create_task(ask())

        async def write(service: VolumeService) -> None:
            for _ in range(10):
                await change(service, rng)

        writing = [group.create_task(write(service)) for service in gateways]
        await asyncio.gather(*writing)
        working = False
    assert sum(answered.values()) > 20


async def test_most_questions_cost_one_read_of_a_head() -> None:
    cluster = MemoryCluster(settings=VolumeSettings(leaf_extents=2))
    service = cluster.gateway()
    for name in NAMES:
        await put(service, name, b"".join(bytes([letter]) * CELL for letter in range(1, 30)))
    held = sorted(cluster.chunks.all_references())
    assert set(await service.judge.judge(held)) == {Verdict.LIVE}
    cluster.registers.reads = cluster.registers.scans = 0
    assert set(await service.judge.judge(held)) == {Verdict.LIVE}
    assert (cluster.registers.reads, cluster.registers.scans) == (len(NAMES), 0)


async def test_a_volume_created_since_the_last_scan_is_found() -> None:
    cluster = MemoryCluster()
    service, judge = cluster.gateway(1), cluster.gateway(2).judge
    stranger = (bytes(32), data_referrer(new_write_id("new", random.Random(1)), 0))
    assert await judge.judge([stranger]) == [Verdict.UNNAMED]
    await put(service, "new", b"x")
    (held,) = cluster.chunks.all_references()
    assert await judge.judge([stranger, held]) == [Verdict.UNNAMED, Verdict.LIVE]
    await service.delete("new")
    assert await judge.judge([held]) == [Verdict.RETIRED]


def names_with_one_tag() -> tuple[str, str]:
    """Two names whose hashes begin with the same 4 bytes."""
    seen: dict[bytes, str] = {}
    for number in range(1_000_000):
        name = f"v{number}"
        tag = tag_of(name)
        if tag in seen:
            return seen[tag], name
        seen[tag] = name
    raise AssertionError("there is such a pair below a million")


async def test_two_names_may_have_one_tag() -> None:
    first, second = names_with_one_tag()
    cluster = MemoryCluster()
    service = cluster.gateway()
    await put(service, first, b"first")
    (mine,) = cluster.chunks.all_references()
    assert await service.judge.judge([mine]) == [Verdict.LIVE]
    await put(service, second, b"second")  # created since the judge learned of the first
    held = sorted(cluster.chunks.all_references())
    assert await service.judge.judge(held) == [Verdict.LIVE] * 2
    assert await service.judge.names_of(tag_of(first)) == tuple(sorted([first, second]))


async def test_questions_that_wait_share_a_scan_begun_after_them() -> None:
    cluster = MemoryCluster()
    judge = cluster.gateway().judge
    cluster.scatter(1)
    rng = random.Random(1)
    asked = [(bytes(32), data_referrer(new_write_id("nobody", rng), 0)) for _ in range(50)]
    verdicts = await asyncio.gather(*(judge.judge([reference]) for reference in asked))
    assert all(verdict == [Verdict.UNNAMED] for verdict in verdicts)
    assert cluster.registers.scans == 2


async def test_a_page_of_the_live_root_that_cannot_be_read_is_an_error_and_never_unnamed() -> None:
    cluster = MemoryCluster(settings=VolumeSettings(leaf_extents=2))
    service = cluster.gateway()
    await put(service, "v", b"".join(bytes([letter]) * CELL for letter in range(1, 100)))
    held = sorted(cluster.chunks.all_references())
    pages = [reference for reference in held if reference[1].endswith(b"\xff" * 6)]
    assert len(pages) > 1
    for error in (QuorumUnavailable("too few"), Corrupt("no good copy"), NotFound("nowhere")):

        async def fail(_: int, error: HoldfastError = error) -> None:
            raise error

        judge = cluster.gateway(5).judge
        cluster.chunks.before_read = fail
        answers = dict(zip(held, await judge.judge_each(held), strict=True))
        for reference, answer in answers.items():
            if reference in pages:  # those that the inline root names are known without reading any
                assert answer is Verdict.LIVE or isinstance(answer, HoldfastError)
            else:
                assert isinstance(answer, HoldfastError)
        with pytest.raises((QuorumUnavailable, Corrupt)):
            await judge.judge(held)


async def test_one_lost_page_hides_nothing_but_what_is_below_it() -> None:
    cluster = MemoryCluster(settings=VolumeSettings(leaf_extents=2))
    service = cluster.gateway()
    await put(service, "v", b"".join(bytes([letter]) * CELL for letter in range(1, 200)))
    root = heads_of(cluster)[0].root
    assert root.page is None  # inline, with four children
    held = sorted(cluster.chunks.all_references())
    lost = next(chunk for chunk, referrer in held if referrer.endswith(b"\xff" * 6))
    del cluster.chunks.payloads[lost]
    answers = dict(zip(held, await cluster.gateway(5).judge.judge_each(held), strict=True))
    errors = [reference for reference, answer in answers.items() if isinstance(answer, HoldfastError)]
    assert 1 <= len(errors) < len(held) / 2
    # The lost page itself can't say where it belongs, and is found by looking through the whole tree.
    assert all(answers[reference] is Verdict.LIVE for reference in held if reference[0] == lost)
    assert all(answers[reference] is Verdict.LIVE for reference in held if reference not in errors)


async def test_a_retired_root_without_a_page_no_longer_names_what_was_below() -> None:
    cluster = MemoryCluster(settings=VolumeSettings(leaf_extents=2))
    service = cluster.gateway()
    await put(service, "v", b"".join(bytes([letter]) * CELL for letter in range(1, 60)))
    old = sorted(cluster.chunks.all_references())
    await put(service, "v", b"x")
    judge = cluster.gateway(5).judge
    assert await judge.judge(old) == [Verdict.RETIRED] * len(old)
    for chunk, referrer in old:
        if referrer.endswith(b"\xff" * 6):
            del cluster.chunks.payloads[chunk]
    fresh = cluster.gateway(6).judge
    verdicts = dict(zip(old, await fresh.judge(old), strict=True))
    assert set(verdicts.values()) >= {Verdict.UNNAMED}
    assert all(
        verdict is Verdict.UNNAMED for (_, referrer), verdict in verdicts.items() if not referrer.endswith(b"\xff" * 6)
    )


async def test_a_damaged_head_hides_only_its_own_volume() -> None:
    cluster = MemoryCluster()
    service = cluster.gateway()
    other = next(f"w{n}" for n in range(1000) if shard_of(f"w{n}") == shard_of("v"))
    await put(service, "v", b"x")
    await put(service, other, b"y")
    key = next(key for key in cluster.registers.values if key.sort == b"v")
    cluster.registers.values[key] = b"\xc1"
    stranger = (bytes(32), page_referrer(new_write_id(other, random.Random(1))))
    held = sorted(cluster.chunks.all_references())
    answers = dict(zip([*held, stranger], await service.judge.judge_each([*held, stranger]), strict=True))
    assert answers[stranger] is Verdict.UNNAMED
    for reference in held:
        if reference[1][:4] == tag_of("v"):
            assert isinstance(answers[reference], Corrupt)
        else:
            assert answers[reference] is Verdict.LIVE


async def test_without_a_quorum_nothing_is_known() -> None:
    cluster = MemoryCluster()
    service = cluster.gateway()
    await put(service, "v", b"x")

    async def refuse(_: int) -> None:
        raise QuorumUnavailable("too few")

    cluster.registers.before_read = refuse
    held = sorted(cluster.chunks.all_references())
    await service.judge.names_of(tag_of("v"))
    with pytest.raises(QuorumUnavailable):
        await service.judge.judge(held)
