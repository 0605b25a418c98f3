"""Metrics as a file for node_exporter."""

from __future__ import annotations

import os
import stat
import subprocess
import time

import pytest

from outboxd.errors import OutboxdError
from outboxd.observe import textfile
from outboxd.observe.metrics import Metrics

NOW_S = time.time()


def write_textfile(path: str, metrics: Metrics, outbox: str = "/var/lib/a/outbox.db") -> None:
    textfile.write_textfile(path, metrics, outbox, NOW_S)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "team-a.prom"


def test_promtool_has_nothing_to_say_to_the_file(path, need):
    promtool = need("promtool", "prometheus")
    write_textfile(str(path), Metrics())
    result = subprocess.run(
        [promtool, "check", "metrics"],
        input=path.read_bytes(),
        capture_output=True,
        check=False,
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, b"", b"")


def test_everybody_may_read_it_whatever_the_umask(path):
    before = os.umask(0o077)
    try:
        write_textfile(str(path), Metrics())
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_a_reader_sees_the_old_or_the_new_and_nothing_beside_it(path):
    metrics = Metrics()
    write_textfile(str(path), metrics)
    with open(path, "rb") as old:
        metrics.delivered(42)
        write_textfile(str(path), metrics)
        assert b"outboxd_events_delivered_total{" in old.read()
    assert b"42.0" in path.read_bytes()
    assert os.listdir(path.parent) == [path.name]


def test_what_a_killed_run_left_is_in_nobodys_way(path):
    (path.parent / f".{path.name}.new").write_text("half")
    write_textfile(str(path), Metrics())
    assert os.listdir(path.parent) == [path.name]


def test_series_of_several_agents_differ_and_none_are_the_exporters_own(path):
    write_textfile(str(path), Metrics())
    lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    assert all('agent="team-a"' in line for line in lines)
    assert not any(line.startswith(("process_", "python_")) for line in lines)


def test_files_of_one_name_in_two_directories_have_no_series_in_common(path):
    def series(outbox: str) -> set[str]:
        write_textfile(str(path), Metrics(), outbox)
        lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
        path.unlink()
        return {line.rpartition(" ")[0] for line in lines}

    assert not series("/var/lib/a/outbox.db") & series("/var/lib/b/outbox.db")


def test_two_agents_that_write_one_file_are_told_until_one_has_gone(path):
    write_textfile(str(path), Metrics())
    with pytest.raises(OutboxdError, match=r"another agent: .*/var/lib/a/outbox\.db"):
        write_textfile(str(path), Metrics(), "/var/lib/b/outbox.db")
    write_textfile(str(path), Metrics())
    old_s = NOW_S - 600
    os.utime(path, (old_s, old_s))
    write_textfile(str(path), Metrics(), "/var/lib/b/outbox.db")


def test_a_symlink_laid_in_its_way_is_not_followed(path):
    target = path.parent / "target"
    target.write_text("precious")
    (path.parent / f".{path.name}.new").symlink_to(target)
    write_textfile(str(path), Metrics())
    assert target.read_text() == "precious"


def test_a_directory_that_is_not_there_is_named(tmp_path):
    with pytest.raises(OutboxdError, match=r"nowhere/x\.prom") as raised:
        write_textfile(str(tmp_path / "nowhere" / "x.prom"), Metrics())
    assert raised.value.hint


def test_a_failed_write_leaves_no_crumbs(tmp_path):
    target = tmp_path / "x.prom"
    target.mkdir()
    with pytest.raises(OutboxdError):
        write_textfile(str(target), Metrics())
    assert os.listdir(tmp_path) == ["x.prom"]
