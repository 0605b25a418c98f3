"""The routes of the timeline page: the page, its files, counts, pictures, stream.

Read only: there is no route here that changes anything. The files are read
once, at the start, so that no request names a path on the disk. Every answer
carries a Content-Security-Policy that runs nothing but the package's own
scripts; who may ask at all is decided by the listener (`serve.guards`).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Awaitable, Callable
from typing import NamedTuple

import msgspec

from outboxd.outbox.filters import read_filter, read_number
from outboxd.serve.answers import Response
from outboxd.serve.request import Request
from outboxd.serve.table import Handler, Route
from outboxd.web.axis import BUCKETS_DEFAULT, BUCKETS_MAX
from outboxd.web.source import Json, Kind, TimelineSource
from outboxd.web.stream import stream_handler

CONTENT_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".html": "text/html; charset=utf-8",
}
_FILES = os.path.join(os.path.dirname(__file__), "static")
STYLES = ("page.css", "pictures.css", "drawer.css")
SECURITY_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'; trusted-types 'none'"
    ),
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
}


def web_routes(source: TimelineSource) -> list[Route]:
    """What to serve beside `/v1/events`, `/v1/events/{id}` and `/v1/status`."""
    files = _load()
    return [
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


_Answer = Callable[[TimelineSource, Request], Awaitable[Json]]


class _File(NamedTuple):
    content: bytes
    content_type: str
    tag: str


def _load() -> dict[str, _File]:
    """The page's files by name."""
    files: dict[str, _File] = {}
    for name in os.listdir(_FILES):
        content_type = CONTENT_TYPES.get("." + name.rpartition(".")[2])
        if content_type:
            with open(os.path.join(_FILES, name), "rb") as file:
                content = file.read()
            files[name] = _File(content, content_type, _tag(content))
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
        "ETag": file.tag,
        "Cache-Control": "no-cache",  # asked for each time, and answered 304
    }

    async def serve(request: Request, _: str) -> Response:
        if request.header("if-none-match") == file.tag:
            return Response(status=304, content_type="", headers=headers)
        return Response(file.content, content_type=file.content_type, headers=headers)

    return serve


def _json_handler(answer: _Answer, source: TimelineSource) -> Handler:
    headers = {**SECURITY_HEADERS, "Cache-Control": "no-store"}

    async def handle(request: Request, _: str) -> Response:
        body = await answer(source, request)
        return Response(msgspec.json.encode(body), headers=headers)

    return handle


async def _facets(source: TimelineSource, request: Request) -> Json:
    return await source.facets(read_filter(request.query))


async def _histogram(source: TimelineSource, request: Request) -> Json:
    query = request.query
    where = read_filter(query, "buckets")
    buckets = read_number(query, "buckets", BUCKETS_DEFAULT, BUCKETS_MAX)
    return await source.histogram(where, where.since, where.until, buckets)


async def _activity(source: TimelineSource, request: Request) -> Json:
    return {"activity": await source.activity()}


async def _inventory(source: TimelineSource, request: Request) -> Json:
    return {"inventory": await source.inventory()}
