"""`outboxd completion SHELL`: what a shell offers behind `outboxd`.

The scripts are shtab's, which reads an argparse parser; that is made here from the
table of commands and parses nothing. They hold the whole table, so that pressing Tab
starts no process.
"""

from __future__ import annotations

from argparse import REMAINDER, Action, ArgumentParser
from typing import Any

import shtab

from outboxd.cli.table import COMMANDS
from outboxd.errors import EX_OK
from outboxd.producer.command_line import HELP, Arguments, Command, Option
from outboxd.producer.commands import AGENT

_COUNTS = {"one": None, "optional": "?", "any": "*", "some": "+", "rest": REMAINDER}
_OFFERED: dict[str, Any] = {
    "file": shtab.FILE,
    "directory": shtab.DIRECTORY,
    # Another program's command line, behind `exec --`.
    "program": {
        "bash": "_outboxd_program",
        "zsh": "_outboxd_program",
        "fish": "(__fish_complete_subcommand)",
        "preamble": {
            "bash": '_outboxd_program() { compgen -A command -A file -- "$1"; }',
            "zsh": "_outboxd_program() {\n"
            "  [[ $words[1] == -- ]] && { shift words; (( CURRENT-- )) }\n"
            "  _normal\n}",
        },
    },
}


def run(arguments: Arguments) -> int:
    print(script(arguments.shell))
    return EX_OK


def script(shell: str) -> str:
    """What `shell` (bash, zsh or fish) is to source; zsh's file is called _outboxd."""
    return shtab.complete(_parser(), shell, root_prefix="outboxd")


def _parser() -> ArgumentParser:
    root = ArgumentParser("outboxd", add_help=False)
    # These may also stand before the command.
    _add_options(root, (*AGENT, HELP, Option("-V, --version", "", "show the version")))
    commands = root.add_subparsers()
    for command in COMMANDS.values():
        parser = commands.add_parser(command.name, help=command.summary, add_help=False)
        # A command alone means its default subcommand.
        default = command.subcommand(command.default) if command.default else None
        _add_options(parser, (*(default.options if default else ()), *command.options, HELP))
        _add_positionals(parser, command)
        if command.subcommands:
            subcommands = parser.add_subparsers()
            for each in command.subcommands:
                parser = subcommands.add_parser(each.name, help=each.summary, add_help=False)
                _add_options(parser, (*each.options, *command.options, HELP))
                _add_positionals(parser, each)
    return root


def _add_options(parser: ArgumentParser, options: tuple[Option, ...]) -> None:
    for option in options:
        if not option.takes_value:
            parser.add_argument(*option.flags, action="store_true", help=option.help)
            continue
        action = parser.add_argument(
            *option.flags,
            action="append" if option.repeated else "store",
            choices=option.choices or None,
            help=option.help,
        )
        _offer(action, option.complete)


def _add_positionals(parser: ArgumentParser, command: Command) -> None:
    for place in command.positionals:
        # The commands that these two tell of, which the table cannot name in itself.
        choices = tuple(COMMANDS) if command.name in ("help", "manpage") else place.choices
        action = parser.add_argument(
            place.name, nargs=_COUNTS[place.count], choices=choices or None, help=place.help
        )
        _offer(action, "program" if place.count == "rest" else place.complete)


def _offer(action: Action, what: str) -> None:
    if what:
        action.complete = _OFFERED[what]  # type: ignore[attr-defined]  # where shtab looks
