"""Who may hand events in: what the tokens file says, and how it changes."""

from __future__ import annotations

import os
import pwd
import stat
from concurrent.futures import ThreadPoolExecutor

import pytest
from support.outside import outboxd

from outboxd.errors import ConfigError, UsageError
from outboxd.gateway.tokens import (
    Owner,
    ProducerLimits,
    Token,
    TokenBook,
    append_token,
    digest_of,
    line_of,
    new_token,
    parse_tokens,
    read_tokens,
    revoke,
)


@pytest.fixture
def as_root():
    if os.geteuid() != 0:
        pytest.skip("only root can give files away")


LIMITS = ProducerLimits(clusters=("prod", "a b"), namespaces=("web",), require_scope=True, rate=2.5)


def test_a_secret_has_256_random_bits_and_is_not_in_the_file(tmp_path):
    path = str(tmp_path / "tokens")
    secret, token = new_token("web-hosts", LIMITS)
    append_token(path, token)
    assert len(secret.removeprefix("outboxd_")) == 43  # 32 bytes in base64, unpadded
    text = (tmp_path / "tokens").read_text()
    assert secret not in text
    assert digest_of(secret) in text
    assert new_token("web-hosts", LIMITS)[0] != secret


def test_what_was_written_is_read_again(tmp_path):
    path = str(tmp_path / "tokens")
    written = []
    for name, limits in (
        ("a", ProducerLimits()),
        ("b.c_d-e", LIMITS),
        ("a", ProducerLimits(rate=1)),
    ):
        _, token = new_token(name, limits)
        append_token(path, token)
        written.append(token)
    assert read_tokens(path) == written
    assert TokenBook(written).names == ("a", "b.c_d-e")


@pytest.mark.parametrize("limits", [ProducerLimits(("",)), ProducerLimits((), ("a", " "))])
def test_a_token_is_limited_to_no_cluster_without_a_name(tmp_path, limits):
    """An event that names none would get it, and Komodor take it for one without any."""
    with pytest.raises(UsageError, match="without a name"):
        new_token("web", limits)
    with pytest.raises(ConfigError, match="has no name"):
        parse_tokens(line_of(Token("web", "0" * 64, limits)), "tokens")


def test_an_empty_variable_in_the_command_makes_no_token(tmp_path):
    path = tmp_path / "tokens"
    answer = outboxd("token", "new", "web", "--cluster", "", "--tokens-file", str(path))
    assert answer.returncode == 64
    assert b"without a name" in answer.stderr
    assert not path.exists()


def test_a_token_is_found_by_its_secret_alone():
    secret, token = new_token("web", LIMITS)
    book = TokenBook([new_token("other", ProducerLimits())[1], token])
    assert book.find(secret) == token
    for wrong in ("", secret[:-1], secret + "x", token.digest, secret.upper(), "é", "x" * 100_000):
        assert book.find(wrong) is None
    assert TokenBook([]).find("") is None


def test_a_name_may_have_two_tokens_while_one_replaces_the_other(tmp_path):
    path = str(tmp_path / "tokens")
    secrets = []
    for _ in range(2):
        secret, token = new_token("web", ProducerLimits())
        append_token(path, token)
        secrets.append(secret)
    book = TokenBook(read_tokens(path))
    assert all(book.find(secret) is not None for secret in secrets)
    with pytest.raises(UsageError, match="two tokens already"):
        append_token(path, new_token("web", ProducerLimits())[1])


def test_a_rotation_ends_with_the_newest_token_alone(tmp_path):
    path = str(tmp_path / "tokens")
    made = [
        new_token("web", ProducerLimits()),
        new_token("other", ProducerLimits()),
        new_token("web", ProducerLimits()),
    ]
    for _, token in made:
        append_token(path, token)
    assert revoke(path, "web", but_newest=True) == 1
    assert revoke(path, "web", but_newest=True) == 0
    book = TokenBook(read_tokens(path))
    assert [book.find(secret) is not None for secret, _ in made] == [False, True, True]


def test_a_revoked_name_is_nobodys_and_the_others_stay(tmp_path):
    path = str(tmp_path / "tokens")
    gone, token = new_token("web", ProducerLimits())
    append_token(path, token)
    kept, other = new_token("web-2", ProducerLimits())
    append_token(path, other)
    assert revoke(path, "web") == 1
    assert revoke(path, "web") == 0
    book = TokenBook(read_tokens(path))
    assert book.find(gone) is None
    assert book.find(kept) == other


def test_the_file_is_for_its_owner_alone_and_keeps_its_mode_and_owner(tmp_path):
    path = tmp_path / "tokens"
    append_token(str(path), new_token("a", ProducerLimits())[1])
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.chmod(0o640)
    append_token(str(path), new_token("b", ProducerLimits())[1])
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert os.listdir(tmp_path) == ["tokens"]


def test_a_new_file_is_given_to_the_agents_user_and_a_later_owner_stays(tmp_path, as_root):
    path = tmp_path / "tokens"
    append_token(str(path), new_token("a", ProducerLimits())[1], Owner(4321, 1234))
    assert (path.stat().st_uid, path.stat().st_gid) == (4321, 1234)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    os.chown(path, 7, 8)
    append_token(str(path), new_token("b", ProducerLimits())[1], Owner(4321, 1234))
    revoke(str(path), "a")
    assert (path.stat().st_uid, path.stat().st_gid) == (7, 8)


def test_the_command_as_root_makes_the_file_for_the_owner_of_the_outbox(tmp_path, as_root):
    state = tmp_path / "state"
    state.mkdir()
    nobody = pwd.getpwnam("nobody")
    os.chown(state, nobody.pw_uid, 0)
    config = tmp_path / "config.toml"
    config.write_text(f'[outbox]\npath = "{state}/outbox.db"\n[intake]\n')
    path = tmp_path / "tokens"
    done = outboxd("token", "new", "web", "-c", str(config), "--tokens-file", str(path))
    assert done.returncode == 0, done.stderr
    assert (path.stat().st_uid, path.stat().st_gid) == (nobody.pw_uid, nobody.pw_gid)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_of_tokens_that_are_made_at_the_same_time_none_is_lost(tmp_path):
    path = str(tmp_path / "tokens")

    def make(number):
        secret, token = new_token(f"n{number}", ProducerLimits())
        append_token(path, token)
        return secret

    with ThreadPoolExecutor(16) as pool:
        secrets = list(pool.map(make, range(64)))
    book = TokenBook(read_tokens(path))
    assert all(book.find(secret) for secret in secrets)


def test_a_link_stays_one(tmp_path):
    (tmp_path / "real").mkdir()
    link = tmp_path / "tokens"
    link.symlink_to(tmp_path / "real" / "tokens")
    append_token(str(link), new_token("a", ProducerLimits())[1])
    revoke(str(link), "a")
    assert link.is_symlink()
    assert read_tokens(str(link)) == []


def test_comments_and_empty_lines_are_kept(tmp_path):
    path = tmp_path / "tokens"
    path.write_text("# ours\n\n")
    append_token(str(path), new_token("a", ProducerLimits())[1])
    revoke(str(path), "a")
    assert path.read_text() == "# ours\n"


GOOD = "0" * 64


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("web", "line 1: the second word"),
        (f"\nweb {GOOD[:-1]}", "line 2: the second word"),
        (f"web {GOOD.replace('0', 'A')}", "the second word"),
        (f"-web {GOOD}", "is no name"),
        (f"{'w' * 65} {GOOD}", "is no name"),
        (f"web {GOOD} clusters", "its options"),
        (f'web {GOOD} {{"cluster": ["a"]}}', "its options"),
        (f'web {GOOD} {{"clusters": "a"}}', "its options"),
        (f'web {GOOD} {{"rate": -1}}', "its options"),
        (f'web {GOOD} {{"rate": 1e9}}', "its options"),
    ],
)
def test_a_line_that_is_wrong_is_never_passed_over(text, told):
    with pytest.raises(ConfigError) as raised:
        parse_tokens(text, "/etc/tokens")
    assert told in raised.value.message
    assert "/etc/tokens" in raised.value.message
    assert "outboxd token new" in (raised.value.hint or "")


def test_a_file_that_is_not_there_says_how_to_make_one(tmp_path):
    with pytest.raises(ConfigError) as raised:
        read_tokens(str(tmp_path / "none"))
    assert "outboxd token new" in (raised.value.hint or "")


@pytest.mark.parametrize("name", ["", "a b", "a\n", "é", "../x", "#a", "a" * 65])
def test_a_name_that_could_break_a_line_or_a_label_is_refused(name):
    with pytest.raises(UsageError):
        new_token(name, ProducerLimits())


def test_a_limit_that_is_not_set_is_not_written():
    assert line_of(new_token("a", ProducerLimits())[1]).count(" ") == 1
