"""The table of routes, and the answers that every route shares.

A route is a method, a path and a coroutine. Paths may hold one `{id}`. The
table must never guess: an unknown path is 404, a known path with another
method 405, each as JSON with `error`, `field` and `hint`.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Awaitable, Callable, Iterable
from typing import NamedTuple
from urllib.parse import unquote

from aiohttp.web import BaseRequest, Response, StreamResponse

Handler = Callable[[BaseRequest, str], Awaitable[StreamResponse]]

JSON_HEADERS = {"Content-Type": "application/json"}


class Route(NamedTuple):
    """One entry of the table; `handler(request, id)`, `id` is "" without one."""

    method: str
    path: str  # such as "/v1/events/{id}/retry"
    handler: Handler


class Refusal(Exception):
    """Raised by a handler: becomes an answer of `status` with its three fields."""

    def __init__(
        self,
        status: int,
        error: str,
        field: str | None = None,
        hint: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(error)
        self.status = status
        self.body = refusal_body(error, field, hint)
        self.headers = headers

    def response(self) -> Response:
        return reply(self.status, self.body, self.headers)


class RouteTable:
    """Finds the handler of a request; an exact path costs one look-up."""

    def __init__(self, routes: Iterable[Route]) -> None:
        self._exact: dict[str, dict[str, Handler]] = {}
        self._with_id: dict[tuple[str, str], dict[str, Handler]] = {}
        for route in routes:
            before, has_id, after = route.path.partition("{id}")
            methods = (
                self._with_id.setdefault((before, after), {})
                if has_id
                else self._exact.setdefault(route.path, {})
            )
            assert route.method not in methods, f"two routes for {route.method} {route.path}"
            methods[route.method] = route.handler

    @property
    def paths(self) -> list[str]:
        return [*self._exact, *(before + "{id}" + after for before, after in self._with_id)]

    def find(self, method: str, path: str) -> tuple[Handler, str]:
        """The handler and the id in the path; raises Refusal (404, 405)."""
        methods = self._exact.get(path)
        if methods is not None:
            return self._of_method(methods, method, path), ""
        for (before, after), methods in self._with_id.items():
            if path.startswith(before) and path.endswith(after):
                argument = path[len(before) : len(path) - len(after)]
                if argument and "/" not in argument:
                    return self._of_method(methods, method, path), unquote(argument)
        near = difflib.get_close_matches(path[:200], self.paths, n=1)
        hint = f"did you mean {near[0]}?" if near else "the paths are " + ", ".join(self.paths)
        raise Refusal(404, f"there is nothing at {path[:200]!r}", None, hint)

    @staticmethod
    def _of_method(methods: dict[str, Handler], method: str, path: str) -> Handler:
        handler = methods.get(method) or (methods.get("GET") if method == "HEAD" else None)
        if handler is not None:
            return handler
        allowed = ", ".join([*methods, *(["HEAD"] if "GET" in methods else [])])
        raise Refusal(
            405,
            f"{method[:40]} is not possible at {path[:200]!r}",
            None,
            f"use {allowed}",
            {"Allow": allowed},
        )


def reply(status: int, body: bytes, headers: dict[str, str] | None = None) -> Response:
    """An answer whose body is JSON text."""
    if headers is None:
        return Response(status=status, body=body, headers=JSON_HEADERS)
    return Response(status=status, body=body, headers={**JSON_HEADERS, **headers})


def refusal_body(error: str, field: str | None = None, hint: str | None = None) -> bytes:
    """The three fields that every refusal has."""
    return json.dumps({"error": error, "field": field, "hint": hint}).encode()
