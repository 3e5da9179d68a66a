"""Which handler answers a path: a small tree of path segments, looked up once per request.

Templates are literal segments and ``{parameters}``; a literal wins over a parameter. Paths are split before they are decoded, so
that ``%2F`` inside a name never becomes a separator. HEAD is answered by the handler of GET. The routes are also what the OpenAPI
document is checked against.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from urllib.parse import unquote

from aiohttp import web

from cluster.errors import Invalid, NotFound
from node.api.problem import RefusalError
from node.api.request import ApiRequest

Handler = Callable[[ApiRequest], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True, eq=False)
class Route:
    """One method of one path. ``public`` routes are answered without a token."""

    method: str
    template: str
    handler: Handler
    public: bool = False


class _Segment:
    __slots__ = ("by_method", "literals", "parameter")

    def __init__(self) -> None:
        self.literals: dict[str, _Segment] = {}
        self.parameter: _Segment | None = None
        self.by_method: dict[str, Route] = {}


class Router:
    """All routes of one API."""

    def __init__(self) -> None:
        self._root = _Segment()
        self.routes: list[Route] = []

    def add(self, method: str, template: str, handler: Handler, *, public: bool = False) -> None:
        route = Route(method, template, handler, public)
        segment = self._root
        for part in template.split("/")[1:]:
            if part.startswith("{"):
                segment.parameter = segment.parameter or _Segment()
                segment = segment.parameter
            else:
                segment = segment.literals.setdefault(part, _Segment())
        assert method not in segment.by_method, f"two routes for {method} {template}"
        segment.by_method[method] = route
        if method == "GET":
            segment.by_method["HEAD"] = route
        self.routes.append(route)

    def is_public(self, method: str, path: str) -> bool:
        """Whether this request is answered without a token."""
        found = self._find(path)
        route = found[0].by_method.get(method) if found is not None else None
        return route is not None and route.public

    def resolve(self, method: str, path: str) -> tuple[Route, tuple[str, ...]]:
        """The route for the raw (percent-encoded, query-less) path, and its decoded parameters in order.

        Raises NotFound for a path that nothing answers, RefusalError with 405 and Allow for a method that isn't offered, Invalid for
        a parameter that isn't UTF-8.
        """
        found = self._find(path)
        if found is None:
            raise NotFound(f"There is nothing at {path[:200]}; /v1/openapi.json lists what there is")
        segment, arguments = found
        route = segment.by_method.get(method)
        if route is None:
            allowed = ", ".join(sorted(segment.by_method))
            raise RefusalError(Invalid(f"{method} is not offered here, only {allowed}"), 405, {"Allow": allowed})
        return route, arguments

    def _find(self, path: str) -> tuple[_Segment, tuple[str, ...]] | None:
        segment = self._root
        arguments: tuple[str, ...] = ()
        for part in path.split("/")[1:]:
            following = segment.literals.get(part)
            if following is None:
                following = segment.parameter
                if following is None or not part:
                    return None
                arguments = (*arguments, _decoded(part))
            segment = following
        return (segment, arguments) if segment.by_method else None


def _decoded(part: str) -> str:
    if "%" not in part and part.isascii():
        return part
    try:
        # What came undecoded and beyond ASCII was read by the parser as UTF-8 with surrogates for bytes that are not.
        return unquote(part, errors="strict").encode("utf-8").decode("utf-8")
    except UnicodeError:
        raise Invalid("A name in the path is not UTF-8", field="path") from None
