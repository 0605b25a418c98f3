"""The producers' two commands, with their options and what is said about them.

A part of the table of all commands (`cli/table.py`) that stands by itself,
because each cron job builds it anew.
"""

from __future__ import annotations

from outboxd.producer.command_line import Command, Option, Positional

CONFIG = Option(
    "-c, --config",
    "FILE",
    "configuration file (else $OUTBOXD_CONFIG, /etc/outboxd/config.toml, built-in defaults)",
    complete="file",
)
SOCKET = Option("--socket", "PATH", "the agent's Unix socket (else as configured)", complete="file")
AGENT = (CONFIG, SOCKET)
GATEWAY = (
    Option(
        "--gateway",
        "URL",
        "hand in to this gateway, not to an agent of this host (else $OUTBOXD_GATEWAY)",
    ),
    Option(
        "--token-file",
        "FILE",
        "a file with the gateway's token (else $OUTBOXD_TOKEN)",
        complete="file",
    ),
    Option(
        "--gateway-ca",
        "FILE",
        "PEM file with the gateway's authority (else $OUTBOXD_GATEWAY_CA, $SSL_CERT_FILE, the "
        "system's)",
        complete="file",
    ),
)
SEVERITY = Option("--severity", "S", "information (default), warning or error, in any case")
SCOPE = (
    Option("--cluster", "C", "a cluster that the event concerns (repeatable)", repeated=True),
    Option("--namespace", "N", "a namespace that it concerns (repeatable)", repeated=True),
    Option("--service", "S", "a service that it concerns (repeatable)", repeated=True),
)
DETAIL = Option("--detail", "K=V", "a detail of the event (repeatable)", repeated=True)
DEDUP_KEY = Option("--dedup-key", "K", "the event's identity: a second one of it is not kept")
TTL = Option(
    "--ttl", "D", "give up when not delivered in this time (30s, 5m, 24h, 7d)", kind="duration"
)

USAGE = (64, "the command line is wrong")
INVALID = (65, "the event is not valid; nothing was kept")
NOWHERE = (75, "the event could be stored nowhere; try again")

EMIT = Command(
    "emit",
    "hand in an event",
    description=(
        "Hands an event to the agent and prints the receipt's id, alone, on stdout. Where no "
        "agent answers, or it takes none now, the event goes into the spool and out when the "
        "agent is back; stderr says so. Each event gets a dedup key if it has none, so that "
        "handing it in twice makes no second event. It never waits longer than some seconds."
    ),
    positionals=(
        Positional("TYPE", "the event's type, at most 60 characters", count="optional"),
        Positional("SUMMARY", "one line that says what happened", count="optional"),
    ),
    options=(
        SEVERITY,
        *SCOPE,
        DETAIL,
        DEDUP_KEY,
        Option("--occurred-at", "T", "when it happened, as RFC 3339 or date writes it, if not now"),
        TTL,
        Option(
            "--json",
            "FILE",
            "a whole event as JSON from this file, - for stdin, in place of all the above",
            complete="file",
        ),
        *AGENT,
        *GATEWAY,
    ),
    exits=(
        (0, "stored: committed by the agent, or in the spool"),
        USAGE,
        INVALID,
        NOWHERE,
    ),
    examples=(
        ("outboxd emit 'backup done' 'nightly backup of orders' --cluster prod", ""),
        ("outboxd emit deploy 'v2 is out' --gateway https://gateway.example.com:8443", "no agent"),
        ('echo \'{"eventType": "deploy", "summary": "v2"}\' | outboxd emit --json -', ""),
    ),
)

EXEC = Command(
    "exec",
    "run a command, and hand in an event when it fails",
    description=(
        "Runs COMMAND with its input, output, signals and exit status untouched. When it fails, "
        "an event says so, with the command, its exit code or signal, duration, user, host and "
        "the last lines of its stderr (of its output, where both are one file or pipe; none of "
        "what it writes to a terminal). All who may read events see these: what looks like a "
        "password, token or key is masked in command line and output, and the options below "
        "leave either out. The event never changes how the job ends: where it cannot be stored, "
        "one line on stderr says so. A signal to exec goes on to the command, once."
    ),
    positionals=(
        Positional("COMMAND", "the command and its arguments", count="rest", name="argv"),
    ),
    options=(
        Option(
            "--on",
            "WHEN",
            "when to hand in an event: failure (default) or always",
            choices=("failure", "always"),
            default="failure",
        ),
        Option("--type", "T", "event type (default: job failed, job succeeded)"),
        Option("--summary", "TEXT", "summary (default: says what happened)"),
        Option("--severity", "S", "severity (default: error when it failed, else information)"),
        *SCOPE,
        DETAIL,
        DEDUP_KEY,
        TTL,
        Option("--timeout", "D", "end the command after this time", kind="duration"),
        Option(
            "--kill-after",
            "D",
            "how long after the timeout's SIGTERM a SIGKILL follows (default 10s)",
            kind="duration",
            default="10s",
        ),
        Option("--no-output", "", "leave stderr wholly alone: none of it in the event"),
        Option("--no-command", "", "leave the command line out of the event"),
        *AGENT,
        *GATEWAY,
    ),
    exits=(
        ("*", "the command's own exit code"),
        ("128+n", "signal n ended it"),
        (126, "it cannot be executed"),
        (127, "it was not found"),
        USAGE,
    ),
    examples=(
        # The whole path: cron's own PATH is short.
        ("0 3 * * * /usr/local/bin/outboxd exec --cluster prod -- /opt/backup.sh", "in a crontab"),
        ("outboxd exec --timeout 30m --on always -- rsync -a /srv backup:", ""),
    ),
)
