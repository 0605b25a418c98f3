"""The routes of the timeline page: the page, its files, counts, pictures, stream.

Read only: there is no route here that changes anything. The files are read
once, at the start, so that no request names a path on the disk. Every answer
carries a Content-Security-Policy that runs nothing but the package's own
scripts, and the Host header is checked, so that a web site cannot look in by
pointing its own name at 127.0.0.1.
"""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Awaitable, Callable, Collection, Iterable
from importlib import resources
from typing import NamedTuple

import msgspec
from aiohttp import web
from aiohttp.web import BaseRequest, Response, StreamResponse

from outboxd.errors import UnknownId
from outboxd.serve.table import Handler, Refusal, Route
from outboxd.web import queries
from outboxd.web.queries import BadQuery
from outboxd.web.source import Json, Kind, TimelineSource
from outboxd.web.stream import stream_handler

CONTENT_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".html": "text/html; charset=utf-8",
}
STYLES = ("page.css", "pictures.css", "drawer.css")
SECURITY_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'; trusted-types 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


def web_routes(source: TimelineSource, *, listing: bool = False) -> list[Route]:
    """What to serve.

    With `listing` also `/v1/events`, `/v1/events/{id}` and `/v1/status`, for a
    server that has no such routes of its own.
    """
    files = _load()
    routes: list[Route] = [
        Route("GET", "/", _file_handler(_page(files["index.html"], source.kind))),
        Route("GET", "/favicon.ico", _file_handler(files["icon.svg"])),
        *(
            Route("GET", f"/static/{name}", _file_handler(file))
            for name, file in files.items()
            if name != "index.html"
        ),
        Route("GET", "/v1/facets", _json_handler(_facets, source)),
        Route("GET", "/v1/histogram", _json_handler(_histogram, source)),
        Route("GET", "/v1/activity", _json_handler(_activity, source)),
        Route("GET", "/v1/inventory", _json_handler(_inventory, source)),
        Route("GET", "/v1/stream", stream_handler(source)),
    ]
    if listing:
        routes += [
            Route("GET", "/v1/events", _json_handler(_events, source)),
            Route("GET", "/v1/events/{id}", _json_handler(_event, source)),
            Route("GET", "/v1/status", _json_handler(_status, source)),
        ]
    return routes


def check_host(request: BaseRequest, allowed: Collection[str] = ()) -> None:
    """Refuse a request that names a host which this is not.

    Addresses and localhost are always fine: another site's page can only be
    made to call here under that site's own name. `allowed` are further names.
    """
    host = _host_name(request.headers.get("Host", ""))
    if host == "localhost" or host.endswith(".localhost") or _is_address(host):
        return
    if host and host in {name.lower() for name in allowed}:
        return
    raise Refusal(
        421,
        "this host name is not served here",
        "Host",
        "open the page by the address it listens on, such as http://127.0.0.1",
        SECURITY_HEADERS,
    )


def mount(app: web.Application, routes: Iterable[Route], allowed: Collection[str] = ()) -> None:
    """Add the routes to an aiohttp application, behind the check of the host."""

    def adapted(handler: Handler) -> Callable[[web.Request], Awaitable[StreamResponse]]:
        async def handle(request: web.Request) -> StreamResponse:
            try:
                check_host(request, allowed)
                return await handler(request, request.match_info.get("id", ""))
            except Refusal as refusal:
                return refusal.response()

        return handle

    for route in routes:
        app.router.add_route(route.method, route.path, adapted(route.handler))


_Answer = Callable[[TimelineSource, BaseRequest, str], Awaitable[Json]]


class _File(NamedTuple):
    content: bytes
    content_type: str
    tag: str


def _load() -> dict[str, _File]:
    """The page's files by name."""
    files: dict[str, _File] = {}
    for item in (resources.files("outboxd.web") / "static").iterdir():
        content_type = CONTENT_TYPES.get("." + item.name.rpartition(".")[2])
        if item.is_file() and content_type:
            files[item.name] = _File(content := item.read_bytes(), content_type, _tag(content))
    # The first paint waits for the styles: one request brings them all.
    styles = b"\n".join(files.pop(name).content for name in STYLES)
    files["styles.css"] = _File(styles, CONTENT_TYPES[".css"], _tag(styles))
    return files


def _page(template: _File, kind: Kind) -> _File:
    """The page says from its first byte on which of the two it is, so nothing jumps."""
    content = template.content.replace(b'data-kind=""', b'data-kind="%s"' % kind.encode())
    return _File(content, template.content_type, _tag(content))


def _tag(content: bytes) -> str:
    return f'"{hashlib.sha256(content).hexdigest()[:20]}"'


def _file_handler(file: _File) -> Handler:
    headers = {
        **SECURITY_HEADERS,
        "Content-Type": file.content_type,
        "ETag": file.tag,
        "Cache-Control": "no-cache",  # asked for each time, and answered 304
    }

    async def serve(request: BaseRequest, _: str) -> Response:
        if request.headers.get("If-None-Match") == file.tag:
            return Response(status=304, headers=headers)
        return Response(body=file.content, headers=headers)

    return serve


def _json_handler(answer: _Answer, source: TimelineSource) -> Handler:
    headers = {
        **SECURITY_HEADERS,
        "Content-Type": "application/json",
        "Cache-Control": "no-store",
    }

    async def handle(request: BaseRequest, id: str) -> Response:
        status = 200
        try:
            body = await answer(source, request, id)
        except BadQuery as error:
            status = 400
            body = {"error": error.message, "field": error.field, "hint": error.hint}
        except UnknownId as error:
            status = 404
            body = {"error": error.message, "field": "id", "hint": error.hint}
        return Response(body=msgspec.json.encode(body), status=status, headers=headers)

    return handle


async def _events(source: TimelineSource, request: BaseRequest, id: str) -> Json:
    queries.check_names(request.query, "limit", "cursor")
    limit = queries.whole_number(request.query, "limit", queries.LIMIT_DEFAULT, queries.LIMIT_MAX)
    cursor = queries.text_of(request.query, "cursor")
    try:
        return await source.page(queries.entry_filter(request.query), cursor, limit)
    except ValueError as error:
        raise BadQuery(str(error), "cursor", "use `next` of the page before") from None


async def _event(source: TimelineSource, request: BaseRequest, id: str) -> Json:
    return await source.entry(id)


async def _status(source: TimelineSource, request: BaseRequest, id: str) -> Json:
    return dict(await source.status())


async def _facets(source: TimelineSource, request: BaseRequest, id: str) -> Json:
    queries.check_names(request.query)
    return await source.facets(queries.entry_filter(request.query))


async def _histogram(source: TimelineSource, request: BaseRequest, id: str) -> Json:
    queries.check_names(request.query, "buckets")
    where = queries.entry_filter(request.query)
    buckets = queries.whole_number(
        request.query, "buckets", queries.BUCKETS_DEFAULT, queries.BUCKETS_MAX
    )
    return await source.histogram(where, where.since, where.until, buckets)


async def _activity(source: TimelineSource, request: BaseRequest, id: str) -> Json:
    return {"activity": await source.activity()}


async def _inventory(source: TimelineSource, request: BaseRequest, id: str) -> Json:
    return {"inventory": await source.inventory()}


def _host_name(host: str) -> str:
    """A Host header's name without its port, in small letters."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0].lower().rstrip(".")


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
