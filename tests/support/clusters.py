"""PostgreSQL servers that are killed, promoted, cut off and filled: of the tests' own.

On Unix sockets in a directory in memory, as a user that is not root. The first cluster
is made by initdb, each further one is a copy of it. A pair is a primary and a standby;
which is which changes with each failover.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psycopg
import pytest
from support.postgresql import needed_binaries
from support.server_home import server_home

READY_S = 60.0
_STANDBY = "standby"


class Node:
    """One server: a data directory and a port."""

    def __init__(self, home: Path, port: int, bin: Path) -> None:
        self.home, self.port, self.bin = home, port, bin
        self.data = home / f"data-{port}"
        self.log = home / f"log-{port}"
        self.options: list[str] = []
        self._prefix: tuple[str, ...] = ()
        if os.geteuid() == 0:
            nobody = pwd.getpwnam("nobody")
            self._prefix = (
                *("setpriv", f"--reuid={nobody.pw_uid}", f"--regid={nobody.pw_gid}"),
                "--clear-groups",
            )

    def inside(self, prefix: tuple[str, ...]) -> None:
        """What is started from now on stands in other namespaces."""
        self._prefix = (*prefix, *self._prefix)

    def run(self, *command: str) -> str:
        done = subprocess.run(
            [*self._prefix, str(self.bin / command[0]), *command[1:]],
            capture_output=True,
            text=True,
            timeout=120,
            cwd="/",
        )
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout

    def start(self) -> None:
        words = [
            f"-p {self.port} -k {self.home} -c listen_addresses='' -c shared_buffers=16MB"
            # Its segments lie in its own directory, and go with it.
            " -c dynamic_shared_memory_type=mmap",
            "-c max_wal_size=128MB -c wal_keep_size=64MB -c wal_receiver_status_interval=1s",
            *self.options,
        ]
        self.run(
            *("pg_ctl", "-D", str(self.data), "-o", " ".join(words)),
            *("-l", str(self.log), "-w", "-t", "60", "start"),
        )

    def stop(self, mode: str = "fast") -> None:
        self.run("pg_ctl", "-D", str(self.data), "-m", mode, "-w", "stop")

    def postmaster(self) -> int:
        return int((self.data / "postmaster.pid").read_text().split("\n")[0])

    def _frozen(self) -> list[int]:
        """The postmaster, stopped so that it starts nobody more, and all that it started."""
        first = self.postmaster()
        with suppress(ProcessLookupError):
            os.kill(first, signal.SIGSTOP)
        ends_s = time.monotonic() + READY_S
        while _state(first) not in ("T", "Z", ""):
            assert time.monotonic() < ends_s
            time.sleep(0.002)
        found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(first)], capture_output=True)
        return [first, *map(int, found.stdout.split())]

    def kill(self) -> None:
        """As a host that goes down: nobody says goodbye to anybody."""
        for pid in self._frozen():
            with_suppressed_kill(pid)
        (self.data / "postmaster.pid").unlink(missing_ok=True)
        (self.home / f".s.PGSQL.{self.port}").unlink(missing_ok=True)
        (self.home / f".s.PGSQL.{self.port}.lock").unlink(missing_ok=True)

    @contextmanager
    def hanging(self) -> Iterator[None]:
        """As on a disk that answers no more: connections stay, and nobody says anything.
        Whoever connects meanwhile is not even refused."""
        processes = self._frozen()
        for pid in processes:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in processes:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)

    def promote(self) -> None:
        self.run("pg_ctl", "-D", str(self.data), "-w", "promote")

    def is_running(self) -> bool:
        return (self.data / "postmaster.pid").exists()

    def sql(self, statement: str, database: str = "postgres") -> list[tuple[object, ...]]:
        with psycopg.connect(self.conninfo(database), autocommit=True) as connection:
            cursor = connection.execute(statement)
            return cursor.fetchall() if cursor.description else []

    def conninfo(self, database: str = "postgres") -> str:
        return f"host={self.home} port={self.port} dbname={database} user=postgres"

    def url(self, database: str = "postgres") -> str:
        return f"postgresql://postgres@/{database}?host={self.home}&port={self.port}"

    def await_sql(self, statement: str, wanted: object) -> None:
        ends_s = time.monotonic() + READY_S
        while self.sql(statement)[0][0] != wanted:
            assert time.monotonic() < ends_s, f"{statement}: not {wanted}"
            time.sleep(0.02)


def with_suppressed_kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    ends_s = time.monotonic() + READY_S
    while Path(f"/proc/{pid}").exists() and _state(pid) not in ("Z", ""):
        assert time.monotonic() < ends_s
        time.sleep(0.002)


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


class Pair:
    """A primary with a standby that gets every commit before it counts ("on"), or later."""

    def __init__(self, home: Path, template: Path, bin: Path, *, synchronous: bool) -> None:
        self.home, self.synchronous = home, synchronous
        self.primary, self.standby = (Node(home, port, bin) for port in (5432, 5433))
        shutil.copytree(template, self.primary.data, symlinks=True)
        own(home)
        self.primary.start()
        self.attach_standby()

    def url(self, database: str = "postgres") -> str:
        return (
            f"postgresql://postgres@/{database}"
            f"?host={self.home},{self.home}&port=5432,5433&target_session_attrs=read-write"
        )

    def attach_standby(self) -> None:
        """A new copy of the primary, which follows it from now on."""
        primary, standby = self.primary, self.standby
        shutil.rmtree(standby.data, ignore_errors=True)
        standby.run(
            *("pg_basebackup", "-D", str(standby.data), "-R", "-X", "stream", "--no-sync"),
            *("-c", "fast", "-d", f"{primary.conninfo()} application_name={_STANDBY}"),
        )
        # One that is promoted waits for nobody until it has a standby of its own.
        with (standby.data / "postgresql.auto.conf").open("a") as file:
            file.write("synchronous_standby_names = ''\n")
        standby.start()
        primary.await_sql("SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'", 1)
        if self.synchronous:
            primary.sql(f"ALTER SYSTEM SET synchronous_standby_names = '{_STANDBY}'")
            primary.sql("SELECT pg_reload_conf()")
            primary.await_sql(
                "SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'", 1
            )
            # Commits wait from when the checkpointer has read the setting, and not before.
            primary.sql("CHECKPOINT")

    def fail_over(self) -> None:
        """The primary goes down; the standby takes its place."""
        self.primary.kill()
        self.standby.promote()
        self.primary, self.standby = self.standby, self.primary

    def close(self) -> None:
        for node in (self.primary, self.standby):
            if node.is_running():
                node.kill()


class Trio:
    """A primary and two standbys, of which one has every commit before it counts: as a
    cluster manager keeps it, who promotes the one that has more. The other follows."""

    def __init__(self, home: Path, template: Path, bin: Path) -> None:
        self.home = home
        self.primary, *self.standbys = (Node(home, port, bin) for port in (5432, 5433, 5434))
        self._names = {node: f"node{node.port}" for node in (self.primary, *self.standbys)}
        ports = ",".join(str(node.port) for node in self._names)
        self._hosts = f"host={','.join([str(home)] * 3)} port={ports}"
        shutil.copytree(template, self.primary.data, symlinks=True)
        own(home)
        self.primary.options += ["-c wal_retrieve_retry_interval=100ms"]
        self.primary.start()
        for standby in self.standbys:
            self.attach(standby)
        quorum = f"ANY 1 ({', '.join(self._names.values())})"
        for node in self._names:  # each has it, once it is promoted
            with (node.data / "postgresql.auto.conf").open("a") as file:
                file.write(f"synchronous_standby_names = '{quorum}'\n")
            node.sql("SELECT pg_reload_conf()")
            node.await_sql("SHOW synchronous_standby_names", quorum)
            node.sql("CHECKPOINT")  # see `Pair.attach_standby`

    def url(self) -> str:
        hosts, ports = (part.partition("=")[2] for part in self._hosts.split())
        return f"postgresql://postgres@/postgres?host={hosts}&port={ports}"

    def attach(self, standby: Node) -> None:
        """A new copy of the primary, which follows whoever takes writes."""
        shutil.rmtree(standby.data, ignore_errors=True)
        standby.run(
            *("pg_basebackup", "-D", str(standby.data), "-X", "stream", "--no-sync"),
            *("-c", "fast", "-d", self.primary.conninfo()),
        )
        (standby.data / "standby.signal").touch()
        with (standby.data / "postgresql.auto.conf").open("a") as file:
            file.write(
                f"primary_conninfo = '{self._hosts} user=postgres"
                f" target_session_attrs=read-write application_name={self._names[standby]}'\n"
            )
        own(standby.data)
        standby.options = ["-c wal_retrieve_retry_interval=100ms"]
        standby.start()
        self.primary.await_sql(
            "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'"
            f" AND application_name = '{self._names[standby]}'",
            1,
        )

    def fail_over(self) -> None:
        """The primary goes down; the standby that has more takes its place."""
        self.primary.kill()
        for standby in self.standbys:  # it has taken in what had come, and gets no more
            standby.await_sql("SELECT count(*) FROM pg_stat_wal_receiver", 0)

        def received(node: Node) -> int:
            (row,) = node.sql("SELECT pg_last_wal_receive_lsn() - '0/0'")
            return int(str(row[0]))

        promoted, other = sorted(self.standbys, key=received, reverse=True)
        promoted.promote()
        self.standbys = [other, self.primary]
        self.primary = promoted

    def close(self) -> None:
        for node in self._names:
            if node.is_running():
                node.kill()


@pytest.fixture(scope="session")
def template():
    """A fresh cluster's data directory, to be copied."""
    bin = needed_binaries()
    with home() as directory:
        node = Node(directory, 5432, bin)
        node.run(
            *("initdb", "-D", str(node.data), "-U", "postgres", "-A", "trust"),
            *("--no-sync", "--locale=C", "-E", "UTF8"),
        )
        yield node.data


@contextmanager
def home() -> Iterator[Path]:
    """A directory for servers, whose user owns it."""
    with server_home() as directory:
        own(directory)
        yield directory


@contextmanager
def single(template: Path) -> Iterator[Node]:
    """A server without a standby."""
    with home() as directory:
        node = Node(directory, 5432, needed_binaries())
        shutil.copytree(template, node.data, symlinks=True)
        own(directory)
        node.start()
        try:
            yield node
        finally:
            if node.is_running():
                node.kill()


@contextmanager
def pair(template: Path, *, synchronous: bool) -> Iterator[Pair]:
    with home() as directory:
        made = Pair(directory, template, needed_binaries(), synchronous=synchronous)
        try:
            yield made
        finally:
            made.close()


@contextmanager
def trio(template: Path) -> Iterator[Trio]:
    with home() as directory:
        made = Trio(directory, template, needed_binaries())
        try:
            yield made
        finally:
            made.close()


def own(directory: Path) -> None:
    """The server's user is the owner of all in it."""
    if os.geteuid() != 0:
        return
    nobody = pwd.getpwnam("nobody")
    for path in (directory, *directory.rglob("*")):
        os.lchown(path, nobody.pw_uid, nobody.pw_gid)


class Pooler:
    """pgbouncer in transaction mode before a node."""

    def __init__(self, node: Node, program: str, size: int = 4) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="outboxd-pooler-"))
        own(self.directory)
        config = self.directory / "pgbouncer.ini"
        config.write_text(
            f"[databases]\n* = host={node.home} port={node.port} user=postgres\n"
            f"[pgbouncer]\nunix_socket_dir = {self.directory}\nlisten_port = 6432\n"
            "auth_type = any\npool_mode = transaction\n"
            f"default_pool_size = {size}\nignore_startup_parameters = extra_float_digits\n"
            f"logfile = {self.directory}/log\n"
        )
        own(self.directory)
        user = {"user": "nobody"} if os.geteuid() == 0 else {}
        self._process = subprocess.Popen(
            [program, "-q", str(config)], stdin=subprocess.DEVNULL, cwd="/", **user
        )
        ends_s = time.monotonic() + READY_S
        while not (self.directory / ".s.PGSQL.6432").exists():
            assert time.monotonic() < ends_s, (self.directory / "log").read_text()
            time.sleep(0.02)

    def url(self, database: str) -> str:
        return f"postgresql://postgres@/{database}?host={self.directory}&port=6432"

    def close(self) -> None:
        self._process.kill()
        self._process.wait(READY_S)
        shutil.rmtree(self.directory)
