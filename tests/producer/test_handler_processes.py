"""Records of real processes that end in every way there is: none is lost.

Each program gets a configuration's path, logs so many records and ends; what
then lies in the spool is counted. It runs with the standard library alone, but
for the servers that fork workers of their own.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from support.waiting import PATIENCE_S

import outboxd

SOURCE = Path(outboxd.__file__).parent.parent
RECORDS = 20

HEAD = """
import atexit, logging, os, signal, sys
atexit.register(lambda: logging.error("from atexit") if "atexit" in sys.argv else None)
from outboxd import OutboxdHandler

def set_up():
    logging.getLogger().addHandler(OutboxdHandler(config=sys.argv[1], records_per_minute_max=10**9))

def work(number):
    logging.error("record %d", number)
    return number

set_up()
"""


@pytest.fixture(autouse=True)
def spool(place):
    place.agent_was_here()


def run(place, tmp_path, program, *arguments, status=0):
    """What the program wrote to stderr, once it has ended as expected."""
    file = tmp_path / "program.py"
    file.write_text(HEAD + program)
    process = subprocess.run(
        [sys.executable, str(file), place.config, *arguments],
        env={**os.environ, "PYTHONPATH": str(SOURCE)},
        stderr=subprocess.PIPE,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert process.returncode == status, process.stderr
    return process.stderr


def summaries(place):
    return sorted(event["summary"] for event in place.spooled())


def expected(count=RECORDS):
    return sorted(f"record {number}" for number in range(count))


PROCESS = """
if __name__ == "__main__":
    import multiprocessing
    context = multiprocessing.get_context(sys.argv[2])
    children = [context.Process(target=work, args=(number,)) for number in range(20)]
    for child in children: child.start()
    for child in children: child.join()
"""
POOL = """
if __name__ == "__main__":
    import multiprocessing
    with multiprocessing.get_context(sys.argv[2]).Pool(2) as pool:
        pool.map(work, range(20), chunksize=1)
"""
EXECUTOR = """
if __name__ == "__main__":
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor
    context = multiprocessing.get_context(sys.argv[2])
    with ProcessPoolExecutor(2, mp_context=context) as executor:
        list(executor.map(work, range(20)))
"""


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
@pytest.mark.parametrize("program", [PROCESS, POOL, EXECUTOR], ids=["Process", "Pool", "Executor"])
def test_children_of_multiprocessing(place, tmp_path, program, method):
    run(place, tmp_path, program, method)
    assert summaries(place) == expected()


def test_a_work_horse_that_ends_with_os_exit(place, tmp_path):
    """As RQ forks one for each job."""
    program = """
for number in range(20):
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)
        work(number)
        os._exit(0)
    os.waitpid(child, 0)
"""
    run(place, tmp_path, program)
    assert summaries(place) == expected()


@pytest.mark.parametrize("name", ["SIGKILL", "SIGTERM", "SIGSEGV"])
def test_a_process_that_a_signal_ends(place, tmp_path, name):
    number = getattr(signal, name)
    run(place, tmp_path, f"work(0)\nos.kill(os.getpid(), {int(number)})", status=-number)
    assert summaries(place) == expected(1)


def test_a_program_whose_records_and_stderr_have_no_room_ends_as_it_would_alone(place, tmp_path):
    file = tmp_path / "program.py"
    file.write_text(
        HEAD + "handler = logging.getLogger().handlers[0]\nwork(1)\n"
        "sys.exit(5 if handler.dropped == 1 else 6)"
    )
    (place.spool / "new").rmdir()
    (place.spool / "new").write_text("a file in its place")
    environ = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}
    with open("/dev/full", "wb") as full_disk:
        done = subprocess.run(
            [sys.executable, str(file), place.config],
            env={**environ, "PYTHONPATH": str(SOURCE)},
            stderr=full_disk,
            timeout=PATIENCE_S,
            check=False,
        )
    assert done.returncode == 5


def test_a_record_from_atexit_of_before_the_import(place, tmp_path):
    run(place, tmp_path, "", "atexit")
    assert summaries(place) == ["from atexit"]


def test_an_exception_of_a_task_that_nobody_retrieved(place, tmp_path):
    program = """
import asyncio
async def dies():
    raise RuntimeError("nobody looks")
async def main():
    global task
    task = asyncio.create_task(dies())
    await asyncio.sleep(0.01)
asyncio.run(main())
"""
    run(place, tmp_path, program)
    (event,) = place.spooled()
    assert event["summary"] == "Task exception was never retrieved"
    assert event["details"]["exception"] == "RuntimeError"
    assert "nobody looks" in event["details"]["traceback"]


def test_destructors_while_the_interpreter_finalizes(place, tmp_path):
    program = """
import threading
class Noisy:
    def __init__(self, number): self.number = number
    def __del__(self, work=work): work(self.number)
kept = Noisy(0)
cycle = Noisy(1)
cycle.itself = cycle
local = threading.local()
local.kept = Noisy(2)
"""
    run(place, tmp_path, program)
    assert summaries(place) == expected(3)


def test_garbage_collection_in_the_midst_of_logging(place, tmp_path):
    program = """
import gc
gc.set_threshold(1)
class Noisy:
    def __init__(self, number): self.number, self.itself = number, self
    def __del__(self, work=work): work(self.number)
for number in range(0, 200, 2):
    Noisy(number)
    work(number + 1)
"""
    run(place, tmp_path, program)
    assert summaries(place) == expected(200)


def test_signal_handlers_that_log_while_threads_log(place, tmp_path):
    """Signals come in the midst of whatever logs, of each other's handlers too."""
    program = """
import threading
signals = 0
depth = 0
def handle(number, frame):
    # Where each record takes longer than the next signal, there would be no end of them.
    global signals, depth
    if depth == 8: return
    depth += 1
    signals += 1
    logging.error("signal")
    depth -= 1
signal.signal(signal.SIGALRM, handle)
threads = [threading.Thread(target=lambda: [work(n) for n in range(500)]) for _ in range(2)]
for thread in threads: thread.start()
signal.setitimer(signal.ITIMER_REAL, 0.005, 0.005)
while signals < 200: work(-1)
signal.setitimer(signal.ITIMER_REAL, 0)
for thread in threads: thread.join()
print(signals, logging.getLogger().handlers[0].dropped, file=sys.stderr)
"""
    signals, dropped = map(int, run(place, tmp_path, program).split())
    found = Counter(summaries(place))
    assert (found["signal"], dropped) == (signals, 0)
    assert all(found[f"record {number}"] == 2 for number in range(500))


def test_a_fork_while_other_threads_log(place, tmp_path):
    program = """
import threading
done = threading.Event()
def chatter():
    while not done.is_set(): logging.error("chatter")
threads = [threading.Thread(target=chatter) for _ in range(3)]
for thread in threads: thread.start()
for number in range(20):
    child = os.fork()
    if child == 0:
        work(number)
        os._exit(0)
    os.waitpid(child, 0)
done.set()
"""
    run(place, tmp_path, program)
    assert [each for each in summaries(place) if each != "chatter"] == expected()


def test_a_child_does_not_count_what_its_parent_dropped(place, tmp_path):
    program = """
handler = logging.getLogger().handlers[0]
handler._records_per_minute_max = 0
work(-1)
handler._records_per_minute_max = 10
child = os.fork()
work(0 if child == 0 else 1)
if child == 0: os._exit(handler.dropped)
_, status = os.waitpid(child, 0)
sys.exit(os.waitstatus_to_exitcode(status))
"""
    run(place, tmp_path, program)
    told = [event for event in place.spooled() if event["eventType"] == "log records dropped"]
    assert [event["details"]["dropped"] for event in told] == [1]


def test_the_last_records_after_a_dict_config_and_an_agent_that_hangs(place, agent, tmp_path):
    agent.behaviour = "hang"
    program = """
import logging.config
for number in range(20):
    logging.config.dictConfig({"version": 1, "disable_existing_loggers": False, "handlers": {
        "outboxd": {"class": "outboxd.OutboxdHandler", "config": sys.argv[1]}},
        "root": {"handlers": ["outboxd"]}})
    work(number)
"""
    run(place, tmp_path, program)
    assert summaries(place) == expected()


APPLICATION = """
{first}
import logging, sys
sys.path.insert(0, {source!r})
from outboxd import OutboxdHandler
logging.getLogger().addHandler(OutboxdHandler(config={config!r}))
logging.error("loaded")

def application(environ, start_response):
    logging.error("record %s", environ["PATH_INFO"].strip("/"))
    start_response("200 OK", [("Content-Type", "text/plain"), ("Connection", "close")])
    return [b"done"]
"""


class Server:
    """A server of that application on a Unix socket."""

    def __init__(self, place, tmp_path, words, first=""):
        self.path = tmp_path / "application.sock"
        (tmp_path / "application.py").write_text(
            APPLICATION.format(first=first, source=str(SOURCE), config=place.config)
        )
        with open(tmp_path / "server.log", "w") as log:
            self.process = subprocess.Popen(
                [word.replace("SOCKET", str(self.path)) for word in words],
                cwd=tmp_path,
                stdout=log,
                stderr=log,
            )

    def ask(self, number):
        """One request, on a connection of its own; waits until the server is up."""
        deadline_s = time.monotonic() + PATIENCE_S
        while True:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(PATIENCE_S)
                try:
                    connection.connect(str(self.path))
                    connection.sendall(f"GET /{number} HTTP/1.0\r\n\r\n".encode())
                    answer = b""
                    while data := connection.recv(4096):
                        answer += data
                except (FileNotFoundError, ConnectionRefusedError):
                    assert self.process.poll() is None, "the server ended"
                    assert time.monotonic() < deadline_s, "the server does not start"
                    time.sleep(0.05)
                else:
                    assert answer.endswith(b"done")
                    return

    def stop(self, number):
        self.process.send_signal(number)
        self.process.wait(PATIENCE_S)


@pytest.mark.parametrize("worker", ["sync", "gthread", "gevent"])
@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGQUIT], ids=["gently", "at once"])
def test_gunicorn_with_preload(place, tmp_path, worker, end):
    words = [sys.executable, "-m", "gunicorn", "--preload", "-k", worker, "-w", "2", "-t", "300"]
    first = "from gevent import monkey; monkey.patch_all()" if worker == "gevent" else ""
    server = Server(place, tmp_path, [*words, "-b", "unix:SOCKET", "application"], first)
    try:
        for number in range(RECORDS):
            server.ask(number)
    finally:
        server.stop(end)
    assert summaries(place) == ["loaded", *expected()]


def test_uwsgi_without_threads(place, tmp_path, need):
    uwsgi = need("uwsgi", "uwsgi-core")
    plugin = Path("/usr/lib/uwsgi/plugins/python3_plugin.so")
    if not plugin.exists():
        need("uwsgi's python3 plugin", "uwsgi-plugin-python3")
    words = [uwsgi, "--master", "--plugin", "python3", "--http-socket", "SOCKET"]
    server = Server(place, tmp_path, [*words, "--processes", "2", "--module", "application"])
    try:
        for number in range(RECORDS):
            server.ask(number)
    finally:
        server.stop(signal.SIGINT)
    assert summaries(place) == ["loaded", *expected()]
