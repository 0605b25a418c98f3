"""Producers at a steady rate on a Unix socket: what a receipt costs while other things go on.

Run as a process of its own: `python -m benchmarks.paced SOCKET RATE SECONDS`. Each
latency counts from when its request was due, so that a stall is not told as one slow
receipt. Prints one JSON line.
"""

from __future__ import annotations

import json
import selectors
import socket
import sys
import time

from benchmarks.load import REQUEST, connect

CONNECTIONS = 16


def run(address: str, rate: float, seconds: float) -> dict[str, float]:
    """p50, p99 and the worst, in ms."""
    selector = selectors.DefaultSelector()
    free = [connect(address, "") for _ in range(CONNECTIONS)]
    for one in free:
        selector.register(one, selectors.EVENT_READ)
    due_of: dict[socket.socket, float] = {}
    latencies: list[float] = []
    clock = time.perf_counter
    due = start = clock()
    while due < start + seconds or due_of:
        now = clock()
        while free and due <= now and due < start + seconds:
            one = free.pop()
            due_of[one] = due
            one.send(REQUEST)
            due += 1 / rate
        wait = 1.0 if due >= start + seconds or not free else max(0.0, due - clock())
        for key, _ in selector.select(wait):
            answered = key.fileobj
            assert isinstance(answered, socket.socket)
            code = answered.recv(65536)[9:12]
            assert code == b"201", code
            latencies.append(clock() - due_of.pop(answered))
            free.append(answered)
    latencies.sort()
    count = len(latencies)
    return {
        "p50_ms": latencies[count // 2] * 1000,
        "p99_ms": latencies[int(count * 0.99)] * 1000,
        "worst_ms": latencies[-1] * 1000,
    }


if __name__ == "__main__":
    print(json.dumps(run(sys.argv[1], float(sys.argv[2]), float(sys.argv[3]))))
