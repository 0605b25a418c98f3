"""Producers: many keep-alive connections on a Unix socket, one request each at a time.

Run as a process of its own, so that it is not measured with the server.
Prints one JSON line: requests a second, latencies, answers by status.
"""

from __future__ import annotations

import json
import select
import socket
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


def run(path: str, connections: int, seconds: float) -> dict[str, object]:
    poll = select.epoll()
    sockets = {}
    for _ in range(connections):
        one = socket.socket(socket.AF_UNIX)
        one.connect(path)
        one.setblocking(False)
        sockets[one.fileno()] = one
        poll.register(one.fileno(), select.EPOLLIN)
    clock = time.perf_counter
    began = dict.fromkeys(sockets, 0.0)
    latencies: list[float] = []
    codes: dict[str, int] = {}
    start = clock()
    for number, one in sockets.items():
        began[number] = clock()
        one.send(REQUEST)
    end = start + seconds
    now = start
    while now < end:
        for number, _ in poll.poll():
            data = sockets[number].recv(65536)
            now = clock()
            latencies.append(now - began[number])
            code = data[9:12].decode()
            codes[code] = codes.get(code, 0) + 1
            began[number] = now
            sockets[number].send(REQUEST)
    latencies.sort()
    count = len(latencies)
    return {
        "per_second": count / (now - start),
        "p50_ms": latencies[count // 2] * 1000,
        "p99_ms": latencies[int(count * 0.99)] * 1000,
        "codes": codes,
    }


if __name__ == "__main__":
    print(json.dumps(run(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))))
