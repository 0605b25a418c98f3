"""The tokens file: who may hand events in over TCP, and what each may say.

A line a token: its name, the SHA-256 of its secret, and what it is limited to
as a JSON object. The secret itself is shown once, when it is made, and kept
nowhere. A name may stand on two lines, so that a token can be replaced while
both are good. Nothing here answers a request; it only says whose token it is.

    web-hosts 5e884898da28…  {"clusters": ["prod"], "requireScope": true, "rate": 10}
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import os
import re
import secrets
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import NamedTuple

import msgspec

from outboxd.disk import sync_directory
from outboxd.errors import ConfigError, UsageError
from outboxd.files import check_replaceable, read_start

NAME_ALLOWED = "1 to 64 of the letters A-Z, a-z, 0-9 and . _ -, and begins with a letter or digit"
TOKENS_MAX = 10_000
FILE_BYTES_MAX = 8 << 20
# Tells a secret scanner, and whoever finds it in a log, what it is.
PREFIX = "outboxd_"
NAME_CHARACTERS_MAX = 253  # of a certificate's name, which is one of DNS
_SECRET_BYTES = 32  # 256 random bits
_PRESENTED_MAX = 512  # characters of a token that are looked at

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_DIGEST = re.compile(r"[0-9a-f]{64}")


class ProducerLimits(
    msgspec.Struct, frozen=True, rename="camel", omit_defaults=True, forbid_unknown_fields=True
):
    """What the events of one producer may say, and how many there may be."""

    clusters: tuple[str, ...] = ()  # only these; and an event that names none gets them
    namespaces: tuple[str, ...] = ()
    require_scope: bool = False  # an event without any scope is refused
    rate: float = 0.0  # events a second; 0: as many as the gateway takes


class Token(NamedTuple):
    """One line of the file."""

    name: str
    digest: str  # SHA-256 of the secret, in lower-case hexadecimal digits
    limits: ProducerLimits


class Owner(NamedTuple):
    """Whom a new file is given to."""

    user_id: int
    group_id: int


_NOBODY = Token("", "0" * 64, ProducerLimits())


class TokenBook:
    """The tokens that are good now. Made anew whenever the file changes."""

    def __init__(self, tokens: Iterable[Token]) -> None:
        self._by_digest = {token.digest: token for token in tokens}

    def with_more(self, tokens: Iterable[Token]) -> TokenBook:
        """These besides; one that is known stays as it is."""
        return TokenBook([*tokens, *self._by_digest.values()])

    @property
    def names(self) -> tuple[str, ...]:
        """Each name once, in the order of the file."""
        return tuple(dict.fromkeys(token.name for token in self._by_digest.values()))

    def limits(self, name: str) -> ProducerLimits:
        """Those of a name's token; none where it has no token."""
        found = (token.limits for token in self._by_digest.values() if token.name == name)
        return next(found, _NOBODY.limits)

    def find(self, presented: str) -> Token | None:
        """The token whose secret this is; None where it is nobody's.

        The look-up is by the secret's hash, which nobody can choose digit by digit,
        and what it finds is compared in constant time. So neither the time nor the
        number of tokens tells how near a wrong secret came.
        """
        if len(presented) > _PRESENTED_MAX:
            presented = ""
        digest = digest_of(presented)
        token = self._by_digest.get(digest, _NOBODY)
        return token if hmac.compare_digest(token.digest, digest) else None


def digest_of(secret: str) -> str:
    """What stands in the file for a secret. A secret is 256 random bits, so that a
    plain hash of it can be neither guessed nor looked up."""
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).hexdigest()


def new_token(name: str, limits: ProducerLimits) -> tuple[str, Token]:
    """A secret, and the line that will know it again.

    Raises:
        UsageError: the name is not one, or a name that it may say.
    """
    check_name(name)
    if _has_blank_name(limits):
        raise UsageError(
            "a token cannot be limited to a cluster or namespace without a name",
            "is a variable of the command line empty? Leave the option out for any",
        )
    secret = PREFIX + secrets.token_urlsafe(_SECRET_BYTES)
    return secret, Token(name, digest_of(secret), limits)


def check_name(name: str) -> None:
    """Raises UsageError where `name` cannot be a producer's name."""
    if not _NAME.fullmatch(name):
        raise UsageError(f"{name!r} is no name for a token", f"a name has {NAME_ALLOWED}")


def _has_blank_name(limits: ProducerLimits) -> bool:
    """An event with such a name in its scope would be one with none, for all to see."""
    return not all(name.strip() for name in (*limits.clusters, *limits.namespaces))


def line_of(token: Token) -> str:
    """The token as it stands in the file, without the line's end."""
    told = msgspec.json.encode(token.limits).decode()
    return f"{token.name} {token.digest}" + ("" if told == "{}" else f" {told}")


def parse_tokens(text: str, path: str) -> list[Token]:
    """The tokens of a file's text; `path` is for messages.

    Raises:
        ConfigError: names the line that is wrong. No line is passed over, since a
            limit that is not understood must not become none.
    """
    tokens: list[Token] = []
    for number, line in enumerate(text.split("\n"), 1):
        words = line.strip().split(None, 2)
        if not words or words[0].startswith("#"):
            continue
        if len(tokens) == TOKENS_MAX:
            raise ConfigError(f"{path}: more than {TOKENS_MAX} tokens", "revoke some")
        try:
            tokens.append(_parse_line(words))
        except ValueError as error:
            hint = "a line is NAME SHA-256 [OPTIONS], as `outboxd token new` writes it"
            raise ConfigError(f"{path}: line {number}: {error}", hint) from None
    return tokens


def _parse_line(words: list[str]) -> Token:
    if not _NAME.fullmatch(words[0]):
        raise ValueError(f"{words[0][:80]!r} is no name")
    if len(words) < 2 or not _DIGEST.fullmatch(words[1]):
        raise ValueError("the second word is no SHA-256 (64 digits from 0 to f)")
    limits = ProducerLimits()
    if len(words) == 3:
        try:
            limits = msgspec.json.decode(words[2], type=ProducerLimits)
        except msgspec.DecodeError as error:
            raise ValueError(f"its options: {error}") from None
        if _has_blank_name(limits):
            raise ValueError("its options: a cluster or namespace has no name")
        if not 0 <= limits.rate <= 1e6:
            raise ValueError("its options: rate is not between 0 and 1000000")
    return Token(words[0], words[1], limits)


def read_tokens(path: str) -> list[Token]:
    """The tokens of the file.

    Raises:
        ConfigError: it cannot be read, or a line is wrong.
    """
    return parse_tokens(_read_text(path), path)


def read_whole_lines(path: str) -> list[Token]:
    """The tokens that stand there already while the file is being written.

    Raises:
        ConfigError: as `read_tokens`.
    """
    text = _read_text(path)
    return parse_tokens(text[: text.rfind("\n") + 1], path)


def _read_text(path: str) -> str:
    try:
        data = read_start(path, FILE_BYTES_MAX + 1)
    except FileNotFoundError:
        hint = "make the first token with `outboxd token new NAME`"
        raise ConfigError(f"{path}: there is no such file", hint) from None
    except OSError as error:
        hint = "it must be a file that the agent's user can read"
        raise ConfigError(f"{path}: cannot be read: {error.strerror}", hint) from None
    if len(data) > FILE_BYTES_MAX:
        raise ConfigError(f"{path}: larger than {FILE_BYTES_MAX} bytes", "is it the right file?")
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: is not UTF-8", "is it the right file?") from None


def append_token(path: str, token: Token, owner: Owner | None = None) -> None:
    """Add a line to the file, which is made where there is none.

    The whole file is written aside and renamed, so that an agent that reads it
    meanwhile sees either all of it or the one before. A new one is for its owner
    alone: `owner`, which only root can say, so that root makes it for the agent.

    Raises:
        ConfigError: the file that is there is wrong, or the new one cannot be written.
        UsageError: the name has two tokens.
    """
    path = os.path.realpath(path)
    with _alone(path):
        known = read_tokens(path) if os.path.exists(path) else []
        if sum(other.name == token.name for other in known) >= 2:
            raise UsageError(
                f"{token.name} has two tokens already",
                f"`outboxd token revoke {token.name} --old` ends the older one",
            )
        line = line_of(token)
        _rewrite(path, lambda text: f"{text.rstrip(chr(10))}\n{line}\n".lstrip("\n"), owner)


def revoke(path: str, name: str, but_newest: bool = False) -> int:
    """Take the tokens of `name` out of the file, all of them or all but the one that was
    made last; how many there were.

    Raises:
        ConfigError: as for `append_token`.
    """
    path = os.path.realpath(path)
    with _alone(path):
        digests = [token.digest for token in read_tokens(path) if token.name == name]
        ended = set(digests[:-1] if but_newest else digests)
        if ended:
            _rewrite(path, lambda text: "".join(_lines_without(text, ended)))
    return len(ended)


def _lines_without(text: str, digests: Collection[str]) -> list[str]:
    lines = text.splitlines(keepends=True)
    return [line for line in lines if not set(line.split()[1:2]) & set(digests)]


@contextmanager
def _alone(path: str) -> Iterator[None]:
    """No other command changes the file meanwhile: of two at once one would be lost.

    The lock is the directory's, since the file itself is replaced.
    """
    try:
        directory = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise _unwritable(path, error) from None
    try:
        fcntl.flock(directory, fcntl.LOCK_EX)
        yield
    finally:
        os.close(directory)


def _rewrite(path: str, change: Callable[[str], str], owner: Owner | None = None) -> None:
    aside = f"{path}.new-{os.getpid()}"
    try:
        check_replaceable(path)
        try:
            with open(path, encoding="utf-8") as file:
                text, before = file.read(), os.fstat(file.fileno())
        except FileNotFoundError:
            text, before = "", None
        with suppress(FileNotFoundError):
            os.unlink(aside)  # of one that was killed
        descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with open(descriptor, "w", encoding="utf-8") as file:
                file.write(change(text))
                file.flush()
                if before is not None:
                    # Whoever could read the file before can read it now: the agent's user, say.
                    os.fchown(descriptor, before.st_uid, before.st_gid)
                    os.fchmod(descriptor, before.st_mode & 0o777)
                elif owner is not None:
                    os.fchown(descriptor, *owner)
                os.fsync(descriptor)
            os.rename(aside, path)
        except OSError:
            os.unlink(aside)
            raise
        sync_directory(os.path.dirname(path))
    except OSError as error:
        raise _unwritable(path, error) from None


def _unwritable(path: str, error: OSError) -> ConfigError:
    hint = "run it as root or as the agent's user"
    return ConfigError(f"{path}: cannot be written: {error.strerror}", hint)
