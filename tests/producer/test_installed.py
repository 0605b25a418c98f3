"""The `outboxd` of a host: one file, which runs jobs and keeps events whatever else is broken."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from support.waiting import PATIENCE_S

from outboxd.producer.build import build

SYSTEM = "/usr/bin/python3"
# The system's Python of another release, in its place for a moment.
OTHERS = sorted(Path.home().glob(".pyenv/versions/3.[1-9][0-9]*/bin/python3.*[0-9]"))
PYTHONS = [Path(SYSTEM), *OTHERS]


def _works(python: Path) -> bool:
    probe = "import sys; sys.exit(sys.version_info < (3, 10))"
    return python.exists() and subprocess.run([python, "-c", probe], check=False).returncode == 0


@pytest.fixture
def installed(tmp_path):
    """`outboxd` as it is installed, with a full program that is broken."""
    if not _works(Path(SYSTEM)):
        pytest.skip(f"{SYSTEM} is missing or older than 3.10")
    target = tmp_path / "bin/outboxd"
    target.parent.mkdir()
    build(target, str(tmp_path / "no-such-environment"))
    return target


@pytest.fixture
def environment(place):
    return {"PATH": os.environ["PATH"], "OUTBOXD_CONFIG": place.config}


def run(*words, **options):
    return subprocess.run(
        words, capture_output=True, text=True, timeout=PATIENCE_S, check=False, **options
    )


def test_it_is_a_program_for_all_whatever_the_umask(installed, place):
    before = os.umask(0o077)
    try:
        build(installed, "/e")
    finally:
        os.umask(before)
    assert stat.S_IMODE(installed.stat().st_mode) == 0o755
    assert installed.read_bytes().startswith(b"#!/usr/bin/python3 -IS\n")
    assert [path.name for path in installed.parent.iterdir()] == ["outboxd"]


def test_the_same_source_makes_the_same_file(installed, tmp_path):
    build(tmp_path / "again", str(tmp_path / "no-such-environment"))
    assert (tmp_path / "again").read_bytes() == installed.read_bytes()


def test_emit_and_exec_run_in_it(installed, place, environment):
    emitted = run(installed, "emit", "t", "s", "--cluster", "c", env=environment)
    assert (emitted.returncode, emitted.stdout) == (0, "")
    done = run(installed, "exec", "--", "sh", "-c", "echo out; exit 3", env=environment)
    assert (done.returncode, done.stdout, done.stderr) == (3, "out\n", "")
    assert [event["summary"][:1] for event in place.spooled()] == ["s", "s"]


@pytest.mark.parametrize("python", PYTHONS, ids=lambda path: path.parts[-3] + "-" + path.name)
def test_it_runs_on_each_python_that_a_system_may_have(installed, place, environment, python):
    if not _works(python):
        pytest.skip(f"{python} is missing or older than 3.10")
    for words in (["emit", "t", "s"], ["exec", "--", "false"]):
        done = run(python, "-IS", installed, *words, env=environment)
        assert done.returncode == (words[0] == "exec"), done.stderr
    refused = run(python, "-IS", installed, "emit", "--json", "/dev/null", env=environment)
    assert refused.returncode == 65, refused.stderr
    with open(place.config, "a") as file:
        file.write("[defaults]\ndetails = { team = 'a' }\n")
    assert run(python, "-IS", installed, "emit", "t", "s", env=environment).returncode == 0
    assert len(place.spooled()) == 3


def _hostile(directory: Path) -> dict[str, dict[str, str]]:
    """Environments of Python in which no program of Python starts."""
    directory.mkdir()
    for name in ("re", "json", "os", "outboxd", "sitecustomize", "usercustomize"):
        (directory / f"{name}.py").write_text("import os; os._exit(9)\n")
    return {
        "PYTHONHOME": {"PYTHONHOME": "/nowhere"},
        "PYTHONPATH": {"PYTHONPATH": str(directory)},
        "PYTHONSTARTUP": {"PYTHONSTARTUP": str(directory / "re.py")},
        "PYTHONUSERBASE": {"PYTHONUSERBASE": str(directory)},
        "PYTHONWARNINGS": {"PYTHONWARNINGS": "error"},
        "PYTHONIOENCODING": {"PYTHONIOENCODING": "no-such-encoding"},
        "PYTHONPLATLIBDIR": {"PYTHONPLATLIBDIR": "nowhere"},
    }


HOSTILE = (
    *("PYTHONHOME", "PYTHONPATH", "PYTHONSTARTUP", "PYTHONUSERBASE", "PYTHONWARNINGS"),
    *("PYTHONIOENCODING", "PYTHONPLATLIBDIR"),
)


@pytest.mark.parametrize("kind", HOSTILE)
def test_no_environment_of_python_keeps_a_job_from_running(
    installed, place, environment, tmp_path, kind
):
    hostile = {**environment, **_hostile(tmp_path / "hostile")[kind]}
    done = run(installed, "exec", "--", "env", "-0", env=hostile, cwd=tmp_path / "hostile")
    assert done.returncode == 0, done.stderr
    seen = dict(each.split("=", 1) for each in done.stdout.split("\0") if each)
    assert seen == hostile  # the job's own environment, all of it
    assert run(installed, "emit", "t", "s", env=hostile, cwd=tmp_path / "hostile").returncode == 0
    assert len(place.spooled()) == 1


def test_variables_that_are_no_names_reach_the_job(installed, environment):
    odd = {"BASH_FUNC_f%%": "() { :; }", "a.b": "1", "a-b": "2"}
    done = run(installed, "exec", "--", "env", "-0", env={**environment, **odd})
    seen = dict(each.split("=", 1) for each in done.stdout.split("\0") if each)
    assert seen == {**environment, **odd}


def test_every_other_command_is_the_full_programs(installed, environment, tmp_path):
    build(installed, sys.prefix)
    done = run(installed, "scope", "--cluster", "A", "--json", env=environment)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[0])["cluster"] == "A"
    helped = run(installed, "exec", "--help", env={**environment, "PYTHONHOME": "/nowhere"})
    assert (helped.returncode, helped.stderr) == (0, "")
    assert "outboxd exec" in helped.stdout
    assert run(installed, "nonsense", env=environment).returncode == 64
    assert run(installed, env=environment).returncode == 64


def test_a_full_program_that_is_gone_says_what_to_do(installed, environment):
    done = run(installed, "status", env=environment)
    assert done.returncode == 69
    assert "cannot start" in done.stderr
    assert "install outboxd again" in done.stderr


def test_a_full_program_whose_python_finds_no_module_says_what_to_do(
    installed, environment, tmp_path
):
    """What an upgrade of the system leaves: the interpreter is another one."""
    broken = tmp_path / "environment"
    subprocess.run([SYSTEM, "-m", "venv", "--without-pip", broken], check=True, timeout=PATIENCE_S)
    build(installed, str(broken))
    done = run(installed, "status", env=environment)
    assert done.returncode == 69
    assert "No module named 'outboxd'" in done.stderr
    assert "install outboxd again" in done.stderr
    assert done.stderr.count("\n") == 2
    # And one of which only a part is left.
    half = next(broken.glob("lib/python*/site-packages")) / "outboxd"
    shutil.copytree(Path(sys.modules["outboxd"].__file__).parent, half)
    done = run(installed, "monitoring", "rules", env=environment)
    assert done.returncode in (0, 69)
    done = run(installed, "status", env=environment)
    assert done.returncode == 69, done.stderr
    assert "install outboxd again" in done.stderr


def test_it_is_replaced_in_one_step(installed, place, environment, tmp_path, full):
    """Jobs started all the while, each counted by itself."""
    count, started, end = (tmp_path / name for name in ("count", "started", "end"))
    wanted = 60 if full else 15
    script = (
        f"while [ ! -e {end} ]; do echo x >> {started};"
        f" {installed} exec -- sh -c 'echo x >> {count}'; done"
    )
    with subprocess.Popen(["sh", "-ec", script], env=environment, stderr=subprocess.PIPE) as jobs:
        builds = 0
        while jobs.poll() is None and not end.exists():
            build(installed, f"/e{builds % 2}")
            builds += 1
            if builds >= 4 and count.exists() and count.stat().st_size >= 2 * wanted:
                end.touch()
        assert jobs.stderr.read() == b""
        assert jobs.wait(PATIENCE_S) == 0
    assert count.read_text() == started.read_text()


@pytest.mark.parametrize(
    ("end", "gateway"), [("exit 3", False), ("kill -TERM $$", False), ("exit 3", True)]
)
def test_a_long_jobs_event_is_kept_though_an_upgrade_took_the_library_away(
    installed, place, environment, need, full, tmp_path, end, gateway
):
    if not full and (end, gateway) != ("exit 3", False):
        pytest.skip("another end, another way: --full")
    unshare = need("unshare", "util-linux")
    library = run(SYSTEM, "-IS", "-c", "import os; print(os.path.dirname(os.__file__))").stdout
    (tmp_path / "empty").mkdir()
    # Until its parent has loaded what it needs, and sleeps again.
    job = f"""
        until grep -q _json /proc/$PPID/maps; do sleep 0.05; done
        asleep=0
        while [ $asleep -lt 10 ]; do
            asleep=$((asleep + 1))
            grep -q '^State:.S' /proc/$PPID/status || asleep=0
            sleep 0.05
        done
        mount --bind {tmp_path}/empty {library.strip()}
        echo token=hidden-word >&2
        {end}
    """
    if gateway:
        environment |= {"OUTBOXD_GATEWAY": "https://127.0.0.1:9", "OUTBOXD_TOKEN": "x" * 40}
    words = (installed, "exec", "--", "sh", "-c", job)
    done = run(unshare, "--user", "--map-root-user", "--mount", *words, env=environment)
    assert done.returncode == (3 if end == "exit 3" else 128 + 15), done.stderr
    (event,) = place.spooled()
    assert "hidden-word" not in json.dumps(event), "it is masked as ever"
    assert event["details"]["stderr"].startswith("token=")
