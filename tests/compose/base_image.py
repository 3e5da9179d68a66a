"""The image that the Dockerfile is built on, made without an image registry: a small Debian, Python, and wheels of all dependencies.

It stands in for the public Python image, so that the Dockerfile itself is built as it is: the wheels and the pip configuration that
points to them are in the image below. Both are kept in the user's cache, named by what they depend on: making the Debian takes
most of a minute, the wheels some seconds.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

from tests.compose.engine import CommandError, Engine, run_isolated

ROOT = Path(__file__).parents[2]

SUITE = "bookworm"
PYTHON_VERSION = "3.11"
"""What that Debian has."""

PACKAGES = ("python3", "python3-venv")

LEFT_OUT = (
    "./var/cache/apt/*",
    "./var/lib/apt/lists/*",
    "./usr/share/doc/*",
    "./usr/share/locale/*",
    "./usr/share/man/*",
)
"""Of the Debian: a third of its size, and nobody looks at it."""

DEBIAN_DEADLINE_S = 300.0
"""Making it takes 45 s on two cores."""

LABEL = "holdfast-test"
"""On all images of the tests: what is built on an image inherits its labels."""

RECIPE = """\
FROM {debian}
COPY wheels /usr/local/share/wheels
RUN ln -s /usr/bin/python3 /usr/local/bin/python \\
 && printf '[global]\\nno-index = true\\nfind-links = /usr/local/share/wheels\\n' > /etc/pip.conf
"""


class NoBaseImageError(Exception):
    """No base image can be had; says why."""


def dockerfile_base() -> str:
    """The public image that the Dockerfile names."""
    found = re.search(r"^ARG PYTHON=(\S+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert found is not None
    return found[1]


def make_base_image(engine: Engine) -> str:
    """The name of an image in this engine to build on. Raises NoBaseImageError."""
    if os.geteuid() != 0 or shutil.which("debootstrap") is None:
        public = dockerfile_base()
        try:
            engine.run("docker", "pull", "--quiet", public)
        except CommandError as error:
            raise NoBaseImageError(
                f"{public} can't be pulled, and making an image takes root and debootstrap: {error}"
            ) from error
        return public
    archive, wheels = _debian(), _wheels()
    debian = f"holdfast-test-debian:{archive.name.split('.')[0].rpartition('-')[2]}"
    base = f"holdfast-test-python:{wheels.name.rpartition('-')[2]}"
    engine.run("docker", "import", "--change", f"LABEL {LABEL}=1", str(archive), debian)
    with tempfile.TemporaryDirectory(prefix="holdfast-base-") as context:
        shutil.copytree(wheels, Path(context, "wheels"))
        Path(context, "Dockerfile").write_text(RECIPE.format(debian=debian))
        engine.run("docker", "build", "--quiet", "--tag", base, context)
    return base


def remove_base_image(engine: Engine, image: str) -> None:
    """What `make_base_image` made, and what was built on it; a pulled image stays."""
    if image != dockerfile_base():
        # newest first, so none is removed before those that stand on it
        listed = engine.run("docker", "image", "ls", "--quiet", "--no-trunc", "--filter", f"label={LABEL}")
        engine.run("docker", "image", "rm", "--force", *dict.fromkeys(listed.split()))


def _debian() -> Path:
    """An archive of the root file system."""
    archive = _cache(f"debian-{_key(SUITE, *PACKAGES, *LEFT_OUT)}.tar.gz")
    if not archive.exists():
        with tempfile.TemporaryDirectory(prefix="holdfast-debian-") as directory:
            root, made = Path(directory, "root"), Path(directory, "debian.tar.gz")
            command = ["debootstrap", "--variant=minbase", f"--include={','.join(PACKAGES)}", SUITE, str(root)]
            _in_isolation(command, Path(directory, "debootstrap.log"))
            excluded = [f"--exclude={pattern}" for pattern in LEFT_OUT]
            compress = "--use-compress-program=gzip -1"
            subprocess.run(
                ["tar", "--create", f"--file={made}", compress, f"--directory={root}", *excluded, "."], check=True
            )
            _keep(made, archive)
    return archive


def _wheels() -> Path:
    """A directory with everything that installing the project takes."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wanted = [*project["build-system"]["requires"], *project["project"]["dependencies"]]
    wheels = _cache(f"wheels-{_key(PYTHON_VERSION, *wanted)}")
    if not wheels.exists():
        with tempfile.TemporaryDirectory(prefix="holdfast-wheels-") as directory:
            made = Path(directory, "wheels")
            command = [sys.executable, "-m", "pip", "download", "--quiet", f"--dest={made}", "--only-binary=:all:"]
            command += [f"--python-version={PYTHON_VERSION}", "--implementation=cp"]
            command += [f"--platform={tag}_{platform.machine()}" for tag in ("manylinux2014", "manylinux_2_28")]
            ended = subprocess.run([*command, *wanted], capture_output=True, text=True, check=False)
            if ended.returncode != 0:
                raise NoBaseImageError(f"the project's dependencies can't be fetched: {ended.stderr.strip()}")
            _keep(made, wheels)
    return wheels


def _in_isolation(command: list[str], log: Path) -> None:
    """So that what it mounts goes with it, even when it is interrupted."""
    with log.open("wb") as output:
        process = run_isolated(command, output)
        try:
            code = process.wait(DEBIAN_DEADLINE_S)
        except subprocess.TimeoutExpired as error:
            raise NoBaseImageError(f"{command[0]} took more than {DEBIAN_DEADLINE_S:.0f} s") from error
        finally:
            process.kill()
            process.wait()
    if code != 0:
        said = log.read_text(errors="replace")[-2000:]
        raise NoBaseImageError(f"{command[0]} ended with {code}:\n{said}")


def _cache(name: str) -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    directory = Path(home, "holdfast-tests")
    directory.mkdir(parents=True, exist_ok=True)
    return directory / name


def _key(*parts: str) -> str:
    return hashlib.sha256("\n".join((platform.machine(), *parts)).encode()).hexdigest()[:12]


def _keep(made: Path, kept: Path) -> None:
    """Into the cache, whole or not at all; earlier ones of its kind go."""
    for old in kept.parent.glob(f"{kept.name.partition('-')[0]}-*"):
        if old.is_dir():
            shutil.rmtree(old)
        else:
            old.unlink()
    with tempfile.TemporaryDirectory(prefix=".new-", dir=kept.parent) as directory:
        beside = Path(directory, kept.name)
        shutil.move(made, beside)
        beside.rename(kept)
