"""``DIR/cluster.json``: what runs in a local cluster's directory, for people and programs.

Written by the runner alone, always whole (a temporary file, renamed). ``pid`` is null for a node that does not run, ``runner``
for a cluster that does not; after a runner was killed the numbers are stale, so nobody signals by them: see `control`.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from client.errors import Invalid

FILE_NAME = "cluster.json"
FORMAT_VERSION = 1


@dataclass(frozen=True, slots=True)
class NodeEntry:
    """One node: its process id, data directory, addresses (host:port) and log file."""

    name: str
    pid: int | None
    data: str
    api: str
    peer: str
    log: str


@dataclass(frozen=True, slots=True)
class ClusterFile:
    """The whole document. ``bootstrap_expect`` is the number of nodes that formed the cluster in the beginning."""

    port_base: int
    bootstrap_expect: int
    runner: int | None
    nodes: tuple[NodeEntry, ...]

    def with_pids(self, pids: dict[str, int | None], runner: int | None) -> ClusterFile:
        return replace(self, runner=runner, nodes=tuple(replace(node, pid=pids.get(node.name)) for node in self.nodes))

    def to_json(self) -> dict[str, Any]:
        return {"version": FORMAT_VERSION, **asdict(self)}


def read_cluster_file(directory: Path) -> ClusterFile | None:
    """None when there is none. Raises `Invalid` when it is damaged or of a newer release."""
    path = directory / FILE_NAME
    try:
        document = json.loads(path.read_bytes())
        if document["version"] != FORMAT_VERSION:
            raise Invalid(
                f"{path} has format {document['version']}, this release knows {FORMAT_VERSION}; use a newer one"
            )
        nodes = tuple(NodeEntry(**{field: node[field] for field in NodeEntry.__slots__}) for node in document["nodes"])
        return ClusterFile(
            port_base=int(document["port_base"]),
            bootstrap_expect=int(document["bootstrap_expect"]),
            runner=document["runner"],
            nodes=nodes,
        )
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise Invalid(f"{path} is damaged ({error!r}); put it right or choose another --data") from error


def write_cluster_file(directory: Path, cluster: ClusterFile) -> None:
    temporary = directory / f".{FILE_NAME}.new"
    temporary.write_text(json.dumps(cluster.to_json(), indent=2) + "\n")
    os.replace(temporary, directory / FILE_NAME)
