"""What commands print: JSON for programs, aligned words and tables for people.

Documents of the server are shown by their shape (numbers and words as lines, lists of objects as tables), so that a newer
server's additional members appear without a newer client.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from client.cli.sizes import format_size

_FOR_PROGRAMS = frozenset({"store"})
"""Columns of tables that only a program compares: ids of stores. ``--json`` has them."""

_BYTE_WORDS = ("size", "chunk_size", "bytes", "free", "used", "capacity")


def print_json(document: Any) -> None:
    """One document, indented for people who look at it all the same."""
    sys.stdout.write(json.dumps(document, indent=2, ensure_ascii=False) + "\n")


def print_lines(*lines: str) -> None:
    sys.stdout.write("".join(f"{line}\n" for line in lines))


def print_note(text: str) -> None:
    """Something beside the result: on standard error."""
    sys.stderr.write(f"{text}\n")


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Left-aligned columns, two spaces apart, nothing cut: fit for eyes and for awk."""
    print_lines(*table_lines(columns, rows))


def table_lines(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    table = [list(columns), *[list(row) for row in rows]]
    widths = [max(len(row[index]) for row in table) for index in range(len(columns))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]


def print_document(document: Mapping[str, Any], *, indent: str = "") -> None:
    """A server's JSON object: single values first, then what is nested, each under its name."""
    single = {key: value for key, value in document.items() if not _is_nested(value)}
    width = max((len(_title(key)) for key in single), default=0)
    for key, value in single.items():
        print_lines(f"{indent}{_title(key).ljust(width)}  {_cell(key, value)}")
    for key, value in document.items():
        if not _is_nested(value):
            continue
        if single or indent or len(document) > 1:
            print_lines(f"{indent}{_title(key)}:")
        if isinstance(value, Mapping):
            print_document(value, indent=indent + "  ")
        elif isinstance(value[0], str):
            print_lines(*(f"{indent}  {line}" for line in value))
        else:
            columns = list(dict.fromkeys(column for row in value for column in row if column not in _FOR_PROGRAMS))
            rows = [[_cell(column, row.get(column)) for column in columns] for row in value]
            print_table([_title(column).upper() for column in columns], rows)


def _is_nested(value: Any) -> bool:
    """Worth lines of its own: an object, a list of objects, a list of sentences."""
    if isinstance(value, Mapping):
        return bool(value)
    if not isinstance(value, list) or not value:
        return False
    sentences = all(isinstance(item, str) for item in value) and any(" " in item for item in value)
    return sentences or all(isinstance(item, Mapping) for item in value)


def _title(key: str) -> str:
    return key.replace("_", " ")


def _cell(key: str, value: Any) -> str:
    if value is None or value in ([], {}):
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int) and (key in _BYTE_WORDS or key.endswith("_bytes")):
        return format_size(value)
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        return ", ".join(_cell("", item) for item in value)
    if isinstance(value, Mapping):
        return ", ".join(f"{_title(name)} {_cell(name, item)}" for name, item in value.items())
    return str(value)
