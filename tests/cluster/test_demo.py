"""`scripts/demo`: the whole tour with a small file, and that it leaves nothing behind when it is interrupted."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

TOUR = Path(__file__).parents[2] / "scripts" / "demo_tour.py"
TOUR_S = 180.0
STEP_S = 60.0


def begin(temporary: Path, size: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(TOUR), "--size", size],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "TMPDIR": str(temporary)},
    )


def processes_in(directory: Path) -> list[str]:
    """Command lines that name the directory."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue  # it has ended
            if str(directory) in line:
                found.append(line)
    return found


def test_the_whole_tour(tmp_path: Path) -> None:
    with begin(tmp_path, "24MiB") as process:
        try:
            words, _ = process.communicate(timeout=TOUR_S)
        finally:
            process.kill()
    print(words)
    assert process.returncode == 0
    assert "All of it held" in words
    for step in range(1, 7):
        assert f"\n{step}. " in words
    assert list(tmp_path.iterdir()) == []
    assert processes_in(tmp_path) == []


def test_an_interrupted_tour_leaves_nothing(tmp_path: Path) -> None:
    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        with begin(tmp_path, "4MiB") as process:
            try:
                assert process.stdout is not None
                give_up = time.monotonic() + STEP_S
                while not process.stdout.readline().startswith("2. "):
                    assert process.poll() is None
                    assert time.monotonic() < give_up
                assert processes_in(tmp_path)
                process.send_signal(number)
                process.communicate(timeout=STEP_S)
            finally:
                process.kill()
        assert process.returncode == code
        assert list(tmp_path.iterdir()) == []
        assert processes_in(tmp_path) == []
