"""Who keeps a chunk alive: the 16-byte referrer of a chunk, and the write it belongs to.

A reference is (chunk, referrer), and a referrer is never used for a second purpose:

    referrer = write id (10 bytes) + cell (6 bytes, big endian)
    write id = tag (4 bytes, the beginning of BLAKE3(volume name)) + 6 random bytes, new for every PUT

``cell`` is ``address // chunk_size`` of the piece of the body that the chunk holds; pieces never cross a multiple of the chunk size,
so a write stores at most one piece per cell. Map pages have the cell MAP_CELL: a page says where it starts, so one page has one place.

Two things follow, and they are why it is so (docs/decisions/references.md):

* a write in progress never depends on a reference that another write made, except through the live root it is based on: a reference
  that the live root has let go of can therefore never become needed again, and may be dropped at any later time;
* whether a reference is still needed is decided by looking at one cell of the retained roots, however large the volume is.

The tag comes first so that everything of one volume's name lies together in an index by referrer. Pure.
"""

from __future__ import annotations

import random

from blake3 import blake3

TAG_BYTES = 4
WRITE_BYTES = 10
CELL_BYTES = 6
REFERRER_BYTES = WRITE_BYTES + CELL_BYTES
MAP_CELL = (1 << (8 * CELL_BYTES)) - 1
MAX_CELL = 1 << 44
"""64 PiB in cells of 4 KiB: see names.MAX_VOLUME_BYTES. Far below MAP_CELL."""

map_cell_bytes = MAP_CELL.to_bytes(CELL_BYTES, "big")


def tag_of(name: str) -> bytes:
    """The first bytes of every write id of the volume ``name``."""
    return blake3(name.encode()).digest(length=TAG_BYTES)


def new_write_id(name: str, rng: random.Random) -> bytes:
    return tag_of(name) + rng.randbytes(WRITE_BYTES - TAG_BYTES)


def data_referrer(write: bytes, cell: int) -> bytes:
    """The referrer of the data chunk that ``write`` stored for the piece in ``cell``."""
    assert len(write) == WRITE_BYTES
    assert 0 <= cell < MAX_CELL
    return write + cell.to_bytes(CELL_BYTES, "big")


def page_referrer(write: bytes) -> bytes:
    """The referrer of every map page that ``write`` stored."""
    return write + map_cell_bytes


def split_referrer(referrer: bytes) -> tuple[bytes, int]:
    """``(write id, cell)``; the cell of a page's is MAP_CELL."""
    return referrer[:WRITE_BYTES], int.from_bytes(referrer[WRITE_BYTES:])
