"""Which cluster a node belongs to, as a door: remembered outside the register database, so that the two are not lost together.

The register database holds the layout, the pledge and every name. A node that has lost it looks like a new one, and a new node may found
a cluster; one that founds a second time is a full voter over registers that are empty, in whose eyes no chunk is needed by anybody.
So the cluster's id is written here before the first layout takes effect on a node, and never changed: `bootstrap` founds nothing where one
is known, `installed` takes up no other cluster's layout, and the wire refuses the nodes of another (docs/decisions/amnesia.md).

`node.data_directory` keeps it in the marker of the data directory; tests keep it in memory.
"""

from __future__ import annotations

from typing import Protocol


class Belonging(Protocol):
    @property
    def cluster_id(self) -> bytes:
        """Empty while the node has been part of none. Once set it stays."""

    @property
    def lost_registers(self) -> bool:
        """Whether a register database of this node lies aside, damaged."""

    async def join(self, cluster_id: bytes) -> None:
        """Remember it, durably on return. Called while none is known. Raises StoreFailed."""
