"""The units, as systemd's own tools judge them."""

from __future__ import annotations

import os
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
from support.waiting import PATIENCE_S

import outboxd.config.load as configuration
from outboxd import errors

UNITS = Path(__file__).parents[2] / "systemd"
NAMES = ("outboxd.service", "outboxd.socket", "outboxd@.service", "outboxd@.socket")


def settings(name: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in (UNITS / name).read_text().splitlines():
        key, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            found.setdefault(key, []).append(value)
    return found


def run(*command: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(each) for each in command],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )


@pytest.mark.parametrize("name", NAMES)
def test_systemd_has_nothing_to_say_to_the_unit(host, need, name):
    analyze = need("systemd-analyze", "systemd")
    result = run(analyze, "verify", f"--root={host}", host / "etc/systemd/system" / name)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


@pytest.mark.parametrize("name", ["outboxd.service", "outboxd@.service"])
def test_the_service_is_exposed_by_less_than_one_and_a_half(host, need, name):
    analyze = need("systemd-analyze", "systemd")
    unit = host / "etc/systemd/system" / name
    result = run(analyze, "security", "--offline=true", "--no-pager", "--threshold=14", unit)
    assert result.returncode == 0, result.stdout


def missing_limits(service: dict[str, list[str]]) -> list[str]:
    """Each limit that the unit does not set, or not so that it protects the host."""

    def mebibytes(key: str) -> int:
        value = service.get(key, ["infinity"])[-1]
        return int(value.removesuffix("M")) if value.endswith("M") else 1 << 30

    # What the agent stays under when it is attacked has room below where it is slowed.
    found = ["MemoryHigh"] * (not 256 < mebibytes("MemoryHigh") < 1024)
    found += ["MemoryMax"] * (not mebibytes("MemoryHigh") < mebibytes("MemoryMax") < 1024)
    for key, wanted in (
        ("ProcSubset", "pid"),
        ("ProtectProc", "invisible"),
        ("SocketBindDeny", "any"),
    ):
        found += [key] * (service.get(key) != [wanted])
    found += ["SocketBindAllow"] * any(
        not allowed.startswith("tcp:") for allowed in service.get("SocketBindAllow", ["any"])
    )
    return found + [key for key in ("TasksMax", "LimitNOFILE", "LimitCORE") if key not in service]


@pytest.mark.parametrize("name", ["outboxd.service", "outboxd@.service"])
def test_memory_tasks_descriptors_and_ports_have_a_limit(name):
    assert missing_limits(settings(name)) == []


@pytest.mark.parametrize(
    "limit",
    [
        *("MemoryHigh", "MemoryMax", "ProcSubset", "ProtectProc", "SocketBindDeny"),
        *("SocketBindAllow", "TasksMax", "LimitNOFILE", "LimitCORE"),
    ],
)
def test_control_a_unit_without_one_of_the_limits_is_seen(limit):
    service = settings("outboxd.service")
    del service[limit]
    assert limit in missing_limits(service)


def test_control_a_limit_that_limits_nothing_is_seen():
    nothing = {
        "MemoryHigh": ["infinity"],
        "MemoryMax": ["64G"],
        "ProcSubset": ["all"],
        "SocketBindDeny": ["tcp:1-1023"],
        "SocketBindAllow": ["any"],
    }
    assert missing_limits({**settings("outboxd.service"), **nothing}) == [*nothing]


def test_control_a_unit_without_its_protection_is_exposed_by_more(need, tmp_path):
    """What `systemd-analyze security` judges: no limit of memory is among it."""
    analyze = need("systemd-analyze", "systemd")
    unit = tmp_path / "outboxd.service"
    text = (UNITS / "outboxd.service").read_text()
    unit.write_text(
        re.sub("^(ProcSubset|ProtectProc|SystemCallFilter|Private.*)=.*", "", text, flags=re.M)
    )
    result = run(analyze, "security", "--offline=true", "--no-pager", "--threshold=14", unit)
    assert result.returncode != 0, result.stdout


def test_only_what_starting_again_cannot_help_is_left_stopped():
    prevented = settings("outboxd.service")["RestartPreventExitStatus"][0].split()
    assert {int(code) for code in prevented} == {
        errors.EX_USAGE,
        errors.EX_NOPERM,
        errors.EX_CONFIG,
    }
    closing = settings("outboxd.service")["ExecStopPost"][0]
    assert "|".join(prevented) + ")" in closing


def test_the_stop_leaves_time_to_drain():
    stop_s = float(settings("outboxd.service")["TimeoutStopSec"][0])
    drain_s = configuration.load(os.devnull).delivery.drain_timeout_s
    assert stop_s >= drain_s + 15


def test_restarts_after_failures_never_reach_the_limit_of_starts():
    service = settings("outboxd.service")
    interval_s = float(service["StartLimitIntervalSec"][0])
    assert interval_s / float(service["RestartSec"][0]) < float(service["StartLimitBurst"][0])


@pytest.mark.parametrize("kind", ["service", "socket"])
def test_the_template_differs_in_names_alone(kind):
    single = (UNITS / f"outboxd.{kind}").read_text()
    template = (UNITS / f"outboxd@.{kind}").read_text().replace("outboxd@ACCOUNT`", "outboxd`")
    template = re.sub(r" \(%i\)$", "", template[template.index("[Unit]") :], flags=re.M)
    for of_account, name in (
        ("/etc/outboxd/%i.toml", "/etc/outboxd/config.toml"),
        ("/etc/outboxd/%i.komodor-api-key", "/etc/outboxd/komodor-api-key"),
        ("/etc/outboxd/%i.outbox-password", "/etc/outboxd/outbox-password"),
        ("@%i", ""),
        ("-%i", ""),
    ):
        template = template.replace(of_account, name)
    assert template.replace("# The socket lies", "# The socket of outboxd.socket lies") == single


def test_paths_agree_between_units_configuration_and_spool(host):
    for name, file in (("outboxd", "config.toml"), ("outboxd-team-a", "team-a.toml")):
        written = tomllib.loads((host / "etc/outboxd" / file).read_text())
        assert written["intake"]["socket"] == f"/run/{name}/outboxd.sock"
        assert written["intake"]["spool"] == f"/var/spool/{name}"
        assert written["outbox"]["path"] == f"/var/lib/{name}/outbox.db"
        spool = (host / f"etc/tmpfiles.d/{name}.conf").read_text()
        assert f"/var/spool/{name}/new " in spool
        assert f"/run/{name} " in spool
    assert settings("outboxd.socket")["ListenStream"] == ["/run/outboxd/outboxd.sock"]
    assert settings("outboxd@.socket")["ListenStream"] == ["/run/outboxd-%i/outboxd.sock"]


@pytest.mark.parametrize("file", ["config.toml", "team-a.toml"])
def test_the_installed_configuration_is_one_that_the_agent_takes(host, file):
    loaded = configuration.load(str(host / "etc/outboxd" / file))
    assert loaded.source == str(host / "etc/outboxd" / file)


def test_installing_again_changes_no_configuration(tmp_path):
    from_before = tmp_path / "etc/outboxd/config.toml"
    from_before.parent.mkdir(parents=True)
    from_before.write_text("# mine\n")
    result = subprocess.run(
        [UNITS / "install.sh"], env={**os.environ, "DESTDIR": str(tmp_path)}, check=False
    )
    assert result.returncode == 0
    assert from_before.read_text() == "# mine\n"


@pytest.mark.parametrize("account", ["../etc", "a b", "-x", "a/b", "é"])
def test_an_account_with_an_odd_name_is_refused(tmp_path, account):
    result = subprocess.run(
        [UNITS / "install.sh", account],
        env={**os.environ, "DESTDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == errors.EX_USAGE
    assert "account" in result.stderr
    assert not (tmp_path / "etc").exists()
