"""The configuration: where it is looked for, what it may say, and how a refusal helps."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path

import pytest

import outboxd.config.load as config_module
from outboxd import locations
from outboxd.config.addresses import split_listen
from outboxd.config.api_key import read_api_key
from outboxd.config.keys import KEYS, SECTIONS
from outboxd.config.load import find, load, load_client
from outboxd.errors import ConfigError
from outboxd.locations import runtime_dir, state_dir
from outboxd.producer import settings as producer_settings
from outboxd.producer.settings import KNOWN

EXAMPLE = Path(__file__).parents[2] / "config.example.toml"
PACKAGED = {
    ("intake", "socket"): "/run/outboxd/outboxd.sock",
    ("intake", "spool"): "/var/spool/outboxd",
    ("outbox", "path"): "/var/lib/outboxd/outbox.db",
}


@pytest.fixture
def write(tmp_path):
    def write_config(text: str | bytes) -> str:
        path = tmp_path / "config.toml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return str(path)

    return write_config


def refused(path: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load(path)
    assert path in str(caught.value)
    assert str(caught.value).isprintable()
    return caught.value


def test_built_in_defaults_are_the_documented_ones(write):
    config = load(write(""))
    assert config.komodor.endpoint == "https://api.komodor.com/mgmt/v1/events"
    assert config.komodor.event_type_max == 60
    assert (config.komodor.connect_timeout_s, config.komodor.request_timeout_s) == (10, 30)
    assert config.komodor.retry_after_max_s == 3600
    assert config.komodor.allow_plain_http is False
    assert (config.intake.socket_mode, config.intake.socket_mode_bits) == ("0660", 0o660)
    assert config.intake.event_bytes_max == 256 * 1024
    assert (config.outbox.events_max, config.outbox.disk_free_min) == (1_000_000, 64 << 20)
    assert (config.outbox.retain_delivered_s, config.outbox.ttl_s) == (7 * 86_400, 0)
    assert (config.dedup.key_window_s, config.dedup.repeat_window_s) == (7 * 86_400, 0)
    delivery = config.delivery
    assert (delivery.concurrency_max, delivery.rate_max, delivery.attempts_max) == (64, 0, 20)
    assert (delivery.backoff_initial_s, delivery.backoff_max_s) == (1, 300)
    assert (delivery.hold_probe_s, delivery.late_after_s, delivery.drain_timeout_s) == (300, 60, 10)
    assert (delivery.stamp, delivery.order, delivery.fresh_share) == ("late", "mixed", 0.25)
    assert delivery.report_outage is True
    assert (config.http.listen, config.metrics.textfile) == ("", "")
    assert (config.log.level, config.log.format) == ("info", "auto")


def test_the_example_names_every_key_and_no_other():
    with EXAMPLE.open("rb") as file:
        tables = tomllib.load(file)
    named = {(section, name) for section, table in tables.items() for name in table}
    assert named == {(key.section, key.name) for key in KEYS}


def test_the_example_loads_to_the_built_in_defaults_but_for_the_packaged_paths(write):
    example, built_in = load(str(EXAMPLE)), load(write(""))
    for key in KEYS:
        values = [
            getattr(getattr(each, key.section), key.attribute) for each in (example, built_in)
        ]
        if (key.section, key.name) in PACKAGED:
            values[1] = PACKAGED[key.section, key.name]
        assert values[0] == values[1], key.label
        assert type(values[0]) is type(values[1]), key.label


def test_the_example_marks_the_packaged_paths_and_explains_every_key():
    lines = EXAMPLE.read_text().splitlines()
    for key in KEYS:
        at = next(i for i, line in enumerate(lines) if line.startswith(f"{key.name} ="))
        block = lines[:at]
        while block and block[-1]:
            if not block[-1].startswith("#") and " = " not in block[-1]:
                break
            block.pop()
        comment = [line for line in lines[len(block) : at] if line.startswith("#")]
        # Neighbours such as clusters, namespaces and services share one explanation.
        assert comment, f"{key.label} has no comment"
        marked = any("packaged" in line for line in comment)
        assert marked is ((key.section, key.name) in PACKAGED), key.label


def test_producers_know_the_name_of_every_setting_and_no_other():
    """A name missing here would be called unknown by each `emit`."""
    known = {section: set(names.split()) for section, names in KNOWN.items()}
    # A webhook's table has a name and parts of its own.
    assert known == {section: set(keys) for section, keys in SECTIONS.items()} | {"webhooks": set()}


def test_a_webhooks_secret_is_a_neighbour_of_the_file_and_its_name_may_begin_with_a_digit(
    write, tmp_path, monkeypatch
):
    path = write('[webhooks.1password]\nsignature_secret_file = "secret"\n')
    monkeypatch.chdir("/")
    found = load(path).webhooks
    assert found == {"1password": {"signature_secret_file": str(tmp_path / "secret")}}


def test_a_producer_on_a_gateway_is_warned_of_no_webhook(write):
    path = write('[webhooks.mine]\nevent_type = "a"\nsummary = "b"\n')
    load(path)
    assert not producer_settings.load(path).warning


def test_every_key_of_the_table_is_an_attribute_with_a_type():
    config = load_client(None, {"HOME": "/home/someone"})
    for section, keys in SECTIONS.items():
        typed = getattr(type(getattr(config, section)), "__annotations__", {})
        if section != "defaults":
            assert set(typed) == {key.attribute for key in keys.values()}, section


def test_every_value_reaches_its_attribute(write):
    path = write(
        """
        [komodor]
        endpoint = "http://127.0.0.1:8099/mgmt/v1/events"
        event_type_max = 30
        proxy = "http://user:secret@proxy:3128"
        connect_timeout = "80ms"
        [intake]
        socket = "/run/x.sock"
        socket_mode = "660"
        event_bytes_max = "1MiB"
        [defaults]
        clusters = ["a", "b"]
        details = { team = "shop", tier = 1, canary = false }
        [outbox]
        disk_free_min = 1024
        ttl = "24h"
        [delivery]
        fresh_share = 1
        order = "fifo"
        report_outage = false
        [http]
        listen = "[::1]:8098"
        [log]
        level = "debug"
        """
    )
    config = load(path)
    assert config.source == path
    assert config.komodor.endpoint == "http://127.0.0.1:8099/mgmt/v1/events"
    assert (config.komodor.event_type_max, config.komodor.connect_timeout_s) == (30, 0.08)
    assert config.komodor.proxy == "http://user:secret@proxy:3128"
    assert (config.intake.socket, config.intake.socket_mode_bits) == ("/run/x.sock", 0o660)
    assert config.intake.event_bytes_max == 1 << 20
    assert (config.defaults.clusters, config.defaults.namespaces) == (["a", "b"], [])
    assert config.defaults.details == {"team": "shop", "tier": 1, "canary": False}
    assert (config.outbox.disk_free_min, config.outbox.ttl_s) == (1024, 86_400)
    assert (config.delivery.fresh_share, config.delivery.order) == (1.0, "fifo")
    assert config.delivery.report_outage is False
    assert config.http.listen == "[::1]:8098"
    assert config.log.level == "debug"


# ----- where it is looked for


def test_the_named_file_comes_first_then_the_environment_then_the_systems(tmp_path, monkeypatch):
    system = tmp_path / "system.toml"
    monkeypatch.setattr(config_module, "CONFIG_PATH", str(system))
    environ = {"OUTBOXD_CONFIG": "/from/environment"}
    assert find("/named", environ) == "/named"
    assert find(None, environ) == "/from/environment"
    assert find(None, {"OUTBOXD_CONFIG": ""}) is None
    assert load(None, {"HOME": "/home/x"}).source is None
    system.write_text('[log]\nlevel = "debug"')
    assert find(None, {}) == str(system)
    assert load(None, {}).log.level == "debug"


def test_a_named_file_that_is_not_there_is_an_error(tmp_path):
    missing = str(tmp_path / "none.toml")
    assert "no such configuration file" in refused(missing).message
    with pytest.raises(ConfigError, match="no such configuration file"):
        load(None, {"OUTBOXD_CONFIG": missing})
    assert "Is a directory" in refused(str(tmp_path)).message


def test_the_directories_are_systemds_else_the_users(tmp_path, monkeypatch):
    service = {"STATE_DIRECTORY": "/var/lib/outboxd:/x", "RUNTIME_DIRECTORY": "/run/outboxd"}
    assert (state_dir(service), runtime_dir(service)) == ("/var/lib/outboxd", "/run/outboxd")
    user = {"HOME": "/home/u", "XDG_RUNTIME_DIR": "/run/user/1"}
    assert state_dir(user) == "/home/u/.local/state/outboxd"
    assert runtime_dir(user) == "/run/user/1/outboxd"
    monkeypatch.setattr(locations, "USERS_RUNTIME", str(tmp_path))
    bare = {"HOME": "/home/u", "XDG_STATE_HOME": "/state"}
    assert state_dir(bare) == runtime_dir(bare) == "/state/outboxd"
    assert state_dir({}).endswith("/.local/state/outboxd")
    (tmp_path / str(os.getuid())).mkdir()  # as logind makes it, for cron's jobs to find
    assert runtime_dir(bare) == f"{tmp_path}/{os.getuid()}/outboxd"


def test_the_default_paths_lie_in_those_directories():
    environ = {"STATE_DIRECTORY": "/s", "RUNTIME_DIRECTORY": "/r", "OUTBOXD_CONFIG": os.devnull}
    config = load_client(None, environ)
    assert config.intake.socket == "/r/outboxd.sock"
    assert (config.intake.spool, config.outbox.path) == ("/s/spool", "/s/outbox.db")


def test_relative_paths_start_at_the_files_directory(write, tmp_path, monkeypatch):
    path = write('[intake]\nspool = "drop"\n[outbox]\npath = "~/o.db"\n[metrics]\ntextfile = ""')
    monkeypatch.chdir("/")
    monkeypatch.setenv("HOME", "/home/u")
    config = load(path)
    assert config.intake.spool == str(tmp_path / "drop")
    assert config.outbox.path == "/home/u/o.db"
    assert config.metrics.textfile == ""


# ----- what is refused


def test_an_unknown_key_is_named_with_the_nearest(write):
    error = refused(write('[komodor]\nendpont = "x"'))
    assert "[komodor] endpont" in error.message
    assert '"endpoint"' in error.hint
    assert '"delivery"' in refused(write("[delivry]")).hint
    assert '"http"' in refused(write("htttp = 1")).hint
    assert refused(write("[komodor]\nzzzzzz = 1")).hint.startswith("known are endpoint")
    assert r"a\nb" in refused(write('[komodor]\n"a\\nb" = 1')).message


def test_a_key_under_the_wrong_section_is_told_where_it_belongs(write):
    assert refused(write("[delivery]\nevents_max = 5")).hint == "it belongs to [outbox]"


def test_a_section_that_is_a_value_is_refused(write):
    assert "section" in refused(write("delivery = 3")).message
    assert "section" in refused(write("[[delivery]]")).message


WRONG = {
    "[komodor] endpoint": [
        '""', '"api.komodor.com/x"', '"https://"', '"ftp://a/b"', '"https://a"', '"https:///x"',
        '"http://example.com/x"', '"http://10.0.0.1/x"', '"https://a:x/y"', '"https://a:99999/y"',
        '"https://u:p@a/x"', '"https://a/x#f"', '"https://a b/x"', '"https://ä/x"', '"https://[/x"',
        "5", "true", '"https://a/\\n"',
    ],
    "[komodor] event_type_max": ["0", "-1", '"60"', "60.0", "true", "10001", "9" * 30, "[]"],
    "[komodor] account": ['""', '"a b"', '"ä"', f'"{"x" * 41}"', "5"],
    "[komodor] proxy": ['"proxy:3128"', '"ftp://p"', '"http://"', "5"],
    "[komodor] ca_file": ['"missing.pem"', '"/"', "5"],
    "[komodor] client_cert": ['"missing.pem"'],
    "[komodor] client_key": ['"/dev/null"'],
    "[komodor] api_key_file": ['"."', '"/dev/null/x"', "{}"],
    "[komodor] connect_timeout": ["30", '"30"', '"0s"', '"-1s"', '"1 year"', "true", '""', "1.5"],
    "[komodor] allow_plain_http": ["1", '"true"', '"yes"'],
    "[intake] socket": ['""', "5", f'"/{"x" * 107}"', '"a\\u0000b"'],
    "[intake] socket_mode": ["660", '"999"', '"u+rw"', '"0o660"', '"77"', '"1777"', '"07777"'],
    "[intake] read_others": ["1", '"no"'],
    "[intake] socket_group": ['"no such group"', "5"],
    "[intake] spool": ['""', "[]"],
    "[intake] event_bytes_max": ['"1KB"', '"0B"', "0", "-1", '"1TiB"', "1.5", "true"],
    "[defaults] clusters": ['"a"', '[""]', "[1]", '[["a"]]', "{}"],
    "[defaults] details": ['"a"', "[]", "{ a = [] }", "{ a = 1.5 }", "{ a = { b = 1 } }"],
    "[outbox] path": ['""'],
    "[outbox] events_max": ["-1", "1.5", '"many"', "10000000000"],
    "[outbox] disk_free_min": ['"-1B"', '"64"'],
    "[outbox] ttl": ["0", '"36501d"', "2026-11-21T00:00:00Z"],
    "[dedup] key_window": ['"week"'],
    "[delivery] concurrency_max": ["-1", "5000", '"16"'],
    "[delivery] rate_max": ["0.5", "-1"],
    "[delivery] backoff_initial": ['"0s"', '"10m"'],
    "[delivery] stamp": ['"Late"', '""', "true", "[]"],
    "[delivery] order": ['"lifo"'],
    "[delivery] fresh_share": ["1.1", "-0.1", '"0.5"', "nan", "inf", "true", "9" * 400],
    "[delivery] report_outage": ["0"],
    "[http] listen": [
        '"8080"', '":8080"', '"localhost"', '"localhost:"', '"localhost:http"', '"::1:80"',
        '"a:65536"', '"a b:80"', '"[::1]"', "8080", '"unix:relative"',
    ],
    "[metrics] textfile": ["5"],
    "[log] level": ['"loud"', '"INFO"', "1"],
    "[log] format": ['"xml"'],
}  # fmt: skip


@pytest.mark.parametrize(
    ("label", "value"), [(label, value) for label, values in WRONG.items() for value in values]
)
def test_a_wrong_value_is_refused_with_key_value_and_what_is_allowed(write, label, value):
    section, name = label.split()
    error = refused(write(f"{section}\n{name} = {value}"))
    # The two backoffs are checked against each other.
    assert label in error.message or name == "backoff_initial"
    assert error.hint
    if value.strip('"').isalnum() and name != "backoff_initial":
        assert value.strip('"')[:30] in error.message


def test_the_page_has_a_socket_of_its_own(write, tmp_path):
    (tmp_path / "here").symlink_to(tmp_path)
    text = f'[intake]\nsocket = "s"\n[http]\nlisten = "unix:{tmp_path}/here/s"'
    assert "[intake] socket is there" in refused(write(text)).message


def test_the_table_of_wrong_values_has_every_kind_of_key():
    untested = {key.label for key in KEYS} - WRONG.keys()
    kinds = {(key.kind.convert.__qualname__, key.section) for key in KEYS if key.label in WRONG}
    for key in KEYS:
        if key.label in untested:
            assert any(kind == key.kind.convert.__qualname__ for kind, _ in kinds), key.label


def test_credentials_in_a_url_are_not_shown(write):
    error = refused(write('[komodor]\nproxy = "ftp://user:secret@proxy"'))
    assert "secret" not in str(error)
    error = refused(write('[komodor]\nendpoint = "https://user:secret@host/path"'))
    assert "secret" not in str(error)


@pytest.mark.parametrize(
    "endpoint",
    ["https://eu.komodor.com/mgmt/v1/events", "https://host:8443/x?y=1", "http://localhost:8099/x",
     "http://127.1.2.3/x", "http://[::1]:8099/x", "http://box.localhost/x", "https://[2001:db8::1]/x"],
)  # fmt: skip
def test_https_and_loopback_endpoints_are_taken(write, endpoint):
    assert load(write(f'[komodor]\nendpoint = "{endpoint}"')).komodor.endpoint == endpoint


def test_plain_http_to_others_is_taken_when_it_is_asked_for(write):
    text = '[komodor]\nendpoint = "http://gateway/x"\nallow_plain_http = true'
    assert load(write(text)).komodor.endpoint == "http://gateway/x"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a = [", "not TOML"),
        ("[log]\nlevel == 1", "line 2, column 8"),
        ("[log]\nlevel = 'info", "line 2"),
        ('[log]\nlevel = "info"\nlevel = "info"', "line 3"),
        ("[log]\n[log]", "line 2"),
        ("\ufeff[log]", "byte order mark"),
        (b"[log]\nlevel = '\xff'", "line 2"),
        ("a = " + "[" * 20_000, "nested too deep"),
        ("a = " + "9" * 5000, "not TOML"),
        ("a\x00 = 1", "not TOML"),
        (f"[{'x' * 9000}]\n[{'x' * 9000}]", "line 2, column 9002"),
        ("#" * 200_000, "larger than"),
    ],
)
def test_what_is_not_toml_is_refused_with_its_place(write, text, said):
    message = refused(write(text)).message
    assert said in message
    assert len(message) < 1000


def test_split_listen_takes_names_addresses_and_brackets():
    assert split_listen("localhost:80") == ("localhost", 80)
    assert split_listen("0.0.0.0:0") == ("0.0.0.0", 0)
    assert split_listen("[::1]:65535") == ("::1", 65_535)


# ----- the API key


def key_from(config, **environ):
    return read_api_key(config, environ).value


def test_the_key_comes_from_environment_file_and_credential_in_this_order(write, tmp_path):
    config = load(write(""))
    assert key_from(config) is None
    assert key_from(config, KOMODOR_API_KEY="") is None
    credentials = tmp_path / "credentials"
    credentials.mkdir()
    assert key_from(config, CREDENTIALS_DIRECTORY=str(credentials)) is None
    (credentials / "komodor-api-key").write_text("of-systemd\n")
    assert key_from(config, CREDENTIALS_DIRECTORY=str(credentials)) == "of-systemd"
    (tmp_path / "key").write_text("of-file\n")
    config = load(write('[komodor]\napi_key_file = "key"'))
    assert key_from(config, CREDENTIALS_DIRECTORY=str(credentials)) == "of-file"
    assert key_from(config, KOMODOR_API_KEY=" of-environment\n") == "of-environment"


@pytest.mark.parametrize(
    "content", [b"", b"\n", b"two words", b"a\nb", b"k\xff", b"k\x00", b"x" * 5000, b"  \t "]
)
def test_what_holds_no_key_is_told_without_showing_it_and_passed_over(write, tmp_path, content):
    (tmp_path / "key").write_bytes(content)
    config = load(write('[komodor]\napi_key_file = "key"'))
    found = read_api_key(config, {})
    assert found.value is None
    assert "api_key_file" in found.problem.message
    assert "two words" not in str(found.problem)
    found = read_api_key(config, {"KOMODOR_API_KEY": "two words"})
    assert [error.message.split()[0] for error in found.problems] == [
        "$KOMODOR_API_KEY",
        "[komodor]",
    ]
    credentials = tmp_path / "credentials"
    credentials.mkdir()
    (credentials / "komodor-api-key").write_text("of-systemd\n")
    found = read_api_key(config, {"CREDENTIALS_DIRECTORY": str(credentials)})
    assert (found.value, len(found.problems)) == ("of-systemd", 1)
    (credentials / "komodor-api-key").write_text("two\nlines\n")
    assert read_api_key(config, {"CREDENTIALS_DIRECTORY": str(credentials)}).value is None


def test_a_key_file_that_went_away_is_told(write, tmp_path):
    (tmp_path / "key").write_text("k")
    config = load(write('[komodor]\napi_key_file = "key"'))
    assert read_api_key(config, {}) == ("k", str(tmp_path / "key"), ())
    (tmp_path / "key").unlink()
    assert "No such file" in read_api_key(config, {}).problem.message
    os.mkfifo(tmp_path / "key")
    assert "no regular file" in read_api_key(config, {}).problem.message


# ----- the proxy's password


def test_the_proxy_may_stand_in_a_file_of_its_own(write, tmp_path):
    secret = "http://user:hunter2@proxy.example:3128"
    (tmp_path / "proxy").write_text(secret + "\n")
    path = write('[komodor]\nproxy_file = "proxy"\n')
    assert load(path).komodor.proxy == secret


@pytest.mark.parametrize(
    ("content", "more", "told"),
    [
        (None, "", "cannot be read"),
        ("", "", "there is no URL in it"),
        ("http://proxy:3128", 'proxy = "http://other:3128"\n', "proxy is given as well"),
        ("ftp://user:hunter2@proxy:21", "", "it is the URL of no proxy"),
        (b"\xff\xfe", "", "it is not UTF-8"),
    ],
)
def test_a_proxy_file_that_is_no_use_stops_the_start_and_shows_no_password(
    write, tmp_path, content, more, told
):
    if content is not None:
        data = content if isinstance(content, bytes) else content.encode()
        (tmp_path / "proxy").write_bytes(data)
    path = write(f'[komodor]\nproxy_file = "proxy"\n{more}')
    with pytest.raises(ConfigError) as raised:
        load(path)
    assert told in raised.value.message
    assert "hunter2" not in str(raised.value)
