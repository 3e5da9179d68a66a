"""Whose a data directory is, and that one daemon uses it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cluster.errors import Invalid, WrongCluster
from node.data_directory import MARKER, DataDirectory


def test_it_is_marked_once_and_found_again(tmp_path: Path) -> None:
    with DataDirectory(tmp_path / "new" / "n1", "n1") as directory:
        assert json.loads((directory.path / MARKER).read_text())["name"] == "n1"
    with DataDirectory(tmp_path / "new" / "n1", "n1"):
        pass


def test_a_second_daemon_is_refused_until_the_first_ends(tmp_path: Path) -> None:
    with DataDirectory(tmp_path, "n1"), pytest.raises(Invalid, match="in use"), DataDirectory(tmp_path, "n1"):
        pass
    with DataDirectory(tmp_path, "n1"):
        pass


def test_another_nodes_directory_is_refused_and_left_alone(tmp_path: Path) -> None:
    with DataDirectory(tmp_path, "n1"):
        pass
    with pytest.raises(WrongCluster, match="belongs to node 'n1'"), DataDirectory(tmp_path, "n2"):
        pass
    with DataDirectory(tmp_path, "n1"):
        pass


def test_foreign_content_is_not_taken_for_an_empty_disk(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    with pytest.raises(Invalid, match="photos"), DataDirectory(tmp_path, "n1"):
        pass
    assert not (tmp_path / MARKER).exists()


@pytest.mark.parametrize("marker", ["", "{", '{"format": 99, "name": "n1"}'])
def test_a_marker_that_makes_no_sense_is_said(tmp_path: Path, marker: str) -> None:
    (tmp_path / MARKER).write_text(marker)
    with pytest.raises(Invalid), DataDirectory(tmp_path, "n1"):
        pass
