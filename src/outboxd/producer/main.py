"""The command line of the producers' side: `emit` and `exec`, and whose the others are.

As installed on a host, `outboxd` is this room alone in one file, run by the
system's own Python apart from everything in the environment, so that jobs run
and events are kept whatever becomes of the full program. Any other command is
the full program's: this process becomes it. No traceback ever reaches a user
from here: an error of ours is one line and a hint, anything else is an
internal error and says how to report it.
"""

from __future__ import annotations

import errno
import os
import sys

from outboxd.errors import EX_IOERR, EX_OK, EX_SOFTWARE, EX_UNAVAILABLE, OutboxdError
from outboxd.producer.command_line import HELP, Arguments, HelpWanted, parse
from outboxd.producer.commands import AGENT, EMIT, EXEC
from outboxd.producer.messages import report, say, settle, silence

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

COMMANDS = {"emit": EMIT, "exec": EXEC}
EXIT_INTERRUPTED = 130  # 128 + SIGINT
EXIT_BROKEN_PIPE = 141  # 128 + SIGPIPE, as programs end whose reader has gone


def main(environment: str, argv: Sequence[str] | None = None) -> int:
    """Run one command line of the installed `outboxd`, whose full program is in that virtual
    environment; gives the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    return guarded(lambda: _dispatch(environment, words))


def guarded(run: Callable[[], int]) -> int:
    """The exit code of `run`, whatever it raises."""
    try:
        code = run()
        if sys.stdout is not None:
            sys.stdout.flush()
        return code
    except OutboxdError as error:
        report(error)
        return error.exit_code
    except BrokenPipeError:
        silence(1)
        return EXIT_BROKEN_PIPE
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except ImportError as error:
        from outboxd.producer import full_program

        report(full_program.incomplete(error))
        return EX_UNAVAILABLE
    except Exception as error:
        if _is_of_output(error):
            say(f"the output could not be written: {error.strerror}")  # type: ignore[attr-defined]
            silence(1)
            return EX_IOERR
        return _internal_error(error)
    finally:
        settle()


def run_command(arguments: Arguments) -> int:
    """Run `emit` or `exec`; only the one that is called is imported."""
    if arguments.command == "exec":
        from outboxd.producer import exec_command

        return exec_command.run(arguments)
    from outboxd.producer import emit_command

    return emit_command.run(arguments)


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


def _dispatch(environment: str, words: list[str]) -> int:
    name, rest = split_command(words)
    if name in COMMANDS:
        try:
            return run_command(parse(COMMANDS[name], rest))
        except HelpWanted:
            pass  # laid out by the full program
    elif name is None and words in (["--version"], ["-V"]):
        from outboxd import __version__

        print(f"outboxd {__version__}")
        return EX_OK
    from outboxd.producer import full_program

    return full_program.become(environment, words)


def _is_of_output(error: Exception) -> bool:
    """Whether it comes from writing our output. Of files that we open ourselves an
    error knows the name, and those that matter are told where they are used."""
    full_or_broken = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG)
    return isinstance(error, OSError) and error.filename is None and error.errno in full_or_broken


def _internal_error(error: Exception) -> int:
    if os.environ.get("OUTBOXD_DEBUG") == "1":
        import traceback

        traceback.print_exc()
    say(f"internal error: {type(error).__name__}: {error}")
    say("hint: please report it to the project, with what it prints under OUTBOXD_DEBUG=1")
    return EX_SOFTWARE
