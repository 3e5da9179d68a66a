"""How one dataclass becomes a msgpack array and comes back, checked: code generated once per class.

Owns the mapping from field types to checks. Both directions are plain functions without a loop over the fields, because they run for
every call. The rules of the wire:

* fields travel in field order; trailing items that this release does not know are dropped, missing trailing ones take the field's
  default, and a missing field without a default is `Invalid`;
* every value is checked against its annotation exactly once, on the way in (``bool`` is no ``int``; an ``int`` is taken for a ``float``);
* nothing is checked on the way out: what msgpack cannot carry fails in the packer.

Never imports anything of a message's meaning.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, NoReturn, TypeVar

from cluster.errors import Invalid

M = TypeVar("M")

SCALARS: dict[object, str] = {int: "int", str: "str", bytes: "bytes", bool: "bool"}


@dataclass(frozen=True, slots=True)
class Codec(Generic[M]):
    """What the wire knows about one message class."""

    kind: type[M]
    name: str
    """The stable name on the wire; only requests are sent under it."""
    reply: type[Any] | None
    """The class of the reply; None for what is no request."""
    bulk: bool
    """Whether calls of this request take the connection for large payloads, whatever their own size."""
    pack: Callable[[M], tuple[object, ...]]
    """The fields, msgpack-able."""
    unpack: Callable[[object], M]
    """The message made of unpacked fields. Raises Invalid."""


_codecs: dict[type[Any], Codec[Any]] = {}


def codec_of(kind: type[M]) -> Codec[M]:
    """The codec of a class that was decorated with ``@message``. Raises TypeError for any other."""
    codec = _codecs.get(kind)
    if codec is None:
        raise TypeError(f"{kind.__name__} is not decorated with @message")
    return codec


def add_codec(kind: type[M], *, name: str, reply: type[Any] | None, bulk: bool) -> None:
    """Generate and keep the codec of a dataclass. Raises TypeError for a field type that does not travel."""
    if not dataclasses.is_dataclass(kind):
        raise TypeError(
            f"{kind.__name__} has to be a dataclass: put @message above @dataclass(frozen=True, slots=True)"
        )
    writer = _Writer(kind)
    _codecs[kind] = Codec(kind, name, reply, bulk, writer.pack_function(), writer.unpack_function())


class _Writer:
    """Writes the two functions of one class as source, and compiles them."""

    def __init__(self, kind: type[Any]) -> None:
        self._kind = kind
        self._fields = [field for field in dataclasses.fields(kind) if field.init]
        hints = typing.get_type_hints(kind)
        self._hints = [_resolve(hints[field.name]) for field in self._fields]
        self._names: dict[str, object] = {"kind": kind, "fail": self._fail, "adjust": self._adjust}

    # on the way out

    def pack_function(self) -> Callable[[Any], tuple[object, ...]]:
        items = [self._packed(hint, f"m.{field.name}") for field, hint in zip(self._fields, self._hints, strict=True)]
        return self._compile("pack", "m", [f"return ({''.join(item + ', ' for item in items)})"])

    def _packed(self, hint: object, value: str) -> str:
        """An expression for what travels instead of the expression `value`."""
        if not _needs_packing(hint):
            return value
        optional, inner = _split_optional(hint)
        if optional:
            # `value` is an attribute or a variable, so evaluating it twice is free of side effects
            return f"(None if {value} is None else {self._packed(inner, value)})"
        if isinstance(inner, type) and inner in _codecs:
            return f"{self._name('pack', _codecs[inner].pack)}({value})"
        arguments = typing.get_args(inner)
        if typing.get_origin(inner) is dict:
            return f"{{k: {self._packed(_resolve(arguments[1]), 'v')} for k, v in {value}.items()}}"
        if _is_open_tuple(inner):
            return f"tuple([{self._packed(_resolve(arguments[0]), 'x')} for x in {value}])"
        items = [self._packed(_resolve(item), f"{value}[{at}]") for at, item in enumerate(arguments)]
        return f"({''.join(item + ', ' for item in items)})"

    # on the way in

    def unpack_function(self) -> Callable[[object], Any]:
        count = len(self._fields)
        values = [f"f{at}" for at in range(count)]
        lines = [f"if type(fields) is not tuple or len(fields) != {count}:", "    fields = adjust(fields)"]
        if values:
            lines.append(f"{', '.join(values)}, = fields")
        for at, hint in enumerate(self._hints):
            lines += self._checks(hint, values[at], at)
        # by keyword: a field may be keyword-only
        arguments = ", ".join(
            f"{field.name}={value}" if field.kw_only else value
            for field, value in zip(self._fields, values, strict=True)
        )
        return self._compile("unpack", "fields", [*lines, f"return kind({arguments})"])

    def _checks(self, hint: object, value: str, at: int) -> list[str]:
        """Statements that check the variable `value`, and replace it where the message holds something else than the wire."""
        optional, inner = _split_optional(hint)
        lines = self._checks_of_present(inner, value, at)
        if optional and lines:
            return [f"if {value} is not None:", *("    " + line for line in lines)]
        return lines

    def _checks_of_present(self, hint: object, value: str, at: int) -> list[str]:
        fail = f"    fail({at}, {value})"
        if hint is object:
            return []
        if hint in SCALARS:
            return [f"if type({value}) is not {SCALARS[hint]}:", fail]
        if hint is float:
            return [
                f"if type({value}) is not float:",
                f"    if type({value}) is not int:",
                "    " + fail,
                f"    {value} = float({value})",
            ]
        if _is_union(hint):
            allowed = self._name("allowed", frozenset(typing.get_args(hint)))
            return [f"if type({value}) not in {allowed}:", fail]
        if isinstance(hint, type) and hint in _codecs:
            return [f"{value} = {self._name('unpack', _codecs[hint].unpack)}({value})"]
        arguments = [_resolve(argument) for argument in typing.get_args(hint) if argument is not Ellipsis]
        if typing.get_origin(hint) is dict:
            keys = self._name("allowed", frozenset({str}))
            lines = [f"if type({value}) is not dict or not {keys}.issuperset(map(type, {value})):", fail]
            return lines + self._checks_of_items(
                arguments[1], value, at, f"{value}.values()", "{{k: {}(x) for k, x in {}.items()}}"
            )
        if _is_open_tuple(hint):
            lines = [f"if type({value}) is not tuple:", fail]
            return lines + self._checks_of_items(arguments[0], value, at, value, "tuple([{}(x) for x in {}])")
        if typing.get_origin(hint) is tuple:
            items = [f"{value}_{item}" for item in range(len(arguments))]
            lines = [f"if type({value}) is not tuple or len({value}) != {len(items)}:", fail]
            lines.append(f"{', '.join(items)}, = {value}")
            for item, argument in zip(items, arguments, strict=True):
                lines += self._checks(argument, item, at)
            return [*lines, f"{value} = ({', '.join(items)},)"]
        field = self._fields[at].name
        raise TypeError(f"{self._kind.__name__}.{field}: a field of type {hint!r} does not travel")

    def _checks_of_items(self, item: object, value: str, at: int, items: str, rebuild: str) -> list[str]:
        if item is object:
            return []
        if item in SCALARS:  # one pass in C
            allowed = self._name("allowed", frozenset({item}))
            return [f"if not {allowed}.issuperset(map(type, {items})):", f"    fail({at}, {value})"]
        function = self._compile("item", "x", [*self._checks(item, "x", at), "return x"])
        return [f"{value} = {rebuild.format(self._name('item', function), value)}"]

    # pieces of both

    def _name(self, stem: str, meaning: object) -> str:
        """A name in the generated code that stands for `meaning`."""
        name = f"{stem}_{len(self._names)}"
        self._names[name] = meaning
        return name

    def _compile(self, name: str, argument: str, lines: list[str]) -> Callable[[Any], Any]:
        source = f"def {name}({argument}):\n" + "".join(f"    {line}\n" for line in lines)
        scope: dict[str, Any] = {}
        names = dict(self._names) if name != "item" else self._names
        # The source is made of field names and types of our own classes at import time, as dataclasses itself does.
        exec(compile(source, f"<{name} of {self._kind.__qualname__}>", "exec"), names, scope)  # noqa: S102
        function: Callable[[Any], Any] = scope[name]
        return function

    def _fail(self, at: int, value: object) -> NoReturn:
        field = self._fields[at].name
        raise Invalid(
            f"{self._kind.__name__}.{field} has to be {_spelled(self._hints[at])}, not {type(value).__name__}",
            field=field,
        )

    def _adjust(self, fields: object) -> tuple[object, ...]:
        """Fields of another release, brought to this release's number. Raises Invalid when what is missing has no default."""
        if type(fields) is not tuple:
            raise Invalid(f"{self._kind.__name__} has to be an array, not {type(fields).__name__}")
        missing = self._fields[len(fields) :]
        if not missing:
            return fields[: len(self._fields)]
        added: list[object] = []
        for field in missing:
            if field.default is not dataclasses.MISSING:
                default: Any = field.default
            elif field.default_factory is not dataclasses.MISSING:
                default = field.default_factory()
            else:
                raise Invalid(f"{self._kind.__name__}.{field.name} is missing", field=field.name)
            # a default goes through the same checks as what travels, so it is given as it would have travelled
            added.append(_as_travelled(default))
        return fields + tuple(added)


def _resolve(hint: object) -> object:
    """A NewType as the type that it stands for."""
    while hasattr(hint, "__supertype__"):
        hint = hint.__supertype__
    return hint


def _is_union(hint: object) -> bool:
    return typing.get_origin(hint) in {typing.Union, types.UnionType}


def _is_open_tuple(hint: object) -> bool:
    return typing.get_origin(hint) is tuple and typing.get_args(hint)[-1:] == (Ellipsis,)


def _split_optional(hint: object) -> tuple[bool, object]:
    """Whether None is allowed, and the rest of the hint: one type, or a union of scalars."""
    if not _is_union(hint):
        return False, hint
    present = [_resolve(argument) for argument in typing.get_args(hint) if argument is not type(None)]
    optional = len(present) < len(typing.get_args(hint))
    if len(present) == 1:
        return optional, present[0]
    if not all(argument in SCALARS for argument in present):
        raise TypeError(f"a union of {present} does not travel: only int, str, bytes and bool may be mixed")
    return optional, typing.Union[tuple(present)]  # noqa: UP007 - a union of a computed list has no other spelling


def _needs_packing(hint: object) -> bool:
    hint = _resolve(hint)
    if isinstance(hint, type) and hint in _codecs:
        return True
    return any(_needs_packing(argument) for argument in typing.get_args(hint))


def _as_travelled(value: Any) -> object:
    codec = _codecs.get(type(value))
    if codec is not None:
        return codec.pack(value)
    if type(value) is tuple:
        return tuple(_as_travelled(item) for item in value)
    if type(value) is dict:
        return {key: _as_travelled(item) for key, item in value.items()}
    return value


def _spelled(hint: object) -> str:
    return hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint).replace("typing.", "")
