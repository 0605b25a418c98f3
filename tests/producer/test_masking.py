"""No secret of a known name, place or shape goes into a job's event; other words stay."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable

import pytest

from outboxd.producer import masking
from outboxd.producer.masking import MASK, masked_command, masked_text

S = "hunter2-SECRET"


@pytest.mark.parametrize(
    "argv",
    [
        ["x", f"--password={S}"], ["x", "--password", S], ["x", f"--password={S} with blanks {S}"],
        ["x", "-password", S], ["x", "--db-password", S], ["x", f"--dbPassword={S}"],
        ["x", "--token", S, "-v"], ["x", f"--auth-token={S}"], ["x", "--api-key", S],
        ["x", f"--apiKey={S}"], ["x", "--key", S], ["x", "--client-secret", S],
        ["x", "--passphrase", S], ["x", "--pwd", S], ["x", f"token={S}"], ["x", "--PASSWORD", S],
        ["mysqldump", "-u", "root", f"-p{S}", "db"], ["/usr/bin/mysql", f"-p{S}"],
        ["mariadb-dump", f"-p{S}"], ["sshpass", "-p", S, "ssh", "h"], ["sshpass", f"-p{S}", "ssh"],
        ["redis-cli", "-a", S], ["ldapsearch", "-w", S], ["curl", "-u", f"bob:{S}", "h"],
        ["curl", f"-ubob:{S}"], ["curl", "--user", f"bob:{S}"], ["docker", "login", "-p", S],
        ["smbclient", "-U", f"u%{S}"], ["openssl", "-passin", f"pass:{S}"], ["zip", "-P", S, "a"],
        ["curl", "-H", f"Authorization: Bearer {S}"], ["curl", "-H", f"x-api-key: {S}"],
        ["curl", "-H", f"Authorization: token {S} {S}"], ["curl", "-H", f"Cookie: s={S}"],
        ["curl", f"https://bob:{S}@h/x"], ["curl", f"https://h/x?token={S}&a=1"],
        ["psql", f"postgresql://u:{S}@db/x?sslmode=require"], ["env", f"PGPASSWORD={S}", "psql"],
        ["env", f"AWS_SECRET_ACCESS_KEY={S}", "aws"], ["x", f"GITHUB_TOKEN={S}"],
        ["sh", "-c", f"mysql -u root -p{S} db | gzip"], ["sh", "-c", f"PGPASSWORD={S} psql -h db"],
        ["sh", "-c", f"curl -H 'Authorization: Bearer {S}' -d '{{\"password\": \"{S}\"}}' h"],
        ["bash", "-ec", f"export TOKEN='{S}'; x --password \"{S}\""],
        ["sh", "-c", f"echo x\ncurl -u bob:{S} h\n"], ["sudo", "mysql", f"-p{S}"],
        ["curl", "-su", f"bob:{S}", "h"], ["curl", "-sSfLubob:" + S], ["curl", "-#kb", f"sid={S}"],
        ["sh", "-c", f"curl -fsSu 'bob:a b {S}' h"], ["podman", "login", f"-p{S}"],
        ["sh", "-c", f'x --password "a b {S}" y'], ["sh", "-c", f"mysql -p'a b {S}' db"],
        ["sh", "-c", f"sshpass -p 'a {S}' ssh h"], ["python", "-c", f"os.environ['TOKEN']='{S}'"],
        ["kubectl", "create", "secret", "generic", "x", "--from-literal", f"a={S}"],
        ["kubectl", "create", "secret", "generic", "x", f"--from-literal=a={S}"],
    ],
)  # fmt: skip
def test_a_secret_on_a_command_line_is_masked(argv):
    shown = " ".join(masked_command(argv))
    assert "hunter2" not in shown
    assert MASK in shown
    assert shown.split()[0] == argv[0]


@pytest.mark.parametrize(
    "text",
    [
        f"login failed for postgres://u:{S}@db/x", f"Authorization: Basic {S}\nnext",
        f"  password = {S}", f'{{"apiKey": "{S}"}}', f"bad password='{S}'", f"token: {S}",
        f"-----BEGIN RSA PRIVATE KEY-----\n{S}\n{S}\n-----END RSA PRIVATE KEY-----\nafter",
        f"-----BEGIN PRIVATE KEY-----\n{S}", f"+ mysql -p{S} db", f"+ curl --token {S} h",
        "key AKIAABCDSECRETIJKLMN in use", "ghp_SECRETSECRETSECRETSECRET0000",
        "eyJSECRETSECRET.eyJSECRETSECRET.SECRET-sig", "xoxb-SECRET-SECRET-SECRET",
        f"CalledProcessError: Command '['mysql', '-p{S}', 'db']' returned",
        f"<password>{S}</password>",
        f"Command '['curl', '-sfu', 'bob:{S}', 'h']' returned non-zero exit status 22.",
        f'["x", "--token", "{S}"]', "sk-proj-SECRETSECRETSECRETSECRET", "npm_" + "SECRET" * 6,
        "SG.SECRETSECRETSECRET.SECRETSECRETSECRET", "hf_" + "SECRET" * 6,
        "hvs.SECRETSECRETSECRETSECRET",
    ],
)  # fmt: skip
def test_a_secret_in_what_a_job_wrote_is_masked(text):
    assert "SECRET" not in masked_text(text)


@pytest.mark.parametrize(
    "argv",
    [
        ["rsync", "-a", "--partial", "/srv", "backup:"], ["mkdir", "-p", "/a/b"],
        ["tar", "-P", "-cf", "x"], ["ssh", "-p", "22", "host"], ["sort", "-u", "-k2"],
        ["/opt/backup.sh", "--all"], ["monkey", "--keep", "7"], ["curl", "https://h/path?page=2"],
        ["git", "clone", "ssh://git@host/x"], ["x", "--tokens-max", "5"], ["sh", "-c", "exit 3"],
        ["curl", "-sSfL", "https://h"], ["curl", "-so", "/dev/null", "https://h"],
        ["tar", "-cu", "x"],
    ],
)  # fmt: skip
def test_what_is_no_secret_stays(argv):
    assert masked_command(argv) == argv


@pytest.mark.parametrize(
    "text",
    [
        "Traceback:\n  KeyError: 'foo'\nValueError: bad",
        "line 3: key 'PRIMARY' twice",
        "a\n\n b\tc ",
    ],
)
def test_a_text_without_secrets_is_as_it_was(text):
    assert masked_text(text) == text


# Each a text in which a search may begin anew at every word.
REPEATED = (
    *("token", "a://", "-p", "=", "-", "a.", "authkey-", "a-", "echo ", "echo | ", "/p:", " /p:"),
    *(
        "pass",
        "key=",
        '"pass":',
        "secret_id",
        "_key",
        "sig",
        "bearer ",
        "cookie",
        "x-token",
        "a:b@",
    ),
    *("https://", "https://a:", "-----BEGIN PRIVATE KEY-----", "hooks.slack.com/services/", "ghp_"),
)


def slow_texts(texts: Iterable[str] = REPEATED) -> list[str]:
    """What takes far longer if it is four times as long: a job's end must not wait for it."""
    found = []
    for text in texts:
        lengths = [(text * (size // len(text)) + "!") for size in (1_500, 6_000)]
        # The best of three each, by turns: whatever else this machine does only adds to it,
        # and adds to both.
        rounds = [[_took_s(each) for each in lengths] for _ in range(3)]
        short_s, long_s = map(min, zip(*rounds, strict=True))
        if long_s > max(9 * short_s, 0.05):
            found.append(text)
    return found


def _took_s(text: str) -> float:
    """Of its own processor time."""
    began_s = time.process_time()
    assert len(masked_text(text)) <= len(text) + 20_000
    return time.process_time() - began_s


@pytest.mark.usefixtures("own_garbage")
def test_a_huge_text_is_read_in_no_time_at_all():
    assert slow_texts() == []
    for text in REPEATED:
        assert masked_command(["mysql", text * 1_000])[0] == "mysql"


def test_control_a_search_without_an_end_is_seen(monkeypatch):
    endless = re.compile(r"(\b[a-z][a-z0-9+.-]*://)[^\s/:@\"']{20,}@", re.IGNORECASE)
    # So often that it takes long enough on the fastest of machines, too.
    monkeypatch.setattr(masking, "_TEXTS", ((endless, ""),) * 2)
    assert slow_texts(["a."]) == ["a."]
