"""Text of unknown origin drives no terminal and hides nothing."""

from __future__ import annotations

import json

import pytest

from outboxd.text import harmless, harmless_json

HOSTILE = [
    "\x1b]0;owned\x07",  # sets a terminal's title
    "\x9b2J",  # C1: the same as ESC [
    "\u202egnp.exe",  # shown from right to left
    "\u2066\u2069\u200f\u200b",
    "\x7f\x00\r\n\t",
    "\U000e0041",  # an invisible tag
]


@pytest.mark.parametrize("text", HOSTILE)
def test_what_drives_or_deceives_is_spelt_out(text: str) -> None:
    shown = harmless(f"a{text}b")
    assert shown.isprintable()
    assert shown.startswith("a\\")
    assert shown.endswith("b")


@pytest.mark.parametrize("text", ["plain", "Grün, 日本, é", "😀", "back\\slash", ""])
def test_what_is_simply_shown_stays_as_it_is(text: str) -> None:
    assert harmless(text) == text


def test_line_breaks_stay_where_lines_are_wanted() -> None:
    assert harmless("a\nb\x1b", lines=True) == "a\nb\\x1b"


@pytest.mark.parametrize("text", [*HOSTILE, "plain"])
def test_json_means_the_same_and_drives_nothing(text: str) -> None:
    written = json.dumps({"x": text, "\u202e": 1}, ensure_ascii=False)
    shown = harmless_json(written)
    assert shown.isprintable()
    assert json.loads(shown) == {"x": text, "\u202e": 1}
