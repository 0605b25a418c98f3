"""`outboxd token`: who may hand events in over TCP.

Works on the tokens file, which the agent reads anew when it changes: no agent
needs to run. The secret is printed once and kept nowhere.
"""

from __future__ import annotations

import json
import os
import sys

from outboxd.cli import render
from outboxd.cli.service import agent_user, service_of
from outboxd.config.load import load_client
from outboxd.errors import EX_DATAERR, EX_OK, ConfigError, UsageError
from outboxd.gateway.tokens import (
    Owner,
    ProducerLimits,
    Token,
    append_token,
    new_token,
    read_tokens,
    revoke,
)
from outboxd.producer.command_line import Arguments
from outboxd.text import harmless_json

RATE_MAX = 1e6  # events a second


def run(arguments: Arguments) -> int:
    """Make, list or revoke tokens."""
    path = arguments.tokens_file or load_client(arguments.config).intake.tokens_file
    if not path:
        raise ConfigError(
            "no tokens file is configured",
            "set [intake] tokens_file, or name one with --tokens-file",
        )
    act = {"new": _new, "list": _list, "revoke": _revoke}[str(arguments.subcommand)]
    return act(path, arguments)


def _new(path: str, arguments: Arguments) -> int:
    secret, token = new_token(arguments.name, _limits(arguments))
    append_token(path, token, _agent(arguments))
    print(secret)
    sys.stdout.flush()
    print(f"added to {path}; this is the only time that the token is shown", file=sys.stderr)
    return EX_OK


def _agent(arguments: Arguments) -> Owner | None:
    """The agent's user, whom root makes the file for; None where this is not root."""
    if os.geteuid() != 0:
        return None
    try:
        config = load_client(arguments.config)
    except ConfigError:
        return None  # with --tokens-file none is needed; a wrong one is told by the agent
    user = agent_user(config, service_of(config))
    return Owner(user.pw_uid, user.pw_gid)


def _limits(arguments: Arguments) -> ProducerLimits:
    rate = 0.0
    if arguments.rate is not None:
        try:
            rate = float(arguments.rate)
        except ValueError:
            rate = -1.0
        if not 0 < rate <= RATE_MAX:
            raise UsageError(
                f"--rate cannot be {arguments.rate!r}", "it is a number of events a second above 0"
            )
    return ProducerLimits(
        tuple(arguments.cluster), tuple(arguments.namespace), arguments.require_scope, rate
    )


def _list(path: str, arguments: Arguments) -> int:
    tokens = read_tokens(path)
    if arguments.json:
        for token in tokens:
            print(harmless_json(json.dumps(_as_json(token), ensure_ascii=False)))
        return EX_OK
    rows = [
        (
            token.name,
            token.digest[:12],
            ", ".join(token.limits.clusters) or "any",
            ", ".join(token.limits.namespaces) or "any",
            "yes" if token.limits.require_scope else "no",
            f"{token.limits.rate:g}/s" if token.limits.rate else "no limit",
        )
        for token in tokens
    ]
    heads = ("NAME", "SHA-256", "CLUSTERS", "NAMESPACES", "SCOPE REQUIRED", "RATE")
    for line in render.table(heads, rows, render.terminal_columns()):
        print(line)
    return EX_OK


def _as_json(token: Token) -> dict[str, object]:
    limits = token.limits
    return {
        "name": token.name,
        "sha256": token.digest,
        "clusters": list(limits.clusters),
        "namespaces": list(limits.namespaces),
        "requireScope": limits.require_scope,
        "rate": limits.rate,
    }


def _revoke(path: str, arguments: Arguments) -> int:
    count = revoke(path, arguments.name, arguments.old)
    if not count:
        what = "older token" if arguments.old else "token"
        print(f"outboxd: there is no {what} named {arguments.name!r} in {path}", file=sys.stderr)
        return EX_DATAERR
    print(f"{count} token{'s' if count > 1 else ''} of {arguments.name} revoked", file=sys.stderr)
    return EX_OK
