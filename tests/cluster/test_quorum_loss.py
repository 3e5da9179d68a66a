"""Two of five nodes die: what keeps a quorum goes on, the rest says promptly and clearly why it can't, and all comes back."""

from __future__ import annotations

import asyncio
import itertools

from cluster.layout.layout import Layout
from tests.cluster.conftest import MakeCluster
from tests.cluster.content import KIB, content
from tests.cluster.gateway import Answer, Gateway
from tests.cluster.harness import eventually
from tests.cluster.inspector import Inspector, chunk_replicas, head_replicas

DEAD = ("n4", "n5")
SIZE = 64 * KIB
"""One chunk."""

PROMPT_S = 4.0
"""In which a request that can't be served must have been answered with 503, on a busy machine too."""

NOTICED_S = 5.0


def keeps_quorum(replicas: tuple[str, ...]) -> bool:
    return sum(name not in DEAD for name in replicas) >= 2


def volume_where(layout: Layout, *, quorum: bool) -> str:
    return next(
        name for name in (f"v{i}" for i in itertools.count()) if keeps_quorum(head_replicas(layout, name)) is quorum
    )


def version_where(layout: Layout, volume: str, *, quorum: bool, after: int = 0) -> int:
    """A version of the volume whose only chunk keeps a quorum, or doesn't."""
    return next(
        version
        for version in itertools.count(after)
        if keeps_quorum(chunk_replicas(layout, content(volume, version, SIZE))) is quorum
    )


def says_why(answer: Answer) -> None:
    problem = answer.problem(503, "quorum-unavailable")
    assert problem["retryable"] is True
    assert 1 <= int(answer.headers["retry-after"]) <= 10
    assert any(name in problem["detail"] for name in DEAD), problem["detail"]
    assert answer.seconds < PROMPT_S, (answer.seconds, problem["detail"])


async def test_two_of_five_nodes_are_dead(make_cluster: MakeCluster) -> None:
    cluster = await make_cluster(5)
    async with Inspector(cluster) as inspector:
        layout = (await inspector.state("n1")).current
    kept, lost = volume_where(layout, quorum=True), volume_where(layout, quorum=False)
    old = {name: version_where(layout, name, quorum=False) for name in (kept, lost)}
    new = {name: version_where(layout, name, quorum=True, after=old[name] + 1) for name in (kept, lost)}
    homeless = version_where(layout, kept, quorum=False, after=new[kept] + 1)
    async with Gateway(cluster["n1"].url) as n1, Gateway(cluster["n2"].url) as n2:
        for name, version in old.items():
            assert (await n1.put(name, content(name, version, SIZE))).status == 201
        cluster.kill(*DEAD)

        async def refused(gateway: Gateway) -> None:
            answers = await asyncio.gather(
                gateway.get(lost),
                gateway.put(lost, content(lost, new[lost], SIZE)),
                gateway.ask("GET", f"/v1/volumes/{lost}"),
                gateway.ask("DELETE", f"/v1/volumes/{lost}"),
                gateway.ask("GET", "/v1/volumes"),
            )
            for answer in answers:
                says_why(answer)
            print(f"refused within {max(answer.seconds for answer in answers):.2f} s; {answers[0].json()['detail']}")

        # before anybody has noticed, and after
        await refused(n1)
        blocked = sum(not keeps_quorum(layout.replicas(p)) for p in range(layout.partitions))
        assert 0 < blocked < layout.partitions

        async def noticed() -> bool:
            status = await n2.document("/v1/cluster")
            return bool(status["layout"]["partitions_without_quorum"] == blocked and status["health"] == "unavailable")

        await eventually(noticed, f"{blocked} partitions without a quorum are reported", NOTICED_S)
        await refused(n2)
        # one copy of each chunk is enough to read
        assert (await n1.get(kept)).body == content(kept, old[kept], SIZE)
        written = await n2.put(kept, content(kept, new[kept], SIZE))
        assert written.status == 200, written
        assert written.seconds < PROMPT_S
        # a chunk whose own holders have no quorum is kept by stand-ins
        answer = await n2.put(kept, content(kept, homeless, SIZE))
        assert (answer.status, answer.seconds < PROMPT_S) == (200, True), answer
        assert (await n1.get(kept)).body == content(kept, homeless, SIZE)
        assert (await n1.put(kept, content(kept, new[kept], SIZE))).status == 200
        for gateway in (n1, n2):
            assert (await gateway.get(kept)).body == content(kept, new[kept], SIZE)
        assert (await n1.ask("GET", "/readyz")).status == 200

        await cluster.start(*DEAD)

        async def whole() -> bool:
            return bool((await n1.document("/v1/cluster"))["layout"]["partitions_without_quorum"] == 0)

        await eventually(whole, "all partitions have a quorum again")
        async with Gateway(cluster["n4"].url) as n4:
            for gateway in (n1, n2, n4):
                assert (await gateway.get(kept)).body == content(kept, new[kept], SIZE)
                assert (await gateway.get(lost)).body == content(lost, old[lost], SIZE), "a refused change took effect"
            listed = (await n4.document("/v1/volumes"))["volumes"]
            assert {volume["name"] for volume in listed} == {kept, lost}
            for name in (kept, lost):
                assert (await n4.put(name, content(name, homeless, SIZE))).status == 200
                assert (await n1.get(name)).body == content(name, homeless, SIZE)
