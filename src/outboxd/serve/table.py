"""The table of routes.

A route is a method, a path and a coroutine. Paths may hold one `{id}`, by any name. The
table must never guess: an unknown path is 404, a known path with another
method 405, each as JSON with `error`, `field` and `hint`.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable
from typing import NamedTuple
from urllib.parse import unquote

from outboxd.serve.answers import Answer, Refusal, Response
from outboxd.serve.request import Request

Handler = Callable[[Request, str], Awaitable[Answer]]

# RFC 3986, 2.3: a path means the same with these escaped or not.
_ESCAPED_UNRESERVED = re.compile(r"%(2[DdEe]|3\d|4[1-9A-Fa-f]|5[0-9AaFf]|6[1-9A-Fa-f]|7[0-9AaEe])")


class Route(NamedTuple):
    """One entry of the table; `handler(request, id)`, `id` is "" without one."""

    method: str
    path: str  # such as "/v1/events/{id}/retry"
    handler: Handler


class RouteTable:
    """Finds the route of a request; an exact path costs one look-up."""

    def __init__(self, routes: Iterable[Route]) -> None:
        self._exact: dict[str, dict[str, Route]] = {}
        self._with_id: dict[tuple[str, str], dict[str, Route]] = {}
        self._paths: dict[str, None] = {}
        for route in routes:
            before, has_id, rest = route.path.partition("{")
            after = rest.partition("}")[2]
            methods = (
                self._with_id.setdefault((before, after), {})
                if has_id
                else self._exact.setdefault(route.path, {})
            )
            self._paths[route.path] = None
            assert route.method not in methods, f"two routes for {route.method} {route.path}"
            methods[route.method] = route

    def find(self, method: str, path: str) -> tuple[Route, str]:
        """The route and the id in the path; raises Refusal (404, 405)."""
        if "%" in path:
            path = _ESCAPED_UNRESERVED.sub(lambda found: chr(int(found[1], 16)), path)
        methods = self._exact.get(path)
        if methods is not None:
            return self._of_method(methods, method, path), ""
        for (before, after), methods in self._with_id.items():
            if path.startswith(before) and path.endswith(after):
                argument = path[len(before) : len(path) - len(after)]
                if argument and "/" not in argument:
                    return self._of_method(methods, method, path), unquote(argument)
        if method == "OPTIONS" and path == "*":
            return _options("GET, HEAD, OPTIONS, POST"), ""
        # Here, because only a wrong name pays for it.
        from difflib import get_close_matches

        near = get_close_matches(path[:200], self._paths, n=1)
        hint = f"did you mean {near[0]}?" if near else "the paths are " + ", ".join(self._paths)
        raise Refusal(404, f"there is nothing at {path[:200]!r}", None, hint)

    @staticmethod
    def _of_method(methods: dict[str, Route], method: str, path: str) -> Route:
        route = methods.get(method) or (methods.get("GET") if method == "HEAD" else None)
        if route is not None:
            return route
        allowed = ", ".join([*methods, *(["HEAD"] if "GET" in methods else [])])
        if method == "OPTIONS":
            return _options(f"{allowed}, OPTIONS")
        raise Refusal(
            405,
            f"{method[:40]} is not possible at {path[:200]!r}",
            None,
            f"use {allowed}",
            {"Allow": allowed},
        )


def _options(allowed: str) -> Route:
    async def tell(_: Request, __: str) -> Response:
        return Response(status=204, headers={"Allow": allowed})

    return Route("OPTIONS", "*", tell)
