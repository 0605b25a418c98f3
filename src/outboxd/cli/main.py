"""The command `outboxd`: finds the command that is meant and runs it.

Each command is a file of this package that is imported only when it is run,
because `emit` and `exec` stand in crontabs and must start at once. No
traceback ever reaches a user from here: an error of ours is one line and a
hint, anything else is an internal error and says how to report it.
"""

from __future__ import annotations

import errno
import os
import sys

from outboxd.cli.spec import HELP, Arguments, Command, HelpWanted, did_you_mean, parse
from outboxd.cli.table import AGENT, COMMANDS
from outboxd.errors import (
    EX_IOERR,
    EX_OK,
    EX_SOFTWARE,
    EX_USAGE,
    EventError,
    OutboxdError,
    UsageError,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

EXIT_INTERRUPTED = 130  # 128 + SIGINT
EXIT_BROKEN_PIPE = 141  # 128 + SIGPIPE, as programs end whose reader has gone
MESSAGE_CHARACTERS_MAX = 4000


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; gives its exit code."""
    try:
        code = dispatch(list(sys.argv[1:] if argv is None else argv))
        _flush()
        return code
    except OutboxdError as error:
        report(error)
        return error.exit_code
    except BrokenPipeError:
        _silence()
        return EXIT_BROKEN_PIPE
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except Exception as error:
        if _is_of_output(error):
            say(f"the output could not be written: {error.strerror}")  # type: ignore[attr-defined]
            _silence()
            return EX_IOERR
        return _internal_error(error)


def dispatch(words: list[str]) -> int:
    """Find the command, read its words, run it."""
    name, rest = split_command(words)
    if name is None:
        return _without_command(rest)
    command = COMMANDS.get(name)
    if command is None:
        hint = did_you_mean(name, COMMANDS)[2:] or "`outboxd help` lists the commands"
        raise UsageError(f"there is no command {name!r}", hint)
    try:
        arguments = parse(command, rest)
    except HelpWanted as wanted:
        return _show_help(wanted.command, wanted.subcommand)
    return run_command(arguments)


def run_command(arguments: Arguments) -> int:
    """Import the command's file, and run it."""
    module_name = arguments.command.replace("-", "_")
    if module_name == "exec":
        module_name = "exec_"  # exec is a builtin's name
    full_name = f"outboxd.cli.{module_name}"
    __import__(full_name)
    code = sys.modules[full_name].run(arguments)
    assert isinstance(code, int), f"{full_name}.run must give an exit code"
    return code


def split_command(words: list[str]) -> tuple[str | None, list[str]]:
    """The command's name and the words for it.

    `-c FILE` and `--socket PATH` may also stand before the command, as with
    git and systemctl; they are then handed to it."""
    before: list[str] = []
    index = 0
    while index < len(words) and words[index].startswith("-") and words[index] != "-":
        word = words[index]
        index += 1
        before.append(word)
        if word == "--":
            break
        if any(word in option.flags for option in AGENT) and index < len(words):
            before.append(words[index])
            index += 1
    if index == len(words) or "--" in before or "--version" in before:
        return None, words
    if any(word in HELP.flags for word in before):
        return "help", [words[index]]
    return words[index], before + words[index + 1 :]


def report(error: OutboxdError) -> None:
    """An error on stderr: what failed, and what to do next."""
    if isinstance(error, EventError):
        # One line: it often ends in a mail or a log beside many others.
        field = f"{error.field}: " if error.field and error.field not in error.message else ""
        hint = f" ({error.hint})" if error.hint else ""
        say(f"{field}{error.message}{hint}")
        return
    say(error.message)
    if error.hint:
        say(f"hint: {error.hint}")


def say(text: str) -> None:
    """One line on stderr, whatever the text holds; never fails."""
    line = printable(text)
    if len(line) > MESSAGE_CHARACTERS_MAX:
        line = line[:MESSAGE_CHARACTERS_MAX] + "..."
    try:
        if sys.stderr is not None:
            sys.stderr.write(f"outboxd: {line}\n")
            sys.stderr.flush()
    except (OSError, ValueError):
        pass  # nobody reads it; the exit code still tells


def printable(text: str) -> str:
    """The text in one line that cannot steer a terminal."""
    if text.isprintable():
        return text
    return "".join(
        each if each.isprintable() else each.encode("unicode_escape").decode("ascii")
        for each in text
    )


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


def _flush() -> None:
    if sys.stdout is not None:
        sys.stdout.flush()


def _is_of_output(error: Exception) -> bool:
    """Whether it comes from writing our output. Of files that we open ourselves an
    error knows the name, and those that matter are told where they are used."""
    full_or_broken = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG)
    return isinstance(error, OSError) and error.filename is None and error.errno in full_or_broken


def _silence() -> None:
    """Point stdout to nowhere, so that the interpreter's own flush at its end is quiet."""
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.close(nowhere)
    except OSError:
        pass


def _internal_error(error: Exception) -> int:
    if os.environ.get("OUTBOXD_DEBUG") == "1":
        import traceback

        traceback.print_exc()
    say(f"internal error: {type(error).__name__}: {error}")
    say("hint: please report it to the project, with what it prints under OUTBOXD_DEBUG=1")
    return EX_SOFTWARE
