"""What a chunk log says to whoever starts on it after a power cut at this moment: read from the durable bytes alone, by the format's rules.

The reading is the simulation's own (`docs/formats/chunk-log.md` is what it goes by): no index, no catalog, nothing of what the running
store believes. A chunk counts with a payload that is whole only. What has been read is remembered until the disk crashes or rots.
"""

from __future__ import annotations

from collections.abc import Mapping

from node.storage.chunk_log import file_number
from node.storage.chunk_record import (
    ALIGNMENT,
    FILE_HEADER_BYTES,
    RECORD_MAGIC,
    WITH_PAYLOAD,
    Kind,
    Record,
    blocks_match,
    moved_references,
    parse_header,
    payload_start,
    record_size,
)
from tests.support.simulated.disk import SimulatedDisk


class DurableLog:
    def __init__(self, disk: SimulatedDisk) -> None:
        self._disk = disk
        self._upheavals = -1
        self._read: dict[str, int] = {}
        """Path -> up to where its records are in `_held`."""
        self._held: dict[bytes, dict[bytes, int]] = {}

    def chunks(self) -> Mapping[bytes, Mapping[bytes, int]]:
        """Chunk -> referrer -> replicas."""
        files = self._disk.durable()
        paths = sorted(path for path in files if file_number(path.rpartition("/")[2]) is not None)
        if self._upheavals != self._disk.upheavals or not self._read.keys() <= files.keys() or not self._grew(files):
            self._upheavals = self._disk.upheavals
            self._read.clear()
            self._held.clear()
        for path in paths:
            self._read_file(path, files[path])
        return self._held

    def _grew(self, files: Mapping[str, bytearray]) -> bool:
        return all(len(files[path]) >= end for path, end in self._read.items())

    def _read_file(self, path: str, data: bytearray) -> None:
        offset = self._read.get(path, FILE_HEADER_BYTES)
        while offset < len(data):
            record = parse_header(data, offset, offset, None)
            if record is None or offset + record_size(record) > len(data):
                following = self._next(data, offset + ALIGNMENT)
                if following is None:
                    break
                offset = following
                continue
            self._apply(record, data, offset)
            offset += record_size(record)
        self._read[path] = offset

    @staticmethod
    def _next(data: bytearray, offset: int) -> int | None:
        """Where the next record begins, if there is one."""
        while (found := data.find(RECORD_MAGIC, offset)) >= 0:
            if found % ALIGNMENT == 0 and parse_header(data, found, found, None) is not None:
                return found
            offset = found + 1
        return None

    def _apply(self, record: Record, data: bytearray, offset: int) -> None:
        held, chunk = self._held, record.chunk
        if record.kind in WITH_PAYLOAD:
            start = offset + payload_start(record.length, record.references)
            if not blocks_match(memoryview(data)[start : start + record.length], record.table, 0):
                held.pop(chunk, None)
                return
        if record.kind == Kind.MOVE:
            held[chunk] = dict(moved_references(record))
        elif record.kind == Kind.DELETE:
            held.pop(chunk, None)
        elif record.kind == Kind.PUT:
            references = held.setdefault(chunk, {})
            if record.replicas:
                references[record.referrer] = record.replicas
        elif chunk in held and record.kind == Kind.REFERENCE:
            held[chunk][record.referrer] = record.replicas
        elif chunk in held and record.kind == Kind.UNREFERENCE:
            held[chunk].pop(record.referrer, None)
