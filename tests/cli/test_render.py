"""How entries look: aligned, cut to the terminal, and harmless."""

from __future__ import annotations

from outboxd.cli import render

NOW_MS = 1_750_000_000_000


def test_wide_characters_take_two_columns_and_combining_ones_none():
    assert render.width("ab") == 2
    assert render.width("日本") == 4
    assert render.width("e\u0301") == 1


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


def test_control_characters_are_shown_and_not_sent():
    assert render.table(("A",), [("x\x1b[2J\n\u202e",)], None)[1] == "x\\x1b[2J\\n\\u202e"


def test_distances_look_both_ways():
    assert render.distance("2025-06-15T15:06:00.000Z", NOW_MS) == "40s ago"
    assert render.distance("2025-06-15T15:10:00.000Z", NOW_MS) == "in 3m 20s"
    assert render.distance(None, NOW_MS) == "-"
