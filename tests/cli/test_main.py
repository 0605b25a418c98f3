"""The command line as a whole: help, suggestions, errors, and what must stay light."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import hypothesis
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.waiting import PATIENCE_S

from outboxd import __version__
from outboxd.cli import main as main_module
from outboxd.cli.help import command_help, main_help
from outboxd.cli.main import main
from outboxd.cli.table import COMMANDS
from outboxd.errors import OutboxdError, UsageError
from outboxd.producer.command_line import Arguments, Command, HelpWanted, Option, Positional, parse
from outboxd.producer.main import split_command
from outboxd.text import harmless

FORMS = [
    (command, subcommand)
    for command in COMMANDS.values()
    for subcommand in (None, *command.subcommands)
]


def test_every_command_of_the_contract_is_there():
    assert set(COMMANDS) >= {
        *("run", "emit", "exec", "status", "events", "wait", "dead-letters", "hold", "release"),
        *("check", "sandbox", "demo", "scope", "monitoring", "completion", "manpage", "help"),
    }


@pytest.mark.parametrize("command", ["emit", "exec", "status", "events", "wait", "check"])
def test_what_talks_to_an_agent_takes_a_configuration_and_a_socket(command):
    words = {"emit": ["t", "s"], "exec": ["true"], "wait": ["id"]}.get(command, [])
    arguments = parse(COMMANDS[command], ["-c", "f", "--socket=p", *words])
    assert (arguments.config, arguments.socket) == ("f", "p")


def test_version_and_help_are_for_stdout(place):
    assert place.run("--version").stdout == f"outboxd {__version__}\n"
    for words in (["--help"], ["-h"], ["help"]):
        done = place.run(*words)
        assert (done.returncode, done.stdout) == (0, main_help())
    done = place.run()
    assert (done.returncode, done.stdout, done.stderr) == (64, "", main_help())


@pytest.mark.parametrize(("command", "subcommand"), FORMS)
def test_help_shows_every_option_and_place(capsys, command, subcommand):
    words = [command.name, *([subcommand.name] if subcommand else [])]
    assert main([*words, "--help"]) == 0
    shown = capsys.readouterr().out
    assert shown == command_help(command, subcommand)
    assert main(["help", *words]) == 0
    assert capsys.readouterr().out == shown
    for option in (*command.options, *(subcommand.options if subcommand else ())):
        assert all(flag in shown for flag in option.flags)
    for place in (subcommand or command).positionals:
        assert place.metavar in shown
    assert all(len(line) <= 100 for line in shown.splitlines() if not line.startswith("  outboxd"))


@pytest.mark.parametrize(
    ("words", "suggestion"),
    [
        (["emti"], "did you mean emit?"),
        (["dead-leters"], "did you mean dead-letters?"),
        (["emit", "--clutser", "x"], "did you mean --cluster?"),
        (["events", "--stat", "pending"], "did you mean --state?"),
        (["events", "shwo"], "did you mean show?"),
        (["events", "--state", "pendign"], "did you mean pending?"),
        (["exec", "--on", "alway", "--", "x"], "did you mean always?"),
        (["completion", "bsh"], "did you mean bash?"),
        (["manpage", "emti"], "did you mean emit?"),
        (["--verson"], "did you mean --version?"),
        (["xyzzy"], "`outboxd help` lists the commands"),
        (["monitoring"], "one of: rules, dashboard"),
        (["events", "--limit", "-1"], "a whole number"),
        (["sandbox", "--fail-rate", "2"], "a number from 0 to 1"),
        (["wait"], "needs ID"),
        (["wait", "a", "b"], "does not expect 'b'"),
        (["status", "--json", "--check"], "exclude each other"),
        (["status", "--json=yes"], "takes no value"),
        (["emit", "-x"], "put -- before"),
    ],
)
def test_a_wrong_word_is_64_and_the_nearest_is_suggested(capsys, words, suggestion):
    assert main(words) == 64
    shown = capsys.readouterr()
    assert shown.out == ""
    assert suggestion in shown.err
    assert shown.err.startswith("outboxd: ")


def test_options_are_read_as_gnu_programs_read_them():
    words = ["a", "-cf", "--cluster", "x", "--cluster=y", "--cluster=", "--severity=--", "--", "-b"]
    arguments = parse(COMMANDS["emit"], words)
    assert (arguments.type, arguments.summary) == ("a", "-b")
    assert (arguments.config, arguments.cluster) == ("f", ["x", "y", ""])
    assert arguments.severity == "--"
    assert arguments.given == {"config", "cluster", "severity"}
    assert parse(COMMANDS["wait"], ["id", "--timeout", "5m"]).timeout_s == 300.0


def test_a_subcommand_may_stand_anywhere_among_the_options():
    for words in (
        ["show", "ID", "-c", "f"],
        ["-c", "f", "show", "ID"],
        ["--config=f", "show", "ID"],
        ["-cf", "show", "ID"],
    ):
        arguments = parse(COMMANDS["events"], words)
        assert (arguments.subcommand, arguments.id, arguments.config) == ("show", "ID", "f")
    assert parse(COMMANDS["events"], []).subcommand == "list"
    assert parse(COMMANDS["events"], ["--cursor", "x"]).cursor == "x"


def test_agent_options_may_stand_before_the_command():
    assert split_command(["-c", "f", "--socket=p", "wait", "ID"]) == (
        "wait",
        ["-c", "f", "--socket=p", "ID"],
    )
    assert split_command(["--help", "wait"]) == ("help", ["wait"])


@pytest.mark.parametrize(
    ("failure", "code", "shown"),
    [
        (UsageError("this", "do that"), 64, "outboxd: this\noutboxd: hint: do that\n"),
        (OutboxdError("odd\x1b[31m\ntext"), 70, "outboxd: odd\\x1b[31m\\ntext\n"),
        (KeyboardInterrupt(), 130, ""),
        (RuntimeError("boom"), 70, "outboxd: internal error: RuntimeError: boom\n"),
        (RecursionError(), 70, "outboxd: internal error: RecursionError: \n"),
    ],
)
def test_no_traceback_ever_reaches_a_user(capsys, monkeypatch, failure, code, shown):
    def fail(arguments: Arguments) -> int:
        raise failure

    monkeypatch.setattr(main_module, "run_command", fail)
    assert main(["status"]) == code
    assert capsys.readouterr().err.startswith(shown)


def test_an_internal_error_says_how_to_report_it(capsys, monkeypatch):
    monkeypatch.setattr(main_module, "run_command", lambda arguments: 1 // 0)
    assert main(["status"]) == 70
    assert "please report it" in capsys.readouterr().err
    monkeypatch.setenv("OUTBOXD_DEBUG", "1")
    assert main(["status"]) == 70
    assert "Traceback" in capsys.readouterr().err


def test_a_broken_pipe_is_quiet(place):
    script = f"{sys.executable} -m outboxd manpage | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, check=True, timeout=PATIENCE_S
    )
    assert done.stderr == ""
    assert done.stdout.strip() in ("0", "141")


def test_a_full_disk_behind_stdout_is_an_error_and_no_traceback(place):
    with open("/dev/full", "wb") as full_disk:
        process = place.start("manpage", stdout=full_disk)
        _, error = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 74
    assert error == b"outboxd: the output could not be written: No space left on device\n"


def test_printable_text_is_one_line_without_control_characters():
    assert harmless("plain ü") == "plain ü"
    assert harmless("a\nb\tc\x1b\u202e\ud800") == "a\\nb\\tc\\x1b\\u202e\\ud800"


# What `emit` may import beside the interpreter's own start: C cores, and our own bottom.
LIGHT = {
    *("__future__", "errno", "struct", "_struct", "_socket", "_json", "time", "_signal", "select"),
    "pwd",
}
# What an event about a job needs beside: `re`, to mask what looks like a secret.
MASKING = {
    *("collections", "copyreg", "enum", "functools", "keyword", "operator", "re", "reprlib"),
    *("re._casefix", "re._compiler", "re._constants", "re._parser", "types"),
    *("_collections", "_functools", "_operator", "_sre", "itertools"),
}
LOADED = """
import sys
before = set(sys.modules)
from outboxd.cli.main import main
if sys.argv[1] == "exec":
    # A job that takes long has more loaded: on a busy machine any may.
    from outboxd.producer import job
    job.MEANWHILE_AFTER_S = 3600.0
code = main(sys.argv[1:])
after = {name for name in set(sys.modules) - before if name.split(".")[0] != "outboxd"}
own = {name for name in sys.modules if name.startswith("outboxd.")}
print(*sorted(after), "|", *sorted(own), file=sys.stderr)
"""
OURS = {
    f"outboxd.{name}"
    for name in (
        *("cli", "cli.main", "cli.table", "producer", "producer.main", "producer.messages"),
        *("producer.command_line", "producer.commands", "producer.emit_command"),
        *("producer.exec_command", "producer.job", "producer.settings", "producer.plain_toml"),
        *(
            "producer.signals",
            "producer.output",
            "producer.words",
            "producer.masking",
            "producer.gateway",
        ),
        *("producer.hand_in", "producer.socket", "producer.spool", "producer.gateway", "locations"),
        *(
            "event",
            "event.jsontext",
            "event.komodor",
            "event.strictjson",
            "errors",
            "text",
            "times",
            "units",
            "disk",
        ),
    )
}


@pytest.mark.parametrize(
    "words",
    [
        ["emit", "t", "s", "--cluster", "c", "--detail", "k=v", "--ttl", "1h"],
        ["exec", "--", "true"],
        ["exec", "--", "false"],
        ["exec", "--timeout", "1h", "--", "true"],
    ],
)
@pytest.mark.parametrize("running", [True, False])
def test_emit_and_exec_import_nothing_heavy(place, request, words, running):
    if running:
        request.getfixturevalue("agent")
    done = subprocess.run(
        [sys.executable, "-c", LOADED, *words],
        env=place.environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=PATIENCE_S,
    )
    modules, own = done.stderr.splitlines()[-1].split("|")
    assert set(modules.split()) <= LIGHT | (MASKING if words[-1] == "false" else set())
    assert set(own.split()) <= OURS


@pytest.mark.alone
@pytest.mark.long
@pytest.mark.timeout(900)
def test_emit_and_exec_start_fast(place, tmp_path):
    """At most 2.5 times the interpreter alone, and 3.2 for exec, which forks and has a
    witness to the job's signals."""
    environment = {**place.environment, "PYTHONPYCACHEPREFIX": str(tmp_path / "cache")}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    script = Path(sys.executable).with_name("outboxd")
    ours = [str(script)] if script.exists() else [sys.executable, "-m", "outboxd"]
    commands = {
        "pass": [sys.executable, "-c", "pass"],
        "emit": [*ours, "emit", "t", "s", "--cluster", "c", "--detail", "k=v"],
        "exec": [*ours, "exec", "--", "true"],
    }
    took = {name: [] for name in commands}
    with open(os.devnull, "wb") as nowhere:
        for count in range(31):
            for name, command in commands.items():
                start = time.perf_counter()
                subprocess.run(command, env=environment, stderr=nowhere, check=True)
                if count:  # the first run writes the bytecode
                    took[name].append(time.perf_counter() - start)
    base = statistics.median(took["pass"])
    for name, most in (("emit", 2.5), ("exec", 3.2)):
        ratio = statistics.median(took[name]) / base
        assert ratio <= most, f"{name} took {ratio:.2f} times python -c pass"


WORDS = st.one_of(
    st.text(max_size=8),
    st.sampled_from(
        [
            *COMMANDS,
            *(each.name for command in COMMANDS.values() for each in command.subcommands),
            *(flag for command, sub in FORMS for each in command.options for flag in each.flags),
            *(flag for _, sub in FORMS if sub for each in sub.options for flag in each.flags),
            *("--", "-", "--=", "-c=", "--json=", "--timeout=1s", "5m", "-hc", "-Vh", "\ud800"),
        ]
    ),
)


@pytest.mark.timeout(900)
def test_any_command_line_is_read_or_refused_with_a_reason(full, seed):
    @hypothesis.seed(seed)
    @settings(
        max_examples=20_000 if full else 300,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.lists(WORDS, max_size=8))
    def check(words):
        name, rest = split_command(words)
        command = COMMANDS.get(name or "")
        if command is None:
            return
        try:
            arguments = parse(command, rest)
        except HelpWanted as wanted:
            command_help(wanted.command, wanted.subcommand)
        except UsageError:
            pass
        else:
            assert arguments.command == command.name
            for option in command.options:
                assert hasattr(arguments, option.name)

    check()


@pytest.mark.timeout(900)
def test_what_is_written_as_options_is_what_is_read(full, seed):
    command = Command(
        "x",
        "test",
        options=(
            Option("-a, --alpha", "A", "a"),
            Option("--beta", "B", "b", repeated=True),
            Option("--gamma", "", "g"),
        ),
        positionals=(Positional("P", "p", count="any"),),
    )
    texts = st.text(max_size=6)

    @hypothesis.seed(seed)
    @settings(max_examples=2_000 if full else 100)
    @given(st.one_of(st.none(), texts), st.lists(texts, max_size=3), st.booleans(), st.lists(texts))
    def check(alpha, beta, gamma, free):
        words = [] if alpha is None else [f"--alpha={alpha}"]
        for each in beta:
            words += ["--beta", each]
        words += ["--gamma"] if gamma else []
        arguments = parse(command, [*words, "--", *free])
        assert (arguments.alpha, arguments.beta) == (alpha, beta)
        assert (arguments.gamma, arguments.p) == (gamma, free)

    check()
