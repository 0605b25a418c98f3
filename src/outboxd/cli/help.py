"""`--help` and `outboxd help`, laid out from the table of commands.

Text alone: it must look at nothing but the table and the terminal's width.
"""

from __future__ import annotations

import os
import textwrap

from outboxd.cli.table import GROUPS, command_named
from outboxd.errors import EX_OK, UsageError
from outboxd.producer.command_line import HELP, Arguments, Command, Option

WIDTH_MIN, WIDTH_DEFAULT, WIDTH_MAX = 40, 80, 100
TERMS_WIDTH_MAX = 24


def run(arguments: Arguments) -> int:
    if arguments.topic is None:
        print(main_help(), end="")
        return EX_OK
    command = command_named(arguments.topic)
    subcommand = None
    if arguments.subtopic is not None:
        subcommand = command.subcommand(arguments.subtopic)
        if subcommand is None:
            names = [each.name for each in command.subcommands]
            raise UsageError(
                f"{command.name} has no subcommand {arguments.subtopic!r}",
                f"one of: {', '.join(names)}" if names else None,
            )
    print(command_help(command, subcommand), end="")
    return EX_OK


def main_help() -> str:
    """All commands, a line each."""
    lines = [
        "Usage: outboxd COMMAND [OPTIONS]",
        "",
        *_wrapped(
            "Gets events to Komodor's timeline whatever happens to the network, the"
            " process or the host."
        ),
    ]
    for title, commands in GROUPS:
        lines += ["", f"{title}:"]
        lines += _terms([(command.name, command.summary) for command in commands])
    lines += [
        "",
        "Options:",
        *_terms([(", ".join(HELP.flags), HELP.help), ("-V, --version", "show the version")]),
        "",
        *_wrapped("`outboxd COMMAND --help` says more of a command."),
    ]
    return "\n".join(lines) + "\n"


def command_help(command: Command, subcommand: Command | None = None) -> str:
    """Everything that the table says of one command, or of a subcommand."""
    shown = subcommand or command
    lines = [
        f"Usage: {line}" if place == 0 else f"       {line}"
        for place, line in enumerate(usages(command, subcommand))
    ]
    lines += ["", *_wrapped(sentence(shown.summary))]
    if shown.description:
        lines += ["", *_wrapped(shown.description)]
    if shown.subcommands:
        lines += ["", "Subcommands:"]
        lines += _terms([(each.name, each.summary) for each in shown.subcommands])
    if shown.positionals:
        lines += ["", "Arguments:"]
        lines += _terms([(each.metavar, each.help) for each in shown.positionals])
    for title, options in option_groups(command, subcommand):
        lines += ["", f"{title}:"]
        lines += _terms([(option_usage(option), option.help) for option in options])
    exits = shown.exits or command.exits
    if exits:
        lines += ["", "Exit codes:", *_terms([(str(code), text) for code, text in exits])]
    if shown.examples:
        lines += ["", "Examples:"]
        for example, remark in shown.examples:
            lines.append(f"  {example}" + (f"   # {remark}" if remark else ""))
    return "\n".join(lines) + "\n"


def usages(command: Command, subcommand: Command | None = None) -> list[str]:
    """The forms that a command line can take."""
    if subcommand is None and command.subcommands:
        found = []
        for each in command.subcommands:
            name = f"[{each.name}]" if each.name == command.default else each.name
            found.append(_usage(f"{command.name} {name}", each))
        return found
    called = f"{command.name} {subcommand.name}" if subcommand else command.name
    return [_usage(called, subcommand or command)]


def option_groups(
    command: Command, subcommand: Command | None = None
) -> list[tuple[str, tuple[Option, ...]]]:
    """The options by title, `--help` last. A command with subcommands shows all theirs."""
    groups: list[tuple[str, tuple[Option, ...]]] = []
    if subcommand is not None:
        own = subcommand.options + command.options
        groups.append(("Options", (*own, HELP)))
        return groups
    for each in command.subcommands:
        if each.options:
            groups.append((f"Options of {each.name}", each.options))
    groups.append(("Options", (*command.options, HELP)))
    return groups


def option_usage(option: Option) -> str:
    """`--name VALUE`, as help and man page write it."""
    flags = ", ".join(option.flags)
    return f"{flags} {option.metavar}" if option.takes_value else flags


def sentence(text: str) -> str:
    """The text with a capital letter and a full stop."""
    return text[0].upper() + text[1:] + "."


def _usage(called: str, command: Command) -> str:
    parts = ["outboxd", called, "[OPTIONS]"]
    parts += [positional.usage for positional in command.positionals]
    return " ".join(parts)


def _width() -> int:
    try:
        columns = os.get_terminal_size(1).columns
    except OSError:
        columns = WIDTH_DEFAULT
    return max(WIDTH_MIN, min(columns, WIDTH_MAX))


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, _width(), break_on_hyphens=False)


def _terms(terms: list[tuple[str, str]]) -> list[str]:
    """Two columns; a term too wide for its column stands on a line of its own."""
    indent = min(max(len(term) for term, _ in terms), TERMS_WIDTH_MAX) + 4
    lines: list[str] = []
    for term, text in terms:
        wrapped = textwrap.wrap(text, max(_width() - indent, 20), break_on_hyphens=False)
        head = f"  {term}"
        if len(head) + 2 > indent:
            lines.append(head)
            head = ""
        first, *others = wrapped or [""]
        lines.append(head.ljust(indent) + first)
        lines += [" " * indent + other for other in others]
    return lines
