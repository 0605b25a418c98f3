"""`outboxd completion SHELL`: what a shell offers behind `outboxd`.

Made from the table of commands and nothing else. The scripts hold the whole
table, so that pressing Tab starts no process.
"""

from __future__ import annotations

from collections.abc import Iterable

from outboxd.cli.table import COMMANDS
from outboxd.errors import EX_OK
from outboxd.producer.command_line import HELP, Arguments, Command, Option, Positional
from outboxd.producer.commands import AGENT

VERSION_FLAGS = ("-V", "--version")


def run(arguments: Arguments) -> int:
    print({"bash": bash, "zsh": zsh, "fish": fish}[arguments.shell](), end="")
    return EX_OK


def bash() -> str:
    """A script for bash, which needs nothing but bash itself."""
    words = [f"    [:]={_quoted(' '.join((*COMMANDS, *HELP.flags, *VERSION_FLAGS)))}"]
    # These may also stand before the command.
    values = [f"    [::{flag}]=@file" for option in AGENT for flag in option.flags]
    for called, command, subcommand in _all_forms():
        offered = [*(each.name for each in command.subcommands if subcommand is None)]
        offered += _choices(called, command, subcommand)
        offered += [flag for option in _options(command, subcommand) for flag in option.flags]
        words.append(f"    [{called}]={_quoted(' '.join(offered))}")
        for option in _options(command, subcommand):
            for flag in option.flags:
                if option.takes_value:
                    values.append(f"    [{called}:{flag}]={_quoted(_bash_value(option))}")
    subcommands = [
        f"    [{command.name}]={_quoted(' '.join(each.name for each in command.subcommands))}"
        for command in COMMANDS.values()
        if command.subcommands
    ]
    return BASH.format(
        words="\n".join(words), values="\n".join(values), subcommands="\n".join(subcommands)
    )


def zsh() -> str:
    """A script for zsh; its file is called _outboxd and stands in a directory of $fpath."""
    cases = []
    for command in COMMANDS.values():
        body = _zsh_arguments(command, None)
        if command.subcommands:
            inner = "\n".join(
                f"        {each.name})\n          shift words; (( CURRENT-- ))\n"
                f"{_zsh_arguments(command, each, 10)} ;;"
                for each in command.subcommands
            )
            names = " ".join(_quoted(f"{each.name}:{each.summary}") for each in command.subcommands)
            body = ZSH_SUBCOMMANDS.format(names=names, inner=inner, default=body)
        cases.append(f"    {command.name})\n{body} ;;")
    commands = "\n".join(
        f"    {_quoted(f'{command.name}:{command.summary}')}" for command in COMMANDS.values()
    )
    return ZSH.format(commands=commands, cases="\n".join(cases))


def fish() -> str:
    """A script for fish."""
    lines = [FISH.rstrip("\n")]
    none = "__outboxd_is ''"
    for command in COMMANDS.values():
        lines.append(_fish(none, f"-a {command.name}", command.summary))
    lines.append(_fish(none, "-s h -l help", HELP.help))
    lines.append(_fish(none, "-s V -l version", "show the version"))
    for called, command, subcommand in _all_forms():
        here = f"__outboxd_is {_quoted(called)}"
        if subcommand is None:
            lines += [_fish(here, f"-a {each.name}", each.summary) for each in command.subcommands]
        for choice in _choices(called, command, subcommand):
            lines.append(_fish(here, f"-a {choice}", ""))
        for option in _options(command, subcommand):
            lines.append(_fish(here, _fish_option(option), option.help))
    return "\n".join(lines) + "\n"


def _all_forms() -> Iterable[tuple[str, Command, Command | None]]:
    """Each command alone, then with each subcommand, and how it is called."""
    for command in COMMANDS.values():
        yield command.name, command, None
        for subcommand in command.subcommands:
            yield f"{command.name} {subcommand.name}", command, subcommand


def _options(command: Command, subcommand: Command | None) -> tuple[Option, ...]:
    """What may stand here; a command alone means its default subcommand too."""
    if subcommand is None and command.default is not None:
        subcommand = command.subcommand(command.default)
    return (*(subcommand.options if subcommand else ()), *command.options, HELP)


def _positionals(command: Command, subcommand: Command | None) -> tuple[Positional, ...]:
    return (subcommand or command).positionals


def _choices(called: str, command: Command, subcommand: Command | None) -> list[str]:
    if called in ("help", "manpage"):
        return list(COMMANDS)
    return [each for place in _positionals(command, subcommand) for each in place.choices]


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


def _bash_value(option: Option) -> str:
    if option.choices:
        return " ".join(option.choices)
    return {"file": "@file", "directory": "@directory"}.get(option.complete, "")


def _zsh_arguments(command: Command, subcommand: Command | None, indent: int = 6) -> str:
    specs: list[str] = []
    for option in _options(command, subcommand):
        repeat = "*" if option.repeated else ""
        text = option.help.replace("[", "(").replace("]", ")").replace(":", " -")
        for flag in option.flags:
            equals = "=" if option.takes_value and flag.startswith("--") else ""
            spec = f"{repeat}{flag}{equals}[{text}]"
            if option.takes_value:
                spec += f":{option.metavar}:{_zsh_action(option.choices, option.complete)}"
            specs.append(_quoted(spec))
    for place in _positionals(command, subcommand):
        if place.count == "rest":
            specs.append(_quoted("*::command:_normal"))
            continue
        choices = tuple(COMMANDS) if command.name in ("help", "manpage") else place.choices
        many = "*" if place.count in ("any", "some") else ""
        specs.append(_quoted(f"{many}:{place.metavar}:{_zsh_action(choices, place.complete)}"))
    space = " " * indent
    joined = f" \\\n{space}  ".join(specs)
    return f"{space}_arguments -s \\\n{space}  {joined}"


def _zsh_action(choices: tuple[str, ...], complete: str) -> str:
    if choices:
        return f"({' '.join(choices)})"
    return {"file": "_files", "directory": "_directories"}.get(complete, " ")


def _fish(condition: str, what: str, text: str) -> str:
    line = f'complete -c outboxd -n "{condition}" {what}'
    return f"{line} -d {_fish_quoted(text)}" if text else line


def _fish_quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _fish_option(option: Option) -> str:
    parts = [
        f"-l {flag[2:]}" if flag.startswith("--") else f"-s {flag[1:]}" for flag in option.flags
    ]
    if option.choices:
        parts.append(f"-x -a {_quoted(' '.join(option.choices))}")
    elif option.takes_value:
        parts.append("-r -F" if option.complete else "-x")
    return " ".join(parts)


# Where bash stands on the line is found by walking over it: the first free word is the
# command, the second, where that has subcommands, the subcommand.
BASH = """\
# bash completion for outboxd; made by `outboxd completion bash`
_outboxd() {{
  local -A offered=(
{words}
  )
  local -A valued=(
{values}
  )
  local -A subcommands=(
{subcommands}
  )
  local current=${{COMP_WORDS[COMP_CWORD]}} previous=${{COMP_WORDS[COMP_CWORD-1]}}
  local place=: word index
  for (( index = 1; index < COMP_CWORD; index++ )); do
    word=${{COMP_WORDS[index]}}
    if [[ $word == -- ]]; then
      if [[ $place == exec ]] && declare -F _command_offset >/dev/null; then
        _command_offset $(( index + 1 ))
      else
        COMPREPLY=( $(compgen -f -- "$current") )
      fi
      return
    elif [[ -n ${{valued[$place:$word]+x}} ]]; then
      (( index++ ))
    elif [[ $word == -* ]]; then
      continue
    elif [[ $place == : ]]; then
      place=$word
    elif [[ " ${{subcommands[$place]-}} " == *" $word "* ]]; then
      place="$place $word"
    fi
  done
  if [[ -n ${{valued[$place:$previous]+x}} ]]; then
    case ${{valued[$place:$previous]}} in
      @file) COMPREPLY=( $(compgen -f -- "$current") ) ;;
      @directory) COMPREPLY=( $(compgen -d -- "$current") ) ;;
      *) COMPREPLY=( $(compgen -W "${{valued[$place:$previous]}}" -- "$current") ) ;;
    esac
    return
  fi
  COMPREPLY=( $(compgen -W "${{offered[$place]-}}" -- "$current") )
}}
complete -o filenames -o bashdefault -F _outboxd outboxd
"""

ZSH = """\
#compdef outboxd
# zsh completion for outboxd; made by `outboxd completion zsh`
_outboxd() {{
  local -a commands=(
{commands}
  )
  local context state line
  typeset -A opt_args
  _arguments -C '(-h --help)'{{-h,--help}}'[show this help]' \\
    '(-V --version)'{{-V,--version}}'[show the version]' \\
    '1:command:->command' '*::argument:->argument'
  if [[ $state == command ]]; then
    _describe 'command' commands
    return
  fi
  case $words[1] in
{cases}
  esac
}}
_outboxd "$@"
"""

ZSH_SUBCOMMANDS = """\
      local -a subcommands=({names})
      if (( CURRENT == 2 )) && [[ $words[2] != -* ]]; then
        _describe 'subcommand' subcommands
        return
      fi
      case $words[2] in
{inner}
        *)
{default} ;;
      esac"""

FISH = """\
# fish completion for outboxd; made by `outboxd completion fish`
function __outboxd_is
    set -l words (commandline -opc)
    set -l free
    for word in $words[2..-1]
        if test "$word" = --
            break
        end
        if not string match -q -- '-*' $word
            set -a free $word
        end
    end
    if test -z "$argv[1]"
        test (count $free) -eq 0
        return
    end
    set -l wanted (string split ' ' -- $argv[1])
    set -l last (count $wanted)
    test (count $free) -ge $last; or return 1
    test "$free[1..$last]" = "$argv[1]"
end
complete -c outboxd -f
"""
