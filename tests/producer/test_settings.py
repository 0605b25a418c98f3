"""What the producers' side reads of a configuration, right, wrong or out of its reach."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from support.waiting import PATIENCE_S

from outboxd import locations
from outboxd.producer import settings
from outboxd.producer.plain_toml import read as read_plain

RIGHT = '[intake]\nsocket = "/s.sock"\nspool = "/spool"\n'


@pytest.fixture(autouse=True)
def nothing_packaged(monkeypatch, tmp_path):
    """No configuration, spool or runtime directory of this machine."""
    monkeypatch.setattr(locations, "CONFIG_PATH", str(tmp_path / "etc/config.toml"))
    monkeypatch.setattr(locations, "PACKAGED_SPOOL", str(tmp_path / "packaged/spool"))
    monkeypatch.setattr(locations, "USERS_RUNTIME", str(tmp_path / "run"))


@pytest.fixture
def load(tmp_path):
    def load_text(text: str | bytes) -> settings.ProducerSettings:
        path = tmp_path / "config.toml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return settings.load(str(path), {"HOME": "/home/u"})

    return load_text


def test_a_right_configuration_gives_what_it_says_and_no_warning(load):
    found = load(RIGHT + 'event_bytes_max = "1KiB"\n[komodor]\nevent_type_max = 70\n')
    assert (found.socket, found.spool, found.warning) == ("/s.sock", "/spool", None)
    assert (found.event_bytes_max, found.event_type_max) == (1024, 70)


def test_paths_are_read_as_the_agent_reads_them(load, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/u")
    found = load('[intake]\nsocket = "a.sock"\nspool = "~/spool"\n')
    assert (found.socket, found.spool) == (f"{tmp_path}/a.sock", "/home/u/spool")


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ("[delivery]\nconcurency_max = 3\n", "concurency_max"),
        ("[delivry]\n", "delivry"),
        ("nonsense", "not TOML"),
        ("[defaults]\nclusters = [\n", "not TOML"),
        ("[outbox]\npath = 'a\n", "not TOML"),
        ('event_bytes_max = "lots"\n', "event_bytes_max"),
        ("event_bytes_max = 0\n", "event_bytes_max"),
        ("event_bytes_max = {}\n", "event_bytes_max"),
        ("spool = 5\n", "not TOML"),  # the key stands twice
        ('[komodor]\nevent_type_max = "x"\n', "event_type_max"),
        ('[http]\nlisten = "\xfc"\n', "UTF-8"),
        ("[[http]]\n[http]\n", "not TOML"),
        ("# " + "x" * 200_000, "larger"),
    ],
)
def test_a_slip_anywhere_is_one_warning_and_socket_and_spool_hold(load, wrong, told):
    found = load((RIGHT + wrong).encode("latin-1"))
    assert (found.socket, found.spool) == ("/s.sock", "/spool")
    assert found.warning is not None
    assert told in found.warning
    assert "config.toml" in found.warning


def test_a_setting_of_ours_that_is_wrong_gives_way_to_the_built_in(load):
    found = load('[intake]\nsocket = 5\nspool = "/spool"\n')
    assert found.socket == "/home/u/.local/state/outboxd/outboxd.sock"
    assert found.spool == "/spool"
    assert "socket = 5" in found.warning


@pytest.mark.parametrize("name", ['"""a\nb"""', '"\\u001b[2J"', '"\\u202e"', f'"{"a" * 60_000}"'])
def test_a_warning_shows_a_place_of_any_name_on_one_short_line(load, name):
    found = load(f"[intake]\nsocket = {name}\nspool = {name}\n[delivry]\n")
    assert found.warning.isprintable()
    assert len(found.warning) < 1500
    assert found.warning.endswith("see `outboxd check`")


def test_a_file_that_cannot_be_read_means_the_packaged_paths(tmp_path, monkeypatch):
    Path(locations.PACKAGED_SPOOL).mkdir(parents=True)
    for path in (str(tmp_path), str(tmp_path / "missing.toml")):
        found = settings.load(path, {"HOME": "/home/u"})
        assert found.socket == "/run/outboxd/outboxd.sock"
        assert found.spool == locations.PACKAGED_SPOOL
        assert path in found.warning


def test_and_those_of_ones_own_agent_where_nothing_is_packaged(tmp_path):
    found = settings.load(str(tmp_path / "missing.toml"), {"HOME": "/home/u"})
    assert found.spool == "/home/u/.local/state/outboxd/spool"
    assert "there is no such file" in found.warning


def test_a_pipe_in_its_place_stops_nobody(tmp_path):
    os.mkfifo(tmp_path / "config.toml")
    assert settings.load(str(tmp_path / "config.toml"), {"HOME": "/home/u"}).spool


def test_the_systems_file_that_does_not_say_means_the_packaged_agent(tmp_path):
    Path(locations.PACKAGED_SPOOL).mkdir(parents=True)
    config = Path(locations.CONFIG_PATH)
    config.parent.mkdir()
    config.write_text("")
    found = settings.load(None, {"HOME": "/home/u"})
    assert (found.spool, found.warning) == (locations.PACKAGED_SPOOL, None)


def test_without_any_file_it_is_ones_own_agent():
    found = settings.load(None, {"HOME": "/home/u", "XDG_RUNTIME_DIR": "/run/user/1"})
    assert found.socket == "/run/user/1/outboxd/outboxd.sock"
    assert found.spool == "/home/u/.local/state/outboxd/spool"
    assert found.warning is None


def test_cron_without_a_session_finds_the_socket_of_the_login(tmp_path):
    directory = Path(locations.USERS_RUNTIME) / str(os.getuid()) / "outboxd"
    directory.mkdir(parents=True)
    socket = directory / "outboxd.sock"
    socket.touch()
    assert settings.load(None, {"HOME": "/home/u"}).socket == str(socket)


def test_a_login_finds_the_socket_of_an_agent_that_cron_started(tmp_path):
    (tmp_path / "state/outboxd").mkdir(parents=True)
    socket = tmp_path / "state/outboxd/outboxd.sock"
    socket.touch()
    environ = {
        "HOME": "/home/u",
        "XDG_STATE_HOME": str(tmp_path / "state"),
        "XDG_RUNTIME_DIR": "/run/user/1",
    }
    assert settings.load(None, environ).socket == str(socket)


def test_the_directories_of_the_service_that_runs_a_job_are_not_outboxds():
    environ = {"HOME": "/home/u", "STATE_DIRECTORY": "/s", "RUNTIME_DIRECTORY": "/r"}
    found = settings.load(None, environ)
    assert found.socket == "/home/u/.local/state/outboxd/outboxd.sock"
    assert found.spool == "/home/u/.local/state/outboxd/spool"


def test_a_plain_configuration_needs_no_toml_library(tmp_path):
    path = tmp_path / "config.toml"
    path.write_text('[intake]\nsocket = "/run/x.sock" # why\n[defaults]\nclusters = ["a", "b",]\n')
    code = (
        "import sys; from outboxd.producer import settings\n"
        "from outboxd.event import komodor as event\n"
        f"assert settings.load({str(path)!r}).socket == '/run/x.sock'\n"
        "event.parse(event.build('t', 's', details={'a': 'b', 'n': 1}, occurred_at=5))\n"
        "heavy = {'re', 'json', 'typing', 'tomllib', 'urllib.parse', 'dataclasses', 'inspect',\n"
        "         'collections', 'functools', 'enum', 'datetime', 'difflib'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    # -S: what this environment's own start-up files import is none of ours.
    source = str(Path(locations.__file__).parents[1])
    result = subprocess.run(
        [sys.executable, "-S", "-c", code],
        env={"PYTHONPATH": source},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert (result.stdout, result.stderr) == ("[]\n", "")


@pytest.mark.parametrize(
    "text",
    [
        "", "a = 1", "[a]\n[b]\n", '[a]\nb = "c"', "[ a ] # x", 'a = ["b", "c",] # d', "a = []",
        "a = true#", 'a="#"', "a-b_1 = 0", "\t[a]\t\r\n\tb\t=\t1\t\r\n", '[a]\nb = "é 日"',
    ],
)  # fmt: skip
def test_plain_toml_is_read_as_tomllib_reads_it(text):
    assert read_plain(text) == (tomllib.loads(text), True)


@pytest.mark.parametrize(
    "text",
    [
        "a", "a = ", "a = 01", "a = +1", "a = 1.5", "a = 1_0", "a = 0x1", "a = 'x'", 'a = "\\n"',
        'a = """x"""', 'a = "x" y', "a.b = 1", '"a" = 1', "[a.b]", "[[a]]", "[a", "[a]]", "[a] b",
        "a = 1\na = 2", "[a]\n[a]", "a = 1\n[a]", "a = [1]", 'a = ["b" "c"]', "a = [,]", "a = {}",
        'a = ["b"', "a = tru", "a = ١", "a = \x7f", "# \x00", 'a = "x\ty"\x0c', "é = 1",
        "a = 1\rb = 2",
        "a = 2026-11-21", "= 1", "a\u00a0= 1", 'a = ""x"', "a = 99999999999999999",
    ],
)  # fmt: skip
def test_what_is_not_plain_is_left_to_tomllib(text):
    assert read_plain(text)[1] is False
