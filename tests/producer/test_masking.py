"""No secret of a known name, place or shape goes into a job's event; other words stay."""

from __future__ import annotations

import pytest

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


def test_a_huge_text_is_read_in_no_time_at_all():
    for text in ("token" * 100_000, "a://" * 100_000, "-p" * 200_000, "=" * 400_000, "-" * 400_000):
        assert len(masked_text(text)) <= 20_000
        assert masked_command(["mysql", text])[0] == "mysql"
