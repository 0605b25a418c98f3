"""outboxd on a whole Debian, booted in a container, from the README's commands to its removal."""

from __future__ import annotations

import os
import re
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import container as containers
from support.container import PROJECT, Container

README = (PROJECT / "README.md").read_text()
SANDBOX = 'endpoint = "http://127.0.0.1:8099/mgmt/v1/events"'
LOAD = r"""
n=0
while [ ! -e /tmp/stop ]; do
    n=$((n+1)); echo $n >> /tmp/started.$1
    outboxd exec -- sh -c "echo $n >> /tmp/ran.$1" 2>> /tmp/told.$1 || echo "$n: $?" >> /tmp/failed
done
"""

pytestmark = pytest.mark.timeout(1500)


@pytest.fixture
def system(full: bool) -> Iterator[Container]:
    """A booted system with the project's copy in /root/outboxd, and two users."""
    if not full:
        pytest.skip("boots a whole system, which takes minutes: --full")
    why = containers.missing()
    if why is not None:
        if os.environ.get("OUTBOXD_TEST_ALL") == "1":
            pytest.fail(why)
        pytest.skip(why)
    with tempfile.TemporaryDirectory(prefix="outboxd-system-") as work:
        system = Container(Path(work), containers.wheels(Path(work)))
        system.boot()
        try:
            system.sh("useradd -m alice; useradd -m bob")
            yield system
        finally:
            system.power_off()


def commands() -> list[str]:
    """Those of the README, without their comments."""
    block = re.search(r"<!-- install -->\n```sh\n(.*?)```", README, re.DOTALL)
    assert block
    return [re.sub(r"\s+#.*", "", line) for line in block[1].splitlines()]


def follow_the_readme(system: Container, umask: str) -> None:
    """Each command as it stands there; the key comes from a pipe, for want of a person."""
    for command in commands():
        if "/dev/stdin" in command:
            command = f"printf 'good\\n' | {command}"
        if command.startswith("systemctl enable"):
            to_the_sandbox(system)
        system.sh(f"cd /root/outboxd && umask {umask} && {command.replace('NAME', 'alice')}")


def to_the_sandbox(system: Container) -> None:
    """The README's way to see the service at work."""
    system.sh(f"sed -i 's,^endpoint.*,{SANDBOX},' /etc/outboxd/config.toml")
    start_sandbox(system)


def start_sandbox(system: Container) -> None:
    program = system.sh("ls -d /opt/outboxd/current /usr/lib/outboxd/current 2>/dev/null; true")
    system.sh(
        "systemctl reset-failed sandbox 2>/dev/null;"
        f"systemd-run -q --unit=sandbox {program.split()[0]}/bin/outboxd sandbox --api-key good"
    )
    await_true(system, "curl_() { exec 3<>/dev/tcp/127.0.0.1/8099; }; curl_")


def await_true(system: Container, script: str, within_s: float = 90) -> None:
    ends_at_s = time.monotonic() + within_s
    while system.code(script) != 0:
        assert time.monotonic() < ends_at_s, f"{script}: {system.sh(script, check=False)}"
        time.sleep(0.2)


def emit(system: Container, summary: str, user: str = "alice") -> str:
    told = system.sh(f"su {user} -c 'outboxd emit test \"{summary}\" --cluster c'")
    return told.split()[-1]


def under_load(system: Container, script: str) -> tuple[int, int, str]:
    """Jobs started and jobs run, as the jobs themselves wrote them, while `script` ran."""
    system.sh(
        f"rm -f /tmp/stop /tmp/started.* /tmp/ran.* /tmp/failed; cat > /tmp/load <<'E'\n{LOAD}\nE"
    )
    system.sh(
        'for w in 1 2; do su alice -c "bash /tmp/load $w" </dev/null & done;'
        f"cd /root/outboxd; {script}; rc=$?; sleep 1; touch /tmp/stop; wait; exit $rc"
    )
    counts = system.sh("cat /tmp/started.* | wc -l; cat /tmp/ran.* | wc -l")
    started, ran = (int(count) for count in counts.split())
    failed = system.sh("cat /tmp/failed /tmp/told.* 2>/dev/null | head -5", check=False)
    return started, ran, failed


def check(system: Container, user: str = "root") -> tuple[int, str]:
    told = system.sh(f"su {user} -c 'outboxd check; echo code $?'", check=False)
    return int(told.split()[-1]), told


BROKEN = (
    "chown root:root /var/spool/outboxd/new",
    "chown root:root /var/spool/outboxd/rejected",
    "chmod 0700 /var/spool/outboxd/new",
    "chmod 0500 /var/lib/outboxd",
    "chown root:root /etc/outboxd/komodor-api-key",
    "chmod 0600 /etc/outboxd/config.toml",
    ": > /etc/outboxd/komodor-api-key",
    "printf 'wrong\\n' > /etc/outboxd/komodor-api-key",
)
MENDED = (
    "chown outboxd:outboxd /var/lib/outboxd; chmod 0700 /var/lib/outboxd;"
    "chmod 0644 /etc/outboxd/config.toml; systemd-tmpfiles --create outboxd.conf;"
    "printf 'good\\n' | install -m 0400 -o outboxd /dev/stdin /etc/outboxd/komodor-api-key"
)


def test_a_host_from_the_readmes_commands_to_its_removal(system, record_property):
    follow_the_readme(system, umask="077")
    assert check(system)[0] == 0
    assert check(system, "alice")[0] == 0, "a member is told no false faults"
    code, told = check(system, "bob")
    assert code == 77
    assert "usermod -aG outboxd bob" in told
    id = emit(system, "first")
    system.sh(f"outboxd wait {id} --timeout 120s")
    system.sh("test -s /usr/local/share/man/man1/outboxd.1")
    system.sh("bash -n /usr/local/share/bash-completion/completions/outboxd")

    faults_are_found_while_it_is_stopped(system)
    it_answers_for_a_reload(system)
    its_socket_comes_back(system)
    a_new_key_is_used_at_once(system)

    started, ran, failed = under_load(system, "sh systemd/install.sh && systemctl restart outboxd")
    record_property("jobs run of jobs started", f"{ran} of {started}")
    assert (ran, failed) == (started, "")
    assert started > 20

    a_backlog_outlives_a_reboot(system)
    jobs_run_when_the_systems_python_is_another(system)

    system.sh("cd /root/outboxd && sh systemd/install.sh --remove")
    assert system.code("test -e /opt/outboxd -o -e /usr/local/bin/outboxd -o -e /run/outboxd") == 1
    system.sh("test -s /var/lib/outboxd/outbox.db")
    system.sh("cd /root/outboxd && sh systemd/install.sh --purge")
    left = system.sh("find / -xdev -name '*outboxd*' -not -path '/root/outboxd*' 2>/dev/null; true")
    left = [line for line in left.split() if not line.startswith(("/tmp", "/proc", "/var/log"))]
    assert left == []
    assert system.code("getent passwd outboxd") != 0


def faults_are_found_while_it_is_stopped(system: Container) -> None:
    system.sh("systemctl stop outboxd.socket outboxd.service")
    for broken in BROKEN:
        system.sh(broken)
        code, told = check(system)
        assert code in (77, 78), f"{broken}: {told}"
        system.sh(MENDED)
        code, told = check(system)
        assert code == 0, told
    append(system, '[metrics]\\ntextfile = "/srv/m/outboxd.prom"')
    system.sh("install -d -o outboxd /srv/m")
    code, told = check(system)
    assert code == 77, told
    assert "ReadWritePaths=/srv/m" in told
    system.sh("systemctl start outboxd.socket outboxd.service")
    await_true(system, "outboxd check | grep -q 'fail *textfile'")
    assert emit(system, "all the same")
    system.sh("cp -p /tmp/c /etc/outboxd/config.toml; systemctl restart outboxd")
    await_true(system, "outboxd check")


def append(system: Container, lines: str) -> None:
    """To the configuration; /tmp/c is the one before."""
    config = "/etc/outboxd/config.toml"
    system.sh(f"cp -p {config} /tmp/c; printf '{lines}\\n' >> {config}")


def it_answers_for_a_reload(system: Container) -> None:
    append(system, '[log]\\nlevel = "loud"')
    assert system.code("systemctl reload outboxd") != 0
    assert "loud" in system.sh("journalctl -u outboxd --no-pager | tail -20")
    assert check(system)[0] == 78
    system.sh("cp -p /tmp/c /etc/outboxd/config.toml; systemctl reload outboxd")
    assert check(system)[0] == 0


def its_socket_comes_back(system: Container) -> None:
    system.sh("rm -rf /run/outboxd")
    system.sh("systemctl restart outboxd.socket")
    id = emit(system, "at the new socket")
    system.sh(f"outboxd wait {id} --timeout 120s")


def a_new_key_is_used_at_once(system: Container) -> None:
    system.sh(
        "printf 'wrong\\n' | install -m 0400 -o outboxd /dev/stdin /etc/outboxd/komodor-api-key"
    )
    await_true(system, "journalctl -u outboxd --no-pager | grep -q key.changed")
    id = emit(system, "held")
    await_true(system, "outboxd status | grep -qi held")
    system.sh(
        "printf 'good\\n' | install -m 0400 -o outboxd /dev/stdin /etc/outboxd/komodor-api-key"
    )
    system.sh(f"outboxd wait {id} --timeout 120s")


def a_backlog_outlives_a_reboot(system: Container) -> None:
    system.sh("systemctl stop sandbox")
    ids = [emit(system, f"backlog {number}") for number in range(10)]
    system.reboot()
    start_sandbox(system)
    for id in ids:
        system.sh(f"outboxd wait {id} --timeout 120s")


def jobs_run_when_the_systems_python_is_another(system: Container) -> None:
    """As after an upgrade of the system: the virtual environment's Python is gone."""
    system.sh("mv /opt/outboxd/current/bin/python /opt/outboxd/current/bin/python.gone")
    try:
        assert system.sh("su alice -c 'outboxd exec -- echo it runs'").startswith("it runs")
        told = system.sh("outboxd status", check=False)
        assert "install outboxd again" in told
        assert emit(system, "kept meanwhile")
    finally:
        system.sh("mv /opt/outboxd/current/bin/python.gone /opt/outboxd/current/bin/python")


def test_the_package_is_installed_upgraded_under_load_and_purged(system, record_property):
    before = set(
        system.sh("find / -xdev -not -path '/proc/*' -path '*outboxd*' 2>/dev/null; true").split()
    )
    system.sh("cd /root/outboxd && sh systemd/deb.sh /tmp", timeout_s=600)
    system.sh("cd /root/outboxd && REVISION=2 sh systemd/deb.sh /tmp", timeout_s=600)
    system.sh("dpkg -i /tmp/outboxd_0.1.0_*.deb")
    to_the_sandbox(system)
    system.sh(
        "printf 'good\\n' | install -m 0400 -o outboxd /dev/stdin /etc/outboxd/komodor-api-key"
    )
    system.sh("systemctl restart outboxd; usermod -aG outboxd alice")
    await_true(system, "outboxd check")
    assert system.sh("readlink -f /usr/lib/outboxd/current/bin/python").startswith(
        "/usr/bin/python3."
    )
    system.sh("dpkg --verify outboxd | grep -v ' c ' | grep . && exit 1 || exit 0")

    started, ran, failed = under_load(system, "dpkg -i /tmp/outboxd_0.1.0-2_*.deb")
    record_property("jobs run of jobs started", f"{ran} of {started}")
    assert (ran, failed) == (started, "")
    assert started > 10
    await_true(system, "outboxd check")
    system.reboot()
    assert system.sh("systemctl is-active outboxd.service").strip() == "active"

    system.sh("dpkg --remove outboxd")
    system.sh("test -s /var/lib/outboxd/outbox.db")
    system.sh("dpkg --purge outboxd; rm -rf /tmp/*")
    after = set(
        system.sh("find / -xdev -not -path '/proc/*' -path '*outboxd*' 2>/dev/null; true").split()
    )
    assert {
        line for line in after - before if not line.startswith(("/var/log", "/var/lib/systemd"))
    } == set()
