"""docker-compose.yml on a real engine, as a user tries it out: store, kill, read, start again, lose a disk, and find everything there."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from tests.cluster.content import KIB, MIB, content
from tests.compose.project import NODES, READY_DEADLINE_S, WHOLE_DEADLINE_S, ComposeProject, digest, until

SIZE = 5 * MIB + 12345
"""Two chunks, the last one not whole."""

SMALL_CHUNK = 256 * KIB
"""The first volume's: so many that every node holds some of it."""

OWNER = 7480
"""User and group of the daemon, and owner of what it writes."""

STOP_DEADLINE_S = 10
"""For five idle daemons to stop when they are told to; their grace period in the Compose file is twice as long."""


class Stored:
    """What was acknowledged, and whether every node still gives it."""

    def __init__(self, project: ComposeProject, directory: Path) -> None:
        self._project = project
        self._directory = directory
        self._digests: dict[str, str] = {}

    def put(self, node: str, volume: str, version: int = 0) -> None:
        data = content(volume, version, SIZE)
        file = self._directory / "content"
        file.write_bytes(data)
        answer = self._project.put(node, volume, file)
        assert answer.status in {200, 201}, (node, answer)
        self._digests[volume] = digest(data)

    def check(self, *nodes: str) -> None:
        for node in nodes or NODES:
            for volume, expected in self._digests.items():
                answer = self._project.get(node, volume)
                assert answer.status == 200, (node, volume, answer.body[:500])
                assert digest(answer.body) == expected, f"{node} gives other bytes of {volume}"

    def check_honest(self, *nodes: str) -> None:
        """The right bytes, or that there is no quorum now."""
        for node in nodes:
            for volume, expected in self._digests.items():
                answer = self._project.get(node, volume)
                if answer.status == 200:
                    assert digest(answer.body) == expected, f"{node} gives other bytes of {volume}"
                else:
                    assert answer.status == 503, (node, volume, answer.body[:500])
                    assert answer.json()["type"].endswith("/quorum-unavailable"), answer


def others(*nodes: str) -> list[str]:
    return [node for node in NODES if node not in nodes]


def test_the_exercise_of_the_user_guide(project: ComposeProject, tmp_path: Path) -> None:
    project.compose("up", "--build", "--detach")
    project.wait_ready()
    runs_as_its_own_user(project)
    stored = Stored(project, tmp_path)
    assert project.create("n1", "v", SIZE, SMALL_CHUNK).status == 201
    stored.put("n1", "v")
    stored.check()
    project.wait_whole()
    held = project.chunks("n4")
    assert held > 0

    # two nodes die, one after the other; the cluster is whole in between
    for killed, writer in (("n2", "n1"), ("n3", "n4")):
        project.compose("kill", killed)
        stored.check(*others(killed))
        stored.put(writer, f"written-without-{killed}")
        stored.check(*others(killed))
        assert project.inspect(killed)["State"]["Running"] is False, "who was killed by hand stays down"
        project.compose("up", "--detach")
        project.wait_ready(killed)
        project.wait_whole()
        stored.check()

    # the second dies while the first is still away: less than a quorum may be left, but nothing is lost
    project.compose("kill", "n2")
    project.compose("kill", "n3")
    stored.check_honest("n1", "n4", "n5")
    project.compose("up", "--detach")
    project.wait_ready("n2", "n3")
    project.wait_whole()
    stored.check()

    # a disk is lost: whoever comes back with an empty one fetches all that belongs there
    volume = project.volume("n4")
    project.compose("rm", "--stop", "--force", "n4")
    project.docker("volume", "rm", volume)
    stored.put("n5", "written-without-n4")
    project.compose("up", "--detach")
    project.wait_ready("n4")
    project.wait_whole()
    until(lambda: project.chunks("n4") >= held, f"n4 has its {held} chunks again", WHOLE_DEADLINE_S)
    stored.check()
    stored.put("n4", "v", version=1)
    stored.check()

    comes_back_after_a_crash(project, "n5")
    stored.check()

    stops_in_time_and_in_peace(project)
    project.compose("down")
    project.compose("up", "--detach")
    project.wait_ready()
    project.wait_whole()
    stored.check()

    project.compose("down", "--volumes")
    assert project.left() == []


def runs_as_its_own_user(project: ComposeProject) -> None:
    container = project.container("n1")
    daemon = project.docker("exec", container, "stat", "--format", "%u %g", "/proc/1")
    data = project.docker("exec", container, "stat", "--format", "%u %g", "/data", "/data/chunks")
    assert set((daemon + data).splitlines()) == {f"{OWNER} {OWNER}"}
    environment = project.inspect("n1")["Config"]["Env"]
    assert f"HOLDFAST_SECRET={project.secret}" in environment


def comes_back_after_a_crash(project: ComposeProject, node: str) -> None:
    """A process that dies by itself is started again; `docker kill` would count as the user's wish."""
    state = project.inspect(node)
    assert state["RestartCount"] == 0
    kill = f"kill -9 {state['State']['Pid']}"
    project.docker("run", "--rm", "--pid=host", "--user=0", "--entrypoint=sh", project.image, "-c", kill)
    until(lambda: project.inspect(node)["RestartCount"] == 1, f"{node} is started again", READY_DEADLINE_S)
    project.wait_ready(node)
    project.wait_whole()
    for name in NODES:
        until(partial(project.is_healthy, name), f"the engine finds {name} healthy", READY_DEADLINE_S)


def stops_in_time_and_in_peace(project: ComposeProject) -> None:
    project.compose("stop", "--timeout", str(STOP_DEADLINE_S))
    for node in NODES:
        state = project.inspect(node)["State"]
        assert state["ExitCode"] == 0, f"{node} was killed: it took longer than {STOP_DEADLINE_S} s to stop"
        log = project.logs(node)
        assert "node_stopped" in log
        loud = [line for line in log.splitlines() if line.startswith("ERROR") or "Traceback" in line]
        assert not loud, f"{node} logs what is no event: {loud}"
