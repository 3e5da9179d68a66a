"""What users see of a volume: `Volume`, a page of a listing, and the conditions of a request. Pure values.

A volume's ``etag`` names one version of its content: it changes with every PUT and resize and with nothing else, and never
returns, even when the volume is deleted and created again (its id is then another one).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from cluster.errors import Conflict
from cluster.volumes.formulas import Formulas

ANY = "*"
"""In a `Condition`: whatever version there is."""


@dataclass(frozen=True, slots=True)
class Volume:
    """One version of a volume. Sizes in bytes, times in seconds since the epoch (for people; nothing depends on them)."""

    name: str
    id: bytes
    """16 random bytes, for the volume's whole life; show it as ``id.hex()``."""
    generation: int
    """1 at creation, one more with each change of content or size."""
    size: int
    chunk_size: int
    replicas: int
    durability: str
    created_at: float
    modified_at: float
    map_inline: bool
    """Whether the map of the content lives in the head itself."""

    @property
    def etag(self) -> str:
        """A strong entity tag, without the quotes that HTTP puts around it."""
        return f"{self.id[:8].hex()}-{self.generation}"

    @property
    def formulas(self) -> Formulas:
        return Formulas(self.size, self.chunk_size, self.replicas)


@dataclass(frozen=True, slots=True)
class VolumePage:
    """Volumes in the order of their names; ``next_after`` goes into the next call's ``after``, None when none follow."""

    volumes: tuple[Volume, ...]
    next_after: str | None


@dataclass(frozen=True, slots=True)
class Condition:
    """If-Match and If-None-Match of RFC 9110, on etags without quotes; ``frozenset({"*"})`` stands for any version.

    None means that the header is absent. ``still_wanted`` is called whenever the condition is checked, which is before every try to
    put the new version in place, and raises when whoever asked for the change has gone: a gateway that was frozen in the
    middle of a change, and wakes up after the client has repeated it elsewhere, must not do it a second time."""

    if_match: frozenset[str] | None = None
    if_none_match: frozenset[str] | None = None
    still_wanted: Callable[[], None] | None = field(default=None, compare=False)

    def holds(self, volume: Volume | None) -> bool:
        return self._failed(volume) is None

    def check(self, volume: Volume | None) -> None:
        """Raises Conflict with ``condition`` ("if-match" or "if-none-match") and ``etag`` (the present one) in the details, and
        whatever ``still_wanted`` raises."""
        if self.still_wanted is not None:
            self.still_wanted()
        failed = self._failed(volume)
        if failed is not None:
            now = "there is no such volume" if volume is None else f"its version is now {volume.etag!r}"
            raise Conflict(
                f"The condition {failed} does not hold: {now}. Nothing was changed; look at the volume before you repeat it.",
                condition=failed,
                etag=None if volume is None else volume.etag,
            )

    def _failed(self, volume: Volume | None) -> str | None:
        if self.if_match is not None and (
            volume is None or (ANY not in self.if_match and volume.etag not in self.if_match)
        ):
            return "if-match"
        if self.if_none_match is not None and (
            volume is not None and (ANY in self.if_none_match or volume.etag in self.if_none_match)
        ):
            return "if-none-match"
        return None


UNCONDITIONAL = Condition()
