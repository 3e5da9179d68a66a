"""The runner of local clusters, with a small program in the daemons' place: start, watch, kill, wipe, stop, refuse."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.dev import control
from client.dev.cluster_file import read_cluster_file
from client.dev.daemon import daemon_arguments, daemon_environment, require_free_ports
from client.dev.directory import ensure_secret, locked, prepare_directory
from client.dev.plan import PORTS_PER_NODE, plan_nodes
from client.errors import Conflict, Invalid, Unavailable

HOLDFAST = Path(sys.executable).parent / "holdfast"

FAKE_DAEMON = """\
import http.server, json, os, signal, sys
flags = [a for a in sys.argv[1:] if a != "--auto-layout"]
arguments = dict(zip(flags[::2], flags[1::2]))
data, name = arguments["--data"], arguments["--name"]
orders = os.path.dirname(sys.argv[0])
if os.path.exists(f"{orders}/{name}.refuses"):
    print("the data directory is damaged", file=sys.stderr)
    sys.exit(2)
with open(os.path.join(data, "starts"), "a") as file:
    file.write(json.dumps(sys.argv[1:]) + "\\n")
class Ready(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers()
    def log_message(self, *_): pass
signal.signal(signal.SIGTERM, signal.SIG_IGN if os.path.exists(f"{orders}/{name}.stubborn") else lambda *_: os._exit(0))
host, port = arguments["--api"].split(":")
http.server.HTTPServer((host, int(port)), Ready).serve_forever()
"""


def free_port_base(nodes: int) -> int:
    """Where ``nodes`` consecutive nodes find their ports free just now."""
    for base in range(20000 + os.getpid() % 500 * 20, 60000, 1000):
        try:
            require_free_ports(plan_nodes(nodes, base))
        except Invalid:
            continue
        return base
    raise AssertionError("no free ports")


def wait_until(condition: Callable[[], Any], what: str, deadline_s: float = 20.0) -> None:
    give_up = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < give_up, f"never came true: {what}"
        time.sleep(0.02)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


class Runner:
    """`holdfast dev` in a process of its own, with the fake daemon."""

    def __init__(self, tmp_path: Path) -> None:
        self.directory = tmp_path / "cluster"
        self.bin = tmp_path / "bin"
        self.bin.mkdir()
        daemon = self.bin / "holdfastd"
        daemon.write_text(f"#!{sys.executable} -SE\n{FAKE_DAEMON}")
        daemon.chmod(0o755)
        program = f"import sys\nsys.executable = {str(self.bin / 'python')!r}\nfrom client.cli import main\nmain()\n"
        (self.bin / "holdfast").write_text(f"#!{sys.executable}\n{program}")
        (self.bin / "holdfast").chmod(0o755)
        self.base = free_port_base(4)
        self.process: subprocess.Popen[str] | None = None

    def start(self, *arguments: str) -> dict[str, Any]:
        """Until it says that it is ready."""
        self.process = subprocess.Popen(
            [str(self.bin / "holdfast"), "dev", "--data", str(self.directory), "--json", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, self.process.communicate()
        document = json.loads(line)
        assert isinstance(document, dict)
        return document

    def fails(self, *arguments: str) -> tuple[int, str]:
        """The exit code and the words of one that doesn't come up."""
        done = subprocess.run(
            [str(self.bin / "holdfast"), "dev", "--data", str(self.directory), *arguments],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        return done.returncode, done.stderr

    def command(self, *arguments: str) -> tuple[int, dict[str, Any]]:
        done = subprocess.run(
            [str(HOLDFAST), "dev", *arguments, "--data", str(self.directory), "--json"],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        return done.returncode, json.loads(done.stdout or done.stderr)

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        self.process.communicate(timeout=30)
        return self.process.returncode

    def pids(self) -> dict[str, int | None]:
        cluster = read_cluster_file(self.directory)
        assert cluster is not None
        return {node.name: node.pid for node in cluster.nodes}

    def starts(self, name: str) -> list[list[str]]:
        return [json.loads(line) for line in (self.directory / name / "starts").read_text().splitlines()]


@pytest.fixture
def runner(tmp_path: Path) -> Iterator[Runner]:
    runner = Runner(tmp_path)
    yield runner
    if runner.process is not None:
        with runner.process:  # closes its pipes and waits
            runner.process.kill()


@given(count=st.integers(1, 100), base=st.integers(1, 65535))
def test_ports_never_meet(count: int, base: int) -> None:
    try:
        nodes = plan_nodes(count, base)
    except Invalid:
        assert base + PORTS_PER_NODE * (count - 1) + 2 > 65535
        return
    ports = [port for node in nodes for port in (node.api_port, node.api_port + 1, node.peer_port)]
    assert len(set(ports)) == len(ports)
    assert max(ports) <= 65535
    assert [node.api_port for node in nodes] == [base + 10 * index for index in range(count)]
    assert all(node.peer_port == node.api_port + 2 for node in nodes)


def test_a_daemons_command_line(tmp_path: Path) -> None:
    nodes = plan_nodes(12, 7480)
    seeds = [node.peer for node in nodes]
    line = daemon_arguments(nodes[0], data=tmp_path, secret_file=tmp_path / "s", seeds=seeds, bootstrap_expect=12)
    assert line.count("--join") == 8
    assert nodes[0].peer not in line[line.index("--join") :]
    assert line[line.index("--bootstrap-expect") + 1] == "12"
    later = daemon_arguments(nodes[1], data=tmp_path, secret_file=tmp_path / "s", seeds=seeds, bootstrap_expect=None)
    assert "--bootstrap-expect" not in later
    inherited = daemon_environment(
        {"HOLDFAST_NAME": "x", "HOLDFAST_API_TOKEN": "t", "HOLDFAST_GRACE_S": "5", "PATH": "p"}
    )
    assert inherited == {"HOLDFAST_GRACE_S": "5", "PATH": "p"}


def test_secret_is_for_its_owner_alone(tmp_path: Path) -> None:
    path = ensure_secret(tmp_path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert len(path.read_text().strip()) == 64
    assert ensure_secret(tmp_path).read_text() == path.read_text()
    assert [entry.name for entry in tmp_path.iterdir()] == ["secret"]


def test_foreign_directories_are_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(Invalid, match="not empty"):
        prepare_directory(tmp_path)
    with pytest.raises(Invalid, match="cannot use"):
        prepare_directory(tmp_path / "thesis.tex" / "below")


def test_one_runner_a_directory(tmp_path: Path) -> None:
    with locked(tmp_path), pytest.raises(Conflict, match=f"process {os.getpid()}"), locked(tmp_path):
        pass
    with locked(tmp_path):
        pass


def test_a_port_in_use_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(Invalid, match=rf"port {port} \(n1, API\)"):
            require_free_ports(plan_nodes(1, port))


def test_commands_without_a_runner(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="no cluster runs in"):
        control.ask(tmp_path, "start", "n1")
    with pytest.raises(Unavailable, match="no cluster runs in"):
        control.ask(tmp_path / "absent", "start", "n1")


def test_a_cluster_from_start_to_end(runner: Runner) -> None:
    document = runner.start("--nodes", "3", "--port-base", str(runner.base))
    assert [node["name"] for node in document["nodes"]] == ["n1", "n2", "n3"]
    assert document["nodes"][1]["api"] == f"127.0.0.1:{runner.base + 10}"
    assert document["nodes"][1]["peer"] == f"127.0.0.1:{runner.base + 12}"
    assert document == json.loads((runner.directory / "cluster.json").read_text())
    pids = [pid for pid in runner.pids().values() if pid is not None]
    assert len(pids) == 3
    assert all(is_running(pid) for pid in pids)
    assert runner.end(signal.SIGINT) == 0
    assert not any(is_running(pid) for pid in pids)
    assert runner.pids() == {"n1": None, "n2": None, "n3": None}
    assert not (runner.directory / "control.sock").exists()

    runner.start()  # again, with everything as it was
    assert {name: len(runner.starts(name)) for name in runner.pids()} == {"n1": 2, "n2": 2, "n3": 2}
    assert runner.starts("n1")[0] == runner.starts("n1")[1]
    code, answer = runner.command("stop")
    assert (code, answer) == (0, {"stopping": True})
    assert runner.process is not None
    assert runner.process.wait(20) == 0


def test_single_nodes(runner: Runner) -> None:
    runner.start("--nodes", "3", "--port-base", str(runner.base))
    pid = runner.pids()["n2"]
    code, answer = runner.command("kill", "n2")
    assert (code, answer["pid"], answer["was_running"]) == (0, pid, True)
    assert runner.pids()["n2"] is None
    assert runner.command("kill", "n2")[1]["was_running"] is False
    assert runner.command("kill", "n9")[0] == 3
    code, answer = runner.command("start", "n2")
    assert code == 0
    assert answer["ready"] is True
    assert runner.pids()["n2"] == answer["pid"] != pid
    assert runner.command("start", "n2")[0] == 4
    assert len(runner.starts("n2")) == 2
    assert runner.command("stop", "n2")[1]["was_running"] is True
    assert runner.command("start", "n2")[0] == 0
    (runner.directory / "n2" / "deep" / "down").mkdir(parents=True)
    code, answer = runner.command("wipe", "n2")
    assert (code, answer["was_running"]) == (0, True)
    assert list((runner.directory / "n2").iterdir()) == []
    assert runner.pids()["n2"] is None
    assert runner.command("start", "n2")[0] == 0
    assert len(runner.starts("n2")) == 1
    code, shown = runner.command("show")
    assert {node["name"]: node["pid"] for node in shown["nodes"]} == runner.pids()

    dies = runner.pids()["n3"]
    assert dies is not None
    os.kill(dies, signal.SIGKILL)  # behind the runner's back: it notices, and leaves it dead
    wait_until(lambda: runner.pids()["n3"] is None, "the runner notices the death")
    assert runner.end() == 0


def test_wipe_of_a_cluster_that_does_not_run(runner: Runner) -> None:
    runner.start("--nodes", "2", "--port-base", str(runner.base))
    assert runner.end() == 0
    assert runner.command("wipe", "n1")[0] == 0
    assert list((runner.directory / "n1").iterdir()) == []
    assert runner.command("wipe", "n7")[0] == 3
    assert runner.command("start", "n1")[0] == 5


def test_no_daemon_outlives_a_killed_runner(runner: Runner) -> None:
    runner.start("--nodes", "3", "--port-base", str(runner.base))
    pids = [pid for pid in runner.pids().values() if pid is not None]
    runner.end(signal.SIGKILL)
    wait_until(lambda: not any(is_running(pid) for pid in pids), "the daemons are gone")
    assert runner.command("kill", "n1")[0] == 5
    code, shown = runner.command("show")
    assert code == 0
    assert [node["pid"] for node in shown["nodes"]] == [None] * 3  # the file's numbers are stale and not shown
    runner.start()
    assert runner.end() == 0


def test_more_nodes_join_and_fewer_are_refused(runner: Runner) -> None:
    runner.start("--nodes", "2", "--port-base", str(runner.base))
    code, words = runner.fails("--nodes", "2")
    assert code == 4
    assert runner.process is not None
    assert f"process {runner.process.pid}" in words
    runner.end()
    runner.start("--nodes", "3")
    assert "--bootstrap-expect" not in runner.starts("n3")[0]
    assert runner.starts("n1")[1][runner.starts("n1")[1].index("--bootstrap-expect") + 1] == "2"
    runner.end()
    code, words = runner.fails("--nodes", "2")
    assert code == 2
    assert "has 3 nodes" in words


def test_what_stands_in_the_way_is_named(runner: Runner) -> None:
    with socket.create_server(("127.0.0.1", runner.base + 12)):
        code, words = runner.fails("--nodes", "2", "--port-base", str(runner.base))
    assert code == 2
    assert f"port {runner.base + 12} (n2, peers)" in words
    (runner.bin / "n2.refuses").touch()
    code, words = runner.fails("--nodes", "2", "--port-base", str(runner.base))
    assert code == 5
    assert "n2 ended with exit code 2 while it was starting:\n  the data directory is damaged" in words
    assert runner.pids() == {"n1": None, "n2": None}


def test_a_new_cluster_with_a_broken_node_ends_and_an_old_one_goes_on(runner: Runner) -> None:
    runner.start("--nodes", "2", "--port-base", str(runner.base))
    runner.end()
    (runner.bin / "n2.refuses").touch()
    runner.start()
    assert runner.pids()["n2"] is None
    code, answer = runner.command("start", "n2")
    assert code == 5
    assert "the data directory is damaged" in answer["message"]
    (runner.bin / "n2.refuses").unlink()
    assert runner.command("start", "n2")[0] == 0
    assert runner.end() == 0


def test_a_daemon_that_will_not_stop_is_killed_on_the_second_ctrl_c(runner: Runner) -> None:
    runner.start("--nodes", "2", "--port-base", str(runner.base))
    runner.end()
    (runner.bin / "n1.stubborn").touch()
    runner.start()
    pid = runner.pids()["n1"]
    assert pid is not None
    assert runner.process is not None
    runner.process.send_signal(signal.SIGINT)
    wait_until(lambda: runner.pids()["n2"] is None, "the other node has stopped")
    assert is_running(pid)
    runner.process.send_signal(signal.SIGINT)
    assert runner.process.wait(5) == 0
    assert not is_running(pid)
