"""How entries look: aligned, cut to the terminal, and harmless."""

from __future__ import annotations

from typing import Any

import pytest

from outboxd.cli import render
from outboxd.cli.rows import ListedEntry

NOW_MS = 1_750_000_000_000


def test_wide_characters_take_two_columns_and_combining_ones_none():
    assert render.width("ab") == 2
    assert render.width("日本") == 4
    assert render.width("e\u0301") == 1
    assert render.width("\u0e01\u0e31\u0e19") == 2  # a Thai vowel stands above its letter


def test_text_is_cut_with_an_ellipsis_and_never_in_half_a_character():
    assert render.cut("short", 10) == "short"
    assert render.cut("longer than that", 7) == "longer…"
    assert render.cut("日本語", 4) == "日…"


def test_a_table_is_aligned_and_only_its_last_column_is_cut():
    lines = render.table(("ID", "SUMMARY"), [("a" * 12, "b" * 50), ("c", "日本")], 40)
    assert lines[0] == "ID            SUMMARY"
    assert render.width(lines[1]) == 40
    assert lines[1].endswith("…")
    assert lines[2] == "c             日本"
    piped = render.table(("ID", "SUMMARY"), [("a", "b" * 500)], None)
    assert piped[1].endswith("b" * 500)


def entry(**changes: object) -> ListedEntry:
    fields: dict[str, Any] = {
        "id": "01a219c9-b7c2-7103-bae8-9959f6be37a7",
        "short_id": "01a219c9-b7c2-7103-bae8-9959",
        "state": "dead",
        "event_type": "部署完成 Rollout",
        "summary": "e\u0301 checkout 4.0 rolled out to prod",
        "severity": "error",
        "received_at": "2025-06-15T15:06:00.000Z",
        "dead_reason": "rejected",
        "last_status": 422,
        "last_error": "422 Unprocessable Entity: details.pipeline: expected a string",
    }
    return ListedEntry(**(fields | changes))


@pytest.mark.parametrize("columns", [40, 60, 80, 100, 120, 200])
@pytest.mark.parametrize("table", [render.entries_table, render.dead_letters_table])
def test_an_entry_has_one_line_with_its_id_and_how_it_ended_on_any_terminal(table, columns):
    lines = table([entry(), entry(state="delivered")], NOW_MS, columns)
    assert len(lines) == 3
    assert max(map(render.width, lines)) <= columns
    assert lines[1].startswith("01a219c9-b7c2-7103-bae8-9959 ")
    assert "422" in lines[1] or "dead" in lines[1]


def test_on_eighty_columns_a_dead_letter_says_what_was_wrong_with_it():
    line = render.dead_letters_table([entry()], NOW_MS, 80)[1]
    assert " 422 " in line
    assert " 15:06:00 " in line
    assert "422 Unprocess" in line
    expired = entry(dead_reason="expired", last_status=None, last_error=None)
    assert "expired" in render.dead_letters_table([expired], NOW_MS, 80)[1]
    assert "its time to l" in render.dead_letters_table([expired], NOW_MS, 120)[1]


def test_severity_and_state_are_coloured_on_a_narrow_terminal_too():
    for columns in (80, 160):
        line = render.entries_table([entry()], NOW_MS, columns, True)[1]
        assert line.count("\x1b[31m") == 2
        assert "\x1b" not in render.entries_table([entry()], NOW_MS, columns, False)[1]


def test_control_characters_are_shown_and_not_sent():
    assert render.table(("A",), [("x\x1b[2J\n\u202e",)], None)[1] == "x\\x1b[2J\\n\\u202e"


def test_distances_look_both_ways():
    assert render.distance("2025-06-15T15:06:00.000Z", NOW_MS) == "40s ago"
    assert render.distance("2025-06-15T15:10:00.000Z", NOW_MS) == "in 3m 20s"
    assert render.distance(None, NOW_MS) == "-"
