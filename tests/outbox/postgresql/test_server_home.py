"""What a killed test run leaves behind is removed by the next one, with its server."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest
from support.postgresql import needed_binaries
from support.server_home import memory, server_home, sweep
from support.waiting import PATIENCE_S

RUN = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from support.postgresql import Server, needed_binaries
from support.server_home import server_home
with server_home(Path(sys.argv[2])) as directory:
    server = Server(directory, needed_binaries())
    server.start()
    print(directory, flush=True)
    time.sleep(3600)
"""


def test_a_killed_runs_directory_and_server_go_and_a_living_ones_stay(tmp_path, full):
    if not full:
        pytest.skip("starts a server of its own: --full")
    needed_binaries()
    tests = Path(__file__).parents[2]
    # A socket's path is short.
    within = memory() / f"outboxd-sweep-{os.getpid()}"
    within.mkdir()
    within.chmod(0o755)
    try:
        run = subprocess.Popen(
            [sys.executable, "-c", RUN, str(tests), str(within)], stdout=subprocess.PIPE, text=True
        )
        left = Path(run.stdout.readline().strip())
        url = f"host={left} dbname=postgres user=postgres"
        psycopg.connect(url).close()
        sweep(within)
        assert left.exists(), "its run lives"
        run.send_signal(signal.SIGKILL)
        run.wait(PATIENCE_S)
        run.stdout.close()
        with server_home(within) as living:
            assert not left.exists()
            with pytest.raises(psycopg.OperationalError):
                psycopg.connect(url)
            sweep(within)
            assert living.exists()
    finally:
        sweep(within)
        within.rmdir()
