"""The same events to the same endpoint by other means: a curl loop, and syslog-ng.

Losses too: each is killed with SIGKILL in the middle of its work, started
again, and what never arrived is counted. And what a durable acceptance costs a
cron job: nullmailer's queue, which syncs each message and its directory, beside `emit`.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from benchmarks.load import BODY
from benchmarks.machine import Agent, cpu_s, endpoint, resident_mib, stats
from benchmarks.prepared import fill
from benchmarks.table import Row

CURL_LOOP = """
i=0
while [ $i -lt {count} ]; do
    curl -sS -o /dev/null -m 5 -H 'Content-Type: application/json' -H 'x-api-key: k' \\
        --data-binary @{body} {url} 2>/dev/null
    i=$((i + 1))
done
"""

SYSLOG_NG = """
@version: 3.38
options {{ stats-freq(0); chain-hostnames(no); flush-lines(100); }};
source s {{ unix-stream("{directory}/in" flags(no-parse) max-connections(10)
            log-iw-size(100000) log-fetch-limit(1000)); }};
destination d {{
    http(url("{url}") method("POST") workers(64) timeout(10)
         headers("Content-Type: application/json", "x-api-key: k") body("$MSG")
         disk-buffer(reliable(yes) disk-buf-size(536870912) mem-buf-size(67108864)
                     dir("{directory}")));
}};
log {{ source(s); destination(d); flags(flow-control); }};
"""


def cpu_us(command: list[str], stdin: Path = Path(os.devnull)) -> float:
    """Run it to its end, without its output: what it took, with all that it started."""
    with open(stdin, "rb") as file:
        child = subprocess.Popen(command, stdin=file, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    assert child.returncode == 0, f"{command[0]} ended with {child.returncode}"
    return (usage.ru_utime + usage.ru_stime) * 1e6


def peak_mib(command: list[str], stdin: Path = Path(os.devnull)) -> float:
    """The same run once more: the memory of the largest process. By GNU time, because what
    Python starts has Python's own size from before as its peak."""
    with open(stdin, "rb") as file:
        told = subprocess.run(["time", "-f", "%M", *command], stdin=file, check=True,
                              stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)  # fmt: skip
    return int(told.stderr.split()[-1]) / 1024


def arrived(port: int, expected: int, timeout_s: float) -> tuple[int, float]:
    """How many arrived in the end, and in how many seconds from first to last."""
    total, first, last = 0, 0.0, 0.0
    deadline_s = time.monotonic() + timeout_s
    quiet_s = 0.0
    while total < expected and quiet_s < 5.0 and time.monotonic() < deadline_s:
        time.sleep(0.2)
        told = stats(port)
        quiet_s = 0.0 if told["count"] else quiet_s + 0.2
        if told["count"]:
            first = first or told["first"]
            last = told["last"]
            total += told["count"]
    return total, last - first


def curl_loop(directory: Path, delay_ms: float, count: int) -> list[Row]:
    """As in the documentation: one curl an event, nothing kept."""
    body = directory / "body"
    body.write_bytes(BODY)
    with endpoint(delay_ms) as port:
        script = CURL_LOOP.format(
            count=count, body=body, url=f"http://127.0.0.1:{port}/mgmt/v1/events"
        )
        taken_us = cpu_us(["sh", "-c", script])
        total, seconds = arrived(port, count, 10)
        rate = total / seconds
        child = subprocess.Popen(["sh", "-c", script], start_new_session=True)
        time.sleep(count / rate / 2)
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()
        total, _ = arrived(port, count, 10)
        resident = peak_mib(["curl", "-sS", f"http://127.0.0.1:{port}/"])
    return [
        Row(f"curl loop, {delay_ms:g} ms", rate, "events/s",
            note=f"{count - total} of {count} lost when killed in the middle; "
                 f"{taken_us / count:,.0f} us of CPU an event, {resident:.0f} MiB resident; "
                 "kept nowhere"),
    ]  # fmt: skip


@contextlib.contextmanager
def syslog_ng(directory: Path, url: str):  # type: ignore[no-untyped-def]
    config = directory / "syslog-ng.conf"
    config.write_text(SYSLOG_NG.format(directory=directory, url=url))
    child = subprocess.Popen(
        ["syslog-ng", "-F", "--no-caps", "-f", str(config), "-R", str(directory / "persist"),
         "-c", str(directory / "ctl"), "-p", str(directory / "pid")],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        deadline_s = time.monotonic() + 20
        while not (directory / "in").exists():
            assert time.monotonic() < deadline_s, "syslog-ng did not start"
            time.sleep(0.05)
        yield child
    finally:
        if child.poll() is None:
            child.terminate()
        child.wait(20)


def feed(path: Path, count: int) -> int:
    """Hand events to syslog-ng as lines; how many it took."""
    line = BODY + b"\n"
    with socket.socket(socket.AF_UNIX) as one:
        one.settimeout(60)
        one.connect(str(path))
        sent = 0
        while sent < count:
            portion = min(500, count - sent)
            try:
                one.sendall(line * portion)
            except OSError:
                return sent
            sent += portion
        return sent


def syslog(directory: Path, delay_ms: float, count: int) -> list[Row]:
    with endpoint(delay_ms) as port:
        url = f"http://127.0.0.1:{port}/mgmt/v1/events"
        with syslog_ng(directory, url) as child:
            began_s = cpu_s(child.pid)
            feed(directory / "in", count)
            total, seconds = arrived(port, count, 120)
            rate = total / seconds
            told = costs(child.pid, began_s, count)
        stats(port)
        (directory / "in").unlink(missing_ok=True)
        with syslog_ng(directory, url) as child:
            taken = feed(directory / "in", count)
            time.sleep(min(1.0, count / rate / 4))
            child.kill()
            child.wait()
        (directory / "in").unlink(missing_ok=True)
        with syslog_ng(directory, url):
            total, _ = arrived(port, taken, 120)
    return [
        Row(f"syslog-ng, reliable disk buffer, {delay_ms:g} ms", rate, "events/s",
            note=f"{max(0, taken - total)} of {taken:,} lost when killed in the middle; {told}; "
                 "accepted before it is synced"),
    ]  # fmt: skip


def outboxd(directory: Path, delay_ms: float, count: int) -> list[Row]:
    with endpoint(delay_ms) as port:
        url = f"http://127.0.0.1:{port}/mgmt/v1/events"
        agent = Agent(directory, url, delivery={"concurrency_max": 64})
        fill(agent.outbox, count)
        with agent:
            began_s = agent.cpu_s()
            total, seconds = arrived(port, count, 120)
            told = costs(agent.pid, began_s, count)
        rate = total / seconds
        fill(agent.outbox, count)
        with agent:
            time.sleep(count / rate / 2)
            agent.kill()
        with agent:
            agent.await_pending(0)
        total, _ = arrived(port, count, 10)
    return [
        Row(f"outboxd, {delay_ms:g} ms", rate, "events/s",
            note=f"{max(0, count - total)} of {count:,} lost when killed in the middle, "
                 f"{max(0, total - count)} sent twice; {told}, without the acceptance; "
                 "synced before it is accepted"),
    ]  # fmt: skip


def costs(pid: int, began_cpu_s: float, count: int) -> str:
    """What a peer needs, in words."""
    cpu_us = (cpu_s(pid) - began_cpu_s) / count * 1e6
    return f"{cpu_us:.0f} us of CPU an event, {resident_mib(pid):.0f} MiB resident"


def a_process_each(directory: Path, count: int) -> list[Row]:
    """What a cron job waits for until its message is safe: one process each."""
    queue = Path("/var/spool/nullmailer/queue")
    message = directory / "message"
    message.write_bytes(b"root@localhost\nroot@localhost\n\nSubject: deploy\n\n" + BODY + b"\n")
    before = set(queue.iterdir())
    began_s = time.perf_counter()
    theirs_us = [cpu_us(["nullmailer-queue"], message) for _ in range(count)]
    their_rate = count / (time.perf_counter() - began_s)
    their_mib = peak_mib(["nullmailer-queue"], message)
    for left in set(queue.iterdir()) - before:
        left.unlink()
    emit = [str(Path(sys.executable).parent / "outboxd"), "emit"]
    with endpoint() as port, Agent(directory, f"http://127.0.0.1:{port}/mgmt/v1/events") as agent:
        emit += ["-c", str(agent.config), "--cluster", "prod", "deploy", "it is out"]
        began_s = time.perf_counter()
        ours_us = [cpu_us(emit) for _ in range(count)]
        our_rate = count / (time.perf_counter() - began_s)
        our_mib = peak_mib(emit)
    return [
        Row("durable acceptance, one process each: `outboxd emit`", our_rate, "/s", their_rate,
            "nullmailer-queue",
            note=f"{median(ours_us) / 1000:.1f} ms of CPU and {our_mib:.0f} MiB each; "
                 f"nullmailer-queue {median(theirs_us) / 1000:.1f} ms and {their_mib:.0f} MiB; "
                 "both synced"),
    ]  # fmt: skip


def rows(short: bool) -> list[Row]:
    """All peers, at zero and at 50 ms answer time."""
    found: list[Row] = []
    for delay_ms in (0.0, 50.0):
        count = 5_000 if short else 20_000
        with tempfile.TemporaryDirectory() as name:
            found += curl_loop(Path(name), delay_ms, 100 if short else 300)
        if shutil.which("syslog-ng"):
            with tempfile.TemporaryDirectory() as name:
                found += syslog(Path(name), delay_ms, count)
        with tempfile.TemporaryDirectory() as name:
            found += outboxd(Path(name), delay_ms, count)
    if shutil.which("nullmailer-queue"):
        with tempfile.TemporaryDirectory() as name:
            found += a_process_each(Path(name), 30 if short else 200)
    return found
