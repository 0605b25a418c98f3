"""Completion scripts and the man page say what the table says, and are valid."""

from __future__ import annotations

import subprocess

import pytest
from support.waiting import PATIENCE_S

from outboxd.cli import completion, manpage
from outboxd.cli.main import main
from outboxd.cli.table import COMMANDS

FLAGS = {
    flag
    for command in COMMANDS.values()
    for each in (command, *command.subcommands)
    for option in each.options
    for flag in option.flags
}
NAMES = {each.name for command in COMMANDS.values() for each in (command, *command.subcommands)}
SHELLS = ("bash", "zsh", "fish")


@pytest.mark.parametrize("shell", SHELLS)
def test_every_command_and_option_is_offered(shell, capsys):
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert script == completion.script(shell) + "\n"
    for name in NAMES:
        assert name in script
    for flag in FLAGS:
        as_fish = f"-l {flag[2:]}" if flag.startswith("--") else f"-s {flag[1:]}"
        assert (as_fish if shell == "fish" else flag) in script


@pytest.mark.parametrize("shell", SHELLS)
def test_the_shell_itself_finds_no_fault(shell, need, tmp_path):
    program = need(shell)
    script = tmp_path / "script"
    script.write_text(completion.script(shell))
    check = "--no-execute" if shell == "fish" else "-n"
    done = subprocess.run(
        [program, check, str(script)],
        env={"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        check=False,
        timeout=PATIENCE_S,
    )
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["e"], {"emit", "exec", "events"}),
        (["events", "--sta"], {"--state", "--status"}),
        (["events", "--state", ""], {"pending", "delivered", "dead"}),
        (["events", "show", "--"], {"--json", "--config", "--socket", "--help"}),
        (["-c", "f", "dead-letters", "re"], {"retry"}),
        (["dead-letters", "retry", "--al"], {"--all"}),
        (["exec", "--on", "a"], {"always"}),
        (["completion", ""], {"bash", "zsh", "fish"}),
        (["manpage", "ex"], {"exec"}),
        (["exec", "--", "/etc/os-rel"], {"/etc/os-release"}),
        (["backup", "-c", "/etc/os-rel"], {"/etc/os-release"}),
    ],
)
def test_bash_offers_what_may_stand_there(words, offered, tmp_path):
    script = tmp_path / "script"
    script.write_text(
        completion.script("bash")
        + '\nCOMP_WORDS=(outboxd "$@"); COMP_CWORD=$#; _shtab_outboxd outboxd "${!#}"'
        + '\nprintf "%s\\n" "${COMPREPLY[@]}"\n'
    )
    done = subprocess.run(
        ["bash", str(script), *words],
        capture_output=True,
        text=True,
        check=True,
        timeout=PATIENCE_S,
    )
    assert done.stderr == ""
    assert set(done.stdout.split()) == offered


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("outboxd e", {"emit", "exec", "events"}),
        ("outboxd events --state ", {"pending", "delivered", "dead"}),
        ("outboxd dead-letters retry --al", {"--all"}),
        ("outboxd completion ", {"bash", "zsh", "fish"}),
    ],
)
def test_fish_offers_what_may_stand_there(line, offered, need, tmp_path):
    script = tmp_path / "script"
    script.write_text(completion.script("fish"))
    done = subprocess.run(
        [need("fish"), "-c", f"source {script}; complete -C '{line}'"],
        env={"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
        timeout=PATIENCE_S,
    )
    assert done.stderr == ""
    assert {each.split("\t")[0] for each in done.stdout.splitlines()} == offered


@pytest.mark.parametrize("topic", [None, *COMMANDS])
def test_the_man_page_is_roff_without_a_warning(topic, capsys, need):
    assert main(["manpage", *([topic] if topic else [])]) == 0
    page = capsys.readouterr().out
    done = subprocess.run(
        [need("groff"), "-man", "-ww", "-Tascii", "-P-cbou"],
        input=page.encode(),
        capture_output=True,
        check=True,
        timeout=PATIENCE_S,
    )
    assert done.stderr == b""
    text = done.stdout.decode()
    shown = COMMANDS.values() if topic is None else [COMMANDS[topic]]
    for command in shown:
        assert command.name in text
        for each in (command, *command.subcommands):
            for option in each.options:
                assert option.flags[-1] in text


def test_an_unknown_topic_is_64(capsys):
    assert main(["manpage", "nonsense"]) == 64
    assert manpage.whole_page()
