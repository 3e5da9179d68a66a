"""The volumes of whichever core is running, for the API: between two lives of a core, requests are told to come again."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

from cluster.errors import NotReady
from cluster.peer.core import PeerCore
from cluster.volumes.content import OpenVolume
from cluster.volumes.names import DEFAULT_CHUNK_BYTES, DEFAULT_DURABILITY
from cluster.volumes.service import VolumeService
from cluster.volumes.volume import UNCONDITIONAL, Condition, Volume, VolumePage


class LiveVolumes:
    """Meets `node.api.ports.Volumes`; every call may raise NotReady besides what `VolumeService` raises."""

    def __init__(self, core: Callable[[], PeerCore | None]) -> None:
        self._core = core

    def _service(self) -> VolumeService:
        core = self._core()
        if core is None:
            raise NotReady("this node is starting; ask another, or again in a moment", retry_after_s=1)
        core.installed.require()
        return core.volumes

    async def create(
        self,
        name: str,
        size: int,
        condition: Condition = UNCONDITIONAL,
        *,
        chunk_size: int = DEFAULT_CHUNK_BYTES,
        replicas: int | None = None,
        durability: str = DEFAULT_DURABILITY,
    ) -> Volume:
        return await self._service().create(
            name, size, condition, chunk_size=chunk_size, replicas=replicas, durability=durability
        )

    async def show(self, name: str) -> Volume:
        return await self._service().show(name)

    async def list(self, *, prefix: str = "", after: str = "", limit: int = 1000) -> VolumePage:
        return await self._service().list(prefix=prefix, after=after, limit=limit)

    async def resize(self, name: str, size: int, condition: Condition = UNCONDITIONAL) -> Volume:
        return await self._service().resize(name, size, condition)

    async def delete(self, name: str, condition: Condition = UNCONDITIONAL) -> None:
        await self._service().delete(name, condition)

    async def open(self, name: str) -> OpenVolume:
        return await self._service().open(name)

    async def replace(
        self,
        name: str,
        body: AsyncIterator[bytes],
        length: int | None,
        condition: Condition = UNCONDITIONAL,
        *,
        chunk_size: int | None = None,
        replicas: int | None = None,
        durability: str | None = None,
    ) -> tuple[Volume, bool]:
        return await self._service().replace(
            name, body, length, condition, chunk_size=chunk_size, replicas=replicas, durability=durability
        )

    async def write_range(
        self,
        name: str,
        offset: int,
        body: AsyncIterator[bytes],
        length: int | None,
        condition: Condition = UNCONDITIONAL,
        *,
        size: int | None = None,
    ) -> Volume:
        return await self._service().write_range(name, offset, body, length, condition, size=size)
