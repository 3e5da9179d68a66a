"""`holdfast status`, `repair` and `where` against a fake cluster."""

from __future__ import annotations

import json
import signal
import subprocess
import threading
from typing import Any

import pytest

from client import Holdfast
from client.cli import repair as repair_command
from tests.unit.client.fake_cluster import FakeCluster, refuse
from tests.unit.client.repair_documents import repair_document, status_document
from tests.unit.client.test_commands import HOLDFAST, Run, run, served

__all__ = ["run", "served"]  # fixtures

NODES = {
    "nodes": [
        {"name": "n1", "state": "alive", "layout": "in layout", "zone": "a", "capacity": 1 << 30, "partitions": 614},
        {"name": "n2", "state": "dead", "layout": "in layout", "zone": "b", "capacity": 1 << 30, "partitions": 614},
    ]
}
JOBS = {
    "node": "n1",
    "jobs": [
        {"name": "copier", "queue_length": 0, "last_error": "", "waiting_for": "nothing"},
        {"name": "scrub", "queue_length": 0, "last_error": "the disk hung", "waiting_for": ""},
        {"name": "sweep", "queue_length": 7, "last_error": "", "waiting_for": "a quorum"},
    ],
}


def told(action: str, **failures: str) -> dict[str, Any]:
    nodes = [{"name": n, "done": n not in failures, "error": failures.get(n)} for n in ("n1", "n2", "n3")]
    return {"action": action, "nodes": nodes}


def serve(cluster: FakeCluster, repair: dict[str, Any], *attention: str) -> None:
    cluster.documents = {
        "/v1/cluster": status_document(repair, *attention),
        "/v1/nodes": NODES,
        "/v1/jobs": JOBS,
        "/v1/repair": repair,
        "/v1/repair/run": told("run"),
        "/v1/repair/pause": told("pause"),
        "/v1/repair/resume": told("resume"),
    }


def test_status_on_one_screen(run: Run, served: FakeCluster) -> None:
    repair = repair_document(missing=30)
    repair |= {"rate_bytes_per_s": 2.0 * (1 << 20), "rate_chunks_per_s": 3.0, "eta_s": 10.0, "keys_diverged": 2}
    repair |= {"oldest_divergence_s": 61.0}
    serve(served, repair, "node n2 is dead", "30 of 300 copies are missing")
    words = run("status").stdout
    lines = words.splitlines()
    assert lines[:3] == ["degraded:", "  node n2 is dead", "  30 of 300 copies are missing"]
    assert (
        "copies missing  [###########################---] 30 of 300 (10.0 %), 2 MiB/s, 3.0 chunks/s, 10 s left" in words
    )
    assert "2 keys, 0 chunks, the oldest for 1 min 1 s" in words
    assert "nodes: 1 alive, 1 dead" in words
    assert next(line for line in lines if line.startswith("n2")).split()[1] == "dead"
    assert "jobs of n1 that have work or an error:" in words
    assert next(line for line in lines if line.startswith("sweep")).split()[1] == "7"
    assert any("the disk hung" in line for line in lines)
    assert "copier" not in words
    assert json.loads(run("status", "--json").stdout) == served.documents["/v1/cluster"]


def test_status_of_a_healthy_cluster_says_so_first(run: Run, served: FakeCluster) -> None:
    serve(served, repair_document())
    served.documents["/v1/jobs"] = {"node": "n1", "jobs": JOBS["jobs"][:1]}
    words = run("status").stdout
    assert words.startswith("healthy: every copy of everything is in its place\n")
    assert "none of 300" in words
    assert "jobs of" not in words


def test_status_without_news_of_repair(run: Run, served: FakeCluster) -> None:
    serve(served, repair_document(), "how repair goes is not known: the nodes did not say so in time")
    served.documents["/v1/cluster"]["repair"] = None
    words = run("status").stdout
    assert words.startswith("degraded:")
    assert ["repair", "unknown"] in [line.split() for line in words.splitlines()]


@pytest.mark.parametrize("arguments", [["--watch"], ["--watch", "--json"]])
def test_watch_draws_anew_until_it_is_interrupted(run: Run, served: FakeCluster, arguments: list[str]) -> None:
    serve(served, repair_document())
    with subprocess.Popen([HOLDFAST, "status", *arguments], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        deadline = threading.Timer(20, process.kill)  # ends the loop below, too
        deadline.start()
        seen = 0
        for line in process.stdout:
            if "healthy" in line:
                seen += 1
                if seen == 1:  # the cluster breaks down for one screen, and the next one shows what has become of it
                    for gateway in served.gateways:
                        gateway.before = [refuse(503, "quorum-unavailable")]
                    served.documents["/v1/cluster"] = status_document(repair_document(missing=5), "healthy no more")
                if seen == 2:
                    break
        process.send_signal(signal.SIGINT)
        process.stdout.read()
    deadline.cancel()
    assert seen == 2
    assert process.returncode == 130


def test_repair_show(run: Run, served: FakeCluster) -> None:
    serve(served, repair_document(missing=12, silent=("n2",)))
    words = run("repair", "show").stdout
    assert "12 of 300" in words
    assert next(line for line in words.splitlines() if line.startswith("n2")).endswith("no answer")
    assert json.loads(run("repair", "show", "--json").stdout) == served.documents["/v1/repair"]


def test_repair_is_told_what_to_do(run: Run, served: FakeCluster) -> None:
    serve(served, repair_document())
    assert "n1, n2, n3 look now" in run("repair", "run", "--no-wait").stdout
    assert run("repair", "run", "--no-wait", "--scrub", "--json").exit_code == 0
    assert "n1, n2, n3 let repair rest" in run("repair", "pause").stdout
    assert json.loads(run("repair", "resume", "--json").stdout) == told("resume")
    assert served.posted == [
        ("/v1/repair/run", {"scrub": False}),
        ("/v1/repair/run", {"scrub": True}),
        ("/v1/repair/pause", {}),
        ("/v1/repair/resume", {}),
    ]
    served.documents["/v1/repair/pause"] = told("pause", n2="it does not answer")
    failed = run("repair", "pause")
    assert failed.exit_code == 5
    assert "n2: it does not answer" in failed.stderr


def test_a_run_waits_until_all_is_whole(run: Run, served: FakeCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repair_command, "POLL_S", 0.01)
    serve(served, repair_document(missing=9))
    looks = 0

    async def mend(request: Any) -> None:
        """Repair: the next looks show fewer missing copies, then a pass of every node and a verification."""
        nonlocal looks
        if request.path == "/v1/repair":
            looks += 1
            document = repair_document(missing=max(0, 9 - 3 * looks))
            for node in document["nodes"]:
                node |= {"passes": 5 + max(0, looks - 4), "oldest_verification_s": 0.0 if looks > 6 else 1000.0}
            document["scrub"]["damaged_chunks"] = 1 if looks == 1 else 3
            served.documents["/v1/repair"] = document

    for gateway in served.gateways:
        gateway.before = [mend] * 1000
    done = run("repair", "run", "--scrub")
    assert done.exit_code == 0, done.stderr
    assert done.stdout.startswith("whole after ")
    assert "all 300 copies are in their places" in done.stdout
    assert "2 were found damaged, and are good again" in done.stdout
    assert looks == 8  # seven that show it done or not, and one more to be sure
    document = json.loads(run("repair", "run", "--json").stdout)
    assert document["whole"] is True
    assert document["action"] == "run"
    assert document["repair"]["copies_missing"] == 0


def test_a_run_that_takes_too_long_says_what_is_missing(run: Run, served: FakeCluster) -> None:
    serve(served, repair_document(missing=9))
    late = run("repair", "run", "--timeout", "0.3")
    assert late.exit_code == 5
    assert "9 of 300 copies are missing" in late.stderr
    assert late.stdout == ""
    late = run("repair", "run", "--timeout", "0.3", "--json")
    assert json.loads(late.stderr)["exit_code"] == 5


PIECES = [
    {
        "offset": 4096 * index,
        "length": 4096,
        "chunk": f"{index:064x}",
        "chunk_offset": 0,
        "due": ["n1", "n2", "n3"],
        "held_by": ["n1", "n2"] if index == 1 else ["n1", "n2", "n3"],
        "unknown": [],
        "elsewhere": [],
    }
    for index in range(3)
]


def test_where(run: Run, served: FakeCluster) -> None:
    asked: list[dict[str, str]] = []

    async def note(request: Any) -> None:
        asked.append(dict(request.query))
        offset = int(request.query["offset"])
        served.documents["/v1/volumes/v/where"] = {
            "volume": "v",
            "pieces": [piece for piece in PIECES if piece["offset"] == offset],
            "next": offset + 4096 if offset < 8192 else None,
        }

    for gateway in served.gateways:
        gateway.before = [note] * 1000
    done = run("where", "v")
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["OFFSET", "0", "4096", "8192"]
    assert lines[2].split()[3:] == ["n1,n2", "n3", "-", "-"]
    assert "1 of 3 pieces lack copies" in done.stderr
    assert asked == [{"offset": "0"}, {"offset": "4096"}, {"offset": "8192"}]
    asked.clear()
    assert json.loads(run("where", "v:4K", "--length", "8K", "--json").stdout)["pieces"] == PIECES[1:]
    assert asked == [{"offset": "4096", "length": "8192"}, {"offset": "8192", "length": "4096"}]
    asked.clear()
    assert run("where", "v:8KiB").exit_code == 0
    assert asked == [{"offset": "8192", "length": "1"}]
    served.documents["/v1/volumes/v/where"] = {"volume": "v", "pieces": [], "next": None}
    for gateway in served.gateways:
        gateway.before = []
    assert "is a hole" in run("where", "v").stdout


@pytest.mark.parametrize("arguments", [["where", "v:"], ["where", "v:x"], ["where", "v", "--length", "0"], ["where"]])
def test_wrong_places(run: Run, arguments: list[str]) -> None:
    assert run(*arguments).exit_code == 2


def test_where_there_is_no_volume(run: Run, served: FakeCluster) -> None:
    for gateway in served.gateways:
        gateway.before = [refuse(404, "not-found")]
    assert run("where", "nothing").exit_code == 3


async def test_the_library(fake_cluster: FakeCluster, holdfast: Holdfast) -> None:
    serve(fake_cluster, repair_document())
    assert (await holdfast.repair())["copies_due"] == 300
    assert await holdfast.repair_run(scrub=True) == told("run")
    assert await holdfast.repair_pause() == told("pause")
    assert await holdfast.repair_resume() == told("resume")
    assert fake_cluster.posted[0] == ("/v1/repair/run", {"scrub": True})
    fake_cluster.documents["/v1/volumes/v/where"] = {"volume": "v", "pieces": PIECES, "next": None}
    assert [piece["offset"] async for piece in holdfast.where("v")] == [0, 4096, 8192]
    assert (await holdfast.where_page("v", offset=5, length=6, limit=7))["pieces"] == PIECES
