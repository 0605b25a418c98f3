"""The command `outboxd`: finds the command that is meant and runs it.

Each command is a file of this package that is imported only when it is run;
`emit` and `exec` are the producers' (`outboxd.producer`), whose main does the
same for them where the rest cannot even start.
"""

from __future__ import annotations

import sys

from outboxd.cli.table import command_named
from outboxd.errors import EX_OK, EX_USAGE, UsageError
from outboxd.producer import main as producers
from outboxd.producer.command_line import (
    HELP,
    Arguments,
    Command,
    HelpWanted,
    did_you_mean,
    parse,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; gives its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    return producers.guarded(lambda: dispatch(words))


def dispatch(words: list[str]) -> int:
    """Find the command, read its words, run it."""
    name, rest = producers.split_command(words)
    if name is None:
        return _without_command(rest)
    try:
        arguments = parse(command_named(name), rest)
    except HelpWanted as wanted:
        return _show_help(wanted.command, wanted.subcommand)
    return run_command(arguments)


def run_command(arguments: Arguments) -> int:
    """Import the command's file, and run it."""
    if arguments.command in producers.COMMANDS:
        return producers.run_command(arguments)
    full_name = f"outboxd.cli.{arguments.command.replace('-', '_')}"
    __import__(full_name)
    code = sys.modules[full_name].run(arguments)
    assert isinstance(code, int), f"{full_name}.run must give an exit code"
    return code


def _without_command(words: list[str]) -> int:
    if "--version" in words or "-V" in words:
        from outboxd import __version__

        print(f"outboxd {__version__}")
        return EX_OK
    from outboxd.cli.help import main_help

    if any(word in HELP.flags for word in words):
        print(main_help(), end="")
        return EX_OK
    if words:
        known = ("--help", "--version")
        hint = did_you_mean(words[0], known)[2:] or "`outboxd help` lists the commands"
        raise UsageError(f"there is no command in {' '.join(words)!r}", hint)
    if sys.stderr is not None:
        sys.stderr.write(main_help())
    return EX_USAGE


def _show_help(command: Command, subcommand: Command | None) -> int:
    from outboxd.cli.help import command_help

    print(command_help(command, subcommand), end="")
    return EX_OK
