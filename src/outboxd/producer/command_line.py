"""What a command line may say, as a table, and the reading of one against it.

From these few classes come parsing, `--help`, shell completion and the man
page, so that none of them can say something else than the others. The table
itself is `cli/table.py`. This room must stay light: `emit` and `exec` pass
through it in every cron job, so it imports nothing but our errors.

Rules of reading, GNU's: `--name=value` and `--name value`, `-c value` and
`-cvalue`, options before or after positionals, `--` ends the options, no
abbreviations, the last of a repeated option wins unless it may be repeated.
"""

from __future__ import annotations

from outboxd.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Any


class Option:
    """One option of a command.

    Without a metavar it is a flag. `kind` says how the value is read and under
    which name it is kept in `Arguments`:

    - `text`: as it is, `--dedup-key K` is `arguments.dedup_key`
    - `duration`: "30s" becomes seconds, `--timeout D` is `arguments.timeout_s`
    - `number`: a whole number that is not negative
    - `share`: a number from 0 to 1

    `repeated` keeps a list. `complete` tells shells what to offer: "file",
    "directory" or nothing; `choices` are offered and enforced.
    """

    __slots__ = (
        "choices",
        "complete",
        "default",
        "flags",
        "help",
        "kind",
        "metavar",
        "name",
        "repeated",
    )

    def __init__(
        self,
        flags: str,
        metavar: str,
        help: str,
        *,
        kind: str = "text",
        repeated: bool = False,
        choices: tuple[str, ...] = (),
        default: str | None = None,
        complete: str = "",
    ) -> None:
        self.flags = tuple(flags.split(", "))
        self.metavar = metavar
        self.help = help
        self.kind = kind
        self.repeated = repeated
        self.choices = choices
        self.default = default
        self.complete = complete
        name = self.flags[-1].lstrip("-").replace("-", "_")
        self.name = name + "_s" if kind == "duration" else name

    @property
    def takes_value(self) -> bool:
        return self.metavar != ""

    def initial(self) -> object:
        """The value where the command line does not name this option."""
        if not self.takes_value:
            return False
        if self.repeated:
            return []
        return None if self.default is None else self.read(self.default)

    def read(self, text: str) -> object:
        """The value that the text stands for, or a UsageError that says what is allowed."""
        if self.choices and text not in self.choices:
            allowed = ", ".join(self.choices)
            raise UsageError(
                f"{self.flags[-1]} cannot be {text!r}",
                f"it is one of: {allowed}{did_you_mean(text, self.choices)}",
            )
        if self.kind == "text":
            return text
        return READERS[self.kind](self.flags[-1], text)


class Positional:
    """A place on the command line. `count`: "one", "optional" (None where it is
    missing), "any" (a list, may be empty), "some" (a list, at least one), "rest"
    (like some, and nothing behind its first word is an option of ours)."""

    __slots__ = ("choices", "complete", "count", "help", "metavar", "name")

    def __init__(
        self,
        metavar: str,
        help: str,
        *,
        count: str = "one",
        choices: tuple[str, ...] = (),
        complete: str = "",
        name: str = "",
    ) -> None:
        self.metavar = metavar
        self.help = help
        self.count = count
        self.choices = choices
        self.complete = complete
        # `command` and `subcommand` are taken, so some give a name of their own.
        self.name = name or metavar.lower().replace("-", "_")

    @property
    def usage(self) -> str:
        return {
            "one": "{}",
            "optional": "[{}]",
            "any": "[{}...]",
            "some": "{}...",
            "rest": "-- {}...",
        }[self.count].format(self.metavar)


class Command:
    """A command, or a subcommand of one.

    `default` names the subcommand that is meant where none is given. Of an
    `exclusive` group of options (by their names in `Arguments`) only one may
    be given.
    """

    __slots__ = (
        "default",
        "description",
        "examples",
        "exclusive",
        "exits",
        "name",
        "options",
        "positionals",
        "subcommands",
        "summary",
    )

    def __init__(
        self,
        name: str,
        summary: str,
        *,
        description: str = "",
        positionals: tuple[Positional, ...] = (),
        options: tuple[Option, ...] = (),
        subcommands: tuple[Command, ...] = (),
        default: str | None = None,
        exclusive: tuple[tuple[str, ...], ...] = (),
        exits: tuple[tuple[int | str, str], ...] = (),
        examples: tuple[tuple[str, str], ...] = (),
    ) -> None:
        self.name = name
        self.summary = summary
        self.description = description
        self.positionals = positionals
        self.options = options
        self.subcommands = subcommands
        self.default = default
        self.exclusive = exclusive
        self.exits = exits
        self.examples = examples

    def subcommand(self, name: str) -> Command | None:
        for subcommand in self.subcommands:
            if subcommand.name == name:
                return subcommand
        return None


class Arguments:
    """What a command line said: one attribute for each option and positional,
    `command`, `subcommand` (None where the command has none), and `given`, the
    names of the options that were on the line."""

    command: str
    subcommand: str | None
    given: frozenset[str]

    def __init__(self, values: dict[str, object]) -> None:
        self.__dict__.update(values)

    def __repr__(self) -> str:
        return f"Arguments({self.__dict__!r})"

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...


class HelpWanted(Exception):
    """`--help` stood on the line: show it for this command."""

    def __init__(self, command: Command, subcommand: Command | None) -> None:
        super().__init__(command.name)
        self.command = command
        self.subcommand = subcommand


HELP = Option("-h, --help", "", "show this help")


def parse(command: Command, words: Sequence[str]) -> Arguments:
    """Read the words behind the command's name."""
    words = list(words)
    subcommand = _take_subcommand(command, words) if command.subcommands else None
    wanted = HelpWanted(command, subcommand)
    called = f"{command.name} {subcommand.name}" if subcommand else command.name
    options = command.options + subcommand.options if subcommand else command.options
    positionals = subcommand.positionals if subcommand else command.positionals
    if command.subcommands and subcommand is None:
        if any(word in HELP.flags for word in words):
            raise wanted
        names = ", ".join(each.name for each in command.subcommands)
        raise UsageError(f"{command.name} needs a subcommand", f"one of: {names}")
    table = flag_table((*options, HELP))
    values: dict[str, object] = {option.name: option.initial() for option in options}
    given: set[str] = set()
    free: list[str] = []
    stops_at_word = bool(positionals) and positionals[-1].count == "rest"
    index = 0
    while index < len(words):
        word = words[index]
        index += 1
        if word == "--":
            free += words[index:]
            break
        if word == "-" or not word.startswith("-"):
            free.append(word)
            if stops_at_word and len(free) >= len(positionals):
                free += words[index:]
                break
            continue
        for option, text in _options_of(word, table, called, bool(positionals)):
            if option is HELP:
                raise wanted
            if text is None and option.takes_value:
                if index == len(words):
                    raise UsageError(
                        f"{option.flags[-1]} needs a value",
                        f"write {option.flags[-1]} {option.metavar}",
                    )
                text = words[index]
                index += 1
            _keep(values, option, text)
            given.add(option.name)
    _check_exclusive(command, subcommand, given, options)
    _place(values, positionals, free, called)
    values["command"] = command.name
    values["subcommand"] = subcommand.name if subcommand else None
    values["given"] = frozenset(given)
    return Arguments(values)


def flag_table(options: Iterable[Option]) -> dict[str, Option]:
    """Each flag with its option."""
    return {flag: option for option in options for flag in option.flags}


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`; did you mean X?`, or nothing where no known word is near."""
    # Here, because difflib imports re, and only a wrong line pays for it.
    from difflib import get_close_matches

    near = get_close_matches(word, list(known), 1, 0.6)
    return f"; did you mean {near[0]}?" if near else ""


def _take_subcommand(command: Command, words: list[str]) -> Command | None:
    """Find the subcommand's name among the words, and take it out."""
    every = [*command.options, HELP]
    for subcommand in command.subcommands:
        every += subcommand.options
    table = flag_table(every)
    index = 0
    while index < len(words):
        word = words[index]
        if word == "--":
            break
        if word == "-" or not word.startswith("-"):
            found = command.subcommand(word)
            if found is None:
                names = [each.name for each in command.subcommands]
                raise UsageError(
                    f"{command.name} has no subcommand {word!r}",
                    f"one of: {', '.join(names)}{did_you_mean(word, names)}",
                )
            del words[index]
            return found
        options = _options_of(word, table, command.name, has_positionals=True)
        option, text = options[-1]
        index += 2 if option.takes_value and text is None else 1
    if command.default is None or any(word in HELP.flags for word in words):
        return None
    return command.subcommand(command.default)


def _options_of(
    word: str, table: dict[str, Option], called: str, has_positionals: bool
) -> list[tuple[Option, str | None]]:
    """The options that one word names, each with the value glued to it."""
    if word.startswith("--"):
        flag, equals, text = word.partition("=")
        option = table.get(flag)
        if option is None:
            raise _unknown(flag, table, called, has_positionals)
        if equals and not option.takes_value:
            raise UsageError(f"{flag} takes no value", f"write {flag} alone")
        return [(option, text if equals else None)]
    found: list[tuple[Option, str | None]] = []
    for place in range(1, len(word)):
        flag = "-" + word[place]
        option = table.get(flag)
        if option is None:
            raise _unknown(flag if place > 1 else word, table, called, has_positionals)
        if option.takes_value:
            found.append((option, word[place + 1 :] or None))
            break
        found.append((option, None))
    return found


def _unknown(flag: str, table: dict[str, Option], called: str, has_positionals: bool) -> UsageError:
    hint = f"`outboxd {called} --help` lists them"
    near = did_you_mean(flag, table)
    if near:
        hint = near[2:]
    elif has_positionals:
        hint += "; put -- before a word that starts with a dash"
    return UsageError(f"{called} has no option {flag}", hint)


def _keep(values: dict[str, object], option: Option, text: str | None) -> None:
    if text is None:
        values[option.name] = True
    elif option.repeated:
        kept = values[option.name]
        assert isinstance(kept, list)
        kept.append(option.read(text))
    else:
        values[option.name] = option.read(text)


def _check_exclusive(
    command: Command, subcommand: Command | None, given: set[str], options: tuple[Option, ...]
) -> None:
    for group in command.exclusive + (subcommand.exclusive if subcommand else ()):
        both = [option.flags[-1] for option in options if option.name in given.intersection(group)]
        if len(both) > 1:
            raise UsageError(f"{both[0]} and {both[1]} exclude each other", "give one of them")


def _place(
    values: dict[str, object], positionals: tuple[Positional, ...], free: list[str], called: str
) -> None:
    """Give the free words to the positionals, in order."""
    for positional in positionals:
        if positional.count in ("any", "some", "rest"):
            if positional.count != "any" and not free:
                raise _missing(positional, called)
            values[positional.name] = free
            return
        if not free:
            if positional.count == "one":
                raise _missing(positional, called)
            values[positional.name] = None
            continue
        word = free.pop(0)
        if positional.choices and word not in positional.choices:
            raise UsageError(
                f"{called} does not know {word!r}",
                f"{positional.metavar} is one of: {', '.join(positional.choices)}"
                f"{did_you_mean(word, positional.choices)}",
            )
        values[positional.name] = word
    if free:
        raise UsageError(f"{called} does not expect {free[0]!r}", f"see `outboxd {called} --help`")


def _missing(positional: Positional, called: str) -> UsageError:
    return UsageError(f"{called} needs {positional.metavar}", positional.help)


def _read_duration(flag: str, text: str) -> float:
    from outboxd.units import parse_duration

    try:
        return parse_duration(text)
    except ValueError as error:
        raise UsageError(f"{flag} cannot be {text!r}", str(error)) from None


def _read_number(flag: str, text: str) -> int:
    # isdecimal alone also takes other scripts' digits; int() of a very long
    # number is refused by the interpreter.
    if not (text.isascii() and text.isdecimal()) or len(text) > 18:
        raise UsageError(f"{flag} cannot be {text!r}", "it is a whole number such as 50")
    return int(text)


def _read_share(flag: str, text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not 0.0 <= share <= 1.0:
        raise UsageError(f"{flag} cannot be {text!r}", "it is a number from 0 to 1, such as 0.2")
    return share


READERS = {"duration": _read_duration, "number": _read_number, "share": _read_share}
