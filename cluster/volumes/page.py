"""The nodes of the map and the bytes of a map page (docs/formats/volume-map.md): encode and decode. Pure.

A page covers ``span`` bytes of the volume from ``start``. It is a leaf, with extents, or an interior page with up to FAN_OUT children of
equal span. All integers are little endian. Each page says where it starts, so that no two places of a map ever share a page.

Pages travel as chunks, so damage to their bytes is noticed before they come here; what `decode_page` finds wrong all the same is a
page in a wrong place or of a newer release, and is raised as Corrupt.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from cluster.errors import Corrupt
from cluster.volumes.extent import Extent, is_normal
from cluster.volumes.reference import WRITE_BYTES

FAN_OUT = 64
"""Children of an interior page, which is then at most 3.2 KiB: rewriting a path costs little, and three levels of pages over 4 MiB
pieces are 16 TiB in one write."""

PAGE_LIMIT_BYTES = 64 << 10
"""No page is larger."""

MAGIC = b"HFMP"
VERSION = 1
LEAF = 1
INTERIOR = 2

header = struct.Struct("<4sBBHQ")
"""magic, version, kind, number of writes, start."""
PAGE_HEADER_BYTES = header.size

leaf_counts = struct.Struct("<II")
"""number of sources, number of extents."""
source_record = struct.Struct("<32sH")
"""chunk, index of its write."""
extent_record = struct.Struct("<QIII")
"""offset relative to start, length, offset in the chunk, index of the source."""
child_bits = struct.Struct("<Q")
"""which children there are: bit i = child i."""
child_record = struct.Struct("<32sHIH")
"""chunk of the child page, index of its write, length of the page, number of extents (0: an interior page)."""

LEAF_FIXED_BYTES = header.size + leaf_counts.size
EXTENT_COST_BYTES = WRITE_BYTES + source_record.size + extent_record.size
"""What one extent adds to a leaf at most."""

LEAF_EXTENTS = (PAGE_LIMIT_BYTES - LEAF_FIXED_BYTES) // EXTENT_COST_BYTES
"""1023: a leaf of so many extents never exceeds PAGE_LIMIT_BYTES. Counting extents, not bytes, makes "fits one leaf" additive: whether 64
children would fit one leaf is known from their counts, without loading them."""

INTERIOR_LIMIT_BYTES = header.size + child_bits.size + FAN_OUT * (WRITE_BYTES + child_record.size)


class Stored(NamedTuple):
    """A page that is a chunk: its id, the write that stored it, its length, and its number of extents (0: interior)."""

    chunk: bytes
    write: bytes
    length: int
    extents: int


@dataclass(frozen=True, slots=True)
class Leaf:
    """All extents of a span; never empty. A normal list (`cluster.volumes.extent`)."""

    extents: tuple[Extent, ...]


@dataclass(frozen=True, slots=True)
class Interior:
    """A span whose extents don't fit one leaf: its children by index; never empty; what is missing is a hole."""

    children: Mapping[int, Node]


Node: TypeAlias = Stored | Leaf | Interior
"""A part of a map. ``Node | None``: None is a hole."""


def encode_leaf(extents: Sequence[Extent], start: int) -> bytes:
    writes: dict[bytes, int] = {}
    sources: dict[tuple[bytes, bytes], int] = {}
    records = bytearray()
    for offset, length, chunk, chunk_offset, write in extents:
        index = sources.setdefault((chunk, write), len(sources))
        writes.setdefault(write, len(writes))
        records += extent_record.pack(offset - start, length, chunk_offset, index)
    return b"".join(
        (
            header.pack(MAGIC, VERSION, LEAF, len(writes), start),
            leaf_counts.pack(len(sources), len(extents)),
            *writes,
            *(source_record.pack(chunk, writes[write]) for chunk, write in sources),
            records,
        )
    )


def encode_interior(children: Mapping[int, Node], start: int) -> bytes:
    """All children must be stored."""
    writes: dict[bytes, int] = {}
    bits = 0
    records = []
    for index in sorted(children):
        child = children[index]
        assert isinstance(child, Stored)
        bits |= 1 << index
        write = writes.setdefault(child.write, len(writes))
        records.append(child_record.pack(child.chunk, write, child.length, child.extents))
    return b"".join(
        (header.pack(MAGIC, VERSION, INTERIOR, len(writes), start), child_bits.pack(bits), *writes, *records)
    )


def encode_node(node: Leaf | Interior, start: int) -> bytes:
    return encode_leaf(node.extents, start) if isinstance(node, Leaf) else encode_interior(node.children, start)


def decode_page(data: bytes, start: int, span: int) -> Leaf | Interior:
    """The page that should cover [start, start + span). Raises Corrupt."""
    if len(data) < header.size:
        raise Corrupt(f"A map page has only {len(data)} bytes.")
    magic, version, kind, write_count, at = header.unpack_from(data)
    if magic != MAGIC or version != VERSION:
        raise not_a_page(data)
    if at != start:
        raise Corrupt(f"A map page for address {at} was found where that of {start} should be.")
    try:
        if kind == LEAF:
            return decode_leaf(data, write_count, start, span)
        if kind == INTERIOR:
            return decode_interior(data, write_count, span)
    except (struct.error, IndexError) as error:
        raise Corrupt(f"The map page for address {start} is cut off or refers to what it does not have.") from error
    raise Corrupt(f"The map page for address {start} is of the unknown kind {kind}.")


def page_start(data: bytes) -> int:
    """The address of the page that begins with ``data``, at least PAGE_HEADER_BYTES of it. Raises Corrupt."""
    if len(data) < header.size:
        raise Corrupt(f"A map page has only {len(data)} bytes.")
    magic, version, _, _, start = header.unpack_from(data)
    if magic != MAGIC or version != VERSION:
        raise not_a_page(data)
    assert isinstance(start, int)
    return start


def not_a_page(data: bytes) -> Corrupt:
    return Corrupt(f"A map page begins with {data[:5]!r}: it is none, or of a newer release.")


def decode_leaf(data: bytes, write_count: int, start: int, span: int) -> Leaf:
    source_count, extent_count = leaf_counts.unpack_from(data, header.size)
    sources_at = LEAF_FIXED_BYTES + write_count * WRITE_BYTES
    extents_at = sources_at + source_count * source_record.size
    expect_size(data, extents_at + extent_count * extent_record.size)
    writes = cut_writes(data, LEAF_FIXED_BYTES, write_count)
    sources = [(chunk, writes[index]) for chunk, index in source_record.iter_unpack(data[sources_at:extents_at])]
    extents = []
    for offset, length, chunk_offset, index in extent_record.iter_unpack(data[extents_at:]):
        chunk, write = sources[index]
        extents.append(Extent(start + offset, length, chunk, chunk_offset, write))
    if not extents or not is_normal(extents, start, start + span):
        raise Corrupt(f"The extents of the map page for address {start} overlap or leave its span.")
    return Leaf(tuple(extents))


def decode_interior(data: bytes, write_count: int, span: int) -> Interior:
    (bits,) = child_bits.unpack_from(data, header.size)
    writes_at = header.size + child_bits.size
    records_at = writes_at + write_count * WRITE_BYTES
    expect_size(data, records_at + bits.bit_count() * child_record.size)
    writes = cut_writes(data, writes_at, write_count)
    if not bits or bits >> min(FAN_OUT, span):
        raise Corrupt("An interior map page has no children, or more than its span can have.")
    records = child_record.iter_unpack(data[records_at:])
    children: dict[int, Node] = {}
    for index in range(FAN_OUT):
        if bits >> index & 1:
            chunk, write, length, count = next(records)
            children[index] = Stored(chunk, writes[write], length, count)
    return Interior(children)


def cut_writes(data: bytes, at: int, count: int) -> list[bytes]:
    return [data[begin : begin + WRITE_BYTES] for begin in range(at, at + count * WRITE_BYTES, WRITE_BYTES)]


def expect_size(data: bytes, size: int) -> None:
    if len(data) != size:
        raise Corrupt(f"A map page has {len(data)} bytes in place of {size}.")
