"""Which cluster this daemon's data belongs to: `cluster.governance.belonging` on a data directory."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from cluster.chunks.store import StoreFailed
from cluster.errors import HoldfastError
from node.data_directory import DataDirectory
from node.storage.damaged_registers import MARK
from node.storage.register_store import DATABASE_NAME


class DirectoryBelonging:
    """``on_failure`` is told when the disk doesn't take it: the node must not go on, as with any other promise it can't keep."""

    def __init__(self, directory: DataDirectory, on_failure: Callable[[HoldfastError], None]) -> None:
        self._directory = directory
        self._on_failure = on_failure

    @property
    def cluster_id(self) -> bytes:
        return self._directory.cluster_id

    @property
    def lost_registers(self) -> bool:
        return any(self._directory.path.glob(f"{DATABASE_NAME}{MARK}*"))

    async def join(self, cluster_id: bytes) -> None:
        try:
            await asyncio.to_thread(self._directory.join, cluster_id)
        except OSError as error:
            failure = StoreFailed(f"the cluster's id could not be written to {self._directory.path}: {error}")
            self._on_failure(failure)
            raise failure from error
