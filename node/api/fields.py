"""Checked fields of a JSON object or a query string: every value is taken by name and type, and what is left over is refused.

A field that nobody knows is an error and never ignored: a misspelt ``replica=2`` must not become a volume with the default.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import parse_qsl

from cluster.errors import Invalid

QUERY_FIELD_LIMIT = 16
"""Parameters in one query string; no request has more than four."""


class Fields:
    """The fields of one request. Take what is known, then `finish`. Every method raises Invalid naming the ``field``."""

    def __init__(self, values: Mapping[str, Any], *, text: bool) -> None:
        self._values = dict(values)
        self._text = text  # numbers come as digits

    @classmethod
    def of_json(cls, document: Mapping[str, Any]) -> Fields:
        return cls(document, text=False)

    @classmethod
    def of_query(cls, raw_query: str) -> Fields:
        """The parameters of a percent-encoded query string."""
        if not raw_query:
            return cls({}, text=True)
        try:
            pairs = parse_qsl(
                raw_query,
                keep_blank_values=True,
                strict_parsing=True,
                errors="strict",
                max_num_fields=QUERY_FIELD_LIMIT,
            )
        except ValueError:
            raise Invalid("The query string is malformed", field="query") from None
        values: dict[str, str] = {}
        for name, value in pairs:
            if name in values:
                raise Invalid(f"The query parameter {name[:100]!r} is given twice", field=name[:100])
            values[name] = value
        return cls(values, text=True)

    def integer(self, name: str, *, minimum: int, maximum: int) -> int | None:
        """An integer within bounds, None when absent."""
        if name not in self._values:
            return None
        value = self._values.pop(name)
        if self._text:
            if not (value.isascii() and value.isdigit() and len(value) <= 20):
                raise Invalid(f"{name} must be a whole number", field=name)
            value = int(value)
        elif not isinstance(value, int) or isinstance(value, bool):
            raise Invalid(f"{name} must be a whole number", field=name)
        if not minimum <= value <= maximum:
            raise Invalid(f"{name} must be from {minimum} to {maximum}, not {str(value)[:40]}", field=name)
        return int(value)

    def required_integer(self, name: str, *, minimum: int, maximum: int) -> int:
        value = self.integer(name, minimum=minimum, maximum=maximum)
        if value is None:
            raise Invalid(f"{name} is required", field=name)
        return value

    def string(self, name: str) -> str | None:
        """A string, None when absent."""
        if name not in self._values:
            return None
        value = self._values.pop(name)
        if not isinstance(value, str):
            raise Invalid(f"{name} must be a string", field=name)
        return value

    def required_string(self, name: str) -> str:
        value = self.string(name)
        if value is None:
            raise Invalid(f"{name} is required", field=name)
        return value

    def boolean(self, name: str) -> bool | None:
        """true or false, None when absent. Only in JSON."""
        if name not in self._values:
            return None
        value = self._values.pop(name)
        if not isinstance(value, bool):
            raise Invalid(f"{name} must be true or false", field=name)
        return value

    def objects(self, name: str) -> Sequence[Fields]:
        """An array of objects, empty when absent. Only in JSON."""
        value = self._values.pop(name, [])
        if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
            raise Invalid(f"{name} must be an array of objects", field=name)
        return [Fields.of_json(item) for item in value]

    def finish(self) -> None:
        """Raises Invalid when a field is left that nobody took."""
        for name in self._values:
            raise Invalid(f"There is no {'parameter' if self._text else 'field'} {name[:100]!r} here", field=name[:100])
