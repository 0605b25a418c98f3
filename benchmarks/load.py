"""Producers: many keep-alive connections on a Unix socket, or over TLS (HOST:PORT, a file
with the authority, a token), one request each at a time.

Run as a process of its own, so that it is not measured with the server.
Prints one JSON line: requests a second, latencies, answers by status.
"""

from __future__ import annotations

import json
import select
import socket
import ssl
import sys
import time

BODY = (
    b'{"eventType":"deploy","summary":"billing 4.2 is out","severity":"information",'
    b'"scope":{"clusters":["prod"],"servicesNames":["billing"]},'
    b'"details":{"commit":"3f2c1a9","pipeline":4711,"by":"ci","duration":"3m 12s"}}'
)
REQUEST = (
    b"POST /mgmt/v1/events HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    b"Content-Length: %d\r\n\r\n" % len(BODY)
) + BODY


def connect(address: str, ca_file: str) -> socket.socket:
    """A connection that does not block."""
    if ca_file:
        host, _, port = address.rpartition(":")
        context = ssl.create_default_context(cafile=ca_file)
        plain = socket.create_connection((host, int(port)))
        one: socket.socket = context.wrap_socket(plain, server_hostname=host)
    else:
        one = socket.socket(socket.AF_UNIX)
        one.connect(address)
    one.setblocking(False)
    return one


def run(
    address: str, connections: int, seconds: float, ca_file: str = "", token: str = ""
) -> dict[str, object]:
    poll = select.epoll()
    sockets = {}
    request = REQUEST.replace(b"\r\n", b"\r\nx-api-key: %s\r\n" % token.encode(), 1)
    request = request if token else REQUEST
    for _ in range(connections):
        one = connect(address, ca_file)
        sockets[one.fileno()] = one
        poll.register(one.fileno(), select.EPOLLIN)
    clock = time.perf_counter
    began = dict.fromkeys(sockets, 0.0)
    latencies: list[float] = []
    codes: dict[str, int] = {}
    start = clock()
    for number, one in sockets.items():
        began[number] = clock()
        one.send(request)
    end = start + seconds
    now = start
    while now < end:
        for number, _ in poll.poll():
            try:
                data = sockets[number].recv(65536)
            except ssl.SSLWantReadError:
                continue  # a session ticket, or half a record
            now = clock()
            latencies.append(now - began[number])
            code = data[9:12].decode()
            codes[code] = codes.get(code, 0) + 1
            began[number] = now
            sockets[number].send(request)
    latencies.sort()
    count = len(latencies)
    return {
        "count": count,
        "per_second": count / (now - start),
        "p50_ms": latencies[count // 2] * 1000,
        "p99_ms": latencies[int(count * 0.99)] * 1000,
        "codes": codes,
    }


if __name__ == "__main__":
    print(json.dumps(run(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), *sys.argv[4:])))
