"""Every command of `outboxd`, with its options and what is said about them.

This is the one source of parsing, help, completion and man page. A command
`x` is run by `outboxd.cli.x.run(arguments) -> int`, `emit` and `exec` by the
producers' own room, where they stand too.
"""

from __future__ import annotations

from outboxd.errors import UsageError
from outboxd.producer.command_line import Command, Option, Positional, did_you_mean
from outboxd.producer.commands import AGENT, CONFIG, EMIT, EXEC, SCOPE, USAGE

JSON_LINES = Option("--json", "", "print JSON, an entry a line")
JSON = Option("--json", "", "print JSON")

STATES = ("pending", "delivered", "dead")

DONE = (0, "done")
NO_SUCH_ID = (65, "there is no entry with this id")
UNREACHED = (69, "the agent cannot be reached")
FORBIDDEN = (77, "not permitted")
CONFIGURATION = (78, "the configuration is wrong")

FILTERS = (
    Option("--type", "T", "only this event type (repeatable)", repeated=True),
    Option(
        "--severity",
        "S",
        "only this severity, in any case (repeatable)",
        repeated=True,
    ),
    Option("--cluster", "C", "only events that name this cluster (repeatable)", repeated=True),
    Option("--namespace", "N", "only those that name this namespace (repeatable)", repeated=True),
    Option("--service", "S", "only events that name this service (repeatable)", repeated=True),
    Option(
        "--reason",
        "R",
        "only what was given up for this reason (repeatable)",
        choices=("rejected", "exhausted", "expired"),
        repeated=True,
    ),
    Option(
        "--status",
        "N",
        "only those whose last answer had this status of HTTP (repeatable)",
        repeated=True,
    ),
    Option(
        "--source",
        "S",
        "only what came in this way: socket, batch, spool, agent (repeatable)",
        repeated=True,
    ),
    Option(
        "--producer",
        "NAME",
        "only what this user or token handed in: a name, uid:1000, token:web (repeatable)",
        repeated=True,
    ),
    Option(
        "--not",
        "NAME=V",
        "leave out what has this value: --not type=backup; any of the above (repeatable)",
        repeated=True,
    ),
    Option("--key", "K", "only the event with this dedup key"),
    Option("--error", "TEXT", "only those whose last error has this text"),
    Option(
        "--q",
        "TEXT",
        "only events with this text: type, summary, scope, values of details, dedup key,"
        " errors, a status, an id's beginning",
    ),
    Option("--since", "T", "only from this time on (RFC 3339, or a duration ago such as 2h)"),
    Option("--until", "T", "only before this time (RFC 3339, or a duration ago)"),
)
IDS = Positional("ID", "the entry's id", count="any")
ALL = Option("--all", "", "every dead letter that the filters leave")

_RUN = Command(
    "run",
    "run the agent",
    description=(
        "Takes events from the Unix socket and the spool, commits them to the outbox, and "
        "delivers them. Ends on SIGTERM and SIGINT after settling what is in flight; a second "
        "signal ends it at once. SIGHUP reads the configuration and the key again."
    ),
    options=(CONFIG,),
    exits=(
        (0, "stopped by a signal, in order"),
        (74, "the disk failed a sync: start it afresh"),
        (75, "another agent has this outbox"),
        CONFIGURATION,
    ),
    examples=(("outboxd run -c config.toml", "run with this configuration"),),
)

_STATUS = Command(
    "status",
    "how the agent, its outbox and its destination stand",
    description=(
        "One screen: the destination and why it stands so, the backlog, its oldest entry, rate "
        "and estimated time to drain, free disk. Without an agent it reads the outbox's file."
    ),
    options=(
        JSON,
        Option("--check", "", "one line and an exit code for monitoring: 0, 1 or 2"),
        Option("--watch", "", "keep showing it, live"),
        *AGENT,
    ),
    exclusive=(("json", "check", "watch"),),
    exits=(
        DONE,
        (1, "with --check: backing off, throttled, or the backlog is old"),
        (2, "with --check: held, not accepting, damage, or no agent"),
        UNREACHED,
        CONFIGURATION,
    ),
)

# What every list takes beside its filters.
_PAGE = (
    Option("--limit", "N", "at most so many, 0 for all (default 50)", kind="number", default="50"),
    Option("--cursor", "CURSOR", "go on where an earlier list ended"),
    JSON_LINES,
)

_EVENTS = Command(
    "events",
    "list events, newest first, or show one",
    options=AGENT,
    subcommands=(
        Command(
            "list",
            "list events, newest first (the default)",
            options=(
                Option(
                    "--state",
                    "S",
                    "only entries in this state (repeatable)",
                    choices=STATES,
                    repeated=True,
                ),
                *FILTERS,
                *_PAGE,
            ),
            examples=(("outboxd events --state pending --cluster prod --since 2h", ""),),
        ),
        Command(
            "show",
            "show one event: its way, its attempts, why it waits",
            positionals=(Positional("ID", "the entry's id"),),
            options=(JSON,),
        ),
    ),
    default="list",
    exits=(DONE, USAGE, NO_SUCH_ID, UNREACHED, FORBIDDEN, CONFIGURATION),
)

_WAIT = Command(
    "wait",
    "wait until an event is delivered",
    description=(
        "Without an agent it looks once. Where the destination is a gateway, delivered means that "
        "the gateway has it, and wait says so; --through asks the gateway until it has delivered "
        "it, too."
    ),
    positionals=(Positional("ID", "the entry's id, as emit prints it"),),
    options=(
        Option("--timeout", "D", "at most so long (default 60s)", kind="duration", default="60s"),
        Option("--through", "", "until the gateway, too, has delivered it"),
        *AGENT,
    ),
    exits=(
        (0, "it was delivered"),
        (1, "it is a dead letter"),
        NO_SUCH_ID,
        (69, "not in time, no agent, or not known to the gateway any more"),
        CONFIGURATION,
    ),
    examples=(("outboxd wait $(outboxd emit deploy 'v2 is out') --timeout 30s", ""),),
)

_BACKUP = Command(
    "backup",
    "copy the outbox into a file, with or without an agent",
    description=(
        "Writes a consistent copy of the outbox, which opens as an outbox: stop the agent, put the "
        "copy in the outbox's place (with nothing beside it), give it to the agent's user, start "
        "the agent. It says that it found a copy, and sends what is pending in it as possible "
        "duplicates, because it may have been delivered since. To copy the outbox's file with cp "
        "is not enough: what came in last stands in its log."
    ),
    positionals=(
        Positional(
            "FILE", "the copy; only an older one, or an empty file, is replaced", complete="file"
        ),
    ),
    options=AGENT,
    exits=(
        *(DONE, USAGE, UNREACHED),
        (74, "the disk failed a sync"),
        (75, "there is no room for it"),
        *(FORBIDDEN, CONFIGURATION),
    ),
    examples=(("outboxd backup /var/backups/outbox.db", ""),),
)

_MOVE = Command(
    "move",
    "move an outbox into another file, or a database",
    description=(
        "Brings all of an outbox into another one, which must be empty: every entry with its id, "
        "dedup key, attempts, state and dates, the dedup windows, the hold. No agent may have "
        "either open. All is compared before the move counts as done. From its beginning on no "
        "agent opens FROM any more, so that nothing is delivered from both; FROM is kept as it "
        "was. A move that was cut off goes on when it is run again, and until then no agent opens "
        "either."
    ),
    positionals=(
        Positional("FROM", "the outbox's file, or its URL", complete="file", name="source"),
        Positional(
            "TO",
            "the new one's; a file is made as needed",
            count="optional",
            complete="file",
            name="target",
        ),
    ),
    options=(
        Option("--give-up", "", "FROM alone: do not finish the move, so that FROM is used again"),
        CONFIG,
    ),
    exits=(
        DONE,
        USAGE,
        UNREACHED,
        (75, "an agent has one of them open"),
        FORBIDDEN,
        (78, "TO is not empty, or one of them has a part in another move"),
    ),
    examples=(
        ("outboxd move /var/lib/outboxd/outbox.db /mnt/disk2/outbox.db", "to another disk"),
        ("outboxd move /var/lib/outboxd/outbox.db postgresql://outboxd@db1,db2/outboxd", ""),
    ),
)

_DEAD_LETTERS = Command(
    "dead-letters",
    "look at what was given up, and send it back, drop or export it",
    options=AGENT,
    subcommands=(
        Command(
            "list",
            "list dead letters, newest first (the default)",
            options=(
                *FILTERS,
                *_PAGE,
            ),
        ),
        Command(
            "show",
            "show one: its attempts, and why it was given up",
            positionals=(Positional("ID", "the entry's id"),),
            options=(JSON,),
        ),
        Command(
            "retry",
            "send them back to be delivered",
            positionals=(IDS,),
            options=(ALL, *FILTERS),
            examples=(("outboxd dead-letters retry --all --since 24h --status 400", ""),),
        ),
        Command(
            "drop",
            "remove them for good",
            positionals=(IDS,),
            options=(
                ALL,
                Option("--yes", "", "with --all: do not ask for the number of events"),
                *FILTERS,
            ),
            examples=(("outboxd dead-letters drop --all --reason expired --yes", ""),),
        ),
        Command(
            "export",
            "print them as JSON Lines, which the batch route takes back",
            positionals=(IDS,),
            options=FILTERS,
            examples=(("outboxd dead-letters export > dead.jsonl", ""),),
        ),
    ),
    default="list",
    exits=(DONE, USAGE, NO_SUCH_ID, UNREACHED, FORBIDDEN, CONFIGURATION),
)

_HOLD = Command(
    "hold",
    "hold the destination, or one entry: nothing is sent and nothing is spent",
    description="Events are still taken. A hold outlives a restart; `outboxd release` ends it.",
    positionals=(Positional("ID", "an entry's id (else the destination)", count="optional"),),
    options=(Option("--reason", "TEXT", "why, for whoever looks at the status"), *AGENT),
    exits=(DONE, NO_SUCH_ID, UNREACHED, FORBIDDEN, CONFIGURATION),
)

_RELEASE = Command(
    "release",
    "end a hold, or any other wait of the destination",
    positionals=(Positional("ID", "an entry's id (else the destination)", count="optional"),),
    options=AGENT,
    exits=(DONE, NO_SUCH_ID, UNREACHED, FORBIDDEN, CONFIGURATION),
)

_PAGE_LINK = Command(
    "page",
    "open the timeline page with the right to act",
    description=(
        "Prints a link to the page of the running agent, and opens it where there is a desktop. "
        "It is good once, in one browser, for an hour: there, retry, drop, hold and release are "
        "buttons, and the log says who pressed them. For root and the agent's own user; needs "
        "[http] listen. Without this link the page is read only."
    ),
    options=(Option("--no-open", "", "only print it"), *AGENT),
    exits=(DONE, UNREACHED, FORBIDDEN, CONFIGURATION),
)

_RELOAD = Command(
    "reload",
    "have the agent take over its configuration as it is now",
    description=(
        "The same as `systemctl reload outboxd`. A configuration that is refused changes "
        "nothing, and is told here. Settings that only a restart takes over are named."
    ),
    options=AGENT,
    exits=(DONE, UNREACHED, FORBIDDEN, CONFIGURATION),
)

_CHECK = Command(
    "check",
    "find what is wrong before it costs events",
    description=(
        "Looks at the configuration, directories and their modes, free disk, socket, port, "
        "clock, DNS, TLS and the API key, and says of each fault what to do. A running agent "
        "is asked, and looks as its own user; with none running root has that user look."
    ),
    options=(
        Option("--here", "", "what this user sees, without asking an agent"),
        Option("--json", "", "a finding a line, as JSON"),
        *AGENT,
    ),
    exits=(
        (0, "all is well"),
        (69, "the endpoint cannot be reached"),
        (77, "a permission is missing, or the key was refused"),
        CONFIGURATION,
    ),
)

_SANDBOX = Command(
    "sandbox",
    "run a local stand-in for Komodor",
    description=(
        "Answers Komodor's two calls with its validation, shows what it received at "
        "GET /v1/events and on a page, and misbehaves on demand: POST /sandbox/faults takes "
        '{"outage": true, "failRate": 0.2, "latencyMs": 80}.'
    ),
    options=(
        Option(
            "--listen",
            "ADDRESS",
            "host:port to listen on (default 127.0.0.1:8099)",
            default="127.0.0.1:8099",
        ),
        Option("--api-key", "K", "take this key only (default: any key, but not none)"),
        Option("--inventory", "FILE", "TOML: clusters, namespaces, services", complete="file"),
        Option(
            "--fail-rate",
            "SHARE",
            "share of requests that fail (0 to 1)",
            kind="share",
            default="0",
        ),
        Option(
            "--latency",
            "D",
            "answer so late (such as 80ms)",
            kind="duration",
            default="0s",
        ),
    ),
    examples=(("outboxd sandbox --fail-rate 0.2 --latency 80ms", ""),),
)

_DEMO = Command(
    "demo",
    "see it work for real in under 30 seconds",
    description=(
        "Starts a sandbox and an agent in a temporary directory, takes the endpoint down, kills "
        "the agent, and counts at the end what was accepted, delivered, lost and duplicated."
    ),
    options=(
        Option("--gateway", "", "two hosts behind a gateway, which is killed in an outage"),
        Option("--keep", "", "leave all of it running, and say how to play with it"),
    ),
    exits=((0, "nothing was lost"), (1, "an event was lost")),
)

_SCOPE = Command(
    "scope",
    "show which services an event with this scope would reach",
    options=(
        *SCOPE,
        Option("--inventory", "FILE", "TOML: clusters, namespaces, services", complete="file"),
        JSON_LINES,
    ),
    examples=(("outboxd scope --cluster B --namespace D", ""),),
)

_TOKENS_FILE = Option(
    "--tokens-file", "FILE", "the tokens file (else as configured)", complete="file"
)

_TOKEN = Command(
    "token",
    "say who may hand events in over TCP",
    description=(
        "Works on the tokens file ([intake] tokens_file), which a gateway reads anew when it "
        "changes. A token is shown once, when it is made; the file keeps its SHA-256. Root makes "
        "a new file for the agent's user; owner and mode of one that is there stay."
    ),
    options=(CONFIG, _TOKENS_FILE),
    subcommands=(
        Command(
            "new",
            "make a token and print it, alone, on stdout",
            positionals=(Positional("NAME", "the producer's name; it may have two tokens"),),
            options=(
                Option(
                    "--cluster",
                    "C",
                    "a cluster that it may name, and that is added where it names none"
                    " (repeatable; default: any)",
                    repeated=True,
                ),
                Option(
                    "--namespace",
                    "N",
                    "the same for a namespace (repeatable; default: any)",
                    repeated=True,
                ),
                Option("--require-scope", "", "refuse an event that has no scope at all"),
                Option("--rate", "N", "at most so many events a second (default: no limit)"),
            ),
            examples=(("outboxd token new web-hosts --cluster prod --rate 50", ""),),
        ),
        Command(
            "list", "list the tokens and what they may say (the default)", options=(JSON_LINES,)
        ),
        Command(
            "revoke",
            "end all tokens of a name",
            positionals=(Positional("NAME", "the producer's name"),),
            options=(Option("--old", "", "all but the newest, which has replaced them"),),
        ),
    ),
    default="list",
    exits=(DONE, USAGE, (65, "there is no token of this name"), CONFIGURATION),
)

_WEBHOOK = Command(
    "webhook",
    "see what a webhook's payload becomes",
    description=(
        "Webhooks are taken at /v1/alertmanager and /v1/webhooks/NAME. Some mappings are shipped; "
        "[webhooks.NAME] in the configuration holds one's own."
    ),
    options=(CONFIG,),
    subcommands=(
        Command(
            "try",
            "print the events that a payload becomes; nothing is sent",
            positionals=(
                Positional("NAME", "the webhook's name, or alertmanager"),
                Positional(
                    "FILE", "the payload as the sender posts it, - for stdin", complete="file"
                ),
            ),
            examples=(("outboxd webhook try github payload.json", ""),),
        ),
        Command("list", "list the webhooks that are taken (the default)"),
    ),
    default="list",
    exits=(DONE, USAGE, (65, "the payload is no event of this webhook"), CONFIGURATION),
)

_MONITORING = Command(
    "monitoring",
    "print what a monitoring system needs",
    subcommands=(
        Command(
            "rules",
            "print alert rules for Prometheus",
            options=(
                Option("--readme", "URL", "where the alerts' runbooks are: the README's address"),
            ),
        ),
        Command("dashboard", "print a dashboard for Grafana"),
    ),
)

_COMPLETION = Command(
    "completion",
    "print a completion script for a shell",
    positionals=(Positional("SHELL", "bash, zsh or fish", choices=("bash", "zsh", "fish")),),
    examples=(
        ("outboxd completion bash > /etc/bash_completion.d/outboxd", ""),
        ('outboxd completion zsh > "${fpath[1]}/_outboxd"', ""),
        ("outboxd completion fish > ~/.config/fish/completions/outboxd.fish", ""),
    ),
)

_MANPAGE = Command(
    "manpage",
    "print the man page (roff)",
    positionals=(Positional("COMMAND", "one command's page only", count="optional", name="topic"),),
    examples=(("outboxd manpage | man -l -", "read it"),),
)

_HELP = Command(
    "help",
    "show help, also of one command",
    positionals=(
        Positional("COMMAND", "the command", count="optional", name="topic"),
        Positional("SUBCOMMAND", "its subcommand", count="optional", name="subtopic"),
    ),
)

GROUPS = (
    ("Hand in events", (EMIT, EXEC)),
    (
        "Look and mend",
        (
            *(_STATUS, _EVENTS, _WAIT, _DEAD_LETTERS, _BACKUP, _MOVE, _HOLD, _RELEASE),
            *(_PAGE_LINK, _RELOAD, _CHECK),
        ),
    ),
    ("Run", (_RUN, _SANDBOX, _DEMO)),
    ("Gateway", (_TOKEN, _WEBHOOK)),
    ("Tools", (_SCOPE, _MONITORING, _COMPLETION, _MANPAGE, _HELP)),
)
COMMANDS = {command.name: command for _, commands in GROUPS for command in commands}


def command_named(name: str) -> Command:
    """The command. Raises UsageError, with the nearest one, where there is none."""
    command = COMMANDS.get(name)
    if command is None:
        hint = did_you_mean(name, COMMANDS)[2:] or "`outboxd help` lists the commands"
        raise UsageError(f"there is no command {name!r}", hint)
    return command
