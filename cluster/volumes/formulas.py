"""The three classic formulas that `volume show` and the API display (DESIGN 2).

chunks ``P = ceil(D / S)``, replicas ``R = n * P``, synchronisation work ``T = m * P``. They describe the volume as if it were
wholly written: holes cost nothing in truth. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass

DEFAULT_PASSES = 0
"""m where nobody says how many full comparisons have been made: a volume knows nothing of repair, whoever shows it does
(``dataclasses.replace(volume.formulas, passes=m)``)."""


@dataclass(frozen=True, slots=True)
class Formulas:
    """Inputs: ``size`` D and ``chunk_size`` S in bytes, ``replicas`` n, ``passes`` m."""

    size: int
    chunk_size: int
    replicas: int
    passes: int = DEFAULT_PASSES

    @property
    def chunks(self) -> int:
        """P: chunks of a wholly written volume."""
        return -(-self.size // self.chunk_size)

    @property
    def copies(self) -> int:
        """R: chunk copies in the cluster."""
        return self.replicas * self.chunks

    @property
    def comparisons(self) -> int:
        """T: chunks compared in ``passes`` full comparisons of all replicas."""
        return self.passes * self.chunks

    def to_json(self) -> dict[str, dict[str, int]]:
        """The three members of the Volume JSON: ``sharding``, ``replication``, ``synchronisation``."""
        return {
            "sharding": {"D": self.size, "S": self.chunk_size, "P": self.chunks},
            "replication": {"n": self.replicas, "R": self.copies},
            "synchronisation": {"m": self.passes, "T": self.comparisons},
        }
