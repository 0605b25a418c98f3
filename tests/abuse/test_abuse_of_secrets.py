"""No password of a job, of a proxy or of the account stands where others read it."""

from __future__ import annotations

import base64
import json
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from support.agent import ENVIRON
from support.outside import Agent, Komodor
from support.waiting import PATIENCE_S

S = "hunter2-SECRET"
NOT_MASKED = """
import outboxd.producer.masking as masking
masking.masked_command = lambda argv: argv
masking.masked_text = lambda text: text
"""


# --- what a job was called with, and what it wrote -----------------------------------------

COMMANDS = [
    ["sshpass", f"-p{S}", "ssh", "h"],
    ["env", f"SSHPASS={S}", "sshpass", "-e", "ssh", "h"],
    ["env", f"DBPASS={S}", f"MYSQL_PWD={S}", f"Restic_Password={S}", "backup"],
    ["curl", "-sS", "-b", f"session={S}", "https://h"],
    ["curl", "--cookie", f"session={S}", "--cert", f"me.pem:{S}", "https://h"],
    ["curl", "--oauth2-bearer", S, "-d", f"user=x&password={S}", "https://h"],
    ["curl", "-sSfX", "POST", "-H", f"PRIVATE-TOKEN: {S}", "https://h/?api_key=" + S],
    ["http", "-a", f"bob:{S}", "POST", "https://h", f"Authorization:Bearer {S}"],
    ["wget", f"--http-password={S}", f"--header=X-Vault-Token: {S}", f"ftp://u:{S}@h/x"],
    ["lftp", "-u", f"bob,{S}", "-e", "mirror", "h"],
    ["sqlplus", "-s", f"scott/{S}@db", "@nightly.sql"],
    ["/opt/oracle/bin/expdp", f"system/{S}", "full=y"],
    ["sqlcmd", "-U", "sa", "-P", S, "-Q", "SELECT 1"],
    ["ipmitool", "-H", "h", "-U", "admin", "-P", S, "power", "status"],
    ["mosquitto_pub", "-u", "x", "-P", S, "-t", "a"],
    ["snmpwalk", "-v3", "-A", S, "-X", S, "h"],
    ["openssl", "enc", "-aes-256-cbc", "-k", S, "-in", "x"],
    ["mysqladmin", "-u", "root", "password", S],
    ["aws", "configure", "set", "aws_secret_access_key", S],
    ["psql", f"host=h dbname=x user=y password={S} sslmode=require"],
    ["java", f"-Djavax.net.ssl.trustStorePassword={S}", "-jar", "x.jar"],
    ["java", "-jar", "x.jar", f"jdbc:postgresql://h/db?user=x&password={S}"],
    ["redis-cli", "-u", f"redis://:{S}@h:6379/0", "PING"],
    ["helm", "upgrade", "--set", f"db.password={S},x=y", "--set-string", f"auth.token={S}"],
    ["rclone", f"--sftp-pass={S}", f"--s3-secret-access-key={S}", "sync", "a", "b"],
    ["bash", "-c", f"export PGPASSWORD='{S}'\npg_dump db | openssl enc -k {S}"],
    ["sh", "-ec", f"mysql -uroot -p{S} <<X\nx\nX\ncurl -u bob:{S} h; sshpass -p '{S}' ssh h"],
    ["vault", "login", "-no-store", S],
    ["htpasswd", "-b", "f", "bob", S],
    ["docker", "run", "-e", f"GITHUB_PAT={S}", f"--env=SharedAccessKey={S}", "image"],
    ["ansible-playbook", "-e", f'{{"ansible_become_pass":"{S}"}}'],
    ["curl", f"https://hooks.slack.com/services/T0/B0/{S}", f"https://h/?X-Amz-Signature={S}"],
    ["sh", "-c", f"echo {S} | docker login --password-stdin; echo {S} | sudo -S true"],
    ["snmpget", "-c", S, f"-c{S}", "h"],
    ["xfreerdp", f"/p:{S}", f"—password={S}"],
    ["bash", "-lc", f'curl -H "Authorization: token {S}" -d \'{{"secret":"{S}"}}\' h'],
]
WRITTEN = [
    f"connect postgres://u:{S}@h/db failed",
    f"+ mysqldump -uroot -p{S} db",
    f"+ sshpass -p {S} ssh h",
    f"PGPASSWORD={S} pg_dump: error",
    f"curl: (22) https://h/?access_token={S}&x=1",
    f"> Authorization: Bearer {S}",
    f"< Set-Cookie: session={S}; Path=/",
    f'{{"client_secret": "{S}", "x": 1}}',
    f"secret_key: {S}",
]


def told_of(tmp_path: Path, patch: str = "") -> dict[str, str]:
    """What the agent tells of each job: its listing's text by the command."""
    (tmp_path / "sitecustomize.py").write_text(patch)
    agent = Agent(tmp_path, "http://127.0.0.1:9/")
    agent.start()
    wrote = [sys.executable, "-c", "import sys; sys.exit(sys.stdin.read())"]

    def run(words: list[str], stdin: str = "") -> None:
        subprocess.run(
            [sys.executable, "-m", "outboxd", "exec", "-c", str(agent.config), "--", *words],
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
            # Nothing of these is there: it is 127, and told all the same.
            env={**ENVIRON, "PATH": "/nowhere", "PYTHONPATH": str(tmp_path)},
        )

    try:
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(run, COMMANDS))
        run(wrote, "\n".join(WRITTEN))
        agent.await_taken()  # what a slow answer has sent there
        entries = agent.request("GET", "/v1/events?limit=1000")[1]["events"]  # type: ignore[index]
        assert len(entries) == len(COMMANDS) + 1, agent.log_text()
        return {entry["id"]: json.dumps(entry) for entry in entries}
    finally:
        agent.kill()


def test_a_jobs_event_shows_no_password(tmp_path):
    assert [text for text in told_of(tmp_path).values() if "hunter2" in text] == []


def test_without_masking_it_is_seen(only_full, tmp_path):
    told = told_of(tmp_path, NOT_MASKED)
    assert sum("hunter2" in text for text in told.values()) == len(told)


# --- a proxy ---------------------------------------------------------------------------------


class Trap:
    """A proxy that nobody should ask: it keeps what came, and says it again."""

    def __init__(self) -> None:
        self.came = b""
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listening.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listening.accept()
            except OSError:
                return
            with connection, suppress(OSError):  # whoever is killed says no more
                connection.settimeout(2.0)
                came = connection.recv(65536)
                self.came += came
                told = next((line for line in came.split(b"\r\n") if b"Basic" in line), b"")
                body = b"refused: " + told
                connection.sendall(
                    b"HTTP/1.1 407 %b (user:%b)\r\nProxy-Authenticate: %b\r\nContent-Length: %d"
                    b"\r\n\r\n%b" % (told, S.encode(), told, len(body), body)
                )

    def close(self) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self._thread.join(PATIENCE_S)


@contextmanager
def trapped() -> Iterator[Trap]:
    trap = Trap()
    try:
        yield trap
    finally:
        trap.close()


ANY_PROXY = """
import os
import outboxd.delivery.proxies as proxies
proxies.proxy_for = lambda endpoint, configured, environ=os.environ: environ["HTTP_PROXY"]
"""


def through(trap: Trap, directory: Path, host: str, patch: str = "") -> str | None:
    """What an agent with a loopback endpoint lets a proxy of its environment see."""
    directory.mkdir()
    (directory / "sitecustomize.py").write_text(patch)
    names = ("http_proxy", "https_proxy", "all_proxy")
    proxy = f"http://user:{S}@{trap.address}"
    proxies = {name: proxy for each in names for name in (each, each.upper())}
    komodor = Komodor()
    endpoint = komodor.url.replace("127.0.0.1", host)
    environ = {**proxies, "NO_PROXY": "", "no_proxy": "", "PYTHONPATH": str(directory)}
    agent = Agent(directory, endpoint, environ=environ)
    agent.start()
    try:
        id = agent.accept("to this host itself")
        if patch:
            agent.until(lambda: trap.came or None, agent.log_text)
            return trap.came.decode()
        agent.await_entry(id, state="delivered")
        return trap.came.decode() or None
    finally:
        agent.kill()
        komodor.stop()


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_loopback_endpoints_key_goes_to_no_proxy(host, tmp_path):
    with trapped() as trap:
        assert through(trap, tmp_path / "x", host) is None


def test_without_the_rule_the_proxy_sees_the_key(only_full, tmp_path):
    with trapped() as trap:
        seen = through(trap, tmp_path / "x", "127.0.0.1", ANY_PROXY)
        assert seen is not None
        assert ENVIRON["KOMODOR_API_KEY"] in seen


TOLD_AS_IT_IS = """
import outboxd.delivery.transport as transport
transport.credentials_of = lambda proxy: []
import outboxd.cli.check_local as check_local
check_local.secrets = lambda config: []
"""
SENT = base64.b64encode(f"user:{S}".encode()).decode()


def proxy_password_shown(directory: Path, trap: Trap, patch: str = "") -> list[str]:
    """Where a proxy's password can be read, given in each way that there is."""
    directory.mkdir()
    (directory / "sitecustomize.py").write_text(patch)
    environ = {"PYTHONPATH": str(directory)}
    found = []
    for way in ("proxy_file", "proxy", "environment"):
        place = directory / way
        place.mkdir()
        proxy = f"http://user:{S}@{trap.address}"
        komodor: dict[str, object] = {"allow_plain_http": True, way: proxy}
        if way == "proxy_file":
            (place / "p").write_text(proxy)
            (place / "p").chmod(0o600)
            komodor[way] = str(place / "p")
        https = {}
        if way == "environment":
            komodor = {"endpoint": "https://komodor.invalid/mgmt/v1/events"}
            https = {"https_proxy": proxy, "no_proxy": ""}
        agent = Agent(
            place,
            "http://komodor.invalid/mgmt/v1/events",
            extra={"komodor": komodor, "log": {"level": "debug"}},
            environ={**environ, **https},
        )
        agent.start()
        try:
            id = agent.accept("refused by the proxy")
            agent.until(lambda agent=agent, id=id: agent.entry(id)["lastError"], agent.log_text)
            texts = {
                path: json.dumps(agent.request("GET", path)[1], default=bytes.decode)
                for path in ("/v1/status", f"/v1/events/{id}", "/metrics")
            }
            texts["the log"] = agent.log_text()
            if way == "proxy":
                done = subprocess.run(
                    [sys.executable, "-m", "outboxd", "check", "-c", str(agent.config)],
                    capture_output=True,
                    text=True,
                    check=False,
                    env={**ENVIRON, **environ},
                )
                texts["check"] = done.stdout + done.stderr
                if "anyone may read the proxy's password" not in texts["check"]:
                    found.append("check: it does not say that all may read it")
            found += [f"{way}, {where}" for where, text in texts.items() if S in text]
            found += [f"{way}, {where}, as sent" for where, text in texts.items() if SENT in text]
        finally:
            agent.kill()
    assert b"Proxy-Authorization: Basic" in trap.came
    return found


def test_a_proxys_password_shows_nowhere(only_full, tmp_path):
    with trapped() as trap:
        assert proxy_password_shown(tmp_path / "x", trap) == []


def test_without_the_rule_a_proxys_password_is_seen(only_full, tmp_path):
    with trapped() as trap:
        found = proxy_password_shown(tmp_path / "x", trap, TOLD_AS_IT_IS)
    assert "check: it does not say that all may read it" in found
    assert len(found) > 6
