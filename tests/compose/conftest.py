"""Fixtures for the tests with containers. Where there is no engine they are skipped; where CI is set they fail."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest

from tests.cluster.harness import require_tool
from tests.compose.base_image import NoBaseImageError, make_base_image, remove_base_image
from tests.compose.engine import Engine, NoEngineError
from tests.compose.project import NODES, ComposeProject

HERE = Path(__file__).parent

LOG_TAIL_LINES = 15


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.processes)


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """The Docker engine that runs, or one that is started for the tests and leaves nothing behind."""
    directory = tmp_path_factory.mktemp("engine")
    try:
        found = Engine.find(directory)
    except NoEngineError as error:
        _unavailable(str(error))
    try:
        yield found
    finally:
        found.close()
        shutil.rmtree(directory)


@pytest.fixture(scope="session")
def base_image(engine: Engine) -> Iterator[str]:
    try:
        image = make_base_image(engine)
    except NoBaseImageError as error:
        _unavailable(str(error))
    yield image
    if not engine.is_own:
        remove_base_image(engine, image)


@pytest.fixture
def project(engine: Engine, base_image: str, tmp_path: Path) -> Iterator[ComposeProject]:
    """The project's Compose file, not yet up. When the test has failed, pytest prints the ends of the logs."""
    require_tool("curl")
    made = ComposeProject(engine, base_image, tmp_path)
    try:
        yield made
    finally:
        for node in NODES:
            print(f"--- {node}", *made.logs(node).splitlines()[-LOG_TAIL_LINES:], sep="\n")
        made.remove()


def _unavailable(reason: str) -> NoReturn:
    if os.environ.get("CI"):
        pytest.fail(f"{reason}\nand CI runs every test")
    pytest.skip(reason)
