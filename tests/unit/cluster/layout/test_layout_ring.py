from __future__ import annotations

from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from cluster.layout.ring import MAX_PARTITION_BITS, chunk_partition, partition_of

bits = st.integers(1, MAX_PARTITION_BITS)


@given(key=st.binary(max_size=100), bits=bits)
def test_a_key_falls_into_the_slice_of_its_hash(key: bytes, bits: int) -> None:
    assert partition_of(key, bits) == int.from_bytes(blake3(key).digest()) * 2**bits // 2**256


@given(chunk=st.binary(min_size=32, max_size=32), bits=bits)
def test_a_chunk_falls_into_the_slice_of_its_id(chunk: bytes, bits: int) -> None:
    assert chunk_partition(chunk, bits) == int.from_bytes(chunk) * 2**bits // 2**256


def test_known_partitions_stay_where_they_are() -> None:
    # data on disks was placed with these: another answer would lose it
    assert partition_of(b"", 10) == 0xAF13 >> 6
    assert partition_of(b"volumes/07", 10) == int.from_bytes(blake3(b"volumes/07").digest(length=2)) >> 6
    assert chunk_partition(b"\xff" * 32, 10) == 1023
    assert chunk_partition(b"\x00\x3f" + b"\xff" * 30, 10) == 0
