"""A PostgreSQL server of the tests' own, on a Unix socket, as a user that is not root."""

from __future__ import annotations

import os
import pwd
import subprocess
import time
import uuid
from pathlib import Path
from urllib.parse import quote

import psycopg
import pytest
from support.waiting import PATIENCE_S


def binaries() -> Path | None:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return found[-1].parent if found else None


def needed_binaries() -> Path:
    """Skips where there are none, fails when all tests must run."""
    found = binaries()
    if found is None:
        reason = "PostgreSQL's server is not installed (Debian package postgresql)"
        if os.environ.get("OUTBOXD_TEST_ALL") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    return found


class Server:
    """One cluster; `stop` and `start` it at will."""

    def __init__(self, directory: Path, bin: Path) -> None:
        self.data, self.sockets, self.bin = directory / "data", directory, bin
        self.user = {"user": "nobody"} if os.geteuid() == 0 else {}
        if self.user:
            nobody = pwd.getpwnam("nobody")
            os.chown(directory, nobody.pw_uid, nobody.pw_gid)
        self.run("initdb", "-D", str(self.data), "-U", "postgres", "-A", "trust", "--no-sync")

    def run(self, *command: str) -> None:
        done = subprocess.run(
            [str(self.bin / command[0]), *command[1:]],
            capture_output=True, text=True, timeout=120, cwd="/", **self.user,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr

    def start(self, options: str = "") -> None:
        told = f"-k {self.sockets} -c listen_addresses= -c shared_buffers=16MB {options}"
        # Its segments lie in its own directory, and go with it.
        told += " -c dynamic_shared_memory_type=mmap"
        log = str(self.sockets / "log")
        self.run("pg_ctl", "-D", str(self.data), "-o", told, "-l", log, "-w", "start")

    def stop(self, mode: str = "fast") -> None:
        self.run("pg_ctl", "-D", str(self.data), "-m", mode, "-w", "stop")

    def url(self, database: str = "postgres") -> str:
        return f"host={self.sockets} dbname={database} user=postgres connect_timeout=60"

    def execute(self, statement: str, database: str = "postgres") -> None:
        with psycopg.connect(self.url(database), autocommit=True) as connection:
            connection.execute(statement)

    def shown(self, setting: str) -> str:
        with psycopg.connect(self.url(), autocommit=True) as connection:
            (value,) = connection.execute("SELECT current_setting(%s)", (setting,)).fetchone()
        return value

    def fresh_database(self) -> str:
        """The name of an empty database, for what knows no schema of one's own."""
        name = "d" + uuid.uuid4().hex
        self.execute(f"CREATE DATABASE {name}")
        return name

    def fresh_url(self) -> str:
        """As `fresh`, for a configuration."""
        name = self.fresh().rpartition("=")[2].strip("'")
        options = quote(f"-c search_path={name}")
        return f"postgresql://postgres@/postgres?host={self.sockets}&options={options}"

    def fresh(self) -> str:
        """The URL of an outbox without tables: a schema of its own, which is made in a
        fraction of a database's time."""
        name = "t" + uuid.uuid4().hex
        with psycopg.connect(self.url(), autocommit=True) as connection:
            connection.execute(f"CREATE SCHEMA {name}")
        return f"{self.url()} options='-c search_path={name}'"


class Bouncer:
    """pgbouncer before a server, in a pool mode."""

    def __init__(self, directory: Path, server: Server, mode: str) -> None:
        self._directory, self.port = directory, 6432
        (directory / "users").write_text('"postgres" ""\n')
        (directory / "ini").write_text(
            f"[databases]\n* = host={server.sockets} port=5432\n[pgbouncer]\n"
            f"unix_socket_dir = {directory}\nlisten_port = {self.port}\nauth_type = trust\n"
            f"auth_file = {directory}/users\npool_mode = {mode}\n"
            "ignore_startup_parameters = extra_float_digits\n"
            f"logfile = {directory}/log\n"
        )
        if server.user:
            for path in (directory, *directory.iterdir()):
                os.chown(path, os.stat(server.data).st_uid, os.stat(server.data).st_gid)
        self._process = subprocess.Popen(
            ["pgbouncer", str(directory / "ini")],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd="/", **server.user,
        )  # fmt: skip

    def url(self, database: str) -> str:
        return f"postgresql://postgres@/{database}?host={self._directory}&port={self.port}"

    def await_ready(self, database: str, patience_s: float = PATIENCE_S) -> None:
        end_s = time.monotonic() + patience_s
        while True:
            try:
                psycopg.connect(self.url(database)).close()
                return
            except psycopg.OperationalError:
                assert time.monotonic() < end_s, (self._directory / "log").read_text()
                time.sleep(0.05)

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(PATIENCE_S)
