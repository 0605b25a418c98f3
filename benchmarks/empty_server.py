"""The ceiling of intake: the agent's own HTTP server with a handler that does nothing."""

from __future__ import annotations

import asyncio
import socket
import sys

import uvloop

from outboxd.serve.answers import Response, reply
from outboxd.serve.request import Request, read_body
from outboxd.serve.server import HttpServer
from outboxd.serve.table import Route, RouteTable

ANSWER = b'{"id": "01a2009a-c7ff-77ea-a81c-709b1dd41655", "status": "accepted", "warnings": []}'


async def handle(request: Request, _: str) -> Response:
    await read_body(request, 262144)
    return reply(201, ANSWER)


async def main(path: str) -> None:
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(path)
    listening.listen(1024)
    table = RouteTable([Route("POST", "/mgmt/v1/events", handle)])
    await HttpServer(table).start(listening)
    print("ready", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1]))
