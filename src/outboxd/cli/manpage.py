"""`outboxd manpage`: the man page, made from the same table as `--help`.

Roff on stdout, to be read with `man -l -` or installed as outboxd.1.

By hand, and not by argparse-manpage over the parser that shell completion has: that was
tried (4.8). An argparse parser knows neither groups of commands nor a default subcommand,
so its page has `events SUBCOMMAND ...` where `outboxd events --state pending` is what
people type, a section for each of sixty subcommands, and no exit codes or examples that
roff could set; it is a fourth longer.
"""

from __future__ import annotations

from outboxd import __version__
from outboxd.cli.help import option_groups, option_usage, sentence, usages
from outboxd.cli.table import GROUPS, command_named
from outboxd.errors import EX_OK
from outboxd.producer.command_line import Arguments, Command, Option

SUMMARY = "gets events to Komodor's timeline whatever happens"
DESCRIPTION = (
    "outboxd is a local agent. Programs on this host hand it events over a Unix socket or a "
    "spool directory; it commits them to an outbox before it answers, and delivers them over "
    "HTTPS. An event that got a receipt is delivered, or still in the outbox, or among the dead "
    "letters with the reason."
)
FILES = (
    ("/etc/outboxd/config.toml", "The configuration, where neither -c nor $OUTBOXD_CONFIG says."),
)
ENVIRONMENT = (
    ("OUTBOXD_CONFIG", "The configuration file."),
    ("KOMODOR_API_KEY", "The API key; else api_key_file, else systemd's credential."),
    ("OUTBOXD_GATEWAY", "The gateway that emit and exec hand in to; its token is OUTBOXD_TOKEN."),
    ("OUTBOXD_GATEWAY_CA", "A PEM file with that gateway's authority."),
    ("OUTBOXD_DEBUG", "1 shows the traceback of an internal error."),
)
EXITS = (
    ("0", "Done."),
    ("64", "The command line is wrong."),
    ("65", "The event, or an id, is not valid."),
    ("69", "The agent or Komodor cannot be reached."),
    ("70", "An internal error."),
    ("74", "The disk failed a sync."),
    ("75", "It could be stored nowhere: try again."),
    ("77", "Not permitted."),
    ("78", "The configuration is wrong."),
)


def run(arguments: Arguments) -> int:
    if arguments.topic is None:
        print(whole_page(), end="")
        return EX_OK
    command = command_named(arguments.topic)
    print(command_page(command), end="")
    return EX_OK


def whole_page() -> str:
    """outboxd(1)."""
    lines = _head("OUTBOXD", "outboxd", SUMMARY)
    lines += [".SH SYNOPSIS", ".B outboxd", r".I command", r"[\fIoptions\fR]"]
    lines += [".SH DESCRIPTION", _escaped(DESCRIPTION)]
    for title, commands in GROUPS:
        lines += [f".SH {_heading(title)}"]
        for command in commands:
            lines += _command(command)
    lines += [".SH EXIT STATUS"]
    lines += _terms(EXITS, "B")
    lines += [".SH FILES", *_terms(FILES, "I"), ".SH ENVIRONMENT", *_terms(ENVIRONMENT, "B")]
    return "\n".join(lines) + "\n"


def command_page(command: Command) -> str:
    """outboxd-COMMAND(1)."""
    lines = _head(f"OUTBOXD-{command.name.upper()}", f"outboxd-{command.name}", command.summary)
    lines += [".SH SYNOPSIS", *_synopsis(command)]
    lines += [".SH DESCRIPTION", _escaped(_description(command))]
    lines += _positionals(command, ".SH ARGUMENTS")
    for title, options in option_groups(command):
        lines += [f".SH {_heading(title)}", *_options(options)]
    if command.exits:
        lines += [".SH EXIT STATUS"]
        lines += _terms([(str(code), sentence(text)) for code, text in command.exits], "B")
    examples = [*command.examples, *(each for sub in command.subcommands for each in sub.examples)]
    if examples:
        lines += [".SH EXAMPLES", ".nf", *(_escaped(example) for example, _ in examples), ".fi"]
    lines += [".SH SEE ALSO", ".BR outboxd (1)"]
    return "\n".join(lines) + "\n"


def _command(command: Command) -> list[str]:
    lines = [f".SS {_escaped(command.name)}", *_synopsis(command), ".PP"]
    lines += [_escaped(_description(command))]
    lines += _positionals(command, ".PP")
    for _, options in option_groups(command):
        lines += _options(options[:-1] if options[-1].name == "help" else options)
    return lines


def _head(title: str, name: str, summary: str) -> list[str]:
    return [
        f'.TH {_escaped(title)} 1 "" "outboxd {__version__}" "User Commands"',
        ".SH NAME",
        rf"{_escaped(name)} \- {_escaped(summary)}",
    ]


def _synopsis(command: Command) -> list[str]:
    lines: list[str] = []
    for usage in usages(command):
        lines += [".br"] if lines else []
        lines.append(rf"\fB{_escaped(usage)}\fR")
    return lines


def _description(command: Command) -> str:
    text = sentence(command.summary)
    text += f" {command.description}" if command.description else ""
    for subcommand in command.subcommands:
        text += f" {subcommand.name}: {subcommand.summary}."
    return text


def _positionals(command: Command, opening: str) -> list[str]:
    if not command.positionals:
        return []
    return [opening, *_terms([(each.metavar, each.help) for each in command.positionals], "I")]


def _options(options: tuple[Option, ...]) -> list[str]:
    return _terms([(option_usage(option), option.help) for option in options], "B")


def _terms(terms: tuple[tuple[str, str], ...] | list[tuple[str, str]], font: str) -> list[str]:
    lines: list[str] = []
    for term, text in terms:
        lines += [".TP", f".{font} {_escaped(term)}", _escaped(text)]
    return lines


def _heading(title: str) -> str:
    return _escaped(title.upper())


def _escaped(text: str) -> str:
    """Text that roff takes as it is: its own characters and dots at a line's start."""
    text = text.replace("\\", r"\e").replace("-", r"\-").replace("'", r"\(aq")
    text = text.replace("`", r"\(ga").replace("~", r"\(ti").replace("^", r"\(ha")
    text = text.replace('"', r"\(dq")
    return rf"\&{text}" if text.startswith((".", "'")) else text
